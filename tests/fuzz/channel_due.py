"""The model of circuits on one channel, in plain Python: what the core must do with each cell. tor-spec."""

import struct
from collections import deque
from dataclasses import dataclass

from fuzz.linked_due import FOR_STREAMS, KNOWN, DueStream, make_vegas
from fuzz.world import Kind

from torkit._fast.cells import RelayCommand
from torkit.proto.flow import ClockGuard, Vegas
from torkit.testing.relay.cells import (
    CIRCWINDOW_INCREMENT,
    CIRCWINDOW_START,
    STREAMWINDOW_INCREMENT,
    STREAMWINDOW_START,
)

# Numbers of the implementation that show: a stream is acknowledged once no more than so many bytes wait.
ACKNOWLEDGE_BELOW = 10 * 498
HALF_OPEN = "half open"


@dataclass
class Stream(DueStream):
    """One of a circuit's, with the windows that it has without congestion control, in cells."""

    hop: int = 0
    to_send: int = STREAMWINDOW_START
    to_come: int = STREAMWINDOW_START


class Hop:
    def __init__(self, kind: Kind, clock: ClockGuard) -> None:
        self.kind = kind
        self.clock = clock
        self.vegas: Vegas | None = make_vegas(clock) if kind.has_vegas else None
        self.increment = CIRCWINDOW_INCREMENT if self.vegas is None else self.vegas.increment
        self.in_flight = 0
        self.unacknowledged = 0
        self.received = 0  # DATA cells, by the relay
        self.sealed_at: deque[float] = deque()  # of the cells for which SENDMEs may come
        self.tags: deque[bytes] = deque()  # and what these must carry

    @property
    def room(self) -> int:
        """How many DATA cells may go."""
        window = CIRCWINDOW_START if self.vegas is None else self.vegas.window
        return max(0, window - self.in_flight)

    def count_sent(self) -> None:
        self.in_flight += 1
        if self.in_flight % self.increment == 0:
            self.sealed_at.append(self.clock.set_to)

    def count_received(self) -> bool:
        """By the relay: whether its SENDME is due for this cell."""
        self.received += 1
        return self.received % self.increment == 0


class DueCircuit:
    """`events` and `sent` are those of the step: what is told, and what goes to the relays."""

    def __init__(self, circ_id: int) -> None:
        self.id = circ_id
        self.client_hop = -1  # behind which there is a client of our onion service
        self.hops: list[Hop] = []
        self.streams: dict[int, Stream] = {}  # by id, until the peer's END
        self.blocked: list[Stream] = []
        self.early_left = 8
        self.is_over = False
        self.events: list[tuple[object, ...]] = []
        self.readable: set[int] = set()
        self.sent: list[tuple[int, int, int]] = []  # hop, command, stream id
        self.begun: list[Stream] = []  # by that client, until the user has been told
        self.idle = 0

    # --- what ends it ---

    def finish(self) -> None:
        self.is_over = True
        for stream in self.streams.values():
            stream.state = "ended"
        self.streams.clear()
        self.blocked.clear()

    def fail(self) -> None:
        if not self.is_over:
            self.events.append(("failed", self.id))
            self.finish()

    # --- the user's ---

    def send(self, hop: int, command: int, stream_id: int) -> None:
        if self.is_over:
            return
        if self.early_left and (hop > 0 or command == RelayCommand.EXTEND2):
            self.early_left -= 1
        self.sent.append((hop, command, stream_id))

    def put(self, stream: Stream, count: int) -> int:
        """Returns how many bytes are taken."""
        hop = self.hops[stream.hop]
        if self.is_over or stream.is_xoff or stream.is_resolve or stream.state not in ("open", "connecting"):
            return 0
        full = hop.kind.far.DATA_LEN_MAX
        cells = min(-(-count // full), hop.room, stream.to_send if hop.vegas is None else hop.room)
        for _ in range(cells):
            hop.count_sent()
            self.send(stream.hop, RelayCommand.DATA, stream.id)
            stream.to_send -= hop.vegas is None
        taken = min(count, cells * full)
        if taken < count and not stream.is_blocked:
            stream.is_blocked = True
            if stream.to_send:
                self.blocked.append(stream)
        return taken

    def take(self, stream: Stream, count: int) -> None:
        if not stream.data or not count:
            return
        del stream.data[:count]
        has_windows = self.hops[stream.hop].vegas is None
        if stream.state == "open" and has_windows and len(stream.data) <= ACKNOWLEDGE_BELOW:
            while stream.to_come <= STREAMWINDOW_START - STREAMWINDOW_INCREMENT:
                stream.to_come += STREAMWINDOW_INCREMENT
                self.send(stream.hop, RelayCommand.SENDME, stream.id)

    def close(self, stream: Stream) -> None:
        if stream.state not in ("open", "connecting"):
            return
        stream.connected_is_due = stream.state == "connecting"
        stream.state = HALF_OPEN
        stream.is_blocked = False
        stream.data.clear()
        self.send(stream.hop, RelayCommand.END, stream.id)

    # --- the relays' ---

    def arrive(self, at: int, command: int, stream_id: int, body: bytes, *, is_long: bool) -> None:
        if self.is_over:
            return
        hop = self.hops[at]
        is_client = at == self.client_hop
        stream = self.streams.get(stream_id) if stream_id else None
        is_cgo = hop.kind.far.TAG_LEN == 16
        if is_long or (is_cgo and command not in KNOWN):
            self.fail()
        elif stream_id == 0:
            if command == RelayCommand.SENDME:
                self._acknowledged(hop, body)
            else:
                self._tell(at, command, 0, None, body)
        elif command == RelayCommand.BEGIN and is_client:
            self._begin(at, stream_id, stream, body)
        elif stream is None and is_client and command != RelayCommand.RESOLVE:
            if command == RelayCommand.DATA:
                self._count_data(at)
            self.idle += 1
        elif stream is None or stream.hop != at:
            self.fail()
        elif command == RelayCommand.DATA:
            self._count_data(at)
            self._data(stream, body)
        elif command == RelayCommand.SENDME:
            self._stream_acknowledged(stream)
        else:
            self._tell(at, command, stream_id, stream, body)

    def _begin(self, at: int, stream_id: int, stream: Stream | None, body: bytes) -> None:
        if stream is not None and stream.state != HALF_OPEN:
            self.fail()
            return
        self.streams[stream_id] = Stream(stream_id, is_resolve=False, state="open", hop=at)
        self.begun.append(self.streams[stream_id])
        self.events.append(("message", self.id, at, RelayCommand.BEGIN, stream_id, body))

    def _count_data(self, at: int) -> None:
        hop = self.hops[at]
        hop.unacknowledged += 1
        if hop.unacknowledged == hop.increment:
            hop.unacknowledged = 0
            self.send(at, RelayCommand.SENDME, 0)

    def _data(self, stream: Stream, body: bytes) -> None:
        if stream.is_resolve or stream.state == "connecting" or stream.connected_is_due:
            self.fail()
            return
        if self.hops[stream.hop].vegas is None:
            stream.to_come -= 1
            is_over = stream.to_come < 0
        else:
            is_over = stream.arrived + len(body) > stream.bound
        if is_over:
            self.fail()
        elif stream.state == "open":
            stream.data += body
            stream.arrived += len(body)
            self.readable.add(stream.id)

    def _acknowledged(self, hop: Hop, body: bytes) -> None:
        length = hop.kind.far.TAG_LEN
        if (
            not hop.sealed_at
            or body[:3] != struct.pack(">BH", 1, length)
            or body[3 : 3 + length] != hop.tags[0]
        ):
            self.fail()
            return
        hop.tags.popleft()
        rtt = hop.clock.set_to - hop.sealed_at.popleft()
        if hop.vegas is not None:
            hop.vegas.acknowledge(rtt, in_flight=hop.in_flight, blocked=False)
        hop.in_flight -= hop.increment
        for stream in self.blocked:
            self._unblock(stream)
        self.blocked.clear()

    def _stream_acknowledged(self, stream: Stream) -> None:
        is_early = stream.to_send + STREAMWINDOW_INCREMENT > STREAMWINDOW_START
        if self.hops[stream.hop].vegas is not None or is_early:
            self.fail()
            return
        stream.to_send += STREAMWINDOW_INCREMENT
        self._unblock(stream)

    def _unblock(self, stream: Stream) -> None:
        if stream.is_blocked:
            stream.is_blocked = False
            self.events.append(("writable", self.id, stream.id))

    def _tell(self, at: int, command: int, stream_id: int, stream: Stream | None, body: bytes) -> None:
        if stream is None:
            if command == RelayCommand.DROP:
                self.idle += 1
                return
            if command in FOR_STREAMS:
                self.fail()
                return
        elif command == RelayCommand.CONNECTED:
            if stream.is_resolve or not (stream.state == "connecting" or stream.connected_is_due):
                self.fail()
                return
            stream.connected_is_due = False
            stream.state = "open" if stream.state == "connecting" else stream.state
        elif command in (RelayCommand.END, RelayCommand.RESOLVED):
            if command == RelayCommand.RESOLVED and not stream.is_resolve:
                self.fail()
                return
            del self.streams[stream_id]
            if stream.state == HALF_OPEN:
                return
            stream.state = "ended"
        if stream is not None:
            is_flow = command in (RelayCommand.XON, RelayCommand.XOFF)
            if stream.state == HALF_OPEN or (stream.is_resolve and is_flow):
                self.idle += 1
                return
        self.events.append(("message", self.id, at, command, stream_id, body))
