"""The server's side of an HTTP proxy: one request out, whole or not at all. Its messages are h11's.

A request that two readers could read differently is answered with 400, and nothing of it goes on: lines that
do not end in CRLF, folded lines, two lengths, a target with a user, a Host that disagrees. RFC 9110, of which
section 9.3.6 is CONNECT, and RFC 9112. (C tor: HTTPTunnelPort, which has CONNECT only.)
"""

import re
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

from torkit.errors import (
    ChannelClosed,
    EndReason,
    NoDirectory,
    NoGuard,
    NoPath,
    OnionServiceError,
    OnionStep,
    PeerError,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
)
from torkit.proto.destination import check_host
from torkit.proto.request import Command, Request

if TYPE_CHECKING:
    import h11

# Implementation limit: bytes of a request's lines, up to the empty one.
MAX_HEAD_LEN = 16_384

NO_REQUEST = "what a client sent is no HTTP request"

GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"

CHALLENGE = b'Proxy-Authenticate: Basic realm="torkit", charset="UTF-8"'

# Header fields that say which requests may share a circuit: all of them the same. The second is C tor's.
ISOLATING = (b"proxy-authorization", b"x-tor-stream-isolation")

# What is between a client and its proxy, or between neighbours (RFC 9110, section 7.6.1). What tells where a
# body ends is written anew.
HOP_BY_HOP = {
    *(b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    *(b"proxy-authenticate", b"proxy-authorization", b"x-tor-stream-isolation"),
}

# Programs that look for a Tor search for these words of C tor's, in the answer to a request that is for no
# proxy, or to what is no request: there, they are in the body.
PHRASE = "Tor is not an HTTP Proxy"
NO_PROXY = f"HTTP/1.0 501 {PHRASE}".encode()
REMARK = f"(Programs that look for a Tor search for: {PHRASE})"

# The first line of what is no HTTP/1. Some programs that look for a Tor send no more than `GET\n`.
_NO_REQUEST_LINE = re.compile(rb"(?![^\r\n]* HTTP/[0-9]\.[0-9][\r\n])[^\r\n]*[\r\n]")
_BAD_LINE_END = re.compile(rb"\r(?!\n|$)|(?<!\r)\n|\r\n[ \t]|\x00")
_LENGTHS = re.compile(rb"\r\n(?:content-length|transfer-encoding)[ \t]*:", re.IGNORECASE)
_LISTED_LENGTHS = re.compile(rb"\r\ncontent-length[ \t]*:[^\r]*,", re.IGNORECASE)
_TARGET_HOST = re.compile(rb"[^ ]* (?:[A-Za-z][A-Za-z0-9+.-]*://)?([^/?#: ]*)")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([/?][^#]*)?")

Headers = list[tuple[bytes, bytes]]


class Target(NamedTuple):
    host: str
    port: int
    authority: bytes = b""  # of an absolute form, as it was written
    path: bytes = b""  # the same, and its query; empty where it has neither


class Http:
    """One client's request, driven by `receive_data`; it never connects anywhere.

    `request` is of CONNECT or FORWARD. A forwarded request goes on in `connection`, which has read its head
    and has not been given `trailing_data` yet; `head` is what goes to the server. With `asks_credentials` a
    request without any is answered with 407: browsers send theirs only then. Any will do.
    """

    connection: "h11.Connection"
    head: "h11.Request"

    def __init__(self, *, asks_credentials: bool = False) -> None:
        self.request: Request | None = None
        self.trailing_data = b""
        self._asks_credentials = asks_credentials
        self._received = b""
        self._to_send = b""

    def receive_data(self, data: bytes) -> Request | None:
        """Take the client's next bytes; returns its request when its head is complete.

        Raises PeerError for bytes that are no request, and UsageError for a request that is not served.
        """
        self._received += data
        lines, end, rest = self._received.partition(b"\r\n\r\n")
        if len(lines) > MAX_HEAD_LEN:
            raise self._refuse(
                400, PeerError(f"a request has more than {MAX_HEAD_LEN} bytes of header fields")
            )
        if _NO_REQUEST_LINE.match(self._received):
            raise self._refuse(400, PeerError(NO_REQUEST))
        if _BAD_LINE_END.search(lines):
            raise self._refuse(
                400, PeerError("a request has lines that do not end in CRLF, or go on in the next")
            )
        if not end:
            return None
        if len(_LENGTHS.findall(lines)) > 1 or _LISTED_LENGTHS.search(lines):
            raise self._refuse(400, PeerError("a request says twice how long it is"))
        self._received, self.trailing_data = b"", rest
        self.request = self._read(lines + end)
        return self.request

    @property
    def has_answered(self) -> bool:
        """Returns whether the answer to a forwarded request has begun, so that no other can be given."""
        import h11

        return self.connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    def _read(self, head: bytes) -> Request:
        import h11

        self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_LEN)
        self.connection.receive_data(head)
        target_host = _TARGET_HOST.match(head)
        if target_host is not None and not target_host[1].isascii():  # h11 would call it no request
            self._check_host(target_host[1].decode("latin-1"))
        try:
            event = self.connection.next_event()
        except h11.RemoteProtocolError as error:  # whose text may quote the destination
            error.__traceback__ = None  # it holds the error, and all that was read with it
            raise self._refuse(error.error_status_hint, PeerError(NO_REQUEST)) from None
        if not isinstance(event, h11.Request):
            raise self._refuse(400, PeerError(NO_REQUEST))
        try:
            request = self._judge(event)
        except PeerError as error:
            raise self._refuse(400, error) from None
        except UsageError as error:
            raise self._refuse(501, error) from None
        if self._asks_credentials and request.isolation is None:
            raise self._refuse(407, PeerError("credentials say whose request this is; any will do"))
        return request._replace(host=self._check_host(request.host))

    def _check_host(self, host: str) -> str:
        try:
            return check_host(host, allow_onion=True)
        except UsageError as error:
            raise self._refuse(400, error) from None

    def _judge(self, event: "h11.Request") -> Request:
        """Raises PeerError for what could be read in two ways, and UsageError for what is not served."""
        import h11

        fields = [name for name, _ in event.headers]
        if event.http_version == b"1.0" and b"transfer-encoding" in fields:  # RFC 9112, section 6.1
            raise PeerError("a request in HTTP/1.0, which knows no chunks, has some")
        isolation = tuple(value for name, value in event.headers if name in ISOLATING) or None
        if event.method == b"CONNECT":
            target = _authority(event.target)
            if b"transfer-encoding" in fields or dict(event.headers).get(b"content-length", b"0") != b"0":
                raise PeerError("CONNECT has no body")
            _check_hosts(event, target, 0)
            return self._request(Command.CONNECT, target, isolation)
        if event.target.startswith(b"/") or event.target == b"*":
            raise UsageError(
                "a request for a server, sent to this proxy into Tor",
                hint="set this address as the HTTP or SOCKS5 proxy of your program, socks5h:// in curl",
            )
        target = _absolute(event.target)
        _check_hosts(event, target, 80)
        if event.method == b"TRACE":
            raise UsageError("TRACE would tell the server what is between you and your proxy")
        headers = forwarded(event.headers.raw_items())
        if b"host" not in fields:  # HTTP/1.0 does without
            headers.insert(0, (b"Host", target.authority))
        # Without a path, OPTIONS asks the server about itself. RFC 9112, section 3.2.4.
        path = target.path or (b"*" if event.method == b"OPTIONS" else b"/")
        self.head = h11.Request(method=event.method, target=path, headers=headers)
        return self._request(Command.FORWARD, target, isolation)

    def _request(self, command: Command, target: Target, isolation: Hashable) -> Request:
        key = None if isolation is None else ("http", isolation)
        forwarded = ref(self) if command is Command.FORWARD else None
        return Request(command, target.host, target.port, key, forwarded=forwarded)

    def _refuse(self, status: int, error: TorkitError) -> TorkitError:
        """Queue the answer. Returns the exception to raise."""
        self._to_send = encode_error(status, error)
        return error

    def data_to_send(self) -> bytes:
        data, self._to_send = self._to_send, b""
        return data

    def give_up(self) -> None:
        self._to_send = encode_error(408, TimedOut("the request took too long to come"))

    def encode_grant(self) -> bytes:
        return GRANTED

    def encode_answer(self, host: str) -> bytes:
        raise UsageError("HTTP asks for no names")

    def encode_refusal(self, error: TorkitError) -> bytes:
        return encode_error(status_for(error)[0], error)


def forwarded(fields: Headers) -> Headers:
    """Returns the fields that go on to the next server, as they were written. RFC 9110, section 7.6.1.

    No Via is added, which would tell a server that there is a proxy.
    """
    named = {
        one.strip().lower()
        for name, value in fields
        if name.lower() in (b"connection", b"proxy-connection")
        for one in value.split(b",")
    }
    dropped = (HOP_BY_HOP | named) - {b"host", b"content-length"}
    kept = [(name, value) for name, value in fields if name.lower() not in dropped]
    is_chunked = any(name.lower() == b"transfer-encoding" for name, _ in fields)
    return [*kept, *([(b"Transfer-Encoding", b"chunked")] if is_chunked else []), (b"Connection", b"close")]


def _authority(text: bytes) -> Target:
    found = _AUTHORITY.fullmatch(text)
    if found is None or found[2] is None or not 0 < int(found[2]) <= 65_535:
        raise PeerError("CONNECT takes HOST:PORT")
    return Target(found[1].strip(b"[]").decode(), int(found[2]))


def _absolute(text: bytes) -> Target:
    found = _ABSOLUTE.fullmatch(text)
    if found is None:
        raise PeerError("the target of a request is no URL")
    if found[1].lower() != b"http":
        raise UsageError("a proxy fetches http:// only; for other URLs it takes CONNECT")
    authority = _AUTHORITY.fullmatch(found[2])
    if authority is None or not 0 < int(authority[2] or 80) <= 65_535:
        raise PeerError("the URL of a request has no host, a user, or a port that is none")
    path = found[3] or b""
    host, port = authority[1].strip(b"[]").decode(), int(authority[2] or 80)
    return Target(host, port, authority[0], b"/" + path if path[:1] == b"?" else path)


def _check_hosts(event: "h11.Request", target: Target, default_port: int) -> None:
    """Raises PeerError where the Host field names another than the target does."""
    for name, value in event.headers:
        if name == b"host":
            found = _AUTHORITY.fullmatch(value)
            port = found and int(found[2] or default_port or target.port)
            if (
                found is None
                or found[1].strip(b"[]").decode().lower() != target.host.lower()
                or port != target.port
            ):
                raise PeerError("a request is for one host, and its Host field names another")


# For an error of a stream: a status, and RFC 9209's word for what went wrong.
_BY_END_REASON = {
    EndReason.RESOLVEFAILED: (502, "dns_error"),
    EndReason.CONNECTREFUSED: (502, "connection_refused"),
    EndReason.EXITPOLICY: (403, "destination_ip_prohibited"),
    EndReason.TIMEOUT: (504, "connection_timeout"),
    EndReason.NOROUTE: (502, "destination_ip_unroutable"),
    EndReason.CONNRESET: (502, "connection_terminated"),
}

_BY_ONION_STEP = {
    OnionStep.NOT_FOUND: (502, "dns_error"),
    OnionStep.ADDRESS: (400, "http_request_error"),
    OnionStep.NO_KEY: (403, "http_request_denied"),
    OnionStep.WRONG_KEY: (403, "http_request_denied"),
    OnionStep.RENDEZVOUS: (504, "connection_timeout"),
    OnionStep.INTRODUCTION_TIMEOUT: (504, "connection_timeout"),
}


def status_for(error: TorkitError) -> tuple[int, str]:
    """Returns the status that tells of `error`, and its word in a Proxy-Status field.

    RFC 9209, section 2.3.
    """
    match error:
        case StreamClosed():
            return _BY_END_REASON.get(error.reason, (502, "destination_unavailable"))
        case OnionServiceError():
            return _BY_ONION_STEP.get(error.step, (502, "destination_unavailable"))
        case UsageError() | NoPath():
            return 403, "http_request_denied"
        case NoDirectory() | NoGuard() | ChannelClosed():
            return 503, "proxy_configuration_error"
        case TimedOut():
            return 504, "connection_timeout"
        case PeerError():
            return 400, "http_request_error"
        case _:
            return 500, "proxy_internal_error"


def encode_error(status: int, error: TorkitError) -> bytes:
    """Returns an answer for people, and for programs by its status and Proxy-Status."""
    from http import HTTPStatus

    remark = REMARK if status == HTTPStatus.BAD_REQUEST else None
    body = "".join(f"{line}\n" for line in (error, error.hint, remark) if line).encode()
    status_line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
    lines = [
        NO_PROXY if status == HTTPStatus.NOT_IMPLEMENTED else status_line,
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Length: %d" % len(body),
        *([CHALLENGE] if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED else []),
        f"Proxy-Status: torkit; error={status_for(error)[1]}".encode(),
        b"Connection: close",
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
