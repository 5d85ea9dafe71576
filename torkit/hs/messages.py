"""Bodies of the relay messages by which a client meets an onion service.

    to the rendezvous point      ESTABLISH_RENDEZVOUS    a cookie of 20 random bytes
    to an introduction point     INTRODUCE1              which service; and, for the service, where we wait
    from the introduction point  INTRODUCE_ACK           whether it has passed that on
    from the rendezvous point    RENDEZVOUS2             the service's half of the handshake

rend-spec-v3, "The introduction protocol" and "The rendezvous protocol".
"""

from enum import IntEnum

from torkit._fast.cells import Reader
from torkit.errors import CircuitError
from torkit.hs.keys import KEY_LEN
from torkit.proto.ntor import decode_extensions, encode_extensions

# Specification constants.
COOKIE_LEN = 20
MAC_LEN = 32
LEGACY_KEY_ID_LEN = 20  # zero: services of version 2 had it
AUTH_KEY_ED25519 = 2  # AUTH_KEY_TYPE
ONION_KEY_NTOR = 1  # ONION_KEY_TYPE
NO_EXTENSIONS = b"\0"

# INTRODUCE1 without public key and MAC is padded to so many bytes, whatever its extensions (as C tor).
INTRODUCE_LEN = 246


class IntroduceExtension(IntEnum):
    """Extensions in the part of INTRODUCE1 that only the service reads. Proposal 324; proposal 327."""

    CC_REQUEST = 1
    PROOF_OF_WORK = 2


class AckStatus(IntEnum):
    """The answer of an introduction point. rend-spec-v3, "INTRODUCE_ACK"."""

    SUCCESS = 0
    UNKNOWN_ID = 1  # the point knows no such service
    BAD_FORMAT = 2
    CANNOT_RELAY = 3

    @classmethod
    def _missing_(cls, value: object) -> "AckStatus":
        return cls.UNKNOWN_ID  # every value but SUCCESS says that the message was not passed on


def introduce_header(auth_key: bytes) -> bytes:
    """Returns the part of INTRODUCE1 for the introduction point, which knows the service by `auth_key`."""
    named = bytes([AUTH_KEY_ED25519]) + len(auth_key).to_bytes(2, "big") + auth_key
    return bytes(LEGACY_KEY_ID_LEN) + named + NO_EXTENSIONS


def introduce_plaintext(
    *,
    cookie: bytes,
    onion_key: bytes,
    link_specifiers: bytes,
    extensions: dict[int, bytes],
    header_len: int,
) -> bytes:
    """Returns the part of INTRODUCE1 for the service: where we wait for it.

    `onion_key` and `link_specifiers`, as `encode_link_specifiers` gives them, are the rendezvous point's.
    """
    key = bytes([ONION_KEY_NTOR]) + len(onion_key).to_bytes(2, "big") + onion_key
    plaintext = cookie + encode_extensions(extensions) + key + link_specifiers
    return plaintext.ljust(INTRODUCE_LEN - header_len, b"\0")


def decode_introduce_ack(body: bytes) -> AckStatus:
    """Raises CircuitError."""
    reader = Reader(body, "INTRODUCE_ACK", CircuitError)
    status = AckStatus(reader.take_int(2))
    decode_extensions(reader.take(reader.bytes_left))
    return status


def decode_rendezvous2(body: bytes) -> bytes:
    """Returns the service's half of the handshake, Y and AUTH, 64 bytes; padding may follow it.

    Raises CircuitError.
    """
    return Reader(body, "RENDEZVOUS2", CircuitError).take(KEY_LEN + MAC_LEN)
