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
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import trio

from torkit._fast.sources import Local, LocalEvent
from torkit.errors import EndReason, InternalError
from torkit.net.circuit.stream import Stream
from torkit.net.descriptors import READ_SIZE
from torkit.net.faults import log_fault
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

    @property
    def family(self) -> socket.AddressFamily:
        """The family of its socket; IPv4's for a name."""
        if self.port is None:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def address(self) -> Any:
        """As its socket takes it."""
        return self.host if self.port is None else (self.host, self.port)

    @property
    def is_name(self) -> bool:
        """Whether `host` has to be looked up."""
        if self.port is None:
            return False
        try:
            socket.inet_pton(self.family, self.host)
        except OSError:
            return True
        return False


class Forwarder:
    """`take` is what an OnionService calls. Connections are carried without a task; one of `nursery` waits
    where a server does not accept at once, and for the end of one that has all.

    `cut_count` is how many have ended while the client may have lacked something.
    """

    def __init__(self, targets: Mapping[int, Target], nursery: trio.Nursery, max_count: int) -> None:
        """`targets` by the port that clients ask for; `max_count` of connections at once."""
        self._targets = targets
        self._nursery = nursery
        self._max_count = max_count
        self.cut_count = 0
        self._is_closed = False
        self._carried: dict[Stream, _Delivery | None] = {}  # None until the server has accepted
        self._warned_at: dict[Target, float] = {}

    @property
    def count(self) -> int:
        """How many streams there are."""
        return len(self._carried)

    def close(self) -> None:
        """The service ends: carry no more; what is carried is cut off."""
        self._is_closed = True
        for delivery in list(self._carried.values()):
            if delivery is not None:
                delivery.cut()

    def take(self, stream: Stream, port: int) -> None:
        """Carry a stream, or end it: DONE says that nothing is at this port, as C tor's services do."""
        target = self._targets.get(port)
        if target is None or self._is_closed:
            stream.close(EndReason.DONE)
        elif self.count >= self._max_count:
            stream.close(EndReason.RESOURCELIMIT)
        else:
            self._carried[stream] = None
            try:
                self._connect(stream, target)
            except BaseException:  # a fault of ours, which ends the circuit
                self._drop(stream)
                raise

    def _connect(self, stream: Stream, target: Target) -> None:
        if target.is_name:
            self._nursery.start_soon(self._wait_for, stream, target, partial(_connect_by_name, target))
            return
        try:
            sock, is_connected = _begin(target.family, target.address)
            if is_connected:
                self._carry(stream, sock)
            else:
                self._nursery.start_soon(self._wait_for, stream, target, partial(_wait_connected, sock))
        except OSError as error:
            self._refuse(stream, target, error.errno or 0)

    async def _wait_for(
        self, stream: Stream, target: Target, connecting: Callable[[], Awaitable[socket.socket]]
    ) -> None:
        try:
            self._carry(stream, await connecting())
        except OSError as error:
            self._refuse(stream, target, error.errno or 0)
        except trio.TooSlowError:
            self._refuse(stream, target, errno.ETIMEDOUT)
        except Exception as error:
            log_fault(InternalError.ending("a client of the onion service", error))
            self._drop(stream)
        except BaseException:  # the service ends
            self._drop(stream)
            raise

    def _drop(self, stream: Stream) -> None:
        """End a stream, and reset the server if it has accepted."""
        if (delivery := self._carried.pop(stream, None)) is not None:
            delivery.cut()
        stream.close()

    def _carry(self, stream: Stream, sock: socket.socket) -> None:
        """Carry a stream to a server that has accepted. Raises OSError where the socket cannot be watched."""
        if self._is_closed:  # since it was asked
            sock.close()
            self._drop(stream)
            return
        try:
            delivery = self._carried[stream] = _Delivery(self, stream, sock)
        except BaseException:
            sock.close()
            raise
        stream.accept()
        delivery.start()

    def _refuse(self, stream: Stream, target: Target, number: int) -> None:
        """End a stream whose server has not accepted, for an error of the system's."""
        now = trio.current_time()
        if now - self._warned_at.get(target, -REPORT_INTERVAL) >= REPORT_INTERVAL:
            self._warned_at[target] = now
            logger.warning("a client of the onion service was refused: %s: %s", target, os.strerror(number))
        stream.close(_REASONS.get(number, EndReason.MISC))
        del self._carried[stream]

    def linger(self, delivery: "_Delivery") -> None:
        """Its server has all, and is waited for."""
        self._nursery.start_soon(delivery.say_goodbye)

    def note_end(self, stream: Stream, *, is_cut: bool) -> None:
        """It has ended; `is_cut` tells whether the client may have lacked something."""
        self._carried.pop(stream, None)
        self.cut_count += is_cut


def _begin(family: int, address: Any) -> tuple[socket.socket, bool]:
    """A socket that connects, non-blocking, and whether it has already. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = sock.connect_ex(address)
        if number == errno.EINPROGRESS:
            number = sock.connect_ex(address)  # the kernel has connected to a server of this machine already
        if number not in (0, errno.EALREADY):
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return sock, number == 0


async def _wait_connected(sock: socket.socket) -> socket.socket:
    """`sock`, once it has connected. Raises OSError, trio.TooSlowError."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            await trio.lowlevel.wait_writable(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_by_name(target: Target) -> socket.socket:
    """A connection to the first address of a name. Raises OSError, trio.TooSlowError."""
    with trio.fail_after(CONNECT_TIMEOUT):
        found = await trio.socket.getaddrinfo(target.host, target.port, target.family)
    sock, is_connected = _begin(target.family, found[0][4])
    return sock if is_connected else await _wait_connected(sock)


class _Delivery(Ferry):
    """Carries one stream until either side has ended and the other has all. The core moves the bytes."""

    waits_for_sink = True

    def __init__(self, home: Forwarder, stream: Stream, sock: socket.socket) -> None:
        """Raises OSError where the socket cannot be watched."""
        pump = Pump.current()
        self._local: Local = pump.add_local(sock.fileno(), self)
        super().__init__(pump, stream, sock.fileno, self._local, self._local, self._note_end)
        self._home = home
        self._socket = sock
        self._server_has_ended = False

    def cut(self) -> None:
        """End it, though neither side has: the service ends, or a fault of ours."""
        self._finish(InternalError("the onion service lets go of a stream"))

    def _note_end(self, failure: Exception | None) -> None:
        self._stream.hold()
        self._pump.remove(self._local)
        if self._server_has_ended:
            self._close(EndReason.DONE)
        elif isinstance(failure, OSError) and not self._stream.has_ended:
            self._close(EndReason.CONNRESET)
        elif failure is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._close()
        else:
            self._home.linger(self)

    async def say_goodbye(self) -> None:
        """The end of file; a server that goes on sending is read for a while, or the kernel would reset."""
        try:
            with trio.move_on_after(LINGER_TIMEOUT), suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
                while True:
                    await trio.lowlevel.wait_readable(self._socket)
                    if not self._socket.recv(READ_SIZE):
                        return
        finally:
            self._close()

    def _close(self, reason: EndReason = EndReason.MISC) -> None:
        """Close the socket, and the stream for `reason` unless it has ended."""
        self._stream.close(reason)
        is_cut = self._is_cut
        self._socket.close()
        self._home.note_end(self._stream, is_cut=is_cut)

    @property
    def _is_cut(self) -> bool:
        """Whether the client ended, or was lost, while it may have lacked what the server sent."""
        if self._server_has_ended:
            return False
        if self._stream.circuit.error is not None:
            return True
        with suppress(OSError):
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return False

    def on_local(self, event: LocalEvent) -> None:
        """What the server's socket did."""
        if event is LocalEvent.WRITABLE:
            self.on_change()
        elif event is LocalEvent.ENDED:
            self._server_has_ended = True
            self._finish(None)
        else:
            self._finish(self._local.failure or ConnectionResetError())
