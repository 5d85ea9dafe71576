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
from random import Random
from typing import NoReturn

import pytest
import trio
import trio.testing
from onion_network import onion_network
from pool import open_pool
from proxied import CONNECT, GRANTED, GREETING, receive_all, receive_exactly
from served import fresh_relays, relay_of, serve_channel
from served_tor import exits_of, served_tor
from trio.testing import MockClock
from waiting import until

from torkit._fast.cells import RelayCommand
from torkit.errors import ChannelClosed, CircuitClosed, CircuitError, EndReason, TimedOut
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.build import build_circuit, build_directory_circuit
from torkit.net.circuits.purpose import AskDirectory
from torkit.net.hosting.forward import Target
from torkit.net.link.channels import Channels
from torkit.net.proxy import serve_socks
from torkit.testing.relay import FakeCircuit, FakeStream, RelayCell, answer_begin, ignore

SETTINGS = CircuitSettings()
OURS = ("torkit._fast.", "torkit.errors.", "torkit.net.", "torkit.proto.")
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


@pytest.mark.parametrize("how", ["the client, in order", "the client", "the server"])
async def test_a_stream_that_a_service_has_carried_leaves_no_garbage(tmp_path: Path, how: str) -> None:
    [server] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with (
        server,
        onion_network(tmp_path) as (tor, net),
        tor.serve_onion({80: Target(*server.socket.getsockname())}) as service,
    ):
        await service.wait_published()
        far = await net.meet(net.descriptor(service.address))

        async def ask() -> None:
            theirs = far.begin(80, b"request")
            async with await server.accept() as connection:
                assert await connection.receive_some() == b"request"
                if how != "the server":
                    theirs.end(EndReason.DONE if how == "the client, in order" else EndReason.MISC)
                    with suppress(trio.BrokenResourceError):
                        assert await connection.receive_some() == b""
            await until(lambda: service.connection_count == 0)

        await ask()  # what is made for the first only
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


@pytest.mark.parametrize("is_to_directory", [False, True], ids=["three hops", "directory"])
async def test_a_build_that_times_out_leaves_no_garbage(
    patient_clock: MockClock, is_to_directory: bool
) -> None:
    async with open_pool() as pool:
        pool.fakes[0].on_create = ignore

        async def build_one() -> None:
            if is_to_directory:
                await build_directory_circuit(pool.channels, AskDirectory(pool.path[0]), SETTINGS)
            else:
                await build_circuit(pool.channels, pool.path, SETTINGS, Random())

        async def fail_one() -> None:
            with pytest.raises(TimedOut):
                await build_one()

        await fail_one()
        with nothing_left():
            await fail_one()
            await trio.testing.wait_all_tasks_blocked(0.05)


async def test_a_handshake_that_fails_leaves_no_garbage() -> None:
    def lie(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        circuit.send(number, RelayCommand.EXTENDED2, 0, b"\0\x40" + b"\x09" + bytes(63))

    relays = fresh_relays(2)
    relays[0].on_extend2 = lie
    async with serve_channel(relays[0]) as channel:

        async def fail_one() -> None:
            circuit = channel.open_circuit(8, SETTINGS)
            await circuit.create(relay_of(relays[0]))
            with pytest.raises(CircuitError, match="AUTH"):
                await circuit.extend(relay_of(relays[1]), is_last=True)
            circuit.close()

        await fail_one()
        with nothing_left():
            await fail_one()
            await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize("at", ["first hop", "second hop"])
async def test_a_circuit_that_a_relay_ends_while_it_is_built_leaves_no_garbage(at: str) -> None:
    def refuse(circuit: FakeCircuit, *_: object) -> None:
        circuit.destroy()

    async with open_pool() as pool:
        if at == "first hop":
            pool.fakes[0].on_create = refuse
        else:
            pool.fakes[0].on_extend2 = refuse

        async def fail_one() -> None:
            with pytest.raises(CircuitClosed):
                await build_circuit(pool.channels, pool.path, SETTINGS, Random())

        await fail_one()
        with nothing_left():
            await fail_one()
            await trio.testing.wait_all_tasks_blocked(0.05)


async def test_a_relay_that_cannot_be_reached_leaves_no_garbage() -> None:
    (fake,) = fresh_relays(1)

    async def refuse(host: str, port: int) -> NoReturn:
        raise ChannelClosed("nobody is there")

    async with trio.open_nursery() as nursery:
        channels = Channels(nursery, Random(), dial=refuse)

        async def fail_one() -> None:
            with pytest.raises(ChannelClosed):
                await channels.get(relay_of(fake))

        await fail_one()
        with nothing_left():
            await fail_one()
            await trio.testing.wait_all_tasks_blocked(0.05)
