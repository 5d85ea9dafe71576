"""The connection to an onion service's server: by name, to one that is late, and to none."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from torkit.net.circuit.stream import Stream
from torkit.net.hosting.forward import Forwarder, Target, _begin, _connect_by_name, _wait_connected


@contextmanager
def a_server(backlog: int = 5) -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        yield server


async def resolve(host: str, port: int, family: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    """The system's, which knows one name, and does not block."""
    await trio.lowlevel.checkpoint()
    assert host == "server.test"
    return [(family, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]


async def connect(target: Target) -> socket.socket:
    if target.is_name:
        return await _connect_by_name(target)
    sock, is_connected = _begin(target.family, target.address)
    return sock if is_connected else await _wait_connected(sock)


@pytest.mark.parametrize("host", ["127.0.0.1", "server.test"])
async def test_a_server_is_connected_to_by_address_and_by_name(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio.socket.getaddrinfo", resolve)
    with a_server() as server, await connect(Target(host, server.getsockname()[1])) as ours:
        theirs, peer = server.accept()
        with theirs:
            assert peer == ours.getsockname()
            assert not ours.getblocking()
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            theirs.send(b"x")
            await trio.lowlevel.wait_readable(ours)
            assert ours.recv(2) == b"x"


async def test_a_server_that_is_late_is_waited_for() -> None:
    """Its queue is full, so the kernel has to ask again."""
    with a_server(backlog=0) as server:
        target = Target("127.0.0.1", server.getsockname()[1])
        first = await connect(target)
        made: list[socket.socket] = []

        async def make() -> None:
            made.append(await connect(target))

        with first:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(make)
                await trio.testing.wait_all_tasks_blocked()
                assert not made
                server.accept()[0].close()
            with made[0], server.accept()[0] as theirs:
                theirs.send(b"x")
                await trio.lowlevel.wait_readable(made[0])
                assert made[0].recv(2) == b"x"


async def test_where_no_server_is_the_reason_is_told(tmp_path: Path) -> None:
    with a_server() as server:
        port = server.getsockname()[1]
    for target in (Target("127.0.0.1", port), Target("::1", port)):
        with pytest.raises(ConnectionRefusedError):
            await connect(target)
    with pytest.raises(FileNotFoundError):
        await connect(Target(str(tmp_path / "none")))


async def test_a_server_that_accepts_when_the_service_has_ended_is_left() -> None:
    class Asked:
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    with a_server(backlog=0) as server:
        target = Target("127.0.0.1", server.getsockname()[1])
        with await connect(target):
            asked = Asked()
            async with trio.open_nursery() as nursery:
                forwarder = Forwarder({80: target}, nursery, 1)
                forwarder.take(cast(Stream, asked), 80)
                await trio.testing.wait_all_tasks_blocked()
                forwarder.close()
                assert forwarder.count == 1
                server.accept()[0].close()
            assert forwarder.count == 0
            assert asked.is_closed
            with server.accept()[0] as theirs:
                assert theirs.recv(1) == b""
