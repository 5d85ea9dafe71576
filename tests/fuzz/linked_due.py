"""The model of two linked circuits, in plain Python: what the core must do after each step. Proposal 329."""

import struct
from collections import deque
from dataclasses import dataclass, field

from torkit._fast.cells import RelayCommand
from torkit.proto.flow import ClockGuard, CongestionParams, Vegas

LAST = 1  # index of the exit: circuits here have two hops
INCREMENT = 31  # DATA cells
LINKING_TIMES = (0.1, 0.2)  # seconds
# Congestion control whose windows move soon and far.
PARAMS = CongestionParams.from_params({})._replace(
    cwnd_init=62,
    cwnd_min=31,
    cwnd_max=200,
    cwnd_inc=7,
    ss_max=150,
    cwnd_full_gap=0,
    alpha=5,
    beta=10,
    gamma=15,
    delta=20,
)
CELL_LEN = 514
# Numbers of the implementation that show: a message that waits takes so many bytes more than its body, ...
WAITING_LEN = 24
# ... bytes of a set that may wait, from where on SENDMEs are held back, and until when.
QUEUED_MAX, HOLD_ABOVE, RELEASE_BELOW = 8 << 20, 2 << 20, 1 << 20

FOR_STREAMS = {1, 2, 3, 4, 11, 12, 13, 43, 44}
COUNTED = FOR_STREAMS - {RelayCommand.BEGIN_DIR}
KNOWN = {*range(1, 16), *range(19, 23), *range(32, 45)}
NAMES = {command.name.lower(): command.value for command in RelayCommand}


def make_clock() -> ClockGuard:
    clock = ClockGuard()
    clock.set_to = 1.0
    return clock


def make_vegas(clock: ClockGuard) -> Vegas:
    return Vegas(PARAMS, increment=INCREMENT, clock=clock)


@dataclass
class DueStream:
    id: int
    is_resolve: bool
    state: str = "connecting"
    connected_is_due: bool = False
    data: bytearray = field(default_factory=bytearray)  # arrived, and not taken
    arrived: int = 0
    bound: int = 1 << 64
    is_xoff: bool = False
    is_blocked: bool = False


@dataclass
class DueLeg:
    index: int
    vegas: Vegas
    is_over: bool = False
    received: int = 0  # the number of the last counted cell
    cells_received: int = 0
    sent: int = 0  # so for what goes
    cells_sent: int = 0
    in_flight: int = 0
    sealed_at: deque[float] = field(default_factory=deque)  # of the cells for which SENDMEs may come
    has_switched: bool = False
    unacknowledged: int = 0
    held: int = 0
    sendmes: int = 0  # that the exit has had to get
    waiting: deque[tuple[int, int, int, bytes]] = field(default_factory=deque)

    @property
    def rtt(self) -> float:
        """Seconds."""
        measured = self.vegas.rtt.ewma
        return measured / 1e6 if measured else LINKING_TIMES[self.index]

    @property
    def has_room(self) -> bool:
        return self.in_flight < self.vegas.window


class Due:
    """What of each cell is due. `events` are those of the step."""

    def __init__(self, *, is_cgo: bool) -> None:
        self.is_cgo = is_cgo
        self.clock = make_clock()
        self.all = [DueLeg(index, make_vegas(self.clock)) for index in (0, 1)]
        self.legs = list(self.all)
        self.current: DueLeg | None = None
        self.streams: dict[int, DueStream] = {}  # by id, until the peer's END
        self.blocked: list[DueStream] = []
        self.delivered = self.queued = 0
        self.is_over = False
        self.events: list[tuple[object, ...]] = []
        self.readable: set[int] = set()

    def fail_leg(self, leg: DueLeg) -> None:
        if not leg.is_over:
            self.events.append(("failed", leg.index))
            self.lose(leg)

    def lose(self, leg: DueLeg) -> None:
        leg.is_over = True
        if self.is_over or leg not in self.legs:
            return
        if leg.sent or leg.received or leg is self.current or len(self.legs) == 1:
            self.finish()
        else:
            self.legs.remove(leg)
            if self.queued:  # what is missing was lost with it
                self.finish()

    def finish(self) -> None:
        self.is_over = True
        for stream in self.streams.values():
            stream.state = "ended"
        self.streams.clear()
        self.blocked.clear()
        self.queued = 0

    def fail(self) -> None:
        if not self.is_over:
            self.finish()
            self.fail_leg(self.legs[0])

    def arrive(self, leg: DueLeg, hop: int, command: int, stream_id: int, body: bytes) -> None:
        if leg.is_over:
            return
        if self.is_cgo and hop == LAST and command not in KNOWN:
            self.fail_leg(leg)
        elif self.is_over or leg not in self.legs or (command == RelayCommand.DROP and stream_id == 0):
            return
        elif hop != LAST:
            self.fail()
        elif command == RelayCommand.CONFLUX_SWITCH and stream_id == 0:
            if len(body) < 4 or leg.has_switched:
                self.fail()
            else:
                leg.received += struct.unpack_from(">I", body)[0]
                leg.has_switched = True
        elif command not in COUNTED:
            self.fail()
        else:
            self._arrive_counted(leg, command, stream_id, body)

    def sendme(self, leg: DueLeg, *, is_right: bool) -> None:
        if leg.is_over or self.is_over or leg not in self.legs:
            return
        if not leg.sealed_at or not is_right:
            self.fail_leg(leg)
            return
        rtt = self.clock.set_to - leg.sealed_at.popleft()
        leg.vegas.acknowledge(rtt, in_flight=leg.in_flight, blocked=False)
        leg.in_flight -= INCREMENT
        for stream in self.blocked:
            if stream.is_blocked:
                stream.is_blocked = False
                self.events.append(("writable", stream.id))
        self.blocked.clear()

    def _arrive_counted(self, leg: DueLeg, command: int, stream_id: int, body: bytes) -> None:
        leg.received += 1
        leg.cells_received += 1
        leg.has_switched = False
        if command == RelayCommand.DATA:
            leg.unacknowledged += 1
            if leg.unacknowledged == INCREMENT:
                leg.unacknowledged = 0
                leg.held += 1
                if (self.queued <= HOLD_ABOVE and leg.held == 1) or leg.received == self.delivered + 1:
                    self._let_go(leg)
        if leg.received <= self.delivered:
            self.fail()
        elif leg.received == self.delivered + 1:
            self.delivered += 1
            self._deliver(command, stream_id, body)
            if not self.is_over:
                self._deliver_waiting()
        elif len(self.legs) == 1:
            self.fail()
        else:
            leg.waiting.append((leg.received, command, stream_id, body))
            self.queued += _space_of(body)
            if self.queued > QUEUED_MAX:
                self.fail()

    def _let_go(self, leg: DueLeg) -> None:
        leg.sendmes += leg.held
        leg.held = 0

    def _deliver_waiting(self) -> None:
        has_moved = self.queued > 0
        while has_moved and not self.is_over:
            has_moved = False
            for leg in self.legs:
                while leg.waiting and leg.waiting[0][0] == self.delivered + 1:
                    has_moved = True
                    self.delivered += 1
                    _, command, stream_id, body = leg.waiting.popleft()
                    self._deliver(command, stream_id, body)
                    if self.is_over:
                        return
                    self.queued -= _space_of(body)
                if leg.waiting and leg.waiting[0][0] <= self.delivered:
                    self.fail()
                    return
            if self.queued <= RELEASE_BELOW:
                for leg in self.legs:
                    self._let_go(leg)

    def _deliver(self, command: int, stream_id: int, body: bytes) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            self.fail()
        elif command == RelayCommand.DATA:
            self._deliver_data(stream, body)
        elif not self._is_allowed(stream, command):
            self.fail()
        else:
            is_heard = stream.state != "half open"
            if command == RelayCommand.CONNECTED:
                stream.connected_is_due = False
                stream.state = "open" if is_heard else stream.state
            elif command in (RelayCommand.END, RelayCommand.RESOLVED):
                del self.streams[stream_id]
                stream.state = "ended" if is_heard else stream.state
            elif command in (RelayCommand.XOFF, RelayCommand.XON) and stream.is_resolve:
                is_heard = False
            if is_heard:
                self.events.append(("message", command, stream_id, body))

    def _deliver_data(self, stream: DueStream, body: bytes) -> None:
        is_early = stream.is_resolve or stream.state == "connecting" or stream.connected_is_due
        if is_early or stream.arrived + len(body) > stream.bound:
            self.fail()
        elif stream.state == "open":
            stream.data += body
            stream.arrived += len(body)
            self.readable.add(stream.id)

    def _is_allowed(self, stream: DueStream, command: int) -> bool:
        if command == RelayCommand.CONNECTED:
            return not stream.is_resolve and (stream.state == "connecting" or stream.connected_is_due)
        return command != RelayCommand.RESOLVED or stream.is_resolve


def _space_of(body: bytes) -> int:
    return WAITING_LEN + -(-len(body) // 8) * 8
