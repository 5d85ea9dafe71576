"""hs-ntor, both halves, and the messages around it. rend-spec-v3, "The introduction protocol"."""

import hashlib
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from torkit.testing.relay.handshakes import encode_extensions
from torkit.testing.relay.layers import aes_ctr
from torkit.testing.relay.state import RelayState

PROTOID = b"tor-hs-ntor-curve25519-sha3-256-1"
KEYS_LEN = 128  # of the layer between client and service: Df, Db, Kf, Kb
COOKIE_LEN = 20
HEADER_LEN = 56  # of INTRODUCE1, before the client's key
PADDED_LEN = 246  # of INTRODUCE1 without the client's key and the MAC

LinkSpecifiers = tuple[tuple[int, bytes], ...]


def mac(key: bytes, message: bytes) -> bytes:
    """MAC(k, m). rend-spec-v3, "Cryptographic building blocks"."""
    return hashlib.sha3_256(len(key).to_bytes(8, "big") + key + message).digest()


def public_of(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def link_specifiers_of(relay: RelayState) -> LinkSpecifiers:
    """How to reach a scripted relay: its address and identities. tor-spec, "EXTEND and EXTENDED cells"."""
    host, port = relay.address
    address = bytes(map(int, host.split("."))) + port.to_bytes(2, "big")
    return ((0, address), (2, relay.rsa_identity), (3, relay.ed_identity))


def encode_link_specifiers(specifiers: LinkSpecifiers) -> bytes:
    """A count, then type, length and value of each."""
    encoded = (bytes([kind, len(value)]) + value for kind, value in specifiers)
    return bytes([len(specifiers)]) + b"".join(encoded)


def decode_link_specifiers(data: bytes) -> tuple[LinkSpecifiers, bytes]:
    """The specifiers, and what follows them. Raises ValueError."""
    specifiers, at = [], 1
    for _ in range(data[0] if data else 0):
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise ValueError("link specifiers are cut short")
        specifiers.append((data[at], data[at + 2 : at + 2 + data[at + 1]]))
        at += 2 + data[at + 1]
    return tuple(specifiers), data[at:]


def _introduce_keys(bx: bytes, auth_key: bytes, x: bytes, enc_key: bytes, subcredential: bytes) -> bytes:
    info = PROTOID + b":hs_key_extract" + PROTOID + b":hs_key_expand" + subcredential
    return hashlib.shake_256(bx + auth_key + x + enc_key + PROTOID + info).digest(64)


def _finish(exchanged: bytes, auth_key: bytes, enc_key: bytes, x: bytes, y: bytes) -> tuple[bytes, bytes]:
    """AUTH, and the keys of the layer. rend-spec-v3, "The hs-ntor handshake"."""
    secret = exchanged + auth_key + enc_key + x + y + PROTOID
    verify = mac(secret, PROTOID + b":hs_verify")
    auth = mac(verify + auth_key + enc_key + y + x + PROTOID + b"Server", PROTOID + b":hs_mac")
    seed = mac(secret, PROTOID + b":hs_key_extract")
    return auth, hashlib.shake_256(seed + PROTOID + b":hs_key_expand").digest(KEYS_LEN)


@dataclass(frozen=True)
class Opened:
    """What a service reads of an introduction, and its half of the handshake."""

    public_key: bytes  # X
    cookie: bytes
    extensions: bytes  # as they were encoded
    onion_key: bytes  # of the rendezvous point; so the next
    link_specifiers: LinkSpecifiers
    reply: bytes  # Y and AUTH, 64 bytes
    keys: bytes  # of the layer, KEYS_LEN bytes


def open_introduction(body: bytes, *, auth_key: bytes, enc: X25519PrivateKey, subcredential: bytes) -> Opened:
    """The service's half, of INTRODUCE1 or INTRODUCE2. Raises ValueError for one that is not for it."""
    if body[:HEADER_LEN] != introduce_header(auth_key):
        raise ValueError("not for this introduction point, or with extensions")
    enc_key = public_of(enc)
    x, encrypted, tag = body[HEADER_LEN : HEADER_LEN + 32], body[HEADER_LEN + 32 : -32], body[-32:]
    bx = enc.exchange(X25519PublicKey.from_public_bytes(x))
    keys = _introduce_keys(bx, auth_key, x, enc_key, subcredential)
    if not hmac.compare_digest(mac(keys[32:], body[:-32]), tag):
        raise ValueError("the MAC is wrong")
    text = aes_ctr(keys[:32]).update(encrypted)
    at = COOKIE_LEN + 1
    for _ in range(text[COOKIE_LEN]):
        at += 2 + text[at + 1]
    if text[at : at + 3] != b"\1\0\x20":
        raise ValueError("the rendezvous point's key is not for ntor")
    specifiers, _ = decode_link_specifiers(text[at + 35 :])
    y = X25519PrivateKey.generate()
    exchanged = y.exchange(X25519PublicKey.from_public_bytes(x)) + bx
    auth, layer_keys = _finish(exchanged, auth_key, enc_key, x, public_of(y))
    return Opened(
        x,
        cookie=text[:COOKIE_LEN],
        extensions=text[COOKIE_LEN:at],
        onion_key=text[at + 3 : at + 35],
        link_specifiers=specifiers,
        reply=public_of(y) + auth,
        keys=layer_keys,
    )


def introduce_header(auth_key: bytes) -> bytes:
    """What an introduction point reads of INTRODUCE1."""
    return bytes(20) + struct.pack(">BH", 2, len(auth_key)) + auth_key + b"\0"


class ClientHandshake:
    """The client's half, for one introduction. The keys have 32 bytes each."""

    def __init__(self, *, auth_key: bytes, enc_key: bytes, subcredential: bytes) -> None:
        self._x = X25519PrivateKey.generate()
        self._auth_key, self._enc_key, self._subcredential = auth_key, enc_key, subcredential
        self._bx = self._x.exchange(X25519PublicKey.from_public_bytes(enc_key))

    def introduce(
        self,
        cookie: bytes,
        rendezvous: RelayState,
        extensions: Iterable[tuple[int, bytes]] = (),
    ) -> bytes:
        """The body of INTRODUCE1: that a client waits at `rendezvous` by this cookie of 20 bytes."""
        header = introduce_header(self._auth_key)
        text = cookie + encode_extensions(extensions) + b"\1\0\x20" + rendezvous.ntor_onion_key
        text += encode_link_specifiers(link_specifiers_of(rendezvous))
        x = public_of(self._x)
        keys = _introduce_keys(self._bx, self._auth_key, x, self._enc_key, self._subcredential)
        body = header + x + aes_ctr(keys[:32]).update(text.ljust(PADDED_LEN - len(header), b"\0"))
        return body + mac(keys[32:], body)

    def finish(self, reply: bytes) -> bytes:
        """The keys of the layer, KEYS_LEN bytes, from Y and AUTH. Raises ValueError."""
        y, auth = reply[:32], reply[32:64]
        exchanged = self._x.exchange(X25519PublicKey.from_public_bytes(y)) + self._bx
        expected, keys = _finish(exchanged, self._auth_key, self._enc_key, public_of(self._x), y)
        if not hmac.compare_digest(auth, expected):
            raise ValueError("AUTH is wrong")
        return keys
