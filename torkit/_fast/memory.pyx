"""One account for the memory of all queues of the process.

It counts allocated bytes: the queues of streams, clients' bytes that wait for a window, cells and ciphertext that
relays have yet to take, and bytes that Python notes with `keep` (answers of directories). The counts change where
capacity changes, so that no byte and no cell pays for them. pump.pyx decides who ends when the limit is passed.
"""

from libc.stdlib cimport free, realloc

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

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


cdef bint resize(uint8_t** block, Py_ssize_t* capacity, Py_ssize_t wanted) noexcept:
    """Give `block` room for `wanted` bytes, more than 0. Returns False without memory: then nothing has changed."""
    global total
    cdef uint8_t* resized = <uint8_t*>realloc(block[0], wanted)
    if resized == NULL:
        return False
    total += wanted - capacity[0]
    block[0] = resized
    capacity[0] = wanted
    return True


cdef void release(uint8_t** block, Py_ssize_t* capacity) noexcept:
    """Free `block`, which may be NULL."""
    global total
    free(block[0])
    total -= capacity[0]
    block[0] = NULL
    capacity[0] = 0


cdef void note(Py_ssize_t count) noexcept:
    """Count bytes that other code has allocated, or, where negative, freed."""
    global total
    total += count


cdef Py_ssize_t excess() noexcept:
    """Returns the bytes above the limit; 0 or less while it holds."""
    return total - maximum
