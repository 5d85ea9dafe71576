"""Stories of two linked circuits: what an exit and a user do, a line each, and what must come of every step.

The compiled core is one side; the other is an exit made of the scripted relay's layers, and a model in plain
Python of what is due (linked_due.py). After each step both must say the same: events, streams, queues,
SENDMEs and numbers. A line that makes no sense is passed over, so that any change of a story is a story. LEG
is 0 or 1; STREAM is 0 to 3, and anything else is one that nobody has opened, `none` the circuit itself.

    kind cgo | fills                         anywhere: the exit's layer is CGO; data goes by any leg with room
    open STREAM | resolve STREAM             the user's: BEGIN, RESOLVE
    put STREAM COUNT | take STREAM COUNT | close STREAM | bound STREAM COUNT | tell STREAM COMMAND
    wait MSEC | drop LEG | finish
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
from random import Random

from compiled_cgo import QuickCgoLayer
from fuzz.linked_due import (
    CELL_LEN,
    COUNTED,
    FOR_STREAMS,
    INCREMENT,
    LAST,
    LINKING_TIMES,
    NAMES,
    Due,
    DueLeg,
    DueStream,
    make_clock,
    make_vegas,
)

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel
from torkit._fast.circuit import Circuit
from torkit._fast.conflux import link
from torkit._fast.events import CircuitFailed, ControlCell, Event, Message, Readable, Writable
from torkit._fast.memory import held
from torkit._fast.onion import Layer, LayerKind
from torkit._fast.stream import Stream
from torkit.testing.relay import RelayCell, encode_cell, encode_versions
from torkit.testing.relay.layers import Tor1Layer

# --- the exit --------------------------------------------------------------------------------------


class Far:
    """The exit's end of one leg, and the relay's before it: layers, and what the client's cells say."""

    def __init__(self, circ_id: int, layers: list[Tor1Layer | QuickCgoLayer]) -> None:
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
        self.clock = make_clock()
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
            circuit.add_hop(Layer(kind, keys), vegas=make_vegas(self.clock))
            exit_layer = QuickCgoLayer(keys) if is_cgo else Tor1Layer(keys)
            self.cores.append(core)
            self.far.append(Far(circuit.id, [Tor1Layer(guard), exit_layer]))
            self.circuits.append(circuit)
        self.set = link(self.circuits, LINKING_TIMES, fills)
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
        return [leg for leg in legs if leg.has_room]

    def _expect_data(self, stream: DueStream, data: bytes) -> int:
        """What was accepted goes in order, each cell by a leg with room. Returns how many cells that were."""
        cells = self._sent()
        for leg, command, stream_id, _ in cells:
            assert (command, stream_id) == (RelayCommand.DATA, stream.id)
            eligible = self._eligible()
            assert leg in eligible
            assert leg.rtt == min(one.rtt for one in eligible)
            leg.in_flight += 1
            if leg.in_flight % INCREMENT == 0:
                leg.sealed_at.append(self.due.clock.set_to)
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

    def _do_wait(self, msec: int) -> None:
        self.due.clock.set_to += msec / 1000
        self.clock.set_to = self.due.clock.set_to

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
                assert self.set.carried(circuit) == (leg.cells_sent, leg.cells_received, leg.rtt)
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
    "wait": ["count"],
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
