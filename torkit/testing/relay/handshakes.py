"""The relay's half of the handshakes."""

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from torkit.testing.relay.cells import HandshakeRefusedError
from torkit.testing.relay.layers import Tor1Layer, aes_ctr

KH_LEN = 20  # bytes behind a layer's keys, which introduction points are shown to be known


def public_bytes(key: X25519PrivateKey | Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _exchange(secret: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # the point at infinity, or not 32 bytes
        raise HandshakeRefusedError("a degenerate curve25519 point") from error


def kdf_tor(secret: bytes, length: int) -> bytes:
    """tor-spec, "KDF-TOR"."""
    blocks = b"".join(hashlib.sha1(secret + bytes([i])).digest() for i in range(length // 20 + 1))
    return blocks[:length]


def kdf_rfc5869(key_seed: bytes, info: bytes, length: int) -> bytes:
    """tor-spec, "KDF-RFC5869"; `key_seed` has been extracted already."""
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(key_seed, block + info + bytes([counter]), "sha256")
        output += block
        counter += 1
    return output[:length]


def answer_handshake_fast(client_handshake: bytes) -> tuple[bytes, bytes]:
    """The body of CREATED_FAST and the key material. tor-spec, "CREATE_FAST/CREATED_FAST cells"."""
    y = os.urandom(20)
    keys = kdf_tor(client_handshake[:20] + y, 20 + Tor1Layer.KEY_MATERIAL_LEN)
    return y + keys[:20], keys[20:]


def answer_handshake_ntor(
    client_handshake: bytes, *, node_id: bytes, onion_key: X25519PrivateKey, ephemeral: X25519PrivateKey
) -> tuple[bytes, bytes]:
    """The reply and the key material. tor-spec, 'The "ntor" handshake'; `node_id` is the RSA identity."""
    if len(client_handshake) != 84:
        raise HandshakeRefusedError(f"an ntor handshake has 84 bytes, not {len(client_handshake)}")
    onion_public = public_bytes(onion_key)
    if client_handshake[:20] != node_id or client_handshake[20:52] != onion_public:
        raise HandshakeRefusedError("ntor for another relay or another onion key")
    client_public = client_handshake[52:84]
    server_public = public_bytes(ephemeral)

    protoid = b"ntor-curve25519-sha256-1"
    secret_input = _exchange(ephemeral, client_public) + _exchange(onion_key, client_public)
    secret_input += node_id + onion_public + client_public + server_public + protoid
    key_seed = hmac.digest(protoid + b":key_extract", secret_input, "sha256")
    verify = hmac.digest(protoid + b":verify", secret_input, "sha256")
    auth_input = verify + node_id + onion_public + server_public + client_public + protoid + b"Server"
    auth = hmac.digest(protoid + b":mac", auth_input, "sha256")
    keys = kdf_rfc5869(key_seed, protoid + b":key_expand", Tor1Layer.KEY_MATERIAL_LEN + KH_LEN)
    return server_public + auth, keys


def _encap(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


def answer_handshake_ntor_v3(
    client_handshake: bytes,
    *,
    node_id: bytes,
    onion_key: X25519PrivateKey,
    ephemeral: X25519PrivateKey,
    reply_to: Callable[[bytes], bytes],
    verification: bytes = b"circuit extend",
) -> tuple[bytes, Callable[[int], bytes]]:
    """The reply, and a function that gives the first n bytes of key material. Proposal 332.

    `node_id` is the Ed25519 identity; `reply_to` turns the client's message into the server's.
    """
    protoid = b"ntor3-curve25519-sha3_256-1"

    def sha3(tweak: bytes, data: bytes) -> bytes:
        return hashlib.sha3_256(_encap(protoid + tweak) + data).digest()

    def shake(tweak: bytes, data: bytes, length: int) -> bytes:
        return hashlib.shake_256(_encap(protoid + tweak) + data).digest(length)

    if len(client_handshake) < 128:
        raise HandshakeRefusedError(
            f"an ntor-v3 handshake has at least 128 bytes, not {len(client_handshake)}"
        )
    onion_public = public_bytes(onion_key)
    client_id, key_id, client_public = (client_handshake[i : i + 32] for i in (0, 32, 64))
    encrypted, mac = client_handshake[96:-32], client_handshake[-32:]
    if client_id != node_id or key_id != onion_public:
        raise HandshakeRefusedError("ntor-v3 for another relay or another onion key")

    xb = _exchange(onion_key, client_public)
    phase1 = xb + node_id + client_public + onion_public + protoid + _encap(verification)
    keys = shake(b":kdf_phase1", phase1, 64)
    expected = sha3(b":msg_mac", _encap(keys[32:]) + node_id + onion_public + client_public + encrypted)
    if not hmac.compare_digest(mac, expected):
        raise HandshakeRefusedError("ntor-v3 with a wrong MAC")
    server_message = reply_to(aes_ctr(keys[:32]).update(encrypted))

    server_public = public_bytes(ephemeral)
    secret_input = _exchange(ephemeral, client_public) + xb + node_id + onion_public
    secret_input += client_public + server_public + protoid + _encap(verification)
    key_seed, verify = sha3(b":key_seed", secret_input), sha3(b":verify", secret_input)
    encrypted = aes_ctr(shake(b":kdf_final", key_seed, 32)).update(server_message)
    auth_input = verify + node_id + onion_public + server_public + client_public + mac
    auth_input += _encap(encrypted) + protoid + b"Server"
    reply = server_public + sha3(b":auth_final", auth_input) + encrypted
    return reply, lambda length: shake(b":kdf_final", key_seed, 32 + length)[32:]


def encode_extensions(extensions: Iterable[tuple[int, bytes]]) -> bytes:
    """The message inside ntor-v3: a count, then type, length and body of each."""
    extensions = list(extensions)
    fields = (bytes([kind, len(body)]) + body for kind, body in extensions)
    return bytes([len(extensions)]) + b"".join(fields)


def decode_extensions(message: bytes) -> dict[int, bytes]:
    """Extensions by type; out of order, twice, or not filling the message is refused."""
    if not message:
        raise HandshakeRefusedError("an empty extension message")
    found: dict[int, bytes] = {}
    at = 1
    for _ in range(message[0]):
        if at + 2 > len(message) or at + 2 + message[at + 1] > len(message):
            raise HandshakeRefusedError("a truncated extension")
        kind, length = message[at], message[at + 1]
        if found and kind <= max(found):
            raise HandshakeRefusedError("extensions are not sorted and unique")
        found[kind] = message[at + 2 : at + 2 + length]
        at += 2 + length
    if at != len(message):
        raise HandshakeRefusedError("bytes after the last extension")
    return found
