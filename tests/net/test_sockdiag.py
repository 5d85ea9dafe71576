"""Connections within this machine, and what the kernel knows of their other ends."""

import socket
import sys
from collections.abc import Iterator

import pytest
import trio

from torkit.net.sockdiag import is_closed_by_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked")


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, trio.socket.SocketType]]:
    """A client's end of a connection, and ours."""
    family, host = request.param
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((host, 0))
        listener.listen()
        client.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            yield client, trio.socket.from_stdlib_socket(ours)


def test_open_end_is_not_closed(ends: tuple[socket.socket, trio.socket.SocketType]) -> None:
    _, ours = ends
    assert not is_closed_by_program(ours)


def test_end_shut_down_for_sending_is_not_closed(ends: tuple[socket.socket, trio.socket.SocketType]) -> None:
    client, ours = ends
    client.shutdown(socket.SHUT_WR)
    assert not is_closed_by_program(ours)


def test_closed_end_is_closed(ends: tuple[socket.socket, trio.socket.SocketType]) -> None:
    client, ours = ends
    client.close()
    assert is_closed_by_program(ours)
