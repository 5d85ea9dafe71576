"""Transfers in which an allocation fails, each in turn. test_allocations.py runs this; it is no test.

    python -m fast.starved MODULE HOP,HOP KIND FIRST STEP once|lasting

MODULE (failing_malloc.c) counts the allocations within calls of the core. With `lasting`, all that follow in
the same call fail too. KIND is `plain`, `onion` (a service is behind the last hop) or `linked` (two circuits
over two channels). After each transfer nothing may have ended but its circuits or a channel, whose owner
was told; the relays have no complaint; what arrived is the start of what was sent; and the next transfer
succeeds. Prints how many transfers had a fault.
"""

import itertools
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from fast.pair import Pair
from fast.talk import CGO, CONGESTION_CONTROL, WINDOWS, Talk, fresh_relays

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.circuit import Circuit
from torkit._fast.events import ChannelFailed, CircuitFailed
from torkit._fast.stream import Stream
from torkit._fast.tunnel import Tunnel
from torkit.testing.relay import FakeStream

HOPS = {"windows": WINDOWS, "congestion": CONGESTION_CONTROL, "cgo": CGO}
DOWN = bytes(range(256)) * 128  # 32 KiB: SENDMEs of the stream, and of a circuit under congestion control
UP = bytes(reversed(range(256))) * 80  # 20 KiB: fits every window
READ_LEN = 5000  # bytes: reads end within cells
CELL = 488  # bytes of DATA that fit into a cell of any kind


def build_allocator(directory: Path) -> Path:
    """Compile MODULE into `directory`. Returns its path."""
    library = directory / "failing_malloc.so"
    flags = ["-O1", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{sysconfig.get_path('include')}"]
    source = Path(__file__).parent / "failing_malloc.c"
    subprocess.run(["cc", *flags, "-o", library, source, "-ldl"], check=True)
    return library


def load_allocator(path: str) -> Any:
    """The module at `path`, which is preloaded."""
    loader = ExtensionFileLoader("failing_malloc", path)
    spec = spec_from_loader("failing_malloc", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


class ChannelVoid(Exception):
    """The channel has raised MemoryError while it read: it has to be given up."""


class Transfer:
    """A stream on a circuit of its own: bytes both ways, and the end."""

    TARGET = b"web.test:80\0"

    def __init__(self, talks: list[Talk], allocator: Any) -> None:
        self.talks = talks
        self.allocator = allocator
        self.received = bytearray()
        self.told: set[Circuit] = set()  # circuits whose failure we were told of
        self.tunnel: Tunnel
        self.circuits: list[Circuit]
        self.stream: Stream
        self.open()

    def open(self) -> None:
        (talk,) = self.talks
        self.tunnel = circuit = talk.circuit()
        self.circuits = [circuit]
        self.stream = talk.stream(circuit)
        self.far: FakeStream = talk.far_stream(circuit, self.stream)

    def run(self) -> None:
        """Raises ChannelVoid."""
        self.begin()
        offered = 0
        while not self.has_ended and (offered < len(UP) or len(self.received) < len(DOWN)):
            self.exchange()
            self.received += self.retried(self.stream.take)
            try:
                offered += self.starved(self.stream.put, UP[offered : offered + self.next_len(offered)])
            except MemoryError:
                break  # nobody knows how much was sealed
        other = None
        if not self.tunnel.has_ended:
            other = self.retried(self.tunnel.open_stream, self.stream.hop)
            self.retried(self.tunnel.send, other.hop, RelayCommand.BEGIN, other.id, self.TARGET)
            self.retried(self.tunnel.close_stream, self.stream, b"\x06", 60.0)
        for talk in self.talks:
            talk.link.send_cell(0, Command.PADDING)  # so that there is something to read
        self.exchange()
        assert bool(self.told) == self.has_ended
        assert other is None or self.told or self.is_answered(other)
        for talk, circuit in zip(self.talks, self.circuits, strict=True):
            self.retried(talk.core.close_circuit, circuit)
            self.retried(talk.core.send_control, circuit.id, Command.DESTROY, b"\0")
        self.exchange()

    @property
    def has_ended(self) -> bool:
        return self.tunnel.has_ended or any(circuit.has_ended for circuit in self.circuits)

    def begin(self) -> None:
        """Have the far end send."""
        self.far.write(DOWN)

    def next_len(self, offered: int) -> int:
        """How much to put at once."""
        return len(UP)

    def is_answered(self, stream: Stream) -> bool:
        return stream.is_open

    def exchange(self) -> None:
        for talk in self.talks:
            self.feed(talk, talk.link.receive(self.retried(talk.core.data_to_send)))

    def feed(self, talk: Talk, data: bytes) -> None:
        for start in range(0, len(data), READ_LEN):
            piece = bytearray(data[start : start + READ_LEN])
            try:
                events = self.starved(talk.core.receive_data, piece, len(piece))
            except MemoryError:
                raise ChannelVoid from None
            assert not any(isinstance(event, ChannelFailed) for event in events)
            self.told |= {event.circuit for event in events if isinstance(event, CircuitFailed)}

    def starved(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the core with the fault in place."""
        self.allocator.resume()
        try:
            return function(*args)
        finally:
            self.allocator.pause()

    def retried(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the core with the fault in place, and again where MemoryError says that nothing changed."""
        try:
            return self.starved(function, *args)
        except MemoryError:
            return function(*args)

    def check(self, *, is_whole: bool) -> None:
        sent = self.far_received()
        assert [complaint for talk in self.talks for complaint in talk.complaints] == []
        assert DOWN.startswith(self.received)
        assert UP.startswith(sent)
        assert not is_whole or (self.received == DOWN and sent == UP)

    def far_received(self) -> bytes:
        return bytes(self.far.received)


class OnionTransfer(Transfer):
    """The same with an onion service, behind the last hop."""

    TARGET = b":80\0"

    def open(self) -> None:
        (talk,) = self.talks
        self.tunnel = circuit = talk.circuit()
        self.circuits = [circuit]
        (self.service,) = fresh_relays(1)
        talk.join(circuit, self.service, has_congestion_control=True)
        self.stream = talk.stream(circuit, self.TARGET)
        self.far = talk.far_stream(circuit, self.stream)

    def check(self, *, is_whole: bool) -> None:
        super().check(is_whole=is_whole)
        assert self.service.complaints == []


class LinkedTransfer(Transfer):
    """The same over two circuits that are linked: half of all goes by each, and one of them comes first."""

    RUN = 11  # messages by one leg, then by the other

    def open(self) -> None:
        self.pair = Pair(talks=self.talks)
        self.tunnel, self.circuits = self.pair.set, list(self.pair.legs)
        self.stream = self.pair.connected()

    def begin(self) -> None:
        ways: list[list[bytes]] = [[], []]
        pieces = [DOWN[at : at + CELL] for at in range(0, len(DOWN), CELL)]
        for number, piece in enumerate(pieces):
            leg = number // self.RUN % 2
            ways[leg] += self.pair.held(leg, RelayCommand.DATA, self.stream.id, piece)
        for leg in (1, 0):
            self.feed(self.talks[leg], b"".join(ways[leg]))

    def next_len(self, offered: int) -> int:
        for leg in (0, 1):
            self.pair.measure(leg, 0.1 + (leg == offered // (4 * CELL) % 2))
        return 4 * CELL

    def is_answered(self, stream: Stream) -> bool:
        return (stream.id, RelayCommand.BEGIN) in [(one[2], one[1]) for one in self.pair.log]

    def far_received(self) -> bytes:
        """What came before the first number that is missing; after that only what is of UP."""
        received = [0, 0]
        found = {}
        for leg, command, _, body in self.pair.log:
            if command == RelayCommand.CONFLUX_SWITCH:
                received[leg] += struct.unpack(">I", body)[0]
            elif command != RelayCommand.SENDME:
                received[leg] += 1
                assert received[leg] not in found
                found[received[leg]] = body if command == RelayCommand.DATA else b""
                assert command != RelayCommand.DATA or body in UP
        count = next(number for number in itertools.count(1) if number not in found)
        return b"".join(found[number] for number in range(1, count))


KINDS = {"plain": (Transfer, 1), "onion": (OnionTransfer, 1), "linked": (LinkedTransfer, 2)}


def has_failed(protocols: list[str], kind: str, allocator: Any, number: int, *, is_lasting: bool) -> bool:
    """Have allocation `number` of a transfer fail, then make another. False where there were fewer."""
    make, channels = KINDS[kind]
    talks = [Talk(hops=protocols) for _ in range(channels)]
    transfer = make(talks, allocator)
    allocator.set_fault(number, is_lasting)
    try:
        transfer.run()
    except ChannelVoid:
        talks = [Talk(hops=protocols) for _ in range(channels)]
    _, failed = allocator.count()
    allocator.set_fault(-1, False)
    transfer.check(is_whole=not failed)
    following = make(talks, allocator)
    following.run()
    following.check(is_whole=True)
    return bool(failed)


def main(path: str, hops: str, kind: str, first: str, step: str, how: str) -> None:
    allocator = load_allocator(path)
    protocols = [HOPS[hop] for hop in hops.split(",")]
    allocator.set_fault(-1, False)
    number = int(first)
    faults = 0
    while has_failed(protocols, kind, allocator, number, is_lasting=how == "lasting"):
        number += int(step)
        faults += 1
    print(faults)


if __name__ == "__main__":
    main(*sys.argv[1:])
