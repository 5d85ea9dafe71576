"""The certificates of a CERTS cell."""

import hashlib
import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from torkit.testing.ed25519 import Signer


def make_x509(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, name: str, now: float) -> bytes:
    """A self-signed certificate, DER, from a day before `now` to a year after."""
    today = datetime.fromtimestamp(now, UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=365))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.DER)


def make_ed_certificate(
    cert_type: int,
    key_type: int,
    certified: bytes,
    *,
    signer: Signer,
    expires: float,
    names: bytes | None = None,
) -> bytes:
    """cert-spec, "Ed25519 Certificates". `names` is the signing key that it says, 32 bytes (extension 4)."""
    head = struct.pack(">BBIB", 1, cert_type, int(expires) // 3600, key_type) + certified
    extension = b"\0" if names is None else struct.pack(">BHBB", 1, 32, 4, 0) + names
    return head + extension + signer.sign(head + extension)


def make_rsa_crosscert(ed_identity: bytes, *, signer: rsa.RSAPrivateKey, expires: float) -> bytes:
    """cert-spec, "RSA->Ed25519 cross-certificate"."""
    signed = ed_identity + struct.pack(">I", int(expires) // 3600)
    digest = hashlib.sha256(b"Tor TLS RSA/Ed25519 cross-certificate" + signed).digest()
    signature = signer.sign(digest, PKCS1v15(), NoDigestInfo())
    return signed + bytes([len(signature)]) + signature


def encode_certs(certs: Iterable[tuple[int, bytes]]) -> bytes:
    """The body of a CERTS cell."""
    certs = list(certs)
    fields = (struct.pack(">BH", kind, len(der)) + der for kind, der in certs)
    return bytes([len(certs)]) + b"".join(fields)
