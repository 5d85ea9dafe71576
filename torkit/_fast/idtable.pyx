"""A small hash table from 32-bit ids to Python objects, for look-ups once per cell.

A dict would make an int object for every cell. The slots are a Python list, so the garbage collector
sees through the table and a closed circuit's cycles are freed.
"""

cimport cython
from cpython.list cimport PyList_GET_ITEM

from torkit._fast.factory cimport check_maker

cdef Py_ssize_t SMALLEST = 2  # most circuits have a stream at a time, or none


cdef inline Py_ssize_t home(uint32_t id, Py_ssize_t mask) noexcept nogil:
    # Fibonacci hashing: ids are random, but a peer must not be able to choose colliding ones cheaply
    # either; it cannot, since the ids in the tables are ours.
    return <Py_ssize_t>((id * <uint32_t>2654435769U) >> 7) & mask


cdef class Entry:
    def __cinit__(self):
        check_maker(self)


@cython.final
cdef class IdTable:
    def __cinit__(self):
        self.slots = [None] * SMALLEST
        self.used = 0
        self.last = None

    cdef Entry find(self, uint32_t id):
        """Returns the entry of `id`, or None."""
        cdef Entry entry = self.last
        if entry is not None and entry.id == id:
            return entry
        cdef Py_ssize_t mask = len(self.slots) - 1
        cdef Py_ssize_t slot = home(id, mask)
        # Ends: the table is never more than half full. The index is masked into the list.
        while True:
            found = <object>PyList_GET_ITEM(self.slots, slot)
            if found is None:
                return None
            entry = <Entry>found
            if entry.id == id:
                self.last = entry
                return entry
            slot = (slot + 1) & mask

    cdef int add(self, Entry entry) except -1:
        """Add an entry, whose id must not be in the table."""
        if 2 * (self.used + 1) > len(self.slots):
            self.rehash(self.entries(), 2 * len(self.slots))
        self.place(entry)
        self.used += 1
        return 0

    cdef int remove(self, uint32_t id) except -1:
        """Forget `id`; absent is fine."""
        if self.find(id) is None:
            return 0
        self.last = None
        self.used -= 1
        cdef Py_ssize_t mask = len(self.slots) - 1
        cdef Py_ssize_t hole = home(id, mask)
        cdef Entry entry
        while (<Entry>self.slots[hole]).id != id:
            hole = (hole + 1) & mask
        # Close the gap: an entry that follows in the same run and may stand at the hole moves into it.
        cdef Py_ssize_t slot = hole
        while True:
            slot = (slot + 1) & mask
            if self.slots[slot] is None:
                break
            entry = <Entry>self.slots[slot]
            if ((slot - home(entry.id, mask)) & mask) >= ((slot - hole) & mask):
                self.slots[hole] = entry
                hole = slot
        self.slots[hole] = None
        return 0

    cdef void clear(self) noexcept:
        """Forget all, and allocate nothing."""
        cdef Py_ssize_t slot
        self.used = 0
        self.last = None
        for slot in range(len(self.slots)):
            self.slots[slot] = None

    cdef list entries(self):
        return [entry for entry in self.slots if entry is not None]

    cdef int rehash(self, list entries, Py_ssize_t length) except -1:
        self.slots = [None] * length
        for entry in entries:
            self.place(<Entry>entry)
        return 0

    cdef int place(self, Entry entry) except -1:
        cdef Py_ssize_t mask = len(self.slots) - 1
        cdef Py_ssize_t slot = home(entry.id, mask)
        while self.slots[slot] is not None:
            slot = (slot + 1) & mask
        self.slots[slot] = entry
        return 0
