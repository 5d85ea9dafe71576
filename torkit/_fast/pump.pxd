# Contents: the loop over the sockets that are ready.

cimport cython
from libc.stdint cimport uint8_t, uint32_t

from torkit._fast.sources cimport Link, Local, Source

# Implementation limits.
cdef enum:
    BUFFER_LEN = 131072           # bytes of one read from a relay: a busy relay's burst; more gains nothing measurable
    CLIENT_READ_LEN = 65536       # bytes of one read from a client: some 130 cells
    MAX_READY = 64                # sockets looked at in one round, so that a crowd cannot starve the rest
    MAX_READS = 8                 # from one relay in one round, less where several have more: 3 ms for the dearest cells
    ROUND_READS = 16              # from all of them: 6 ms
    ANSWERS_MAX = 262144          # bytes sealed while a relay was read, and not taken by it, at which it is read no more

@cython.final
cdef class Pump:
    cdef readonly int descriptor  # of epoll: readable when there is something to do
    cdef list sources             # by slot; None where one has gone
    cdef list free                # slots
    cdef list links
    cdef list found               # what Python has yet to be told
    cdef bint has_untold          # there was no memory to tell somebody that a source has failed
    cdef list due                 # locals whose streams may send again
    cdef list paced               # locals that the peer's rate holds
    cdef int timer                # a descriptor: readable when one of these may go on
    cdef double timer_at          # seconds, monotonic; 0 while it is not set
    cdef uint8_t* buffer
    cdef double moved_at          # seconds, monotonic: when a byte last moved
    cdef readonly int ended_for_memory  # circuits and links that held most when the limit was passed

    cdef int add(self, Source source, int descriptor, uint32_t interest) except -1
    cdef int watch_for(self, Source source, uint32_t interest) except -1
    cdef int round(self, list found) except -1
    cdef int links_behind(self)
    cdef int relieve(self, list found) except -1
    cdef bint end_greatest(self, list found) except -1
    cdef int receive_all(self, list found) except -1
    cdef int receive(self, Link link, int reads, list found) except -1
    cdef int fail_link(self, Link link, error, list found) except -1
    cdef int fail_local(self, Local local, error, list found) except -1
    cdef int tell_failed(self, list found) except -1
    cdef list take_found(self)
    cdef int pace(self, Local local) except -1
    cdef int unpace(self, list found) except -1
    cdef list hand_over(self, list events)
    cdef int upload(self, Local local, uint32_t flags, list found) except -1
    cdef int feed(self, list found) except -1
    cdef int go_on(self, Local local, list found) except -1
    cdef int read_from(self, Local local, list found) except -1
    cdef int send(self, list found) except -1
    cdef bint send_link(self, Link link, list found) except -1
