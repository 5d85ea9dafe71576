"""One account for the memory of all queues of the process.

It counts allocated bytes: the queues of streams, clients' bytes that wait for a window, cells and ciphertext that
relays have yet to take, and bytes that Python notes with `keep` (answers of directories). The counts change where
capacity changes, so that no byte and no cell pays for them. pump.pyx decides who ends when the limit is passed.

What a burst has freed lies between what is still in use, and libc keeps it. In a process that is ours alone it goes
back to the system once the burst is over.
"""

from libc.stdlib cimport free, realloc

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from *:
    """
    #ifdef __GLIBC__
    #include <malloc.h>
    static void torkit_trim(void) { malloc_trim(0); }
    #else
    static void torkit_trim(void) {}
    #endif
    """
    void torkit_trim() noexcept nogil

# Implementation limit, bytes: so much less in queues than there was is worth a look at all memory of the process,
# which takes about a millisecond for each 10 MiB that go back.
cdef Py_ssize_t BURST = 4 << 20

cdef bint is_ours = False                 # the process
cdef Py_ssize_t highest = 0               # bytes, since memory was given back last
cdef Py_ssize_t total = 0                 # bytes
cdef Py_ssize_t maximum = PY_SSIZE_T_MAX  # bytes


def held():
    """Returns how many bytes wait in queues."""
    return total


def limit():
    """Returns how many bytes may wait in queues."""
    return maximum


def set_limit(Py_ssize_t count):
    """Set how many bytes may wait in the queues of this process. A pump that finds more ends the greatest holder."""
    global maximum
    maximum = count


def own_process():
    """Let `rest` give memory back from now on: what else allocates in this process is ours, too."""
    global is_ours
    is_ours = True


cdef bint resize(uint8_t** block, Py_ssize_t* capacity, Py_ssize_t wanted) noexcept:
    """Give `block` room for `wanted` bytes, more than 0. Returns False without memory: then nothing has changed."""
    cdef uint8_t* resized = <uint8_t*>realloc(block[0], wanted)
    if resized == NULL:
        return False
    note(wanted - capacity[0])
    block[0] = resized
    capacity[0] = wanted
    return True


cdef void release(uint8_t** block, Py_ssize_t* capacity) noexcept:
    """Free `block`, which may be NULL."""
    free(block[0])
    note(-capacity[0])
    block[0] = NULL
    capacity[0] = 0


cdef void note(Py_ssize_t count) noexcept:
    """Count bytes that other code has allocated, or, where negative, freed."""
    global total, highest
    total += count
    if total > highest:
        highest = total


cdef void rest() noexcept:
    """Nothing moves for the moment: give the system back what a burst has freed."""
    global highest
    if is_ours and highest - total >= BURST:
        highest = total
        torkit_trim()


cdef Py_ssize_t excess() noexcept:
    """Returns the bytes above the limit; 0 or less while it holds."""
    return total - maximum
