"""What each door says where something is wrong: the error of its library, with torkit's as `__cause__`.

Refusals and time-outs of each library, which are its own, are beside the rest of its tests.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from doors import HOST, RunningNetwork

import torkit
from torkit import aio, blocking
from torkit.errors import EndReason, NotPossible, TorkitError, UsageError
from torkit.net.dir import keeper, servers
from torkit.testing.relay import FakeStream, answer_begin

aiohttp = pytest.importorskip("aiohttp")
httpx = pytest.importorskip("httpx")
requests = pytest.importorskip("requests")

from torkit import aiohttp as torkit_aiohttp  # noqa: E402  # imports aiohttp
from torkit import httpx as torkit_httpx  # noqa: E402  # imports httpx
from torkit import requests as torkit_requests  # noqa: E402  # imports requests

TIMEOUT = 30
BODY = b"x" * 500_000  # more than fits into the socket of a program
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"

# Fetches http://HOST/ and adds what has come of the body to a bytearray, until something raises.
Fetch = Callable[[Any, str, bytearray], Any]


class Door(NamedTuple):
    """A library's way in: how it fetches a page, and what it raises."""

    fetch: Fetch
    loop: str  # "", "asyncio" or "trio"
    no_connection: type[BaseException]
    cut: tuple[type[BaseException], ...]


def by_socket(tor: blocking.Tor, host: str, received: bytearray) -> None:
    with tor.connect(host, 80, timeout=TIMEOUT) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while data := sock.recv(1 << 16):
            received += data


async def by_streams(tor: aio.Tor, host: str, received: bytearray) -> None:
    reader, writer = await tor.open_connection(host, 80)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        while data := await reader.read(1 << 16):
            received += data
    finally:
        writer.close()


def by_httpx(tor: blocking.Tor, host: str, received: bytearray) -> None:
    with (
        httpx.Client(transport=torkit_httpx.Transport(tor), timeout=TIMEOUT) as client,
        client.stream("GET", f"http://{host}/") as response,
    ):
        for data in response.iter_raw():
            received += data


async def by_async_httpx(tor: Any, host: str, received: bytearray) -> None:
    async with (
        httpx.AsyncClient(transport=torkit_httpx.AsyncTransport(tor), timeout=TIMEOUT) as client,
        client.stream("GET", f"http://{host}/") as response,
    ):
        async for data in response.aiter_raw():
            received += data


def by_requests(tor: blocking.Tor, host: str, received: bytearray) -> None:
    with (
        torkit_requests.session(tor) as session,
        session.get(f"http://{host}/", timeout=TIMEOUT, stream=True) as response,
    ):
        for data in response.iter_content(100):
            received += data


async def by_aiohttp(tor: aio.Tor, host: str, received: bytearray) -> None:
    async with (
        aiohttp.ClientSession(connector=torkit_aiohttp.Connector(tor)) as session,
        session.get(f"http://{host}/") as response,
    ):
        async for data in response.content.iter_any():
            received += data


RESET = (ConnectionResetError,)
DOORS = {
    "blocking": Door(by_socket, "", OSError, RESET),
    "aio": Door(by_streams, "asyncio", OSError, RESET),
    "httpx": Door(by_httpx, "", httpx.ConnectError, (httpx.ReadError,)),
    "httpx, asyncio": Door(by_async_httpx, "asyncio", httpx.ConnectError, (httpx.ReadError,)),
    "httpx, trio": Door(by_async_httpx, "trio", httpx.ConnectError, (httpx.ReadError,)),
    "requests": Door(
        by_requests,
        "",
        requests.ConnectionError,
        (requests.ConnectionError, requests.exceptions.ChunkedEncodingError),
    ),
    "aiohttp": Door(by_aiohttp, "asyncio", aiohttp.ClientConnectorError, (aiohttp.ClientPayloadError,)),
}

FAILURES = (OSError, TorkitError, aiohttp.ClientError, httpx.HTTPError, requests.RequestException)


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Door:
    return DOORS[request.param]


def failure(
    door: Door, network: Path, data_dir: Path, host: str, received: bytearray, *, is_closed: bool = False
) -> BaseException:
    """What fetching a page raises, with a client of this network that is open, or closed already."""
    settings: dict[str, Any] = {"network": network, "data_dir": data_dir}
    if not door.loop:
        with blocking.open_tor(**settings) as tor:
            if is_closed:
                tor.close()
            with pytest.raises(FAILURES) as caught:
                door.fetch(tor, host, received)
        failed: BaseException = caught.value
        return failed

    async def main() -> BaseException:
        opened: AbstractAsyncContextManager[Any] = (
            torkit.open_tor(**settings) if door.loop == "trio" else aio.open_tor(**settings)
        )
        async with AsyncExitStack() as stack:
            tor = await stack.enter_async_context(opened)
            if is_closed:
                await stack.aclose()
            with pytest.raises(FAILURES) as caught:
                await door.fetch(tor, host, received)
        failed: BaseException = caught.value
        return failed

    return trio.run(main) if door.loop == "trio" else asyncio.run(main())


def test_a_client_that_is_closed(door: Door, network: RunningNetwork, data_dir: Path) -> None:
    error = failure(door, network.file, data_dir, "web.test", bytearray(), is_closed=True)
    assert isinstance(error, door.no_connection)
    assert "closed" in str(error)
    assert isinstance(error.__cause__, UsageError)


@pytest.fixture
def dead_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One whose only relay refuses every connection; it is believed after the first round."""
    monkeypatch.setattr(keeper, "ROUNDS_BEFORE_ERROR", 1)
    monkeypatch.setattr(servers, "MIN_BACKOFF", 0.01)
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        port = nobody.getsockname()[1]
        file = tmp_path / "dead.toml"
        authority = f"dead orport={port} v3ident={'0A' * 20} {HOST}:{port} {'0B' * 20}"
        file.write_text(f"authorities = ['{authority}']\ntesting = true\n")
        yield file


def test_relays_that_are_dead(door: Door, dead_network: Path, data_dir: Path) -> None:
    error = failure(door, dead_network, data_dir, "web.test", bytearray())
    assert isinstance(error, door.no_connection)
    assert isinstance(error.__cause__, NotPossible)


def test_a_name_that_is_none(door: Door, network: RunningNetwork, data_dir: Path) -> None:
    error = failure(door, network.file, data_dir, "no-address.onion", bytearray())
    assert isinstance(error, door.no_connection)
    assert isinstance(error.__cause__, TorkitError)


@pytest.mark.parametrize("cut", ["reset", "lost"])
def test_what_has_arrived_comes_before_the_failure(
    door: Door, network: RunningNetwork, data_dir: Path, cut: str
) -> None:
    """Where the destination resets, and where a relay of the circuit is gone."""

    def answer(stream: FakeStream) -> None:
        stream.write(HEAD + BODY)
        if cut == "reset":
            stream.finish(EndReason.CONNRESET)
        else:
            stream.circuit.destroy()

    network.exits["cut.test"] = answer_begin
    network.answers["cut.test"] = answer
    received = bytearray()
    error = failure(door, network.file, data_dir, "cut.test", received)
    assert isinstance(error, door.cut)
    # A lost circuit had brought as much as its windows allow: 500 cells.
    body = bytes(received).removeprefix(HEAD)
    assert body == BODY[: len(body)]
    assert len(body) == len(BODY) if cut == "reset" else len(body) > 240_000
