"""Authority key certificates: which signing key speaks for which configured authority, and until when.

Every RSA signature of a document goes through `check_signature`.
dir-spec, "Creating key certificates".
"""

import hashlib
import hmac
import re
from typing import NamedTuple

from torkit._fast.keys import RsaPublicKey
from torkit.directory.netdoc import (
    Count,
    Item,
    Place,
    Rule,
    check_text,
    decode_fingerprint,
    decode_time,
    line_at,
    scan,
)
from torkit.errors import DocumentError

# Specification constants.

CERTIFICATE_VERSION = "3"
MIN_KEY_BITS = 1024

# Implementation limits.

MAX_KEY_BITS = 8192  # bits; twice what any authority uses, so that no key makes checking slow
MAX_CERTIFICATES_LEN = 1 << 18  # bytes; nine certificates of today take 21,000
MAX_CERTIFICATES = 128  # in one answer or file; two signatures are checked of each, 0.1 ms
CLOCK_SKEW = 24 * 3600  # seconds a certificate may be published ahead of our clock

RULES = {
    "dir-key-certificate-version": Rule(Count.ONCE, args=1, place=Place.START),
    "dir-address": Rule(Count.AT_MOST_ONCE, args=1),
    "fingerprint": Rule(Count.ONCE, args=1),
    "dir-identity-key": Rule(Count.ONCE, no_extra=True, objects=("RSA PUBLIC KEY",)),
    "dir-key-published": Rule(Count.ONCE, args=2),
    "dir-key-expires": Rule(Count.ONCE, args=2),
    "dir-signing-key": Rule(Count.ONCE, no_extra=True, objects=("RSA PUBLIC KEY",)),
    "dir-key-crosscert": Rule(Count.ONCE, no_extra=True, objects=("ID SIGNATURE", "SIGNATURE")),
    "dir-key-certification": Rule(Count.ONCE, no_extra=True, objects=("SIGNATURE",), place=Place.END),
}

_START = re.compile(rb"^dir-key-certificate-version ", re.MULTILINE)


class AuthorityCertificate(NamedTuple):
    """A checked certificate. Whether its identity is trusted is the network file's to say, not its own.

    `identity` and `signing_key_digest` are 20 bytes, SHA-1 of the keys; times are seconds since the
    epoch; `text` is the exact document.
    """

    identity: bytes
    signing_key_digest: bytes
    published: int
    expires: int
    signing_key: RsaPublicKey
    text: bytes

    def is_current(self, now: float) -> bool:
        """Returns whether it is valid at `now`, CLOCK_SKEW allowed for."""
        return self.published - CLOCK_SKEW <= now <= self.expires


def parse_certificates(text: bytes) -> tuple[AuthorityCertificate, ...]:
    """Read and check the key certificates that stand one after another in `text`.

    Checked: fingerprint against identity key, both signatures. Not checked here: expiry, and whether
    the authority is configured. One that does not hold voids all: an honest cache serves none such.
    Raises DocumentError.
    """
    check_text(text, MAX_CERTIFICATES_LEN, "certificates")
    starts = [match.start() for match in _START.finditer(text)]
    if not starts or starts[0] != 0:
        raise DocumentError("certificates must start with dir-key-certificate-version", line=1)
    if len(starts) > MAX_CERTIFICATES:
        raise DocumentError(f"{len(starts)} certificates; at most {MAX_CERTIFICATES} are read")
    return tuple(
        _parse_certificate(text[start:end], line_at(text, start))
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
    )


def _parse_certificate(text: bytes, first_line: int) -> AuthorityCertificate:
    items = scan(text, RULES, what="certificate", first_line=first_line)
    version = items.one("dir-key-certificate-version")
    if version.args[0] != CERTIFICATE_VERSION:
        raise version.fail(f"version {CERTIFICATE_VERSION} expected")
    identity_key, identity = decode_key(items.one("dir-identity-key"))
    signing_key, signing_key_digest = decode_key(items.one("dir-signing-key"))
    fingerprint = items.one("fingerprint")
    if fingerprint.decode(decode_fingerprint, fingerprint.args[0]) != identity:
        raise fingerprint.fail("not the SHA-1 of the identity key")

    published, expires = items.one("dir-key-published"), items.one("dir-key-expires")
    certification = items.one("dir-key-certification")
    signed = text[: certification.end]
    if not check_signature(identity_key, certification.object, hashlib.sha1(signed).digest()):
        raise certification.fail("not a signature by the identity key")
    crosscert = items.one("dir-key-crosscert")
    if not check_signature(signing_key, crosscert.object, identity):
        raise crosscert.fail("not a signature by the signing key")
    return AuthorityCertificate(
        identity=identity,
        signing_key_digest=signing_key_digest,
        published=published.decode(decode_time, *published.args[:2]),
        expires=expires.decode(decode_time, *expires.args[:2]),
        signing_key=signing_key,
        text=text,
    )


def check_signature(key: RsaPublicKey, signature: bytes, digest: bytes) -> bool:
    """Returns whether `signature` is `digest` alone, PKCS#1 v1.5 padded: no algorithm identifier.

    dir-spec, "Signing documents".
    """
    signed = key.recover(signature)
    return signed is not None and hmac.compare_digest(signed, digest)


def decode_key(item: Item) -> tuple[RsaPublicKey, bytes]:
    """Returns the RSA key that is this item's object, and its SHA-1, 20 bytes. Raises DocumentError."""
    try:
        key = RsaPublicKey(item.object)
    except ValueError as error:
        raise item.fail(f"not a usable RSA key: {error}") from error
    if not MIN_KEY_BITS <= key.bits <= MAX_KEY_BITS:
        raise item.fail(
            f"not a usable RSA key: a key of {key.bits} bits; {MIN_KEY_BITS} to {MAX_KEY_BITS} expected"
        )
    return key, hashlib.sha1(key.der).digest()
