"""What has arrived for a client of the proxy is delivered, however late it reads and its stream ends."""

import fcntl
import gc
import socket
import termios
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from proxied import CONNECT, GREETING, Peer, Proxy, ScriptedTor, proxy_for, receive_all
from waiting import until_by_the_wall

from torkit._fast import memory
from torkit._fast.cells import RelayCommand
from torkit.errors import EndReason
from torkit.net.descriptors import DELIVERY_TIMEOUT
from torkit.net.proxy import farewell, serve_socks

BODY = (
    bytes(range(250)) * 800
)  # 200,000 bytes: less than a stream's window, more than a client's socket takes
FEW = 16_384  # bytes of a socket's buffer; with less, the kernel's timers slow everything down

FAILURES = [reason for reason in EndReason if reason is not EndReason.DONE]


async def late_client(proxy: Proxy, tor: ScriptedTor) -> tuple[trio.SocketStream, Peer]:
    """One whose socket takes little before it is read."""
    client, peer = await proxy.open(tor)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FEW)
    return client, peer


async def until_its_socket_is_full(client: trio.SocketStream) -> None:
    """Wait until the kernel takes no more: into the rest of a window it puts bytes by a timer only."""
    taken, since = b"", time.monotonic()
    while time.monotonic() - since < 1:
        now = fcntl.ioctl(client.socket.fileno(), termios.FIONREAD, bytes(4))
        if now != taken:
            taken, since = now, time.monotonic()
        await trio.testing.wait_all_tasks_blocked(0.05)


async def receive_until_reset(client: trio.SocketStream) -> bytes:
    received = bytearray()
    try:
        while data := await client.receive_some():
            received += data
    except trio.BrokenResourceError:
        return bytes(received)
    raise AssertionError(f"an end of file after {len(received)} bytes")


async def until_failed(caplog: pytest.LogCaptureFixture, count: int = 1) -> None:
    await until_by_the_wall(lambda: caplog.text.count("a stream failed") >= count)


@pytest.mark.parametrize("send_buffer", [None, FEW], ids=["the kernel holds all", "the stream holds some"])
async def test_all_that_has_arrived_comes_before_the_reset(
    caplog: pytest.LogCaptureFixture, send_buffer: int | None
) -> None:
    caplog.set_level("INFO", logger="torkit")
    tor = ScriptedTor()
    async with proxy_for(tor, send_buffer=send_buffer) as proxy:
        for count, reason in enumerate(FAILURES, 1):
            client, peer = await late_client(proxy, tor)
            await peer.send_all(BODY)
            await peer.end(reason)
            await until_failed(caplog, count)
            assert await receive_until_reset(client) == BODY, reason


async def test_a_client_that_came_before_the_proxy_served_is_reset_all_the_same() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with await trio.open_tcp_stream(*listener.socket.getsockname()) as client:
        await client.send_all(GREETING + CONNECT)

        async def serve(unused: list[trio.SocketListener], **upstream: Any) -> None:
            await unused[0].aclose()
            await serve_socks([listener], **upstream)

        tor = ScriptedTor()
        async with proxy_for(tor, serve=serve):
            peer = await tor.peers.receive()
            await peer.send_all(BODY)
            await peer.end(EndReason.MISC)
            assert (await receive_until_reset(client)).endswith(BODY)


def destroy(peer: Peer) -> None:
    peer.fake.circuit.destroy()


def lose_the_guard(peer: Peer) -> None:
    peer.fake.circuit.link.close(abrupt=True)


def break_the_protocol(peer: Peer) -> None:
    peer.fake.circuit.send(3, RelayCommand.CONNECTED, peer.fake.id)


@pytest.mark.parametrize("send_buffer", [None, FEW], ids=["the kernel holds all", "the stream holds some"])
@pytest.mark.parametrize("lose", [destroy, lose_the_guard, break_the_protocol])
async def test_all_that_has_arrived_comes_though_the_circuit_is_lost(
    caplog: pytest.LogCaptureFixture, lose: Callable[[Peer], None], send_buffer: int | None
) -> None:
    caplog.set_level("INFO", logger="torkit")
    tor = ScriptedTor()
    async with proxy_for(tor, send_buffer=send_buffer) as proxy:
        client, peer = await late_client(proxy, tor)
        await peer.send_all(BODY)
        lose(peer)
        await until_failed(caplog)
        assert await receive_until_reset(client) == BODY


async def test_client_that_writes_all_before_it_reads_gets_an_early_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="torkit")
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await late_client(proxy, tor)
        await peer.send_all(BODY)
        await peer.end(EndReason.CONNRESET)
        await until_failed(caplog)
        await client.send_all(bytes(20_000_000))
        assert await receive_until_reset(client) == BODY


async def test_late_client_that_goes_on_sending_gets_all_before_a_good_end(
    mock_clock: trio.testing.MockClock,
) -> None:
    """A close with bytes of its own unread would be a reset, which takes back what the kernel holds."""
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await late_client(proxy, tor)
        await peer.send_all(BODY)
        await peer.end()
        await trio.testing.wait_all_tasks_blocked(0.1)
        for _ in range(3):
            mock_clock.jump(2 * farewell.LINGER_TIMEOUT)
            await client.send_all(b"still talking")
            await trio.testing.wait_all_tasks_blocked(0.1)
        assert await receive_all(client) == BODY


@pytest.mark.parametrize("reason", [EndReason.DONE, EndReason.MISC])
async def test_client_that_never_reads_is_reset_in_the_end(
    mock_clock: trio.testing.MockClock, reason: EndReason
) -> None:
    tor = ScriptedTor()
    async with proxy_for(tor, send_buffer=FEW) as proxy:
        client, peer = await late_client(proxy, tor)
        await peer.send_all(BODY)
        await peer.end(reason)
        await until_its_socket_is_full(client)
        for seconds in (1, DELIVERY_TIMEOUT - 1):
            await trio.testing.wait_all_tasks_blocked(0.1)
            mock_clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await client.send_all(b"still there")  # which fails after a reset
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert len(await receive_until_reset(client)) < len(BODY)


async def test_client_whose_bytes_were_dropped_for_memory_is_reset_though_the_peer_ended_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gc.collect()  # what other tests left and nobody can reach counts
    tor = ScriptedTor()
    limit = memory.limit()
    async with proxy_for(tor, send_buffer=FEW) as proxy:
        client, peer = await late_client(proxy, tor)
        await peer.send_all(BODY)
        await peer.end()
        await until_by_the_wall(lambda: memory.held() > len(BODY) // 2)
        memory.set_limit(0)
        try:
            await client.send_all(b"something for the pump to look at")
            await until_by_the_wall(lambda: memory.held() < len(BODY) // 2)
        finally:
            memory.set_limit(limit)
        assert "held most" in caplog.text
        assert len(await receive_until_reset(client)) < len(BODY)


async def test_what_ended_streams_hold_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who have waited longest pay, but never the newest."""
    caplog.set_level("INFO", logger="torkit")
    monkeypatch.setattr(farewell, "FAREWELL_BYTES_MAX", 1)
    tor = ScriptedTor()
    async with proxy_for(tor, send_buffer=FEW) as proxy:
        clients = []
        for _ in range(3):
            client, peer = await late_client(proxy, tor)
            await peer.send_all(BODY)
            await peer.end(EndReason.MISC)
            clients.append(client)
            await until_failed(caplog, len(clients))
        *older, newest = [len(await receive_until_reset(client)) for client in clients]
        assert max(older) < len(BODY)
        assert newest == len(BODY)
