"""Sockets that a service manager has opened and hands over: `--listen systemd` (sd_listen_fds(3))."""

import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

from torkit.errors import UsageError

FIRST = 3  # SD_LISTEN_FDS_START: the descriptor of the first
MAX_HANDED = 64  # implementation limit

KINDS = ("auth", "trans")  # of listeners, by FileDescriptorName=


class Handed(NamedTuple):
    """One socket that listens, or is bound. `host` is an IP address, or the path of a Unix socket."""

    kind: str  # as Place.kind
    host: str
    port: int
    descriptor: int


def handed_over(name: str, environment: Mapping[str, str]) -> list[Handed]:
    """Returns the sockets with this FileDescriptorName=, or all if it is empty. Raises UsageError for none.

    UDP is for DNS; a stream's name may be `trans` or `auth` for those kinds of listener.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        raise UsageError("--listen: no service manager has handed over sockets", hint="see docs/service.md")
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal() or not 0 < int(count) <= MAX_HANDED:
        raise UsageError(f"--listen: LISTEN_FDS is {count!r}, not a number from 1 to {MAX_HANDED}")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    names += [""] * (int(count) - len(names))
    handed = [
        _look_at(FIRST + number, names[number])
        for number in range(int(count))
        if not name or names[number] == name
    ]
    if not handed:
        raise UsageError(f"--listen: no socket is handed over as {name!r}")
    return handed


def _look_at(descriptor: int, name: str) -> Handed:
    """Returns the use of one socket. Raises UsageError for a socket that nobody can connect to."""
    try:
        os.set_inheritable(descriptor, False)
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            family, is_datagram = sock.family, sock.type == socket.SOCK_DGRAM
            is_open = is_datagram or bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            address = sock.getsockname()
    except OSError as error:
        raise UsageError(f"--listen: descriptor {descriptor} is no socket: {error.strerror}") from None
    kind = "dns" if is_datagram else name if name in KINDS else "proxy"
    if is_open and family in (socket.AF_INET, socket.AF_INET6):
        return Handed(kind, address[0], address[1], descriptor)
    if is_open and family == socket.AF_UNIX and kind == "proxy":
        return Handed("unix", os.fsdecode(address), 0, descriptor)
    raise UsageError(f"--listen: descriptor {descriptor} is no socket that listens for {kind}")
