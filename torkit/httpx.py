"""httpx over Tor: transports for its Client and its AsyncClient.

    with torkit.blocking.open_tor() as tor, httpx.Client(transport=Transport(tor)) as client:
        client.get("https://example.com/")

Each transport is apart from all others: its connections share circuits with theirs only where
`isolation` is the same for both. Proxies of the environment are not used. What fails is httpx's error with
torkit's as `__cause__`.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from math import inf
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx
import trio

from torkit import aio, blocking
from torkit.client import Tor
from torkit.errors import TorkitError
from torkit.net.circuit.stream import Stream
from torkit.socket_errors import origin

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)  # as httpx's own


class Transport(httpx.BaseTransport):
    """For `httpx.Client`. `verify`, `http2`, `limits` and `retries` are those of httpx.HTTPTransport."""

    def __init__(
        self,
        tor: blocking.Tor,
        *,
        isolation: Hashable = None,
        verify: ssl.SSLContext | bool = True,
        http2: bool = False,
        limits: httpx.Limits = LIMITS,
        retries: int = 0,
    ) -> None:
        """`isolation`, by default one that is equal to no other's, is as in `tor.connect`."""
        backend = _Backend(tor, object() if isolation is None else isolation)
        self._pool = httpcore.ConnectionPool(
            network_backend=backend, **_pool_settings(verify, http2, limits, retries)
        )

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._pool.__exit__(kind, error, traceback)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        with _errors_of_httpx(request):
            response = self._pool.handle_request(_request_of(request))
        return _response_of(response, _Body(response.stream, request))

    def close(self) -> None:
        self._pool.close()


class AsyncTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient`: under asyncio with a client of torkit.aio, under trio with torkit's own.

    The arguments are those of Transport.
    """

    def __init__(
        self,
        tor: aio.Tor | Tor,
        *,
        isolation: Hashable = None,
        verify: ssl.SSLContext | bool = True,
        http2: bool = False,
        limits: httpx.Limits = LIMITS,
        retries: int = 0,
    ) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            network_backend=_AsyncBackend(tor, object() if isolation is None else isolation),
            **_pool_settings(verify, http2, limits, retries),
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._pool.__aexit__(kind, error, traceback)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        with _errors_of_httpx(request):
            response = await self._pool.handle_async_request(_request_of(request))
        return _response_of(response, _AsyncBody(response.stream, request))

    async def aclose(self) -> None:
        await self._pool.aclose()


# --- between httpx and httpcore ---------------------------------------------------------------------------


def _pool_settings(
    verify: ssl.SSLContext | bool, http2: bool, limits: httpx.Limits, retries: int
) -> dict[str, Any]:
    return {
        "ssl_context": httpx.create_ssl_context(verify=verify),
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
        "http2": http2,
        "retries": retries,
    }


def _request_of(request: httpx.Request) -> httpcore.Request:
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def _response_of(response: httpcore.Response, body: "_Body | _AsyncBody") -> httpx.Response:
    return httpx.Response(
        response.status, headers=response.headers, stream=body, extensions=response.extensions
    )


@contextmanager
def _errors_of_httpx(request: httpx.Request) -> Iterator[None]:
    """httpx has each of httpcore's errors under the same name."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
    ) as error:
        kind = getattr(httpx, type(error).__name__)
        raise kind(str(error), request=request) from origin(error)


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any, request: httpx.Request) -> None:
        self._stream = stream
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        with _errors_of_httpx(self._request):
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, stream: Any, request: httpx.Request) -> None:
        self._stream = stream
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _errors_of_httpx(self._request):
            async for data in self._stream:
                yield data

    async def aclose(self) -> None:
        await self._stream.aclose()


# --- between httpcore and torkit --------------------------------------------------------------------------


@contextmanager
def _errors_of_httpcore(
    timed_out: type[httpcore.TimeoutException], failed: type[httpcore.NetworkError]
) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, trio.TooSlowError) as error:
        raise timed_out(str(error)) from origin(error)
    except (OSError, TorkitError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise failed(str(error)) from origin(error)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, tor: blocking.Tor, isolation: Hashable) -> None:
        self._tor = tor
        self._isolation = isolation

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        with _errors_of_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            return _Stream(self._tor.connect(host, port, isolation=self._isolation, timeout=timeout))


class _Stream(httpcore.NetworkStream):
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_of_httpcore(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors_of_httpcore(httpcore.WriteTimeout, httpcore.WriteError):
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        with _errors_of_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                self._socket.settimeout(timeout)
                return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))
            except BaseException:
                self.close()
                raise

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # a connection that is kept and has something to say has ended
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0))
        if info == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        return self._socket if info == "socket" else None


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, tor: aio.Tor | Tor, isolation: Hashable) -> None:
        self._tor = tor
        self._isolation = isolation

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _errors_of_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            if isinstance(self._tor, aio.Tor):
                async with asyncio.timeout(timeout):
                    return _AsyncioStream(
                        *await self._tor.open_connection(host, port, isolation=self._isolation)
                    )
            with _trio_timeout(timeout):
                await self._tor.wait_ready()
                return _TrioStream(await self._tor.connect(host, port, isolation=self._isolation))

    async def sleep(self, seconds: float) -> None:
        await (asyncio.sleep if isinstance(self._tor, aio.Tor) else trio.sleep)(seconds)


class _AsyncioStream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_of_httpcore(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors_of_httpcore(httpcore.WriteTimeout, httpcore.WriteError):
            self._writer.write(buffer)
            async with asyncio.timeout(timeout):
                await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        with _errors_of_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                async with asyncio.timeout(timeout):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
            except BaseException:
                self._writer.close()
                raise
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing()
        return self._writer.get_extra_info(info)


class _TrioStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: Stream | trio.SSLStream[Stream]) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_of_httpcore(httpcore.ReadTimeout, httpcore.ReadError), _trio_timeout(timeout):
            return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors_of_httpcore(httpcore.WriteTimeout, httpcore.WriteError), _trio_timeout(timeout):
            await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        assert isinstance(self._stream, Stream)
        tls = trio.SSLStream(
            self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True
        )
        with _errors_of_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                with _trio_timeout(timeout):
                    await tls.do_handshake()
            except BaseException:
                self._stream.close()
                raise
        return _TrioStream(tls)

    def get_extra_info(self, info: str) -> Any:
        tls = self._stream if isinstance(self._stream, trio.SSLStream) else None
        if info == "is_readable":
            return (self._stream if tls is None else tls.transport_stream).has_ended
        return tls if info == "ssl_object" else None


def _trio_timeout(seconds: float | None) -> AbstractContextManager[trio.CancelScope]:
    return trio.fail_after(inf if seconds is None else seconds)
