"""The proxy at a Unix socket, with real clients, on a circuit through scripted relays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from proxied import CONNECT, GRANTED, GREETING, ScriptedTor, proxy_for, receive_all, receive_exactly

from torkit.cli.listen import Place, listeners_of, listening
from torkit.errors import EndReason
from torkit.net.proxy import carrier, serve_proxy, shared
from torkit.net.proxy.upstream import Upstream


@pytest.fixture(params=[True, False], ids=["ready", "not ready"], autouse=True)
def readiness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedTor, "is_ready", request.param)


@asynccontextmanager
async def client_of(tor: ScriptedTor, directory: Path) -> AsyncIterator[trio.SocketStream]:
    place = Place("unix", str(directory / "proxy"))
    with listening(place) as sock:

        async def serve(unused: list[trio.SocketListener], **upstream: Any) -> None:
            for listener in unused:
                listener.socket.close()
            await serve_proxy(listeners_of([(place, sock)], str, None), upstream=Upstream(**upstream))

        async with proxy_for(tor, serve=serve), await trio.open_unix_socket(place.host) as client:
            yield client


async def test_bytes_go_both_ways_and_the_end_arrives(tmp_path: Path) -> None:
    tor = ScriptedTor()
    async with client_of(tor, tmp_path) as client:
        await client.send_all(GREETING + CONNECT)
        peer = await tor.peers.receive()
        assert await receive_exactly(client, len(GRANTED)) == GRANTED
        await client.send_all(b"ping")
        assert await peer.receive_some() == b"ping"
        await peer.send_all(b"pong")
        await peer.end(EndReason.DONE)
        assert await receive_all(client) == b"pong"
    assert tor.asked[0][2] is not None


async def test_a_client_that_ends_its_direction_still_receives(tmp_path: Path) -> None:
    tor = ScriptedTor()
    async with client_of(tor, tmp_path) as client:
        await client.send_all(GREETING + CONNECT)
        peer = await tor.peers.receive()
        await receive_exactly(client, len(GRANTED))
        await client.send_eof()
        await peer.send_all(b"pong")
        assert await receive_exactly(client, 4) == b"pong"


async def test_what_a_client_sent_before_it_closed_still_goes_out(tmp_path: Path) -> None:
    """A pair of Unix sockets tells of the close at once, with more to read than the windows let go."""
    tor = ScriptedTor()
    async with client_of(tor, tmp_path) as client:
        await client.send_all(GREETING + CONNECT)
        peer = await tor.peers.receive()
        await receive_exactly(client, len(GRANTED))
        await client.send_all(bytes(600_000))
        await client.aclose()
        with trio.fail_after(10):
            await peer.has_ended.wait()
        assert len(peer.fake.received) == 600_000


@pytest.mark.parametrize("has_ended_before", [False, True])
async def test_a_client_that_is_gone_ends_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_ended_before: bool
) -> None:
    monkeypatch.setattr(carrier, "KEEPALIVE_INTERVAL", 0.05)
    monkeypatch.setattr(shared, "KEEPALIVE_INTERVAL", 0.05)
    tor = ScriptedTor()
    async with client_of(tor, tmp_path) as client:
        await client.send_all(GREETING + CONNECT)
        peer = await tor.peers.receive()
        await receive_exactly(client, len(GRANTED))
        if has_ended_before:
            await client.send_eof()
            await trio.sleep(0.1)
        await client.aclose()
        with trio.fail_after(10):
            await peer.has_ended.wait()
