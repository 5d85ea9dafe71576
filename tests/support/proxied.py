"""The SOCKS proxy with real clients on loopback, on a circuit through scripted relays. No tests here."""

import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from fake_tor import FakeTor
from served import serve_circuit

from torkit.errors import EndReason, TimedOut
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.stream import Stream
from torkit.net.proxy import serve_socks
from torkit.testing.relay import FakeRelay, FakeStream, answer_begin

GREETING = b"\x05\x01\x00"
CONNECT = b"\x05\x01\x00\x03\x08web.test\x00\x50"
CONNECT_ADDRESS = b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50"
GRANTED = b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6)


class Peer:
    """The exit's end of one stream."""

    def __init__(self, stream: FakeStream) -> None:
        self.fake = stream
        self.has_ended = trio.Event()
        self._taken = 0
        self._has_more = trio.Event()

    def note_data(self) -> None:
        self._has_more.set()

    async def receive_some(self) -> bytes:
        while self._taken == len(self.fake.received):
            self._has_more = trio.Event()
            await self._has_more.wait()
        data = bytes(self.fake.received[self._taken :])
        self._taken += len(data)
        return data

    async def send_all(self, data: bytes) -> None:
        self.fake.write(data)
        await trio.lowlevel.checkpoint()

    async def end(self, reason: EndReason = EndReason.DONE) -> None:
        """After all that was sent."""
        self.fake.finish(reason)
        await trio.lowlevel.checkpoint()


@dataclass
class ScriptedTor(FakeTor):
    """Its streams are real ones, on one circuit, and the test plays the peer."""

    is_ready = True  # whether a circuit is there before somebody asks

    def __post_init__(self) -> None:
        self._arrived, self.peers = trio.open_memory_channel[Peer](1_000)
        self._by_stream: dict[FakeStream, Peer] = {}
        self._circuit: Circuit | None = None
        self.begun: list[Stream | None] = []  # first attempts of those that went on

    def use(self, circuit: Circuit, exit_relay: FakeRelay) -> None:
        self._circuit = circuit
        self.exit = exit_relay
        exit_relay.on_begin = self._note_begun
        exit_relay.on_data = lambda stream, _: self._by_stream[stream].note_data()
        exit_relay.on_end = lambda stream, *_: self._by_stream[stream].has_ended.set()

    def _note_begun(self, stream: FakeStream) -> None:
        answer_begin(stream)
        peer = self._by_stream[stream] = Peer(stream)
        self._arrived.send_nowait(peer)

    def ask(self, host: str, port: int, *, isolation: Hashable) -> "Requested":
        return Requested(self, host, port, isolation)

    def begin_now(self, host: str, port: int, *, isolation: Hashable = None) -> Stream | None:
        if not self.is_ready or self.failure is not None or self.is_silent:
            return None
        self.asked.append((host, port, isolation))
        assert self._circuit is not None
        return self._circuit.begin(host, port)

    async def open(
        self, host: str, port: int, *, isolation: Hashable = None, begun: Stream | None = None
    ) -> Stream:
        self.begun.append(begun)
        if begun is not None:
            raise TimedOut("not answered in time")
        self.asked.append((host, port, isolation))
        await self._answer_as_told()
        assert self._circuit is not None
        stream = self._circuit.begin(host, port)
        await stream.wait_connected()
        return stream


class Requested:
    """One stream that a client asks for."""

    def __init__(self, tor: ScriptedTor, host: str, port: int, isolation: Hashable) -> None:
        self._tor = tor
        self._target = host, port
        self._isolation = isolation
        self._begun: Stream | None = None

    def begin(self) -> Stream | None:
        self._begun = self._tor.begin_now(*self._target, isolation=self._isolation)
        return self._begun

    async def connect(self) -> Stream:
        return await self._tor.open(*self._target, isolation=self._isolation, begun=self._begun)


class Proxy:
    """A running proxy, and the ways to be its client."""

    def __init__(self, address: tuple[str, int], clients: AsyncExitStack) -> None:
        self._address = address
        self._clients = clients
        self.scope = trio.CancelScope()

    async def client(self) -> trio.SocketStream:
        return await self._clients.enter_async_context(await trio.open_tcp_stream(*self._address))

    async def ask(self, data: bytes) -> bytes:
        """Everything that a client gets that sends `data` and waits for the end."""
        async with await self.client() as client:
            await client.send_all(data)
            return await receive_all(client)

    async def open(
        self, tor: ScriptedTor, data: bytes = GREETING + CONNECT
    ) -> tuple[trio.SocketStream, Peer]:
        client = await self.client()
        await client.send_all(data)
        stream = await tor.peers.receive()
        await receive_exactly(client, len(GRANTED))
        return client, stream


@asynccontextmanager
async def proxy_for(
    tor: ScriptedTor,
    *,
    circuit: bool = True,
    send_buffer: int | None = None,
    serve: Callable[..., Awaitable[object]] = serve_socks,
    **settings: Any,
) -> AsyncIterator[Proxy]:
    """A proxy whose streams go over a circuit, which tests that need none can do without.

    With `send_buffer`, in bytes, the kernel holds no more than some of that for each client. `serve` takes
    what `serve_socks` takes.
    """
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    if send_buffer is not None:
        listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    async with AsyncExitStack() as stack:
        if circuit:
            built, relays = await stack.enter_async_context(serve_circuit())
            tor.use(built, relays[-1])
        clients = await stack.enter_async_context(AsyncExitStack())
        nursery = await stack.enter_async_context(trio.open_nursery())
        proxy = Proxy(listeners[0].socket.getsockname()[:2], clients)

        async def serve_until_cancelled() -> None:
            with proxy.scope:
                await serve(listeners, request=tor.ask, resolve=tor.resolve, **settings)

        nursery.start_soon(serve_until_cancelled)
        yield proxy
        nursery.cancel_scope.cancel()


async def receive_all(client: trio.SocketStream) -> bytes:
    return b"".join([bytes(data) async for data in client])


async def receive_exactly(client: trio.SocketStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        received = await client.receive_some(length - len(data))
        assert received, f"the connection ended after {data!r}"
        data += received
    return data


def segments_received(client: trio.SocketStream) -> int:
    """Those that held data, as the kernel counts them."""
    info = client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return int.from_bytes(info[152:156], sys.byteorder)  # tcpi_data_segs_in of <linux/tcp.h>


def reset(client: trio.SocketStream) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()
