"""Ed25519 with secret scalars of any origin, which no library signs with: blinded keys, those of Curve25519.

Plain arithmetic: not in constant time, so for tests only. RFC 8032, 5.1.
"""

import hashlib
from functools import lru_cache
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

PRIME = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, PRIME) % PRIME
BASE = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    46316835694926478169428394003475163141307993866256225615783033603165251855960,
)
Point = tuple[int, int]


class Signer(Protocol):
    """An Ed25519 secret key: one of `cryptography`'s, or an ExpandedKey."""

    def sign(self, data: bytes, /) -> bytes: ...
    def public_key(self) -> Ed25519PublicKey: ...


class ExpandedKey:
    """A secret key as a scalar, below ORDER or clamped, and a prefix of 32 bytes that makes nonces."""

    def __init__(self, scalar: int, prefix: bytes) -> None:
        self.scalar = scalar
        self.prefix = prefix

    @classmethod
    def from_seed(cls, seed: bytes) -> "ExpandedKey":
        """The key of a seed of 32 bytes."""
        digest = hashlib.sha512(seed).digest()
        return cls(clamp(digest[:32]), digest[32:])

    @classmethod
    def from_x25519(cls, key: X25519PrivateKey) -> "ExpandedKey":
        """The key with the scalar of a Curve25519 key. dir-spec, "ntor-onion-key-crosscert"."""
        secret = key.private_bytes_raw()
        return cls(clamp(secret), secret)

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes; the first bit of the last is the sign."""
        return _public_of(self.scalar)

    def public_key(self) -> Ed25519PublicKey:
        """The same as `cryptography` has it."""
        return Ed25519PublicKey.from_public_bytes(self.public)

    def sign(self, data: bytes) -> bytes:
        """A signature, 64 bytes."""
        return _sign(self.scalar, self.prefix, data)


@lru_cache(1000)
def _public_of(scalar: int) -> bytes:
    return encode_point(multiply(scalar))


@lru_cache(1000)
def _sign(scalar: int, prefix: bytes, data: bytes) -> bytes:
    nonce = int.from_bytes(hashlib.sha512(prefix + data).digest(), "little") % ORDER
    commitment = encode_point(multiply(nonce))
    challenge = hashlib.sha512(commitment + _public_of(scalar) + data).digest()
    response = (nonce + int.from_bytes(challenge, "little") * scalar) % ORDER
    return commitment + response.to_bytes(32, "little")


def clamp(secret: bytes) -> int:
    """The scalar of 32 bytes."""
    return int.from_bytes(secret, "little") & (2**254 - 8) | 2**254


def _add(a: Point, b: Point) -> Point:
    product = _D * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + product, -1, PRIME)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, PRIME)
    return x % PRIME, y % PRIME


def multiply(scalar: int, point: Point = BASE) -> Point:
    """`point`, so many times."""
    result = (0, 1)
    for bit in f"{scalar:b}":
        result = _add(result, result)
        result = _add(result, point) if bit == "1" else result
    return result


def encode_point(point: Point) -> bytes:
    """RFC 8032, 5.1.2."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def decode_point(encoded: bytes) -> Point:
    """RFC 8032, 5.1.3. Raises ValueError for 32 bytes that are no point."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    square = (y * y - 1) * pow(_D * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if (x * x - square) % PRIME:
        x = x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    if y >= PRIME or (x * x - square) % PRIME or (x == 0 and sign):
        raise ValueError("not a point of Ed25519")
    return (PRIME - x if x & 1 != sign else x), y


def edwards_of(montgomery: bytes) -> bytes:
    """The Ed25519 form of an X25519 public key, with sign 0: y = (u - 1) / (u + 1). RFC 7748, section 4.1."""
    u = int.from_bytes(montgomery, "little") % PRIME
    return ((u - 1) * pow(u + 1, PRIME - 2, PRIME) % PRIME).to_bytes(32, "little")
