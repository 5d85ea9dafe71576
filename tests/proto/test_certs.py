"""The certificate chain of a relay: recorded; built whole with real keys; broken one link at a time."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from torkit.errors import ChannelError
from torkit.proto.cells import decode_certs
from torkit.proto.certs import RelayIdentity, decode_ed25519_cert, verify_certs

NOW = 1_700_000_000.0
NOW_HOURS = int(NOW // 3600)
TLS_DIGEST = hashlib.sha256(b"the certificate shown in TLS").digest()

SIGNED_WITH = 4
X509_NAME = "www.example.net"


@cache
def rsa_key(name: str, bits: int = 1024) -> rsa.RSAPrivateKey:
    """One key per name: making them is slow."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def ed25519_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def extension(extension_type: int, data: bytes, flags: int = 0) -> bytes:
    return len(data).to_bytes(2, "big") + bytes([extension_type, flags]) + data


def ed25519_cert(
    cert_type: int,
    key_type: int,
    certified: bytes,
    signer: Ed25519PrivateKey,
    *,
    extensions: tuple[bytes, ...] = (),
    expires_hours: int = NOW_HOURS + 1,
    version: int = 1,
) -> bytes:
    signed = bytes([version, cert_type]) + expires_hours.to_bytes(4, "big") + bytes([key_type]) + certified
    signed += bytes([len(extensions)]) + b"".join(extensions)
    return signed + signer.sign(signed)


@lru_cache(maxsize=1024)  # a signature takes 13 ms, and the fuzzer wants the same ones again and again
def rsa_crosscert(
    certified: bytes, signer: rsa.RSAPrivateKey, *, expires_hours: int = NOW_HOURS + 1
) -> bytes:
    """The signature is computed from RSA itself, apart from any library's idea of its padding."""
    signed = certified + expires_hours.to_bytes(4, "big")
    digest = hashlib.sha256(b"Tor TLS RSA/Ed25519 cross-certificate" + signed).digest()
    numbers = signer.private_numbers()
    padded = b"\0\1" + b"\xff" * (128 - 3 - len(digest)) + b"\0" + digest
    signature = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n).to_bytes(128, "big")
    return signed + bytes([len(signature)]) + signature


def x509_cert(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    signer: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    *,
    not_before: float = NOW - 3600,
    not_after: float = NOW + 3600,
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, X509_NAME)])
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=datetime.fromtimestamp(not_before, UTC),
        not_valid_after=datetime.fromtimestamp(not_after, UTC),
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


@dataclass(frozen=True)
class Chain:
    """The certificates of one relay by type, in the order C tor sends them."""

    certs: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def build(cls, name: str = "relay") -> "Chain":
        identity, signing, rsa_identity = ed25519_key(name), ed25519_key(name + " signing"), rsa_key(name)
        return cls(
            {
                2: x509_cert(rsa_identity, rsa_identity),
                4: signing_cert(identity, signing),
                5: tls_cert(signing),
                7: rsa_crosscert(public(identity), rsa_identity),
            }
        )

    def with_cert(self, cert_type: int, cert: bytes) -> "Chain":
        return replace(self, certs={**self.certs, cert_type: cert})

    def verify(self, *, tls_certificate_digest: bytes = TLS_DIGEST, now: float = NOW) -> RelayIdentity:
        return verify_certs(self.certs.items(), tls_certificate_digest=tls_certificate_digest, now=now)


def signing_cert(
    identity: Ed25519PrivateKey, signing: Ed25519PrivateKey, *, expires_hours: int = NOW_HOURS + 1
) -> bytes:
    named = extension(SIGNED_WITH, public(identity))
    return ed25519_cert(4, 1, public(signing), identity, extensions=(named,), expires_hours=expires_hours)


def tls_cert(
    signing: Ed25519PrivateKey, *, key_type: int = 3, expires_hours: int = NOW_HOURS + 1, cert_type: int = 5
) -> bytes:
    return ed25519_cert(cert_type, key_type, TLS_DIGEST, signing, expires_hours=expires_hours)


def relay_identity(name: str = "relay") -> RelayIdentity:
    der = rsa_key(name).public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    return RelayIdentity(hashlib.sha1(der).digest(), public(ed25519_key(name)))


IDENTITY, SIGNING, RSA_IDENTITY = ed25519_key("relay"), ed25519_key("relay signing"), rsa_key("relay")
STRANGER, RSA_STRANGER = ed25519_key("stranger"), rsa_key("stranger")
GOOD = Chain.build()
each_type = pytest.mark.parametrize("cert_type", sorted(GOOD.certs))


# --- The whole chain -------------------------------------------------------------------------------------


def test_good_chain_proves_both_identities() -> None:
    assert GOOD.verify() == relay_identity()


def test_chain_of_a_real_relay() -> None:
    """Recorded from tor: its own X.509, its own RSA padding."""
    recorded = json.loads((Path(__file__).parent / "vectors" / "certs.json").read_text())
    certs = decode_certs(bytes.fromhex(recorded["certs_cell"]))
    digest = bytes.fromhex(recorded["tls_certificate_digest"])
    identity = verify_certs(certs, tls_certificate_digest=digest, now=recorded["now"])
    assert identity.rsa.hex() == recorded["rsa_identity"]
    assert identity.ed25519.hex() == recorded["ed25519_identity"]


def test_order_of_certificates_does_not_matter() -> None:
    certs = reversed(GOOD.certs.items())
    assert verify_certs(certs, tls_certificate_digest=TLS_DIGEST, now=NOW) == relay_identity()


def test_certificates_of_unknown_types_are_passed_over() -> None:
    chain = GOOD
    for cert_type in (1, 3, 6, 99):
        chain = chain.with_cert(cert_type, b"whatever")
    assert chain.verify() == relay_identity()


def test_tls_digest_labelled_as_ed25519_key_is_accepted_as_old_relays_write_it() -> None:
    assert GOOD.with_cert(5, tls_cert(SIGNING, key_type=1)).verify() == relay_identity()


@each_type
def test_missing_certificate_is_refused(cert_type: int) -> None:
    certs = {t: cert for t, cert in GOOD.certs.items() if t != cert_type}
    with pytest.raises(ChannelError, match=f"CERTS lacks the certificate of type {cert_type} "):
        Chain(certs).verify()


@pytest.mark.parametrize("cert_type", [*sorted(GOOD.certs), 99])
def test_duplicate_certificate_is_refused(cert_type: int) -> None:
    certs = [*GOOD.with_cert(99, b"").certs.items()]
    again = [pair for pair in certs if pair[0] == cert_type]
    with pytest.raises(ChannelError, match=f"two certificates of type {cert_type}$"):
        verify_certs(certs + again, tls_certificate_digest=TLS_DIGEST, now=NOW)


@each_type
def test_every_changed_byte_is_refused(cert_type: int) -> None:
    good = GOOD.certs[cert_type]
    for i in range(len(good)):
        changed = good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1 :]
        with pytest.raises(ChannelError):
            GOOD.with_cert(cert_type, changed).verify()


@each_type
def test_every_truncation_and_any_byte_more_is_refused(cert_type: int) -> None:
    good = GOOD.certs[cert_type]
    for wrong in [good[:length] for length in range(len(good))] + [good + b"\0"]:
        with pytest.raises(ChannelError):
            GOOD.with_cert(cert_type, wrong).verify()


@given(st.sampled_from(sorted(GOOD.certs)), st.binary(max_size=300))
def test_random_bytes_give_only_channel_errors(cert_type: int, cert: bytes) -> None:
    with pytest.raises(ChannelError):
        GOOD.with_cert(cert_type, cert).verify()


# --- Time ------------------------------------------------------------------------------------------------

EXPIRING: dict[int, Callable[[int], bytes]] = {
    2: lambda hours: x509_cert(RSA_IDENTITY, RSA_IDENTITY, not_after=hours * 3600),
    4: lambda hours: signing_cert(IDENTITY, SIGNING, expires_hours=hours),
    5: lambda hours: tls_cert(SIGNING, expires_hours=hours),
    7: lambda hours: rsa_crosscert(public(IDENTITY), RSA_IDENTITY, expires_hours=hours),
}


@each_type
def test_certificate_is_good_until_it_expires(cert_type: int) -> None:
    chain = GOOD.with_cert(cert_type, EXPIRING[cert_type](NOW_HOURS))
    assert chain.verify(now=NOW_HOURS * 3600) == relay_identity()
    with pytest.raises(ChannelError, match="expired 1 s ago") as caught:
        chain.verify(now=NOW_HOURS * 3600 + 1)
    assert caught.value.hint == "is the clock of this computer right?"


def test_rsa_identity_certificate_is_not_good_before_its_time() -> None:
    chain = GOOD.with_cert(2, x509_cert(RSA_IDENTITY, RSA_IDENTITY, not_before=NOW))
    assert chain.verify(now=NOW) == relay_identity()
    with pytest.raises(ChannelError, match="not valid yet"):
        chain.verify(now=NOW - 1)


# --- Identity -> signing key -> TLS certificate ----------------------------------------------------------


def test_chain_for_another_tls_certificate_is_refused() -> None:
    for digest in (hashlib.sha256(b"another").digest(), b"", TLS_DIGEST[:31]):
        with pytest.raises(ChannelError, match="another TLS certificate"):
            GOOD.verify(tls_certificate_digest=digest)


def test_signing_key_not_signed_by_the_identity_it_names_is_refused() -> None:
    named = extension(SIGNED_WITH, public(IDENTITY))
    cert = ed25519_cert(4, 1, public(SIGNING), STRANGER, extensions=(named,))
    with pytest.raises(ChannelError, match="signature of the Ed25519 certificate of type 4 is wrong"):
        GOOD.with_cert(4, cert).verify()


def test_signing_key_that_names_no_identity_is_refused() -> None:
    with pytest.raises(ChannelError, match="does not name the identity"):
        GOOD.with_cert(4, ed25519_cert(4, 1, public(SIGNING), IDENTITY)).verify()


@pytest.mark.parametrize("signer", [IDENTITY, STRANGER], ids=["identity", "stranger"])
def test_tls_certificate_not_signed_by_the_signing_key_is_refused(signer: Ed25519PrivateKey) -> None:
    with pytest.raises(ChannelError, match="signature of the Ed25519 certificate of type 5 is wrong"):
        GOOD.with_cert(5, tls_cert(signer)).verify()


def test_another_signing_key_does_not_vouch_for_the_tls_certificate() -> None:
    with pytest.raises(ChannelError, match="signature of the Ed25519 certificate of type 5 is wrong"):
        GOOD.with_cert(4, signing_cert(IDENTITY, STRANGER)).verify()


def test_certificate_that_names_another_signer_is_refused_however_signed() -> None:
    named = extension(SIGNED_WITH, public(STRANGER))
    cert = ed25519_cert(5, 3, TLS_DIGEST, SIGNING, extensions=(named,))
    with pytest.raises(ChannelError, match="names another signing key"):
        GOOD.with_cert(5, cert).verify()


def test_certificate_of_one_type_does_not_pass_for_another() -> None:
    with pytest.raises(ChannelError, match="sent as type 5 says that it is of type 6"):
        GOOD.with_cert(5, tls_cert(SIGNING, cert_type=6)).verify()


@pytest.mark.parametrize("key_type", [0, 2, 3])
def test_signing_key_of_wrong_kind_is_refused(key_type: int) -> None:
    named = extension(SIGNED_WITH, public(IDENTITY))
    cert = ed25519_cert(4, key_type, public(SIGNING), IDENTITY, extensions=(named,))
    with pytest.raises(ChannelError, match=f"certifies a key of type {key_type}"):
        GOOD.with_cert(4, cert).verify()


def test_tls_digest_of_wrong_kind_is_refused() -> None:
    with pytest.raises(ChannelError, match="certifies a key of type 2"):
        GOOD.with_cert(5, tls_cert(SIGNING, key_type=2)).verify()


# --- RSA identity ----------------------------------------------------------------------------------------


def test_crosscert_for_another_ed25519_identity_is_refused() -> None:
    with pytest.raises(ChannelError, match="for another Ed25519 identity"):
        GOOD.with_cert(7, rsa_crosscert(public(STRANGER), RSA_IDENTITY)).verify()


def test_crosscert_by_another_rsa_key_is_refused() -> None:
    with pytest.raises(ChannelError, match="signature of the RSA cross-certificate is wrong"):
        GOOD.with_cert(7, rsa_crosscert(public(IDENTITY), RSA_STRANGER)).verify()


def test_crosscert_does_not_vouch_for_another_rsa_identity() -> None:
    with pytest.raises(ChannelError, match="signature of the RSA cross-certificate is wrong"):
        GOOD.with_cert(2, x509_cert(RSA_STRANGER, RSA_STRANGER)).verify()


def test_crosscert_signed_over_other_data_is_refused() -> None:
    cert = rsa_crosscert(public(IDENTITY), RSA_IDENTITY, expires_hours=NOW_HOURS + 1)
    longer = rsa_crosscert(public(IDENTITY), RSA_IDENTITY, expires_hours=NOW_HOURS + 2)
    with pytest.raises(ChannelError, match="cross-certificate is for something else"):
        GOOD.with_cert(7, longer[:36] + cert[36:]).verify()


@pytest.mark.parametrize("length", [0, 1, 127, 129, 255])
def test_crosscert_signature_of_any_other_length_is_refused(length: int) -> None:
    cert = rsa_crosscert(public(IDENTITY), RSA_IDENTITY)
    signature = cert[37:].ljust(length, b"\0")[:length]
    with pytest.raises(ChannelError, match="signature of the RSA cross-certificate is wrong"):
        GOOD.with_cert(7, cert[:36] + bytes([length]) + signature).verify()


def test_rsa_identity_not_signed_by_itself_is_refused() -> None:
    with pytest.raises(ChannelError, match="not signed by its own key"):
        GOOD.with_cert(2, x509_cert(RSA_IDENTITY, RSA_STRANGER)).verify()


@pytest.mark.parametrize(
    "key",
    [rsa_key("longer", 2048), ec.generate_private_key(ec.SECP256R1())],
    ids=["2048-bit RSA", "elliptic curve"],
)
def test_rsa_identity_of_another_kind_is_refused(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(ChannelError, match="no 1024-bit RSA key"):
        GOOD.with_cert(2, x509_cert(key, key)).verify()


# --- The Ed25519 certificate format ----------------------------------------------------------------------


def test_fields_of_an_ed25519_certificate() -> None:
    cert = decode_ed25519_cert(GOOD.certs[4])
    assert (cert.cert_type, cert.key_type, cert.expires) == (4, 1, (NOW_HOURS + 1) * 3600)
    assert (cert.certified_key, cert.signing_key) == (public(SIGNING), public(IDENTITY))


def test_unknown_extension_is_passed_over_unless_it_affects_validation() -> None:
    named = extension(SIGNED_WITH, public(IDENTITY))
    for flags in (0, 2, 0xFE):
        unknown = extension(9, b"whatever", flags)
        cert = ed25519_cert(4, 1, public(SIGNING), IDENTITY, extensions=(unknown, named))
        assert GOOD.with_cert(4, cert).verify() == relay_identity()
    for flags in (1, 3, 0xFF):
        unknown = extension(9, b"whatever", flags)
        cert = ed25519_cert(4, 1, public(SIGNING), IDENTITY, extensions=(unknown, named))
        with pytest.raises(ChannelError, match="an extension we do not know, type 9"):
            GOOD.with_cert(4, cert).verify()


def test_known_extension_may_affect_validation() -> None:
    named = extension(SIGNED_WITH, public(IDENTITY), flags=1)
    cert = ed25519_cert(4, 1, public(SIGNING), IDENTITY, extensions=(named,))
    assert GOOD.with_cert(4, cert).verify() == relay_identity()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_signing_key_extension_of_wrong_length_is_refused(length: int) -> None:
    cert = ed25519_cert(4, 1, public(SIGNING), IDENTITY, extensions=(extension(SIGNED_WITH, bytes(length)),))
    with pytest.raises(ChannelError, match=f"has {length} bytes, not 32"):
        decode_ed25519_cert(cert)


def test_two_signing_keys_are_refused() -> None:
    named = extension(SIGNED_WITH, public(IDENTITY))
    cert = ed25519_cert(4, 1, public(SIGNING), IDENTITY, extensions=(named, named))
    with pytest.raises(ChannelError, match="two signing keys"):
        decode_ed25519_cert(cert)


@pytest.mark.parametrize("version", [0, 2])
def test_certificate_of_unknown_version_is_refused(version: int) -> None:
    with pytest.raises(ChannelError, match=f"version {version}, not 1"):
        decode_ed25519_cert(ed25519_cert(4, 1, bytes(32), IDENTITY, version=version))


def test_bytes_after_the_signature_are_refused() -> None:
    with pytest.raises(ChannelError, match="1 bytes too many"):
        decode_ed25519_cert(GOOD.certs[4] + b"\0")


@given(st.binary(max_size=200))
def test_random_bytes_after_the_version_give_only_channel_errors(body: bytes) -> None:
    with suppress(ChannelError):
        decode_ed25519_cert(b"\1" + body)
