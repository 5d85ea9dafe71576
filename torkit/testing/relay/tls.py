"""A relay behind TLS on loopback. `raw_tls.py` has what Python's ssl cannot send."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from torkit.testing.relay.relay import FakeRelay


class WatchedStream(trio.abc.Stream):
    """A connection; `note` is told what is read from it."""

    def __init__(self, transport: trio.SocketStream, note: Callable[[bytes], object]) -> None:
        self._note = note
        self._transport = transport

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._transport.receive_some(max_bytes))
        self._note(data)
        return data


@asynccontextmanager
async def serve_relay(relay: FakeRelay) -> AsyncIterator[tuple[str, int]]:
    """Serve `relay` over TLS on a loopback port; yields (host, port). Ends all its links at exit.

    A handler that raises ends the block with that exception.
    """
    context = relay.ssl_context()

    async def serve(transport: trio.SocketStream) -> None:
        link = relay.link()
        output = trio.Event()

        def wake() -> None:
            output.set()

        link.on_output = wake
        watched = WatchedStream(transport, lambda data: relay.on_wire(link, data))
        stream = trio.SSLStream(watched, context, server_side=True, https_compatible=True)

        async def write() -> None:
            nonlocal output
            while True:
                await output.wait()
                output = trio.Event()
                while data := link.take():
                    await stream.send_all(data)
                if link.closed:
                    nursery.cancel_scope.cancel()

        async def delayed(seconds: float, call: Callable[[], object]) -> None:
            await trio.sleep(seconds)
            call()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                link.on_delay = lambda seconds, call: nursery.start_soon(delayed, seconds, call)
                while data := await stream.receive_some(65536):
                    link.hear(bytes(data))
                nursery.cancel_scope.cancel()
            if not link.abrupt:
                await stream.aclose()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away, which is its right
        finally:
            link.closed = True
            await trio.aclose_forcefully(transport)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        host, port = listeners[0].socket.getsockname()
        yield host, port
        nursery.cancel_scope.cancel()
