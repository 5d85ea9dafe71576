"""The SOCKS proxy with real clients on loopback, on a circuit through scripted relays.

Each test runs twice: with a circuit that is ready for streams, and with one that has to be waited for.
"""

import errno
import logging
import socket
import sys

import pytest
import trio
import trio.testing
from fake_tor import FakeAnswer
from proxied import (
    CONNECT,
    CONNECT_ADDRESS,
    GRANTED,
    GREETING,
    ScriptedTor,
    proxy_for,
    receive_all,
    receive_exactly,
    reset,
    segments_received,
)

from torkit.errors import EndReason, NoPath, StreamClosed
from torkit.net.proxy import farewell, limits, listener, shared
from torkit.testing.relay import ignore


@pytest.fixture(params=[True, False], ids=["ready", "not ready"], autouse=True)
def readiness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedTor, "is_ready", request.param)


async def test_bytes_go_both_ways() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client = await proxy.client()
        await client.send_all(GREETING + CONNECT)
        stream = await tor.peers.receive()
        assert await receive_exactly(client, len(GRANTED)) == GRANTED
        assert [(host, port) for host, port, _ in tor.asked] == [("web.test", 80)]
        await client.send_all(b"ping")
        assert await stream.receive_some() == b"ping"
        await stream.send_all(b"pong")
        assert await receive_exactly(client, 4) == b"pong"


async def test_a_client_tells_its_state_and_no_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    members: list[limits.Member] = []
    add = limits.Limits.add

    def note(self: limits.Limits, member: limits.Member) -> None:
        members.append(member)
        add(self, member)

    monkeypatch.setattr(limits.Limits, "add", note)
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client = await proxy.client()
        await trio.testing.wait_all_tasks_blocked()
        (member,) = members
        assert repr(member) == "<Client of AnyProtocol, has said nothing yet>"
        await client.send_all(GREETING + CONNECT)
        await tor.peers.receive()
        await receive_exactly(client, len(GRANTED))
        assert repr(member).startswith("<Client of Handshake, carries <Stream ")
        assert "web.test" not in repr(member)


async def test_data_sent_with_the_request_is_first_on_the_stream() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        _, stream = await proxy.open(tor, GREETING + CONNECT + b"GET / HTTP/1.0\r\n\r\n")
        assert await stream.receive_some() == b"GET / HTTP/1.0\r\n\r\n"


async def test_end_of_file_from_client_is_not_an_end() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        await client.send_all(b"request")
        await client.send_eof()
        assert await stream.receive_some() == b"request"
        await trio.testing.wait_all_tasks_blocked()
        assert not stream.has_ended.is_set()
        await stream.send_all(b"late reply")
        await stream.end()
        assert await receive_all(client) == b"late reply"


async def test_client_gets_every_byte_before_the_end() -> None:
    tor = ScriptedTor()
    body = bytes(range(256)) * 32_768  # 8 MiB: far more than the socket holds
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        await stream.send_all(body)
        await stream.end()
        # Bytes of the client's that nobody will read must not turn the close into a reset.
        await client.send_all(bytes(300_000))
        assert await receive_all(client) == body


@pytest.mark.parametrize("wait", [0, 2 * farewell.LINGER_TIMEOUT])
async def test_client_that_reads_slowly_still_gets_every_byte(
    mock_clock: trio.testing.MockClock, wait: float
) -> None:
    tor = ScriptedTor()
    body = bytes(1_000_000)
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        await stream.send_all(body)
        await stream.end()
        received = 0
        while received < len(body) - 30_000:
            received += len(await client.receive_some(4_096))
        # The proxy has written its last; the kernel still holds some, as the client is the slower one.
        await trio.testing.wait_all_tasks_blocked()
        if wait:
            mock_clock.jump(wait)
            await trio.testing.wait_all_tasks_blocked()
        else:
            await client.send_all(b"still talking")
        assert received + len(await receive_all(client)) == len(body)


async def test_peer_that_ends_while_the_client_sends_still_answers() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        await stream.send_all(b"413 too large")
        await stream.end()
        await client.send_all(bytes(100_000))
        assert await receive_all(client) == b"413 too large"


@pytest.mark.parametrize("reason", [EndReason.MISC, EndReason.DESTROY, EndReason.CONNRESET])
async def test_stream_that_fails_resets_the_client(reason: EndReason) -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        await stream.send_all(b"half of it")
        assert await receive_exactly(client, 10) == b"half of it"
        await stream.end(reason)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


async def test_proxy_that_stops_resets_its_clients() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        proxy.scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await stream.has_ended.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only keepalive tells")
async def test_client_that_closes_its_socket_ends_the_stream() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        await client.send_all(b"last words")
        await client.aclose()
        assert await stream.receive_some() == b"last words"
        await stream.has_ended.wait()


async def test_reset_by_client_ends_the_stream() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        reset(client)
        await stream.has_ended.wait()


async def test_reset_after_end_of_file_ends_the_stream() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        await client.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        reset(client)
        await stream.has_ended.wait()


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StreamClosed("", reason=EndReason.RESOLVEFAILED), 4),
        (StreamClosed("", reason=EndReason.CONNECTREFUSED), 5),
        (NoPath(""), 2),
    ],
)
async def test_failure_to_connect_is_answered_with_its_code(failure: Exception, code: int) -> None:
    async with proxy_for(ScriptedTor(failure=failure), circuit=False) as proxy:
        assert await proxy.ask(GREETING + CONNECT) == b"\x05\x00" + bytes([5, code]) + b"\0\x01" + bytes(6)
        assert await proxy.ask(b"\x04\x01\x00\x50\0\0\0\x01\0web.test\0") == b"\0\x5b" + bytes(6)


async def test_connection_that_takes_too_long_is_answered(autojump_clock: trio.testing.MockClock) -> None:
    async with proxy_for(ScriptedTor(is_silent=True), circuit=False) as proxy:
        assert await proxy.ask(GREETING + CONNECT) == b"\x05\x00\x05\x06\0\x01" + bytes(6)
        assert trio.current_time() >= shared.CONNECT_TIMEOUT


async def test_first_attempt_that_is_not_answered_is_given_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ScriptedTor, "is_ready", True)
    monkeypatch.setattr(shared, "ATTEMPT_TIMEOUTS", (0.05,))
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        tor.exit.on_begin = ignore
        client = await proxy.client()
        await client.send_all(GREETING + CONNECT)
        assert await receive_exactly(client, 4) == b"\x05\x00\x05\x06"
        assert [begun is not None for begun in tor.begun] == [True]


async def test_client_that_breaks_while_it_waits_is_let_go() -> None:
    tor = ScriptedTor(is_silent=True)
    async with proxy_for(tor, circuit=False, max_clients=1) as proxy:
        client = await proxy.client()
        await client.send_all(GREETING + CONNECT)
        assert await receive_exactly(client, 2) == b"\x05\x00"
        await trio.testing.wait_all_tasks_blocked()
        reset(client)
        # There is room for one: the next is served only when the first is known to have gone.
        assert await proxy.ask(b"\x16") == b"\x05\xff"


async def test_fault_of_ours_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    tor = ScriptedTor(failure=RuntimeError("web.test"))
    async with proxy_for(tor) as proxy:
        assert await proxy.ask(GREETING + CONNECT) == b"\x05\x00\x05\x01\0\x01" + bytes(6)
        tor.failure = None
        await proxy.open(tor)
    assert "internal error (RuntimeError)" in caplog.text
    assert "web.test" not in caplog.text


@pytest.mark.parametrize(
    ("request_", "answers", "reply"),
    [
        (
            b"\xf0\x00\x03\x08web.test",
            [("ipv6", "2001:db8::1"), ("ipv4", "192.0.2.7")],
            b"\0\0\x01\xc0\0\x02\x07",
        ),
        (b"\xf0\x00\x03\x08web.test", [("ipv6", "::1")], b"\0\0\x04" + bytes(15) + b"\x01"),
        (b"\xf1\x00\x01\xc0\x00\x02\x01", [("hostname", "web.test")], b"\0\0\x03\x08web.test"),
        (b"\xf0\x00\x03\x08web.test", [("hostname", "web.test")], b"\x04\0\x01" + bytes(4)),
        (b"\xf0\x00\x03\x08web.test", [], b"\x04\0\x01" + bytes(4)),
        (b"\xf1\x00\x01\xc0\x00\x02\x01", [("hostname", "web\n.test")], b"\x02\0\x01" + bytes(4)),
        (b"\xf1\x00\x01\xc0\x00\x02\x01", [("hostname", "a" * 300)], b"\x02\0\x01" + bytes(4)),
    ],
)
async def test_lookup_is_answered(request_: bytes, answers: list[tuple[str, str]], reply: bytes) -> None:
    tor = ScriptedTor(answers=[FakeAnswer(*answer) for answer in answers])
    async with proxy_for(tor) as proxy:
        answer = await proxy.ask(GREETING + b"\x05" + request_ + b"\0\0")
        assert answer == b"\x05\x00\x05" + reply + b"\0\0"


async def test_socks4_lookup_takes_the_ipv4_answer() -> None:
    tor = ScriptedTor(answers=[FakeAnswer("ipv6", "::1"), FakeAnswer("ipv4", "192.0.2.7")])
    async with proxy_for(tor) as proxy:
        assert await proxy.ask(b"\x04\xf0\0\0\0\0\0\x01\0web.test\0") == b"\0\x5a\0\0\xc0\0\x02\x07"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (b"\x03\x09192.0.2.1", b"\x01\xc0\0\x02\x01"),
        (b"\x03\x070.0.0.0", b"\x01" + bytes(4)),  # Electrum's question: is this a Tor?
        (b"\x01" + bytes(4), b"\x01" + bytes(4)),
        (b"\x03\x02::", b"\x04" + bytes(16)),
        (b"\x03\x05[::1]", b"\x04" + bytes(15) + b"\x01"),
        (b"\x01\x0a\0\0\x01", b"\x01\x0a\0\0\x01"),
    ],
)
async def test_address_is_its_own_answer_in_one_segment_with_the_methods(asked: bytes, told: bytes) -> None:
    tor = ScriptedTor()
    async with proxy_for(tor, circuit=False) as proxy:
        client = await proxy.client()
        await client.send_all(GREETING + b"\x05\xf0\x00" + asked + b"\0\0")
        assert await receive_all(client) == b"\x05\x00" + b"\x05\0\0" + told + b"\0\0"
        assert segments_received(client) == 1
    assert tor.asked == []


@pytest.mark.parametrize(
    ("handshake", "chosen"),
    [(GREETING, b"\x05\x00"), (b"\x05\x01\x02" + b"\x01\x01u\x01p", b"\x05\x02" + b"\x01\x00")],
)
async def test_refusal_that_needs_no_circuit_comes_in_one_segment(handshake: bytes, chosen: bytes) -> None:
    async with proxy_for(ScriptedTor(), circuit=False, names_only=True) as proxy:
        client = await proxy.client()
        await client.send_all(handshake + CONNECT_ADDRESS)
        assert await receive_all(client) == chosen + b"\x05\x02\x00\x01" + bytes(6)
        assert segments_received(client) == 1


async def test_socks4_lookup_of_an_ipv6_address_is_refused() -> None:
    async with proxy_for(ScriptedTor(), circuit=False) as proxy:
        assert await proxy.ask(b"\x04\xf0\0\0\0\0\0\x01\0::1\0") == b"\0\x5b" + bytes(6)


async def test_credentials_isolate() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        for credentials in (b"\x01\x01a\x01x", b"\x01\x01a\x01x", b"\x01\x01a\x01y", b"\x01\x01b\x01x"):
            client = await proxy.client()
            await client.send_all(b"\x05\x01\x02" + credentials + CONNECT)
            await tor.peers.receive()
        await proxy.open(tor)
    first, same, other_password, other_user, nobody = [asked[2] for asked in tor.asked]
    assert first == same
    assert len({first, other_password, other_user, nobody}) == 4


@pytest.mark.parametrize(
    ("start", "answer"),
    [
        (b"", b"\x05\xff"),
        (GREETING + CONNECT[:-1], b"\x05\x00\x05\x06\0\x01" + bytes(6)),
        (b"\x04", b"\0\x5b" + bytes(6)),
    ],
)
async def test_half_a_handshake_is_answered_and_closed(
    autojump_clock: trio.testing.MockClock, start: bytes, answer: bytes
) -> None:
    async with proxy_for(ScriptedTor(), circuit=False) as proxy:
        assert await proxy.ask(start) == answer
        assert limits.HANDSHAKE_TIMEOUT <= trio.current_time() < 2 * limits.HANDSHAKE_TIMEOUT


async def test_client_that_leaves_in_mid_handshake_is_let_go() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client = await proxy.client()
        await client.send_all(GREETING + CONNECT[:4])
        await client.send_eof()
        assert await receive_all(client) == b"\x05\x00"
    assert tor.asked == []


async def test_http_request_is_told_what_this_is() -> None:
    request = b"POST / HTTP/1.1\r\nHost: web.test\r\n\r\n" + bytes(200_000)
    async with proxy_for(ScriptedTor(), circuit=False) as proxy:
        answer = await proxy.ask(request)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 501 Tor is not an HTTP Proxy\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert b"SOCKS" in body


async def test_garbage_is_answered_and_closed() -> None:
    async with proxy_for(ScriptedTor(), circuit=False) as proxy:
        assert await proxy.ask(b"\x16\x03\x01\x02\x00") == b"\x05\xff"


async def test_clients_beyond_the_limit_wait_for_a_place() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor, max_clients=1) as proxy:
        first, stream = await proxy.open(tor)
        second = await proxy.client()
        await second.send_all(GREETING + CONNECT)
        await trio.testing.wait_all_tasks_blocked()
        assert len(tor.asked) == 1
        await stream.end()
        await first.aclose()
        assert await receive_exactly(second, len(GRANTED)) == GRANTED


async def test_address_without_a_name_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        await proxy.open(tor, GREETING + CONNECT_ADDRESS)
        await proxy.open(tor, GREETING + CONNECT_ADDRESS)
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "resolver" in record.message


async def test_leak_is_warned_about_though_other_programs_asked_for_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tor = ScriptedTor(answers=[FakeAnswer("ipv4", "192.0.2.7")])
    async with proxy_for(tor) as proxy:
        await proxy.open(tor)
        await proxy.ask(GREETING + b"\x05\xf0\x00\x03\x08web.test\0\0")
        await proxy.open(tor, GREETING + CONNECT_ADDRESS)
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "resolver" in record.message


async def test_address_that_was_looked_up_here_is_no_leak(caplog: pytest.LogCaptureFixture) -> None:
    tor = ScriptedTor(answers=[FakeAnswer("ipv4", "192.0.2.1")])
    async with proxy_for(tor) as proxy:
        await proxy.ask(GREETING + b"\x05\xf0\x00\x03\x08web.test\0\0")
        await proxy.open(tor, GREETING + CONNECT_ADDRESS)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_addresses_are_refused_where_only_names_are_safe(caplog: pytest.LogCaptureFixture) -> None:
    tor = ScriptedTor(answers=[FakeAnswer("ipv4", "192.0.2.1"), FakeAnswer("hostname", "web.test")])
    async with proxy_for(tor, names_only=True) as proxy:
        await proxy.open(tor)
        for _ in range(2):
            refused = await proxy.ask(GREETING + CONNECT_ADDRESS)
            assert refused == b"\x05\x00" + b"\x05\x02\x00\x01" + bytes(6)
            refused = await proxy.ask(b"\x04\x01\x00\x50\xc0\x00\x02\x01\x00")
            assert refused == b"\x00\x5b" + bytes(6)
        assert len(tor.asked) == 1
        # No connection is made for these, and SOCKS4a brings a name.
        assert (await proxy.ask(GREETING + b"\x05\xf1\x00\x01\xc0\x00\x02\x01\0\0"))[3] == 0
        assert (await proxy.ask(GREETING + b"\x05\xf0\x00\x01\xc0\x00\x02\x01\0\0"))[3] == 0
        client = await proxy.client()
        await client.send_all(b"\x04\x01\x00\x50\x00\x00\x00\x01\x00web.test\x00")
        assert (await receive_exactly(client, 8))[1] == 0x5A
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "was refused" in record.message
    assert "192.0.2.1" not in record.message


async def test_destinations_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="torkit")
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client, stream = await proxy.open(tor)
        await stream.end(EndReason.MISC)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await proxy.open(tor, GREETING + CONNECT_ADDRESS)
        await proxy.ask(GREETING + CONNECT.replace(b"web.test", b"web.exit"))
    assert caplog.records
    assert "web" not in caplog.text
    assert "192.0.2.1" not in caplog.text


async def test_silent_clients_make_room_the_oldest_first() -> None:
    tor = ScriptedTor()
    async with proxy_for(tor, max_clients=3) as proxy:
        carried, _ = await proxy.open(tor)
        silent = []
        for _ in range(2):
            silent.append(await proxy.client())
            await silent[-1].send_all(b"\x05")
            await trio.testing.wait_all_tasks_blocked()
        _, _ = await proxy.open(tor)
        with pytest.raises(trio.BrokenResourceError):
            await silent[0].receive_some()
        await silent[1].send_all(b"\x01\0")  # the younger one is still there
        assert await receive_exactly(silent[1], 2) == b"\x05\0"
        await carried.send_all(b"on")


@pytest.mark.parametrize(
    "begun",
    [b"", b"\x05\1\0", b"\x05\1\0\x05\1\0\3\x08web", b"\4\1\0P", b"GET http://web.test/ HTTP/1.1\r\nHost"],
    ids=["nothing", "greeting", "SOCKS5", "SOCKS4", "HTTP"],
)
async def test_half_a_request_keeps_no_place(begun: bytes) -> None:
    tor = ScriptedTor()
    async with proxy_for(tor, max_clients=1) as proxy:
        silent = await proxy.client()
        if begun:
            await silent.send_all(begun)
        await trio.testing.wait_all_tasks_blocked()
        await proxy.open(tor)

        async def read_on() -> None:
            while await silent.receive_some():  # the answer to a greeting may come first
                pass

        with pytest.raises(trio.BrokenResourceError):
            await read_on()


async def test_a_greeting_may_come_late(autojump_clock: trio.testing.MockClock) -> None:
    tor = ScriptedTor()
    async with proxy_for(tor) as proxy:
        client = await proxy.client()
        await trio.sleep(100)
        await client.send_all(GREETING)
        assert await receive_exactly(client, 2) == b"\x05\0"


async def test_that_descriptors_run_out_is_said_once_a_minute(
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with proxy_for(ScriptedTor()) as proxy:
        failures = 0

        def accept(self: object) -> None:
            nonlocal failures
            failures += 1
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(socket.socket, "accept", accept)
        client = await proxy.client()
        await trio.sleep(listener.ACCEPT_WARNING - 1)
        said = [record for record in caplog.records if "no client can be accepted" in record.message]
        assert (len(said), failures > 10) == (1, True)
        await trio.sleep(2)
        said = [record for record in caplog.records if "no client can be accepted" in record.message]
        assert len(said) == 2
        await client.aclose()
