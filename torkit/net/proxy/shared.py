"""The state that clients and listeners of one proxy share."""

import logging
from collections.abc import Hashable, Sequence
from typing import NoReturn, Protocol

import trio

from torkit.errors import EndReason, StreamClosed
from torkit.net.circuits.request import ATTEMPT_TIMEOUTS, STREAM_TIMEOUT
from torkit.net.link.pump import Pump
from torkit.net.proxy.carrier import KEEPALIVE_INTERVAL
from torkit.net.proxy.deadlines import Deadlines, deadline
from torkit.net.proxy.farewell import Farewells
from torkit.net.proxy.isolation import Isolation
from torkit.net.proxy.journal import Journal
from torkit.net.proxy.leaks import Leaks
from torkit.net.proxy.limits import Limits, Member
from torkit.net.proxy.sockdiag import SockDiag
from torkit.net.proxy.upstream import Upstream
from torkit.proto.destination import check_host
from torkit.proto.request import Request

# Seconds for a whole request. net/circuits/request.py gives up earlier, since it knows why.
CONNECT_TIMEOUT = STREAM_TIMEOUT + 30.0

# Seconds for clients to say what they want, once the proxy ends: a request may be on its way.
PATIENCE = 2.0

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """A source of requests. A proxy opens it once at most, and closes or finishes it in any case."""

    def open(self, proxy: "Proxy") -> None: ...

    def watch(self, is_wanted: bool) -> None:
        """Accept clients, or let them wait until there is room."""

    async def finish(self) -> None:
        """Serve whoever has come already, let in nobody new, and close."""

    def close(self) -> None: ...


class Proxy:
    """The arguments of `serve_proxy`, and the tasks that keep it running."""

    def __init__(
        self,
        nursery: trio.Nursery,
        listeners: Sequence[Listener],
        upstream: Upstream,
        *,
        max_clients: int,
        isolation: Isolation,
        leaks: Leaks,
        kernel: SockDiag,
    ) -> None:
        self.nursery = nursery
        self.upstream = upstream
        self.pump = Pump.current()
        self.kernel = kernel
        self.isolation = isolation
        self.journal = Journal()
        self.leaks = leaks
        self.limits = Limits(max_clients, self._watch_listeners)
        self.attempts = Deadlines[Member](ATTEMPT_TIMEOUTS[0], lambda client: client.give_up_attempt())
        self.farewells = Farewells(self.pump)
        self._listeners = list(listeners)

    def _watch_listeners(self, is_wanted: bool) -> None:
        for listener in self._listeners:
            listener.watch(is_wanted)

    def open(self) -> None:
        """Accept clients."""
        for listener in self._listeners:
            listener.open(self)

    async def run(self) -> NoReturn:
        """Keep every deadline, and look now and then for clients that have gone."""
        for waiting in (self.limits, self.attempts, self.farewells):
            self.nursery.start_soon(waiting.run)
        while True:
            await trio.sleep(KEEPALIVE_INTERVAL)
            for client in self.limits.clients:
                client.look()

    async def drain(self) -> None:
        """Let in no new client, and wait until the last one has left. Who says nothing has PATIENCE."""
        listeners, self._listeners = self._listeners, []
        self.limits.hurry(PATIENCE)
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(listener.finish)
        if count := len(self.limits.clients):
            logger.info("no client is accepted any more, %d are served to their end", count)
        await self.limits.wait_empty()

    def _close_listeners(self) -> None:
        while self._listeners:
            self._listeners.pop().close()

    def close(self) -> None:
        self._close_listeners()
        for client in self.limits.clients:
            client.close()
        self.kernel.close()

    async def lookup(self, request: Request, isolation: Hashable) -> str:
        """Returns the one address that the client is told. Raises TorkitError if there is none."""
        with deadline(CONNECT_TIMEOUT, "a look-up"):
            answers = await self.upstream.resolve(request.host, isolation=isolation)
        for kind in request.kinds:
            for answer in answers:
                if answer.kind == kind:
                    host = check_host(answer.value)
                    self.leaks.note_told(host)
                    return host
        raise StreamClosed("no answer of the kind asked for", reason=EndReason.RESOLVEFAILED)
