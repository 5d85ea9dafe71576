"""Accepts clients on a TCP or Unix socket while there is room for them, and gives each a front door."""

import logging
import os
import socket
from collections.abc import Callable
from errno import EINVAL, ENOMEM
from math import inf

import trio

from torkit._fast import ballast
from torkit._fast.sources import Local, LocalEvent
from torkit.errors import InternalError
from torkit.net.faults import log_fault
from torkit.net.proxy.carrier import KEEPALIVE_IDLE, KEEPALIVE_INTERVAL
from torkit.net.proxy.client import Client
from torkit.net.proxy.doors import FrontDoor
from torkit.net.proxy.farewell import AT_ONCE
from torkit.net.proxy.isolation import Isolation, Origin
from torkit.net.proxy.last_call import refuse_newcomers
from torkit.net.proxy.shared import Proxy
from torkit.net.shortage import OUT_OF_RESOURCES

# Implementation limits.
ACCEPTED_PER_TURN = 64  # clients accepted before earlier clients have their turn
ACCEPT_RETRY = 0.1  # seconds until the next try, where the system has no descriptor left
ACCEPT_WARNING = 60.0  # seconds between two warnings of such a shortage
LAST_CALL_INTERVAL = 0.05  # seconds between two looks for clients, once no new ones are let in

logger = logging.getLogger(__name__)


class StreamListener:
    """Owns `listener`, a socket that listens.

    `make_door` makes the front door of each accepted socket, or None, which resets the connection. A socket
    that is `lent` stays open elsewhere, at a service manager's, for whoever listens next.
    """

    _proxy: Proxy
    _source: Local | None = None
    _is_ending = False

    def __init__(
        self,
        listener: trio.socket.SocketType,
        make_door: Callable[[socket.socket], FrontDoor | None],
        isolation: Isolation | None = None,
        *,
        lent: bool = False,
    ) -> None:
        self._listener = listener
        self._is_lent = lent
        # A second descriptor of the same socket, for the pump to watch.
        self._socket = socket.fromfd(listener.fileno(), listener.family, socket.SOCK_STREAM)
        self._is_unix = listener.family == socket.AF_UNIX
        name = self._socket.getsockname()
        self._address = name if self._is_unix else name[:2]
        self._make_door = make_door
        self._isolation = isolation  # its own, else the proxy's
        self._warned_at = -inf  # that the system is out of descriptors or memory
        _set_options(self._socket)

    def open(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._source = proxy.pump.add_local(self._socket.fileno(), self)

    def watch(self, is_wanted: bool) -> None:
        assert self._source is not None
        self._proxy.pump.watch_reading(self._source, is_wanted)

    def on_local(self, event: LocalEvent) -> None:
        self._accept()

    def _accept(self) -> bool:
        """Accept clients that wait. Returns whether nobody waits any more."""
        for _ in range(ACCEPTED_PER_TURN):
            if not self._proxy.limits.has_room:
                return False
            if not ballast.is_kept() and self._proxy.limits.clients:
                # A client that is alone takes what others have left.
                self._wait_for_resources(ENOMEM)
                return False
            try:
                accepted, address = self._socket.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == EINVAL:  # a Unix socket after its last call
                    return True
                if error.errno in OUT_OF_RESOURCES:
                    self._wait_for_resources(error.errno)
                    return False
                continue  # that client has left again
            accepted.setblocking(False)
            if not self._is_unix:
                # A close is a reset until all has been said in good order (farewell.py): no cut may look like
                # an end. Not inherited: somebody may have connected before we serve.
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            door = self._make_door(accepted)
            if door is None:
                accepted.close()
                continue
            client = "" if self._is_unix else address[0]
            isolation = self._isolation or self._proxy.isolation
            origin = Origin(client, self._address, isolation)
            Client(self._proxy, accepted, origin, door, is_unix=self._is_unix).start()
        return False

    async def finish(self) -> None:
        """Let in nobody new, accept who has been connected already, and close.

        The clients of a socket that is lent wait for who listens next.
        """
        self._is_ending = True
        try:
            if self._is_lent:
                return
            self.watch(False)
            until = trio.current_time() + refuse_newcomers(self._socket)
            while True:
                now = trio.current_time()
                if self._accept() and now >= until:
                    return
                await trio.sleep(LAST_CALL_INTERVAL)
        except Exception as error:
            log_fault(InternalError.ending("a listener", error))
        finally:
            self.close()

    def on_fault(self, error: InternalError) -> None:
        """Go on after a fault of ours: the next client may fare better."""
        if self._source is None or not self._source.is_watched:
            self._source = self._proxy.pump.add_local(self._socket.fileno(), self)

    def _wait_for_resources(self, code: int) -> None:
        if trio.current_time() - self._warned_at >= ACCEPT_WARNING:
            self._warned_at = trio.current_time()
            logger.warning("no client can be accepted now, others wait: %s", os.strerror(code))
        if not self._is_ending:
            self.watch(False)
            self._proxy.nursery.start_soon(self._try_later)

    async def _try_later(self) -> None:
        await trio.sleep(ACCEPT_RETRY)
        if self._source is not None and not self._is_ending:
            self.watch(self._proxy.limits.has_room)

    def close(self) -> None:
        if self._source is not None:
            self._proxy.pump.remove(self._source)
            self._source = None
        self._socket.close()
        self._listener.close()


def _set_options(listener: socket.socket) -> None:
    """Set what accepted sockets inherit: the kernel asks whether a silent client is still there."""
    if listener.family == socket.AF_UNIX:
        return  # a Unix socket knows neither option
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
