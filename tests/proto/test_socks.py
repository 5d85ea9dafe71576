"""The SOCKS handshake: every request in every chunking, every truncation, and bytes that are no SOCKS."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.errors import (
    ChannelClosed,
    CircuitClosed,
    CircuitError,
    EndReason,
    NoDirectory,
    NoPath,
    OnionServiceError,
    OnionStep,
    PeerError,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
)
from torkit.proto.request import Command, Request
from torkit.proto.socks import Handshake, Reply, State, encode_reply, reply_for

GREETING = b"\x05\x01\x00"
CHOSEN = b"\x05\x00"
BY_NAME = b"\x05\x01\x00\x03\x08web.test\x00\x50"


def socks5(command: int, host: bytes, port: int = 80) -> bytes:
    return bytes([5, command, 0, 3, len(host)]) + host + port.to_bytes(2, "big")


def userpass(user: bytes, password: bytes) -> bytes:
    return bytes([1, len(user)]) + user + bytes([len(password)]) + password


def socks4(command: int, address: bytes, rest: bytes, port: int = 80) -> bytes:
    return bytes([4, command]) + port.to_bytes(2, "big") + address + rest


def auth(user: bytes, password: bytes) -> tuple[str, bytes, bytes]:
    return ("socks-auth", user, password)


# Whole conversations: the client's bytes, the request they end in, and the bytes it is sent meanwhile.
CONVERSATIONS = {
    "socks5 name": (GREETING + BY_NAME, Request(Command.CONNECT, "web.test", 80), CHOSEN),
    "socks5 ipv4": (
        GREETING + b"\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb",
        Request(Command.CONNECT, "192.0.2.1", 443),
        CHOSEN,
    ),
    "socks5 ipv6": (
        GREETING + b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x00\x16",
        Request(Command.CONNECT, "2001:db8::1", 22),
        CHOSEN,
    ),
    "socks5 address written as a name": (
        GREETING + socks5(1, b"[2001:DB8::1]"),
        Request(Command.CONNECT, "2001:db8::1", 80),
        CHOSEN,
    ),
    "socks5 longest name": (
        GREETING + socks5(1, b"a" * 255),
        Request(Command.CONNECT, "a" * 255, 80),
        CHOSEN,
    ),
    "socks5 credentials": (
        b"\x05\x03\x00\x01\x02" + userpass(b"u", b"secret") + BY_NAME,
        Request(Command.CONNECT, "web.test", 80, auth(b"u", b"secret")),
        b"\x05\x02\x01\x00",
    ),
    "socks5 empty credentials": (
        b"\x05\x01\x02" + userpass(b"", b"") + BY_NAME,
        Request(Command.CONNECT, "web.test", 80, auth(b"", b"")),
        b"\x05\x02\x01\x00",
    ),
    "socks5 credentials not offered": (
        GREETING + userpass(b"u", b"p") + BY_NAME,
        Request(Command.CONNECT, "web.test", 80, auth(b"u", b"p")),
        CHOSEN + b"\x01\x00",
    ),
    "socks5 known extended format": (
        b"\x05\x01\x02" + userpass(b"<torS0X>0", b"p") + BY_NAME,
        Request(Command.CONNECT, "web.test", 80, auth(b"<torS0X>0", b"p")),
        b"\x05\x02\x01\x00",
    ),
    "socks5 resolve": (
        GREETING + socks5(0xF0, b"web.test", 0),
        Request(Command.RESOLVE, "web.test", 0, kinds=("ipv4", "ipv6")),
        CHOSEN,
    ),
    "socks5 resolve_ptr": (
        GREETING + b"\x05\xf1\x00\x01\xc0\x00\x02\x01\x00\x00",
        Request(Command.RESOLVE_PTR, "192.0.2.1", 0, kinds=("hostname",)),
        CHOSEN,
    ),
    "socks5 resolve no address": (
        GREETING + socks5(0xF0, b"0.0.0.0", 0),
        Request(Command.RESOLVE, "0.0.0.0", 0, kinds=("ipv4", "ipv6")),
        CHOSEN,
    ),
    "socks4": (
        socks4(1, b"\xc0\x00\x02\x01", b"\0"),
        Request(Command.CONNECT, "192.0.2.1", 80),
        b"",
    ),
    "socks4 with a user": (
        socks4(1, b"\xc0\x00\x02\x01", b"me\0"),
        Request(Command.CONNECT, "192.0.2.1", 80, auth(b"me", b"")),
        b"",
    ),
    "socks4a": (
        socks4(1, b"\0\0\0\x01", b"\0web.test\0"),
        Request(Command.CONNECT, "web.test", 80),
        b"",
    ),
    "socks4a resolve": (
        socks4(0xF0, b"\0\0\0\x01", b"\0web.test\0", 0),
        Request(Command.RESOLVE, "web.test", 0, kinds=("ipv4",)),
        b"",
    ),
    "socks4a longest strings": (
        socks4(1, b"\0\0\0\xff", b"u" * 255 + b"\0" + b"a" * 255 + b"\0"),
        Request(Command.CONNECT, "a" * 255, 80, auth(b"u" * 255, b"")),
        b"",
    ),
}

FAILURE = b"\x00\x01\0\0\0\0\0\0"  # what follows version and code in a SOCKS5 failure
REJECTED = b"\x00\x5b\0\0\0\0\0\0"

# The client's bytes, whose fault, and everything it is sent before the connection is closed.
REFUSALS = {
    "unknown version": (b"\x03", PeerError, b"\x05\xff"),
    "tls": (b"\x16\x03\x01", PeerError, b"\x05\xff"),
    "no methods": (b"\x05\x00", PeerError, b"\x05\xff"),
    "only gssapi": (b"\x05\x01\x01", PeerError, b"\x05\xff"),
    "credentials of version 5": (b"\x05\x01\x02\x05", PeerError, b"\x05\x02\x01\x01"),
    "unknown extended format": (
        b"\x05\x01\x02" + userpass(b"<torS0X>1", b""),
        UsageError,
        b"\x05\x02\x01\x01",
    ),
    "extended format without a number": (
        b"\x05\x01\x02" + userpass(b"<torS0X>", b""),
        UsageError,
        b"\x05\x02\x01\x01",
    ),
    "extended format with more": (
        b"\x05\x01\x02" + userpass(b"<torS0X>0x", b""),
        UsageError,
        b"\x05\x02\x01\x01",
    ),
    "extended format in socks4": (
        socks4(1, b"\xc0\x00\x02\x01", b"<torS0X>1\0"),
        UsageError,
        REJECTED,
    ),
    "request of version 4": (GREETING + b"\x04", PeerError, CHOSEN + b"\x05\x01" + FAILURE),
    "credentials twice": (
        b"\x05\x01\x02" + userpass(b"u", b"p") + userpass(b"u", b"p"),
        PeerError,
        b"\x05\x02\x01\x00\x05\x01" + FAILURE,
    ),
    "bind": (GREETING + socks5(2, b"web.test"), UsageError, CHOSEN + b"\x05\x07" + FAILURE),
    "udp associate": (GREETING + socks5(3, b"web.test"), UsageError, CHOSEN + b"\x05\x07" + FAILURE),
    "unknown address type": (
        GREETING + b"\x05\x01\x00\x02\x00",
        PeerError,
        CHOSEN + b"\x05\x08" + FAILURE,
    ),
    "port 0": (GREETING + socks5(1, b"web.test", 0), PeerError, CHOSEN + b"\x05\x01" + FAILURE),
    "ptr of a name": (GREETING + socks5(0xF1, b"web.test"), UsageError, CHOSEN + b"\x05\x08" + FAILURE),
    "empty name": (GREETING + socks5(1, b""), UsageError, CHOSEN + b"\x05\x02" + FAILURE),
    "nul in a name": (GREETING + socks5(1, b"web\0.test"), UsageError, CHOSEN + b"\x05\x02" + FAILURE),
    "name not in ascii": (
        GREETING + socks5(1, "bücher.test".encode()),
        UsageError,
        CHOSEN + b"\x05\x02" + FAILURE,
    ),
    "resolve onion": (
        GREETING + socks5(0xF0, b"x" * 56 + b".onion"),
        UsageError,
        CHOSEN + b"\x05\x02" + FAILURE,
    ),
    "exit": (GREETING + socks5(1, b"web.test.relay.exit"), UsageError, CHOSEN + b"\x05\x02" + FAILURE),
    "socks4 bind": (socks4(2, b"\xc0\x00\x02\x01", b"\0"), UsageError, REJECTED),
    "socks4 ptr": (socks4(0xF1, b"\xc0\x00\x02\x01", b"\0"), UsageError, REJECTED),
    "socks4 port 0": (socks4(1, b"\xc0\x00\x02\x01", b"\0", 0), PeerError, REJECTED),
    "socks4 user too long": (socks4(1, b"\xc0\x00\x02\x01", b"u" * 256), PeerError, REJECTED),
    "socks4a name too long": (
        socks4(1, b"\0\0\0\x01", b"\0" + b"a" * 256),
        PeerError,
        REJECTED,
    ),
}


def converse(chunks: list[bytes]) -> tuple[Request | TorkitError | None, bytes, bytes]:
    """What a client that sends `chunks` gets: the outcome, the answers, and the stream's first data."""
    handshake = Handshake()
    answers = b""
    outcome: Request | TorkitError | None = None
    for index, chunk in enumerate(chunks):
        try:
            outcome = handshake.receive_data(chunk)
        except (PeerError, UsageError) as error:
            outcome = error
        answers += handshake.data_to_send()
        if outcome is not None:
            rest = b"".join(chunks[index + 1 :])
            return outcome, answers, handshake.trailing_data + rest
    return None, answers, b""


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_request_is_the_same_in_any_chunking(name: str) -> None:
    data, request, answers = CONVERSATIONS[name]
    for split in range(len(data)):
        assert converse([data[:split], data[split:]]) == (request, answers, b"")
    assert converse([data[i : i + 1] for i in range(len(data))]) == (request, answers, b"")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_truncated_request_waits_for_more(name: str) -> None:
    data, _, answers = CONVERSATIONS[name]
    for end in range(len(data)):
        outcome, sent, _ = converse([data[:end]])
        assert outcome is None
        assert answers.startswith(sent)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_data_after_the_request_is_kept_for_the_stream(name: str) -> None:
    data, request, answers = CONVERSATIONS[name]
    assert converse([data + b"\x05early"]) == (request, answers, b"\x05early")


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_is_answered_the_same_in_any_chunking(name: str) -> None:
    data, fault, answers = REFUSALS[name]
    for chunks in ([data], [data[:1], data[1:]], [data[i : i + 1] for i in range(len(data))]):
        outcome, sent, _ = converse(chunks)
        assert isinstance(outcome, fault)
        assert sent == answers


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_does_not_name_the_destination(name: str) -> None:
    data, _, _ = REFUSALS[name]
    outcome, _, _ = converse([data])
    assert "web" not in str(outcome)


def test_finished_handshake_takes_no_more_data() -> None:
    handshake = Handshake()
    handshake.receive_data(GREETING + BY_NAME)
    with pytest.raises(UsageError, match="DONE"):
        handshake.receive_data(b"x")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", b"\x05\xff"),
        (b"\x05", b"\x05\xff"),
        (b"\x05\x02\x00", b"\x05\xff"),
        (b"\x05\x01\x02\x01", b"\x01\x01"),
        (GREETING + b"\x05\x01", b"\x05\x06" + FAILURE),
        (b"\x04\x01", REJECTED),
    ],
)
def test_late_client_is_refused_in_the_words_of_its_state(data: bytes, answer: bytes) -> None:
    handshake = Handshake()
    handshake.receive_data(data)
    handshake.data_to_send()
    handshake.give_up()
    assert handshake.data_to_send() == answer
    assert handshake.state is State.REFUSED


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=40),
    st.sampled_from([b"", b"\x05", b"\x04", GREETING]),
)
def test_random_bytes_end_in_a_request_a_refusal_or_a_wait(chunks: list[bytes], start: bytes) -> None:
    whole = b"".join([start, *chunks])
    in_chunks, at_once = converse([start, *chunks]), converse([whole])
    assert in_chunks[1] == at_once[1]
    assert type(in_chunks[0]) is type(at_once[0])
    assert str(in_chunks[0]) == str(at_once[0])
    if at_once[0] is None:
        assert len(whole) < 1_100  # two longest SOCKS5 messages and their greeting: nothing grows without end


def test_reply_holds_the_answer_to_a_lookup() -> None:
    assert encode_reply(5, Reply.SUCCEEDED) == b"\x05\0\0\x01" + bytes(6)
    assert encode_reply(5, Reply.SUCCEEDED, "192.0.2.1") == b"\x05\0\0\x01\xc0\0\x02\x01\0\0"
    assert (
        encode_reply(5, Reply.SUCCEEDED, "2001:db8::1")
        == b"\x05\0\0\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\0\0"
    )
    assert encode_reply(5, Reply.SUCCEEDED, "web.test") == b"\x05\0\0\x03\x08web.test\0\0"
    assert encode_reply(4, Reply.SUCCEEDED, "192.0.2.1") == b"\0\x5a\0\0\xc0\0\x02\x01"


@pytest.mark.parametrize("host", ["2001:db8::1", "web.test"])
def test_socks4_has_no_room_for_other_answers(host: str) -> None:
    with pytest.raises(UsageError):
        encode_reply(4, Reply.SUCCEEDED, host)


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (StreamClosed("", reason=EndReason.RESOLVEFAILED), Reply.HOST_UNREACHABLE),
        (StreamClosed("", reason=EndReason.CONNECTREFUSED), Reply.CONNECTION_REFUSED),
        (StreamClosed("", reason=EndReason.EXITPOLICY), Reply.NOT_ALLOWED),
        (StreamClosed("", reason=EndReason.TIMEOUT), Reply.TTL_EXPIRED),
        (StreamClosed("", reason=EndReason.NOROUTE), Reply.HOST_UNREACHABLE),
        (StreamClosed("", reason=EndReason.MISC), Reply.GENERAL_FAILURE),
        (StreamClosed("", reason=EndReason.DONE), Reply.CONNECTION_REFUSED),
        (NoPath(""), Reply.NOT_ALLOWED),
        (UsageError(""), Reply.NOT_ALLOWED),
        (NoDirectory(""), Reply.NETWORK_UNREACHABLE),
        (ChannelClosed(""), Reply.NETWORK_UNREACHABLE),
        (TimedOut(""), Reply.TTL_EXPIRED),
        (CircuitClosed(""), Reply.GENERAL_FAILURE),
        (CircuitError(""), Reply.GENERAL_FAILURE),
    ],
)
def test_errors_have_their_reply_codes(error: TorkitError, reply: Reply) -> None:
    assert reply_for(error) is reply


@pytest.mark.parametrize("step", OnionStep)
def test_where_an_onion_service_failed_is_an_extended_code(step: OnionStep) -> None:
    reply = reply_for(OnionServiceError("", step=step))
    assert encode_reply(5, reply)[1] == step.value in range(0xF0, 0xF8)
    assert encode_reply(4, reply)[1] == 0x5B


def test_every_end_reason_is_a_failure() -> None:
    for reason in EndReason:
        assert reply_for(StreamClosed("", reason=reason)) is not Reply.SUCCEEDED
