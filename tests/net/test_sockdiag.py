"""Connections within this machine, and what the kernel knows of their other ends."""

import socket
import sys
from collections.abc import Iterator

import pytest

from torkit.net.proxy.sockdiag import SockDiag, _question

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked")


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end of a connection, and ours."""
    family, host = request.param
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((host, 0))
        listener.listen()
        client.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            yield client, ours


@pytest.fixture
def kernel() -> Iterator[SockDiag]:
    kernel = SockDiag()
    yield kernel
    kernel.close()


def test_open_end_is_not_closed(kernel: SockDiag, ends: tuple[socket.socket, socket.socket]) -> None:
    _, ours = ends
    assert not kernel.is_closed_by_program(ours)


def test_end_shut_down_for_sending_is_not_closed(
    kernel: SockDiag, ends: tuple[socket.socket, socket.socket]
) -> None:
    client, ours = ends
    client.shutdown(socket.SHUT_WR)
    assert not kernel.is_closed_by_program(ours)


def test_closed_end_is_closed(kernel: SockDiag, ends: tuple[socket.socket, socket.socket]) -> None:
    client, ours = ends
    client.close()
    assert kernel.is_closed_by_program(ours)


def test_each_answer_is_for_the_question_just_asked(
    kernel: SockDiag, ends: tuple[socket.socket, socket.socket]
) -> None:
    """One socket asks them all, and an answer left lying must not be taken for the next."""
    client, ours = ends
    assert not kernel.is_closed_by_program(ours)
    assert kernel._kernel is not None
    kernel._kernel.send(_question(0xFFFF, ours.family, ours.getpeername(), ours.getsockname()))
    client.close()
    assert kernel.is_closed_by_program(ours)
    assert kernel.is_closed_by_program(ours)
