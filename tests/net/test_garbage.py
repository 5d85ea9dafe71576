"""What has ended is let go of at once: nothing of it waits until Python looks for garbage.

A proxy lets Python look seldom. Until then a stream that had ended kept 3.5 KB, its destination among
them, and the looking took a twentieth of what a stream costs.
"""

import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from proxied import CONNECT, GRANTED, GREETING, receive_all, receive_exactly
from served_tor import exits_of, served_tor
from waiting import until

from torkit.errors import EndReason
from torkit.net.proxy import serve_socks
from torkit.testing.relay import FakeStream, answer_begin

OURS = ("torkit._fast.", "torkit.net.", "torkit.proto.")
Behaviour = Callable[[FakeStream], None]
GET = b"GET http://web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"


@contextmanager
def nothing_left() -> Iterator[None]:
    """Assert that the block leaves no garbage that holds something of torkit's."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        names = [f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not Counter(name for name in names if name.startswith(OURS))


def whole(stream: FakeStream) -> None:
    answer_begin(stream)
    stream.write(ANSWER)
    stream.finish()


def refused(stream: FakeStream) -> None:
    stream.end(EndReason.CONNECTREFUSED)


def broken(stream: FakeStream) -> None:
    answer_begin(stream)
    stream.end(EndReason.CONNRESET)


@asynccontextmanager
async def served(tmp_path: Path, behaves: Behaviour) -> AsyncIterator[tuple[str, int]]:
    """The address of a proxy, for SOCKS and HTTP. Its exits all behave so."""
    async with served_tor(tmp_path) as (tor, network), trio.open_nursery() as nursery:
        for fake in exits_of(network):
            fake.on_begin = behaves
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(serve_socks, listeners, request=tor.request, resolve=tor.resolve))
        yield listeners[0].socket.getsockname()
        nursery.cancel_scope.cancel()


STORIES: dict[str, tuple[Behaviour, bytes]] = {
    "whole": (whole, GREETING + CONNECT),
    "whole, asked for by HTTP": (whole, GET),
    "refused": (refused, GREETING + CONNECT),
    "broken": (broken, GREETING + CONNECT),
    "no request": (whole, b"GET / HTTP/1.1\r\n\r\n"),
}


@pytest.mark.parametrize(("behaves", "asked"), STORIES.values(), ids=list(STORIES))
async def test_a_client_that_was_served_leaves_no_garbage(
    tmp_path: Path, behaves: Behaviour, asked: bytes
) -> None:
    async with served(tmp_path, behaves) as address:

        async def ask() -> None:
            with suppress(trio.BrokenResourceError):
                async with await trio.open_tcp_stream(*address) as client:
                    await client.send_all(asked)
                    assert await receive_all(client)

        await ask()  # what is made for the first only
        with nothing_left():
            for _ in range(3):
                await ask()
            await trio.testing.wait_all_tasks_blocked(0.05)


async def test_a_client_that_leaves_first_leaves_no_garbage(tmp_path: Path) -> None:
    async with served(tmp_path, answer_begin) as address:

        async def ask() -> None:
            async with await trio.open_tcp_stream(*address) as client:
                await client.send_all(GREETING + CONNECT)
                await receive_exactly(client, len(GRANTED))

        await ask()
        with nothing_left():
            for _ in range(3):
                await ask()
            await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize("whose", ["ours", "a relay's"])
async def test_a_circuit_that_has_ended_leaves_no_garbage(tmp_path: Path, whose: str) -> None:
    async with served_tor(tmp_path) as (tor, network):

        async def end_one() -> None:
            circuit = await tor.build_circuit()
            stream = circuit.begin("web.test", 80)
            await stream.wait_connected()
            if whose == "ours":
                circuit.close()
            else:
                fakes = network.relays[circuit.path[-1].nickname].circuits
                next(one for one in fakes if one.circ_id == circuit.core.id).destroy()
                await until(lambda: circuit.error is not None)
            await stream.aclose()

        await end_one()
        with nothing_left():
            for _ in range(3):
                await end_one()
            await trio.testing.wait_all_tasks_blocked(0.05)
