# Contents: one circuit, from arriving cell to message and from message to sealed cell.

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from torkit._fast.cells cimport Outbox
from torkit._fast.onion cimport Layer, TAG_LEN_MAX
from torkit._fast.stream cimport Stream
from torkit._fast.tunnel cimport Breakage, Relayed, Tunnel
from torkit._fast.vegas cimport Vegas

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

# What a SENDME must carry, and when the cell that causes it was sealed.
cdef struct Tag:
    uint8_t[TAG_LEN_MAX] bytes
    double sealed_at              # seconds, by the clock of congestion control

# One hop: its layer and the flow of DATA cells between it and us.
@cython.final
cdef class Hop:
    cdef Layer layer
    cdef Vegas vegas              # congestion control; None where windows are fixed, also those of streams
    cdef int fixed_window         # DATA cells that may be in flight to the hop, without it
    cdef int increment            # DATA cells that one circuit-level SENDME acknowledges
    cdef int in_flight            # sent and not acknowledged
    cdef int unacknowledged       # received since our last SENDME
    cdef uint64_t acknowledged    # DATA cells that our SENDMEs have acknowledged, ever
    # The tags that SENDMEs from the hop must carry, oldest first: a ring that grows with the window.
    cdef Tag* tags
    cdef int tags_len
    cdef int first_tag
    cdef int tag_count

    # Returns whether the window lets one more DATA cell go.
    cdef inline bint has_room(self) noexcept:
        return self.in_flight < (self.fixed_window if self.vegas is None else self.vegas.window)

    cdef bint count_data(self) noexcept
    cdef bint push_tag(self, const uint8_t* tag) noexcept

# One circuit: the only leg of its own tunnel, or a leg of `tunnel`.
@cython.final
cdef class Circuit(Tunnel):
    cdef Outbox outbox
    cdef list hops
    cdef Tunnel tunnel            # whose streams its cells are for, while it is linked with others; else None
    cdef Breakage broken          # until its owner has been told
    cdef int relay_early_left
    cdef int client_hop           # the index of a hop that may open streams to us, or -1
    cdef Py_ssize_t sweep_at      # streams: from so many on, those that are long over are looked for

    cdef void finish(self) noexcept
    cdef int tell(self, list events) except -1
    cdef void forget_breakage(self) noexcept
    cdef int receive(self, uint8_t command, uint8_t* body, uint64_t read_serial, list events) except -1
    cdef void acknowledge(self, int hop_index, Hop hop, const uint8_t* tag) noexcept
    cdef int receive_begin(self, Relayed* message, list events) except -1
    cdef int sweep(self) except -1
    cdef int receive_stream_sendme(self, Stream stream, list events) except -1
    cdef int receive_circuit_sendme(self, Hop hop, const uint8_t* body, Py_ssize_t length, list events) except -1
    cdef Py_ssize_t seal_run(self, int hop_index, Hop hop, Stream stream, const uint8_t* data,
                             Py_ssize_t count) except -1
    cdef bint originate(self, int hop_index, uint8_t command, uint16_t stream_id, const uint8_t* data,
                        Py_ssize_t count, uint8_t* tag) noexcept
