"""Whether the other end of a connection within this machine still belongs to a program: sock_diag(7).

A socket that its program closed and one that it only shut down for sending look alike on the wire. The
kernel knows the difference, and Linux tells it to everybody.
"""

import socket
import struct

import trio

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
NO_COOKIE = b"\xff" * 8

_HEADER = struct.Struct("=LHHLL")  # length, type, flags, sequence, port id
_QUESTION = struct.Struct("=BBBxL")  # family, protocol, extensions, states
_ID = struct.Struct("!HH16s16s")  # source and destination: ports, addresses
_INODE_AT = _HEADER.size + 4 + 48 + 4 * 4  # state and timers; the socket's id; times, queues, owner


def is_closed_by_program(sock: socket.socket | trio.socket.SocketType) -> bool:
    """Whether no program has the other end of `sock` open; False too where that cannot be known.

    A peer on another machine, or another system than Linux, cannot be asked.
    """
    if not hasattr(socket, "AF_NETLINK"):
        return False
    try:
        ours, theirs = sock.getsockname(), sock.getpeername()
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
        ) as kernel:
            kernel.setblocking(False)
            kernel.send(_question(sock.family, theirs, ours))
            answer = kernel.recv(256)
    except OSError:
        return False
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind != SOCK_DIAG_BY_FAMILY:
        return False
    (inode,) = struct.unpack_from("=L", answer, _INODE_AT)
    return bool(inode == 0)


def _question(family: int, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    addresses = (socket.inet_pton(family, end[0]).ljust(16, b"\0") for end in (source, destination))
    body = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
    body += _ID.pack(source[1], destination[1], *addresses) + bytes(4) + NO_COOKIE
    return _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + body
