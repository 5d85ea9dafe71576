"""Bodies of the relay messages by which a service meets its clients: the service's side.

    to an introduction point     ESTABLISH_INTRO    the key by which it knows us, proved for this circuit
    from an introduction point   INTRO_ESTABLISHED
    from an introduction point   INTRODUCE2         a client's request: nothing in it is proved
    to a rendezvous point        RENDEZVOUS1        the client's cookie, and our half of the handshake

rend-spec-v3, "The introduction protocol" and "The rendezvous protocol". (The client's: hs/messages.py.)
"""

import hashlib
from enum import IntEnum
from typing import NamedTuple

from torkit._fast.cells import Reader
from torkit._fast.equix import SOLUTION_LEN
from torkit.errors import CircuitError
from torkit.hs.keys import KEY_LEN, SecretKey
from torkit.hs.messages import (
    AUTH_KEY_ED25519,
    COOKIE_LEN,
    LEGACY_KEY_ID_LEN,
    MAC_LEN,
    ONION_KEY_NTOR,
    IntroduceExtension,
)
from torkit.hs.pow import EFFORT_LEN, NONCE_LEN, PROOF_LEN, SEED_HEAD_LEN, VERSION, Proof
from torkit.proto.ntor import decode_extensions, encode_extensions

# Specification constants.
ESTABLISH_PREFIX = b"Tor establish-intro cell v1"
RENDEZVOUS1_LEN = 168  # padded with random bytes (as C tor)
MAX_DOS_LIMIT = 2**31 - 1  # points ignore greater limits, and both where the burst is below the rate
MAX_SPECIFIERS = 32  # link specifiers of one rendezvous point


class EstablishExtension(IntEnum):
    """Extensions of ESTABLISH_INTRO."""

    DOS_PARAMETERS = 1


class DosParameter(IntEnum):
    """Limits that an introduction point is asked to keep."""

    RATE = 1  # a second
    BURST = 2


class DosLimits(NamedTuple):
    """How many introductions a point passes on, per second and at once. 0 and 0 is no limit."""

    rate: int
    burst: int


class Request(NamedTuple):
    """An INTRODUCE2, not opened yet. `mac` authenticates the other fields."""

    header: bytes
    client_key: bytes  # X
    sealed: bytes
    mac: bytes


class Invitation(NamedTuple):
    """The client's words inside INTRODUCE2: where it waits. Nothing in it is proved."""

    cookie: bytes
    onion_key: bytes
    link_specifiers: tuple[tuple[int, bytes], ...]
    wants_congestion_control: bool
    proof: Proof | None


def encode_establish_intro(auth_key: SecretKey, kh: bytes, limits: DosLimits | None) -> bytes:
    """Returns the proof for an introduction point that `auth_key` is ours, on the circuit with this `kh`.

    `kh` is from the handshake with the point.

    rend-spec-v3, "Registering an introduction point on a circuit".
    """
    extensions: dict[int, bytes] = {}
    if limits is not None:
        extensions[EstablishExtension.DOS_PARAMETERS] = b"".join(
            (
                bytes([len(DosParameter)]),
                bytes([DosParameter.RATE]) + limits.rate.to_bytes(8, "big"),
                bytes([DosParameter.BURST]) + limits.burst.to_bytes(8, "big"),
            )
        )
    named = bytes([AUTH_KEY_ED25519]) + KEY_LEN.to_bytes(2, "big") + auth_key.public
    body = named + encode_extensions(extensions)
    body += hashlib.sha3_256(len(kh).to_bytes(8, "big") + kh + body).digest()
    signature = auth_key.sign(ESTABLISH_PREFIX + body)
    return body + len(signature).to_bytes(2, "big") + signature


def decode_intro_established(body: bytes) -> None:
    """Raises CircuitError where the body is malformed. Nothing in it is used."""
    decode_extensions(body)


def decode_introduce2(body: bytes, auth_key: bytes) -> Request:
    """Returns the request in an INTRODUCE2 from a point that knows us by `auth_key`. Raises CircuitError."""
    reader = Reader(body, "INTRODUCE2", CircuitError)
    if any(reader.take(LEGACY_KEY_ID_LEN)):
        raise CircuitError("INTRODUCE2 is for a service of version 2")
    key_type, key = reader.take_int(1), reader.take(reader.take_int(2))
    if key_type != AUTH_KEY_ED25519 or key != auth_key:
        raise CircuitError("INTRODUCE2 is for another service")
    for _ in range(reader.take_int(1)):
        reader.take(1)
        reader.take(reader.take_int(1))
    header = body[: len(body) - reader.bytes_left]
    client_key = reader.take(KEY_LEN)
    sealed = reader.take(reader.bytes_left - MAC_LEN) if reader.bytes_left > MAC_LEN else b""
    if not sealed:
        raise CircuitError("INTRODUCE2 holds nothing for us")
    return Request(header, client_key, sealed, reader.take(MAC_LEN))


def decode_invitation(plaintext: bytes) -> Invitation:
    """Returns the client's words; padding may follow the link specifiers. Raises CircuitError.

    rend-spec-v3, "Processing an INTRODUCE2 message by the hidden service".
    """
    reader = Reader(plaintext, "INTRODUCE2", CircuitError)
    cookie = reader.take(COOKIE_LEN)
    extensions: dict[int, bytes] = {}
    for _ in range(reader.take_int(1)):
        kind = reader.take_int(1)
        extensions.setdefault(kind, reader.take(reader.take_int(1)))
    if reader.take_int(1) != ONION_KEY_NTOR:
        raise CircuitError("INTRODUCE2 names a rendezvous point with a key that is not for ntor")
    onion_key = reader.take(reader.take_int(2))
    if len(onion_key) != KEY_LEN or not any(onion_key):
        raise CircuitError("INTRODUCE2 names a rendezvous point without a key")
    count = reader.take_int(1)
    if count > MAX_SPECIFIERS:
        raise CircuitError(f"INTRODUCE2 has {count} link specifiers")
    specifiers = tuple((reader.take_int(1), reader.take(reader.take_int(1))) for _ in range(count))
    proof = extensions.get(IntroduceExtension.PROOF_OF_WORK)
    return Invitation(
        cookie,
        onion_key,
        specifiers,
        wants_congestion_control=IntroduceExtension.CC_REQUEST in extensions,
        proof=None if proof is None else _decode_proof(proof),
    )


def encode_rendezvous1(cookie: bytes, reply: bytes, padding: bytes) -> bytes:
    """Returns the body: `reply` is Y and AUTH; random bytes from `padding` fill it to RENDEZVOUS1_LEN."""
    body = cookie + reply
    return body + padding[: RENDEZVOUS1_LEN - len(body)]


def _decode_proof(body: bytes) -> Proof:
    if len(body) != PROOF_LEN:
        raise CircuitError(f"a proof of work has {PROOF_LEN} bytes, not {len(body)}")
    reader = Reader(body, "a proof of work", CircuitError)
    version = reader.take_int(1)
    if version != VERSION:
        raise CircuitError(f"a proof of work of version {version}, not {VERSION}")
    nonce = reader.take(NONCE_LEN)
    effort = reader.take_int(EFFORT_LEN)
    return Proof(nonce, effort, reader.take(SEED_HEAD_LEN), reader.take(SOLUTION_LEN))
