"""Stories of two linked circuits: what an exit and a user do, a line each, and what must come of every step.

The compiled core is one side; the other is an exit made of the layers of `fakes`, and a model in plain Python
of what is due (proposal 329). After each step both must say the same: events, streams, queues, SENDMEs and
numbers. A line that makes no sense is passed over, so that any change of a story is a story. LEG is 0 or 1;
STREAM is 0 to 3, and anything else is one that nobody has opened, or `none` for the circuit itself.

    kind cgo | fills                         anywhere: the exit's layer is CGO; data goes by any leg with room
    open STREAM | resolve STREAM             the user's: BEGIN, RESOLVE
    put STREAM COUNT | take STREAM COUNT | close STREAM | bound STREAM COUNT | tell STREAM COMMAND
    rtt LEG MSEC | window LEG CELLS | drop LEG | finish
    cell LEG COMMAND STREAM LEN              the exit's, with the number that is its turn
    many LEG STREAM COUNT                    so many full DATA cells, as `cell`
    raw LEG HOP COMMAND STREAM LEN           with whatever number that leg is at
    switch LEG NUMBER LEN | sendme LEG ODDITY | flip LEG | early LEG | long LEG | destroy LEG
    hold LEG | release LEG COUNT             cells of a leg stay on the way; the first COUNT of them arrive
    reads LEN                                from here on reads of so many bytes
"""

import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from fakes import RelayCell, encode_cell, encode_versions
from fakes.layers import CgoLayer, Tor1Layer

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel
from torkit._fast.circuit import Circuit
from torkit._fast.conflux import link
from torkit._fast.events import Acknowledged, CircuitFailed, ControlCell, Event, Message, Readable, Writable
from torkit._fast.memory import held
from torkit._fast.onion import Layer, LayerKind
from torkit._fast.stream import Stream

LAST = 1  # index of the exit: circuits here have two hops
WINDOW, INCREMENT = 62, 31  # DATA cells, of each leg at its start
CELL_LEN = 514
# Numbers of the implementation that show: a message that waits takes so many bytes more than its body, ...
WAITING_LEN = 24
# ... bytes of a set that may wait, from where on SENDMEs are held back, and until when.
QUEUED_MAX, HOLD_ABOVE, RELEASE_BELOW = 8 << 20, 2 << 20, 1 << 20

FOR_STREAMS = {1, 2, 3, 4, 11, 12, 13, 43, 44}
COUNTED = FOR_STREAMS - {RelayCommand.BEGIN_DIR}
KNOWN = {*range(1, 16), *range(19, 23), *range(32, 45)}
NAMES = {command.name.lower(): command.value for command in RelayCommand}


# --- what is due -----------------------------------------------------------------------------------


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
    is_over: bool = False
    received: int = 0  # the number of the last counted cell
    cells_received: int = 0
    sent: int = 0  # so for what goes
    cells_sent: int = 0
    in_flight: int = 0
    tags: int = 0  # SENDMEs that may come
    window: int = WINDOW
    rtt: float = 0.1
    has_switched: bool = False
    unacknowledged: int = 0
    held: int = 0
    sendmes: int = 0  # that the exit has had to get
    waiting: deque[tuple[int, int, int, bytes]] = field(default_factory=deque)


class Due:
    """What of each cell is due. `events` are those of the step."""

    def __init__(self, *, is_cgo: bool) -> None:
        self.is_cgo = is_cgo
        self.all = [DueLeg(0), DueLeg(1, rtt=0.2)]
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
        if not leg.tags or not is_right:
            self.fail_leg(leg)
            return
        self.events.append(("acknowledged", leg.index, leg.in_flight))
        leg.tags -= 1
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


# --- the exit --------------------------------------------------------------------------------------


class Far:
    """The exit's end of one leg, and the relay's before it: layers, and what the client's cells say."""

    def __init__(self, circ_id: int, layers: list[Tor1Layer | CgoLayer]) -> None:
        self.circ_id = circ_id
        self.layers = layers
        self.sent = 0  # the number of the last counted cell, both ways
        self.received = 0
        self.data_sent = self.data_received = 0
        self.expected: deque[bytes] = deque()  # tags of the SENDMEs that we shall get
        self.owed: deque[bytes] = deque()  # of those that we may send
        self.sendmes = 0
        self.gap = 0  # what the SWITCH before this cell said
        self.way: deque[tuple[bytes, Callable[[], None]]] = deque()  # cells, and what is due of each

    def seal(
        self,
        hop: int,
        command: int,
        stream_id: int,
        body: bytes,
        *,
        early: bool = False,
        is_long: bool = False,
    ) -> bytes:
        cell = Command.RELAY_EARLY if early else Command.RELAY
        length = 499 if is_long else None
        sealed, tag = self.layers[hop].originate(cell, RelayCell(command, stream_id, body), length=length)
        if command == RelayCommand.DATA and hop == LAST:
            self.data_sent += 1
            if self.data_sent % INCREMENT == 0:
                self.expected.append(tag)
        for layer in reversed(self.layers[:hop]):
            sealed = layer.encrypt_backward(cell, sealed)
        return encode_cell(self.circ_id, cell, sealed)

    def open(self, cell: bytes) -> tuple[int, int, int, bytes] | None:
        """A cell of the client's: number, command, stream id and body of a counted one."""
        circ_id, command = struct.unpack_from(">IB", cell)
        assert (circ_id, command in (Command.RELAY, Command.RELAY_EARLY)) == (self.circ_id, True)
        body, tag = self.layers[0].open_forward(command, cell[5:])
        assert tag is None
        body, tag = self.layers[LAST].open_forward(command, body)
        assert tag is not None
        message = self.layers[LAST].decode(body, early=command == Command.RELAY_EARLY)
        if message.command == RelayCommand.SENDME:
            wanted = self.expected.popleft()
            assert message.body == struct.pack(">BH", 1, len(wanted)) + wanted
            self.sendmes += 1
            return None
        if message.command == RelayCommand.CONFLUX_SWITCH:
            assert self.gap == 0
            (self.gap,) = struct.unpack(">I", message.body)
            assert self.gap > 0
            return None
        self.received += self.gap + 1
        self.gap = 0
        assert message.command in COUNTED
        if message.command == RelayCommand.DATA:
            self.data_received += 1
            if self.data_received % INCREMENT == 0:
                self.owed.append(tag)
        return self.received, message.command, message.stream_id, message.body


# --- a story ---------------------------------------------------------------------------------------


class Story:
    def __init__(self, *, is_cgo: bool, fills: bool) -> None:
        rng = Random(1)
        self.fills = fills
        self.due = Due(is_cgo=is_cgo)
        self.cores: list[Channel] = []
        self.circuits: list[Circuit] = []
        self.far: list[Far] = []
        for leg in self.due.all:
            core = Channel()
            versions = bytearray(encode_versions([4]))
            core.receive_data(versions, len(versions))
            circuit = core.open_circuit(0x80000001 + leg.index, 7, 0)
            guard = rng.randbytes(72)
            circuit.add_hop(Layer(LayerKind.TOR1, guard))
            keys = rng.randbytes(160 if is_cgo else 72)
            kind = LayerKind.CGO if is_cgo else LayerKind.TOR1
            circuit.add_hop(Layer(kind, keys), WINDOW, INCREMENT, has_congestion_control=True)
            exit_layer = CgoLayer(keys) if is_cgo else Tor1Layer(keys)
            self.cores.append(core)
            self.far.append(Far(circuit.id, [Tor1Layer(guard), exit_layer]))
            self.circuits.append(circuit)
        self.set = link(self.circuits, [leg.rtt for leg in self.due.all], fills)
        self.room = 488 if is_cgo else 498
        self.streams: dict[str, tuple[Stream, DueStream]] = {}
        self.last_sent = self.last_received = 0  # numbers of counted cells: the exit's, ours
        self.held = [False, False]
        self.read_len = 1 << 20
        self.count = 0

    def run(self, lines: Iterable[str]) -> None:
        """Raises AssertionError at the first step that is not what was due."""
        for line in lines:
            verb, *words = line.split(" ") if line else [""]
            step = getattr(self, f"_do_{verb}", None)
            if step is None or not words:
                continue
            self.count += 1
            try:
                ready = self._understand(verb, words)
            except (ValueError, IndexError):
                continue
            step(*ready)
            self.look()

    def _understand(self, verb: str, words: list[str]) -> list[object]:
        """The arguments of a step, as SHAPES has them. Raises ValueError."""
        kinds = SHAPES[verb]
        found: list[object] = []
        for kind, word in zip(kinds, words[: len(kinds)], strict=True):
            if kind == "leg":
                found.append(int(word) % 2)
            elif kind == "command":
                found.append(NAMES[word] if word in NAMES else int(word) % 256)
            elif kind == "stream":
                found.append(word)
            else:
                found.append(int(word[:9]) % 100_000)
        return found

    # --- the user's steps ---

    def _do_open(self, name: str) -> None:
        self._open(name, is_resolve=False)

    def _do_resolve(self, name: str) -> None:
        self._open(name, is_resolve=True)

    def _open(self, name: str, *, is_resolve: bool) -> None:
        if name in self.streams or name not in ("0", "1", "2", "3"):
            return
        assert self.set.has_room == (not self.due.is_over)
        if self.due.is_over:
            return
        core = self.set.open_stream(LAST, is_resolve)
        command = RelayCommand.RESOLVE if is_resolve else RelayCommand.BEGIN
        self.set.send(LAST, command, self._next_id(), b"web.test:80\0")
        stream = DueStream(self._next_id(), is_resolve)
        self.streams[name] = (core, stream)
        self.due.streams[stream.id] = stream
        self._expect_sent(command, stream.id)

    def _next_id(self) -> int:
        return 7 + len(self.streams)

    def _do_put(self, name: str, count: int) -> None:
        if name not in self.streams:
            return
        core, stream = self.streams[name]
        data = bytes([self.count % 251]) * min(count, 60_000)
        accepted = core.put(data)
        may = not self.due.is_over and stream.state in ("open", "connecting")
        if not may or stream.is_xoff or stream.is_resolve:
            assert accepted == 0
            return
        cells = self._expect_data(stream, data[:accepted])
        assert cells == -(-accepted // self.room)
        if accepted < len(data):
            assert not self._eligible()
            if not stream.is_blocked:
                stream.is_blocked = True
                self.due.blocked.append(stream)

    def _eligible(self) -> list[DueLeg]:
        """The legs that a DATA cell may go by now."""
        legs = self.due.legs
        if not self.fills:
            legs = [min(legs, key=lambda leg: leg.rtt)]
        return [leg for leg in legs if leg.in_flight < leg.window]

    def _expect_data(self, stream: DueStream, data: bytes) -> int:
        """What was accepted goes in order, each cell by a leg with room. Returns how many cells that were."""
        cells = self._sent()
        for leg, command, stream_id, _ in cells:
            assert (command, stream_id) == (RelayCommand.DATA, stream.id)
            eligible = self._eligible()
            assert leg in eligible
            assert leg.rtt == min(one.rtt for one in eligible)
            leg.in_flight += 1
            leg.tags += leg.in_flight % INCREMENT == 0
        assert b"".join(body for _, _, _, body in cells) == data
        return len(cells)

    def _expect_sent(self, command: int, stream_id: int) -> None:
        assert [cell[1:3] for cell in self._sent()] == ([] if self.due.is_over else [(command, stream_id)])

    def _sent(self) -> list[tuple[DueLeg, int, int, bytes]]:
        """What the user's step has sent, in the order of its numbers, which none may miss."""
        found = []
        for leg, core, far in zip(self.due.all, self.cores, self.far, strict=True):
            sent = core.data_to_send()
            for at in range(0, len(sent), CELL_LEN):
                counted = far.open(sent[at : at + CELL_LEN])
                if counted is not None:
                    found.append((counted[0], leg, counted[1:]))
            assert far.gap == 0
        found.sort(key=lambda one: one[0])
        numbers = [number for number, _, _ in found]
        assert numbers == list(range(self.last_received + 1, self.last_received + 1 + len(found)))
        self.last_received += len(found)
        for number, leg, _ in found:
            assert leg in self.due.legs
            leg.sent = number
            leg.cells_sent += 1
            self.due.current = leg
        return [(leg, *message) for _, leg, message in found]

    def _do_take(self, name: str, count: int) -> None:
        if name in self.streams:
            core, stream = self.streams[name]
            assert core.take(count) == bytes(stream.data[:count])
            del stream.data[:count]

    def _do_close(self, name: str) -> None:
        if name not in self.streams:
            return
        core, stream = self.streams[name]
        self.set.close_stream(core, b"\1", 60.0)
        if stream.state in ("open", "connecting"):
            stream.connected_is_due = stream.state == "connecting"
            stream.state = "half open"
            stream.is_blocked = False
            stream.data.clear()
            self._expect_sent(RelayCommand.END, stream.id)

    def _do_bound(self, name: str, count: int) -> None:
        if name in self.streams:
            core, stream = self.streams[name]
            core.note_xoff_sent(count)
            stream.bound = stream.arrived + count

    def _do_tell(self, name: str, command: int) -> None:
        if name in self.streams and command in COUNTED - {RelayCommand.DATA}:
            _, stream = self.streams[name]
            self.set.send(LAST, command, stream.id, b"\0")
            self._expect_sent(command, stream.id)

    def _do_rtt(self, leg: int, msec: int) -> None:
        self.set.set_rtt(self.circuits[leg], msec / 1000)
        if self.due.all[leg] in self.due.legs:
            self.due.all[leg].rtt = msec / 1000

    def _do_window(self, leg: int, count: int) -> None:
        self.circuits[leg].set_window(LAST, count % 200)
        self.due.all[leg].window = count % 200

    def _do_drop(self, leg: int) -> None:
        self.cores[leg].close_circuit(self.circuits[leg])
        self.due.lose(self.due.all[leg])

    def _do_finish(self, _: int) -> None:
        self.set.end()
        if not self.due.is_over:
            self.due.finish()

    # --- the exit's steps ---

    def _do_cell(self, leg: int, command: int, name: str, length: int) -> None:
        if command not in COUNTED:
            return
        far = self.far[leg]
        if far.sent != self.last_sent:
            self._send(
                leg, LAST, RelayCommand.CONFLUX_SWITCH, 0, struct.pack(">I", self.last_sent - far.sent)
            )
        self.last_sent += 1
        far.sent = self.last_sent
        self._send(leg, LAST, command, self._id_of(name), self._body(length))

    def _do_many(self, leg: int, name: str, count: int) -> None:
        held, self.held[leg] = self.held[leg], True
        before = len(self.far[leg].way)
        for _ in range(count % 1000):
            self._do_cell(leg, RelayCommand.DATA, name, self.room)
        self.held[leg] = held
        if not held:
            self._give(leg, len(self.far[leg].way) - before)

    def _do_raw(self, leg: int, hop: int, command: int, name: str, length: int) -> None:
        hop %= LAST + 1
        stream_id = self._id_of(name)
        if self.due.is_cgo and hop == LAST and command not in FOR_STREAMS:
            stream_id = 0
        if (command, stream_id) == (RelayCommand.SENDME, 0) and hop == LAST:
            return  # `sendme`
        self._send(leg, hop, command, stream_id, self._body(length))

    def _do_switch(self, leg: int, number: int, length: int) -> None:
        body = struct.pack(">I", number).ljust(self.room, b"\0")[: length % (self.room + 1)]
        self._send(leg, LAST, RelayCommand.CONFLUX_SWITCH, 0, body)

    def _do_sendme(self, leg: int, oddity: int) -> None:
        far, due = self.far[leg], self.due.all[leg]
        is_right = bool(far.owed) and oddity not in (1, 2, 3)
        owed = far.owed.popleft() if far.owed else bytes(16 if self.due.is_cgo else 20)
        tag = bytes([owed[0] ^ 1]) + owed[1:] if oddity == 1 else owed
        body = struct.pack(">BH", oddity != 2, len(tag)) + (tag[:-1] if oddity == 3 else tag)
        cell = far.seal(LAST, RelayCommand.SENDME, 0, body)
        self._push(leg, cell, lambda: self.due.sendme(due, is_right=is_right))

    def _do_flip(self, leg: int) -> None:
        cell = bytearray(self.far[leg].seal(LAST, RelayCommand.DROP, 0, b""))
        cell[100] ^= 1
        self._push(leg, bytes(cell), lambda: self.due.fail_leg(self.due.all[leg]))

    def _do_early(self, leg: int) -> None:
        cell = self.far[leg].seal(LAST, RelayCommand.DROP, 0, b"", early=True)
        self._push(leg, cell, lambda: self.due.fail_leg(self.due.all[leg]))

    def _do_long(self, leg: int) -> None:
        cell = self.far[leg].seal(LAST, RelayCommand.DATA, 7, b"", is_long=True)
        self._push(leg, cell, lambda: self.due.fail_leg(self.due.all[leg]))

    def _do_destroy(self, leg: int) -> None:
        def is_due() -> None:
            self.due.events.append(("destroy", leg))
            self.due.lose(self.due.all[leg])

        self._push(leg, encode_cell(self.far[leg].circ_id, Command.DESTROY, b"\1"), is_due)

    def _do_hold(self, leg: int) -> None:
        self.held[leg] = True

    def _do_release(self, leg: int, count: int) -> None:
        self.held[leg] = False
        self._give(leg, count)

    def _do_reads(self, length: int) -> None:
        self.read_len = max(length, 100)

    def _id_of(self, name: str) -> int:
        if name in self.streams:
            return self.streams[name][1].id
        return 0 if name == "none" else 999

    def _body(self, length: int) -> bytes:
        return bytes([self.count % 253]) * (length % (self.room + 1))

    def _send(self, leg: int, hop: int, command: int, stream_id: int, body: bytes) -> None:
        cell = self.far[leg].seal(hop, command, stream_id, body)
        self._push(leg, cell, lambda: self.due.arrive(self.due.all[leg], hop, command, stream_id, body))

    def _push(self, leg: int, cell: bytes, is_due: Callable[[], None]) -> None:
        self.far[leg].way.append((cell, is_due))
        if not self.held[leg]:
            self._give(leg, len(self.far[leg].way))

    def _give(self, leg: int, count: int) -> None:
        """Let cells of one leg arrive, and compare what comes of them."""
        way = self.far[leg].way
        given = [way.popleft() for _ in range(min(count, len(way)))]
        was_closed = self.due.all[leg].is_over and self.cores[leg].circuit_count == 0
        for _, is_due in given:
            if not was_closed:
                is_due()
        data = b"".join(cell for cell, _ in given)
        told: list[tuple[object, ...]] = []
        readable = set()
        for at in range(0, len(data), self.read_len):
            piece = bytearray(data[at : at + self.read_len])
            for event in self.cores[leg].receive_data(piece, len(piece)):
                if isinstance(event, Readable):
                    readable.add(self._due_of(event.stream).id)
                else:
                    told.append(self._told(event))
        if was_closed:
            assert not readable
            assert {one[0] for one in told} <= {"destroy"}
            return
        assert told == self.due.events
        assert readable == self.due.readable
        self.due.events.clear()
        self.due.readable.clear()

    def _told(self, event: Event) -> tuple[object, ...]:
        if isinstance(event, Message):
            assert event.stream is not None
            stream = self._due_of(event.stream)
            assert event.stream_id == stream.id
            if event.command == RelayCommand.XOFF:
                event.stream.pause()
                stream.is_xoff = True
            elif event.command == RelayCommand.XON:
                event.stream.resume()
                stream.is_xoff = False
            return ("message", event.command, event.stream_id, event.body)
        if isinstance(event, CircuitFailed):
            return ("failed", self.circuits.index(event.circuit))
        if isinstance(event, Acknowledged):
            assert event.hop == LAST
            return ("acknowledged", self.circuits.index(event.circuit), event.in_flight)
        if isinstance(event, Writable):
            return ("writable", self._due_of(event.stream).id)
        assert isinstance(event, ControlCell)
        assert event.command == Command.DESTROY
        return ("destroy", [far.circ_id for far in self.far].index(event.circ_id))

    def _due_of(self, core: Stream) -> DueStream:
        return next(stream for one, stream in self.streams.values() if one is core)

    # --- after each step ---

    def look(self) -> None:
        """Both sides say the same. Circuits that are over are closed, as their owners do."""
        due = self.due
        assert self._sent() == []
        assert self.set.has_ended == due.is_over
        for far, leg, circuit in zip(self.far, due.all, self.circuits, strict=True):
            if not leg.is_over and not due.is_over:
                assert far.sendmes == leg.sendmes
                assert self.set.carried(circuit)[:2] == (leg.cells_sent, leg.cells_received)
            assert far.sendmes <= leg.sendmes
        if due.is_over:
            for channel, circuit, leg in zip(self.cores, self.circuits, due.all, strict=True):
                channel.close_circuit(circuit)
                leg.is_over = True
        else:
            assert self.set.leg_count == len(due.legs)
        assert self.set.queued_bytes == due.queued
        assert self.set.stream_count == len(due.streams)
        for core, stream in self.streams.values():
            assert core.queued == len(stream.data)
            assert core.is_open == (stream.state == "open")
            assert core.has_ended == (stream.state == "ended")

    def end(self) -> None:
        """Everything is closed and let go, so that nothing is held any more."""
        self.set.end()
        for channel, circuit in zip(self.cores, self.circuits, strict=True):
            channel.close_circuit(circuit)
        del self.set
        for everything in (self.cores, self.circuits, self.streams):
            everything.clear()


SHAPES = {
    "open": ["stream"],
    "resolve": ["stream"],
    "put": ["stream", "count"],
    "take": ["stream", "count"],
    "close": ["stream"],
    "bound": ["stream", "count"],
    "tell": ["stream", "command"],
    "rtt": ["leg", "count"],
    "window": ["leg", "count"],
    "drop": ["leg"],
    "finish": ["count"],
    "cell": ["leg", "command", "stream", "count"],
    "many": ["leg", "stream", "count"],
    "raw": ["leg", "count", "command", "stream", "count"],
    "switch": ["leg", "count", "count"],
    "sendme": ["leg", "count"],
    "flip": ["leg"],
    "early": ["leg"],
    "long": ["leg"],
    "destroy": ["leg"],
    "hold": ["leg"],
    "release": ["leg", "count"],
    "reads": ["count"],
}


def check_story(text: bytes) -> None:
    """Live one story through. Raises AssertionError where the core did not do what was due."""
    lines = text.decode("ascii", "replace").split("\n")
    before = held()
    story = Story(is_cgo="kind cgo" in lines, fills="fills" in lines)
    story.run(lines)
    story.end()
    assert held() == before


def random_story(rng: Random, length: int) -> bytes:
    """A story in which most is legal: else it would soon be over."""
    lines = [*(["kind cgo"] if rng.random() < 0.2 else []), *(["fills"] if rng.random() < 0.5 else [])]
    opened: dict[str, str] = {}  # streams that the exit has not ended, and what it may send for them
    for _ in range(length):
        leg, name = rng.randrange(2), rng.choice("0123")
        if rng.random() < 0.03:
            lines.append(_oddity(rng, leg, name))
        elif name not in opened:
            opened[name] = rng.choice(["connected", "connected", "connected", "resolved"])
            lines.append(f"{'resolve' if opened[name] == 'resolved' else 'open'} {name}")
        elif rng.random() < 0.5:
            command = opened[name]
            if command == "connected":
                opened[name] = "data"
            elif command == "data" and rng.random() < 0.3:
                command = rng.choice(["xon", "xoff", "xon", "end"])
            if command in ("end", "resolved"):
                opened[name] = "nothing"
            if command != "nothing":
                lines.append(f"cell {leg} {command} {name} {rng.choice([0, 1, 7, 100, 488, 498])}")
        else:
            lines.append(
                rng.choice(
                    [
                        f"many {leg} {name} {rng.choice([1, 5, 31, 62])}"
                        if opened[name] == "data"
                        else f"take {name} 9",
                        f"put {name} {rng.choice([1, 500, 5000, 20_000])}",
                        f"take {name} {rng.choice([1, 500, 60_000])}",
                        f"sendme {leg} 0" if rng.random() < 0.3 else f"rtt {leg} {rng.randrange(300)}",
                        f"hold {leg}",
                        f"release {leg} {rng.choice([1, 2, 50, 99_999])}",
                        f"window {leg} {rng.randrange(200)}",
                        f"reads {rng.choice([600, 5000, 99_999])}",
                        f"tell {name} {rng.choice(['xoff', 'xon'])}",
                        f"close {name}",
                        f"bound {name} {rng.randrange(3_000, 60_000)}"
                        if rng.random() < 0.2
                        else f"hold {leg}",
                    ]
                )
            )
    return "\n".join(lines).encode()


def _oddity(rng: Random, leg: int, name: str) -> str:
    return rng.choice(
        [
            f"tell {name} {rng.choice(list(NAMES))}",
            f"drop {leg}",
            "finish 0",
            f"cell {leg} {rng.choice(list(NAMES))} {name} 9",
            f"raw {leg} {rng.randrange(2)} {rng.randrange(256)} {rng.choice(['0', '1', 'none', 'x'])} 9",
            f"raw {leg} 1 {rng.choice(list(NAMES))} {name} {rng.randrange(499)}",
            f"switch {leg} {rng.randrange(4)} {rng.choice([0, 3, 4, 400])}",
            f"sendme {leg} {rng.randrange(4)}",
            *(f"{verb} {leg}" for verb in ("flip", "early", "long", "destroy")),
        ]
    )


STORY = b"""open 0
cell 0 connected 0 8
put 0 3000
cell 0 data 0 100
cell 1 data 0 498
hold 0
cell 0 data 0 7
cell 1 data 0 7
many 1 0 40
release 0 1
take 0 600
fills
put 0 60000
sendme 0 0
sendme 1 0
rtt 1 10
put 0 900
open 1
cell 1 xoff 0 1
put 0 1
cell 0 xon 0 5
cell 1 connected 1 4
window 0 3
reads 600
tell 1 xoff
bound 1 900
cell 0 data 1 400
raw 0 1 drop none 20
resolve 2
cell 1 resolved 2 10
close 1
cell 1 data 1 9
cell 0 end 1 1
switch 1 1 4
raw 1 1 data 0 9
cell 0 end 0 1
close 0
sendme 0 1
long 1
early 1
flip 1
destroy 0
drop 0
finish 0
"""
