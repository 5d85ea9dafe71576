"""The end of a client's connection: the client gets all bytes, then learns how its stream ended.

    the stream ended in good order, or was refused      every byte, then the end of file
    the stream failed, or its circuit did               every byte, then a reset: no cut looks like an end

A reset takes back bytes that the kernel has not delivered yet. So the reset waits until the client's side has
acknowledged every byte: the kernel does not tell that by itself, but answers when asked (SIOCOUTQ). A client
may read late, as long as it takes bytes now and then. Bytes that it sends meanwhile are read and dropped:
many programs read nothing before they have written all.
"""

import socket
import struct
from collections.abc import Callable
from typing import NoReturn

import trio

from torkit._fast.sources import Local, LocalEvent
from torkit.errors import InternalError
from torkit.net.circuit.stream import Stream
from torkit.net.descriptors import DELIVERY_TIMEOUT, LOOK_INTERVAL, READ_SIZE, undelivered
from torkit.net.link.pump import Pump

# Implementation limits.
LINGER_TIMEOUT = 2.0  # seconds for a client, which has every byte, to end its own direction

# Bytes that ended streams may hold for the clients of one proxy: 64 full windows. Beyond that, the clients
# that have waited longest are reset. The kernel bounds its own part (tcp_wmem, tcp_mem).
FAREWELL_BYTES_MAX = 16 << 20

AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: a close resets the connection
IN_ORDER = struct.pack("ii", 0, 0)  # struct linger: the kernel goes on delivering after a close


class Farewells:
    """The clients of one proxy whose streams are over."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump
        self._waiting: dict[Local, Farewell] = {}  # the longest waiting first
        self._is_needed = trio.Event()

    def begin(
        self,
        sock: socket.socket,
        source: Local,
        stream: Stream | None,
        *,
        is_whole: bool,
        close: Callable[[], None],
    ) -> None:
        """Deliver what `stream` still holds, then the end of file, or a reset unless it `is_whole`.

        `close` is called once, to close `sock`, unless `discard` was called first.
        """
        farewell = self._waiting[source] = Farewell(self.pump, sock, source, stream, is_whole, close)
        farewell.push()
        self._is_needed.set()
        if farewell.held:
            self._bound_held()

    def _bound_held(self) -> None:
        """Reset the clients that have waited longest, never the newest, until streams hold little enough."""
        *older, newest = [farewell for farewell in self._waiting.values() if farewell.held]
        held = newest.held + sum(farewell.held for farewell in older)
        for farewell in older:
            if held <= FAREWELL_BYTES_MAX:
                return
            held -= farewell.held
            farewell.give_up()

    def discard(self, source: Local) -> None:
        """Forget a client whose socket is being closed."""
        self._waiting.pop(source, None)

    async def run(self) -> NoReturn:
        while True:
            await self._is_needed.wait()
            self._is_needed = trio.Event()
            while self._waiting:
                await trio.sleep(LOOK_INTERVAL)
                for farewell in list(self._waiting.values()):
                    farewell.look()


class Farewell:
    """Owns the socket's place in the pump, once it has begun."""

    def __init__(
        self,
        pump: Pump,
        sock: socket.socket,
        source: Local,
        stream: Stream | None,
        is_whole: bool,
        close: Callable[[], None],
    ) -> None:
        self._pump = pump
        self._socket = sock
        self._source = source
        self._stream = stream
        self._is_whole = is_whole
        self._close = close
        self._has_ended = False  # the client, its direction
        self._left = -1
        self._taken_at = trio.current_time()
        source.owner = self
        source.feed(None)
        pump.watch_reading(source, True)

    @property
    def held(self) -> int:
        """Bytes that the stream still holds."""
        return 0 if self._stream is None else self._stream.queued

    def push(self) -> None:
        """Write what the stream holds, as far as the socket takes it. When all is written, end."""
        try:
            if self._stream is not None:
                is_pushed = self._stream.push(self._socket.fileno())
                self._pump.watch_writing(self._source, not is_pushed)
                if not is_pushed:
                    return
                # Memory may have been short since: no cut may look like an end.
                self._is_whole = self._is_whole and self._stream.failure is None
                self._stream = None
            if self._is_whole:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, IN_ORDER)
                self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._close()
            return
        self.look()

    def look(self) -> None:
        """Close if the client has every byte, or has taken none for too long."""
        now = trio.current_time()
        left = self.held + undelivered(self._socket.fileno())
        if left != self._left:
            self._left, self._taken_at = left, now
        if now - self._taken_at >= DELIVERY_TIMEOUT:
            self.give_up()
        elif self._stream is None and self._is_whole and self._has_ended:
            self._close()  # the kernel delivers the rest
        elif left == 0 and (not self._is_whole or now - self._taken_at >= LINGER_TIMEOUT):
            self._close()

    def give_up(self) -> None:
        """Reset the connection, even with undelivered bytes."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self._close()

    def on_local(self, event: LocalEvent) -> None:
        if event is LocalEvent.WRITABLE:
            self.push()
            return
        if event is LocalEvent.BROKEN:
            self._close()
            return
        try:
            if self._socket.recv(READ_SIZE):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._close()
            return
        self._has_ended = True
        self._pump.watch_reading(self._source, False)
        self.look()

    def on_fault(self, error: InternalError) -> None:
        self.give_up()
