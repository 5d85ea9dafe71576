"""Stories of one channel with several circuits: what a relay and a user do, a line each, and what follows.

The compiled core is one side; the other is relays made of the scripted relay's layers, and a model in plain
Python of what is due (channel_due.py). After each step both must say the same of every circuit, whichever the
step was about. A line that makes no sense is passed over, so that any change of a story is a story. CIRC is
0 to 3, STREAM 0 to 3 for one of its streams, `none` for the circuit itself, and anything else is one that
nobody has opened. KIND is that of the circuit's last hops.

    open CIRC KIND | extend CIRC | end CIRC       the user's: CREATE2, EXTEND2, DESTROY
    begin CIRC STREAM | resolve CIRC STREAM | close CIRC STREAM
    put CIRC STREAM COUNT | take CIRC STREAM COUNT | bound CIRC STREAM COUNT
    tell CIRC HOP COMMAND STREAM | wait MSEC
    created CIRC | extended CIRC                  the relay's: an answer, upon which the user has one hop more
    cell CIRC HOP COMMAND STREAM LEN | many CIRC STREAM COUNT | sendme CIRC HOP ODDITY (0 for a right one)
    early CIRC | long CIRC | flip CIRC | control CIRC COMMAND LEN | padding COUNT | huge COMMAND
    hold COUNT | release COUNT                    cells stay on the way; all of them arrive in one go
    reads LEN                                     from here on reads of so many bytes
"""

import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from fuzz.channel_due import DueCircuit, Hop
from fuzz.channel_due import Stream as DueStream
from fuzz.linked_due import NAMES, make_clock, make_vegas
from fuzz.world import CELL_LEN, GUARD, KINDS, FarLayer

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel
from torkit._fast.circuit import Circuit
from torkit._fast.events import ChannelFailed, CircuitFailed, ControlCell, Event, Message, Readable, Writable
from torkit._fast.memory import held
from torkit._fast.onion import Layer
from torkit._fast.stream import Stream
from torkit.errors import UsageError
from torkit.testing.relay import CgoLayer, RelayCell, encode_cell, encode_versions
from torkit.testing.relay.cells import STREAM_COMMANDS

KIND_NAMES = dict(zip(("windows", "congestion", "cgo", "service"), KINDS, strict=True))
LINK_NAMES = {command.name.lower(): command.value for command in Command}
LAST = 2  # from this hop on a circuit is of its kind; there are no more than MAX_HOPS
MAX_HOPS = 4
IDLE_MAX = 4000  # cells that serve nothing, beyond which a peer would soon be closed: tests/net has that
EXTENDED = (RelayCommand.EXTENDED2, 0)
ANSWERS = (Command.CREATED, Command.CREATED_FAST, Command.CREATED2)


@dataclass
class Way:
    """One circuit: the core's, its relays, and what is due."""

    core: Circuit
    due: DueCircuit
    kind: str
    rng: Random
    layers: list[FarLayer] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # DATA cells by hop, the relays'
    expected: list[deque[bytes]] = field(
        default_factory=list
    )  # by hop, tags of the SENDMEs that it shall get
    on_way: list[int] = field(default_factory=list)  # SENDMEs of each hop that have not arrived
    streams: dict[str, tuple[Stream, DueStream]] = field(default_factory=dict)
    all_streams: list[tuple[Stream, DueStream]] = field(
        default_factory=list
    )  # also those whose name another has

    def add(self, name: str, core: Stream, stream: DueStream) -> None:
        self.streams[name] = core, stream
        self.all_streams.append((core, stream))

    def seal(
        self,
        hop: int,
        command: int,
        stream_id: int,
        body: bytes,
        *,
        early: bool = False,
        length: int | None = None,
    ) -> bytes:
        cell = Command.RELAY_EARLY if early else Command.RELAY
        message = RelayCell(command, stream_id, body)
        sealed, tag = self.layers[hop].originate(cell, message, length=length)
        if command == RelayCommand.DATA and length is None:
            self.sent[hop] += 1
            if self.sent[hop] % self.due.hops[hop].increment == 0:
                self.expected[hop].append(tag)
        for layer in reversed(self.layers[:hop]):
            sealed = layer.encrypt_backward(cell, sealed)
        return encode_cell(self.core.id, cell, sealed)

    def open(self, command: int, body: bytes) -> tuple[int, int, int]:
        """A cell of the client's: the hop that knows it, what it says, and for which stream."""
        for at, layer in enumerate(self.layers):
            body, tag = layer.open_forward(command, body)
            if tag is not None:
                message = layer.decode(body, early=command == Command.RELAY_EARLY)
                hop = self.due.hops[at]
                if message.command == RelayCommand.DATA and hop.count_received():
                    hop.tags.append(tag)
                if message.command == RelayCommand.SENDME and message.stream_id == 0:
                    wanted = self.expected[at].popleft()
                    assert message.body == struct.pack(">BH", 1, len(wanted)) + wanted
                return at, message.command, message.stream_id
        raise AssertionError("a cell of ours that no relay recognizes")


class Story:
    def __init__(self) -> None:
        self.core = Channel()
        versions = bytearray(encode_versions([4]))
        self.core.receive_data(versions, len(versions))
        self.clock, self.due_clock = make_clock(), make_clock()
        self.ways: dict[int, Way] = {}  # those that the user has, by number
        self.all: dict[int, Way] = {}  # and all there ever were, by their ids on the channel
        self.way: deque[tuple[bytes, Callable[[], object]]] = (
            deque()
        )  # cells on the way, and what is due of each
        self.is_held = False
        self.read_len = 1 << 20
        self.idle = 0
        self.controls: list[tuple[object, ...]] = []  # cells that are due: from the relay,
        self.due_controls: list[tuple[int, int]] = []  # and to it
        self.has_failed = False
        self.count = 0

    def run(self, lines: Iterable[str]) -> None:
        """Raises AssertionError at the first step that is not what was due."""
        for line in lines:
            verb, *words = line.split(" ")
            step = getattr(self, f"_do_{verb}", None)
            if step is None or self.has_failed:
                continue
            try:
                arguments = self._understand(verb, words)
            except (ValueError, KeyError, IndexError):
                continue
            self.count += 1
            step(*arguments)
            self.look()

    def _understand(self, verb: str, words: list[str]) -> list[object]:
        """The arguments of a step, as SHAPES has them. Raises KeyError where a circuit is not there."""
        found: list[object] = []
        for kind, word in zip(SHAPES[verb], words[: len(SHAPES[verb])], strict=True):
            if kind == "circ":
                found.append(self.ways[int(word)])
            elif kind == "hop":
                way = found[0]
                assert isinstance(way, Way)
                if not way.layers:
                    raise IndexError
                found.append(int(word) % len(way.layers))
            elif kind == "command":
                found.append(NAMES[word] if word in NAMES else int(word) % 256)
            elif kind == "link":
                found.append(LINK_NAMES[word] if word in LINK_NAMES else int(word) % 256)
            elif kind == "word":
                found.append(word)
            else:
                found.append(int(word[:9]) % 400_000)
        return found

    # --- the user's steps ---

    def _do_open(self, number: int, kind: str) -> None:
        if number > 3 or number in self.ways or kind not in KIND_NAMES:
            return
        circ_id = 0x80000001 + len(self.all)
        core = self.core.open_circuit(circ_id, 7, 8)
        due = DueCircuit(circ_id)
        self.ways[number] = self.all[circ_id] = Way(core, due, kind, Random(circ_id))
        self.core.send_control(circ_id, Command.CREATE2, b"\0\2\0\0")
        self._expect_control(circ_id, Command.CREATE2)

    def _do_extend(self, way: Way) -> None:
        if not way.layers:
            return
        hop = len(way.layers) - 1
        if way.due.early_left == 0:
            try:
                way.core.send(hop, RelayCommand.EXTEND2, 0, b"x")
            except UsageError:
                return
            raise AssertionError("EXTEND2 went in a RELAY cell")
        way.core.send(hop, RelayCommand.EXTEND2, 0, b"x")
        way.due.send(hop, RelayCommand.EXTEND2, 0)

    def _do_end(self, way: Way) -> None:
        self._close(way)
        self.core.send_control(way.core.id, Command.DESTROY, b"\0")
        self._expect_control(way.core.id, Command.DESTROY)

    def _do_begin(self, way: Way, name: str) -> None:
        self._open(way, name, is_resolve=False)

    def _do_resolve(self, way: Way, name: str) -> None:
        self._open(way, name, is_resolve=True)

    def _open(self, way: Way, name: str, *, is_resolve: bool) -> None:
        if not way.layers or name in way.streams or name not in ("0", "1", "2", "3"):
            return
        hop = len(way.layers) - 1
        core = way.core.open_stream(hop, is_resolve)
        assert core.id not in way.due.streams
        command = RelayCommand.RESOLVE if is_resolve else RelayCommand.BEGIN
        way.core.send(hop, command, core.id, b"web.test:80\0")
        way.due.send(hop, command, core.id)
        stream = DueStream(core.id, is_resolve, hop=hop)
        way.add(name, core, stream)
        way.due.streams[core.id] = stream

    def _do_put(self, way: Way, name: str, count: int) -> None:
        if name in way.streams:
            core, stream = way.streams[name]
            data = bytes([self.count % 251]) * count
            assert core.put(data) == way.due.put(stream, len(data))

    def _do_take(self, way: Way, name: str, count: int) -> None:
        if name in way.streams:
            core, stream = way.streams[name]
            assert core.take(count) == bytes(stream.data[:count])
            way.due.take(stream, count)

    def _do_close(self, way: Way, name: str) -> None:
        if name in way.streams:
            core, stream = way.streams[name]
            way.core.close_stream(core, b"\1", 60.0)
            way.due.close(stream)

    def _do_bound(self, way: Way, name: str, count: int) -> None:
        if name in way.streams:
            core, stream = way.streams[name]
            core.note_xoff_sent(count)
            stream.bound = stream.arrived + count

    def _do_tell(self, way: Way, hop: int, command: int, name: str) -> None:
        stream_id = self._id_of(way, hop, command, name)
        if command in (RelayCommand.DATA, RelayCommand.EXTEND2, RelayCommand.SENDME):
            return
        if isinstance(way.layers[hop], CgoLayer) and (command in STREAM_COMMANDS) != (stream_id != 0):
            return
        if command in NAMES.values():
            way.core.send(hop, command, stream_id, b"\0")
            way.due.send(hop, command, stream_id)

    def _do_wait(self, msec: int) -> None:
        self.clock.set_to += msec / 1000
        self.due_clock.set_to = self.clock.set_to

    # --- the relay's ---

    def _do_created(self, way: Way) -> None:
        self._do_control(way, Command.CREATED2, 2)

    def _do_extended(self, way: Way) -> None:
        if way.layers:
            self._do_cell(way, len(way.layers) - 1, RelayCommand.EXTENDED2, "none", 2)

    def _do_cell(self, way: Way, hop: int, command: int, name: str, length: int) -> None:
        stream_id = self._id_of(way, hop, command, name)
        room = way.layers[hop].DATA_LEN_MAX
        self._relay(way, hop, command, stream_id, bytes([self.count % 253]) * (length % (room + 1)))

    def _do_many(self, way: Way, name: str, count: int) -> None:
        if name in way.streams:
            was_held, self.is_held = self.is_held, True
            hop = way.streams[name][1].hop
            for _ in range(count % (100 if isinstance(way.layers[hop], CgoLayer) else 1200)):
                self._do_cell(way, hop, RelayCommand.DATA, name, way.layers[hop].DATA_LEN_MAX)
            self.is_held = was_held
            self._give()

    def _do_sendme(self, way: Way, hop: int, oddity: int) -> None:
        tags = way.due.hops[hop].tags
        if oddity == 0 and len(tags) <= way.on_way[hop]:
            return  # none is due
        length = way.layers[hop].TAG_LEN
        tag = tags[min(way.on_way[hop], len(tags) - 1)] if tags else bytes(length)
        tag = bytes([tag[0] ^ 1]) + tag[1:] if oddity == 1 else tag
        body = struct.pack(">BH", oddity != 2, length - (oddity == 4)) + (tag[:-1] if oddity == 3 else tag)
        way.on_way[hop] += 1
        self._relay(way, hop, RelayCommand.SENDME, 0, body)

    def _do_early(self, way: Way) -> None:
        if way.layers:
            cell = way.seal(0, RelayCommand.DROP, 0, b"", early=True)
            self._push(cell, way.due.fail)

    def _do_long(self, way: Way) -> None:
        if way.layers:
            self._relay(way, 0, RelayCommand.DATA, 7, b"", length=way.layers[0].DATA_LEN_MAX + 1)

    def _do_flip(self, way: Way) -> None:
        cell = bytearray(encode_cell(way.core.id, Command.RELAY))
        if way.layers:
            cell[:] = way.seal(0, RelayCommand.DROP, 0, b"")
            cell[100] ^= 1
        self._push(bytes(cell), way.due.fail)

    def _do_control(self, way: Way, command: int, length: int) -> None:
        circ_id = way.core.id
        if command in (Command.RELAY, Command.RELAY_EARLY, Command.VERSIONS):
            return
        is_variable = command >= 128
        body = bytes(length % 2000 if is_variable else min(length, 509))
        told = ("control", circ_id, command, body if is_variable else bytes(509))

        def is_due() -> None:
            is_ours = self.ways_by_id().get(circ_id) is way
            if command in (Command.PADDING, Command.VPADDING) or (command == Command.DESTROY and not is_ours):
                self.idle += 1
                return
            if command == Command.DESTROY:
                way.due.finish()
            elif command not in ANSWERS or not is_ours:
                self.idle += 1
            self.controls.append(told)

        if self.idle < IDLE_MAX:
            self._push(encode_cell(circ_id, command, body), is_due)

    def _do_padding(self, count: int) -> None:
        for _ in range(count % 100 if self.idle < IDLE_MAX else 0):
            self.idle += 1
            self._push(encode_cell(0, Command.PADDING), lambda: None)

    def _do_huge(self, command: int) -> None:
        def is_due() -> None:
            self.has_failed = True
            self.controls.append(("channel failed",))

        if not self.is_held:
            self._push(struct.pack(">IBH", 0, 128 | command, 0xFFFF), is_due)

    def _do_hold(self, _: int) -> None:
        self.is_held = True

    def _do_release(self, _: int) -> None:
        self.is_held = False
        self._give()

    def _do_reads(self, length: int) -> None:
        self.read_len = max(length, 100)

    # --- cells on their way ---

    def _id_of(self, way: Way, hop: int, command: int, name: str) -> int:
        if isinstance(way.layers[hop], CgoLayer) and command not in STREAM_COMMANDS:
            return 0
        if name in way.streams:
            return way.streams[name][1].id
        if name == "none":
            return 0
        return 1000 + int(name) if name in ("0", "1", "2", "3") else 999

    def _relay(
        self, way: Way, hop: int, command: int, stream_id: int, body: bytes, *, length: int | None = None
    ) -> None:
        if self.idle + sum(one.due.idle for one in self.all.values()) >= IDLE_MAX:
            return
        is_cgo = isinstance(way.layers[hop], CgoLayer)
        if is_cgo and (command in STREAM_COMMANDS) != (stream_id != 0) and command in STREAM_COMMANDS:
            return
        cell = way.seal(hop, command, stream_id, body, length=length)

        def is_due() -> None:
            if (command, stream_id) == (RelayCommand.SENDME, 0):
                way.on_way[hop] = max(0, way.on_way[hop] - 1)
            way.due.arrive(hop, command, stream_id, body, is_long=length is not None)

        self._push(cell, is_due)

    def _push(self, cell: bytes, is_due: Callable[[], object]) -> None:
        self.way.append((cell, is_due))
        if not self.is_held:
            self._give()

    def _give(self) -> None:
        """Let all cells that are on the way arrive, and compare what comes of them."""
        if self.is_held:
            return
        given, self.way = self.way, deque()
        is_ours = {way.core.id for way in self.ways.values()}
        told: list[tuple[object, ...]] = []
        events: list[Event] = []
        data = b"".join(cell for cell, _ in given)
        for at in range(0, len(data), self.read_len):
            piece = bytearray(data[at : at + self.read_len])
            events += self.core.receive_data(piece, len(piece))
        for _, is_due in given:
            is_due()
        readable = {way.core.id: set[int]() for way in self.all.values()}
        for event in events:
            if isinstance(event, Readable):
                way, stream = self._find(event.stream)
                readable[way.core.id].add(stream.id)
            else:
                told.append(self._told(event))
        for circ_id, way in self.all.items():
            assert [one for one in told if one[1:2] == (circ_id,) and one[0] != "control"] == way.due.events
            assert readable[circ_id] == way.due.readable
            assert circ_id in is_ours or not way.due.events
            way.due.events.clear()
            way.due.readable.clear()
        assert [one for one in told if one[0] in ("control", "channel failed")] == self.controls
        self.controls.clear()
        self._react(told)

    def ways_by_id(self) -> dict[int, Way]:
        return {way.core.id: way for way in self.ways.values()}

    def _told(self, event: Event) -> tuple[object, ...]:
        match event:
            case Message():
                way = self.all[event.circuit.id]
                if event.stream is None:
                    return "message", way.core.id, event.hop, event.command, event.stream_id, event.body
                if event.command == RelayCommand.BEGIN and event.hop == way.due.client_hop:
                    self._let_in(way, event)
                _, stream = self._find(event.stream)
                assert stream.id == event.stream_id
                if event.command in (RelayCommand.XOFF, RelayCommand.XON):
                    stream.is_xoff = event.command == RelayCommand.XOFF
                    event.stream.pause() if stream.is_xoff else event.stream.resume()
                return "message", way.core.id, event.hop, event.command, event.stream_id, event.body
            case CircuitFailed():
                return "failed", event.circuit.id
            case Writable():
                way, stream = self._find(event.stream)
                return "writable", way.core.id, stream.id
            case ControlCell():
                return "control", event.circ_id, event.command, event.body
        assert isinstance(event, ChannelFailed)
        return ("channel failed",)

    def _let_in(self, way: Way, event: Message) -> None:
        """The stream that a client of our service has begun. Another may have had its id before."""
        assert event.stream is not None
        stream = way.due.begun.pop(0)
        name = str(event.stream_id - 1000) if 1000 <= event.stream_id < 1004 else f"x{event.stream_id}"
        way.add(name, event.stream, stream)

    def _find(self, core: Stream) -> tuple[Way, DueStream]:
        for way in self.all.values():
            for one, stream in way.all_streams:
                if one is core:
                    return way, stream
        raise AssertionError("an event of a stream that nobody has")

    def _react(self, told: list[tuple[object, ...]]) -> None:
        """As the owner of circuits does: a hop more, or the end of what has ended."""
        for one in told:
            number = one[1] if len(one) > 1 else None
            way = self.ways_by_id().get(number) if isinstance(number, int) else None
            if way is None:
                continue
            if one[0] == "control" and one[2] in ANSWERS:
                if way.layers or one[2] != Command.CREATED2:
                    self._do_end(way)
                else:
                    self._add_hop(way)
            elif one[0] == "control" and one[2] == Command.DESTROY:
                self._close(way)
            elif one[0] == "failed":
                self._do_end(way)
            elif one[0] == "message" and one[3:5] == EXTENDED and len(way.layers) < MAX_HOPS:
                self._add_hop(way)

    def _add_hop(self, way: Way) -> None:
        kind = KIND_NAMES[way.kind] if len(way.layers) >= LAST else GUARD
        keys = way.rng.randbytes(kind.far.KEY_MATERIAL_LEN)
        core = make_vegas(self.clock) if kind.has_vegas else None
        way.core.add_hop(Layer(kind.layer, keys), vegas=core)
        way.layers.append(kind.far(keys))
        way.due.hops.append(Hop(kind, self.due_clock))
        way.sent.append(0)
        way.expected.append(deque())
        way.on_way.append(0)
        if kind.lets_in:
            way.due.client_hop = len(way.layers) - 1
            way.core.let_in(way.due.client_hop)

    def _close(self, way: Way) -> None:
        self.core.close_circuit(way.core)
        way.due.finish()
        for number, one in list(self.ways.items()):
            if one is way:
                del self.ways[number]

    # --- after each step ---

    def _expect_control(self, circ_id: int, command: int) -> None:
        self.due_controls.append((circ_id, command))

    def look(self) -> None:
        """Both sides say the same of each circuit."""
        sent = self.core.data_to_send()
        controls = []
        found: dict[int, list[tuple[int, int, int]]] = {circ_id: [] for circ_id in self.all}
        for at in range(0, len(sent), CELL_LEN):
            circ_id, command = struct.unpack_from(">IB", sent, at)
            if command in (Command.RELAY, Command.RELAY_EARLY):
                found[circ_id].append(self.all[circ_id].open(command, sent[at + 5 : at + CELL_LEN]))
            else:
                controls.append((circ_id, command))
        assert controls == self.due_controls
        self.due_controls.clear()
        assert self.core.circuit_count == len(self.ways)
        for circ_id, way in self.all.items():
            assert found[circ_id] == way.due.sent
            way.due.sent.clear()
            assert way.core.has_ended == way.due.is_over
            assert way.core.stream_count == len(way.due.streams)
            assert way.core.hop_count == len(way.due.hops)
            for core, stream in way.all_streams:
                assert core.queued == len(stream.data)
                assert core.is_open == (stream.state == "open")
                assert core.has_ended == (stream.state == "ended")

    def end(self) -> None:
        """Each circuit that is left goes on; then all is closed, and let go."""
        self._do_release(0)
        self.look()
        for way in [] if self.has_failed else list(self.ways.values()):
            if way.layers:
                self._do_cell(way, len(way.layers) - 1, RelayCommand.TRUNCATED, "none", 1)
                self.look()
                assert not way.core.has_ended
        for way in list(self.ways.values()):
            self._do_end(way)
        self.look()
        assert self.core.circuit_count == 0


SHAPES = {
    "open": ["count", "word"],
    "extend": ["circ"],
    "end": ["circ"],
    "begin": ["circ", "word"],
    "resolve": ["circ", "word"],
    "put": ["circ", "word", "count"],
    "take": ["circ", "word", "count"],
    "close": ["circ", "word"],
    "bound": ["circ", "word", "count"],
    "tell": ["circ", "hop", "command", "word"],
    "wait": ["count"],
    "created": ["circ"],
    "extended": ["circ"],
    "cell": ["circ", "hop", "command", "word", "count"],
    "many": ["circ", "word", "count"],
    "sendme": ["circ", "hop", "count"],
    "early": ["circ"],
    "long": ["circ"],
    "flip": ["circ"],
    "control": ["circ", "link", "count"],
    "padding": ["count"],
    "huge": ["link"],
    "hold": ["count"],
    "release": ["count"],
    "reads": ["count"],
}


def check_channel(text: bytes) -> None:
    """Live one story through. Raises AssertionError where the core did not do what was due."""
    before = held()
    story = Story()
    story.run(text.decode("ascii", "replace").split("\n"))
    story.end()
    del story
    assert held() == before
