"""The streams of a tunnel: the open ids, the messages that may arrive for each, and the waits for windows.

Legs open and seal cells. A circuit is the only leg of its own tunnel (circuit.pyx), or one of several that are
linked (conflux.pyx).
"""

from collections import deque

from torkit._fast.budget cimport IDLE_CELLS_BRIM, IDLE_CELLS_RATE, fill
from torkit._fast.cells cimport RelayCommand, monotonic
from torkit._fast.events cimport Message, Readable, Writable
from torkit._fast.factory cimport make
from torkit._fast.memory cimport note
from torkit._fast.openssl cimport ERR_clear_error
from torkit._fast.stream cimport STREAM_WINDOW_START, StreamState

from torkit.errors import UsageError

# Implementation limit, bytes: what a stream under congestion control may queue, be XOFF sent or not. It is far
# beyond what arrives in the few milliseconds until XOFF is sent; after that `Stream.received_max` holds.
cdef Py_ssize_t QUEUE_LEN_MAX = 16 << 20


cdef class Tunnel(Outlet):
    """The common part of Circuit and LinkedSet. `owner` is the caller's."""

    def __cinit__(self):
        self.streams = IdTable()
        self.idle_cells.left = IDLE_CELLS_BRIM
        self.idle_cells.filled_at = monotonic()

    @property
    def has_ended(self):
        """Whether the tunnel has ended: nothing is sent or received any more."""
        return self.is_over

    @property
    def has_room(self):
        """Returns whether open_stream would succeed."""
        return not self.is_over and self.streams.used < MAX_STREAMS

    @property
    def stream_count(self):
        """How many streams are open, or may still get messages from the peer."""
        return self.streams.used

    def open_stream(self, int hop, bint is_resolve=False):
        """Returns a new stream of `hop`. The caller sends BEGIN, BEGIN_DIR or RESOLVE for its `id`.

        Raises UsageError where there is no such hop, or no room for one more.
        """
        self.has_windows(hop)
        if not self.has_room:
            raise UsageError("the circuit takes no more streams")
        while self.next_stream_id == 0 or self.streams.find(self.next_stream_id) is not None:
            self.next_stream_id += 1
        cdef Stream stream = self.add_stream(hop, self.next_stream_id, is_resolve)
        self.next_stream_id += 1
        return stream

    cdef Stream add_stream(self, int hop, uint16_t stream_id, bint is_resolve):
        """A new stream of `hop`, with an id that is not in use."""
        cdef bint has_windows = self.has_windows(hop)
        make()
        cdef Stream stream = Stream.__new__(Stream)
        stream.id = stream_id
        stream.circuit = self
        stream.hop = hop
        stream.is_resolve = is_resolve
        stream.state = StreamState.CONNECTING
        stream.has_windows = has_windows
        stream.package_window = STREAM_WINDOW_START
        stream.deliver_window = STREAM_WINDOW_START
        self.streams.add(stream)
        return stream

    def close_stream(self, Stream stream not None, const uint8_t[::1] end_body not None, double grace):
        """Send END with `end_body`; what is under way for the stream is still accepted, and dropped.

        Without windows to bound it, that is so for `grace` seconds. Does nothing if the peer has ended
        the stream already. Raises UsageError for a stream of another tunnel.
        """
        if stream.circuit is not self:
            raise UsageError("the stream is another circuit's")
        if stream.state != StreamState.CONNECTING and stream.state != StreamState.OPEN:
            return
        stream.connected_is_due = stream.state == StreamState.CONNECTING
        stream.state = StreamState.HALF_OPEN
        stream.data_is_due_until = monotonic() + grace
        stream.is_blocked = False
        stream.drop_queue()
        self.seal_message(stream.hop, RelayCommand.END, stream.id, end_body)

    def send(self, int hop, uint8_t command, uint16_t stream_id, const uint8_t[::1] body not None):
        """Seal one message for `hop`: up to 498 bytes, 488 with CGO. Does nothing once the tunnel has ended.

        DATA goes through Stream.put, which counts it.
        """
        self.seal_message(hop, command, stream_id, body)

    def keep(self, Py_ssize_t count):
        """Count `count` more bytes, or fewer, that Python keeps of the streams' data."""
        if not self.is_written_off:
            self.kept += count
            note(count)

    # --- what each kind of tunnel does in its own way ---------------------------------------------

    cdef bint has_windows(self, int hop) except -1:
        """Returns whether the streams of a hop have windows. Raises UsageError where there is no such hop."""
        raise NotImplementedError

    cdef int arrive(self, Tunnel leg, int hop_index, Relayed* message, const uint8_t* tag, uint64_t read_serial,
                    list events) except -1:
        """Handle a message that has come by one leg of several."""
        raise NotImplementedError

    cdef void lose(self, Tunnel leg) noexcept:
        """Note that one leg of several has ended."""
        pass

    cdef int fail(self, list events, str reason) except -1:
        """End because a peer broke the rules. An event tells the owner."""
        raise NotImplementedError

    cdef int seal_message(self, int hop, uint8_t command, uint16_t stream_id, const uint8_t[::1] body) except -1:
        """As `send`."""
        raise NotImplementedError

    cdef void break_for(self, Breakage reason) noexcept:
        """End for `reason`, once. The event needs memory, and comes as soon as there is some."""
        pass

    # --- arriving ---------------------------------------------------------------------------------

    cdef int deliver_data(self, Stream stream, const uint8_t* data, Py_ssize_t count, uint64_t read_serial,
                          list events) except -1:
        if stream.is_resolve or (stream.state == StreamState.CONNECTING) or stream.connected_is_due:
            return self.fail(events, "DATA arrived for a stream that is not connected")
        if stream.has_windows:
            stream.deliver_window -= 1
            if stream.deliver_window < 0:
                return self.fail(events, "the relay sent more DATA than the stream's deliver window allows")
        elif stream.received + count > stream.received_max or stream.tail - stream.head > QUEUE_LEN_MAX:
            return self.fail(events, "the relay goes on sending DATA after XOFF")
        if stream.state == StreamState.HALF_OPEN:
            if not stream.has_windows and monotonic() > stream.data_is_due_until:
                return self.fail(events, "DATA arrived long after its stream was closed")
            return 0
        if not stream.push(data, count):
            self.break_off()
            return 0
        if stream.reported != read_serial:
            stream.reported = read_serial
            events.append(Readable(stream))
        return 0

    cdef int deliver_message(self, int hop_index, int command, uint16_t stream_id, Stream stream, bytes body,
                             list events) except -1:
        """Handle a message other than DATA and SENDME: note what it changes of its stream's state."""
        if stream is None:
            if command == RelayCommand.DROP:
                return self.count_idle(events)
            if is_for_streams(command):
                return self.fail(events, f"{name_of(command)} arrived without a stream")
        elif command == RelayCommand.CONNECTED:
            if stream.is_resolve or (stream.state == StreamState.OPEN) or (
                    stream.state == StreamState.HALF_OPEN and not stream.connected_is_due):
                return self.fail(events, "CONNECTED arrived for a stream that was not waiting for it")
            stream.connected_is_due = False
            if stream.state == StreamState.CONNECTING:
                stream.state = StreamState.OPEN
        elif command == RelayCommand.END or command == RelayCommand.RESOLVED:
            if command == RelayCommand.RESOLVED and not stream.is_resolve:
                return self.fail(events, "RESOLVED arrived for a stream that asked for no name")
            self.streams.remove(stream_id)
            if stream.state == StreamState.HALF_OPEN:
                return 0
            stream.state = StreamState.ENDED
        if stream is not None and (stream.state == StreamState.HALF_OPEN or (
                stream.is_resolve and (command == RelayCommand.XON or command == RelayCommand.XOFF))):
            return self.count_idle(events)
        events.append(Message(self, hop_index, command, stream_id, stream, body))
        return 0

    cdef int count_idle(self, list events) except -1:
        """Count a relay cell that means nothing. A peer that goes on sending such cells loses the circuit."""
        fill(&self.idle_cells, monotonic(), IDLE_CELLS_RATE, 0, IDLE_CELLS_BRIM)
        self.idle_cells.left -= 1
        if self.idle_cells.left < 0:
            return self.fail(events, "a relay keeps sending relay cells that serve nothing")
        return 0

    # --- departing --------------------------------------------------------------------------------

    cdef int wait_for_window(self, Stream stream) except -1:
        """Note that `stream` waits for the window to open."""
        if self.blocked is None:
            self.blocked = deque()
        self.blocked.append(stream)
        return 0

    cdef int unblock(self, list events) except -1:
        """Tell every stream that waited that the window has opened, oldest first."""
        cdef Stream stream
        while self.blocked is not None and len(self.blocked):
            stream = <Stream>self.blocked.popleft()
            if stream.is_blocked:
                stream.is_blocked = False
                events.append(Writable(stream))
        return 0

    # --- the end ----------------------------------------------------------------------------------

    cdef void end_streams(self) noexcept:
        """It allocates nothing, so that it can always be done."""
        for entry in self.streams.slots:
            if entry is not None:
                (<Stream>entry).state = StreamState.ENDED
        self.streams.clear()
        self.blocked = None

    cdef void break_off(self) noexcept:
        """End because memory has run out. An event tells the owner."""
        ERR_clear_error()  # libcrypto's, which another user of this thread's queue would take for its own
        self.break_for(Breakage.NO_MEMORY)

    cdef void write_off(self) noexcept:
        """End for holding most memory. The owner is told, and frees what it keeps, which counts no more."""
        self.break_for(Breakage.OVER_LIMIT)
        self.is_written_off = True
        note(-self.kept)
        self.kept = 0

    cdef Py_ssize_t held(self) noexcept:
        """Returns the bytes that the tunnel holds beside its streams' queues."""
        return self.kept


cdef str name_of(int command):
    from torkit._fast.cells import RelayCommand as Names

    try:
        return Names(command).name
    except ValueError:
        return f"relay command {command}"
