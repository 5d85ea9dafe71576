"""Key certificates: every signature and digest must hold."""

import contextlib
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace

import network_docs as nd
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit._fast.keys import RsaPublicKey
from torkit.directory.authorities import CLOCK_SKEW, check_signature, parse_certificates
from torkit.errors import DocumentError
from torkit.testing.directory.authority import rsa_der, rsa_key, sign
from torkit.testing.encoding import armor

AUTHORITY = nd.authorities(1)[0]
GOOD = AUTHORITY.certificate()
EC_KEY = (
    generate_private_key(SECP256R1())
    .public_key()
    .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)


def certified(text: bytes) -> bytes:
    """The certificate with what has been changed in it, certified again: the authority's own mistake."""
    end = b"dir-key-certification\n"
    body = text[: text.index(end) + len(end)]
    return body + armor("SIGNATURE", sign(AUTHORITY.identity_key, hashlib.sha1(body).digest())).encode()


def rsa_der_of(bits: int) -> bytes:
    """An RSA public key of so many bits, a multiple of eight, whose private half nobody knows."""
    modulus = b"\2" + der_length(bits // 8 + 1) + b"\0" + b"\xff" * (bits // 8)
    return b"\x30" + der_length(len(modulus) + 5) + modulus + b"\2\3\1\0\1"


def der_length(length: int) -> bytes:
    return b"\x82" + length.to_bytes(2, "big") if length > 255 else b"\x81" + bytes([length])


def test_certificate_is_read_and_its_signatures_hold() -> None:
    (certificate,) = parse_certificates(GOOD)
    assert certificate.identity == AUTHORITY.v3ident
    assert certificate.signing_key_digest == AUTHORITY.signing_key_digest
    assert (certificate.published, certificate.expires) == (AUTHORITY.published, AUTHORITY.expires)
    assert certificate.text == GOOD


def test_certificates_stand_one_after_another() -> None:
    three = nd.authorities(3)
    parsed = parse_certificates(b"".join(one.certificate() for one in three))
    assert [one.identity for one in parsed] == [one.v3ident for one in three]


def test_certificate_is_current_between_its_times() -> None:
    (certificate,) = parse_certificates(GOOD)
    assert certificate.is_current(AUTHORITY.expires)
    assert not certificate.is_current(AUTHORITY.expires + 1)
    assert certificate.is_current(AUTHORITY.published - CLOCK_SKEW)
    assert not certificate.is_current(AUTHORITY.published - CLOCK_SKEW - 1)


def test_every_truncation_is_refused() -> None:
    for end in range(len(GOOD)):
        with pytest.raises(DocumentError):
            parse_certificates(GOOD[:end])


def test_flipped_bits_are_refused() -> None:
    for at in range(0, len(GOOD), 7):
        broken = bytearray(GOOD)
        broken[at] ^= 1 << (at % 7)
        with pytest.raises(DocumentError):
            parse_certificates(bytes(broken))


def test_certificate_of_another_identity_is_refused() -> None:
    forged = replace(AUTHORITY, identity_key=rsa_key(20))
    assert parse_certificates(forged.certificate())[0].identity != AUTHORITY.v3ident
    claimed = forged.certificate().replace(
        forged.v3ident.hex().upper().encode(), AUTHORITY.v3ident.hex().upper().encode()
    )
    with pytest.raises(DocumentError, match="not the SHA-1 of the identity key"):
        parse_certificates(claimed)


def test_certification_by_another_key_is_refused() -> None:
    body = GOOD[: GOOD.index(b"dir-key-certification\n") + len(b"dir-key-certification\n")]
    signature = sign(rsa_key(20), hashlib.sha1(body).digest())
    with pytest.raises(DocumentError, match="not a signature by the identity key"):
        parse_certificates(body + armor("SIGNATURE", signature).encode())


def test_crosscert_by_another_key_is_refused_though_certified() -> None:
    crosscert = re.compile(rb"dir-key-crosscert\n.*?END ID SIGNATURE-----\n", re.DOTALL)
    wrong = armor("ID SIGNATURE", sign(rsa_key(20), AUTHORITY.v3ident)).encode()
    with pytest.raises(DocumentError, match="dir-key-crosscert: not a signature by the signing key"):
        parse_certificates(certified(crosscert.sub(b"dir-key-crosscert\n" + wrong, GOOD)))


def test_another_version_is_refused_though_certified() -> None:
    with pytest.raises(DocumentError, match="version 3 expected"):
        parse_certificates(certified(GOOD.replace(b"version 3", b"version 4")))


def test_more_certificates_than_anybody_has_are_not_checked() -> None:
    start = b"dir-key-certificate-version 3\n"
    with pytest.raises(DocumentError, match="129 certificates; at most 128 are read"):
        parse_certificates(start * 129)
    with pytest.raises(DocumentError, match="lacks"):
        parse_certificates(start * 128)


def test_signature_must_be_the_digest_exactly() -> None:
    key, digest = AUTHORITY.signing_key, hashlib.sha1(b"x").digest()
    public_key = RsaPublicKey(rsa_der(key))
    assert check_signature(public_key, sign(key, digest), digest)
    assert not check_signature(public_key, sign(key, digest + b"x"), digest)
    assert not check_signature(public_key, sign(key, digest[:-1]), digest)
    assert not check_signature(public_key, b"", digest)


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        (1016, "a key of 1016 bits; 1024 to 8192 expected"),
        (1024, "not the SHA-1"),
        (8192, "not the SHA-1"),
        (8200, "a key of 8200 bits; 1024 to 8192 expected"),
    ],
)
def test_keys_are_no_smaller_than_is_safe_and_no_larger_than_is_quick(bits: int, reason: str) -> None:
    key = re.compile(rb"dir-identity-key\n.*?END RSA PUBLIC KEY-----\n", re.DOTALL)
    text = key.sub(b"dir-identity-key\n" + armor("RSA PUBLIC KEY", rsa_der_of(bits)).encode(), GOOD)
    with pytest.raises(DocumentError, match=reason):
        parse_certificates(text)


@pytest.mark.parametrize(
    "der", [b"", b"\x30\x00", rsa_der(rsa_key(0)) + b"\0", rsa_der(rsa_key(0))[:-1], EC_KEY]
)
def test_keys_that_are_none_are_refused(der: bytes) -> None:
    key = re.compile(rb"dir-signing-key\n.*?END RSA PUBLIC KEY-----\n", re.DOTALL)
    text = key.sub(b"dir-signing-key\n" + armor("RSA PUBLIC KEY", der).encode(), GOOD)
    with pytest.raises(DocumentError):
        parse_certificates(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"version 3", b"version 4"),
        lambda text: text.replace(b"fingerprint", b"fingerprints"),
        lambda text: b"\n" + text,
        lambda text: text + b"junk\n",
        lambda text: text.replace(b"dir-identity-key\n", b"dir-identity-key extra\n"),
        lambda text: text.replace(b"dir-key-expires 2", b"dir-key-expires 3"),
        lambda text: text.replace(b"\n", b"\0\n", 1),
        lambda text: text.replace(b"\n", b" " + b"x" * 10_000_000 + b"\n", 1),
    ],
)
def test_malformed_certificates_are_refused(change: Callable[[bytes], bytes]) -> None:
    assert change(GOOD) != GOOD
    with pytest.raises(DocumentError):
        parse_certificates(change(GOOD))


@settings(max_examples=50)
@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_random_bytes_raise_only_document_errors(junk: bytes, at: int) -> None:
    for text in (junk, GOOD[:at] + junk + GOOD[at:]):
        with contextlib.suppress(DocumentError):
            parse_certificates(text)
