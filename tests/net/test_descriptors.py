"""Output on a connection is delivered before the program that wrote it ends."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from torkit.net import descriptors
from torkit.net.descriptors import undelivered, wait_until_delivered

BODY = bytes(range(250)) * 800  # more than the peer's socket takes before it is read
FEW = 16_384  # bytes of a socket's buffer; with less, the kernel's timers slow everything down
RESET = struct.pack("ii", 1, 0)


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours, which takes all of BODY at once, and a peer whose socket takes little before it is read."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FEW)
        peer.connect(server.getsockname())
        ours, _ = server.accept()
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(BODY))
            yield ours, peer


def read_all(peer: socket.socket) -> bytes:
    received = bytearray()
    while data := peer.recv(1 << 16):
        received += data
    return bytes(received)


def test_a_peer_that_reads_late_gets_all_though_input_waits() -> None:
    """The reset of a connection that is closed with unread input took back what was not delivered."""
    with connection() as (ours, peer):
        peer.sendall(b"what nobody reads")
        ours.sendall(BODY)
        assert undelivered(ours.fileno()) > 0
        late: list[bytes] = []

        def read() -> None:
            received = bytearray()
            while len(received) < len(BODY):
                received += peer.recv(1 << 16)
            late.append(bytes(received))

        reader = threading.Timer(0.1, read)
        reader.start()
        wait_until_delivered(ours.fileno())
        ours.close()
        reader.join()
        assert late == [BODY]


def test_a_peer_that_resets_has_not_got_all() -> None:
    with connection() as (ours, peer):
        ours.sendall(BODY)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        with pytest.raises(BrokenPipeError):
            wait_until_delivered(ours.fileno())


def test_a_peer_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "DELIVERY_TIMEOUT", 0.1)
    with connection() as (ours, _):
        ours.sendall(BODY)
        with pytest.raises(TimeoutError):
            wait_until_delivered(ours.fileno())


def test_what_is_no_connection_is_not_waited_for() -> None:
    """A Unix socket and a pipe keep what was written to them when they are closed."""
    near, far = socket.socketpair()
    reading, writing = os.pipe()
    with (
        near,
        far,
        os.fdopen(reading),
        os.fdopen(writing, "wb", buffering=0) as pipe,
        open(os.devnull) as null,
    ):
        near.send(b"unread")
        pipe.write(b"unread")
        for descriptor in (near.fileno(), pipe.fileno(), null.fileno()):
            wait_until_delivered(descriptor)
