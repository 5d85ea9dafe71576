# Contents: the sockets that bytes move between without Python, and who of those they serve holds most memory.

cimport cython
from libc.stdint cimport uint8_t, uint32_t

from torkit._fast.channel cimport Channel
from torkit._fast.stream cimport Stream
from torkit._fast.tls cimport Tls
from torkit._fast.tunnel cimport Tunnel

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

# A socket of this machine: a listener, or a client of the proxy. Or a pipe or a file.
@cython.final
cdef class Local(Source):
    cdef list due                 # where it asks the pump to go on; None once it is watched no more
    cdef Stream stream            # takes what the client sends; None while Python reads
    cdef uint8_t* unsent          # of the last read: what the stream's windows had no room for, or NULL
    cdef Py_ssize_t unsent_len
    cdef Py_ssize_t capacity      # of `unsent`
    cdef bint has_ended           # nothing more can be read
    cdef readonly object failure  # OSError: why not, where it did not end
    cdef bint is_pipe             # the end that is read, or one of a pair of sockets
    cdef bint is_file             # never watched
    cdef bint is_due              # the windows have opened
    cdef bint is_paced            # waits for the timer

    cdef int seal(self) except -1
    cdef void keep(self, const uint8_t* data, Py_ssize_t count) noexcept
    cdef void forget_unsent(self) noexcept

cdef void release_spare(list links) noexcept
cdef object find_greatest(list links, list sources)
cdef void write_off(Tunnel tunnel, list sources) noexcept
