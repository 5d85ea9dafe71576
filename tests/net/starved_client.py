"""Transfers over real TLS in which an allocation fails, each in turn. test_starved_client.py runs this.

    python -m net.starved_client MODULE FIRST STEP once|lasting

MODULE (tests/fast/failing_malloc.c) counts the allocations within the pump's calls of the core: TLS, cells,
layers and streams. After each transfer what arrived, at either end, is the start of what was sent, the relay
has no complaint, and the same client serves the next request: on the same connection where that is still
there. Prints how many transfers had a fault.
"""

import logging
import sys
from contextlib import suppress
from random import Random
from typing import Any

import trio
import trio.testing
from fast.starved import load_allocator
from served import build, connect, fresh_relays, open_stream, serve

from torkit.errors import TorkitError
from torkit.net.link.channel import Channel
from torkit.net.link.pump import Pump
from torkit.testing.relay import FakeRelay

DOWN = Random(1).randbytes(300_000)  # bytes: several reads and SENDMEs
UP = Random(2).randbytes(100_000)


class Starved:
    """The core's pump, whose calls are counted."""

    def __init__(self, core: Any, allocator: Any) -> None:
        self._core = core
        self._allocator = allocator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def run(self, *arguments: Any) -> Any:
        self._allocator.resume()
        try:
            return self._core.run(*arguments)
        finally:
            self._allocator.pause()


async def transfer(channel: Channel, relay: FakeRelay) -> bool:
    """A stream on a circuit of its own, bytes both ways. Returns whether all of them arrived."""
    received = bytearray()
    is_whole = False
    circuit = await build(channel, [relay])
    stream, far = await open_stream(circuit, relay)
    far.write(DOWN)

    async def send() -> None:
        with suppress(TorkitError, trio.BrokenResourceError):  # what arrived is looked at below
            await stream.send_all(UP)

    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while len(received) < len(DOWN):
                    received += await stream.receive_some()
            while len(far.received) < len(UP):
                if circuit.error is not None:
                    raise circuit.error
                await trio.sleep(0.001)
        is_whole = True
    except* (TorkitError, trio.BrokenResourceError):
        pass
    assert DOWN.startswith(received)
    assert UP.startswith(far.received)
    circuit.close()
    return is_whole


async def main(*arguments: str) -> None:
    path, first, step, how = arguments
    logging.disable()
    allocator = load_allocator(path)
    allocator.set_fault(-1, False)
    [relay] = fresh_relays(1)
    pump = Pump.current()
    pump._core = Starved(pump._core, allocator)  # type: ignore[assignment]  # in its place
    number, faults, failed = int(first), 0, 1
    async with serve(relay), trio.open_nursery() as nursery:
        channel = await connect(relay)
        nursery.start_soon(channel.run)
        while failed:
            allocator.set_fault(number, how == "lasting")
            is_whole = False
            with suppress(TorkitError):  # the circuit was not even built
                is_whole = await transfer(channel, relay)
            _, failed = allocator.count()
            allocator.set_fault(-1, False)
            assert is_whole or failed
            await trio.testing.wait_all_tasks_blocked()  # the end of a link may be told a turn later
            if channel.error is not None:
                channel = await connect(relay)
                nursery.start_soon(channel.run)
            assert await transfer(channel, relay), "the client serves no more"
            assert relay.complaints == []
            number += int(step)
            faults += bool(failed)
        nursery.cancel_scope.cancel()
    print(faults)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
