"""Bodies of relay messages, encoded and decoded. Relay headers, padding, DATA and SENDME are `_fast/circuit`.

A decoder gets exactly the bytes that Length announced. Bytes beyond the fields we know are
ignored, so that the format can grow; a missing field ends the circuit.
"""

import re
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from torkit._fast.cells import Reader
from torkit.errors import CircuitError, DestroyReason, EndReason, UsageError
from torkit.proto.cells import (
    ED25519_IDENTITY_LEN,
    RSA_IDENTITY_LEN,
    AddressType,
    HandshakeType,
    IPAddress,
)
from torkit.proto.destination import is_onion

# Specification constants.
XON_XOFF_VERSION = 0  # proposal 324, "Stream Flow Control Without Windows"
HOSTNAME_MAX_LEN = 253  # RFC 1035, without the final dot

_HOSTNAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?", re.ASCII)


# --- Opening streams -------------------------------------------------------------------------------------


class BeginFlags(IntFlag):
    """FLAGS of BEGIN. tor-spec, "Opening streams and transferring data"."""

    IPV6_OK = 1
    IPV4_NOT_OK = 2
    IPV6_PREFERRED = 4


NO_FLAGS = BeginFlags(0)


class Connected(NamedTuple):
    """The address that an exit connected to, if it says so; `ttl` is in seconds.

    Both None from a directory.
    """

    address: IPAddress | None
    ttl: int | None


def encode_begin(host: str, port: int, flags: BeginFlags) -> bytes:
    """`host` is a name, an IPv4 address, or an IPv6 address without brackets.

    Raises UsageError for any other text. FLAGS are left out when none is set (as C tor does).
    tor-spec, "Opening streams and transferring data".
    """
    if not 1 <= port <= 65535:
        raise UsageError(f"a port is between 1 and 65535, not {port}")
    address = f"[{_parse_ipv6(host)}]" if ":" in host else _check_hostname(host)
    return f"{address}:{port}\0".encode("ascii") + (flags.to_bytes(4, "big") if flags else b"")


# A BEGIN that an onion service refuses, whatever it serves.
BEGIN_NOWHERE = b":0\0"


def encode_begin_service(port: int) -> bytes:
    """BEGIN to an onion service, which needs no host and gets no flags. Raises UsageError.

    rend-spec-v3, "Encrypting data between client and host".
    """
    if not 1 <= port <= 65535:
        raise UsageError(f"a port is between 1 and 65535, not {port}")
    return f":{port}\0".encode("ascii")


def decode_begin_service(body: bytes) -> int:
    """The port that a client of ours, an onion service's, begins a stream to. Raises CircuitError.

    A host before it, and flags behind it, mean nothing to us. rend-spec-v3, as `encode_begin_service`.
    """
    address, nul, _ = body.partition(b"\0")
    port = address.rpartition(b":")[2]
    if not nul or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise CircuitError("BEGIN to an onion service holds no port")
    return int(port)


def decode_connected(body: bytes) -> Connected:
    """Raises CircuitError. tor-spec, "Opening streams and transferring data"."""
    if not body:
        return Connected(None, None)
    reader = Reader(body, "CONNECTED", CircuitError)
    if any(body[:4]):
        packed = reader.take(8)
        return Connected(IPv4Address(packed[:4]), int.from_bytes(packed[4:], "big"))
    reader.take(4)  # the mark of the longer form
    address_type = reader.take_int(1)
    if address_type != AddressType.IPV6:
        raise CircuitError(f"CONNECTED has an address of type {address_type}, not {AddressType.IPV6}")
    address = IPv6Address(reader.take(16))
    return Connected(address, reader.take_int(4))


# --- Closing streams -------------------------------------------------------------------------------------


class End(NamedTuple):
    """Why a stream ended; `address` is the one that an exit's policy refused, if the exit says so."""

    reason: EndReason
    address: IPAddress | None = None


def encode_end(reason: EndReason) -> bytes:
    """For a stream that we opened, `reason` should be MISC whatever it is. tor-spec, "Closing streams"."""
    return bytes([reason])


def decode_end(body: bytes) -> End:
    """MISC for a reason not in the specification. Raises CircuitError if there is no reason at all.

    The specification would have an empty END taken for MISC; no relay sends one, and 0.4.9 ends the
    circuit for it where the stream is not open. tor-spec, "Closing streams".
    """
    reader = Reader(body, "END", CircuitError)
    reason = EndReason(reader.take_int(1))
    if reason != EndReason.EXITPOLICY:
        return End(reason)
    # An address of 4 or 16 bytes, and perhaps a TTL of 4; "if the address is absent or is the wrong
    # length, the RELAY_END message should be processed anyway".
    if reader.bytes_left in (4, 8):
        return End(reason, IPv4Address(reader.take(4)))
    if reader.bytes_left in (16, 20):
        return End(reason, IPv6Address(reader.take(16)))
    return End(reason)


# --- Resolving names -------------------------------------------------------------------------------------


class ResolvedError(IntEnum):
    """Error types of a RESOLVED answer. tor-spec, "Remote hostname lookup"."""

    TRANSIENT = 0xF0
    NONTRANSIENT = 0xF1


class Answer(NamedTuple):
    """One answer in RESOLVED: an address, a name (lower case, checked) or an error. `ttl` is in seconds."""

    value: IPAddress | str | ResolvedError
    ttl: int


_RESOLVED_HOSTNAME = 0


def encode_resolve(host: str | IPAddress) -> bytes:
    """Returns the body of RESOLVE for a name, or for an address whose name is wanted.

    Raises UsageError if the name is none. tor-spec, "Remote hostname lookup".
    """
    if isinstance(host, str):
        return _check_hostname(host).encode("ascii") + b"\0"
    if isinstance(host, IPv6Address):
        host = IPv6Address(host.packed)  # without a scope, which means nothing elsewhere
    return host.reverse_pointer.encode("ascii") + b"\0"


def decode_resolved(body: bytes) -> list[Answer]:
    """Returns the answers in order; types we do not know are left out.

    So is a name that is not one: names come from whoever keeps the zone, and that is not the exit's
    fault. Raises CircuitError for what is the exit's: truncation, an address of the wrong length.
    tor-spec, "Remote hostname lookup".
    """
    reader = Reader(body, "RESOLVED", CircuitError)
    answers = []
    while reader.bytes_left:
        answer_type = reader.take_int(1)
        value = _decode_answer_value(answer_type, reader.take(reader.take_int(1)))
        ttl = reader.take_int(4)
        if value is not None:
            answers.append(Answer(value, ttl))
    return answers


def _decode_answer_value(answer_type: int, value: bytes) -> IPAddress | str | ResolvedError | None:
    match answer_type:
        case AddressType.IPV4 | AddressType.IPV6:
            try:
                return IPv4Address(value) if answer_type == AddressType.IPV4 else IPv6Address(value)
            except AddressValueError as exc:
                raise CircuitError(
                    f"RESOLVED has an address of type {answer_type} and {len(value)} bytes"
                ) from exc
        case ResolvedError.TRANSIENT | ResolvedError.NONTRANSIENT:
            return ResolvedError(answer_type)  # "the content of Errors is currently ignored"
        case _ if answer_type == _RESOLVED_HOSTNAME:
            try:
                return _check_hostname(value.decode("ascii"))
            except (UnicodeDecodeError, UsageError):
                return None
    return None


# --- Extending circuits ----------------------------------------------------------------------------------


class LinkSpecifierType(IntEnum):
    """LSTYPE. tor-spec, "EXTEND and EXTENDED cells"."""

    IPV4 = 0
    IPV6 = 1
    LEGACY_ID = 2
    ED25519_ID = 3


def encode_link_specifiers(
    addresses: Iterable[tuple[IPAddress, int]], *, rsa_identity: bytes, ed25519_identity: bytes | None
) -> bytes:
    """NSPEC and the link specifiers of a relay: (address, ORPort) pairs and its identities, 20 and 32 bytes.

    They stand in the order that the specification asks for, "for purposes of indistinguishability":
    IPv4, RSA, Ed25519, IPv6. tor-spec, "EXTEND and EXTENDED cells".
    """
    if len(rsa_identity) != RSA_IDENTITY_LEN:
        raise UsageError(f"an RSA identity has {RSA_IDENTITY_LEN} bytes, not {len(rsa_identity)}")
    ipv4: list[bytes] = []
    ipv6: list[bytes] = []
    for address, port in addresses:
        value = address.packed + port.to_bytes(2, "big")
        if address.version == 4:
            ipv4.append(_specifier(LinkSpecifierType.IPV4, value))
        else:
            ipv6.append(_specifier(LinkSpecifierType.IPV6, value))
    identities = [_specifier(LinkSpecifierType.LEGACY_ID, rsa_identity)]
    if ed25519_identity is not None:
        if len(ed25519_identity) != ED25519_IDENTITY_LEN:
            raise UsageError(
                f"an Ed25519 identity has {ED25519_IDENTITY_LEN} bytes, not {len(ed25519_identity)}"
            )
        identities.append(_specifier(LinkSpecifierType.ED25519_ID, ed25519_identity))
    specifiers = ipv4 + identities + ipv6
    return bytes([len(specifiers)]) + b"".join(specifiers)


def _specifier(type_: LinkSpecifierType, value: bytes) -> bytes:
    return bytes([type_, len(value)]) + value


def encode_extend2(link_specifiers: bytes, handshake_type: HandshakeType, handshake: bytes) -> bytes:
    """`link_specifiers` is what `encode_link_specifiers` gave. Goes out in a RELAY_EARLY cell.

    tor-spec, "EXTEND and EXTENDED cells".
    """
    return link_specifiers + handshake_type.to_bytes(2, "big") + len(handshake).to_bytes(2, "big") + handshake


def decode_extended2(body: bytes) -> bytes:
    """Returns the relay's half of the handshake, HDATA. Raises CircuitError if HLEN exceeds the body."""
    reader = Reader(body, "EXTENDED2", CircuitError)
    return reader.take(reader.take_int(2))


def decode_truncated(body: bytes) -> DestroyReason:
    """NONE for a reason not in the specification. Raises CircuitError if there is no reason at all.

    tor-spec, "Tearing down circuits".
    """
    return DestroyReason(Reader(body, "TRUNCATED", CircuitError).take_int(1))


# --- Flow control ----------------------------------------------------------------------------------------


def encode_xon(kbps_ewma: int) -> bytes:
    """`kbps_ewma` is the rate at which we drain the stream, in 1000 bytes per second; 0 is no limit.

    Proposal 324, "Stream Flow Control Without Windows".
    """
    return bytes([XON_XOFF_VERSION]) + kbps_ewma.to_bytes(4, "big")


def decode_xon(body: bytes) -> int:
    """Returns the rate, as in `encode_xon`. Raises CircuitError."""
    reader = Reader(body, "XON", CircuitError)
    _check_flow_control_version(reader, "XON")
    return reader.take_int(4)


def encode_xoff() -> bytes:
    return bytes([XON_XOFF_VERSION])


def decode_xoff(body: bytes) -> None:
    """Check an XOFF, which has only a version. Raises CircuitError for an unknown one."""
    _check_flow_control_version(Reader(body, "XOFF", CircuitError), "XOFF")


def _check_flow_control_version(reader: Reader, what: str) -> None:
    version = reader.take_int(1)
    if version != XON_XOFF_VERSION:
        raise CircuitError(f"{what} has version {version}, {XON_XOFF_VERSION} expected")


# --- Names and addresses ---------------------------------------------------------------------------------


def _check_hostname(host: str) -> str:
    """`host` in lower case, "to avoid fingerprinting". Raises UsageError, which does not repeat it."""
    if not host.isascii():  # before lower(), which makes ASCII of some letters that are not
        raise UsageError("a host name must be ASCII", hint="write the name in its xn-- form")
    host = host.lower()
    if len(host.rstrip(".")) > HOSTNAME_MAX_LEN or not _HOSTNAME.fullmatch(host):
        raise UsageError("this is neither a host name nor an address")
    if is_onion(host):
        raise UsageError("a name in .onion is not for exits")
    return host


def _parse_ipv6(host: str) -> IPv6Address:
    try:
        address = IPv6Address(host)
    except AddressValueError as exc:
        raise UsageError("this is neither a host name nor an address") from exc
    if address.scope_id is not None:
        raise UsageError("an IPv6 address with a scope means nothing to an exit")
    return address
