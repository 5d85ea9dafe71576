"""Transfers in which an allocation fails, each in turn. test_allocations.py runs this; it is no test.

    python -m fast.starved MODULE HOP,HOP FIRST STEP once|lasting

MODULE (failing_malloc.c) counts the allocations within calls of the core. With `lasting`, all that follow in
the same call fail too. After each transfer nothing may have ended but its circuit or its channel, whose owner
was told; the relays have no complaint; what arrived is the start of what was sent; and the next transfer
succeeds. Prints how many transfers had a fault.
"""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from fakes import FakeStream
from fast.talk import CGO, CONGESTION_CONTROL, WINDOWS, Talk

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.circuit import Circuit
from torkit._fast.events import ChannelFailed, CircuitFailed
from torkit._fast.stream import Stream

HOPS = {"windows": WINDOWS, "congestion": CONGESTION_CONTROL, "cgo": CGO}
DOWN = bytes(range(256)) * 128  # 32 KiB: SENDMEs of the stream, and of a circuit under congestion control
UP = bytes(reversed(range(256))) * 80  # 20 KiB: fits every window
READ_LEN = 5000  # bytes: reads end within cells


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

    def __init__(self, talk: Talk, allocator: Any) -> None:
        self.talk = talk
        self.allocator = allocator
        self.circuit: Circuit = talk.circuit()
        self.stream: Stream = talk.stream(self.circuit)
        self.far: FakeStream = talk.far_stream(self.circuit, self.stream)
        self.received = bytearray()
        self.is_told = False

    def run(self) -> None:
        """Raises ChannelVoid."""
        self.far.write(DOWN)
        offered = 0
        while not self.circuit.has_ended and (offered < len(UP) or len(self.received) < len(DOWN)):
            self.exchange()
            self.received += self.retried(self.stream.take)
            try:
                offered += self.starved(self.stream.put, UP[offered:])
            except MemoryError:
                break  # nobody knows how much was sealed
        other = None
        if not self.circuit.has_ended:
            other = self.retried(self.circuit.open_stream, self.stream.hop)
            self.retried(self.circuit.send, other.hop, RelayCommand.BEGIN, other.id, b"web.test:80\0")
            self.retried(self.circuit.close_stream, self.stream, b"\x06", 60.0)
        self.talk.link.send_cell(0, Command.PADDING)  # so that there is something to read
        self.exchange()
        assert self.is_told == self.circuit.has_ended
        assert other is None or other.is_open or self.is_told
        self.retried(self.talk.core.close_circuit, self.circuit)
        self.retried(self.talk.core.send_control, self.circuit.id, Command.DESTROY, b"\0")
        self.exchange()

    def exchange(self) -> None:
        answer = self.talk.link.receive(self.retried(self.talk.core.data_to_send))
        for start in range(0, len(answer), READ_LEN):
            piece = bytearray(answer[start : start + READ_LEN])
            try:
                events = self.starved(self.talk.core.receive_data, piece, len(piece))
            except MemoryError:
                raise ChannelVoid from None
            assert not any(isinstance(event, ChannelFailed) for event in events)
            self.is_told |= any(isinstance(event, CircuitFailed) for event in events)

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
        assert self.talk.complaints == []
        assert DOWN.startswith(self.received)
        assert UP.startswith(self.far.received)
        assert not is_whole or (self.received == DOWN and self.far.received == UP)


def has_failed(protocols: list[str], allocator: Any, number: int, *, is_lasting: bool) -> bool:
    """Have allocation `number` of a transfer fail, then make another. False where there were fewer."""
    talk = Talk(hops=protocols)
    transfer = Transfer(talk, allocator)
    allocator.set_fault(number, is_lasting)
    try:
        transfer.run()
    except ChannelVoid:
        talk = Talk(hops=protocols)
    _, failed = allocator.count()
    allocator.set_fault(-1, False)
    transfer.check(is_whole=not failed)
    following = Transfer(talk, allocator)
    following.run()
    following.check(is_whole=True)
    return bool(failed)


def main(path: str, hops: str, first: str, step: str, how: str) -> None:
    allocator = load_allocator(path)
    protocols = [HOPS[hop] for hop in hops.split(",")]
    allocator.set_fault(-1, False)
    number = int(first)
    faults = 0
    while has_failed(protocols, allocator, number, is_lasting=how == "lasting"):
        number += int(step)
        faults += 1
    print(faults)


if __name__ == "__main__":
    main(*sys.argv[1:])
