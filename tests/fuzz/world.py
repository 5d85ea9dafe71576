"""A channel of the core with two circuits, and the relays behind it: what peers.py plays to.

The circuit in question has three hops, of which the last is of the world's kind, and two streams: 1 is for a
connection, 2 for a look-up. Its neighbour has two hops. Keys are the same each time.
"""

import itertools
import struct
from hashlib import sha256
from random import Random
from typing import Any, NamedTuple

from compiled_cgo import QuickCgoLayer
from fuzz.linked_due import make_clock, make_vegas

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel
from torkit._fast.circuit import Circuit
from torkit._fast.events import ChannelFailed, CircuitFailed, ControlCell, Event, Message, Readable, Writable
from torkit._fast.onion import Layer, LayerKind
from torkit.testing.relay import (
    CgoLayer,
    OnionServiceLayer,
    RelayCell,
    Tor1Layer,
    encode_cell,
    encode_versions,
)
from torkit.testing.relay.cells import CELL_BODY_LEN, STREAM_COMMANDS

CELL_LEN = 5 + CELL_BODY_LEN

FarLayer = Tor1Layer | CgoLayer
Told = tuple[Any, ...]


class Kind(NamedTuple):
    layer: LayerKind
    far: type[Tor1Layer] | type[CgoLayer]
    has_vegas: bool = True
    lets_in: bool = False  # the far end is a client of our onion service


KINDS = (
    Kind(LayerKind.TOR1, Tor1Layer, has_vegas=False),
    Kind(LayerKind.TOR1, Tor1Layer),
    Kind(LayerKind.CGO, QuickCgoLayer),
    Kind(LayerKind.TOR1_ONION, OnionServiceLayer, lets_in=True),
)
GUARD = KINDS[0]


def pieces(data: bytes) -> list[int]:
    """Sizes of pieces, as the data has it: from 1 byte on, and once in a while many."""
    sizes: list[int] = []
    left = len(data)
    for byte in itertools.cycle(sha256(data).digest()):
        if left <= 0:
            break
        sizes.append(1 + byte % 7 if byte % 3 else 4 * byte + 1)
        left -= sizes[-1]
    return sizes


class Way:
    """A circuit, and the layers of its relays."""

    def __init__(self, core: Channel, circ_id: int, kinds: tuple[Kind, ...]) -> None:
        rng = Random(circ_id)
        self.circuit: Circuit = core.open_circuit(circ_id, 7, 8)
        self.layers: list[FarLayer] = []
        for hop, kind in enumerate(kinds):
            keys = rng.randbytes(kind.far.KEY_MATERIAL_LEN)
            self.circuit.add_hop(
                Layer(kind.layer, keys), vegas=make_vegas(make_clock()) if kind.has_vegas else None
            )
            self.layers.append(kind.far(keys))
            if kind.lets_in:
                self.circuit.let_in(hop)

    def seal(self, hop: int, cell: RelayCell, *, length: int | None = None) -> bytes:
        """A cell as the guard sends it on, with whatever length it claims."""
        command = Command.RELAY_EARLY if cell.early else Command.RELAY
        layer = self.layers[hop]
        stream_id = cell.stream_id
        if isinstance(layer, CgoLayer) and cell.command not in STREAM_COMMANDS:
            stream_id = 0
        plain = RelayCell(cell.command, stream_id, cell.body[: layer.DATA_LEN_MAX])
        body, _ = layer.originate(command, plain, length=length)
        for nearer in reversed(self.layers[:hop]):
            body = nearer.encrypt_backward(command, body)
        return encode_cell(self.circuit.id, command, body)

    def open(self, command: int, body: bytes) -> RelayCell:
        """A cell of ours, by the relay that it is for: one of them must know it."""
        for layer in self.layers:
            body, tag = layer.open_forward(command, body)
            if tag is not None:
                return layer.decode(body, early=command == Command.RELAY_EARLY)
        raise AssertionError("a cell of ours that no relay recognizes")


class World:
    def __init__(self, kind: Kind, *, is_versioned: bool = True) -> None:
        self.core = Channel()
        self.way = Way(self.core, 0x80000001, (GUARD, GUARD, kind))
        self.neighbour = Way(self.core, 0x80000002, (GUARD, GUARD))
        self.stream = self.way.circuit.open_stream(2)
        self.look_up = self.way.circuit.open_stream(2, True)
        if is_versioned:
            assert self.feed(encode_versions([4])) == [("control", 0, Command.VERSIONS, b"\0\4")]

    def seal(
        self,
        hop: int,
        command: int,
        name: int,
        body: bytes,
        *,
        early: bool = False,
        length: int | None = None,
    ) -> bytes:
        """`name` is 1 or 2 for a stream that is ours, else a stream id."""
        stream_id = {1: self.stream.id, 2: self.look_up.id}.get(name, name)
        return self.way.seal(min(hop, 2), RelayCell(command, stream_id, body, early), length=length)

    def feed(self, data: bytes, sizes: list[int] | None = None) -> list[Told]:
        """What is told of bytes that come in pieces of these sizes, but for Readable."""
        told: list[Told] = []
        left = memoryview(data)
        for size in sizes or [len(data)]:
            piece, left = bytearray(left[:size]), left[size:]
            told += [self._tell(event) for event in self.core.receive_data(piece, len(piece))]
        return [one for one in told if one]

    def _tell(self, event: Event) -> Told:
        match event:
            case Message():
                return "message", event.circuit.id, event.hop, event.command, event.stream_id, event.body
            case ControlCell():
                return "control", event.circ_id, event.command, event.body
            case CircuitFailed():
                return "failed", event.circuit.id, str(event.error)
            case ChannelFailed():
                return "channel failed", str(event.error)
            case Writable():
                return "writable", event.stream.id
        assert isinstance(event, Readable)
        return ()

    def flush(self) -> list[RelayCell]:
        """The relay messages that we have sent. Each opens where it belongs."""
        ways = {way.circuit.id: way for way in (self.way, self.neighbour)}
        sent = self.core.data_to_send()
        found = []
        for at in range(0, len(sent), CELL_LEN):
            circ_id, command = struct.unpack_from(">IB", sent, at)
            found.append(ways[circ_id].open(command, sent[at + 5 : at + CELL_LEN]))
        return found

    def state(self) -> Told:
        ways = [way.circuit for way in (self.way, self.neighbour)]
        streams = [(one.is_open, one.has_ended, one.take()) for one in (self.stream, self.look_up)]
        return [(one.has_ended, one.stream_count) for one in ways], streams, self.flush()

    def check_neighbour(self) -> None:
        """It goes on, whatever came of the other."""
        body = bytes([1])
        cell = self.neighbour.seal(1, RelayCell(RelayCommand.TRUNCATED, 0, body))
        told = self.feed(cell, pieces(cell))
        assert told == [("message", self.neighbour.circuit.id, 1, RelayCommand.TRUNCATED, 0, body)]
        self.neighbour.circuit.send(1, RelayCommand.DROP, 0, b"")
        assert [one.command for one in self.flush()] == [RelayCommand.DROP]

    def end(self) -> None:
        """All is closed and let go."""
        for way in (self.way, self.neighbour):
            self.core.close_circuit(way.circuit)
            assert way.circuit.stream_count == 0
        assert self.core.circuit_count == 0
        cell = encode_cell(self.way.circuit.id, Command.RELAY, bytes(CELL_BODY_LEN))
        assert not [told for told in self.feed(cell) if told[0] == "message"]
        del self.stream, self.look_up, self.way, self.neighbour, self.core
