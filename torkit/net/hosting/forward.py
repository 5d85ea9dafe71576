"""Streams of clients, carried to servers of this machine.

the server refuses           the client learns why (END with its reason)
the server ends              all that it has sent is on its way before END with DONE
the client ends              the server gets all that has come, then the end of file
the client's circuit fails   the server gets a reset: no cut looks like an end
the service ends             the server gets a reset, too; the client, END with MISC and DESTROY

A server at a Unix socket gets the end of file in place of a reset, which such sockets do not know.
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import trio

from torkit._fast.sources import Local, LocalEvent
from torkit.errors import EndReason
from torkit.net.circuit.stream import Stream
from torkit.net.descriptors import READ_SIZE
from torkit.net.ferry import Ferry
from torkit.net.link.pump import Pump

# Implementation limits: seconds until a server has accepted; seconds that a server which has all may go on
# sending what nobody reads.
CONNECT_TIMEOUT = 15.0
LINGER_TIMEOUT = 2.0

REPORT_INTERVAL = 60.0  # seconds between warnings of one target

_RESET = struct.pack("ii", 1, 0)  # struct linger: a close resets the connection

_REASONS = {
    errno.ECONNREFUSED: EndReason.CONNECTREFUSED,
    errno.ENOENT: EndReason.CONNECTREFUSED,
    errno.ETIMEDOUT: EndReason.TIMEOUT,
    errno.ENETUNREACH: EndReason.NOROUTE,
    errno.EHOSTUNREACH: EndReason.NOROUTE,
    errno.EMFILE: EndReason.RESOURCELIMIT,
    errno.ENFILE: EndReason.RESOURCELIMIT,
}

logger = logging.getLogger(__name__)


class Target(NamedTuple):
    """A server: a TCP address, or a Unix socket where `port` is None."""

    host: str
    port: int | None = None

    def __str__(self) -> str:
        if self.port is None:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Forwarder:
    """`take` is what an OnionService calls. Connections are carried in tasks of `nursery`.

    `count` is how many there are; `cut_count` how many have ended while the client may have lacked something.
    """

    def __init__(self, targets: Mapping[int, Target], nursery: trio.Nursery, max_count: int) -> None:
        """`targets` by the port that clients ask for; `max_count` of connections at once."""
        self._targets = targets
        self._nursery = nursery
        self._max_count = max_count
        self.count = 0
        self.cut_count = 0
        self._warned_at: dict[Target, float] = {}

    def take(self, stream: Stream, port: int) -> None:
        """Carry a stream, or end it: DONE says that nothing is at this port, as C tor's services do."""
        target = self._targets.get(port)
        if target is None:
            stream.close(EndReason.DONE)
        elif self.count >= self._max_count:
            stream.close(EndReason.RESOURCELIMIT)
        else:
            self.count += 1
            self._nursery.start_soon(self._carry, stream, target)

    async def _carry(self, stream: Stream, target: Target) -> None:
        try:
            try:
                sock = await _connect(target)
            except (OSError, trio.TooSlowError) as error:
                number = errno.ETIMEDOUT if isinstance(error, trio.TooSlowError) else error.errno or 0
                self._warn(target, os.strerror(number))
                stream.close(_REASONS.get(number, EndReason.MISC))
                return
            with sock:
                stream.accept()
                delivery = _Delivery(stream, sock)
                await delivery.run()
                self.cut_count += delivery.is_cut
        finally:
            stream.close()
            self.count -= 1

    def _warn(self, target: Target, why: str) -> None:
        now = trio.current_time()
        if now - self._warned_at.get(target, -REPORT_INTERVAL) >= REPORT_INTERVAL:
            self._warned_at[target] = now
            logger.warning("a client of the onion service was refused: %s: %s", target, why)


async def _connect(target: Target) -> socket.socket:
    """A connection, non-blocking. Raises OSError, trio.TooSlowError."""
    family = socket.AF_UNIX
    address: Any = target.host
    if target.port is not None:
        family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
        address = target.host, target.port
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if target.port is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not _is_address(family, target.host):
                with trio.fail_after(CONNECT_TIMEOUT):
                    found = await trio.socket.getaddrinfo(target.host, target.port, family)
                address = found[0][4]
        number = sock.connect_ex(address)
        if number == errno.EINPROGRESS:
            number = sock.connect_ex(address)  # the kernel has connected to a server of this machine already
        if number == errno.EALREADY:
            with trio.fail_after(CONNECT_TIMEOUT):
                await trio.lowlevel.wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return sock


def _is_address(family: int, host: str) -> bool:
    try:
        socket.inet_pton(family, host)
    except OSError:
        return False
    return True


class _Delivery(Ferry):
    """Carries one stream. The core moves the bytes."""

    waits_for_sink = True

    def __init__(self, stream: Stream, sock: socket.socket) -> None:
        pump = Pump.current()
        self._local: Local = pump.add_local(sock.fileno(), self)
        super().__init__(pump, stream, sock.fileno, self._local, self._local, self._note_end)
        self._socket = sock
        self._failure: Exception | None = None
        self._is_done = trio.Event()
        self._server_has_ended = False

    async def run(self) -> None:
        """Until either side has ended, and the other has all. The caller closes the socket."""
        try:
            self.start()
            await self._is_done.wait()
        except trio.Cancelled:  # the service ends
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise
        finally:
            self._stream.watcher = None
            self._stream.hold()
            self._pump.remove(self._local)
        if self._server_has_ended:
            self._stream.close(EndReason.DONE)
        elif isinstance(self._failure, OSError) and not self._stream.has_ended:
            self._stream.close(EndReason.CONNRESET)
        elif self._failure is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:
            await self._say_goodbye()

    @property
    def is_cut(self) -> bool:
        """Returns whether the client ended, or was lost, while it may have lacked what the server sent."""
        if self._server_has_ended:
            return False
        if self._stream.circuit.error is not None:
            return True
        with suppress(OSError):
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return False

    async def _say_goodbye(self) -> None:
        """The end of file; a server that goes on sending is read for a while, or the kernel would reset."""
        with trio.move_on_after(LINGER_TIMEOUT), suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                if not self._socket.recv(READ_SIZE):
                    return

    def _note_end(self, failure: Exception | None) -> None:
        self._failure = failure
        self._is_done.set()

    def on_local(self, event: LocalEvent) -> None:
        """What the server's socket did."""
        if event is LocalEvent.WRITABLE:
            self.on_change()
        elif event is LocalEvent.ENDED:
            self._server_has_ended = True
            self._finish(None)
        else:
            self._finish(self._local.failure or ConnectionResetError())
