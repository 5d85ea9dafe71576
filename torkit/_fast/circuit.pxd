# Contents: one circuit, from decrypted cell to stream queue and from data to sealed cell.

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from torkit._fast.budget cimport Bucket
from torkit._fast.cells cimport Outbox
from torkit._fast.idtable cimport IdTable
from torkit._fast.onion cimport Layer, TAG_LEN_MAX
from torkit._fast.stream cimport Outlet, Stream

# Specification constants (tor-spec, "Relay cells" and "Flow control"; proposal 340 for format v1).
cdef enum:
    V0_HEADER_LEN = 11            # command, recognized, stream id, digest, length
    V1_STREAM_AT = 16 + 3         # tag, command, length; then the stream id where the command has one
    V1_HEADER_LEN = V1_STREAM_AT + 2

cpdef enum:
    CIRCUIT_WINDOW_START = 1000   # DATA cells
    CIRCUIT_WINDOW_INCREMENT = 100

# Implementation limits.
cdef enum:
    MAX_HOPS = 8                  # a client cannot extend further: 8 RELAY_EARLY cells
    MAX_STREAMS = 16384           # on one circuit, open and half-open: a quarter of the ids

# What a SENDME must carry, and when the cell that causes it was sealed.
cdef struct Tag:
    uint8_t[TAG_LEN_MAX] bytes
    double sealed_at              # seconds, monotonic

# A relay message, wherever in the cell its format puts it.
cdef struct Relayed:
    uint8_t command
    uint16_t stream_id
    uint8_t* data
    Py_ssize_t length

# One hop: its layer and the flow of DATA cells between it and us.
@cython.final
cdef class Hop:
    cdef Layer layer
    cdef bint has_congestion_control   # its window moves, its streams have XON and XOFF, no windows
    cdef int window               # DATA cells that may be in flight to the hop
    cdef int increment            # DATA cells that one circuit-level SENDME acknowledges
    cdef int in_flight            # sent and not acknowledged
    cdef int unacknowledged       # received since our last SENDME
    cdef uint64_t acknowledged    # DATA cells that our SENDMEs have acknowledged, ever
    # The tags that SENDMEs from the hop must carry, oldest first: a ring that grows with the window.
    cdef Tag* tags
    cdef int tags_len
    cdef int first_tag
    cdef int tag_count

    cdef bint push_tag(self, const uint8_t* tag) noexcept

# Why a circuit has ended where neither end wished it to.
cdef enum Breakage:
    NOT_BROKEN
    NO_MEMORY                     # an allocation failed, or libcrypto did, which fails for no other reason
    OVER_LIMIT                    # it held most when the memory limit was passed

@cython.final
cdef class Circuit(Outlet):
    cdef public object owner      # the caller's own; never looked at here
    cdef Outbox outbox
    cdef list hops
    cdef IdTable streams
    cdef object blocked           # deque of streams that wait for the circuit window
    cdef bint is_over
    cdef Breakage broken          # until its owner has been told
    cdef Py_ssize_t kept          # bytes that somebody keeps of what its streams have brought
    cdef bint is_written_off      # `kept` counts no more: who keeps it has been told to let go
    cdef Py_ssize_t tally         # bytes that it holds, while the pump looks for who holds most
    cdef Bucket idle_cells        # relay cells that serve nothing, and may still come
    cdef int relay_early_left
    cdef uint16_t next_stream_id

    cdef void finish(self) noexcept
    cdef void break_for(self, Breakage reason) noexcept
    cdef void write_off(self) noexcept
    cdef int tell(self, list events) except -1
    cdef void forget_breakage(self) noexcept
    cdef int receive(self, uint8_t command, uint8_t* body, uint64_t read_serial, list events) except -1
    cdef int receive_data(self, Hop hop, Stream stream, const uint8_t* data, Py_ssize_t count,
                          uint8_t* tag, uint64_t read_serial, list events) except -1
    cdef int receive_stream_sendme(self, Stream stream, list events) except -1
    cdef int receive_circuit_sendme(self, int hop_index, Hop hop, const uint8_t* body, Py_ssize_t length,
                                    list events) except -1
    cdef int receive_message(self, int hop_index, int command, uint16_t stream_id, Stream stream,
                             bytes body, list events) except -1
    cdef int count_idle(self, list events) except -1
    cdef int fail(self, list events, str reason) except -1
    cdef int seal_message(self, int hop, uint8_t command, uint16_t stream_id, const uint8_t[::1] body) except -1
    cdef bint originate(self, int hop_index, uint8_t command, uint16_t stream_id, const uint8_t* data,
                        Py_ssize_t count, uint8_t* tag) noexcept
    cdef void seal_circuit_sendme(self, int hop_index, Hop hop, const uint8_t* received_tag) noexcept
    cdef int unblock(self, list events) except -1
