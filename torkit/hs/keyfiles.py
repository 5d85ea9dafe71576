"""A service's identity key as C tor keeps it, in a directory of its own. Nothing here reads files.

    hs_ed25519_secret_key     a header of 32 bytes, then scalar and prefix, 32 bytes each
    hs_ed25519_public_key     a header of 32 bytes, then the public key, 32 bytes
    hostname                  the address and a newline

C tor 0.4.9, HiddenServiceDir.
"""

from torkit.errors import UsageError
from torkit.hs.keys import EXPANDED_LEN, KEY_LEN, SecretKey

KEY_FILE = "hs_ed25519_secret_key"
PUBLIC_FILE = "hs_ed25519_public_key"
HOSTNAME_FILE = "hostname"

HEADER_LEN = 32
SECRET_HEADER = b"== ed25519v1-secret: type0 ==".ljust(HEADER_LEN, b"\0")
PUBLIC_HEADER = b"== ed25519v1-public: type0 ==".ljust(HEADER_LEN, b"\0")
SECRET_FILE_LEN = HEADER_LEN + EXPANDED_LEN
PUBLIC_FILE_LEN = HEADER_LEN + KEY_LEN


def encode_secret_file(key: SecretKey) -> bytes:
    """Returns the content of KEY_FILE, which the caller wipes."""
    return SECRET_HEADER + key.expanded


def encode_public_file(key: SecretKey) -> bytes:
    return PUBLIC_HEADER + key.public


def decode_secret_file(data: bytes) -> SecretKey:
    """Returns the key in the content of KEY_FILE. Raises UsageError for other content, or a key of zero."""
    if len(data) != SECRET_FILE_LEN or not data.startswith(SECRET_HEADER):
        raise UsageError(
            f"an onion service's secret key has {SECRET_FILE_LEN} bytes and begins with ed25519v1-secret"
        )
    return SecretKey(bytes(memoryview(data)[HEADER_LEN:]))


def check_public_file(data: bytes, key: SecretKey) -> None:
    """Raises UsageError where `data`, the content of PUBLIC_FILE, is not the public key of `key`."""
    if data != encode_public_file(key):
        raise UsageError("the public key is not the secret key's: the directory holds files of two services")
