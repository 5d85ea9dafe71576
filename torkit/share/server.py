"""Serves a site on a Unix socket that nobody else on this machine can reach, by Hypercorn.

Hypercorn's own listener keeps a connection that its visitor has left without a request, until that times out,
and waits for ever where a visitor takes nothing. So connections are accepted here, for its TCPServer.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from torkit.errors import InternalError, NotPossible, StorageError
from torkit.share.app import Site

# Implementation limits.
MAX_HEAD_LEN = 16 << 10  # bytes of a request's lines
KEEP_ALIVE = 75.0  # seconds for a request to come as a whole, on a connection that is new or has been used
STALL_TIMEOUT = 300.0  # seconds for a visitor to take one piece of an answer
BACKLOG = 128  # connections that wait to be accepted

MAX_PATH_LEN = 107  # bytes of a Unix socket's path. unix(7)

logger = logging.getLogger(__name__)


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Path]:
    """Serve as long as the block lasts. Gives the path of the socket, which disappears with the block.

    Raises StorageError, NotPossible where there can be no such socket.
    """
    try:
        directory = TemporaryDirectory(prefix="torkit-share-")  # for its owner alone
    except OSError as error:
        raise StorageError(f"no temporary directory can be made: {error.strerror}") from error
    with directory:
        path = Path(directory.name) / "http"
        if len(os.fsencode(path)) > MAX_PATH_LEN:
            raise NotPossible(
                f"{path} is too long for a socket", hint="TMPDIR names a place for temporary files"
            )
        with trio.socket.socket(trio.socket.AF_UNIX) as sock:
            await sock.bind(str(path))
            sock.listen(BACKLOG)
            async with trio.open_nursery() as nursery:
                server = _Server(site)
                nursery.start_soon(trio.serve_listeners, server.converse, [trio.SocketListener(sock)])
                yield path
                nursery.cancel_scope.cancel()


class _Server:
    def __init__(self, site: Site) -> None:
        self._app = ASGIWrapper(cast(Any, site))  # whose types are Starlette's
        self._context = WorkerContext(None)
        self._config = config = Config()
        config.h11_max_incomplete_size = MAX_HEAD_LEN
        config.keep_alive_timeout = KEEP_ALIVE
        # What the server is, and what time it has, is nobody's business.
        config.include_server_header = False
        config.include_date_header = False
        config.accesslog = config.errorlog = None  # the site tells what is worth telling

    async def converse(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Its failures do not touch others."""
        try:
            with trio.CancelScope() as scope:
                visitor = cast(Any, _Visitor(stream, scope))
                await TCPServer(self._app, self._config, self._context, {}, visitor).run()
        except Exception as error:
            logger.warning("%s", InternalError.ending("a visitor's connection", error))
        finally:
            await trio.aclose_forcefully(stream)


class _Visitor(trio.abc.HalfCloseableStream):
    """The end of a connection that Hypercorn reads and writes. Once the visitor leaves, all is cancelled."""

    def __init__(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        self._stream = stream
        self._scope = scope
        self.socket = stream.socket  # Hypercorn asks where it leads

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            data = b""
        if not data:  # onion services' clients end both directions at once
            self._scope.cancel()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            with trio.fail_after(STALL_TIMEOUT):
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.BusyResourceError, trio.TooSlowError) as error:
            # Busy is what Hypercorn has begun to close.
            self._scope.cancel()  # or Hypercorn would take the rest of the answer for nobody
            raise trio.BrokenResourceError("the visitor takes nothing") from error

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
