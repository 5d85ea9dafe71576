# Contents: the account of what waits in queues, the two functions that allocate and free such queues,
# and when freed memory goes back to the system.

from libc.stdint cimport uint8_t

cdef bint resize(uint8_t** block, Py_ssize_t* capacity, Py_ssize_t wanted) noexcept
cdef void release(uint8_t** block, Py_ssize_t* capacity) noexcept
cdef void note(Py_ssize_t count) noexcept
cdef Py_ssize_t excess() noexcept
cdef void rest() noexcept
