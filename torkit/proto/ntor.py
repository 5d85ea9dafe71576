"""Circuit handshakes, the client's half: CREATE_FAST, ntor and ntor-v3, and the keys that each leaves.

    client = NtorClient(...)             the first message is computed at once
    client.handshake                     bytes for CREATE_FAST, CREATE2 or EXTEND2
    keys = client.finish(reply)          HopKeys, or CircuitError if the reply is not that relay's

A client object serves one hop once; private keys and random bytes come from the caller, fresh each time.
Notation in comments follows the specifications: b, B the relay's onion key, x, X ours for this handshake,
y, Y the relay's.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from enum import IntEnum

from torkit._fast.keys import X25519PrivateKey, aes_256_ctr, wipe
from torkit.errors import CircuitError, UsageError
from torkit.proto.cells import (
    ED25519_IDENTITY_LEN,
    HASH_LEN,
    RSA_IDENTITY_LEN,
    HandshakeType,
    Reader,
    encode_create_fast,
)

# Specification constants: tor-spec, "The "ntor" handshake"; proposal 332, "Instantiation".
KEY_LEN = 16  # AES-128; tor-spec, "Preliminaries"
CURVE25519_KEY_LEN = 32
SHA256_LEN = 32  # also SHA3-256: H, MAC and their keys
ENC_KEY_LEN = 32  # AES-256
NTOR_PROTOID = b"ntor-curve25519-sha256-1"
NTOR_V3_PROTOID = b"ntor3-curve25519-sha3_256-1"
NTOR_V3_CIRCUIT_VERIFICATION = b"circuit extend"


class HopKeys:
    """The result of a handshake: a stream of key bytes, and the relay's message.

    Each layer kind takes as much of the stream, from its start, as it needs; a hop has one layer. The
    HASH_LEN bytes after ntor's or ntor-v3's are the nonce that introduction points know as KH.
    `server_message` is the decrypted message of an ntor-v3 reply, and empty for the older handshakes.
    Call `wipe` when all keys have been derived.
    """

    def __init__(
        self, expand: Callable[[bytes, int], bytes], seed: bytes, server_message: bytes = b""
    ) -> None:
        self._expand = expand
        self._seed = seed
        self.server_message = server_message

    def derive(self, length: int) -> bytes:
        """Returns the first `length` bytes, for the caller to wipe.

        Raises UsageError beyond the KDF's limit.
        """
        return self._expand(self._seed, length)

    def wipe(self) -> None:
        """Overwrite the secret from which the keys are derived."""
        wipe(self._seed)


class Secrets:
    """The secrets of one step, overwritten at its end. `keep` returns its argument."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []

    def __enter__(self) -> Callable[[bytes], bytes]:
        return self.keep

    def __exit__(self, *_: object) -> None:
        for secret in self._kept:
            wipe(secret)

    def keep(self, secret: bytes) -> bytes:
        self._kept.append(secret)
        return secret


# --- CREATE_FAST -----------------------------------------------------------------------------------------


class FastClient:
    """tor-spec, "CREATE_FAST/CREATED_FAST cells": no public keys, for a first hop that TLS authenticated."""

    def __init__(self, x: bytes) -> None:
        """`x` is HASH_LEN fresh random bytes."""
        self.handshake = encode_create_fast(x)

    def finish(self, reply: bytes) -> HopKeys:
        """`reply` is Y | KH. Raises CircuitError."""
        _check_reply_len("CREATED_FAST", reply, 2 * HASH_LEN)
        y, kh = reply[:HASH_LEN], reply[HASH_LEN:]
        secret = self.handshake + y
        if not hmac.compare_digest(_kdf_tor(secret, HASH_LEN), kh):
            wipe(secret)
            raise CircuitError("the CREATE_FAST handshake failed: KH is wrong")
        return HopKeys(_expand_fast, secret)

    def wipe(self) -> None:
        """Overwrite X, once it has been sent and answered."""
        wipe(self.handshake)


def _expand_fast(secret: bytes, length: int) -> bytes:
    with Secrets() as keep:
        return keep(_kdf_tor(secret, HASH_LEN + length))[HASH_LEN:]


def _kdf_tor(secret: bytes, length: int) -> bytes:
    """tor-spec, "KDF-TOR"."""
    blocks = -(-length // HASH_LEN)
    if blocks > 256:
        raise UsageError(f"KDF-TOR gives at most {256 * HASH_LEN} bytes, not {length}")
    with Secrets() as keep:
        material = [keep(hashlib.sha1(keep(secret + bytes([i]))).digest()) for i in range(blocks)]
        return bytes(memoryview(keep(b"".join(material)))[:length])  # a slice of all would be no copy


# --- ntor ------------------------------------------------------------------------------------------------


class NtorClient:
    """tor-spec, "The "ntor" handshake"."""

    handshake_type = HandshakeType.NTOR

    def __init__(self, *, rsa_identity: bytes, onion_key: bytes, private_key: bytes) -> None:
        """`rsa_identity` is 20 bytes; `onion_key`, B, and `private_key`, x, are 32 bytes each.

        Raises CircuitError if the relay published a degenerate onion key.
        """
        _check_len("RSA identity", rsa_identity, RSA_IDENTITY_LEN)
        self._x, self._public_x = _load_private_key(private_key)
        self._identity = rsa_identity
        self._onion_key = onion_key
        self._bx = _exchange(self._x, onion_key, "onion key")
        self.handshake = rsa_identity + onion_key + self._public_x

    def finish(self, reply: bytes) -> HopKeys:
        """`reply` is Y | AUTH. Raises CircuitError."""
        _check_reply_len("the ntor reply", reply, CURVE25519_KEY_LEN + SHA256_LEN)
        y, auth = reply[:CURVE25519_KEY_LEN], reply[CURVE25519_KEY_LEN:]
        with Secrets() as keep:
            yx = keep(_exchange(self._x, y, "key of the relay"))
            secret_input = keep(
                b"".join((yx, self._bx, self._identity, self._onion_key, self._public_x, y, NTOR_PROTOID))
            )
            verify = keep(_ntor_h(secret_input, b":verify"))
            auth_input = keep(
                b"".join(
                    (verify, self._identity, self._onion_key, y, self._public_x, NTOR_PROTOID, b"Server")
                )
            )
            if not hmac.compare_digest(_ntor_h(auth_input, b":mac"), auth):
                raise CircuitError("the ntor handshake failed: AUTH is wrong")
            return HopKeys(_kdf_rfc5869, _ntor_h(secret_input, b":key_extract"))

    def wipe(self) -> None:
        """Overwrite what is secret of this handshake. It cannot be finished any more."""
        wipe(self._bx)
        del self._x


def _ntor_h(message: bytes, tweak: bytes) -> bytes:
    """H(x, t) with t = PROTOID | `tweak`."""
    return hmac.digest(NTOR_PROTOID + tweak, message, "sha256")


def _kdf_rfc5869(key_seed: bytes, length: int) -> bytes:
    """tor-spec, "KDF-RFC5869": the expansion half of HKDF-SHA256."""
    blocks = -(-length // SHA256_LEN)
    if blocks > 255:
        raise UsageError(f"HKDF-SHA256 gives at most {255 * SHA256_LEN} bytes, not {length}")
    with Secrets() as keep:
        material = [b""]
        for i in range(1, blocks + 1):
            message = keep(b"".join((material[-1], NTOR_PROTOID, b":key_expand", bytes([i]))))
            material.append(keep(hmac.digest(key_seed, message, "sha256")))
        return bytes(memoryview(keep(b"".join(material)))[:length])  # a slice of all would be no copy


# --- ntor-v3 ---------------------------------------------------------------------------------------------


class NtorV3Client:
    """Proposal 332: ntor over SHA3 and the Ed25519 identity, with a message each way."""

    handshake_type = HandshakeType.NTOR_V3

    def __init__(
        self,
        *,
        ed25519_identity: bytes,
        onion_key: bytes,
        private_key: bytes,
        message: bytes,
        verification: bytes = NTOR_V3_CIRCUIT_VERIFICATION,
    ) -> None:
        """`ed25519_identity`, `onion_key`, B, and `private_key`, x, are 32 bytes each.

        `message`, for a circuit, is what `CircuitRequest.encode` gives; it has no forward secrecy.
        Raises CircuitError if the relay published a degenerate onion key.
        """
        _check_len("Ed25519 identity", ed25519_identity, ED25519_IDENTITY_LEN)
        self._x, self._public_x = _load_private_key(private_key)
        self._identity = ed25519_identity
        self._onion_key = onion_key
        self._verification = verification
        self._bx = _exchange(self._x, onion_key, "onion key")

        public = self._identity + onion_key + self._public_x
        with Secrets() as keep:
            named = (self._identity, self._public_x, onion_key, NTOR_V3_PROTOID, _encap(verification))
            secret_input = keep(b"".join((self._bx, *named)))
            phase1_keys = keep(_v3_kdf(secret_input, b":kdf_phase1", ENC_KEY_LEN + SHA256_LEN))
            # ENC and DEC of the proposal; each key is used once, so the counter starts at 0.
            encrypted = aes_256_ctr(keep(phase1_keys[:ENC_KEY_LEN]), message)
            mac_key = keep(_encap(keep(phase1_keys[ENC_KEY_LEN:])))
            self._mac = _v3_h(keep(b"".join((mac_key, public, encrypted))), b":msg_mac")
        self.handshake = public + encrypted + self._mac

    def finish(self, reply: bytes) -> HopKeys:
        """`reply` is Y | AUTH | the relay's message, encrypted. Raises CircuitError."""
        reader = Reader(reply, "the ntor-v3 reply", CircuitError)
        y = reader.take(CURVE25519_KEY_LEN)
        auth = reader.take(SHA256_LEN)
        encrypted = reader.take(reader.bytes_left)

        identity, onion_key, public_x = self._identity, self._onion_key, self._public_x
        with Secrets() as keep:
            yx = keep(_exchange(self._x, y, "key of the relay"))
            protoid, verification = NTOR_V3_PROTOID, _encap(self._verification)
            secret_input = keep(
                b"".join((yx, self._bx, identity, onion_key, public_x, y, protoid, verification))
            )
            verify = keep(_v3_h(secret_input, b":verify"))
            answered = self._mac + _encap(encrypted)
            auth_input = keep(
                b"".join((verify, identity, onion_key, y, public_x, answered, protoid, b"Server"))
            )
            if not hmac.compare_digest(_v3_h(auth_input, b":auth_final"), auth):
                raise CircuitError("the ntor-v3 handshake failed: AUTH is wrong")

            key_seed = _v3_h(secret_input, b":key_seed")
            enc_key = keep(_v3_kdf(key_seed, b":kdf_final", ENC_KEY_LEN))
            return HopKeys(_expand_v3, key_seed, aes_256_ctr(enc_key, encrypted))

    def wipe(self) -> None:
        """Overwrite what is secret of this handshake. It cannot be finished any more."""
        wipe(self._bx)
        del self._x


def _expand_v3(key_seed: bytes, length: int) -> bytes:
    with Secrets() as keep:
        return keep(_v3_kdf(key_seed, b":kdf_final", ENC_KEY_LEN + length))[ENC_KEY_LEN:]


def _encap(data: bytes) -> bytes:
    """ENCAP(s) of proposal 332."""
    return len(data).to_bytes(8, "big") + data


def _v3_h(message: bytes, tweak: bytes) -> bytes:
    """H(s, t) with t = PROTOID | `tweak`; and MAC(k, s, t) as H(ENCAP(k) | s, t)."""
    with Secrets() as keep:
        return hashlib.sha3_256(keep(_encap(NTOR_V3_PROTOID + tweak) + message)).digest()


def _v3_kdf(message: bytes, tweak: bytes, length: int) -> bytes:
    """KDF(s, t) with t = PROTOID | `tweak`."""
    with Secrets() as keep:
        return hashlib.shake_256(keep(_encap(NTOR_V3_PROTOID + tweak) + message)).digest(length)


# --- Extensions in the messages of ntor-v3 ---------------------------------------------------------------

# Specification constants.
SUBPROTOCOL_RELAY = 2  # the number of "Relay" in a subprotocol request
RELAY_NEGOTIATES_CGO = 6  # Relay=6, "Counter Galois Onion"


class ExtensionType(IntEnum):
    """EXT_FIELD_TYPE. Proposal 324, "How to negotiate"; proposal 346."""

    CC_REQUEST = 1
    CC_RESPONSE = 2
    SUBPROTOCOL_REQUEST = 3


class CircuitRequest:
    """The wishes of an ntor-v3 handshake. A relay refuses a wish that it does not advertise."""

    def __init__(self, *, congestion_control: bool = False, cgo: bool = False) -> None:
        """`congestion_control` needs FlowCtrl=2, `cgo` Relay=5 and Relay=6."""
        if cgo and not congestion_control:
            raise UsageError("CGO needs congestion control: its cells cannot carry stream SENDMEs")
        self.congestion_control = congestion_control
        self.cgo = cgo

    def encode(self) -> bytes:
        extensions: dict[int, bytes] = {}
        if self.congestion_control:
            extensions[ExtensionType.CC_REQUEST] = b""
        if self.cgo:
            extensions[ExtensionType.SUBPROTOCOL_REQUEST] = encode_subprotocol_request(
                [(SUBPROTOCOL_RELAY, RELAY_NEGOTIATES_CGO)]
            )
        return encode_extensions(extensions)

    def decode_response(self, message: bytes, *, cc_sendme_inc: int) -> int | None:
        """Returns the SENDME increment, in cells, that congestion control uses on this hop; None without it.

        `message` is `HopKeys.server_message`; `cc_sendme_inc` is the consensus parameter. Raises
        CircuitError if the relay grants what we did not ask, withholds what CGO needs, or wants an
        increment more than 1 from the consensus (proposal 324, "Client checks", narrowed as C tor does).
        """
        field = decode_extensions(message).get(ExtensionType.CC_RESPONSE)
        if field is None:
            if self.cgo:
                raise CircuitError("the relay refused congestion control, which CGO needs")
            return None
        if not self.congestion_control:
            raise CircuitError("the relay turned on congestion control, which we did not ask for")
        if len(field) != 1:
            raise CircuitError(f"the congestion control response has {len(field)} bytes, not 1")
        sendme_inc = field[0]
        if sendme_inc == 0 or abs(sendme_inc - cc_sendme_inc) > 1:
            raise CircuitError(
                f"the relay wants a SENDME every {sendme_inc} cells, not every {cc_sendme_inc}"
            )
        return sendme_inc


def encode_subprotocol_request(capabilities: Iterable[tuple[int, int]]) -> bytes:
    """(protocol, capability) pairs, sorted and each once, as the relay insists. Proposal 346."""
    return b"".join(bytes(pair) for pair in sorted(set(capabilities)))


def encode_extensions(extensions: dict[int, bytes]) -> bytes:
    """Type to contents, at most 255 bytes each; sorted by type, as the relay insists.

    Proposal 332, "Encoding for use with Tor circuit extension", after a byte with their number.
    """
    fields = [bytes([type_, len(field)]) + field for type_, field in sorted(extensions.items())]
    return bytes([len(fields)]) + b"".join(fields)


def decode_extensions(message: bytes) -> dict[int, bytes]:
    """Type to contents, unknown types too; of a type that comes twice, the first counts.

    Raises CircuitError: "All parties MUST reject messages that are not well-formed".
    """
    reader = Reader(message, "the extension list", CircuitError)
    extensions: dict[int, bytes] = {}
    for _ in range(reader.take_int(1)):
        type_ = reader.take_int(1)
        extensions.setdefault(type_, reader.take(reader.take_int(1)))
    reader.finish()
    return extensions


# --- Shared by the handshakes ----------------------------------------------------------------------------


def _load_private_key(private_key: bytes) -> tuple[X25519PrivateKey, bytes]:
    _check_len("private key", private_key, CURVE25519_KEY_LEN)
    key = X25519PrivateKey(private_key)
    return key, key.public_key


def _exchange(private_key: X25519PrivateKey, public_key: bytes, whose: str) -> bytes:
    """EXP(`public_key`, x). Raises CircuitError if `public_key` makes the result all zeros."""
    _check_len(whose, public_key, CURVE25519_KEY_LEN)
    try:
        return private_key.exchange(public_key)
    except ValueError as exc:
        raise CircuitError(f"the {whose} is degenerate: a handshake with it would be no secret") from exc


def _check_len(what: str, value: bytes, length: int) -> None:
    if len(value) != length:
        raise UsageError(f"{what} has {len(value)} bytes, not {length}")


def _check_reply_len(what: str, reply: bytes, length: int) -> None:
    if len(reply) != length:
        raise CircuitError(f"{what} has {len(reply)} bytes, not {length}")
