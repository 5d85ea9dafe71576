"""Directory authorities: their keys, their certificates, and how they sign. dir-spec, "Key certificates"."""

import hashlib
import time
from dataclasses import dataclass
from functools import cache

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from torkit.testing.encoding import armor, encode_time

HOUR = 3600  # seconds


@cache
def rsa_key(number: int, bits: int = 1024) -> RSAPrivateKey:
    """The process's key of this number: short, for speed, as no secret hangs on it."""
    return generate_private_key(public_exponent=65537, key_size=bits)


def rsa_der(key: RSAPrivateKey) -> bytes:
    """The public key as PKCS#1 DER, the form whose SHA-1 is its fingerprint."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)


def sign(key: RSAPrivateKey, digest: bytes) -> bytes:
    """A directory signature: PKCS#1 v1.5 without an algorithm identifier."""
    return key.sign(digest, PKCS1v15(), NoDigestInfo())


@dataclass(frozen=True)
class FakeAuthority:
    """An authority's two keys. `published` and `expires`, Unix time, are its certificate's."""

    nickname: str
    identity_key: RSAPrivateKey
    signing_key: RSAPrivateKey
    published: int
    expires: int

    @property
    def v3ident(self) -> bytes:
        """The SHA-1 of the identity key, 20 bytes: what clients know the authority by."""
        return hashlib.sha1(rsa_der(self.identity_key)).digest()

    @property
    def signing_key_digest(self) -> bytes:
        """The SHA-1 of the signing key, 20 bytes."""
        return hashlib.sha1(rsa_der(self.signing_key)).digest()

    def certificate(self) -> bytes:
        """The key certificate, both signatures good."""
        return self.seal_certificate(self.certificate_body())

    def certificate_body(self) -> bytes:
        """The key certificate without its last object, the signature over all that is before."""
        return (
            "dir-key-certificate-version 3\n"
            f"fingerprint {self.v3ident.hex().upper()}\n"
            f"dir-key-published {encode_time(self.published)}\n"
            f"dir-key-expires {encode_time(self.expires)}\n"
            f"dir-identity-key\n{armor('RSA PUBLIC KEY', rsa_der(self.identity_key))}"
            f"dir-signing-key\n{armor('RSA PUBLIC KEY', rsa_der(self.signing_key))}"
            f"dir-key-crosscert\n{armor('ID SIGNATURE', sign(self.signing_key, self.v3ident))}"
            "dir-key-certification\n"
        ).encode()

    def seal_certificate(self, body: bytes) -> bytes:
        """What `certificate_body` made, or what became of it, with a good signature."""
        signature = sign(self.identity_key, hashlib.sha1(body).digest())
        return body + armor("SIGNATURE", signature).encode()

    def signature(self, signed: bytes, algorithm: str = "sha256") -> str:
        """A directory-signature item over the signed part of a consensus."""
        name = "" if algorithm == "sha1" else f" {algorithm}"
        identity, key_digest = self.v3ident.hex().upper(), self.signing_key_digest.hex().upper()
        return f"directory-signature{name} {identity} {key_digest}\n" + armor(
            "SIGNATURE", sign(self.signing_key, hashlib.new(algorithm, signed).digest())
        )


def make_authorities(count: int = 3, *, now: float | None = None, first: int = 0) -> list[FakeAuthority]:
    """Authorities called auth0, auth1, ..., with certificates that hold at `now`, by default today.

    RSA keys take long to make: authority number n of a process always has the same. With another `first` they
    are others, such as a client has never heard of.
    """
    now = int(time.time() if now is None else now)
    return [
        FakeAuthority(
            f"auth{n}",
            rsa_key(2 * n),
            rsa_key(2 * n + 1),
            published=now - 24 * HOUR,
            expires=now + 240 * HOUR,
        )
        for n in range(first, first + count)
    ]
