"""Streams and look-ups through a proxy that runs already, on a circuit through scripted relays."""

import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from fake_tor import FakeAnswer
from proxied import CONNECT, GRANTED, GREETING, Proxy, ScriptedTor, proxy_for, receive_all, receive_exactly

from torkit.client import Tor
from torkit.errors import EndReason, NoProxy, OnionServiceError, OnionStep, StreamClosed, TimedOut, UsageError
from torkit.net.proxy import Isolate, carrier, serve_socks, shared
from torkit.net.via import Via, ViaAnswer
from torkit.proto.http import GRANTED as HTTP_GRANTED
from torkit.proto.socks_client import Credentials

PUBLIC = SimpleNamespace(testing=False)


def via_of(proxy: Proxy, credentials: Credentials | None = None) -> Via:
    return Via(proxy._address, credentials, network=PUBLIC)


@asynccontextmanager
async def chained(tor: ScriptedTor, **settings: Any) -> AsyncIterator[Proxy]:
    """A proxy whose streams are another's."""
    async with proxy_for(tor) as second:
        via = via_of(second)

        async def serve(listeners: Any, **_: Any) -> None:
            await serve_socks(listeners, request=via.request, resolve=via.resolve, **settings)

        async with proxy_for(ScriptedTor(), circuit=False, serve=serve) as first:
            yield first


async def test_bytes_go_both_ways_and_the_end_arrives() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy, await via_of(proxy).connect("web.test", 80) as stream:
        peer = await tor.peers.receive()
        await stream.send_all(b"ping")
        assert await peer.receive_some() == b"ping"
        await peer.send_all(b"pong")
        await peer.end()
        assert await stream.receive_some(2) == b"po"
        assert await stream.receive_some() == b"ng"
        assert await stream.receive_some() == b""
    assert tor.asked[0][:2] == ("web.test", 80)  # the name as it is


async def test_a_stream_that_fails_is_no_end_of_file() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy, await via_of(proxy).connect("web.test", 80) as stream:
        peer = await tor.peers.receive()
        await peer.send_all(b"half")
        await peer.end(EndReason.MISC)
        assert await stream.receive_some() == b"half"
        with pytest.raises(StreamClosed, match="cut"):
            await stream.receive_some()


async def test_a_stream_that_is_settled_has_delivered_all_and_ends() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        via = via_of(proxy)
        stream = await via.connect("web.test", 80)
        peer = await tor.peers.receive()
        await peer.send_all(b"unread" * 1_000)
        sent = bytes(300_000)
        await stream.send_all(sent)
        await via.settle(stream)
        received = 0
        with trio.fail_after(10):
            while received < len(sent):
                received += len(await peer.receive_some())
            await peer.has_ended.wait()


async def test_what_the_proxy_says_is_what_is_raised() -> None:
    tor = ScriptedTor(failure=StreamClosed("", reason=EndReason.CONNECTREFUSED))
    async with proxy_for(tor, circuit=False) as proxy:
        with pytest.raises(StreamClosed, match="refused") as caught:
            await via_of(proxy).connect("web.test", 80)
    assert caught.value.reason is EndReason.CONNECTREFUSED


async def test_look_ups_are_the_proxys() -> None:
    tor = ScriptedTor(answers=[FakeAnswer("ipv6", "2001:db8::1"), FakeAnswer("hostname", "web.test")])
    async with proxy_for(tor, circuit=False) as proxy:
        via = via_of(proxy)
        assert await via.resolve("web.test") == [ViaAnswer("ipv6", "2001:db8::1")]
        assert await via.resolve("192.0.2.1") == [ViaAnswer("hostname", "web.test")]
    assert [asked[0] for asked in tor.asked] == ["web.test", "192.0.2.1"]


async def test_each_client_is_apart_unless_it_names_the_credentials_of_others() -> None:
    tor = ScriptedTor(answers=[FakeAnswer("ipv4", "192.0.2.1")])
    named = Credentials(b"me", b"")
    async with proxy_for(tor, circuit=False) as proxy:
        for via in (via_of(proxy), via_of(proxy), via_of(proxy, named), via_of(proxy, named)):
            await via.resolve("web.test")
    isolations = [asked[1] for asked in tor.asked]
    assert len(set(isolations)) == 3
    assert isolations[2] == isolations[3]


@pytest.mark.parametrize("host", ["localhost", "10.0.0.1", "web.exit"])
async def test_what_no_exit_can_reach_is_not_asked_for(host: str) -> None:
    with pytest.raises(UsageError):
        await Via(("127.0.0.1", 1), network=PUBLIC).connect(host, 80)


async def test_a_name_in_onion_is_connected_to_and_not_looked_up() -> None:
    tor = ScriptedTor(failure=OnionServiceError.at(OnionStep.NOT_FOUND))
    async with proxy_for(tor, circuit=False) as proxy:
        with pytest.raises(OnionServiceError, match=r"no directory has .* descriptor"):
            await via_of(proxy).connect("a.onion", 80)
        with pytest.raises(UsageError):
            await via_of(proxy).resolve("a.onion")
    assert [asked[0] for asked in tor.asked] == ["a.onion"]


async def test_a_proxy_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()
    for place in (nobody, str(tmp_path / "nothing"), str(tmp_path / ("x" * 200))):
        with pytest.raises(NoProxy) as caught:
            await Via(place, network=PUBLIC).wait_ready()
        assert caught.value.hint is not None


async def test_a_proxy_that_says_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TimedOut, match="180 s"):
        await Via(server.getsockname(), network=PUBLIC).connect("web.test", 80)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n\r\n", b"\x05\x00", b"\x05\x02\x01"])
async def test_what_is_no_proxy_is_told_and_learns_no_destination(answer: bytes) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    heard = b""

    async def answer_once() -> None:
        nonlocal heard
        async with listener, await listener.accept() as client:
            heard += await client.receive_some()
            await client.send_all(answer)
            await client.send_eof()
            heard += await receive_all(client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_once)
        with pytest.raises(NoProxy):
            await Via(listener.socket.getsockname(), network=PUBLIC).connect("web.test", 80)
    assert b"web.test" not in heard


@pytest.mark.parametrize("name", ["wait_ready", "connect", "resolve", "settle"])
def test_a_proxy_takes_what_a_client_takes(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(one, name)).parameters for one in (Via, Tor))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


# --- a proxy behind which there is another: `torkit run --via` -------------------------------------------


async def test_a_client_is_carried_to_the_other_proxy() -> None:
    tor = ScriptedTor()
    async with chained(tor) as proxy:
        client, peer = await proxy.open(tor, GREETING + CONNECT + b"early")
        assert await peer.receive_some() == b"early"
        await client.send_all(b"ping")
        assert await peer.receive_some() == b"ping"
        await peer.send_all(b"pong")
        await peer.end()
        assert await receive_all(client) == b"pong"


async def test_http_is_carried_to_the_other_proxy() -> None:
    tor = ScriptedTor()
    async with chained(tor) as proxy:
        client = await proxy.client()
        await client.send_all(b"CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\n\r\n")
        peer = await tor.peers.receive()
        assert await receive_exactly(client, len(HTTP_GRANTED)) == HTTP_GRANTED
        await peer.send_all(b"pong")
        assert await receive_exactly(client, 4) == b"pong"
        other = await proxy.client()
        await other.send_all(b"GET http://web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n")
        peer = await tor.peers.receive()
        assert (await peer.receive_some()).startswith(b"GET / HTTP/1.1\r\n")
        await peer.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere")
        assert (await receive_all(other)).endswith(b"\r\n\r\nhere")


async def test_a_stream_that_fails_behind_the_other_proxy_resets_the_client() -> None:
    tor = ScriptedTor()
    async with chained(tor) as proxy:
        client, peer = await proxy.open(tor)
        await peer.send_all(b"half")
        await peer.end(EndReason.MISC)
        assert await receive_exactly(client, 4) == b"half"
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


async def test_a_client_that_ends_its_direction_still_receives() -> None:
    tor = ScriptedTor()
    async with chained(tor) as proxy:
        client, peer = await proxy.open(tor)
        await client.send_all(b"last")
        await client.send_eof()
        assert await peer.receive_some() == b"last"
        await peer.send_all(b"pong")
        assert await receive_exactly(client, 4) == b"pong"


@pytest.mark.parametrize("has_ended_before", [False, True])
async def test_a_client_that_is_gone_ends_its_stream(
    monkeypatch: pytest.MonkeyPatch, has_ended_before: bool
) -> None:
    monkeypatch.setattr(carrier, "KEEPALIVE_INTERVAL", 0.05)
    monkeypatch.setattr(shared, "KEEPALIVE_INTERVAL", 0.05)
    tor = ScriptedTor()
    async with chained(tor) as proxy:
        client, peer = await proxy.open(tor)
        if has_ended_before:
            await client.send_eof()
            await trio.sleep(0.1)
        await client.aclose()
        with trio.fail_after(10):
            await peer.has_ended.wait()


async def test_refusals_pass_through_both_proxies() -> None:
    tor = ScriptedTor(failure=StreamClosed("", reason=EndReason.CONNECTREFUSED))
    async with chained(tor) as proxy:
        assert (await proxy.ask(GREETING + CONNECT))[: len(GRANTED) - 8] == b"\x05\x00\x05\x05"


async def test_credentials_of_clients_are_carried_over_as_isolation() -> None:
    def by(user: bytes) -> bytes:
        return b"\x05\x01\x02" + b"\x01" + bytes([len(user)]) + user + b"\x01p" + CONNECT

    tor = ScriptedTor(failure=StreamClosed("", reason=EndReason.MISC))
    async with chained(tor) as proxy:
        for user in (b"a", b"b", b"a"):
            await proxy.ask(by(user))
    isolations = [asked[2] for asked in tor.asked]
    assert isolations[0] == isolations[2] != isolations[1]


async def test_every_stream_has_an_isolation_of_its_own_where_asked() -> None:
    tor = ScriptedTor(failure=StreamClosed("", reason=EndReason.MISC))
    async with chained(tor, isolate=[Isolate.STREAM]) as proxy:
        for _ in range(3):
            await proxy.ask(GREETING + CONNECT)
    assert len({asked[2] for asked in tor.asked}) == 3
