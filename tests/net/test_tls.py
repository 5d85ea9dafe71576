"""The TLS pump against a real TLS server: everything at hand in one read, and every way it can end."""

import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from random import SystemRandom

import pytest
import trio
import trio.testing
from served import fresh_relays

from torkit.errors import ChannelClosed, ChannelError
from torkit.net.link.tls import TlsConnection, random_server_name
from torkit.testing.relay import FakeRelay, WatchedStream

BUFFER = bytearray(1 << 17)  # what one read brings, for one reader at a time

Script = Callable[[trio.SSLStream[trio.SocketStream]], Awaitable[None]]


@asynccontextmanager
async def tcp_server(
    script: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[tuple[str, int]]:
    """One that plays `script` with whoever connects."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, script, [listener])
        yield listener.socket.getsockname()
        nursery.cancel_scope.cancel()


def over_tls(script: Script, *, context: ssl.SSLContext | None = None) -> Callable[..., Awaitable[None]]:
    async def play(transport: trio.SocketStream) -> None:
        stream = trio.SSLStream(
            transport, context or server_context(), server_side=True, https_compatible=True
        )
        await script(stream)

    return play


def server_context() -> ssl.SSLContext:
    return relay().ssl_context()


def relay() -> FakeRelay:
    return fresh_relays(3)[0]


async def receive_until(connection: TlsConnection, length: int) -> bytes:
    data = b""
    while len(data) < length:
        count = await connection.receive(BUFFER)
        assert count, f"ended after {len(data)} bytes"
        data += BUFFER[:count]
    return data


async def receive_all(connection: TlsConnection) -> bytes:
    data = b""
    while count := await connection.receive(BUFFER):
        data += BUFFER[:count]
    return data


async def test_bytes_go_both_ways() -> None:
    async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with tcp_server(over_tls(echo)) as address:
        connection = await TlsConnection.connect(*address)
        for message in (b"x", bytes(100_000)):
            await connection.send(message)
            assert await receive_until(connection, len(message)) == message
        connection.close()


async def test_one_read_takes_every_record_that_has_come() -> None:
    sent = trio.Event()

    async def many_records(stream: trio.SSLStream[trio.SocketStream]) -> None:
        for number in range(8):
            await stream.send_all(bytes([number]) * 4096)
        sent.set()
        await trio.sleep_forever()

    async with tcp_server(over_tls(many_records)) as address:
        connection = await TlsConnection.connect(*address)
        await sent.wait()
        count = await connection.receive(BUFFER)
        assert count == 8 * 4096
        assert BUFFER[:count] == b"".join(bytes([number]) * 4096 for number in range(8))
        connection.close()


async def test_more_than_one_buffer_holds_arrives_whole() -> None:
    data = SystemRandom().randbytes(1 << 20)

    async def burst(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(data)
        await stream.aclose()

    async with tcp_server(over_tls(burst)) as address:
        connection = await TlsConnection.connect(*address)
        assert await receive_all(connection) == data
        connection.close()


async def test_what_one_connection_has_left_is_untouched_by_the_reads_of_another() -> None:
    """All read into the same memory. A small buffer leaves most of what one system call has brought."""
    length = 50_000

    async def twice(stream: trio.SSLStream[trio.SocketStream]) -> None:
        mark = await stream.receive_some()
        await stream.send_all(bytes(mark) * length)
        await trio.sleep_forever()

    async with tcp_server(over_tls(twice)) as address:
        connections = [await TlsConnection.connect(*address) for _ in range(2)]
        for connection, mark in zip(connections, (b"1", b"2"), strict=True):
            await connection.send(mark)
        received = [b"", b""]
        small = bytearray(1000)
        while any(len(data) < length for data in received):
            for number, connection in enumerate(connections):
                if len(received[number]) < length:
                    received[number] += small[: await connection.receive(small)]
        assert received == [b"1" * length, b"2" * length]
        for connection in connections:
            connection.close()


class Dribble(trio.abc.Stream):
    """A transport that sends one byte at a time."""

    def __init__(self, transport: trio.SocketStream) -> None:
        self._transport = transport

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for byte in bytes(data):
            await self._transport.send_all(bytes([byte]))

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._transport.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._transport.aclose()


async def test_records_cut_anywhere_are_joined() -> None:
    data = bytes(range(256)) * 4

    async def dribble(transport: trio.SocketStream) -> None:
        stream = trio.SSLStream(Dribble(transport), server_context(), server_side=True)
        await stream.send_all(data[:500])
        await stream.send_all(data[500:])
        await stream.aclose()

    async with tcp_server(dribble) as address:
        connection = await TlsConnection.connect(*address)
        assert await receive_all(connection) == data
        connection.close()


async def test_a_large_send_waits_for_a_slow_reader_and_arrives_whole() -> None:
    data = SystemRandom().randbytes(8 << 20)
    may_read = trio.Event()
    received = bytearray()

    async def slow_reader(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.do_handshake()
        await may_read.wait()
        while len(received) < len(data):
            received.extend(await stream.receive_some(1 << 20))
        await stream.send_all(b"!")
        await trio.sleep_forever()

    async with tcp_server(over_tls(slow_reader)) as address:
        connection = await TlsConnection.connect(*address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, data)
            await trio.testing.wait_all_tasks_blocked()
            may_read.set()
        assert await receive_until(connection, 1) == b"!"
        assert bytes(received) == data
        connection.close()


async def test_records_end_where_those_of_c_tor_end() -> None:
    wire = bytearray()
    lengths = (514, 40_000, 4048, 4049, 33 * 514)
    has_read = trio.Event()

    async def read(transport: trio.SocketStream) -> None:
        stream = trio.SSLStream(WatchedStream(transport, wire.extend), server_context(), server_side=True)
        left = sum(lengths)
        while left:
            left -= len(await stream.receive_some(1 << 16))
        has_read.set()

    async with tcp_server(read) as address:
        connection = await TlsConnection.connect(*address)
        for length in lengths:
            await connection.send(bytes(length))
        await has_read.wait()
        connection.close()
    assert _records(wire) == [piece for length in lengths for piece in _pieces(length)]


def _records(wire: bytearray) -> list[int]:
    """How many bytes each record of TLS 1.3 holds; the first that looks like data is the handshake's end."""
    lengths, at = [], 0
    while at < len(wire):
        length = int.from_bytes(wire[at + 3 : at + 5], "big")
        if wire[at] == 23:
            lengths.append(length - 17)
        at += 5 + length
    return lengths[1:]


def _pieces(length: int) -> list[int]:
    """The pieces that chunks of 4048 bytes and writes of 32 cells make of so many bytes."""
    ends = {*range(4048, length, 4048), *range(32 * 514, length, 32 * 514), length}
    return [end - start for start, end in pairwise([0, *sorted(ends)])]


async def test_end_with_a_tls_goodbye_and_without() -> None:
    async def politely(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(b"last words")
        await (await stream.unwrap())[0].aclose()

    async def abruptly(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(b"last words")
        await stream.transport_stream.aclose()

    for script in (politely, abruptly):
        async with tcp_server(over_tls(script)) as address:
            connection = await TlsConnection.connect(*address)
            assert await receive_all(connection) == b"last words"
            connection.close()


async def test_tls_goodbye_after_data_ends_even_if_the_socket_stays_open() -> None:
    async def goodbye_only(transport: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server_context().wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await transport.send_all(outgoing.read())
                incoming.write(await transport.receive_some())
        tls.write(b"last words")
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()  # sends close_notify and waits for the client's
        await transport.send_all(outgoing.read())
        await trio.sleep_forever()

    async with tcp_server(goodbye_only) as address:
        connection = await TlsConnection.connect(*address)
        assert await receive_all(connection) == b"last words"
        connection.close()


async def test_data_that_came_with_the_tls_handshake_is_not_left_lying() -> None:
    async def speaks_first(transport: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = server_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # where the server's Finished comes last
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await transport.send_all(outgoing.read())
                incoming.write(await transport.receive_some())
        tls.write(b"early")
        await transport.send_all(outgoing.read())
        await trio.sleep_forever()

    async with tcp_server(speaks_first) as address:
        connection = await TlsConnection.connect(*address)
        assert await receive_until(connection, 5) == b"early"
        connection.close()


async def test_nobody_listening_is_a_closed_channel() -> None:
    async with tcp_server(over_tls(never)) as address:
        pass
    with pytest.raises(ChannelClosed, match="could not connect"):
        await TlsConnection.connect(*address)


async def never(_: object) -> None:
    await trio.sleep_forever()


async def test_end_during_the_tls_handshake_is_a_closed_channel() -> None:
    async def hang_up(transport: trio.SocketStream) -> None:
        await transport.receive_some()
        await transport.send_eof()
        await trio.sleep_forever()

    async with tcp_server(hang_up) as address:
        with pytest.raises(ChannelClosed, match="during the TLS handshake"):
            await TlsConnection.connect(*address)


async def test_a_peer_that_speaks_no_tls_is_at_fault() -> None:
    async def http(transport: trio.SocketStream) -> None:
        await transport.send_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        await trio.sleep_forever()

    async with tcp_server(http) as address:
        with pytest.raises(ChannelError, match="TLS handshake"):
            await TlsConnection.connect(*address)


async def test_tls_older_than_1_2_is_refused() -> None:
    context = server_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1

    async def handshake(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()

    async with tcp_server(over_tls(handshake, context=context)) as address:
        with pytest.raises((ChannelError, ChannelClosed), match="TLS handshake"):
            await TlsConnection.connect(*address)


async def test_bytes_that_are_no_record_break_the_channel() -> None:
    async def spoil(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.do_handshake()
        await stream.transport_stream.send_all(bytes(1000))
        await trio.sleep_forever()

    async with tcp_server(over_tls(spoil)) as address:
        connection = await TlsConnection.connect(*address)
        with pytest.raises(ChannelError, match="TLS from the relay is broken"):
            await receive_all(connection)
        connection.close()


async def test_what_came_before_broken_bytes_is_received() -> None:
    spoiled = trio.Event()

    async def spoil(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(b"last words")
        await stream.transport_stream.send_all(bytes(1000))
        spoiled.set()
        await trio.sleep_forever()

    async with tcp_server(over_tls(spoil)) as address:
        connection = await TlsConnection.connect(*address)
        await spoiled.wait()
        assert await receive_until(connection, 10) == b"last words"
        for _ in range(2):
            with pytest.raises(ChannelError, match="TLS from the relay is broken: "):
                await connection.receive(BUFFER)
        connection.close()


async def test_a_closed_connection_leaves_the_sockets_number_alone() -> None:
    async with tcp_server(over_tls(never_after_handshake)) as address:
        connection = await TlsConnection.connect(*address)
        connection.close()
        other, end = socket.socketpair()  # takes the number that has become free
        with other, end:
            with pytest.raises(ChannelClosed):
                connection.core.send(b"x")
            end.send(b"y")
            with pytest.raises(ChannelClosed):
                await connection.receive(BUFFER)
            assert other.recv(2) == b"y"


async def test_closing_wakes_a_reader() -> None:
    async with tcp_server(over_tls(never_after_handshake)) as address:
        connection = await TlsConnection.connect(*address)

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await connection.receive(BUFFER)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            connection.close()


async def never_after_handshake(stream: trio.SSLStream[trio.SocketStream]) -> None:
    await stream.do_handshake()
    await trio.sleep_forever()


async def test_the_certificate_is_the_one_shown() -> None:
    async with tcp_server(over_tls(never_after_handshake)) as address:
        connection = await TlsConnection.connect(*address)
        assert connection.peer_certificate() == relay().tls_certificate
        connection.close()


def test_server_names_look_like_those_of_c_tor() -> None:
    names = {random_server_name(SystemRandom()) for _ in range(100)}
    assert all(re.fullmatch(r"www\.[a-z2-7]{4,25}\.com", name) for name in names)
    assert len(names) > 90
