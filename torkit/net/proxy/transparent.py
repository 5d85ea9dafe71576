"""The front door of connections that the kernel has redirected; the kernel tells each one's destination.

Such a client gets nothing but its peer's bytes. It believes itself connected before it is, and learns of a
failure by a reset. (C tor: TransPort.)
"""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import trio

from torkit.errors import TorkitError, UsageError
from torkit.net.proxy.isolation import Isolation
from torkit.net.proxy.listener import StreamListener
from torkit.proto.automap import Automap, is_made_up
from torkit.proto.request import Command, Request

SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>; IP6T_SO_ORIGINAL_DST is the same number


class Redirected:
    """One connection: its request is complete before its first byte."""

    def __init__(self, host: str, port: int) -> None:
        self.request: Request | None = Request(Command.CONNECT, host, port)
        self.trailing_data = b""  # its bytes wait in its socket

    def receive_data(self, data: bytes) -> Request | None:
        raise UsageError("a redirected connection has its request")

    def data_to_send(self) -> bytes:
        return b""

    def give_up(self) -> None:
        """Do nothing: such a client can be told nothing."""

    def encode_grant(self) -> bytes:
        return b""

    def encode_answer(self, host: str) -> bytes:
        raise UsageError("a redirected connection asks for no name")

    def encode_refusal(self, error: TorkitError) -> bytes:
        return b""


def transparent_listener(
    listener: trio.socket.SocketType,
    automap: Automap,
    isolation: Isolation | None = None,
    *,
    lent: bool = False,
) -> StreamListener:
    """Returns a source for connections redirected to `listener`. A made-up address stands for its name."""

    def make_door(accepted: socket.socket) -> Redirected | None:
        target = original_destination(accepted)
        if target is None:
            return None
        address, port = target
        if not is_made_up(address):
            return Redirected(str(address), port)
        name = automap.name_of(address)
        return None if name is None else Redirected(name, port)

    return StreamListener(listener, make_door, isolation, lent=lent)


Target = tuple[IPv4Address | IPv6Address, int]


def original_destination(accepted: socket.socket) -> Target | None:
    """Returns the destination of a redirected connection; None if it was made to us."""
    try:
        if accepted.family == socket.AF_INET6:
            # struct sockaddr_in6: family, port, flow, address, scope
            data = accepted.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            port, packed = struct.unpack_from("!2xH4x16s", data)
        else:
            data = accepted.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
            port, packed = struct.unpack_from("!2xH4s", data)
        own = accepted.getsockname()
    except OSError:
        return None
    address = IPv6Address(packed) if len(packed) == 16 else IPv4Address(packed)
    return None if (str(address), port) == own[:2] or port == 0 else (address, port)
