"""The oracle: onion layers as the specifications word them, slow and obvious, sharing no code with torkit.

Tor1Layer and CgoLayer hold the keys shared by a client and one relay, and offer the same six moves. Each
side makes its own object from the same keys and uses its own three:

    client_originate    relay_forward       a cell of the client's for this relay, and its way there
    client_forward      relay_backward      one layer more, around a cell of another hop
    client_backward     relay_originate     a cell of this relay's, and its arrival

A move takes the cell's command and its 509-byte body and returns the new body; where a cell begins or
ends, also the tag that a SENDME for it carries, or None for a cell that was not recognized.

The four functions at the end walk a cell through a list of layers, one a hop, of any mixture.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB

CELL_BODY_LEN = 509  # tor-spec, "Cell Packet format"


class Layer(Protocol):
    def client_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]: ...
    def client_forward(self, command: int, body: bytes) -> bytes: ...
    def client_backward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]: ...
    def relay_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]: ...
    def relay_forward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]: ...
    def relay_backward(self, command: int, body: bytes) -> bytes: ...


# --- tor1: AES-128-CTR and a running SHA-1. tor-spec, "Routing relay cells", "Relay cells" --------------
# --- with onion services: AES-256-CTR and a running SHA3-256. rend-spec-v3, "The rendezvous protocol" ----


class Tor1Direction:
    """D and K of one direction of one hop."""

    def __init__(self, digest: str, seed: bytes, key: bytes) -> None:
        self.running = hashlib.new(digest, seed)
        self.key_stream = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def encrypt(self, body: bytes) -> bytes:
        """XOR the next key stream: the same to encrypt and to decrypt."""
        return self.key_stream.update(body)

    def mark(self, body: bytes) -> tuple[bytes, bytes]:
        """Fill in 'recognized' and 'digest'. Returns the body and 20 bytes of the running digest."""
        body = body[:1] + bytes(2) + body[3:5] + bytes(4) + body[9:]
        self.running.update(body)
        tag = self.running.digest()[:20]
        return body[:5] + tag[:4] + body[9:], tag

    def recognize(self, body: bytes) -> bytes | None:
        """20 bytes of the running digest; or None, and then the cell leaves no trace in it."""
        if body[1:3] != bytes(2):
            return None
        would_be = self.running.copy()
        would_be.update(body[:5] + bytes(4) + body[9:])
        if would_be.digest()[:4] != body[5:9]:
            return None
        self.running = would_be
        return would_be.digest()[:20]


class Tor1Layer:
    """`keys` is Df | Db | Kf | Kb: 20, 20, 16 and 16 bytes, or four times 32 with an onion service."""

    def __init__(self, keys: bytes) -> None:
        digest, digest_len, key_len = {72: ("sha1", 20, 16), 128: ("sha3_256", 32, 32)}[len(keys)]
        df, db = keys[:digest_len], keys[digest_len : 2 * digest_len]
        kf, kb = keys[2 * digest_len : 2 * digest_len + key_len], keys[-key_len:]
        self.forward = Tor1Direction(digest, df, kf)
        self.backward = Tor1Direction(digest, db, kb)

    def client_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]:
        body, tag = self.forward.mark(body)
        return self.forward.encrypt(body), tag

    def client_forward(self, command: int, body: bytes) -> bytes:
        return self.forward.encrypt(body)

    def client_backward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        body = self.backward.encrypt(body)
        return body, self.backward.recognize(body)

    def relay_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]:
        body, tag = self.backward.mark(body)
        return self.backward.encrypt(body), tag

    def relay_forward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        body = self.forward.encrypt(body)
        return body, self.forward.recognize(body)

    def relay_backward(self, command: int, body: bytes) -> bytes:
        return self.backward.encrypt(body)


# --- Counter Galois Onion. Proposal 359; POLYVAL is RFC 8452, section 3 ---------------------------------

TAG_LEN = 16
ONES = int.from_bytes(b"\1" * 255)  # the lowest bit of each byte of a spread product
DIGITS = int.from_bytes(b"0" * 255)
STEP = 121  # the polynomial is x^128 + x^127 + x^126 + x^121 + 1


def xor(a: bytes, b: bytes) -> bytes:
    assert len(a) == len(b)
    return (int.from_bytes(a) ^ int.from_bytes(b)).to_bytes(len(a))


def spread(a: int) -> int:
    """A byte for each bit: in a product of two such, no sum of bits runs into the next byte."""
    return int.from_bytes(f"{a:b}".encode()) & ONES


def divided(a: int, bits: int) -> int:
    """a * x^-bits: what the polynomial has to be added for to clear the low bits, at most STEP of them."""
    low = a & (1 << bits) - 1
    return (a ^ low ^ low << STEP ^ low << 126 ^ low << 127 ^ low << 128) >> bits


def polyval(key: bytes, data: bytes) -> bytes:
    """POLYVAL of `data`, filled up with zeros to whole blocks."""
    h = spread(int.from_bytes(key, "little"))
    state = 0
    for at in range(0, len(data), 16):
        state ^= int.from_bytes(data[at : at + 16], "little")
        product = int((spread(state) * h & ONES | DIGITS).to_bytes(255), 2)
        state = divided(divided(product, STEP), 128 - STEP)
    return state.to_bytes(16, "little")


def aes_encrypt(key: bytes, blocks: bytes) -> bytes:
    return Cipher(AES(key), ECB()).encryptor().update(blocks)


def aes_decrypt(key: bytes, blocks: bytes) -> bytes:
    return Cipher(AES(key), ECB()).decryptor().update(blocks)


def et_encrypt(key: bytes, tweak: bytes, block: bytes) -> bytes:
    """The tweakable cipher; `key` is 32 bytes, for AES and for POLYVAL; `tweak` is T' | command | X_R."""
    mask = polyval(key[16:], tweak)
    return xor(mask, aes_encrypt(key[:16], xor(mask, block)))


def et_decrypt(key: bytes, tweak: bytes, block: bytes) -> bytes:
    mask = polyval(key[16:], tweak)
    return xor(mask, aes_decrypt(key[:16], xor(mask, block)))


def prf(key: bytes, x: bytes, t: int, length: int) -> bytes:
    """`length` bytes of the pseudorandom function; `key` is 32 bytes, for AES and for POLYVAL."""
    hashed = polyval(key[16:], x)
    start = int.from_bytes(hashed[:15] + bytes([hashed[15] & 0xC0])) + 31 * t
    blocks = -(-length // 16)
    counters = b"".join((start + i).to_bytes(16) for i in range(blocks))
    return aes_encrypt(key[:16], counters)[:length]


def uiv_encrypt(keys: bytes, tweak: bytes, body: bytes) -> bytes:
    """UIV+; `keys` is K_ET | K_PRF, 64 bytes; `tweak` is T' | command."""
    left, right = body[:TAG_LEN], body[TAG_LEN:]
    left = et_encrypt(keys[:32], tweak + right, left)
    return left + xor(right, prf(keys[32:], left, 0, len(right)))


def uiv_decrypt(keys: bytes, tweak: bytes, body: bytes) -> bytes:
    left, right = body[:TAG_LEN], body[TAG_LEN:]
    right = xor(right, prf(keys[32:], left, 0, len(right)))
    return et_decrypt(keys[:32], tweak + right, left) + right


def uiv_update(keys: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    """The keys and the nonce after these."""
    output = prf(keys[32:], nonce, 1, 80)
    return output[:64], output[64:]


class CgoDirection:
    """K_ET | K_PRF, N and T' of one direction of one hop; `seed` is 80 bytes."""

    def __init__(self, seed: bytes, tprime: bytes = bytes(TAG_LEN)) -> None:
        assert len(seed) == 80
        self.keys, self.nonce, self.tprime = seed[:64], seed[64:], tprime

    def encrypt(self, command: int, body: bytes) -> bytes:
        """A relay's transformation; T' becomes the tag after it."""
        body = uiv_encrypt(self.keys, self.tprime + bytes([command]), body)
        self.tprime = body[:TAG_LEN]
        return body

    def decrypt(self, command: int, body: bytes) -> bytes:
        """A client's transformation; T' becomes the tag before it."""
        tag = body[:TAG_LEN]
        body = uiv_decrypt(self.keys, self.tprime + bytes([command]), body)
        self.tprime = tag
        return body

    def mark(self, body: bytes) -> bytes:
        return self.nonce + body[TAG_LEN:]

    def is_marked(self, body: bytes) -> bool:
        return body[:TAG_LEN] == self.nonce

    def update(self, nonce: bytes) -> None:
        self.keys, self.nonce = uiv_update(self.keys, nonce)


class CgoLayer:
    """`keys` is the seeds of the forward and of the backward direction, 160 bytes."""

    def __init__(self, keys: bytes) -> None:
        self.forward = CgoDirection(keys[:80])
        self.backward = CgoDirection(keys[80:])

    def client_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]:
        body = self.forward.decrypt(command, self.forward.mark(body))
        self.forward.update(self.forward.nonce)
        return body, body[:TAG_LEN]

    def client_forward(self, command: int, body: bytes) -> bytes:
        return self.forward.decrypt(command, body)

    def client_backward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        tag = body[:TAG_LEN]
        body = self.backward.decrypt(command, body)
        if not self.backward.is_marked(body):
            return body, None
        self.backward.update(tag)
        return body, tag

    def relay_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]:
        body = self.backward.encrypt(command, self.backward.mark(body))
        self.backward.update(body[:TAG_LEN])
        return body, body[:TAG_LEN]

    def relay_forward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        tag = body[:TAG_LEN]
        body = self.forward.encrypt(command, body)
        if not self.forward.is_marked(body):
            return body, None
        self.forward.update(self.forward.nonce)
        return body, tag

    def relay_backward(self, command: int, body: bytes) -> bytes:
        return self.backward.encrypt(command, body)


# --- A cell's way along a circuit; `hop` is an index into the layers, nearest first ---------------------


def client_seal(layers: Sequence[Layer], hop: int, command: int, body: bytes) -> tuple[bytes, bytes]:
    """The body as it leaves the client, and the tag that the hop's SENDME for it will carry."""
    body, tag = layers[hop].client_originate(command, body)
    for layer in reversed(layers[:hop]):
        body = layer.client_forward(command, body)
    return body, tag


def relays_open(layers: Sequence[Layer], command: int, body: bytes) -> tuple[int, bytes, bytes] | None:
    """The hop that recognized the cell, with the plain body and the tag; None if none did."""
    for hop, layer in enumerate(layers):
        body, tag = layer.relay_forward(command, body)
        if tag is not None:
            return hop, body, tag
    return None


def relays_seal(layers: Sequence[Layer], hop: int, command: int, body: bytes) -> tuple[bytes, bytes]:
    """The body as it reaches the client, and the tag that the client's SENDME for it will carry."""
    body, tag = layers[hop].relay_originate(command, body)
    for layer in reversed(layers[:hop]):
        body = layer.relay_backward(command, body)
    return body, tag


def client_open(layers: Sequence[Layer], command: int, body: bytes) -> tuple[int, bytes, bytes] | None:
    """The hop the cell is from, with the plain body and the tag; None if it is from none."""
    for hop, layer in enumerate(layers):
        body, tag = layer.client_backward(command, body)
        if tag is not None:
            return hop, body, tag
    return None
