"""Certificates by which a relay proves that both its identities own the TLS connection.

The chain that `verify_certs` walks (CertType of the CERTS cell in brackets):

    Ed25519 identity --[4]--> Ed25519 signing key --[5]--> SHA-256 of the TLS certificate
    RSA identity     --[7]--> Ed25519 identity
    RSA identity     --[2]--> itself; an X.509 certificate, there to carry the key

This module finds out who the peer is. `channel.py` compares that with the relay we wanted.
"""

import hashlib
import hmac
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from torkit._fast.cells import Reader
from torkit._fast.keys import RsaCertificate, RsaPublicKey, ed25519_verify
from torkit.errors import CertificateNotCurrent, ChannelError

# Specification constants.
ED25519_KEY_LEN = 32
ED25519_SIGNATURE_LEN = 64
CERT_VERSION = 1  # cert-spec, "Ed25519 Certificates"
EXTENSION_SIGNED_WITH_ED25519_KEY = 4  # cert-spec, "List of extension types"
AFFECTS_VALIDATION = 1  # cert-spec, "Ed25519 Certificates", ExtFlags
RSA_IDENTITY_KEY_BITS = 1024  # tor-spec, "CERTS cells"
RSA_CROSSCERT_PREFIX = b"Tor TLS RSA/Ed25519 cross-certificate"  # cert-spec, "RSA->Ed25519 cross-certificate"

_CLOCK_HINT = "is the clock of this computer right?"


class CertType(IntEnum):
    """CertType of a CERTS cell, and CERT_TYPE within an Ed25519 certificate. tor-spec, "CERTS cells"."""

    RSA_ID_X509 = 2
    IDENTITY_V_SIGNING = 4
    SIGNING_V_TLS_CERT = 5
    RSA_ID_V_IDENTITY = 7


class CertifiedKeyType(IntEnum):
    """cert-spec, "List of certified key types"."""

    ED25519 = 1
    X509_SHA256 = 3


class RelayIdentity(NamedTuple):
    """Who a relay is: SHA-1 of its RSA identity key, 20 bytes, and its Ed25519 identity key, 32 bytes."""

    rsa: bytes
    ed25519: bytes


class Ed25519Cert(NamedTuple):
    """An Ed25519 certificate that is well formed; only `verify` makes it true.

    `expires` is in seconds since the epoch. `signing_key` is the one the certificate names as its
    signer, or None. cert-spec, "Ed25519 Certificates".
    """

    cert_type: int
    expires: int
    key_type: int
    certified_key: bytes
    signing_key: bytes | None
    signed: bytes
    signature: bytes

    def verify(self, signing_key: bytes, *, now: float) -> None:
        """Check signature and time. Raises ChannelError.

        A certificate that names another signer than `signing_key` is refused, whatever its signature.
        """
        what = f"the Ed25519 certificate of type {self.cert_type}"
        if self.signing_key is not None and self.signing_key != signing_key:
            raise ChannelError(f"{what} names another signing key than it should be signed with")
        _check_not_expired(what, self.expires, now)
        if not ed25519_verify(signing_key, self.signature, self.signed):
            raise ChannelError(f"the signature of {what} is wrong")


def decode_ed25519_cert(body: bytes) -> Ed25519Cert:
    """Read a certificate; nothing is verified. Raises ChannelError.

    cert-spec, "Ed25519 Certificates".
    """
    reader = Reader(body, "an Ed25519 certificate", ChannelError)
    version = reader.take_int(1)
    if version != CERT_VERSION:
        raise ChannelError(f"an Ed25519 certificate has version {version}, not {CERT_VERSION}")
    cert_type = reader.take_int(1)
    expires = reader.take_int(4) * 3600
    key_type = reader.take_int(1)
    certified_key = reader.take(ED25519_KEY_LEN)
    signing_key = None
    for _ in range(reader.take_int(1)):
        length = reader.take_int(2)
        extension_type = reader.take_int(1)
        flags = reader.take_int(1)
        extension = reader.take(length)
        if extension_type == EXTENSION_SIGNED_WITH_ED25519_KEY:
            if length != ED25519_KEY_LEN:
                raise ChannelError(
                    f"the signing key in an Ed25519 certificate has {length} bytes, not {ED25519_KEY_LEN}"
                )
            if signing_key is not None:
                raise ChannelError("an Ed25519 certificate names two signing keys")
            signing_key = extension
        elif flags & AFFECTS_VALIDATION:
            raise ChannelError(
                f"an Ed25519 certificate depends on an extension we do not know, type {extension_type}"
            )
    signature = reader.take(ED25519_SIGNATURE_LEN)
    reader.finish()
    signed = body[:-ED25519_SIGNATURE_LEN]
    return Ed25519Cert(cert_type, expires, key_type, certified_key, signing_key, signed, signature)


def verify_certs(
    certs: Iterable[tuple[int, bytes]], *, tls_certificate_digest: bytes, now: float
) -> RelayIdentity:
    """Check the whole chain of a responder's CERTS cell. Returns the identities that it proves.

    `certs` is what `decode_certs` gave; types we do not know are passed over.
    `tls_certificate_digest` is the SHA-256 of the DER certificate the peer showed in TLS, 32 bytes.
    Raises ChannelError saying which link of the chain failed. tor-spec, "CERTS cells".
    """
    by_type: dict[int, bytes] = {}
    for cert_type, cert in certs:
        if cert_type in by_type:
            raise ChannelError(f"CERTS has two certificates of type {cert_type}")
        by_type[cert_type] = cert
    for wanted in CertType:
        if wanted not in by_type:
            raise ChannelError(f"CERTS lacks the certificate of type {wanted} ({wanted.name})")

    signing_cert = _decode_link_of_chain(
        by_type[CertType.IDENTITY_V_SIGNING], CertType.IDENTITY_V_SIGNING, {CertifiedKeyType.ED25519}
    )
    identity = signing_cert.signing_key
    if identity is None:
        raise ChannelError("the Ed25519 certificate of type 4 does not name the identity that signed it")
    signing_cert.verify(identity, now=now)

    tls_cert = _decode_link_of_chain(
        by_type[CertType.SIGNING_V_TLS_CERT],
        CertType.SIGNING_V_TLS_CERT,
        # Tors up to 0.4.5.1-alpha wrote "ed25519" over every kind of certified key.
        {CertifiedKeyType.X509_SHA256, CertifiedKeyType.ED25519},
    )
    tls_cert.verify(signing_cert.certified_key, now=now)
    if not hmac.compare_digest(tls_cert.certified_key, tls_certificate_digest):
        raise ChannelError("CERTS is for another TLS certificate than this connection uses")

    rsa_identity_key = _verify_rsa_identity_cert(by_type[CertType.RSA_ID_X509], now)
    _verify_rsa_crosscert(by_type[CertType.RSA_ID_V_IDENTITY], rsa_identity_key, identity, now)
    # SHA-1 of the PKCS #1 DER encoding: tor-spec, "Preliminaries".
    return RelayIdentity(hashlib.sha1(rsa_identity_key.der).digest(), identity)


def _decode_link_of_chain(body: bytes, cert_type: CertType, key_types: set[CertifiedKeyType]) -> Ed25519Cert:
    """Check that the types inside agree with the one outside: else one certificate could pass for another."""
    cert = decode_ed25519_cert(body)
    if cert.cert_type != cert_type:
        raise ChannelError(
            f"the Ed25519 certificate sent as type {cert_type} says that it is of type {cert.cert_type}"
        )
    if cert.key_type not in key_types:
        raise ChannelError(
            f"the Ed25519 certificate of type {cert_type} certifies a key of type {cert.key_type}"
        )
    return cert


def _verify_rsa_identity_cert(der: bytes, now: float) -> RsaPublicKey:
    """Returns the key in the self-signed X.509 certificate, certificate type 2."""
    try:
        cert = RsaCertificate(der)
    except ValueError as exc:
        raise ChannelError("the RSA identity certificate cannot be read") from exc
    if cert.key is None or cert.key.bits != RSA_IDENTITY_KEY_BITS:
        raise ChannelError(f"the RSA identity certificate holds no {RSA_IDENTITY_KEY_BITS}-bit RSA key")
    _check_not_expired("the RSA identity certificate", cert.not_after, now)
    if now < cert.not_before:
        raise CertificateNotCurrent(
            "the RSA identity certificate is not valid yet", skew=now - cert.not_before, hint=_CLOCK_HINT
        )
    if not cert.is_self_signed():
        raise ChannelError("the RSA identity certificate is not signed by its own key")
    return cert.key


def _verify_rsa_crosscert(body: bytes, rsa_key: RsaPublicKey, identity: bytes, now: float) -> None:
    """cert-spec, "RSA->Ed25519 cross-certificate"."""
    reader = Reader(body, "the RSA cross-certificate", ChannelError)
    certified_key = reader.take(ED25519_KEY_LEN)
    expires = reader.take_int(4) * 3600
    signature = reader.take(reader.take_int(1))
    reader.finish()

    if not hmac.compare_digest(certified_key, identity):
        raise ChannelError("the RSA cross-certificate is for another Ed25519 identity")
    _check_not_expired("the RSA cross-certificate", expires, now)
    digest = hashlib.sha256(RSA_CROSSCERT_PREFIX + body[: ED25519_KEY_LEN + 4]).digest()
    # The digest stands bare in the padding, without the DigestInfo of PKCS #1.
    signed_digest = rsa_key.recover(signature)
    if signed_digest is None:
        raise ChannelError("the signature of the RSA cross-certificate is wrong")
    if not hmac.compare_digest(signed_digest, digest):
        raise ChannelError("the signature of the RSA cross-certificate is for something else")


def _check_not_expired(what: str, expires: float, now: float) -> None:
    if expires < now:
        skew = now - expires
        raise CertificateNotCurrent(f"{what} expired {int(skew)} s ago", skew=skew, hint=_CLOCK_HINT)
