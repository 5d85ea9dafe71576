# Contents: the circuit table and the loop over one read.

cimport cython
from libc.stdint cimport uint8_t, uint32_t

from torkit._fast.budget cimport Bucket
from torkit._fast.cells cimport Outbox
from torkit._fast.idtable cimport IdTable

@cython.final
cdef class Channel:
    cdef Outbox outbox
    cdef IdTable circuits
    cdef bint is_versioned        # VERSIONS has been received: circuit ids have 4 bytes
    cdef bint has_failed
    cdef bytearray partial        # the cell that the last read ended in
    cdef Bucket idle_cells        # what the peer may still send that serves nothing
    cdef readonly double last_active  # seconds, CLOCK_MONOTONIC: when cells last came or were taken to be sent

    cdef list receive_read(self, uint8_t* data, Py_ssize_t nbytes)
    cdef int receive_bytes(self, uint8_t* data, Py_ssize_t nbytes, list events) except -1
    cdef int tell_broken(self, list events) except -1
    cdef Py_ssize_t complete_partial(self, uint8_t* data, Py_ssize_t count, list events) except -1
    cdef Py_ssize_t receive(self, uint8_t* data, Py_ssize_t count, list events) except -1
    cdef int receive_cells(self, uint8_t* data, Py_ssize_t count, Py_ssize_t* used, list events) except -1
    cdef bint break_off_for(self, const uint8_t* cell) noexcept
    cdef Py_ssize_t cell_length(self, const uint8_t* data, Py_ssize_t count) noexcept nogil
    cdef int receive_cell(self, uint8_t* cell, Py_ssize_t length, list events) except -1
    cdef bint is_answer(self, uint32_t circ_id, uint8_t command)
    cdef int count_idle(self, list events) except -1
