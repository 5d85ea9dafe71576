"""Makes descriptors of onion services, right ones and wrong ones, with code of its own.

The keys are those of a service in vectors/hs.json, whose expanded secret key of one period is known; so a
test may
change any text of any layer and have it encrypted and signed as the service would. Signing by an expanded key
is plain arithmetic over libsodium's group; nothing of torkit.hs is used.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from nacl.bindings import (
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_scalarmult_ed25519_base_noclamp,
)

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "hs.json").read_text())
SALT = bytes(range(16))
SIGNING_SEED = b"\x05" * 32


def services(kind: str | None = None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of a network and a service, of `kind` or of every kind."""
    return [
        (case["network"], service)
        for case in VECTORS["cases"]
        for service in case["services"]
        if kind in (None, service["kind"])
    ]


def sign_expanded(expanded: bytes, public: bytes, message: bytes) -> bytes:
    """An Ed25519 signature by an expanded key: a, 32 bytes, and RH, 32 bytes. RFC 8032."""
    scalar, prefix = expanded[:32], expanded[32:]
    r = crypto_core_ed25519_scalar_reduce(hashlib.sha512(prefix + message).digest())
    point = crypto_scalarmult_ed25519_base_noclamp(r)
    k = crypto_core_ed25519_scalar_reduce(hashlib.sha512(point + public + message).digest())
    a = crypto_core_ed25519_scalar_reduce(scalar + bytes(32))
    return bytes(point + crypto_core_ed25519_scalar_add(r, crypto_core_ed25519_scalar_mul(k, a)))


class Service:
    """One service in one period. Each method takes what a test may want to be wrong."""

    def __init__(self, network: dict[str, Any], service: dict[str, Any]) -> None:
        self.now = float(network["valid_after"])
        self.blinded = bytes.fromhex(service["blinded_public_key"])
        self.subcredential = bytes.fromhex(service["subcredential"])
        self._expanded = bytes.fromhex(service["blinded_secret_key_expanded"])
        self._signing = Ed25519PrivateKey.from_private_bytes(SIGNING_SEED)
        self.signing_key = self._signing.public_key().public_bytes_raw()

    def signed_by_blinded(self, message: bytes) -> bytes:
        return sign_expanded(self._expanded, self.blinded, message)

    def cert(
        self,
        cert_type: int,
        certified: bytes,
        *,
        by_blinded: bool = False,
        signer: bytes | None = None,
        expires: float | None = None,
        key_type: int = 1,
        names_signer: bool = True,
    ) -> str:
        """A certificate object. cert-spec, "Ed25519 Certificates"."""
        signer = signer or (self.blinded if by_blinded else self.signing_key)
        hours = int((self.now if expires is None else expires) // 3600 + (54 if expires is None else 0))
        body = bytes([1, cert_type]) + hours.to_bytes(4, "big") + bytes([key_type]) + certified
        body += b"\x01\x00\x20\x04\x00" + signer if names_signer else b"\x00"
        body += self.signed_by_blinded(body) if by_blinded else self._signing.sign(body)
        return armour("ED25519 CERT", body)

    def point(self, enc_key: bytes, **changes: str) -> str:
        """One introduction point; `changes` replace whole items, "" leaves one out."""
        items = {
            "introduction_point": f"introduction-point {b64(LINK_SPECIFIERS)}\n",
            "onion_key": f"onion-key ntor {b64(b'o' * 32)}\n",
            "auth_key": f"auth-key\n{self.cert(9, b'a' * 32)}",
            "enc_key": f"enc-key ntor {b64(enc_key)}\n",
            "enc_key_cert": f"enc-key-cert\n{self.cert(11, edwards(enc_key))}",
        }
        return "".join((items | changes).values())

    def layer(self, plaintext: bytes, constant: bytes, revision: int, cookie: bytes = b"") -> bytes:
        secret = self.blinded + cookie + self.subcredential + revision.to_bytes(8, "big")
        keys = hashlib.shake_256(secret + SALT + constant).digest(80)
        encryptor = Cipher(algorithms.AES(keys[:32]), modes.CTR(keys[32:48])).encryptor()
        encrypted = encryptor.update(plaintext)
        tagged = (32).to_bytes(8, "big") + keys[48:] + (16).to_bytes(8, "big") + SALT + encrypted
        return SALT + encrypted + hashlib.sha3_256(tagged).digest()

    def first(self, second: bytes | str, revision: int = 7) -> str:
        """The first layer's text around the second's."""
        blob = self.layer(
            second.encode() if isinstance(second, str) else second, b"hsdir-encrypted-data", revision
        )
        return (
            f"desc-auth-type x25519\ndesc-auth-ephemeral-key {b64(b'e' * 32)}\n"
            f"auth-client {b64(b'c' * 8)} {b64(b'i' * 16)} {b64(b'k' * 16)}\n"
            f"encrypted\n{armour('MESSAGE', blob)}"
        )

    def outer(self, first: str | bytes, counter: int = 7, *, tail: str = "", **changes: str) -> bytes:
        """The whole descriptor around the first layer's text, signed after `changes` of its items."""
        plaintext = first.encode() if isinstance(first, str) else first
        blob = self.layer(plaintext.ljust(10_000, b"\0"), b"hsdir-superencrypted-data", counter)
        items = {
            "version": "hs-descriptor 3\n",
            "lifetime": "descriptor-lifetime 180\n",
            "cert": f"descriptor-signing-key-cert\n{self.cert(8, self.signing_key, by_blinded=True)}",
            "revision": f"revision-counter {counter}\n",
            "superencrypted": f"superencrypted\n{armour('MESSAGE', blob)}",
        }
        return self.signed("".join((items | changes).values()).encode()) + tail.encode()

    def signed(self, text: bytes) -> bytes:
        """The outer layer's text with its last item."""
        signature = self._signing.sign(b"Tor onion service descriptor sig v3" + text)
        return text + f"signature {b64(signature).rstrip('=')}\n".encode()

    def descriptor(self, second: bytes | str) -> bytes:
        return self.outer(self.first(second))


LINK_SPECIFIERS = bytes([3, 0, 6, 127, 1, 0, 1, 0x23, 0x29, 2, 20]) + b"r" * 20 + bytes([3, 32]) + b"d" * 32


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def armour(label: str, body: bytes) -> str:
    text = b64(body)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def edwards(montgomery: bytes) -> bytes:
    """The Ed25519 form of an X25519 key: y = (u - 1) / (u + 1). RFC 7748, section 4.1."""
    prime = 2**255 - 19
    u = int.from_bytes(montgomery, "little") % prime
    return ((u - 1) * pow(u + 1, prime - 2, prime) % prime).to_bytes(32, "little")
