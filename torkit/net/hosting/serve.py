"""One service from its beginning to its end: what `Tor.serve_onion` does."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import trio

from torkit.errors import UsageError
from torkit.hs.keys import SecretKey
from torkit.net.circuit.stream import Stream
from torkit.net.hosting.forward import Forwarder, Target
from torkit.net.hosting.keys import new_key
from torkit.net.hosting.listener import Incoming
from torkit.net.hosting.means import Means, Wishes
from torkit.net.hosting.service import OnionService

Ports = Iterable[int] | Mapping[int, Target]


class OnionListener(trio.abc.Listener[Stream]):
    """Made by `Tor.serve_onion`. `address` is known at once; clients can come after `wait_published`."""

    def __init__(self, service: OnionService, incoming: Incoming, forwarder: Forwarder) -> None:
        self._service = service
        self._incoming = incoming
        self._forwarder = forwarder
        self.address = service.address

    def __repr__(self) -> str:
        return repr(self._service)

    @property
    def is_published(self) -> bool:
        """Whether a directory that clients ask has had a descriptor of this service."""
        return self._service.is_published.is_set()

    @property
    def client_count(self) -> int:
        """Clients that have joined: their circuits."""
        return self._service.client_count

    @property
    def connection_count(self) -> int:
        """Streams that are carried to servers now."""
        return self._forwarder.count

    @property
    def cut_count(self) -> int:
        """Of these, so far, how many ended while the client may have lacked what the server had sent."""
        return self._forwarder.cut_count

    async def wait_published(self) -> None:
        """Until clients can find the service. Has no deadline."""
        await self._service.is_published.wait()

    async def accept(self) -> Stream:
        """The next stream of a client's; `port` is what it has asked for. Not for ports with a target."""
        return await self._incoming.accept()

    async def aclose(self) -> None:
        """Accept no more streams."""
        await self._incoming.aclose()


@asynccontextmanager
async def serve(
    means: Means, ports: Ports, key: SecretKey | None, wishes: Wishes
) -> AsyncIterator[OnionListener]:
    """Run one service until the block ends. Raises UsageError for what is no port."""
    targets = dict(ports) if isinstance(ports, Mapping) else {}
    numbers = frozenset(ports)
    if not numbers or not all(isinstance(port, int) and 1 <= port <= 65535 for port in numbers):
        raise UsageError("an onion service has one port at least, each between 1 and 65535")
    async with trio.open_nursery() as nursery:
        incoming = Incoming(numbers - targets.keys())
        forwarder = Forwarder(targets, nursery, wishes.max_connections)

        def take(stream: Stream, port: int) -> None:
            (forwarder if port in targets else incoming).take(stream, port)

        service = OnionService(means, key or new_key(), wishes, take)
        nursery.start_soon(service.run)
        try:
            yield OnionListener(service, incoming, forwarder)
        finally:
            forwarder.close()
            await incoming.aclose()
            nursery.cancel_scope.cancel()
