"""A proxy that ends in order: nobody new is let in, and who is connected is served to the end."""

import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from proxied import CONNECT, GREETING, ScriptedTor, proxy_for, receive_all, reset
from waiting import until

from torkit.errors import NoPath
from torkit.net.proxy import listener as listener_module
from torkit.net.proxy import serve_proxy, shared
from torkit.net.proxy.last_call import HANDSHAKE_TIME
from torkit.net.proxy.listener import StreamListener
from torkit.net.proxy.upstream import Upstream
from torkit.proto.first_byte import AnyProtocol

REFUSED = b"\x05\x00\x05\x02"  # to GREETING and CONNECT: no path allows it


class Ending:
    """Serves, and tells when that is over. `settings` are serve_proxy's."""

    def __init__(self, **settings: Any) -> None:
        self.has_begun, self.is_over = trio.Event(), trio.Event()
        self._settings = settings
        self.listeners: list[socket.socket] = []  # of ours in the place of the given ones
        self.is_lent = False

    async def serve(self, listeners: Sequence[trio.SocketListener], *, request: Any, resolve: Any) -> None:
        sockets = [one.socket for one in listeners]
        if self.listeners:
            for unused in sockets:
                unused.close()
            sockets = [trio.socket.from_stdlib_socket(one) for one in self.listeners]
        await serve_proxy(
            [StreamListener(one, lambda _: AnyProtocol(), lent=self.is_lent) for one in sockets],
            upstream=Upstream(request, resolve),
            is_ending=self.has_begun,
            **self._settings,
        )
        self.is_over.set()

    async def begin(self) -> None:
        self.has_begun.set()
        await trio.testing.wait_all_tasks_blocked()


async def test_a_running_stream_goes_on_and_its_end_is_the_end() -> None:
    tor, ending = ScriptedTor(), Ending()
    async with proxy_for(tor, serve=ending.serve) as proxy:
        client, peer = await proxy.open(tor)
        await ending.begin()
        with pytest.raises(OSError, match="connect"):
            await proxy.client()
        await client.send_all(b"ping")
        assert await peer.receive_some() == b"ping"
        assert not ending.is_over.is_set()
        await peer.send_all(b"last words")
        await peer.end()
        assert await receive_all(client) == b"last words"
        await client.aclose()
        with trio.fail_after(10):
            await ending.is_over.wait()


async def test_without_clients_the_end_comes() -> None:
    ending = Ending()
    async with proxy_for(ScriptedTor(), serve=ending.serve, circuit=False):
        await ending.begin()
        with trio.fail_after(10):
            await ending.is_over.wait()


async def test_who_says_nothing_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.01)
    ending = Ending()
    async with proxy_for(ScriptedTor(), serve=ending.serve, circuit=False) as proxy:
        silent, half = await proxy.client(), await proxy.client()
        await half.send_all(GREETING)
        assert await half.receive_some() == b"\x05\x00"
        await ending.begin()
        for client, last_words in (silent, b"\x05\xff"), (half, b"\x05\x06"):  # no method; expired
            assert (await receive_all(client))[:2] == last_words
            await client.aclose()
        with trio.fail_after(10):
            await ending.is_over.wait()


async def test_a_request_that_was_on_its_way_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 60)
    tor, ending = ScriptedTor(failure=NoPath("no exit")), Ending()
    async with proxy_for(tor, serve=ending.serve, circuit=False) as proxy:
        client = await proxy.client()
        await trio.testing.wait_all_tasks_blocked()
        await ending.begin()
        await client.send_all(GREETING + CONNECT)
        assert (await receive_all(client)).startswith(REFUSED)
        await client.aclose()
        with trio.fail_after(10):
            await ending.is_over.wait()


def open_tcp() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def open_tcp6() -> socket.socket:
    return socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=1024)


def open_unix() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # an abstract name of the system's choice
    sock.listen(1024)
    return sock


def connect(listener: socket.socket) -> trio.SocketStream:
    """A client that the kernel has connected; nobody has accepted it, since trio did not run."""
    client = socket.socket(listener.family)
    client.connect(listener.getsockname())
    client.sendall(GREETING + CONNECT)
    client.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(client))


@pytest.mark.parametrize("open_listener", [open_tcp, open_tcp6, open_unix])
async def test_whoever_the_kernel_has_connected_is_served(
    open_listener: Callable[[], socket.socket],
) -> None:
    """More than are accepted in one turn, with their requests sent; nobody else is let in."""
    ending = Ending()
    with open_listener() as sock:
        ending.listeners = [sock]
        async with proxy_for(ScriptedTor(failure=NoPath("no exit")), serve=ending.serve, circuit=False):
            await trio.testing.wait_all_tasks_blocked()
            clients = [connect(sock) for _ in range(2 * listener_module.ACCEPTED_PER_TURN + 7)]
            address = sock.getsockname()
            ending.has_begun.set()
            for client in clients:
                assert (await receive_all(client)).startswith(REFUSED)
                await client.aclose()
            with trio.socket.socket(sock.family) as late, pytest.raises(ConnectionRefusedError):
                await late.connect(address)
            with trio.fail_after(10):
                await ending.is_over.wait()


async def test_who_waits_for_room_is_served_once_there_is_some() -> None:
    tor, ending = ScriptedTor(is_silent=True), Ending(max_clients=1)
    with open_tcp() as sock:
        ending.listeners = [sock]
        async with proxy_for(tor, serve=ending.serve, circuit=False):
            await trio.testing.wait_all_tasks_blocked()
            first = connect(sock)
            await until(lambda: len(tor.asked) == 1)
            second = connect(sock)
            ending.has_begun.set()
            await trio.sleep(2 * HANDSHAKE_TIME)
            assert len(tor.asked) == 1
            reset(first)
            await until(lambda: len(tor.asked) == 2)
            assert not ending.is_over.is_set()
            reset(second)
            with trio.fail_after(10):
                await ending.is_over.wait()


@pytest.mark.parametrize("open_listener", [open_tcp, open_unix])
async def test_a_socket_that_is_lent_lets_clients_in_for_its_next_listener(
    open_listener: Callable[[], socket.socket],
) -> None:
    ending = Ending()
    with open_listener() as sock:
        ending.listeners, ending.is_lent = [sock.dup()], True
        async with proxy_for(ScriptedTor(), serve=ending.serve, circuit=False):
            await ending.begin()
            client = connect(sock)
            with trio.fail_after(10):
                await ending.is_over.wait()
            accepted, _ = sock.accept()
            with accepted:
                assert accepted.recv(100) == GREETING + CONNECT
            await client.aclose()


async def test_a_request_that_waits_for_its_circuit_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedTor, "is_ready", False)
    tor, ending, goes_on = ScriptedTor(), Ending(), trio.Event()

    async def answer_late() -> None:
        await goes_on.wait()
        raise NoPath("no exit")

    monkeypatch.setattr(tor, "_answer_as_told", answer_late)
    async with proxy_for(tor, serve=ending.serve) as proxy, trio.open_nursery() as nursery:
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await proxy.ask(GREETING + CONNECT))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await ending.begin()
        assert not ending.is_over.is_set()
        goes_on.set()
        with trio.fail_after(10):
            await ending.is_over.wait()
    assert answers[0].startswith(b"\x05\x00\x05\x02")


async def test_running_streams_end_where_the_end_is_cut_short() -> None:
    tor, ending = ScriptedTor(), Ending()
    async with proxy_for(tor, serve=ending.serve) as proxy:
        client, peer = await proxy.open(tor)
        await ending.begin()
        proxy.scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await peer.has_ended.wait()
