"""TLS end to end, over memory: who is believed, and which ends are."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from doors import tls_contexts

from torkit.errors import NotProven, PeerError, StreamClosed, TimedOut
from torkit.net.secured import default_context, secure

Far = Callable[[trio.abc.Stream], Awaitable[None]]


@asynccontextmanager
async def facing(far: Far) -> AsyncIterator[trio.abc.Stream]:
    near, other = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far, other)
        yield near
        nursery.cancel_scope.cancel()


def server(context: ssl.SSLContext, answer: bytes = b"", *, says_end: bool) -> Far:
    """It sends `answer` and ends, with or without a close_notify."""

    async def serve(stream: trio.abc.Stream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        try:
            await tls.do_handshake()
            await tls.send_all(answer)
        except trio.BrokenResourceError:
            return
        await (tls if says_end else stream).aclose()

    return serve


async def test_a_server_that_proves_its_name(tmp_path: Path) -> None:
    theirs, ours = tls_contexts(tmp_path)
    async with facing(server(theirs, b"hello", says_end=True)) as stream:
        secured = await secure(stream, "web.test.", ours)  # with the dot that ends a full name
        assert secured.version == "TLSv1.3"
        assert await secured.receive_some() == b"hello"
        assert await secured.receive_some() == b""
        await secured.say_end()


async def test_an_end_that_the_server_has_not_announced_is_no_end(tmp_path: Path) -> None:
    theirs, ours = tls_contexts(tmp_path)
    async with facing(server(theirs, b"half", says_end=False)) as stream:
        secured = await secure(stream, "web.test", ours)
        assert await secured.receive_some() == b"half"
        with pytest.raises(StreamClosed, match="close_notify"):
            await secured.receive_some()
        await secured.say_end()


@pytest.mark.parametrize("host", ["other.test", "192.0.2.1"])
async def test_another_name_is_not_believed_and_not_told(tmp_path: Path, host: str) -> None:
    theirs, ours = tls_contexts(tmp_path)
    async with facing(server(theirs, says_end=True)) as stream:
        with pytest.raises(NotProven) as caught:
            await secure(stream, host, ours)
        assert str(caught.value) == "the destination's certificate is for another name"
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_an_authority_that_nobody_knows_is_not_believed(tmp_path: Path) -> None:
    theirs, _ = tls_contexts(tmp_path)
    async with facing(server(theirs, says_end=True)) as stream:
        with pytest.raises(NotProven, match="self-signed") as caught:
            await secure(stream, "web.test")
        assert "SSL_CERT_FILE" in str(caught.value.hint)


async def test_an_authority_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, _ = tls_contexts(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/web.test.pem")
    async with facing(server(theirs, says_end=True)) as stream:
        await secure(stream, "web.test")


async def test_what_speaks_no_tls_is_told(tmp_path: Path) -> None:
    async def http(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    async with facing(http) as stream:
        with pytest.raises(PeerError, match="wrong version number"):
            await secure(stream, "web.test")


async def test_who_hangs_up_within_the_handshake(tmp_path: Path) -> None:
    async def hang_up(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.aclose()

    async with facing(hang_up) as stream:
        with pytest.raises(StreamClosed, match="while TLS was agreed upon"):
            await secure(stream, "web.test")


async def test_who_says_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    near, _ = trio.testing.memory_stream_pair()
    with pytest.raises(TimedOut, match="60 s"):
        await secure(near, "web.test")


async def test_what_is_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    theirs, ours = tls_contexts(tmp_path)
    near, exit_side = trio.testing.memory_stream_pair()
    is_tampering = False

    async def exit_relay(far: trio.abc.Stream) -> None:
        async def carry(source: trio.abc.Stream, sink: trio.abc.Stream, *, tampers: bool) -> None:
            while data := bytearray(await source.receive_some()):
                if tampers and is_tampering:
                    data[-1] ^= 1
                await sink.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: carry(exit_side, far, tampers=False))
            nursery.start_soon(lambda: carry(far, exit_side, tampers=True))

    async with facing(exit_relay) as far, trio.open_nursery() as nursery:
        tls = trio.SSLStream(far, theirs, server_side=True)
        nursery.start_soon(tls.do_handshake)
        secured = await secure(near, "web.test", ours)
        await trio.testing.wait_all_tasks_blocked()
        is_tampering = True
        await tls.send_all(b"hello")
        with pytest.raises(PeerError, match="bad record mac"):
            await secured.receive_some()
        nursery.cancel_scope.cancel()


def test_what_the_hello_says() -> None:
    """What docs/observers.md says of it: no ALPN, no ticket; the names that are checked."""
    context = default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="web.test").do_handshake()
    hello = outgoing.read()
    assert b"web.test" in hello
    extensions = extensions_of(hello)
    assert 16 not in extensions  # application_layer_protocol_negotiation
    assert 41 not in extensions  # pre_shared_key
    assert extensions.get(35, b"") == b""  # session_ticket
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.keylog_filename is None


def extensions_of(hello: bytes) -> dict[int, bytes]:
    """Of a ClientHello in one record. RFC 8446, section 4.1.2."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    at += 2
    found = {}
    while at < len(hello):
        kind, length = (
            int.from_bytes(hello[at : at + 2], "big"),
            int.from_bytes(hello[at + 2 : at + 4], "big"),
        )
        found[kind] = hello[at + 4 : at + 4 + length]
        at += 4 + length
    return found
