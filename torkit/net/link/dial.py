"""Opens sockets to relays: the only place that does."""

import os
import socket
from collections.abc import Awaitable, Callable

import trio

from torkit.errors import ChannelClosed
from torkit.net.shortage import check_resources

# Connects to an IP address and port. Gives a socket that does not block. Raises as dial_directly.
Dial = Callable[[str, int], Awaitable[socket.socket]]


async def dial_directly(address: str, port: int) -> socket.socket:
    """Connect by TCP, through nothing. Raises ChannelClosed, OutOfResources."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await trio.socket.from_stdlib_socket(sock).connect((address, port))
    except BaseException as error:
        if sock is not None:
            sock.close()
        if not isinstance(error, OSError):
            raise
        check_resources(error)
        reason = os.strerror(error.errno) if error.errno else str(error)  # trio's names the address
        raise ChannelClosed(f"could not connect to the relay: {reason}") from error
    return sock
