"""Carries bytes both ways between a client and a stream behind another proxy.

Both are sockets, so the end of one direction passes as it is. Tasks do the work: the core has nothing to
seal here.
"""

import socket
from collections.abc import Callable
from contextlib import suppress

import trio

from torkit.errors import TorkitError
from torkit.net.descriptors import READ_SIZE
from torkit.net.via import ViaStream


async def relay(sock: socket.socket, far: ViaStream, early: bytes, on_end: Callable[[], None]) -> None:
    """Carry `early` and what comes on `sock` to `far`, and back. Returns when `far` has ended in good order.

    `on_end` is called when the client has ended its direction; it may be gone. Raises OSError where `sock`
    fails, StreamClosed where `far` does.
    """
    failures: list[Exception] = []

    async def upload() -> None:
        try:
            if early:
                await far.send_all(early)
            while data := await receive(sock):
                await far.send_all(data)
            on_end()
            await far.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the other direction knows why
        except OSError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async def download() -> None:
        try:
            while data := await far.receive_some():
                await send(sock, data)
        except (TorkitError, OSError) as error:
            failures.append(error)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        nursery.start_soon(download)
    if failures:
        raise failures[0]


async def receive(sock: socket.socket) -> bytes:
    """Read some bytes of a socket that does not block. Returns b"" at its end."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        with suppress(BlockingIOError, InterruptedError):
            return sock.recv(READ_SIZE)


async def send(sock: socket.socket, data: bytes | bytearray) -> None:
    """Write all of `data` to a socket that does not block."""
    left = memoryview(data)
    while left:
        with suppress(BlockingIOError, InterruptedError):
            left = left[sock.send(left) :]
        if left:
            await trio.lowlevel.wait_writable(sock)
