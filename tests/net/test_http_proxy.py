"""The proxy spoken to in HTTP, with real clients on loopback, on a circuit through scripted relays.

Each test runs twice: with a circuit that is ready for streams, and with one that has to be waited for.
"""

import pytest
import trio
from bad_http import SMUGGLING
from proxied import Peer, Proxy, ScriptedTor, proxy_for, receive_all, receive_exactly

from torkit.errors import EndReason, StreamClosed
from torkit.proto.http import GRANTED

CONNECT = b"CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\n\r\n"
GET = b"GET http://web.test/page HTTP/1.1\r\nHost: web.test\r\nProxy-Connection: keep-alive\r\n\r\n"
FORWARDED = b"GET /page HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n"
POST = b"POST http://web.test/ HTTP/1.1\r\nHost: web.test\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture(params=[True, False], ids=["ready", "not ready"], autouse=True)
def readiness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedTor, "is_ready", request.param)


async def opened(proxy: Proxy, tor: ScriptedTor, data: bytes) -> tuple[trio.SocketStream, Peer]:
    client = await proxy.client()
    await client.send_all(data)
    return client, await tor.peers.receive()


async def received(peer: Peer, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += await peer.receive_some()
    return data


async def test_connect_carries_bytes_both_ways() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, CONNECT + b"early")
        assert await receive_exactly(client, len(GRANTED)) == GRANTED
        assert await received(peer, 5) == b"early"
        await peer.send_all(b"pong")
        assert await receive_exactly(client, 4) == b"pong"
        await peer.end()
        assert await receive_all(client) == b""
    assert tor.asked[0][:2] == ("web.test", 443)


async def test_a_connect_that_fails_is_told_by_status_and_words() -> None:
    tor = ScriptedTor(failure=StreamClosed("the exit found no such name", reason=EndReason.RESOLVEFAILED))
    async with proxy_for(tor, circuit=False) as proxy:
        answer = await proxy.ask(CONNECT)
    assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"Proxy-Status: torkit; error=dns_error\r\n" in answer
    assert answer.endswith(b"\r\n\r\nthe exit found no such name\n")


async def test_a_request_is_forwarded_and_its_answer_comes_back() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, GET)
        assert await received(peer, len(FORWARDED)) == FORWARDED
        await peer.send_all(
            b"HTTP/1.1 200 Fine\r\nX-Own: 1\r\nKeep-Alive: 5\r\nContent-Length: 5\r\n\r\nhello"
        )
        assert await receive_all(client) == (
            b"HTTP/1.1 200 Fine\r\nX-Own: 1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        )
        await peer.has_ended.wait()
    assert tor.asked[0][:2] == ("web.test", 80)


async def test_a_body_goes_on_whole_and_what_is_behind_it_does_not() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, POST + b"01234")
        await client.send_all(b"56789GET http://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n")
        head = POST.replace(b"http://web.test", b"").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert await received(peer, len(head) + 10) == head + b"0123456789"
        await peer.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert (await receive_all(client)).startswith(b"HTTP/1.1 204 No Content\r\n")
        assert bytes(peer.fake.received) == head + b"0123456789"
    assert len(tor.asked) == 1


async def test_a_body_in_chunks_is_written_in_chunks() -> None:
    tor = ScriptedTor()
    head = b"POST http://web.test/ HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, head + b"3;x=y\r\nabc\r\n0\r\n\r\n")
        data = await received(peer, 90)
        while not data.endswith(b"0\r\n\r\n"):
            data += await peer.receive_some()
        assert data.partition(b"\r\n\r\n")[2] == b"3\r\nabc\r\n0\r\n\r\n"
        await peer.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        assert (await receive_all(client)).endswith(b"\r\n\r\n2\r\nhi\r\n0\r\n\r\n")


async def test_a_server_may_ask_for_the_body_or_answer_without_it() -> None:
    tor = ScriptedTor()
    head = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, head)
        await peer.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await receive_exactly(client, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send_all(b"01234")
        await peer.send_all(b"HTTP/1.1 413 Too much\r\nContent-Length: 0\r\n\r\n")
        assert (await receive_all(client)).startswith(b"HTTP/1.1 413 Too much\r\n")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_that_ends_with_the_connection_is_whole(version: bytes) -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, GET.replace(b"HTTP/1.1", b"HTTP/" + version))
        await peer.send_all(b"HTTP/1.0 200 OK\r\n\r\nhello")
        await peer.end()
        answer = await receive_all(client)
    assert answer.endswith(b"hello" if version == b"1.0" else b"5\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "head", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\n", b"\r\n"]
)
@pytest.mark.parametrize("reason", [EndReason.DONE, EndReason.MISC])
async def test_an_answer_that_is_cut_short_ends_with_a_reset(head: bytes, reason: EndReason) -> None:
    if head == b"\r\n" and reason is EndReason.DONE:
        pytest.skip("nobody can tell")
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, GET)
        await peer.send_all(b"HTTP/1.1 200 OK\r\n" + head + b"hello")
        data = b""
        while b"hello" not in data:
            data += await client.receive_some()
        await peer.end(reason)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)


@pytest.mark.parametrize("answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])
async def test_a_server_that_answers_no_http_is_told(answer: bytes) -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, GET)
        await peer.send_all(answer)
        await peer.end()
        assert (await receive_all(client)).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


async def test_a_server_that_never_ends_its_fields_is_ended() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, GET)
        await peer.send_all(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4_000)
        assert (await receive_all(client)).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


async def test_a_client_that_leaves_ends_the_stream() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, peer = await opened(proxy, tor, POST + b"01")
        await client.aclose()
        await peer.has_ended.wait()


async def test_bad_requests_are_answered_and_nothing_is_asked() -> None:
    """The answer ends with the connection."""
    tor = ScriptedTor()
    async with proxy_for(tor, circuit=False) as proxy:
        for shape, data in SMUGGLING.items():
            assert (await proxy.ask(data)).startswith(b"HTTP/1.1 400 Bad Request\r\n"), shape
        endless = GET[:-2] + b"X: y\r\n" * 4_000
        assert (await proxy.ask(endless)).startswith(b"HTTP/1.1 400 ")
    assert not tor.asked
