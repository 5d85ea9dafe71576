"""Keys and signatures against published vectors and against `cryptography`, whose OpenSSL is its own."""

import ctypes
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey as OtherX25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit._fast.keys import RsaCertificate, RsaPublicKey, X25519PrivateKey, aes_256_ctr, ed25519_verify
from torkit.errors import UsageError

keys = st.binary(min_size=32, max_size=32)


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_error_queue() -> Iterator[None]:
    """libssl would take a failure that is left there for its own."""
    yield
    loaded = re.search(r"\S*/libcrypto\.so\S*$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    assert loaded is not None
    assert ctypes.CDLL(loaded[0]).ERR_peek_error() == 0


def flips(data: bytes) -> Iterator[bytes]:
    """`data` with each of its bits flipped in turn."""
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


# --- DER, by hand: to write it wrong as well ---------------------------------------------------------------


def length_octets(length: int) -> bytes:
    if length < 128:
        return bytes([length])
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return bytes([tag]) + length_octets(len(content)) + content


def integer(number: int) -> bytes:
    return der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def sequence(*contents: bytes) -> bytes:
    return der(0x30, *contents)


def bit_string(content: bytes, unused_bits: int = 0) -> bytes:
    return der(0x03, bytes([unused_bits]), content)


def oid(dotted: str) -> bytes:
    first, second, *others = map(int, dotted.split("."))
    content = bytes([40 * first + second])
    for number in others:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        content += bytes(reversed(groups))
    return der(0x06, content)


NULL = b"\x05\x00"


# --- X25519 ------------------------------------------------------------------------------------------------

# RFC 7748, sections 5.2 and 6.1: private key, public key of the other, what they share.
X25519_VECTORS = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
    (
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
    ),
]

P = 2**255 - 19
# The points of small order on the curve and its twist, also spelt as numbers from p on.
SMALL_ORDER = [
    *(number.to_bytes(32, "little") for number in (0, 1, P - 1, P, P + 1)),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


@pytest.mark.parametrize(("private_key", "public_key", "shared"), X25519_VECTORS)
def test_x25519_vectors(private_key: str, public_key: str, shared: str) -> None:
    ours = X25519PrivateKey(bytes.fromhex(private_key))
    assert ours.exchange(bytes.fromhex(public_key)).hex() == shared


@settings(deadline=None)
@given(keys, keys)
def test_x25519_agrees_with_another_library(ours: bytes, theirs: bytes) -> None:
    our_key, their_key = X25519PrivateKey(ours), OtherX25519PrivateKey.from_private_bytes(theirs)
    their_public = their_key.public_key().public_bytes_raw()
    assert our_key.exchange(their_public) == their_key.exchange(
        X25519PublicKey.from_public_bytes(our_key.public_key)
    )


@pytest.mark.parametrize("high_bit", [0, 0x80])
@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_x25519_refuses_what_would_make_the_secret_all_zeros(point: bytes, high_bit: int) -> None:
    key = X25519PrivateKey(hashlib.sha256(b"any").digest())
    with pytest.raises(ValueError, match="none of small order"):
        key.exchange(point[:31] + bytes([point[31] | high_bit]))


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_x25519_private_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"has 32 bytes, not {length}"):
        X25519PrivateKey(bytes(length))


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_x25519_public_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="of 32 bytes"):
        X25519PrivateKey(bytes(32)).exchange(b"\x09".ljust(length, b"\0")[:length])


# --- Ed25519 -----------------------------------------------------------------------------------------------

# RFC 8032, section 7.1, tests 1 to 3: public key, message, signature.
ED25519_VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493

ED25519_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ED25519_PUBLIC = ED25519_KEY.public_key().public_bytes_raw()
MESSAGE = b"a message"
ED25519_SIGNATURE = ED25519_KEY.sign(MESSAGE)


def ed25519_verify_elsewhere(public_key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@pytest.mark.parametrize(("public_key", "message", "signature"), ED25519_VECTORS)
def test_ed25519_vectors(public_key: str, message: str, signature: str) -> None:
    assert ed25519_verify(*map(bytes.fromhex, (public_key, signature, message)))


@settings(deadline=None)
@given(keys, st.binary(max_size=300))
def test_ed25519_signatures_of_another_library_hold(private_key: bytes, message: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(private_key)
    public_key, signature = key.public_key().public_bytes_raw(), key.sign(message)
    assert ed25519_verify(public_key, signature, message)
    assert not ed25519_verify(public_key, signature, message + b"\0")


def test_ed25519_with_any_flipped_bit_does_not_hold() -> None:
    assert ed25519_verify(ED25519_PUBLIC, ED25519_SIGNATURE, MESSAGE)
    for signature in flips(ED25519_SIGNATURE):
        assert not ed25519_verify(ED25519_PUBLIC, signature, MESSAGE)
    for public_key in flips(ED25519_PUBLIC):
        assert not ed25519_verify(public_key, ED25519_SIGNATURE, MESSAGE)
    for message in flips(MESSAGE):
        assert not ed25519_verify(ED25519_PUBLIC, ED25519_SIGNATURE, message)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 63, 65, 128])
def test_ed25519_of_another_length_does_not_hold(length: int) -> None:
    assert not ed25519_verify(ED25519_PUBLIC.ljust(length, b"\0")[:length], ED25519_SIGNATURE, MESSAGE)
    assert not ed25519_verify(ED25519_PUBLIC, ED25519_SIGNATURE.ljust(length, b"\0")[:length], MESSAGE)


def test_ed25519_signature_with_the_group_order_added_does_not_hold() -> None:
    s = int.from_bytes(ED25519_SIGNATURE[32:], "little") + ED25519_ORDER
    malleated = ED25519_SIGNATURE[:32] + s.to_bytes(32, "little")
    assert not ed25519_verify(ED25519_PUBLIC, malleated, MESSAGE)


# y of small order, y that is no point, y not below p.
STRANGE_POINTS = [*SMALL_ORDER, *(number.to_bytes(32, "little") for number in (2, 7, P + 3, 2**255 - 1))]


@pytest.mark.parametrize(
    "signature", [ED25519_SIGNATURE, bytes(64), b"\1" + bytes(63), ED25519_SIGNATURE[:32] * 2]
)
@pytest.mark.parametrize("public_key", STRANGE_POINTS, ids=bytes.hex)
def test_ed25519_strange_keys_are_judged_as_by_another_library(public_key: bytes, signature: bytes) -> None:
    for sign in (0, 0x80):
        key = public_key[:31] + bytes([public_key[31] | sign])
        assert ed25519_verify(key, signature, MESSAGE) == ed25519_verify_elsewhere(key, signature, MESSAGE)


# --- RSA ---------------------------------------------------------------------------------------------------


@cache
def rsa_key(name: str, bits: int = 1024) -> rsa.RSAPrivateKey:
    """One key per name: making them is slow."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def rsa_der(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)


RSA_KEY = rsa_key("one")
RSA_DER = rsa_der(RSA_KEY)
N = RSA_KEY.public_key().public_numbers().n
SIGNED = b"the digest, bare"
RSA_SIGNATURE = RSA_KEY.sign(SIGNED, PKCS1v15(), NoDigestInfo())


def raw_signature(padded: bytes) -> bytes:
    """Whatever `padded` is, 128 bytes: RSA alone."""
    return pow(int.from_bytes(padded, "big"), RSA_KEY.private_numbers().d, N).to_bytes(128, "big")


@pytest.mark.parametrize("bits", [1024, 1032, 2048, 4096])
def test_rsa_key_is_read_and_what_it_signed_recovered(bits: int) -> None:
    theirs = rsa_key("any", bits)
    ours = RsaPublicKey(rsa_der(theirs))
    assert ours.bits == bits
    assert ours.der == rsa_der(theirs)
    for length in (1, 20, 32, bits // 8 - 11):
        assert ours.recover(theirs.sign(bytes(length), PKCS1v15(), NoDigestInfo())) == bytes(length)


@pytest.mark.parametrize("length", range(118))
def test_rsa_content_of_every_length_that_fits_is_recovered(length: int) -> None:
    signature = raw_signature(b"\0\1" + b"\xff" * (125 - length) + b"\0" + bytes(range(length)))
    assert RsaPublicKey(RSA_DER).recover(signature) == (bytes(range(length)) or None)


@pytest.mark.parametrize(
    "padded",
    [
        b"\0\1" + b"\xff" * 7 + b"\0" + b"x" * 118,
        b"\0\2" + b"\xff" * 20 + b"\0" + b"x" * 105,
        b"\0\0" + b"\0" * 20 + b"\0" + b"x" * 105,
        b"\0\1" + b"\xff" * 20 + b"\xfe\0" + b"x" * 104,
        b"\0\1" + b"\xff" * 126,
        b"\1\1" + b"\xff" * 20 + b"\0" + b"x" * 105,
        bytes(127) + b"\1",
        bytes(128),
    ],
    ids=["short", "encryption", "type 0", "not all ones", "no end", "no zero", "one", "zero"],
)
def test_rsa_signature_with_other_padding_does_not_hold(padded: bytes) -> None:
    assert RsaPublicKey(RSA_DER).recover(raw_signature(padded)) is None


def test_rsa_with_any_flipped_bit_does_not_hold() -> None:
    key = RsaPublicKey(RSA_DER)
    assert key.recover(RSA_SIGNATURE) == SIGNED
    for signature in flips(RSA_SIGNATURE):
        assert key.recover(signature) is None
    for changed in flips(RSA_DER):
        with suppress(ValueError):
            assert RsaPublicKey(changed).recover(RSA_SIGNATURE) is None


def test_rsa_signature_of_another_length_or_number_does_not_hold() -> None:
    key = RsaPublicKey(RSA_DER)
    for length in (0, 1, 64, 127):
        assert key.recover(RSA_SIGNATURE[:length]) is None
    for wrong in (RSA_SIGNATURE + b"\0", b"\0" + RSA_SIGNATURE, RSA_SIGNATURE * 2, b"\xff" * 128):
        assert key.recover(wrong) is None
    padded = (b"\0\1" + b"\xff" * 92 + b"\0" + i.to_bytes(33, "big") for i in range(100_000))
    small = next(one for one in map(raw_signature, padded) if one[0] == 0)
    assert key.recover(small) is not None
    assert key.recover(small[1:]) is None  # the same number
    again = int.from_bytes(small, "big") + N  # and the same modulo n
    if again < 2**1024:
        assert key.recover(again.to_bytes(128, "big")) is None


def test_rsa_signature_by_another_key_does_not_hold() -> None:
    assert RsaPublicKey(rsa_der(rsa_key("two"))).recover(RSA_SIGNATURE) is None


EC_KEY = ec.generate_private_key(ec.SECP256R1())
LONG_N = b"\0" + N.to_bytes(128, "big")
NO_RSA_KEYS = {
    "nothing": b"",
    "an empty sequence": sequence(),
    "the modulus alone": sequence(integer(N)),
    "three numbers": sequence(integer(N), integer(65537), integer(1)),
    "a byte more": RSA_DER + b"\0",
    "a byte more within": sequence(integer(N), integer(65537), b"\0"),
    "a longer length": b"\x30\x82" + (len(RSA_DER) - 3).to_bytes(2, "big") + RSA_DER[3:],
    "an indefinite length": b"\x30\x80" + RSA_DER[3:] + b"\0\0",
    "a longer number": sequence(der(0x02, b"\0" + LONG_N), integer(65537)),
    "a longer exponent": sequence(integer(N), der(0x02, b"\0\1\0\1")),
    "a negative modulus": sequence(der(0x02, N.to_bytes(128, "big")), integer(65537)),
    "a negative exponent": sequence(integer(N), der(0x02, b"\x81")),
    "a negative modulus and a longer exponent": sequence(
        der(0x02, N.to_bytes(128, "big")), der(0x02, b"\0\1\0\1")
    ),
    "an empty number": sequence(integer(N), der(0x02)),
    "a set": der(0x31, integer(N), integer(65537)),
    "bit strings": sequence(bit_string(LONG_N), bit_string(b"\1\0\1")),
    "modulus 0": sequence(integer(0), integer(65537)),
    "modulus 1": sequence(integer(1), integer(65537)),
    "an even modulus": sequence(integer(N - 1), integer(65537)),
    "exponent 0": sequence(integer(N), integer(0)),
    "exponent 1": sequence(integer(N), integer(1)),
    "exponent 2": sequence(integer(N), integer(2)),
    "an even exponent": sequence(integer(N), integer(65536)),
    "an exponent of 65 bits": sequence(integer(N), integer(2**64 + 1)),
    "exponent n": sequence(integer(N), integer(N)),
    "an exponent above n": sequence(integer(N), integer(N + 2)),
    "SubjectPublicKeyInfo": RSA_KEY.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ),
    "PEM": RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1),
    "a private key": RSA_KEY.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    "an elliptic curve": EC_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "a point": EC_KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
}


@pytest.mark.parametrize("wrong", NO_RSA_KEYS.values(), ids=NO_RSA_KEYS)
def test_what_is_no_rsa_key_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="an RSA public key in canonical DER expected"):
        RsaPublicKey(wrong)


def test_every_truncation_of_an_rsa_key_is_refused() -> None:
    for length in range(len(RSA_DER)):
        with pytest.raises(ValueError, match="canonical DER"):
            RsaPublicKey(RSA_DER[:length])


def is_rsa_key_elsewhere(encoded: bytes) -> bool:
    try:
        key = load_der_public_key(encoded)
    except ValueError:
        return False
    return (
        isinstance(key, rsa.RSAPublicKey)
        and key.public_bytes(Encoding.DER, PublicFormat.PKCS1) == encoded
        and key.public_numbers().n % 2 == 1  # the other library finds out when the key is used
    )


@settings(deadline=None)
@given(st.integers(0, 2**520), st.integers(0, 2**80) | st.integers(0, 9))
def test_rsa_numbers_are_taken_as_by_another_library(n: int, e: int) -> None:
    encoded = sequence(integer(n), integer(e))
    try:
        key = RsaPublicKey(encoded)
    except ValueError:
        assert not is_rsa_key_elsewhere(encoded)
    else:
        assert is_rsa_key_elsewhere(encoded)
        assert key.bits == n.bit_length()
        assert key.recover(bytes(-(-key.bits // 8))) is None


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(RSA_DER)), st.integers(0, len(RSA_DER)))
def test_random_bytes_in_an_rsa_key_give_only_value_errors(junk: bytes, start: int, end: int) -> None:
    changed = RSA_DER[:start] + junk + RSA_DER[end:]
    try:
        RsaPublicKey(changed)
    except ValueError:
        assert not is_rsa_key_elsewhere(changed)
    else:
        assert is_rsa_key_elsewhere(changed)


@pytest.mark.parametrize("bits", [8192, 16384, 16385, 500_000])
def test_huge_rsa_key_is_read_at_once_for_its_reader_to_refuse(bits: int) -> None:
    key = RsaPublicKey(sequence(integer(2 ** (bits - 1) + 1), integer(65537)))
    assert key.bits == bits
    if bits > 8192:
        assert key.recover(bytes(-(-bits // 8))) is None


# --- The X.509 certificate of an RSA identity ------------------------------------------------------------

RSA_ENCRYPTION = sequence(oid("1.2.840.113549.1.1.1"), NULL)
SHA256_WITH_RSA = sequence(oid("1.2.840.113549.1.1.11"), NULL)
NAME = sequence(der(0x31, sequence(oid("2.5.4.3"), der(0x0C, b"www.example.net"))))
OTHER_NAME = sequence(der(0x31, sequence(oid("2.5.4.3"), der(0x0C, b"www.example.com"))))
NOT_BEFORE, NOT_AFTER = b"231114000000Z", b"241114235959Z"


def certificate(
    *,
    signer: rsa.RSAPrivateKey = RSA_KEY,
    sign: Callable[[rsa.RSAPrivateKey, bytes], bytes] = lambda key, tbs: key.sign(
        tbs, PKCS1v15(), hashes.SHA256()
    ),
    algorithm: bytes = SHA256_WITH_RSA,
    outer_algorithm: bytes | None = None,
    issuer: bytes = NAME,
    not_before: bytes = der(0x17, NOT_BEFORE),
    not_after: bytes = der(0x17, NOT_AFTER),
    public_key: bytes = sequence(RSA_ENCRYPTION, bit_string(RSA_DER)),
    unused_bits: int = 0,
) -> bytes:
    tbs = sequence(
        der(0xA0, integer(2)),
        integer(1),
        algorithm,
        issuer,
        sequence(not_before, not_after),
        NAME,
        public_key,
    )
    return sequence(tbs, outer_algorithm or algorithm, bit_string(sign(signer, tbs), unused_bits))


GOOD = certificate()


def is_self_signed_elsewhere(encoded: bytes) -> bool:
    certificate = x509.load_der_x509_certificate(encoded)
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def time_of(text: bytes, form: str) -> int:
    return int(datetime.strptime(text.decode(), form).replace(tzinfo=UTC).timestamp())


def test_certificate_is_read_as_by_another_library() -> None:
    ours, theirs = RsaCertificate(GOOD), x509.load_der_x509_certificate(GOOD)
    assert ours.key is not None
    assert ours.key.der == RSA_DER
    assert ours.not_before == theirs.not_valid_before_utc.timestamp() == time_of(NOT_BEFORE, "%y%m%d%H%M%SZ")
    assert ours.not_after == theirs.not_valid_after_utc.timestamp() == time_of(NOT_AFTER, "%y%m%d%H%M%SZ")
    assert ours.is_self_signed()
    assert is_self_signed_elsewhere(GOOD)


def test_certificate_with_any_flipped_bit_is_refused_or_not_signed_by_its_key() -> None:
    for changed in flips(GOOD):
        with suppress(ValueError):
            assert not RsaCertificate(changed).is_self_signed()


def test_every_truncation_of_a_certificate_and_any_byte_more_is_refused() -> None:
    longer = b"\x30\x83" + (len(GOOD) - 4).to_bytes(3, "big") + GOOD[4:]
    assert GOOD[:2] == b"\x30\x82"
    for wrong in (*(GOOD[:length] for length in range(len(GOOD))), GOOD + b"\0", GOOD * 2, longer):
        with pytest.raises(ValueError, match=r"an X\.509 certificate in DER expected"):
            RsaCertificate(wrong)


@pytest.mark.parametrize(
    ("number", "hash_"), [(11, hashes.SHA256()), (12, hashes.SHA384()), (13, hashes.SHA512())]
)
def test_certificate_may_be_signed_with_sha_2(number: int, hash_: hashes.HashAlgorithm) -> None:
    algorithm = sequence(oid(f"1.2.840.113549.1.1.{number}"), NULL)
    encoded = certificate(algorithm=algorithm, sign=lambda key, tbs: key.sign(tbs, PKCS1v15(), hash_))
    assert RsaCertificate(encoded).is_self_signed()
    assert is_self_signed_elsewhere(encoded)


def sign_with_md5(key: rsa.RSAPrivateKey, tbs: bytes) -> bytes:
    digest_info = sequence(sequence(oid("1.2.840.113549.2.5"), NULL), der(0x04, hashlib.md5(tbs).digest()))
    return key.sign(digest_info, PKCS1v15(), NoDigestInfo())


PSS_SHA256 = sequence(
    oid("1.2.840.113549.1.1.10"),
    sequence(
        der(0xA0, sequence(oid("2.16.840.1.101.3.4.2.1"), NULL)),
        der(0xA1, sequence(oid("1.2.840.113549.1.1.8"), sequence(oid("2.16.840.1.101.3.4.2.1"), NULL))),
        der(0xA2, integer(32)),
    ),
)
NOT_SELF_SIGNED = {
    "MD5": certificate(algorithm=sequence(oid("1.2.840.113549.1.1.4"), NULL), sign=sign_with_md5),
    "SHA-1": certificate(
        algorithm=sequence(oid("1.2.840.113549.1.1.5"), NULL),
        sign=lambda key, tbs: key.sign(tbs, PKCS1v15(), hashes.SHA1()),
    ),
    "no DigestInfo": certificate(
        sign=lambda key, tbs: key.sign(hashlib.sha256(tbs).digest(), PKCS1v15(), NoDigestInfo())
    ),
    "another hash than it says": certificate(
        sign=lambda key, tbs: key.sign(tbs, PKCS1v15(), hashes.SHA512())
    ),
    "another algorithm outside": certificate(outer_algorithm=sequence(oid("1.2.840.113549.1.1.13"), NULL)),
    "no algorithm": certificate(algorithm=sequence(oid("1.2.840.113549.1.1.1"), NULL)),
    "an unknown algorithm": certificate(algorithm=sequence(oid("1.2.3.4"), NULL)),
    "another key": certificate(signer=rsa_key("two")),
    "another issuer": certificate(issuer=OTHER_NAME),
    "no signature": certificate(sign=lambda key, tbs: b""),
    "a short signature": certificate(sign=lambda key, tbs: RSA_SIGNATURE[1:]),
    "a long signature": certificate(sign=lambda key, tbs: b"\0" + key.sign(tbs, PKCS1v15(), hashes.SHA256())),
}


@pytest.mark.parametrize("encoded", NOT_SELF_SIGNED.values(), ids=NOT_SELF_SIGNED)
def test_certificate_not_signed_by_its_own_key(encoded: bytes) -> None:
    ours = RsaCertificate(encoded)
    assert ours.key is not None
    assert ours.key.der == RSA_DER
    assert not ours.is_self_signed()
    assert not is_self_signed_elsewhere(encoded)


def test_certificate_signed_with_pss_is_not_what_relays_have() -> None:
    """The other library takes it."""
    pss = PSS(MGF1(hashes.SHA256()), 32)
    encoded = certificate(algorithm=PSS_SHA256, sign=lambda key, tbs: key.sign(tbs, pss, hashes.SHA256()))
    assert is_self_signed_elsewhere(encoded)
    assert not RsaCertificate(encoded).is_self_signed()


@pytest.mark.parametrize("unused_bits", [1, 7, 8, 255])
def test_certificate_whose_signature_is_not_whole_bytes_is_refused(unused_bits: int) -> None:
    with suppress(ValueError):
        assert not RsaCertificate(certificate(unused_bits=unused_bits)).is_self_signed()


@pytest.mark.parametrize(
    "public_key",
    [
        EC_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        sequence(sequence(oid("1.3.101.112")), bit_string(ED25519_PUBLIC)),
        sequence(sequence(oid("1.2.840.113549.1.1.10")), bit_string(RSA_DER)),  # RSA, but for PSS only
        sequence(sequence(oid("1.2.3.4"), NULL), bit_string(RSA_DER)),
    ],
    ids=["elliptic curve", "Ed25519", "PSS", "unknown"],
)
def test_certificate_with_a_key_of_another_kind_has_no_rsa_key(public_key: bytes) -> None:
    ours = RsaCertificate(certificate(public_key=public_key))
    assert ours.key is None
    assert not ours.is_self_signed()


@pytest.mark.parametrize("wrong", NO_RSA_KEYS.values(), ids=NO_RSA_KEYS)
def test_certificate_with_an_rsa_key_that_is_none_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        RsaCertificate(certificate(public_key=sequence(RSA_ENCRYPTION, bit_string(wrong))))


@pytest.mark.parametrize(
    ("time", "form"),
    [
        (der(0x17, b"000229235959Z"), "%y%m%d%H%M%SZ"),
        (der(0x17, b"700101000000Z"), "%y%m%d%H%M%SZ"),
        (der(0x17, b"691231235959Z"), None),  # 1969, which Python's %y takes for 2069
        (der(0x17, b"491231235959Z"), "%y%m%d%H%M%SZ"),
        (der(0x17, b"500101000000Z"), None),  # 1950
        (der(0x18, b"20500101000000Z"), "%Y%m%d%H%M%SZ"),
        (der(0x18, b"20380119031408Z"), "%Y%m%d%H%M%SZ"),
        (der(0x18, b"99991231235959Z"), "%Y%m%d%H%M%SZ"),
    ],
)
def test_times_of_a_certificate(time: bytes, form: str | None) -> None:
    encoded = certificate(not_before=time, not_after=time)
    ours = RsaCertificate(encoded)
    assert ours.not_before == ours.not_after
    assert ours.not_before == x509.load_der_x509_certificate(encoded).not_valid_before_utc.timestamp()
    assert form is None or ours.not_before == time_of(time[2:], form)


@pytest.mark.parametrize(
    "time",
    [
        *(der(0x17, text) for text in (b"", b"Z", b"2311140000Z", b"231114000000", b"231114000000+0000")),
        *(
            der(0x17, text)
            for text in (b"2311140000+0000", b"231114000000ZZ", b"231114000000z", b"-31114000000Z")
        ),
        *(
            der(0x17, text)
            for text in (b"231314000000Z", b"230014000000Z", b"230230000000Z", b"230100000000Z")
        ),
        *(
            der(0x17, text)
            for text in (b"231114240000Z", b"231114006000Z", b"231114000060Z", b" 31114000000Z")
        ),
        *(
            der(0x17, text)
            for text in (b"2311140000\0\0Z", b"23111400000\xffZ", b"20231114000000Z", b"x" * 13)
        ),
        *(der(0x18, text) for text in (b"231114000000Z", b"202311140000Z", b"20231114000000", b"x" * 15)),
        *(
            der(0x18, text)
            for text in (b"20231114000000.5Z", b"20231114000000.Z", b"2023111400+0000", b"2023111400000.Z")
        ),
        *(der(0x18, text) for text in (b"20231114000000+0100", b"20230229000000Z", b"20231114000000\0Z")),
        der(0x0C, NOT_BEFORE),
        NULL,
    ],
    ids=repr,
)
@pytest.mark.parametrize("which", ["not_before", "not_after"])
def test_certificate_with_a_time_that_is_none_is_refused(time: bytes, which: str) -> None:
    encoded = certificate(not_before=time) if which == "not_before" else certificate(not_after=time)
    with pytest.raises(ValueError, match="expected"):
        RsaCertificate(encoded)
    with pytest.raises(ValueError, match="error parsing"):
        x509.load_der_x509_certificate(encoded)


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_random_bytes_in_a_certificate_give_only_value_errors(junk: bytes, start: int, end: int) -> None:
    changed = GOOD[:start] + junk + GOOD[end:]
    with suppress(ValueError):
        assert RsaCertificate(changed).is_self_signed() == (changed == GOOD)


# --- AES ---------------------------------------------------------------------------------------------------


@given(keys, st.binary(max_size=600))
def test_aes_agrees_with_another_library(key: bytes, data: bytes) -> None:
    encrypted = aes_256_ctr(key, data)
    assert encrypted == Cipher(AES(key), CTR(bytes(16))).encryptor().update(data)
    assert aes_256_ctr(key, encrypted) == data


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_aes_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(UsageError, match="32 bytes of key"):
        aes_256_ctr(bytes(length), b"data")


# --- All of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [None, "text", bytearray(32), memoryview(bytes(32)), 32], ids=lambda one: type(one).__name__
)
def test_what_is_not_bytes_is_refused(wrong: bytes) -> None:
    key = X25519PrivateKey(bytes(32))
    calls: list[Callable[[], object]] = [
        lambda: X25519PrivateKey(wrong),
        lambda: key.exchange(wrong),
        lambda: ed25519_verify(wrong, ED25519_SIGNATURE, MESSAGE),
        lambda: ed25519_verify(ED25519_PUBLIC, wrong, MESSAGE),
        lambda: ed25519_verify(ED25519_PUBLIC, ED25519_SIGNATURE, wrong),
        lambda: RsaPublicKey(wrong),
        lambda: RsaPublicKey(RSA_DER).recover(wrong),
        lambda: RsaCertificate(wrong),
        lambda: aes_256_ctr(wrong, b""),
        lambda: aes_256_ctr(bytes(32), wrong),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()


def test_no_key_says_itself() -> None:
    private_key = bytes(range(32))
    said = repr(X25519PrivateKey(private_key)) + str(X25519PrivateKey(private_key))
    assert private_key.hex() not in said
    assert "\\x00\\x01\\x02" not in said
