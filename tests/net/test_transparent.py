"""Connections that the kernel has redirected, with real clients on loopback.

What the kernel would tell, the tests say: a real redirection needs a network namespace (test_namespaces.py).
"""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest
import trio
from proxied import Proxy, ScriptedTor, proxy_for, receive_exactly

from torkit.errors import EndReason, StreamClosed
from torkit.net.proxy import serve_proxy, transparent
from torkit.net.proxy.transparent import original_destination, transparent_listener
from torkit.net.proxy.upstream import Upstream
from torkit.proto.automap import Automap


@pytest.fixture(params=[True, False], ids=["ready", "not ready"], autouse=True)
def readiness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedTor, "is_ready", request.param)


@pytest.fixture
def automap() -> Automap:
    return Automap()


@asynccontextmanager
async def transparent_proxy(tor: ScriptedTor, automap: Automap) -> AsyncIterator[Proxy]:
    async def serve(listeners: Sequence[trio.SocketListener], **upstream: Any) -> None:
        await serve_proxy(
            [transparent_listener(listener.socket, automap) for listener in listeners],
            upstream=Upstream(**upstream),
        )

    async with proxy_for(tor, serve=serve) as proxy:
        yield proxy


def redirect(monkeypatch: pytest.MonkeyPatch, address: object, port: int = 443) -> None:
    monkeypatch.setattr(transparent, "original_destination", lambda _: (address, port))


async def is_reset(proxy: Proxy) -> bool:
    """Whether a new client is, perhaps while it still connects."""
    try:
        await (await proxy.client()).receive_some()
    except (OSError, trio.BrokenResourceError):
        return True
    return False


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1"])
async def test_bytes_go_both_ways_to_an_address(
    monkeypatch: pytest.MonkeyPatch, automap: Automap, text: str
) -> None:
    redirect(monkeypatch, ip_address(text))
    tor = ScriptedTor()
    async with transparent_proxy(tor, automap) as proxy:
        client = await proxy.client()
        await client.send_all(b"ping")
        stream = await tor.peers.receive()
        assert [(host, port) for host, port, _ in tor.asked] == [(text, 443)]
        assert await stream.receive_some() == b"ping"
        await stream.send_all(b"pong")
        assert await receive_exactly(client, 4) == b"pong"


async def test_a_made_up_address_stands_for_its_name(
    monkeypatch: pytest.MonkeyPatch, automap: Automap
) -> None:
    for address in automap.addresses_of("web.test"):
        redirect(monkeypatch, address)
        tor = ScriptedTor()
        async with transparent_proxy(tor, automap) as proxy:
            client = await proxy.client()  # whose server speaks first
            stream = await tor.peers.receive()
            await stream.send_all(b"220 welcome")
            assert await receive_exactly(client, 11) == b"220 welcome"
        assert tor.asked[0][:2] == ("web.test", 443)


async def test_a_made_up_address_without_a_name_is_reset(
    monkeypatch: pytest.MonkeyPatch, automap: Automap
) -> None:
    redirect(monkeypatch, ip_address("198.18.0.1"))
    tor = ScriptedTor()
    async with transparent_proxy(tor, automap) as proxy:
        assert await is_reset(proxy)
    assert not tor.asked


async def test_a_connection_that_fails_is_reset(monkeypatch: pytest.MonkeyPatch, automap: Automap) -> None:
    redirect(monkeypatch, ip_address("192.0.2.1"))
    tor = ScriptedTor(failure=StreamClosed("refused", reason=EndReason.CONNECTREFUSED))
    async with transparent_proxy(tor, automap) as proxy:
        assert await is_reset(proxy)


async def test_a_connection_that_was_not_redirected_is_reset(automap: Automap) -> None:
    """It would otherwise come back to us by way of an exit, or for ever within this machine."""
    tor = ScriptedTor()
    async with transparent_proxy(tor, automap) as proxy:
        assert await is_reset(proxy)
    assert not tor.asked


def test_a_socket_without_a_redirection_has_no_original_destination() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        assert original_destination(sock) is None
