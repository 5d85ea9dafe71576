# Contents: circuits by circ_id and streams by stream_id, found without making a Python object.

cimport cython
from libc.stdint cimport uint32_t

cdef class Entry:
    cdef readonly uint32_t id

@cython.final
cdef class IdTable:
    cdef list slots               # power-of-two length, linear probing, None where free
    cdef Py_ssize_t used
    cdef Entry last               # bulk traffic asks for the same id again and again

    cdef Entry find(self, uint32_t id)
    cdef int add(self, Entry entry) except -1
    cdef int remove(self, uint32_t id) except -1
    cdef void clear(self) noexcept
    cdef list entries(self)
    cdef int rehash(self, list entries, Py_ssize_t length) except -1
    cdef int place(self, Entry entry) except -1
