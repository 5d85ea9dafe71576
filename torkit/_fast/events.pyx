"""The events of a read, other than bulk data: made once per rare event, never per cell."""

cimport cython


cdef class Event:
    pass


@cython.final
cdef class Readable(Event):
    """`stream` has received data in this read."""

    def __cinit__(self, stream):
        self.stream = stream


@cython.final
cdef class Writable(Event):
    """`stream` was blocked and its windows have opened: put() may accept more."""

    def __cinit__(self, stream):
        self.stream = stream


@cython.final
cdef class Message(Event):
    """A relay message that is not bulk data, from `hop` (0 is the guard) of `circuit`.

    `stream` is the open stream that it is for, or None. `body` is without header and padding.
    """

    def __cinit__(self, circuit, int hop, int command, int stream_id, stream, bytes body):
        self.circuit = circuit
        self.hop = hop
        self.command = command
        self.stream_id = stream_id
        self.stream = stream
        self.body = body


@cython.final
cdef class ControlCell(Event):
    """A cell for the channel (circ_id 0) or for the life of a circuit: CREATED2, DESTROY and so on."""

    def __cinit__(self, unsigned int circ_id, int command, bytes body):
        self.circ_id = circ_id
        self.command = command
        self.body = body


@cython.final
cdef class CircuitFailed(Event):
    """A peer broke the rules on `circuit`, which takes part in nothing from here on: send DESTROY."""

    def __cinit__(self, circuit, error):
        self.circuit = circuit
        self.error = error


@cython.final
cdef class ChannelFailed(Event):
    """The peer broke the framing itself: nothing more is read from this channel."""

    def __cinit__(self, error):
        self.error = error


@cython.final
cdef class Flushed(Event):
    """All that was sealed for this channel has been sent: told once, where it was asked for."""
