"""A service's identity: its address, and its keys of each time period. rend-spec-v3, "Key blinding"."""

import base64
import hashlib
import os
from typing import NamedTuple

from torkit.testing.ed25519 import BASE, ORDER, ExpandedKey, clamp, decode_point, encode_point, multiply

DAY = 1440  # minutes
ROTATION_OFFSET = 720  # minutes: a period begins at noon


class TimePeriod(NamedTuple):
    """A period by its number, counted from 1970, and its length in minutes."""

    number: int
    length: int = DAY

    @classmethod
    def at(cls, moment: float, length: int = DAY, offset: int = ROTATION_OFFSET) -> "TimePeriod":
        """The one in force at a consensus's valid-after, Unix time. `offset`, minutes: 12 voting intervals.

        rend-spec-v3, "Dividing time into periods".
        """
        return cls((int(moment) // 60 - offset) // length, length)


class OnionKey:
    """The identity key of a service, of a seed of 32 bytes, by default a new one."""

    def __init__(self, seed: bytes | None = None) -> None:
        self._key = ExpandedKey.from_seed(os.urandom(32) if seed is None else seed)
        self.public = self._key.public
        self.address = encode_address(self.public)

    def blinded(self, period: TimePeriod) -> ExpandedKey:
        """The secret key of one period, whose public key is `blind(public, period)`."""
        scalar = _blinding_factor(self.public, period) * self._key.scalar % ORDER
        prefix = hashlib.sha512(b"Derive temporary signing key hash input" + self._key.prefix).digest()[:32]
        return ExpandedKey(scalar, prefix)


def encode_address(identity: bytes) -> str:
    """The address of the service with this identity key: 56 characters and ".onion"."""
    checksum = hashlib.sha3_256(b".onion checksum" + identity + b"\3").digest()[:2]
    return base64.b32encode(identity + checksum + b"\3").decode("ascii").lower() + ".onion"


def decode_address(address: str) -> bytes:
    """The identity key, 32 bytes. Raises ValueError."""
    raw = base64.b32decode(address.removesuffix(".onion").upper())
    if encode_address(raw[:32]) != address:
        raise ValueError(f"{address!r} is no onion address of version 3")
    return raw[:32]


def blind(identity: bytes, period: TimePeriod) -> bytes:
    """The public key, 32 bytes, under which the service is found in a period. Raises ValueError."""
    return encode_point(multiply(_blinding_factor(identity, period), decode_point(identity)))


def subcredential(identity: bytes, blinded: bytes) -> bytes:
    """A value, 32 bytes, that needs the address to compute. rend-spec-v3, "Credentials"."""
    credential = hashlib.sha3_256(b"credential" + identity).digest()
    return hashlib.sha3_256(b"subcredential" + credential + blinded).digest()


def _blinding_factor(identity: bytes, period: TimePeriod) -> int:
    nonce = b"key-blind" + period.number.to_bytes(8, "big") + period.length.to_bytes(8, "big")
    text = b"Derive temporary signing key\0" + identity + f"({BASE[0]}, {BASE[1]})".encode() + nonce
    return clamp(hashlib.sha3_256(text).digest())
