"""Tor for programs under asyncio: a client in a thread, and asyncio's own streams and transports out of it.

    from torkit.aio import open_tor

    async with open_tor() as tor:
        reader, writer = await tor.open_connection("example.com", 80)

The client runs under trio in a thread of its own: its core waits for sockets in trio's place, which it could
not where trio is a guest of asyncio's loop. What asyncio is handed is one end of a pair of sockets, as
torkit.blocking's: no Python of ours runs for a byte. Errors are OSErrors with torkit's own as `__cause__`.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torkit.client import Tor as TrioTor
from torkit.in_thread import ClientThread, ServiceInThread, discard
from torkit.net.circuits.request import Resolved
from torkit.net.progress import Progress

if TYPE_CHECKING:
    from torkit.net.hosting.serve import OnionListener, Ports

T = TypeVar("T")
ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)

STREAM_LIMIT = 1 << 16  # bytes that a StreamReader holds, as asyncio's own


class Tor:
    """A client for asyncio; made by `open_tor`."""

    def __init__(self, thread: ClientThread, tor: TrioTor) -> None:
        self._thread = thread
        self._tor = tor

    def isolated(self) -> "Tor":
        """Returns the same client, for requests that share no circuit with another object's."""
        return Tor(self._thread, self._tor.isolated())

    @property
    def progress(self) -> Progress:
        """How far the start has come: phase, percentage, and what is in the way if anything is."""
        return self._tor.progress

    async def wait_ready(self) -> None:
        """Wait until circuits can be built. `connect` does so by itself. Raises OSError."""
        await _result(self._thread.submit(self._thread.wait_ready, self._tor, None))

    async def connect(self, host: str, port: int, *, isolation: Hashable = None) -> socket.socket:
        """Returns a connected, non-blocking socket to `host`, a name or address that the exit resolves.

        Connections share circuits only where `isolation` is equal, any value. What is tried takes 120 s at
        most once the client is ready, and less under `asyncio.timeout`: a call that is cancelled leaves
        nothing behind. Raises OSError: ConnectionRefusedError, socket.gaierror where the exit finds no such
        name, TimeoutError, or another one whose `__cause__` says more (torkit.errors).
        """
        sock = await _result(
            self._thread.submit(self._thread.connect, self._tor, host, port, isolation, None)
        )
        sock.setblocking(False)
        return sock

    async def create_connection(
        self,
        protocol_factory: Callable[[], ProtocolT],
        host: str,
        port: int,
        *,
        ssl: bool | ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        isolation: Hashable = None,
        **settings: Any,
    ) -> tuple[asyncio.Transport, ProtocolT]:
        """As the loop's `create_connection`, with its arguments about TLS; `connect` says more.

        With `ssl` the server has to be `server_hostname`, by default `host`.
        """
        sock = await self.connect(host, port, isolation=isolation)
        try:
            return await asyncio.get_running_loop().create_connection(
                protocol_factory,
                sock=sock,
                ssl=ssl,
                server_hostname=(server_hostname or host) if ssl else None,
                **settings,
            )
        except BaseException:
            sock.close()
            raise

    async def open_connection(
        self, host: str, port: int, *, limit: int = STREAM_LIMIT, isolation: Hashable = None, **settings: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `asyncio.open_connection`; the other arguments are those of `create_connection`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await self.create_connection(
            lambda: protocol, host, port, isolation=isolation, **settings
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def resolve(self, host: str, *, isolation: Hashable = None) -> list[Resolved]:
        """Returns the addresses of a name, or for an address its names, as an exit sees them.

        Raises as `connect`.
        """
        return await _result(self._thread.submit(self._thread.resolve, self._tor, host, isolation, None))

    @asynccontextmanager
    async def serve_onion(self, ports: "Ports", *arguments: Any) -> "AsyncIterator[OnionService]":
        """An onion service for the length of a block; its arguments are those of `torkit.Tor.serve_onion`.

        Waits until there is a directory. Raises OSError.
        """
        service = ServiceInThread(self._thread, self._tor, (ports, *arguments))
        try:
            yield OnionService(service, await asyncio.wrap_future(service.opened))
        finally:
            service.close()

    async def new_identity(self) -> None:
        """From now on, connections use circuits that none of before has used; those go on as they are."""
        await _result(self._thread.call(self._tor.new_identity))


class OnionService:
    """An onion service of a client; made by `Tor.serve_onion`."""

    def __init__(self, service: ServiceInThread, listener: "OnionListener") -> None:
        self.address = listener.address
        self._service = service
        self._listener = listener

    async def wait_published(self) -> None:
        """Wait until clients can find it."""
        await _result(self._service.wait_published(self._listener, None))

    async def accept(self) -> socket.socket:
        """A non-blocking socket for the next client's stream; asyncio.open_connection takes it as `sock`."""
        sock = await _result(self._service.accept(self._listener, None))
        sock.setblocking(False)
        return sock


@asynccontextmanager
async def open_tor(**settings: Any) -> AsyncIterator[Tor]:
    """A client for the length of a block: `torkit.open_tor` says which arguments there are, what it raises.

    At the block's end the client is closed, within 2 s: calls that wait raise, and sockets read what has
    arrived, then a reset. What was sent last may be lost on its way: wait for an answer first.
    """
    thread = ClientThread()
    opened = asyncio.wrap_future(thread.start(settings))
    try:
        yield Tor(thread, await asyncio.shield(opened))
    finally:
        await _close(thread)


async def _close(thread: ClientThread) -> None:
    """Close the client, whoever is cancelled meanwhile."""
    ended = asyncio.ensure_future(asyncio.to_thread(thread.close))
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        await ended
        raise


async def _result(future: "Future[T]") -> T:
    """Await it. What comes for somebody who was cancelled is closed."""
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            discard(future.result())
        raise
