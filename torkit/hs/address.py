"""Onion addresses: 56 characters of base32 and a service's identity key.

rend-spec-v3, "Encoding onion addresses".
"""

import base64
import binascii
import hashlib

from torkit.errors import OnionServiceError, OnionStep
from torkit.hs.keys import KEY_LEN, is_identity_key

# Specification constants.
VERSION = 3
CHECKSUM_LEN = 2
CHECKSUM_PREFIX = b".onion checksum"
LABEL_LEN = 56  # characters of base32 for key, checksum and version
SUFFIX = ".onion"


def encode_address(identity: bytes) -> str:
    """Returns the address of the service with this identity key, 32 bytes: 56 characters and `.onion`."""
    raw = identity + _checksum(identity) + bytes([VERSION])
    return base64.b32encode(raw).decode("ascii").lower() + SUFFIX


def parse_address(host: str) -> bytes:
    """Returns the identity key, 32 bytes, that `host` names. Labels before the address are the program's.

    Raises OnionServiceError (step ADDRESS) for a name that is no address of version 3: its length, its
    characters, its checksum or its key is wrong.
    """
    name, _, last = host.removesuffix(".").rpartition(".")
    if f".{last.lower()}" != SUFFIX:
        raise _refused("the name does not end in .onion")
    label = name.rpartition(".")[2]
    if len(label) != LABEL_LEN:
        what = (
            "addresses of version 2 are served by nobody any more" if len(label) == 16 else "is it complete?"
        )
        raise _refused(f"an onion address has {LABEL_LEN} characters, not {len(label)}", hint=what)
    try:
        raw = base64.b32decode(label.upper().encode("ascii"))
    except (binascii.Error, UnicodeEncodeError):
        raise _refused("an onion address is base32: letters a to z and digits 2 to 7") from None
    identity, checksum, version = raw[:KEY_LEN], raw[KEY_LEN:-1], raw[-1]
    if version != VERSION:
        raise _refused(f"an onion address of version {version}; {VERSION} is the only one in use")
    if checksum != _checksum(identity):
        raise _refused(
            "the checksum of the onion address is wrong", hint="is a character missing or changed?"
        )
    if not is_identity_key(identity):
        raise _refused("the onion address holds no key that a service may have")
    return identity


def _checksum(identity: bytes) -> bytes:
    return hashlib.sha3_256(CHECKSUM_PREFIX + identity + bytes([VERSION])).digest()[:CHECKSUM_LEN]


def _refused(reason: str, hint: str | None = None) -> OnionServiceError:
    return OnionServiceError(reason, step=OnionStep.ADDRESS, hint=hint)
