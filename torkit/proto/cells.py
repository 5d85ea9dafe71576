"""Bodies of channel cells, encoded and decoded. Framing, circuit ids and padding are `_fast/cells`.

A decoder gets the body as framed: fixed-length bodies still carry their padding, which it ignores.
"""

from collections.abc import Iterable
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from torkit._fast.cells import Reader
from torkit.errors import ChannelError, CircuitError, DestroyReason

# Specification constants.
HASH_LEN = 20  # SHA-1; tor-spec, "Preliminaries"
RSA_IDENTITY_LEN = 20  # tor-spec, "EXTEND and EXTENDED cells"
ED25519_IDENTITY_LEN = 32  # the same
CURVE25519_KEY_LEN = 32  # tor-spec, "The "ntor" handshake"

IPAddress = IPv4Address | IPv6Address


class HandshakeType(IntEnum):
    """HTYPE of CREATE2 and EXTEND2. tor-spec, "CREATE and CREATED cells"."""

    NTOR = 2
    NTOR_V3 = 3


class AddressType(IntEnum):
    """ATYPE of NETINFO, type of a RESOLVED answer, address type of CONNECTED: the same numbers."""

    IPV4 = 4
    IPV6 = 6


class Netinfo(NamedTuple):
    """A peer's NETINFO, on itself and on us. All of it may be a lie.

    `timestamp` is in seconds since the epoch, 0 if the peer keeps it to itself. `our_address` is None
    if it is of no type we know.
    """

    timestamp: int
    our_address: IPAddress | None
    peer_addresses: tuple[IPAddress, ...]


# --- Link handshake ------------------------------------------------------------------------------


def encode_versions(versions: Iterable[int]) -> bytes:
    """tor-spec, "Negotiating versions with VERSIONS cells"."""
    return b"".join(version.to_bytes(2, "big") for version in versions)


def decode_versions(body: bytes) -> list[int]:
    """Returns the link protocols a peer offers, in its order.

    Raises ChannelError if `body` has an odd length.
    """
    if len(body) % 2:
        raise ChannelError(f"VERSIONS has an odd length, {len(body)} bytes")
    reader = Reader(body, "VERSIONS", ChannelError)
    return [reader.take_int(2) for _ in range(len(body) // 2)]


def decode_certs(body: bytes) -> list[tuple[int, bytes]]:
    """Returns the certificates as (CertType, certificate); at most 255, nothing in them checked.

    Raises ChannelError. tor-spec, "CERTS cells".
    """
    reader = Reader(body, "CERTS", ChannelError)
    return [(reader.take_int(1), reader.take(reader.take_int(2))) for _ in range(reader.take_int(1))]


def encode_netinfo(peer_address: IPAddress) -> bytes:
    """Returns a client's NETINFO: time 0 and no address of its own, so that it tells nothing of its machine.

    tor-spec, "NETINFO cells".
    """
    timestamp, our_address_count = bytes(4), bytes(1)
    address_type = AddressType.IPV4 if peer_address.version == 4 else AddressType.IPV6
    value = peer_address.packed
    return timestamp + bytes([address_type, len(value)]) + value + our_address_count


def decode_netinfo(body: bytes) -> Netinfo:
    """Raises ChannelError if `body` is truncated. tor-spec, "NETINFO cells"."""
    reader = Reader(body, "NETINFO", ChannelError)
    timestamp = reader.take_int(4)
    our_address = _decode_address(reader)
    addresses = [_decode_address(reader) for _ in range(reader.take_int(1))]
    return Netinfo(timestamp, our_address, tuple(a for a in addresses if a is not None))


def _decode_address(reader: Reader) -> IPAddress | None:
    """None for an unknown type or a wrong length: "the provided address should be ignored"."""
    address_type = reader.take_int(1)
    value = reader.take(reader.take_int(1))
    if address_type == AddressType.IPV4 and len(value) == 4:
        return IPv4Address(value)
    if address_type == AddressType.IPV6 and len(value) == 16:
        return IPv6Address(value)
    return None


# --- Circuits ------------------------------------------------------------------------------------


def decode_created_fast(body: bytes) -> bytes:
    """Y | KH, 2 * HASH_LEN bytes. Raises CircuitError."""
    return Reader(body, "CREATED_FAST", CircuitError).take(2 * HASH_LEN)


def encode_create2(handshake_type: HandshakeType, handshake: bytes) -> bytes:
    """tor-spec, "CREATE and CREATED cells"."""
    return handshake_type.to_bytes(2, "big") + len(handshake).to_bytes(2, "big") + handshake


def decode_created2(body: bytes) -> bytes:
    """Returns the relay's half of the handshake, HDATA. Raises CircuitError if HLEN exceeds the body."""
    reader = Reader(body, "CREATED2", CircuitError)
    return reader.take(reader.take_int(2))


def encode_destroy() -> bytes:
    """DESTROY as a client sends it: "An OP should always use the NONE reason for its own DESTROY cells."

    tor-spec, "Tearing down circuits".
    """
    return bytes([DestroyReason.NONE])


def decode_destroy(body: bytes) -> DestroyReason:
    """NONE for a reason not in the specification. Raises CircuitError if there is no reason at all."""
    return DestroyReason(Reader(body, "DESTROY", CircuitError).take_int(1))
