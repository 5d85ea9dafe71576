"""Requests to an HTTP proxy: those that are served, and shapes that two readers could read differently."""

import pytest
from bad_http import SMUGGLING, request
from hypothesis import given
from hypothesis import strategies as st

from torkit.errors import (
    EndReason,
    NoPath,
    OnionServiceError,
    OnionStep,
    PeerError,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
)
from torkit.proto.first_byte import AnyProtocol
from torkit.proto.http import MAX_HEAD_LEN, Http, encode_error, status_for
from torkit.proto.request import Command

ONION = "a" * 56 + ".onion"
CONNECT = request("CONNECT web.test:443 HTTP/1.1", "Host: web.test:443")


def refused(data: bytes) -> bytes:
    """The answer to what is refused."""
    door = Http()
    with pytest.raises(TorkitError):
        door.receive_data(data)
    assert door.request is None
    return door.data_to_send()


@pytest.mark.parametrize(
    ("data", "host", "port"),
    [
        (CONNECT, "web.test", 443),
        (request("CONNECT web.test:443 HTTP/1.0"), "web.test", 443),
        (request("CONNECT WEB.test:22 HTTP/1.1", "Host: web.TEST"), "WEB.test", 22),
        (request("CONNECT [2001:db8::1]:443 HTTP/1.1", "Host: [2001:db8::1]:443"), "2001:db8::1", 443),
        (request(f"CONNECT {ONION}:80 HTTP/1.1", f"Host: {ONION}:80"), ONION, 80),
        (request("CONNECT web.test:1 HTTP/1.1", "Host: web.test:1", "Content-Length: 0"), "web.test", 1),
    ],
)
def test_connect_is_read(data: bytes, host: str, port: int) -> None:
    found = Http().receive_data(data)
    assert found is not None
    assert (found.command, found.host, found.port, found.isolation) == (Command.CONNECT, host, port, None)


def test_a_request_may_come_in_any_pieces_and_with_data_behind_it() -> None:
    for cut in range(1, len(CONNECT)):
        door = Http()
        assert door.receive_data(CONNECT[:cut]) is None
        assert door.receive_data(CONNECT[cut:] + b"early") is not None
        assert door.trailing_data == b"early"


@pytest.mark.parametrize(
    ("line", "fields", "sent"),
    [
        ("GET http://web.test HTTP/1.1", ["Host: web.test"], b"GET / HTTP/1.1"),
        ("GET http://web.test:80/a?b=c HTTP/1.1", ["Host: web.test"], b"GET /a?b=c HTTP/1.1"),
        ("GET HTTP://web.test?q HTTP/1.1", ["Host: web.test:80"], b"GET /?q HTTP/1.1"),
        ("PROPFIND http://[::1]:8080/x HTTP/1.1", ["Host: [::1]:8080"], b"PROPFIND /x HTTP/1.1"),
        ("GET http://web.test:81/ HTTP/1.0", [], b"GET / HTTP/1.1\r\nHost: web.test:81"),
        ("GET http://[::1]/ HTTP/1.0", ["Accept: */*"], b"GET / HTTP/1.1\r\nHost: [::1]"),
        ("OPTIONS http://web.test:81 HTTP/1.1", ["Host: web.test:81"], b"OPTIONS * HTTP/1.1"),
        ("OPTIONS http://web.test/ HTTP/1.1", ["Host: web.test"], b"OPTIONS / HTTP/1.1"),
        ("OPTIONS http://web.test?q HTTP/1.1", ["Host: web.test"], b"OPTIONS /?q HTTP/1.1"),
    ],
)
def test_an_absolute_form_becomes_a_path(line: str, fields: list[str], sent: bytes) -> None:
    import h11

    door = Http()
    found = door.receive_data(request(line, *fields))
    assert found is not None
    assert found.command is Command.FORWARD
    encoded = h11.Connection(h11.CLIENT).send(door.head)
    assert encoded is not None
    assert encoded.startswith(sent + b"\r\n")


def test_hop_by_hop_fields_stay_here_and_others_go_on_as_they_were_written() -> None:
    door = Http()
    door.receive_data(
        request(
            "POST http://web.test/ HTTP/1.1",
            "Host: web.test",
            "User-Agent: x",
            "Connection: keep-alive, X-Mine",
            "X-MINE: secret",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic dTpw",
            "X-Tor-Stream-Isolation: 7",
            "TE: trailers",
            "Upgrade: websocket",
            "Accept: */*",
            "Content-Length: 3",
        )
    )
    assert list(door.head.headers.raw_items()) == [
        (b"Host", b"web.test"),
        (b"User-Agent", b"x"),
        (b"Accept", b"*/*"),
        (b"Content-Length", b"3"),
        (b"Connection", b"close"),
    ]


def test_host_and_length_go_on_even_where_connection_names_them() -> None:
    door = Http()
    door.receive_data(
        request(
            "POST http://web.test/ HTTP/1.1",
            "Host: web.test",
            "Content-Length: 3",
            "Connection: host, content-length",
        )
    )
    assert [name for name, _ in door.head.headers] == [b"host", b"content-length", b"connection"]


def test_credentials_and_c_tors_field_say_who_may_share_a_circuit() -> None:
    def key(*fields: str) -> object:
        found = Http().receive_data(request("CONNECT web.test:443 HTTP/1.1", "Host: web.test:443", *fields))
        assert found is not None
        return found.isolation

    assert key() is None
    one, two = "Proxy-Authorization: Basic YTpi", "Proxy-Authorization: Basic YTpj"
    assert key(one) == key(one) != key(two)
    assert key("X-Tor-Stream-Isolation: a") != key("X-Tor-Stream-Isolation: b")
    assert key(one, "X-Tor-Stream-Isolation: a") not in (key(one), key("X-Tor-Stream-Isolation: a"))


@pytest.mark.parametrize("data", [CONNECT, request("GET http://web.test/ HTTP/1.1", "Host: web.test")])
def test_who_gives_no_credentials_is_asked_where_that_is_wanted(data: bytes) -> None:
    door = AnyProtocol(asks_credentials=True)
    with pytest.raises(PeerError):
        door.receive_data(data)
    assert door.request is None
    answer = door.data_to_send()
    assert answer.startswith(b"HTTP/1.1 407 Proxy Authentication Required\r\n")
    assert b'\r\nProxy-Authenticate: Basic realm="torkit", charset="UTF-8"\r\n' in answer
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("field", [b"Proxy-Authorization: Basic YTpi", b"X-Tor-Stream-Isolation: a"])
def test_any_credentials_will_do(field: bytes) -> None:
    door = AnyProtocol(asks_credentials=True)
    assert door.receive_data(CONNECT[:-2] + field + b"\r\n\r\n") is not None


@pytest.mark.parametrize("shape", SMUGGLING)
def test_a_request_that_could_be_read_in_two_ways_is_refused(shape: str) -> None:
    assert refused(SMUGGLING[shape]).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    "line", ["CONNECT b\xfccher.test:443 HTTP/1.1", "GET http://b\xfccher.test/ HTTP/1.1"]
)
def test_a_name_that_is_not_ascii_is_told_as_such(line: str) -> None:
    with pytest.raises(UsageError, match="neither an address nor a host name"):
        Http().receive_data(request(line, "Host: a.test"))


def test_the_last_port_is_one() -> None:
    found = Http().receive_data(request("GET http://a.test:65535/ HTTP/1.1", "Host: a.test:65535"))
    assert found is not None
    assert found.port == 65_535


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"a"])
def test_header_fields_have_an_end(piece: bytes) -> None:
    data = b"GET http://a.test/ HTTP/1.1\r\n" + piece * (MAX_HEAD_LEN // len(piece) + 1)
    assert refused(data).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "data",
    [
        request("GET / HTTP/1.1", "Host: 127.0.0.1:9150"),
        request("OPTIONS * HTTP/1.1", "Host: 127.0.0.1:9150"),
        request("GET https://a.test/ HTTP/1.1", "Host: a.test"),
        request("GET ftp://a.test/ HTTP/1.1", "Host: a.test"),
        request("TRACE http://a.test/ HTTP/1.1", "Host: a.test"),
        request("POST http://a.test/ HTTP/1.1", "Host: a.test", "Transfer-Encoding: gzip"),
    ],
)
def test_what_is_not_served_is_told_in_the_words_that_programs_search_for(data: bytes) -> None:
    assert refused(data).startswith(b"HTTP/1.0 501 Tor is not an HTTP Proxy\r\n")


@pytest.mark.parametrize("data", [b"GET\n", b"GET\r\n", b"HEAD /\n", b"GET / HTTP/1.0\n\n", b"GET /\r\n\r\n"])
def test_what_is_no_request_is_told_at_once_in_the_words_that_programs_search_for(data: bytes) -> None:
    """Electrum to 4.3 looked so for a Tor, and other wallets do."""
    answer = refused(data)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Tor is not an HTTP Proxy" in answer


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"CONNECT a.test:1 HTTP/1.1\r\n", b"GET http://a.test/ HTTP/1.1\r\n"]),
)
def test_any_bytes_are_read_or_refused(data: bytes, before: bytes) -> None:
    for door in (Http(), AnyProtocol()):
        try:
            found = door.receive_data(before + data)
        except TorkitError:
            assert door.data_to_send()
        else:
            assert found is None or found.host == "a.test"


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (StreamClosed("", reason=EndReason.RESOLVEFAILED), 502, "dns_error"),
        (StreamClosed("", reason=EndReason.CONNECTREFUSED), 502, "connection_refused"),
        (StreamClosed("", reason=EndReason.EXITPOLICY), 403, "destination_ip_prohibited"),
        (StreamClosed("", reason=EndReason.TIMEOUT), 504, "connection_timeout"),
        (StreamClosed("", reason=EndReason.DESTROY), 502, "destination_unavailable"),
        (UsageError(""), 403, "http_request_denied"),
        (NoPath(""), 403, "http_request_denied"),
        (TimedOut(""), 504, "connection_timeout"),
        (PeerError(""), 400, "http_request_error"),
        (OnionServiceError("", step=OnionStep.NOT_FOUND), 502, "dns_error"),
        (OnionServiceError("", step=OnionStep.INTRODUCTION), 502, "destination_unavailable"),
        (OnionServiceError("", step=OnionStep.NO_KEY), 403, "http_request_denied"),
    ],
)
def test_statuses_tell_causes_apart(error: TorkitError, status: int, word: str) -> None:
    assert status_for(error) == (status, word)
    answer = encode_error(status, error)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Proxy-Status: torkit; error=%b\r\n" % word.encode() in answer


def test_an_answer_says_to_people_what_went_wrong() -> None:
    head, _, body = encode_error(403, UsageError("it is nowhere", hint="go elsewhere")).partition(b"\r\n\r\n")
    assert body == b"it is nowhere\ngo elsewhere\n"
    assert b"Content-Length: 27" in head


@pytest.mark.parametrize(
    ("data", "first"),
    [(b"\x05\x01\x00", b"\x05\x00"), (b"\x00", b"\x05\xff"), (b"G\n", b"HTTP/1.1 400"), (b"", b"\x05\xff")],
)
def test_the_first_byte_tells_the_protocol(data: bytes, first: bytes) -> None:
    door = AnyProtocol()
    try:
        if data:
            door.receive_data(data)
        else:
            door.give_up()
    except TorkitError:
        pass
    assert door.data_to_send().startswith(first)
