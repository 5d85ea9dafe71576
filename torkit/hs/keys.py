"""A service's keys: the check of an identity key, and the blinded keys of each time period.

The only module that imports PyNaCl, for libsodium's arithmetic of Ed25519. rend-spec-v3, "Key blinding".
"""

import hashlib

from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
    crypto_sign_seed_keypair,
)

from torkit._fast.keys import wipe
from torkit.errors import OnionServiceError, OnionStep, UsageError
from torkit.hs.calendar import TimePeriod

# Specification constants.
KEY_LEN = 32
BLIND_STRING = b"Derive temporary signing key\0"
BASEPOINT_TEXT = (
    b"(15112221349535400772501151409588531511454012693041857206046113283949847762202, "
    b"46316835694926478169428394003475163141307993866256225615783033603165251855960)"
)
BLIND_PREFIX_STRING = b"Derive temporary signing key hash input"
NONCE_PREFIX = b"key-blind"
EXPANDED_LEN = 64  # of a secret key: scalar and prefix


def is_identity_key(key: bytes) -> bool:
    """Returns whether `key`, 32 bytes, is a canonical point of prime order.

    Points with a torsion component would give one service several addresses. rend-spec-v3, "Credentials".
    """
    return bool(crypto_core_ed25519_is_valid_point(key))


def blinding_factor(identity: bytes, period: TimePeriod) -> bytes:
    """Returns the clamped scalar, 32 bytes, by which a service's key is multiplied in `period`."""
    nonce = NONCE_PREFIX + period.number.to_bytes(8, "big") + period.length.to_bytes(8, "big")
    return _clamped(hashlib.sha3_256(BLIND_STRING + identity + BASEPOINT_TEXT + nonce).digest())


def _clamped(scalar: bytes) -> bytes:
    """RFC 8032, 5.1.5."""
    clamped = bytearray(scalar)
    clamped[0] &= 0xF8
    clamped[31] = clamped[31] & 0x3F | 0x40
    return bytes(clamped)


def blind(identity: bytes, period: TimePeriod) -> bytes:
    """Returns the public key, 32 bytes, under which the service is found in `period`."""
    try:
        return bytes(crypto_scalarmult_ed25519_noclamp(blinding_factor(identity, period), identity))
    except Exception as error:  # libsodium's refusal has no type of its own
        raise OnionServiceError("the onion address holds no usable key", step=OnionStep.ADDRESS) from error


def subcredential(identity: bytes, blinded: bytes) -> bytes:
    """Returns a value, 32 bytes, that needs the address to compute. rend-spec-v3, "Credentials"."""
    credential = hashlib.sha3_256(b"credential" + identity).digest()
    return hashlib.sha3_256(b"subcredential" + credential + blinded).digest()


def public_key_of(seed: bytes) -> bytes:
    """Returns the public key, 32 bytes, of a seed, 32 random bytes: that of `SecretKey.from_seed`, sooner."""
    return bytes(crypto_sign_seed_keypair(seed)[0])


class SecretKey:
    """An Ed25519 secret key as services keep it: a scalar and a prefix, without the seed.

    `public` is its public key, 32 bytes. RFC 8032, 5.1.5; rend-spec-v3, "Key blinding".
    """

    def __init__(self, expanded: bytes) -> None:
        """`expanded` is the scalar and the prefix, 32 bytes each. Raises UsageError for a scalar of zero."""
        self.expanded = expanded
        self._scalar = crypto_core_ed25519_scalar_reduce(expanded[:KEY_LEN] + bytes(KEY_LEN))
        self._prefix = expanded[KEY_LEN:EXPANDED_LEN]
        if not any(self._scalar):
            raise UsageError("this is no secret key: it is zero")
        self.public = bytes(crypto_scalarmult_ed25519_base_noclamp(self._scalar))

    @classmethod
    def from_seed(cls, seed: bytes) -> "SecretKey":
        """Returns the key of a seed, 32 random bytes."""
        digest = hashlib.sha512(seed).digest()
        try:
            return cls(_clamped(digest[:KEY_LEN]) + digest[KEY_LEN:])
        finally:
            wipe(digest)

    def sign(self, message: bytes) -> bytes:
        """Returns an Ed25519 signature, 64 bytes. RFC 8032, 5.1.6."""
        nonce = crypto_core_ed25519_scalar_reduce(hashlib.sha512(self._prefix + message).digest())
        point = crypto_scalarmult_ed25519_base_noclamp(nonce)
        challenge = crypto_core_ed25519_scalar_reduce(hashlib.sha512(point + self.public + message).digest())
        product = crypto_core_ed25519_scalar_mul(challenge, self._scalar)
        return bytes(point + crypto_core_ed25519_scalar_add(nonce, product))

    def blinded(self, period: TimePeriod) -> "SecretKey":
        """Returns the secret key of `period`, whose public key is `blind(public, period)`."""
        factor = blinding_factor(self.public, period)
        reduced = crypto_core_ed25519_scalar_reduce(factor + bytes(KEY_LEN))
        scalar = crypto_core_ed25519_scalar_mul(reduced, self._scalar)
        prefix = hashlib.sha512(BLIND_PREFIX_STRING + self._prefix).digest()[:KEY_LEN]
        return SecretKey(bytes(scalar) + prefix)

    def wipe(self) -> None:
        """Overwrite the secret. The key cannot sign any more."""
        for secret in (self.expanded, self._scalar, self._prefix):
            wipe(secret)
