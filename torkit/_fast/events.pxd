# Contents: what Channel.receive_data tells its caller, in the order in which it happened.

cimport cython

cdef class Event:
    pass

@cython.final
cdef class Readable(Event):
    cdef readonly object stream

@cython.final
cdef class Writable(Event):
    cdef readonly object stream

@cython.final
cdef class Message(Event):
    cdef readonly object circuit
    cdef readonly int hop
    cdef readonly int command
    cdef readonly int stream_id
    cdef readonly object stream
    cdef readonly bytes body

@cython.final
cdef class ControlCell(Event):
    cdef readonly unsigned int circ_id
    cdef readonly int command
    cdef readonly bytes body

@cython.final
cdef class CircuitFailed(Event):
    cdef readonly object circuit
    cdef readonly object error

@cython.final
cdef class ChannelFailed(Event):
    cdef readonly object error

@cython.final
cdef class Flushed(Event):
    pass
