"""Opens sockets to relays: the only place that does."""

import os
import socket
from collections.abc import Awaitable, Callable

import trio

from torkit.errors import ChannelClosed

# Connects to an IP address and port. Gives a socket that does not block. Raises ChannelClosed.
Dial = Callable[[str, int], Awaitable[socket.socket]]


async def dial_directly(address: str, port: int) -> socket.socket:
    """Connect by TCP, through nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await trio.socket.from_stdlib_socket(sock).connect((address, port))
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno) if error.errno else str(error)  # trio's names the address
        raise ChannelClosed(f"could not connect to the relay: {reason}") from error
    except BaseException:
        sock.close()
        raise
    return sock
