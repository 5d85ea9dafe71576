# Contents: several circuits to one exit that carry the streams of one tunnel: order of arrival, choice of the leg.

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint64_t

from torkit._fast.circuit cimport Circuit, Hop
from torkit._fast.stream cimport Stream
from torkit._fast.tunnel cimport Tunnel

# Implementation limits.
cdef enum:
    QUEUED_MAX = 8 << 20          # bytes of one set that wait for what comes before them: over it the set ends
    HOLD_ABOVE = 2 << 20          # bytes: from here on a leg that runs ahead is acknowledged no more ...
    RELEASE_BELOW = 1 << 20       # ... until so few are left

# A message that came before those ahead of it: this, and then its body.
cdef struct Early:
    uint64_t number
    Py_ssize_t length
    uint16_t stream_id
    uint8_t command

# One circuit of a set.
@cython.final
cdef class Leg:
    cdef Circuit circuit
    cdef Hop hop                  # the last, which is the exit
    cdef double linking_time      # seconds: its round-trip time, until one is measured
    # The numbers of the last counted cell each way. Cells that went by other legs count, once a SWITCH has told.
    cdef uint64_t sent
    cdef uint64_t received
    cdef uint64_t cells_sent      # counted cells that this leg itself has carried
    cdef uint64_t cells_received
    cdef bint has_switched        # a SWITCH has come, and no counted cell behind it yet
    cdef bint is_lost             # its circuit has ended before it carried anything: the set goes on without it
    # Messages that wait, in order of their numbers: bytes [head, tail) of `queue`.
    cdef uint8_t* queue
    cdef Py_ssize_t capacity
    cdef Py_ssize_t head
    cdef Py_ssize_t tail
    # The tags of the SENDMEs that are held back, oldest first.
    cdef uint8_t* tags
    cdef Py_ssize_t tags_capacity
    cdef Py_ssize_t tags_len      # bytes

    cdef Early* first(self) noexcept
    cdef bint push(self, uint64_t number, uint8_t command, uint16_t stream_id, const uint8_t* data,
                   Py_ssize_t length) noexcept
    cdef void pop(self) noexcept
    cdef bint hold(self, const uint8_t* tag) noexcept
    cdef void let_go(self) noexcept
    cdef void forget(self) noexcept
    cdef bint has_been_used(self) noexcept
    cdef double rtt(self) noexcept

@cython.final
cdef class LinkedSet(Tunnel):
    cdef list legs
    cdef int hop                  # index of the exit on each leg
    cdef bint fills               # data goes by any leg that has room, not only by the one of least delay
    cdef Leg current              # the leg that the last counted cell went by; None before the first
    cdef uint64_t delivered       # the number of the last message that was delivered
    cdef Py_ssize_t queued        # bytes of the legs' queues in use
    cdef Py_ssize_t queued_max    # the consensus' limit of them, or QUEUED_MAX

    cdef Leg leg_of(self, Tunnel circuit)
    cdef Leg first_leg(self)
    cdef int count_legs(self) noexcept
    cdef int arrive_counted(self, Leg leg, uint8_t command, uint16_t stream_id, const uint8_t* data,
                            Py_ssize_t length, const uint8_t* tag, uint64_t read_serial, list events) except -1
    cdef int deliver(self, uint8_t command, uint16_t stream_id, const uint8_t* data, Py_ssize_t length,
                     uint64_t read_serial, list events) except -1
    cdef int drain(self, uint64_t read_serial, list events) except -1
    cdef Leg choose(self)
    cdef bint switch_to(self, Leg leg) except -1
    cdef void finish(self) noexcept
