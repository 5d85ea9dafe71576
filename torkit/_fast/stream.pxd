# Contents: one stream's receive queue, window counters and state.

cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint64_t

from torkit._fast.idtable cimport Entry

# Specification constants (tor-spec, "Flow control").
cdef enum:
    STREAM_WINDOW_START = 500     # DATA cells
    STREAM_WINDOW_INCREMENT = 50  # DATA cells that one stream-level SENDME acknowledges

cdef enum StreamState:
    CONNECTING                    # BEGIN, BEGIN_DIR or RESOLVE sent, no answer yet
    OPEN                          # CONNECTED received
    HALF_OPEN                     # END sent; what was under way may still arrive
    ENDED                         # END or RESOLVED received, or the circuit is gone

# What a stream needs of its circuit.
cdef class Outlet(Entry):
    cdef Py_ssize_t seal_data(self, Stream stream, const uint8_t* data, Py_ssize_t count) except -1
    cdef void seal_stream_sendme(self, Stream stream) noexcept
    cdef void break_off(self) noexcept

@cython.final
cdef class Stream(Entry):
    cdef Outlet circuit
    cdef readonly int hop         # index of the hop that serves the stream
    cdef public object owner      # the caller's own; never looked at here
    cdef StreamState state
    cdef bint is_resolve          # a RESOLVE: one RESOLVED answers, no data ever
    cdef bint connected_is_due    # half-open since before CONNECTED: one may still come
    cdef bint is_blocked          # put() stopped short; a Writable is owed
    cdef bint has_windows         # no congestion control: the two windows count
    cdef readonly bint is_xoff    # the peer asked us to pause
    cdef Py_ssize_t rate          # bytes a second that the peer wants at most of what the core feeds, or 0
    cdef double next_feed_at      # seconds, monotonic: by that rate
    cdef bint waits_for_rate      # the last feed stopped short for it; a look at the clock may say no more
    cdef double data_is_due_until # half-open without windows: seconds, monotonic
    cdef int package_window       # DATA cells we may still send
    cdef int deliver_window       # DATA cells the peer may still send
    cdef uint64_t reported        # serial of the read that last reported this stream readable

    # The receive queue: bytes [head, tail) of `queue`.
    cdef uint8_t* queue
    cdef Py_ssize_t capacity
    cdef Py_ssize_t head
    cdef Py_ssize_t tail
    cdef public int sink          # a descriptor that takes what arrives, or -1
    cdef object feeder            # who seals what is sent (pump.pyx), or None: then put() is somebody else's
    cdef readonly uint64_t sent   # bytes that put() has taken, ever
    cdef readonly uint64_t received  # bytes that DATA cells have brought, ever
    cdef readonly bint is_cut     # queued bytes were dropped, since memory was short
    cdef uint64_t received_max    # what `received` may come to: since our XOFF, what was under way

    # All streams that have a queue are in one list, to be found when memory is short. No references are held:
    # a stream leaves when its queue is freed, at the latest when it goes itself.
    cdef PyObject* previous
    cdef PyObject* next

    cdef Py_ssize_t put_from(self, const uint8_t* data, Py_ssize_t count) except -1
    cdef Py_ssize_t feed_from(self, const uint8_t* data, Py_ssize_t count) except -1
    cdef bint drain(self) noexcept
    cdef void taken(self, Py_ssize_t count) noexcept
    cdef bint push(self, const uint8_t* data, Py_ssize_t count) noexcept
    cdef void acknowledge(self) noexcept
    cdef void drop_queue(self) noexcept
    cdef void enlist(self) noexcept
    cdef void delist(self) noexcept

cdef PyObject* first_with_queue() noexcept
