"""Streams through a SOCKS5 proxy to the far end (far_end.py), one or thousands at once. RFC 1928 and 1929."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self

import trio

NAME = b"web.test"  # the test network's DNS knows it
BLOCK = memoryview(bytes(1 << 18))
FAILURES = (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError)

_sink = bytearray(1 << 18)  # all streams receive here; nobody looks at the bytes, only at how many


@dataclass(frozen=True)
class Route:
    """Through the proxy at `socks` to the far end's `port`, by one of its names."""

    socks: tuple[str, int]
    port: int
    name: bytes = NAME


class Stream:
    """One stream through the proxy. Made by `open_stream`."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock
        self._stream = trio.SocketStream(sock)

    async def handshake(self, route: Route, isolation: str) -> None:
        """Ask for the far end. Streams of equal `isolation` share a circuit; empty is one as well."""
        if isolation:
            user = isolation.encode()
            userpass = b"\x01" + bytes([len(user)]) + user + b"\x01x"
            await self._stream.send_all(b"\x05\x01\x02")
            await self._expect(b"\x05\x02")
            await self._stream.send_all(userpass)
            await self._expect(b"\x01\x00")
        else:
            await self._stream.send_all(b"\x05\x01\x00")
            await self._expect(b"\x05\x00")
        target = bytes([len(route.name)]) + route.name + route.port.to_bytes(2)
        await self._stream.send_all(b"\x05\x01\x00\x03" + target)
        await self._expect(b"\x05\x00\x00\x01")
        await self.receive(6)  # the bound address, which means nothing

    async def _expect(self, answer: bytes) -> None:
        data = b""
        while len(data) < len(answer):
            more = await self._stream.receive_some(len(answer) - len(data))
            if not more:
                raise EOFError("the proxy closed the connection")
            data += more
        if data != answer:
            raise OSError(f"the proxy answered {data.hex()}, not {answer.hex()}")

    async def receive(self, length: int) -> None:
        """Exactly `length` bytes."""
        while length:
            count = await self._socket.recv_into(_sink, min(length, len(_sink)))
            if not count:
                raise EOFError("the stream ended early")
            length -= count

    async def download(self, length: int) -> None:
        await self._stream.send_all(b"get %d\n" % length)
        await self.receive(length)

    async def upload(self, length: int) -> None:
        await self._stream.send_all(b"put %d\n" % length)
        while length:
            sent = min(length, len(BLOCK))
            await self._stream.send_all(BLOCK[:sent])
            length -= sent
        await self.receive(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()


async def open_stream(route: Route, isolation: str = "") -> Stream:
    """A connected stream. Raises one of FAILURES."""
    sock = trio.socket.socket()
    try:
        await sock.connect(route.socks)
        stream = Stream(sock)
        await stream.handshake(route, isolation)
    except BaseException:
        sock.close()
        raise
    return stream


async def fetch(route: Route, length: int, isolation: str = "") -> float:
    """One stream, opened and downloaded; seconds from before its connect to its last byte."""
    started = monotonic()
    async with await open_stream(route, isolation) as stream:
        await stream.download(length)
        return monotonic() - started


async def send(route: Route, length: int, isolation: str = "") -> None:
    """One stream, opened and uploaded."""
    async with await open_stream(route, isolation) as stream:
        await stream.upload(length)


async def fetch_many(
    route: Route, length: int, isolations: Sequence[str], *, at_once: int, deadline: float
) -> int:
    """A stream for each isolation, `at_once` at a time; how many brought all bytes within `deadline`."""
    succeeded = 0
    waiting = iter(isolations)

    async def work() -> None:
        nonlocal succeeded
        for isolation in waiting:
            try:
                await fetch(route, length, isolation)
            except FAILURES:
                continue
            succeeded += 1

    with trio.move_on_after(deadline):
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(work)
    return succeeded


@asynccontextmanager
async def streams_held(route: Route, isolations: Sequence[str]) -> AsyncIterator[list[Stream]]:
    """Streams that are open and idle, one for each isolation."""
    streams: list[Stream] = []

    async def one(isolation: str) -> None:
        streams.append(await open_stream(route, isolation))

    try:
        async with trio.open_nursery() as nursery:
            for isolation in isolations:
                nursery.start_soon(one, isolation)
        yield streams
    finally:
        for stream in streams:
            await stream.__aexit__(None, None, None)


async def download_all(streams: Sequence[Stream], length: int) -> None:
    """`length` bytes on each, at once."""
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.download, length)
