# Contents: the sockets that bytes move between without Python, and the loop over those that are ready.

cimport cython
from libc.stdint cimport uint8_t, uint32_t

from torkit._fast.channel cimport Channel
from torkit._fast.stream cimport Stream
from torkit._fast.tls cimport Tls

# Implementation limits.
cdef enum:
    BUFFER_LEN = 131072           # bytes of one read from a relay: a busy relay's burst; more gains nothing measurable
    CLIENT_READ_LEN = 65536       # bytes of one read from a client: some 130 cells
    MAX_READY = 64                # sockets looked at in one round, so that a crowd cannot starve the rest
    MAX_READS = 8                 # from one relay in one round, less where several have more: 3 ms for the dearest cells
    ROUND_READS = 16              # from all of them: 6 ms
    ANSWERS_MAX = 262144          # bytes sealed while a relay was read, and not taken by it, at which it is read no more

# A socket that the pump watches. Made by the pump's methods; `owner` is handed back with what happens.
cdef class Source:
    cdef public object owner
    cdef int descriptor           # -1 once it is watched no more
    cdef uint32_t interest        # epoll's flags
    cdef Py_ssize_t slot
    cdef bint has_failed          # it is neither read nor sent to any more; its owner is told

# The connection to a relay.
@cython.final
cdef class Link(Source):
    cdef Tls tls
    cdef Channel channel
    cdef bint has_more            # the last round did not take all that it holds
    cdef Py_ssize_t answers       # bytes sealed while it was read, since all was last sent
    cdef public bint tell_when_sent

cdef class Pump

# A socket of this machine: a listener, or a client of the proxy. Or a pipe or a file.
@cython.final
cdef class Local(Source):
    cdef Pump pump                # None once it is watched no more
    cdef Stream stream            # takes what the client sends; None while Python reads
    cdef uint8_t* unsent          # of the last read: what the stream's windows had no room for, or NULL
    cdef Py_ssize_t unsent_len
    cdef Py_ssize_t capacity      # of `unsent`
    cdef bint has_ended           # nothing more can be read
    cdef readonly object failure  # OSError: why not, where it did not end
    cdef bint is_pipe             # the end that is read
    cdef bint is_file             # never watched
    cdef bint is_due              # the windows have opened
    cdef bint is_paced            # waits for the timer

    cdef int seal(self) except -1
    cdef void keep(self, const uint8_t* data, Py_ssize_t count) noexcept
    cdef void forget_unsent(self) noexcept

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
    cdef void release_spare(self) noexcept
    cdef int end_greatest(self, list found) except -1
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
