"""The client's side of SOCKS5, with Tor's extensions: one request to a proxy. Bytes in, bytes out.

    step        sent                                   awaited
    method      05 01 02                               05 02
    userpass    01 len user len password               01 00
    reply       05 command 00 type address port        05 reply 00 type address port

A step is sent when the one before has been answered: a proxy that takes no credentials, and could keep nobody
apart, learns no destination. Names go as they are. RFC 1928, RFC 1929 and socks-extensions.
"""

from hashlib import sha256
from ipaddress import ip_address
from typing import NamedTuple

from torkit.errors import (
    EndReason,
    NoDirectory,
    NoProxy,
    NotPossible,
    OnionServiceError,
    OnionStep,
    StreamClosed,
    TorkitError,
)
from torkit.proto.destination import parse_address
from torkit.proto.request import Request
from torkit.proto.socks import (
    ATYP_IPV4,
    ATYP_IPV6,
    ATYP_NAME,
    COMMANDS,
    SOCKS5_VERSION,
    USERPASS,
    USERPASS_VERSION,
    Reply,
)

MAX_CREDENTIAL_LEN = 255  # bytes of a user name or a password. RFC 1929, section 2

_ADDRESS_LENS = {ATYP_IPV4: 4, ATYP_IPV6: 16}
_BYTES_OF_COMMAND = {command: byte for byte, command in COMMANDS.items()}


class Credentials(NamedTuple):
    """They prove nothing: requests share circuits only where these are equal. At most 255 bytes each."""

    user: bytes
    password: bytes

    def within(self, isolation: object) -> "Credentials":
        """Returns credentials of this user that are equal only for equal `isolation`; None is these.

        `isolation` is made of what `repr` tells apart: text, bytes, numbers, None, and tuples of those.
        """
        if isolation is None:
            return self
        told = sha256(self.password + b"\0" + repr(isolation).encode()).hexdigest()
        return self._replace(password=told.encode())


class Conversation:
    """What is said to a proxy for one request, driven by `receive_data`. Connects nowhere."""

    def __init__(self, request: Request | None, credentials: Credentials) -> None:
        """Without a request it is complete when the proxy has taken the credentials."""
        self._request = request
        self._credentials = credentials
        self._received = bytearray()
        self._to_send = bytearray([SOCKS5_VERSION, 1, USERPASS])
        self._step = self._receive_method
        self.is_complete = False
        self.answer = ""  # to a look-up: an address or a name, unchecked

    def data_to_send(self) -> bytes:
        """Returns the bytes queued for the proxy since the last call."""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    def receive_data(self, data: bytes) -> bool:
        """Take the proxy's next bytes. Returns whether the request has been granted.

        Raises NoProxy for what does not speak as Tor's proxies do, else the error that the reply stands for.
        """
        self._received += data
        while not self.is_complete and self._step():
            pass
        return self.is_complete

    @property
    def trailing_data(self) -> bytes:
        """What came behind a reply that grants: the first bytes of the stream."""
        return bytes(self._received)

    # One step each: False if its message is not complete yet.

    def _receive_method(self) -> bool:
        if len(self._received) < 2:
            return False
        if self._take(2) != bytes([SOCKS5_VERSION, USERPASS]):
            raise NoProxy("what listens there is no SOCKS5 proxy that keeps users apart, as Tor's do")
        user, password = self._credentials
        self._to_send += bytes([USERPASS_VERSION, len(user)]) + user + bytes([len(password)]) + password
        self._step = self._receive_verdict
        return True

    def _receive_verdict(self) -> bool:
        if len(self._received) < 2:
            return False
        if self._take(2) != bytes([USERPASS_VERSION, 0]):
            raise NoProxy("the proxy does not accept the credentials", hint="Tor's proxies accept all")
        if self._request is None:
            self.is_complete = True
        else:
            self._to_send += encode_request(self._request)
            self._step = self._receive_reply
        return True

    def _receive_reply(self) -> bool:
        data = self._received
        if len(data) < 5:
            return False
        if data[0] != SOCKS5_VERSION or data[3] not in (ATYP_IPV4, ATYP_IPV6, ATYP_NAME):
            raise NoProxy("the proxy's reply is no SOCKS5")
        start, length = (5, data[4]) if data[3] == ATYP_NAME else (4, _ADDRESS_LENS[data[3]])
        if len(data) < start + length + 2:
            return False
        message = self._take(start + length + 2)
        assert self._request is not None
        if message[1] != Reply.SUCCEEDED:
            raise error_for(message[1], self._request)
        bound = message[start : start + length]
        is_name = message[3] == ATYP_NAME
        self.answer = bound.decode("ascii", "replace") if is_name else str(ip_address(bound))
        self.is_complete = True
        return True

    def _take(self, length: int) -> bytes:
        message = bytes(self._received[:length])
        del self._received[:length]
        return message


def encode_request(request: Request) -> bytes:
    """`request.host` is as check_host returns it, a name or an address."""
    address = parse_address(request.host)
    if address is None:
        name = request.host.encode("ascii")
        host = bytes([ATYP_NAME, len(name)]) + name
    else:
        host = bytes([ATYP_IPV4 if address.version == 4 else ATYP_IPV6]) + address.packed
    head = bytes([SOCKS5_VERSION, _BYTES_OF_COMMAND[request.command], 0])
    return head + host + request.port.to_bytes(2, "big")


_REASON_BY_REPLY: dict[int, EndReason] = {
    Reply.NOT_ALLOWED: EndReason.EXITPOLICY,
    Reply.CONNECTION_REFUSED: EndReason.CONNECTREFUSED,
    Reply.TTL_EXPIRED: EndReason.TIMEOUT,
}

_STEPS = {step.value for step in OnionStep}


def error_for(code: int, request: Request) -> TorkitError:
    """What a refusal of `request` means: the inverse of `reply_for`, as far as replies tell things apart."""
    match code:
        case Reply.NETWORK_UNREACHABLE:
            return NoDirectory("the proxy cannot reach the network")
        case Reply.COMMAND_NOT_SUPPORTED | Reply.ADDRESS_TYPE_NOT_SUPPORTED:
            return NotPossible(
                "the proxy does not serve such requests", hint="Tor's proxies do; is it another kind?"
            )
        case Reply.HOST_UNREACHABLE:
            is_about_route = request.is_connection and request.is_address
            reason = EndReason.NOROUTE if is_about_route else EndReason.RESOLVEFAILED
        case _ if code in _STEPS:
            return OnionServiceError.at(OnionStep(code))
        case _:
            reason = _REASON_BY_REPLY.get(code, EndReason.MISC)
    return StreamClosed(f"{reason.sentence} ({reason.name})", reason=reason)
