"""The client's side of SOCKS5 against the server's, and against bytes that are no SOCKS."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.cli.failures import exit_status
from torkit.errors import (
    EndReason,
    NoDirectory,
    NoPath,
    NoProxy,
    OnionServiceError,
    OnionStep,
    StreamClosed,
    TimedOut,
    TorkitError,
)
from torkit.proto.request import Command, Request
from torkit.proto.socks import Handshake, Reply, encode_reply, reply_for
from torkit.proto.socks_client import Conversation, Credentials, error_for

CREDENTIALS = Credentials(b"user", b"password")
BY_NAME = Request(Command.CONNECT, "web.test", 80)
GRANTED = encode_reply(5, Reply.SUCCEEDED)
REQUESTS = [
    BY_NAME,
    Request(Command.CONNECT, "a" * 56 + ".onion", 443),
    Request(Command.CONNECT, "192.0.2.1", 22),
    Request(Command.CONNECT, "2001:db8::1", 65_535),
    Request(Command.RESOLVE, "web.test", 0),
    Request(Command.RESOLVE_PTR, "192.0.2.1", 0),
]


@pytest.mark.parametrize("chunk_len", [1, 3, 1_000])
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: f"{request.command.value} {request.host}")
def test_a_proxy_of_ours_understands_every_request(request_: Request, chunk_len: int) -> None:
    ours, theirs = Conversation(request_, CREDENTIALS), Handshake()
    while (asked := theirs.request) is None:
        sent = ours.data_to_send()
        assert sent
        theirs.receive_data(sent)
        answer = theirs.data_to_send()
        for start in range(0, len(answer), chunk_len):
            ours.receive_data(answer[start : start + chunk_len])
    assert asked._replace(kinds=()) == request_._replace(isolation=("socks-auth", b"user", b"password"))
    assert not ours.receive_data(GRANTED[:-1])
    assert ours.receive_data(GRANTED[-1:] + b"first bytes")
    assert ours.trailing_data == b"first bytes"


def test_without_a_request_credentials_are_all_that_is_sent() -> None:
    ours = Conversation(None, CREDENTIALS)
    assert not ours.receive_data(b"\x05\x02")
    assert ours.receive_data(b"\x01\x00")
    assert ours.data_to_send() == b"\x05\x01\x02" + b"\x01\x04user\x08password"


@pytest.mark.parametrize(
    "answer",
    [b"\x05\x00", b"\x05\xff", b"\x04\x5a", b"HTTP/1.1 400\r\n", b"\x05\x02\x01\x01"],
)
def test_who_keeps_nobody_apart_learns_no_destination(answer: bytes) -> None:
    ours = Conversation(BY_NAME, CREDENTIALS)
    with pytest.raises(NoProxy):
        ours.receive_data(answer)
    assert b"web.test" not in ours.data_to_send()


@given(st.binary(max_size=300))
def test_a_reply_of_any_bytes_is_granted_or_an_error(reply: bytes) -> None:
    ours = Conversation(BY_NAME, CREDENTIALS)
    ours.receive_data(b"\x05\x02\x01\x00")
    try:
        is_granted = ours.receive_data(reply)
    except TorkitError:
        return
    assert is_granted is (len(reply) >= 10 and reply[1] == 0)


@pytest.mark.parametrize("code", [code for code in Reply if code is not Reply.SUCCEEDED])
def test_a_reply_that_refuses_is_an_error(code: Reply) -> None:
    ours = Conversation(BY_NAME, CREDENTIALS)
    ours.receive_data(b"\x05\x02\x01\x00")
    with pytest.raises(TorkitError) as caught:
        ours.receive_data(encode_reply(5, code))
    assert str(caught.value) == str(error_for(code, BY_NAME))
    assert not ours.is_complete


@pytest.mark.parametrize(
    ("host", "value"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::1"), ("web.test", "web.test")],
)
def test_answers_to_look_ups(host: str, value: str) -> None:
    ours = Conversation(Request(Command.RESOLVE, "web.test", 0), CREDENTIALS)
    ours.receive_data(b"\x05\x02\x01\x00")
    assert ours.receive_data(encode_reply(5, Reply.SUCCEEDED, host))
    assert ours.answer == value


FAILURES = [
    NoPath("no exit allows it"),
    NoDirectory("no directory"),
    TimedOut("too late"),
    *(OnionServiceError.at(step) for step in OnionStep),
    *(
        StreamClosed("ended", reason=reason)
        for reason in EndReason
        if reason not in (EndReason.DONE, EndReason.NOROUTE, EndReason.CONNRESET)
    ),
]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_failure_has_the_status_that_it_has_without_a_proxy(failure: TorkitError) -> None:
    assert exit_status(error_for(reply_for(failure), BY_NAME)) == exit_status(failure)


def test_a_failure_has_the_sentence_that_it_has_without_a_proxy() -> None:
    refused = StreamClosed("", reason=EndReason.CONNECTREFUSED)
    assert str(error_for(reply_for(refused), BY_NAME)).startswith(EndReason.CONNECTREFUSED.sentence)
    for step in OnionStep:
        ours = error_for(reply_for(OnionServiceError.at(step)), BY_NAME)
        assert (str(ours), ours.hint) == (step.sentence, OnionServiceError.at(step).hint)


def test_no_route_to_an_address_is_no_name_that_could_not_be_found() -> None:
    to_address = Request(Command.CONNECT, "192.0.2.1", 80)
    assert "no way" in str(error_for(Reply.HOST_UNREACHABLE, to_address))
    assert "no such name" in str(error_for(Reply.HOST_UNREACHABLE, BY_NAME))
    reverse = Request(Command.RESOLVE_PTR, "192.0.2.1", 0)
    assert "no such name" in str(error_for(Reply.HOST_UNREACHABLE, reverse))


@pytest.mark.parametrize("code", range(1, 256))
def test_every_code_is_an_error(code: int) -> None:
    assert str(error_for(code, BY_NAME))


def test_credentials_are_equal_for_equal_isolation_only() -> None:
    isolations = [
        None,
        ("a",),
        ("b",),
        (None,),
        (1,),
        ("1",),
        (b"1",),
        (("x", b"y", b""), 80),
        (("x", b"y"), 80),
    ]
    told = [CREDENTIALS.within(isolation) for isolation in isolations]
    assert told[0] == CREDENTIALS
    assert len(set(told)) == len(told)
    assert told == [CREDENTIALS.within(isolation) for isolation in isolations]
    assert CREDENTIALS.within("a") != CREDENTIALS._replace(password=b"other").within("a")
    assert all(len(field) <= 255 for one in told for field in one)
