"""Opens sockets to relays, and to a proxy that the user has named. Nothing else opens such sockets."""

import os
import socket
from collections.abc import Awaitable, Callable

import trio

from torkit.errors import ChannelClosed, NoProxy
from torkit.net.shortage import check_resources

# Connects to an IP address and port. Returns a socket that does not block. Raises as dial_directly.
Dial = Callable[[str, int], Awaitable[socket.socket]]


async def dial_directly(address: str, port: int) -> socket.socket:
    """Connect by TCP, without a proxy. Raises ChannelClosed, OutOfResources."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return await _connect(family, (address, port))
    except OSError as error:
        raise ChannelClosed(f"could not connect to the relay: {_reason(error)}") from error


async def dial_proxy(place: tuple[str, int] | str) -> trio.SocketStream:
    """Connect to an IP address and port, or to the path of a Unix socket. Raises NoProxy, OutOfResources."""
    family = socket.AF_UNIX
    if not isinstance(place, str):
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    try:
        return trio.SocketStream(trio.socket.from_stdlib_socket(await _connect(family, place)))
    except OSError as error:
        raise NoProxy(f"no proxy can be reached: {_reason(error)}", hint="torkit socks starts one") from error


async def _connect(family: socket.AddressFamily, address: tuple[str, int] | str) -> socket.socket:
    """Raises OSError, OutOfResources."""
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await trio.socket.from_stdlib_socket(sock).connect(address)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, OSError):
            check_resources(error)
        raise
    return sock


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)  # trio's names the address
