"""Keys of authorised clients, in C tor's formats. Nothing here reads files.

    NAME.auth_private   at the client:   ADDRESS:descriptor:x25519:SECRET        ADDRESS without .onion
    NAME.auth           at the service:  descriptor:x25519:PUBLIC                keys in base32

rend-spec-v3, "Client authorization: file formats"; tor(1), ClientOnionAuthDir.
"""

import base64
import binascii
from typing import NamedTuple

from torkit.errors import UsageError
from torkit.hs.address import SUFFIX, encode_address, parse_address
from torkit.hs.keys import KEY_LEN

# Implementation limit, bytes: one line of 56 + 19 + 52 characters.
MAX_LINE_LEN = 256


class ClientKey(NamedTuple):
    """A client's X25519 secret key, and the identity key of the service that knows it: 32 bytes each."""

    identity: bytes
    secret: bytes


def decode_client_key(text: str) -> ClientKey:
    """Returns the key in the content of an `.auth_private` file. Raises UsageError."""
    fields = text.strip().split(":")
    if len(text) > MAX_LINE_LEN or len(fields) != 4 or fields[1:3] != ["descriptor", "x25519"]:
        raise UsageError("a client key is one line ADDRESS:descriptor:x25519:SECRET")
    return ClientKey(parse_address(fields[0] + SUFFIX), _decode_key(fields[3]))


def encode_client_key(key: ClientKey) -> str:
    """Returns the content of an `.auth_private` file, with a newline."""
    address = encode_address(key.identity).removesuffix(SUFFIX)
    return f"{address}:descriptor:x25519:{_encode_key(key.secret)}\n"


def encode_authorized_client(public: bytes) -> str:
    """Returns the content of an `.auth` file for the client with this X25519 public key, with a newline."""
    return f"descriptor:x25519:{_encode_key(public)}\n"


def decode_authorized_client(text: str) -> bytes:
    """Returns the client's X25519 public key from the content of an `.auth` file. Raises UsageError."""
    fields = text.strip().split(":")
    if len(text) > MAX_LINE_LEN or len(fields) != 3 or fields[:2] != ["descriptor", "x25519"]:
        raise UsageError("a service's line for a client is descriptor:x25519:KEY")
    return _decode_key(fields[2])


def _encode_key(key: bytes) -> str:
    return base64.b32encode(key).decode("ascii").rstrip("=")


def _decode_key(text: str) -> bytes:
    try:
        key = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_LEN or not any(key):
        raise UsageError(f"a key is {KEY_LEN} bytes in base32, not all of them zero")
    return key
