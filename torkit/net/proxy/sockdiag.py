"""Asks the kernel whether a program still has the other end of a local connection: sock_diag(7).

A closed socket and one that was only shut down for sending look alike on the wire. The kernel knows the
difference, and Linux tells it to everybody.
"""

import select
import socket
import struct

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
ALL_STATES = 0xFFFFFFFF
NO_COOKIE = b"\xff" * 8

_HEADER = struct.Struct("=LHHLL")  # length, type, flags, sequence, port id
_QUESTION = struct.Struct(
    "=LHHLL"  # as above
    "BBBxL"  # family, protocol, extensions, states
    "HH16s16s"  # source and destination: ports, as on the wire; addresses
    "4x8s"  # interface, cookie
)
_INODE_AT = _HEADER.size + 4 + 48 + 4 * 4  # state and timers; the socket's id; times, queues, owner


class SockDiag:
    """Asks the kernel. Its socket is opened with the first question, and kept.

    The socket knows the connections of the network namespace that it was opened in. `kernel` is a socket of
    another namespace.
    """

    def __init__(self, kernel: socket.socket | None = None) -> None:
        self._kernel = kernel
        if kernel is not None:
            kernel.setblocking(False)
        self._asked = 0

    def is_closed_by_program(self, sock: socket.socket) -> bool:
        """Returns whether no program has the other end of `sock` open; False where that cannot be known.

        A peer on another machine, or another system than Linux, cannot be asked.
        """
        family = sock.family  # once: each time makes a member of an enumeration
        if family == socket.AF_UNIX:
            poll = select.poll()
            poll.register(sock, 0)
            return any(event & select.POLLHUP for _, event in poll.poll(0))
        if not hasattr(socket, "AF_NETLINK"):
            return False
        self._asked = (self._asked + 1) & 0xFFFFFFFF
        try:
            question = _question(self._asked, family, sock.getpeername(), sock.getsockname())
            if self._kernel is None:
                self._kernel = socket.socket(
                    socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
                )
                self._kernel.setblocking(False)
            self._kernel.send(question)
            while True:
                answer = self._kernel.recv(256)
                _, kind, _, number, _ = _HEADER.unpack_from(answer)
                if number == self._asked:
                    break
        except OSError:
            return False
        if kind != SOCK_DIAG_BY_FAMILY:
            return False
        (inode,) = struct.unpack_from("=L", answer, _INODE_AT)
        return bool(inode == 0)

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.close()


def _question(number: int, family: int, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    ports = socket.htons(source[1]), socket.htons(destination[1])
    addresses = socket.inet_pton(family, source[0]), socket.inet_pton(family, destination[0])
    header = _QUESTION.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, number, 0
    return _QUESTION.pack(*header, family, socket.IPPROTO_TCP, 0, ALL_STATES, *ports, *addresses, NO_COOKIE)
