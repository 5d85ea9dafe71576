"""torkit.aio: asyncio's streams and transports over a client in a thread, over scripted relays."""

import asyncio
import gc
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from doors import RunningNetwork, tls_contexts
from library.test_blocking import sent_and, serving
from network.servers import PAGE
from waiting import wait_until

from torkit import aio
from torkit.errors import EndReason, StreamClosed, UsageError
from torkit.testing.relay import ignore

GET = b"GET /page HTTP/1.0\r\n\r\n"


@pytest.fixture
def run(network: RunningNetwork, data_dir: Path) -> Callable[[Callable[[aio.Tor], Awaitable[None]]], None]:
    """Runs a program of asyncio with a client, after which no thread of ours is left."""

    def run(program: Callable[[aio.Tor], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(60), aio.open_tor(network=network.file, data_dir=data_dir) as tor:
                await program(tor)

        before = count_threads()
        asyncio.run(main(), debug=True)
        assert count_threads() == before

    return run


def count_threads() -> int:
    return sum(thread.name == "torkit" for thread in threading.enumerate())


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


def test_streams_carry_bytes_both_ways(run: Any) -> None:
    async def program(tor: aio.Tor) -> None:
        reader, writer = await tor.open_connection("web.test", 80)
        writer.write(GET)
        await writer.drain()
        assert (await reader.read()).endswith(PAGE)
        writer.close()
        await writer.wait_closed()

    run(program)


def test_a_protocol_is_told_of_everything(run: Any) -> None:
    class Client(asyncio.Protocol):
        def __init__(self) -> None:
            self.received = b""
            self.has_ended = asyncio.get_running_loop().create_future()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(GET)

        def data_received(self, data: bytes) -> None:
            self.received += data

        def connection_lost(self, error: Exception | None) -> None:
            self.has_ended.set_result(error)

    async def program(tor: aio.Tor) -> None:
        _, client = await tor.create_connection(Client, "web.test", 80)
        assert await client.has_ended is None
        assert client.received.endswith(PAGE)

    run(program)


def test_tls_knows_whom_it_speaks_to(run: Any, network: RunningNetwork, tmp_path: Path) -> None:
    server_context, context = tls_contexts(tmp_path)

    def answer(sock: socket.socket) -> None:
        with server_context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(tls.recv(100).upper())
            tls.unwrap()

    async def program(tor: aio.Tor) -> None:
        reader, writer = await tor.open_connection("web.test", 443, ssl=context)
        writer.write(b"hello")
        assert await reader.read(5) == b"HELLO"
        writer.close()
        with pytest.raises(OSError, match="certificate verify failed"):
            await tor.open_connection("other.test", 443, ssl=context)

    with serving(answer) as port:
        network.servers |= {"web.test:443": port, "other.test:443": port}
        run(program)


def test_isolation_and_identities(run: Any, network: RunningNetwork) -> None:
    async def program(tor: aio.Tor) -> None:
        async def circuit(client: aio.Tor, isolation: object = None) -> int:
            (await client.connect("echo.test", 80, isolation=isolation)).close()
            return network.circuits[-1]

        other = tor.isolated()
        one = await circuit(tor, "one")
        assert await circuit(tor, "one") == one
        assert len({one, await circuit(other, "one"), await circuit(tor)}) == 3
        await tor.new_identity()
        assert await circuit(tor, "one") != one

    run(program)


def test_what_fails_is_an_error_of_sockets(run: Any, network: RunningNetwork) -> None:
    network.exits["cut.test"] = sent_and(lambda stream: stream.finish(EndReason.CONNRESET))

    async def program(tor: aio.Tor) -> None:
        with pytest.raises(ConnectionRefusedError) as caught:
            await tor.open_connection("refused.test", 80)
        assert isinstance(caught.value.__cause__, StreamClosed)
        reader, writer = await tor.open_connection("cut.test", 80)
        assert len(await reader.readexactly(300_000)) == 300_000
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    run(program)


def test_a_call_that_is_cancelled_leaves_nothing_behind(run: Any, network: RunningNetwork) -> None:
    network.exits["mute.test"] = ignore
    network.servers["gone.test"] = network.servers["silent.test"]

    async def program(tor: aio.Tor) -> None:
        begun, ended = network.begun.count(("mute.test", 80)), network.ended.count("mute.test")
        task = asyncio.create_task(tor.connect("mute.test", 80))
        await until(lambda: network.begun.count(("mute.test", 80)) > begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: network.ended.count("mute.test") == ended + 1)
        # Cancelled at any moment, be it when the socket has been handed over and not yet arrived.
        begun, ended = network.begun.count(("gone.test", 80)), network.ended.count("gone.test")
        for steps in range(40):
            task = asyncio.create_task(tor.connect("gone.test", 80))
            for _ in range(steps):
                await asyncio.sleep(0.0005)
            task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, socket.socket):
                result.close()
        await until(
            lambda: network.begun.count(("gone.test", 80)) - begun == network.ended.count("gone.test") - ended
        )

    run(program)
    gc.collect()


def test_a_start_that_is_cancelled_leaves_no_thread(network: RunningNetwork, data_dir: Path) -> None:
    async def main() -> None:
        async def use() -> None:
            async with aio.open_tor(network=network.file, data_dir=data_dir):
                await asyncio.sleep(60)

        for pause in 0, 0.001, 0.3:
            task = asyncio.create_task(use())
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    before = count_threads()
    asyncio.run(main())
    assert count_threads() == before


def test_a_closed_client_says_so(network: RunningNetwork, data_dir: Path) -> None:
    network.exits["mute.test"] = ignore

    async def main() -> None:
        async with aio.open_tor(network=network.file, data_dir=data_dir) as tor:
            reader, writer = await tor.open_connection("silent.test", 80)
            begun = network.begun.count(("mute.test", 80))
            waiting = asyncio.create_task(tor.connect("mute.test", 80))
            await until(lambda: network.begun.count(("mute.test", 80)) > begun)
        with pytest.raises(OSError, match="closed") as caught:
            await waiting
        assert isinstance(caught.value.__cause__, UsageError)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with pytest.raises(OSError, match="closed"):
            await tor.connect("web.test", 80)

    asyncio.run(main())


def test_errors_of_opening_are_those_of_open_tor(tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open_tor(network=tmp_path / "nowhere.toml"):
            pass

    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        asyncio.run(main())
