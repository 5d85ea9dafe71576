"""The server's side of SOCKS4, SOCKS4a and SOCKS5, with Tor's extensions. Bytes in, one request out.

A client's bytes arrive in any chunking; each state waits for one whole message, then moves once:

    state     message awaited                              then
    VERSION   the first byte: 4, 5, or neither             SOCKS4 | METHODS | REFUSED
    METHODS   05 n method*n                                USERPASS | REQUEST | REFUSED
    USERPASS  01 len user len password                     REQUEST | REFUSED
    REQUEST   05 command 00 type address port              DONE | USERPASS | REFUSED
    SOCKS4    04 command port address user 00 [host 00]    DONE | REFUSED

DONE and REFUSED are final. In DONE, bytes beyond the request are the client's first data (clients may be
optimistic) and wait in `trailing_data`. On the way to REFUSED the answer to the client is queued first,
so that whoever drives this sends `data_to_send` and closes, whatever went wrong.

Every message has a length bound that shows before it is complete (one-byte lengths in SOCKS5,
MAX_STRING_LEN in SOCKS4), so an unfinished message never holds more than a few hundred bytes.

User names and passwords prove nothing here: they are all accepted, and say which requests may share a
circuit. RFC 1928, RFC 1929 and socks-extensions.
"""

from collections.abc import Callable, Hashable, Mapping
from enum import IntEnum, auto
from ipaddress import IPv4Address, ip_address

from torkit.errors import (
    ChannelClosed,
    EndReason,
    NoDirectory,
    NoGuard,
    NoPath,
    OnionServiceError,
    PeerError,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
)
from torkit.proto.destination import MAX_HOST_LEN, check_host, parse_address
from torkit.proto.request import Command, Request

# Specification constants.

SOCKS4_VERSION = 4
SOCKS5_VERSION = 5
USERPASS_VERSION = 1  # RFC 1929, section 2

NO_AUTH = 0x00  # RFC 1928, section 3
USERPASS = 0x02
NO_ACCEPTABLE_METHOD = 0xFF

ATYP_IPV4 = 1  # RFC 1928, section 5
ATYP_NAME = 3
ATYP_IPV6 = 4

UNSPECIFIED = IPv4Address(0)  # the bound address of a reply that has none

SOCKS4_GRANTED = 0x5A
SOCKS4_REJECTED = 0x5B

# User names that begin so are no names but parameters of an extended format, "0" the only one known here.
# socks-extensions, proposal 351.
EXTENDED_PREFIX = b"<torS0X>"
KNOWN_EXTENDED_FORMATS = (b"<torS0X>0",)


# socks-extensions, "Name lookup".
COMMANDS = {0x01: Command.CONNECT, 0xF0: Command.RESOLVE, 0xF1: Command.RESOLVE_PTR}

# Commands that Tor cannot carry, and what their users can do. RFC 1928, section 4.
_NOT_SERVED = {
    0x02: ("BIND", "nobody can connect to a program through Tor: have it connect (FTP: in passive mode)"),
    0x03: ("UDP ASSOCIATE", "Tor carries TCP only: have the program use TCP, and SOCKS for its look-ups"),
}


class Reply(IntEnum):
    """SOCKS5's REP field. RFC 1928, section 6, and proposal 304 from F0 on."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08
    ONION_DESCRIPTOR_NOT_FOUND = 0xF0
    ONION_DESCRIPTOR_INVALID = 0xF1
    ONION_INTRODUCTION_FAILED = 0xF2
    ONION_RENDEZVOUS_FAILED = 0xF3
    ONION_MISSING_CLIENT_AUTH = 0xF4
    ONION_WRONG_CLIENT_AUTH = 0xF5
    ONION_BAD_ADDRESS = 0xF6
    ONION_INTRODUCTION_TIMED_OUT = 0xF7


# The kinds of answer to a look-up that a reply has room for.
_KINDS = {
    (SOCKS4_VERSION, Command.RESOLVE): ("ipv4",),
    (SOCKS5_VERSION, Command.RESOLVE): ("ipv4", "ipv6"),
    (SOCKS5_VERSION, Command.RESOLVE_PTR): ("hostname",),
}

# Implementation limits.

MAX_STRING_LEN = MAX_HOST_LEN  # bytes of a SOCKS4 user or host


class State(IntEnum):  # its members are keys: Python hashes those of other enumerations by code of its own
    VERSION = auto()
    METHODS = auto()
    USERPASS = auto()
    REQUEST = auto()
    SOCKS4 = auto()
    DONE = auto()
    REFUSED = auto()


class Handshake:
    """One client's handshake, driven by `receive_data`; it never connects anywhere."""

    def __init__(self) -> None:
        self.state = State.VERSION
        self._received = bytearray()
        self._to_send = bytearray()
        self._isolation: Hashable = None
        self._version = SOCKS5_VERSION  # of the request
        self.request: Request | None = None  # when it is complete

    def receive_data(self, data: bytes) -> Request | None:
        """Take the client's next bytes; returns its request when that is complete.

        Raises PeerError for what is not SOCKS and UsageError for a request we do not serve; the
        answer is then in `data_to_send`, and the connection is to be closed after it.
        """
        if self.state in (State.DONE, State.REFUSED):
            raise UsageError(f"a SOCKS handshake in state {self.state.name} takes no more data")
        self._received += data
        while self._received and self.request is None and _STEPS[self.state](self):
            pass
        return self.request

    def data_to_send(self) -> bytes:
        """Returns the bytes queued for the client since last time."""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    @property
    def trailing_data(self) -> bytes:
        """What the client sent after its request: the first bytes for the stream."""
        return bytes(self._received) if self.state is State.DONE else b""

    def give_up(self) -> None:
        """The client took too long: queue the refusal that its state allows."""
        self._refuse(Reply.TTL_EXPIRED)

    def encode_grant(self) -> bytes:
        """Returns the answer to a CONNECT that is connected."""
        return _GRANTED[self._version]

    def encode_answer(self, host: str) -> bytes:
        """Returns the answer to a look-up. Raises UsageError where the reply has no room for `host`."""
        return encode_reply(self._version, Reply.SUCCEEDED, host)

    def encode_refusal(self, error: TorkitError) -> bytes:
        """Returns the answer to a request that failed with `error`."""
        return encode_reply(self._version, reply_for(error))

    # One step per state: False if its message is not complete yet.

    def _receive_version(self) -> bool:
        first = self._received[0]
        if first == SOCKS5_VERSION:
            self.state = State.METHODS
        elif first == SOCKS4_VERSION:
            self.state = State.SOCKS4
        else:
            self._refuse(Reply.GENERAL_FAILURE)
            raise PeerError(f"expected SOCKS version 4 or 5 and saw byte {first}")
        return True

    def _receive_methods(self) -> bool:
        data = self._received
        if len(data) < 2 or len(data) < 2 + data[1]:
            return False
        methods = self._take(2 + data[1])[2:]
        # A client that offers credentials wants to be apart from others, so they come first.
        if USERPASS in methods:
            self.state = State.USERPASS
            self._to_send += bytes([SOCKS5_VERSION, USERPASS])
        elif NO_AUTH in methods:
            self.state = State.REQUEST
            self._to_send += bytes([SOCKS5_VERSION, NO_AUTH])
        else:
            self._refuse(Reply.GENERAL_FAILURE)
            raise PeerError(f"none of the client's {len(methods)} SOCKS authentication methods is known")
        return True

    def _receive_userpass(self) -> bool:
        data = self._received
        if data[0] != USERPASS_VERSION:
            self._refuse(Reply.GENERAL_FAILURE)
            raise PeerError(f"expected version 1 of user and password and saw {data[0]}")
        if len(data) < 2 or len(data) < 3 + data[1]:
            return False
        user_end = 2 + data[1]
        password_len = data[user_end]
        if len(data) < user_end + 1 + password_len:
            return False
        message = self._take(user_end + 1 + password_len)
        self._isolate(message[2:user_end], message[user_end + 1 :])
        self.state = State.REQUEST
        self._to_send += bytes([USERPASS_VERSION, 0])
        return True

    def _receive_request(self) -> bool:
        data = self._received
        if data[0] == USERPASS_VERSION and self._isolation is None:
            # Some clients send credentials although they did not offer to.
            # socks-extensions, "Extent of support".
            self.state = State.USERPASS
            return True
        if data[0] != SOCKS5_VERSION:
            self._refuse(Reply.GENERAL_FAILURE)
            raise PeerError(f"expected a SOCKS5 request and saw version {data[0]}")
        if len(data) < 5:
            return False
        command_byte, address_type = data[1], data[3]
        if address_type == ATYP_NAME:
            start, end = 5, 5 + data[4]
        elif address_type in (ATYP_IPV4, ATYP_IPV6):
            start, end = 4, 4 + (4 if address_type == ATYP_IPV4 else 16)
        else:
            self._refuse(Reply.ADDRESS_TYPE_NOT_SUPPORTED)
            raise PeerError(f"SOCKS5 address type {address_type} is unknown")
        if len(data) < end + 2:
            return False
        message = self._take(end + 2)
        address, port = message[start:end], int.from_bytes(message[end:], "big")
        host = _decode_name(address) if address_type == ATYP_NAME else str(ip_address(address))
        self._finish(SOCKS5_VERSION, command_byte, host, port)
        return True

    def _receive_socks4(self) -> bool:
        data = self._received
        if len(data) < 8:
            return False
        user_end = self._find_nul(8)
        if user_end is None:
            return False
        address = IPv4Address(bytes(data[4:8]))
        host = str(address)
        end = user_end
        # SOCKS4a: an address 0.0.0.x with x not 0 says that a name follows.
        if 0 < int(address) < 256:
            host_end = self._find_nul(user_end + 1)
            if host_end is None:
                return False
            host = _decode_name(data[user_end + 1 : host_end])
            end = host_end
        message = self._take(end + 1)
        if user := message[8:user_end]:
            self._isolate(user, b"")
        self._finish(SOCKS4_VERSION, message[1], host, int.from_bytes(message[2:4], "big"))
        return True

    def _find_nul(self, start: int) -> int | None:
        end = self._received.find(0, start, start + MAX_STRING_LEN + 1)
        if end >= 0:
            return end
        if len(self._received) > start + MAX_STRING_LEN:
            self._refuse(Reply.GENERAL_FAILURE)
            raise PeerError(f"a SOCKS4 string is longer than {MAX_STRING_LEN} bytes")
        return None

    def _take(self, length: int) -> bytes:
        message = bytes(self._received[:length])
        del self._received[:length]
        return message

    def _isolate(self, user: bytes, password: bytes) -> None:
        if user.startswith(EXTENDED_PREFIX) and user not in KNOWN_EXTENDED_FORMATS:
            self._refuse(Reply.GENERAL_FAILURE)
            raise UsageError("the SOCKS user name asks for an extended format that is unknown here")
        self._isolation = ("socks-auth", user, password)

    def _finish(self, version: int, command_byte: int, host: str, port: int) -> None:
        """Judge a complete request: DONE or REFUSED."""
        command = COMMANDS.get(command_byte)
        if command is None:
            self._refuse(Reply.COMMAND_NOT_SUPPORTED)
            name, hint = _NOT_SERVED.get(command_byte, (f"command {command_byte}", None))
            raise UsageError(f"SOCKS's {name} is not supported", hint=hint)
        try:
            host = check_host(host, allow_onion=command is Command.CONNECT)
        except UsageError as error:
            self._refuse(reply_for(error))
            raise
        if command is Command.CONNECT and port == 0:
            self._refuse(Reply.GENERAL_FAILURE)
            raise PeerError("a SOCKS client asked for port 0")
        if command is Command.RESOLVE_PTR and (version == SOCKS4_VERSION or parse_address(host) is None):
            self._refuse(Reply.ADDRESS_TYPE_NOT_SUPPORTED)
            raise UsageError("RESOLVE_PTR needs SOCKS5 and an address")
        self._version = version
        self.request = Request(command, host, port, self._isolation, _KINDS.get((version, command), ()))
        self.state = State.DONE

    def _refuse(self, reply: Reply) -> None:
        """Queue the one answer that the client can read in this state."""
        match self.state:
            case State.VERSION | State.METHODS:
                self._to_send += bytes([SOCKS5_VERSION, NO_ACCEPTABLE_METHOD])
            case State.USERPASS:
                self._to_send += bytes([USERPASS_VERSION, 1])
            case State.REQUEST:
                self._to_send += encode_reply(SOCKS5_VERSION, reply)
            case State.SOCKS4:
                self._to_send += encode_reply(SOCKS4_VERSION, reply)
        self.state = State.REFUSED


_STEPS: Mapping[State, Callable[[Handshake], bool]] = {
    State.VERSION: Handshake._receive_version,
    State.METHODS: Handshake._receive_methods,
    State.USERPASS: Handshake._receive_userpass,
    State.REQUEST: Handshake._receive_request,
    State.SOCKS4: Handshake._receive_socks4,
}


def encode_reply(version: int, reply: Reply, host: str | None = None) -> bytes:
    """Returns the final reply to a request. `host` is the answer to a look-up, as `check_host` returned it.

    SOCKS4 knows granted and rejected, and no answer but an IPv4 address: raises UsageError for another.
    """
    address = UNSPECIFIED if host is None else parse_address(host)
    if version == SOCKS4_VERSION:
        if not isinstance(address, IPv4Address):
            raise UsageError("a SOCKS4 reply holds an IPv4 address only")
        status = SOCKS4_GRANTED if reply is Reply.SUCCEEDED else SOCKS4_REJECTED
        return bytes([0, status, 0, 0]) + address.packed
    if address is None:
        assert host is not None
        name = host.encode("ascii")
        bound = bytes([ATYP_NAME, len(name)]) + name
    else:
        bound = bytes([ATYP_IPV4 if address.version == 4 else ATYP_IPV6]) + address.packed
    return bytes([SOCKS5_VERSION, reply, 0]) + bound + b"\0\0"


_GRANTED = {version: encode_reply(version, Reply.SUCCEEDED) for version in (SOCKS4_VERSION, SOCKS5_VERSION)}

_REPLY_BY_END_REASON = {
    EndReason.RESOLVEFAILED: Reply.HOST_UNREACHABLE,
    EndReason.CONNECTREFUSED: Reply.CONNECTION_REFUSED,
    EndReason.EXITPOLICY: Reply.NOT_ALLOWED,
    EndReason.DONE: Reply.CONNECTION_REFUSED,  # ended before it began
    EndReason.TIMEOUT: Reply.TTL_EXPIRED,
    EndReason.NOROUTE: Reply.HOST_UNREACHABLE,
    EndReason.CONNRESET: Reply.CONNECTION_REFUSED,
}


def reply_for(error: TorkitError) -> Reply:
    """What to tell a SOCKS5 client about `error`; a SOCKS4 client hears only that it failed."""
    match error:
        case OnionServiceError():
            return Reply(error.step.value)
        case StreamClosed():
            return _REPLY_BY_END_REASON.get(error.reason, Reply.GENERAL_FAILURE)
        case UsageError() | NoPath():
            return Reply.NOT_ALLOWED
        case NoDirectory() | NoGuard() | ChannelClosed():
            return Reply.NETWORK_UNREACHABLE
        case TimedOut():
            return Reply.TTL_EXPIRED
        case _:
            return Reply.GENERAL_FAILURE


def _decode_name(name: bytes | bytearray) -> str:
    """As text. Other alphabets come in their ASCII form (IDNA) or leave a mark that is in no host name."""
    return name.decode("ascii", "replace")
