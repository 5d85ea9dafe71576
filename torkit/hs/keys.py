"""A service's keys: which are valid, and the blinded ones of each time period.

The only module that imports PyNaCl, whose libsodium multiplies points of Ed25519.
rend-spec-v3, "Key blinding".
"""

import hashlib

from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_scalarmult_ed25519_noclamp

from torkit.errors import OnionServiceError, OnionStep
from torkit.hs.calendar import TimePeriod

# Specification constants.
KEY_LEN = 32
BLIND_STRING = b"Derive temporary signing key\0"
BASEPOINT_TEXT = (
    b"(15112221349535400772501151409588531511454012693041857206046113283949847762202, "
    b"46316835694926478169428394003475163141307993866256225615783033603165251855960)"
)
NONCE_PREFIX = b"key-blind"


def is_identity_key(key: bytes) -> bool:
    """Returns whether `key`, 32 bytes, is a canonical point of prime order.

    With a torsion component, one service would have several addresses. rend-spec-v3, "Credentials".
    """
    return bool(crypto_core_ed25519_is_valid_point(key))


def blinding_factor(identity: bytes, period: TimePeriod) -> bytes:
    """The scalar by which a service's key is multiplied in `period`, 32 bytes, clamped."""
    nonce = NONCE_PREFIX + period.number.to_bytes(8, "big") + period.length.to_bytes(8, "big")
    factor = bytearray(hashlib.sha3_256(BLIND_STRING + identity + BASEPOINT_TEXT + nonce).digest())
    factor[0] &= 0xF8
    factor[31] = factor[31] & 0x3F | 0x40
    return bytes(factor)


def blind(identity: bytes, period: TimePeriod) -> bytes:
    """The public key, 32 bytes, under which the service is found in `period`."""
    try:
        return bytes(crypto_scalarmult_ed25519_noclamp(blinding_factor(identity, period), identity))
    except Exception as error:  # libsodium's refusal has no type of its own
        raise OnionServiceError("the onion address holds no usable key", step=OnionStep.ADDRESS) from error


def subcredential(identity: bytes, blinded: bytes) -> bytes:
    """What only those who know the address can compute, 32 bytes. rend-spec-v3, "Credentials"."""
    credential = hashlib.sha3_256(b"credential" + identity).digest()
    return hashlib.sha3_256(b"subcredential" + credential + blinded).digest()
