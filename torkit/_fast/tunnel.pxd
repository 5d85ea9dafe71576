# Contents: the streams of one circuit, or of several that are linked: from a cell's message to their queues.

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from torkit._fast.budget cimport Bucket
from torkit._fast.cells cimport RelayCommand
from torkit._fast.idtable cimport IdTable
from torkit._fast.stream cimport Outlet, Stream

# Implementation limit.
cdef enum:
    MAX_STREAMS = 16384           # of one tunnel, open and half-open: a quarter of the ids

# A relay message, wherever in the cell its format puts it.
cdef struct Relayed:
    uint8_t command
    uint16_t stream_id
    uint8_t* data
    Py_ssize_t length

# Why a circuit has ended where neither end wished it to.
cdef enum Breakage:
    NOT_BROKEN
    NO_MEMORY                     # an allocation failed, or libcrypto did, which fails for no other reason
    OVER_LIMIT                    # it held most when the memory limit was passed

# What streams belong to: a circuit is a tunnel of one leg, itself (circuit.pyx); linked ones are a tunnel of
# several (conflux.pyx).
cdef class Tunnel(Outlet):
    cdef public object owner      # the caller's own; never looked at here
    cdef IdTable streams
    cdef object blocked           # deque of streams that wait for the window, once one has had to
    cdef bint is_over
    cdef Py_ssize_t kept          # bytes that somebody keeps of what its streams have brought
    cdef bint is_written_off      # `kept` counts no more: who keeps it has been told to let go
    cdef Py_ssize_t tally         # bytes that it holds, while the pump looks for who holds most
    cdef Bucket idle_cells        # relay cells that serve nothing, and may still come
    cdef uint16_t next_stream_id

    cdef Stream add_stream(self, int hop, uint16_t stream_id, bint is_resolve)
    cdef bint has_windows(self, int hop) except -1
    cdef int arrive(self, Tunnel leg, int hop_index, Relayed* message, const uint8_t* tag, uint64_t read_serial,
                    list events) except -1
    cdef void lose(self, Tunnel leg) noexcept
    cdef int deliver_data(self, Stream stream, const uint8_t* data, Py_ssize_t count, uint64_t read_serial,
                          list events) except -1
    cdef int deliver_message(self, int hop_index, int command, uint16_t stream_id, Stream stream, bytes body,
                             list events) except -1
    cdef int count_idle(self, list events) except -1
    cdef int fail(self, list events, str reason) except -1
    cdef int seal_message(self, int hop, uint8_t command, uint16_t stream_id, const uint8_t[::1] body) except -1
    cdef int wait_for_window(self, Stream stream) except -1
    cdef int unblock(self, list events) except -1
    cdef void end_streams(self) noexcept
    cdef void break_for(self, Breakage reason) noexcept
    cdef void write_off(self) noexcept
    cdef Py_ssize_t held(self) noexcept

# Returns whether the command belongs to a stream, but for SENDME, which can also be the circuit's.
cdef inline bint is_for_streams(uint8_t command) noexcept nogil:
    return command in (RelayCommand.BEGIN, RelayCommand.DATA, RelayCommand.END, RelayCommand.CONNECTED,
                       RelayCommand.RESOLVE, RelayCommand.RESOLVED, RelayCommand.BEGIN_DIR,
                       RelayCommand.XON, RelayCommand.XOFF)

cdef str name_of(int command)
