"""Server descriptors: what a relay says of itself, signed with every key it speaks of.

Clients live on the consensus and microdescriptors; this is for whoever wants to know all of one relay.
dir-spec, "Server descriptor format".
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field

from torkit._fast.keys import RsaPublicKey, ed25519_verify
from torkit.directory.authorities import check_signature, decode_key
from torkit.directory.exit_policy import ExitPolicy, decode_rule
from torkit.directory.microdesc import KEY_LEN, REJECT_ALL, PortPolicy, decode_family, decode_policy
from torkit.directory.netdoc import (
    DIGEST256_LEN,
    Count,
    Item,
    Items,
    Place,
    Protocols,
    Rule,
    check_text,
    decode_base64,
    decode_fingerprint,
    decode_int,
    decode_ipv4,
    decode_ipv6_addr_port,
    decode_nickname,
    decode_protocols,
    decode_time,
    scan,
    without_annotations,
)
from torkit.errors import ChannelError, DocumentError
from torkit.proto.certs import ED25519_SIGNATURE_LEN, CertType, Ed25519Cert, decode_ed25519_cert

# Specification constants.

RELAY_KEY_BITS = 1024
SIGNATURE_PREFIX = b"Tor router descriptor signature v1"
CERT_TYPE_NTOR_V_IDENTITY = 0x0A  # cert-spec, "List of certificate types"
CERT_TYPE_FAMILY_V_IDENTITY = 0x0C
CURVE25519_PRIME = 2**255 - 19

# Implementation limits.

MAX_SERVER_DESCRIPTOR_LEN = 1 << 16  # bytes; authorities take 20,000
MAX_SERVER_DESCRIPTORS_LEN = 64 << 20  # bytes in one concatenation; 10,000 of today take about 35 million
MAX_FAMILY_CERTS = 32  # each costs a signature check; authorities keep far fewer

RULES = {
    "router": Rule(Count.ONCE, args=5, place=Place.START),
    "identity-ed25519": Rule(Count.ONCE, no_extra=True, objects=("ED25519 CERT",)),
    "master-key-ed25519": Rule(Count.ONCE, args=1),
    "bandwidth": Rule(Count.ONCE, args=3),
    "platform": Rule(Count.AT_MOST_ONCE),
    "published": Rule(Count.ONCE, args=2),
    "fingerprint": Rule(Count.AT_MOST_ONCE, args=1),
    "hibernating": Rule(Count.AT_MOST_ONCE, args=1),
    "uptime": Rule(Count.AT_MOST_ONCE, args=1),
    # Optional, but only both together: C tor 0.4.9 leaves them out where the network says so.
    "onion-key": Rule(Count.AT_MOST_ONCE, no_extra=True, objects=("RSA PUBLIC KEY",)),
    "onion-key-crosscert": Rule(Count.AT_MOST_ONCE, no_extra=True, objects=("CROSSCERT",)),
    "ntor-onion-key": Rule(Count.ONCE, args=1),
    "ntor-onion-key-crosscert": Rule(Count.ONCE, args=1, no_extra=True, objects=("ED25519 CERT",)),
    "signing-key": Rule(Count.ONCE, no_extra=True, objects=("RSA PUBLIC KEY",)),
    "accept": Rule(Count.ANY, args=1),
    "reject": Rule(Count.ANY, args=1),
    "ipv6-policy": Rule(Count.AT_MOST_ONCE, args=2),
    "overload-general": Rule(Count.AT_MOST_ONCE, args=3),
    "contact": Rule(Count.AT_MOST_ONCE),
    "family": Rule(Count.AT_MOST_ONCE),
    "family-cert": Rule(Count.ANY, objects=("FAMILY CERT",)),
    "extra-info-digest": Rule(Count.AT_MOST_ONCE, args=1),
    "hidden-service-dir": Rule(Count.AT_MOST_ONCE),
    "or-address": Rule(Count.ANY, args=1),
    "tunnelled-dir-server": Rule(Count.AT_MOST_ONCE),
    "proto": Rule(Count.ONCE),
    "router-sig-ed25519": Rule(Count.ONCE, args=1),
    "router-signature": Rule(Count.ONCE, no_extra=True, objects=("SIGNATURE",), place=Place.END),
}

_START = re.compile(rb"^router ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ServerDescriptor:
    """A descriptor whose signatures all hold.

    `identity` is 20 bytes, SHA-1 of the RSA identity key; the other keys are 32 bytes. `digest` is the SHA-1
    by which an ns consensus names it, 20 bytes; those of its extra-info are 20 and 32 bytes. Bandwidths
    are bytes per second. `family` and `family_ids` as in a microdescriptor, the ids proven by certificates.
    Times are seconds since the epoch; `expires` is when the first of its certificates does.
    """

    nickname: str
    identity: bytes
    ed25519_identity: bytes
    digest: bytes
    address: str
    or_port: int
    dir_port: int
    ipv6: tuple[str, int] | None
    published: int
    expires: int
    platform: str | None
    contact: str | None
    uptime: int | None
    is_hibernating: bool
    is_overloaded: bool
    bandwidth_average: int
    bandwidth_burst: int
    bandwidth_observed: int
    ntor_onion_key: bytes
    protocols: Protocols
    policy: ExitPolicy
    policy6: PortPolicy
    family: frozenset[str]
    family_ids: frozenset[str]
    is_tunnelled_dir_server: bool
    extra_info_digest: bytes | None
    extra_info_digest256: bytes | None
    identity_key: RsaPublicKey = field(repr=False)
    text: bytes = field(repr=False)


def split_server_descriptors(text: bytes) -> Iterator[bytes]:
    """Each descriptor of a concatenation, without annotations; contents are not looked at.

    Raises DocumentError.
    """
    return split_documents(text, _START, "server descriptors")


def split_documents(text: bytes, start: re.Pattern[bytes], what: str) -> Iterator[bytes]:
    """Each document that begins where a line matches `start`, as does `text`, without annotations.

    Raises DocumentError.
    """
    check_text(text, MAX_SERVER_DESCRIPTORS_LEN, what)
    text = without_annotations(text)
    at = None
    for match in start.finditer(text):
        if at is None and match.start() != 0:
            break
        if at is not None:
            yield text[at : _end_of(text, at, match.start())]
        at = match.start()
    if at is None:
        raise DocumentError(f"{what} must start with the first line of one", line=1)
    yield text[at:]


def _end_of(text: bytes, start: int, end: int) -> int:
    """Returns where a document ends that begins at `start`: before the annotations of the next, at `end`."""
    while (line := text.rfind(b"\n", start, end - 1) + 1) and text.startswith(b"@", line):
        end = line
    return end


def parse_server_descriptor(text: bytes) -> ServerDescriptor:
    """Read one server descriptor and check each of its signatures and certificates.

    Lines before it that begin with @ are passed over. Not checked here: expiry, and whether anybody asked
    for this relay. Raises DocumentError.
    """
    text = without_annotations(text)
    check_text(text, MAX_SERVER_DESCRIPTOR_LEN, "server descriptor")
    items = scan(text, RULES, what="server descriptor")
    router, published, bandwidth = items.one("router"), items.one("published"), items.one("bandwidth")
    nickname, address, or_port, _, dir_port = router.args[:5]
    identity_key, identity = decode_relay_key(items.one("signing-key"))
    signing_cert = check_ed25519_signature(items, text, "router")
    ed25519_identity = signing_cert.signing_key or b""
    ntor = items.one("ntor-onion-key")
    ntor_onion_key = ntor.decode(decode_base64, ntor.args[0], KEY_LEN)
    digest = check_rsa_signature(items, text, identity_key)
    _check_identities(items, identity, ed25519_identity)
    _check_onion_key_crosscert(items, identity + ed25519_identity)
    ntor_cert = _check_ntor_crosscert(items, ntor_onion_key, ed25519_identity)
    families = _check_family_certs(items, ed25519_identity)

    def text_of(keyword: str) -> str | None:
        item = items.maybe(keyword)
        return " ".join(item.args) if item else None

    uptime, hibernating = items.maybe("uptime"), items.maybe("hibernating")
    policy6, family = items.maybe("ipv6-policy"), items.maybe("family")
    protocols = items.one("proto")
    extra_info = items.maybe("extra-info-digest")
    ipv6 = (decode_ipv6_addr_port(item.args[0]) for item in items.all("or-address"))
    average, burst, observed = (bandwidth.decode(decode_int, arg, 0, 2**31 - 1) for arg in bandwidth.args[:3])
    return ServerDescriptor(
        nickname=router.decode(decode_nickname, nickname),
        identity=identity,
        ed25519_identity=ed25519_identity,
        digest=digest,
        address=router.decode(decode_ipv4, address),
        or_port=router.decode(decode_int, or_port, 1, 65535),
        dir_port=router.decode(decode_int, dir_port, 0, 65535),
        ipv6=next((one for one in ipv6 if one), None),
        published=published.decode(decode_time, *published.args[:2]),
        expires=min(cert.expires for cert in (signing_cert, ntor_cert, *families)),
        platform=text_of("platform"),
        contact=text_of("contact"),
        uptime=uptime.decode(decode_int, uptime.args[0], 0, 2**31 - 1) if uptime else None,
        is_hibernating=bool(hibernating and hibernating.decode(decode_int, hibernating.args[0], 0, 1)),
        is_overloaded=items.maybe("overload-general") is not None,
        bandwidth_average=average,
        bandwidth_burst=burst,
        bandwidth_observed=observed,
        ntor_onion_key=ntor_onion_key,
        protocols=protocols.decode(decode_protocols, " ".join(protocols.args)),
        policy=_decode_policy(items),
        policy6=policy6.decode(decode_policy, " ".join(policy6.args)) if policy6 else REJECT_ALL,
        family=decode_family(" ".join(family.args)) if family else frozenset(),
        family_ids=frozenset(f"ed25519:{encode_key(cert.signing_key or b'')}" for cert in families),
        is_tunnelled_dir_server=items.maybe("tunnelled-dir-server") is not None,
        extra_info_digest=extra_info.decode(decode_fingerprint, extra_info.args[0]) if extra_info else None,
        extra_info_digest256=(
            extra_info.decode(decode_base64, extra_info.args[1], DIGEST256_LEN)
            if extra_info and len(extra_info.args) > 1
            else None
        ),
        identity_key=identity_key,
        text=text,
    )


# The signatures, as extra-info documents have them too.


def decode_relay_key(item: Item) -> tuple[RsaPublicKey, bytes]:
    """Returns a relay's RSA key and its SHA-1. Raises DocumentError."""
    key, digest = decode_key(item)
    if key.bits != RELAY_KEY_BITS:
        raise item.fail(f"a key of {key.bits} bits; {RELAY_KEY_BITS} expected")
    return key, digest


def check_ed25519_signature(items: Items, text: bytes, first: str) -> Ed25519Cert:
    """Check identity-ed25519 and router-sig-ed25519, and that each stands in its place.

    Returns the certificate of the signing key, whose `signing_key` is the relay's identity.
    """
    start, certificate = items.one(first), items.one("identity-ed25519")
    signature, end = items.one("router-sig-ed25519"), items.one("router-signature")
    if certificate.line != start.line + 1:
        raise certificate.fail(f"must stand right after {first}")
    if end.line != signature.line + 1:
        raise signature.fail("must stand right before router-signature")
    cert = _decode_cert(certificate, CertType.IDENTITY_V_SIGNING)
    if cert.signing_key is None:
        raise certificate.fail("does not name the identity that signed it")
    _verify_cert(certificate, cert, cert.signing_key)
    signed_end = text.find(b"\nrouter-sig-ed25519 ") + len(b"\nrouter-sig-ed25519 ")
    digest = hashlib.sha256(SIGNATURE_PREFIX + text[:signed_end]).digest()
    raw = signature.decode(decode_base64, signature.args[0], ED25519_SIGNATURE_LEN)
    if not ed25519_verify(cert.certified_key, raw, digest):
        raise signature.fail("not a signature by the signing key")
    return cert


def check_rsa_signature(items: Items, text: bytes, identity_key: RsaPublicKey) -> bytes:
    """Check router-signature, and return the SHA-1 that it is over: the document's digest."""
    signature = items.one("router-signature")
    digest = hashlib.sha1(text[: signature.end]).digest()
    if not check_signature(identity_key, signature.object, digest):
        raise signature.fail("not a signature by the identity key")
    return digest


def encode_key(key: bytes) -> str:
    """Base64 without its equals sign, as documents spell keys of 32 bytes."""
    return b64encode(key).decode("ascii").rstrip("=")


def _check_identities(items: Items, identity: bytes, ed25519_identity: bytes) -> None:
    """The identities said twice must be said alike."""
    master = items.one("master-key-ed25519")
    if master.decode(decode_base64, master.args[0], KEY_LEN) != ed25519_identity:
        raise master.fail("not the identity in identity-ed25519")
    fingerprint = items.maybe("fingerprint")
    if fingerprint and fingerprint.decode(decode_fingerprint, "".join(fingerprint.args)) != identity:
        raise fingerprint.fail("not the SHA-1 of signing-key")


def _check_onion_key_crosscert(items: Items, identities: bytes) -> None:
    onion_key, crosscert = items.maybe("onion-key"), items.maybe("onion-key-crosscert")
    if onion_key is None and crosscert is None:
        return
    if onion_key is None or crosscert is None:
        raise (onion_key or crosscert or items.one("router")).fail("one of key and cross-certificate lacks")
    key, _ = decode_relay_key(onion_key)
    signed = key.recover(crosscert.object)
    if signed is None or not signed.startswith(identities):  # "MUST allow additional data"
        raise crosscert.fail("not the identities, signed by the onion key")


def _check_ntor_crosscert(items: Items, ntor_onion_key: bytes, ed25519_identity: bytes) -> Ed25519Cert:
    item = items.one("ntor-onion-key-crosscert")
    sign = item.decode(decode_int, item.args[0], 0, 1)
    cert = _decode_cert(item, CERT_TYPE_NTOR_V_IDENTITY)
    if cert.certified_key != ed25519_identity:
        raise item.fail("certifies another identity")
    _verify_cert(item, cert, item.decode(ed25519_from_curve25519, ntor_onion_key, sign))
    return cert


def _check_family_certs(items: Items, ed25519_identity: bytes) -> list[Ed25519Cert]:
    """Check the family certificates, each signed by its family's key. Proposal 321, "Happy families"."""
    found = items.all("family-cert")
    if len(found) > MAX_FAMILY_CERTS:
        raise found[MAX_FAMILY_CERTS].fail(f"more than {MAX_FAMILY_CERTS}")
    certs = []
    for item in found:
        cert = _decode_cert(item, CERT_TYPE_FAMILY_V_IDENTITY)
        if cert.signing_key is None or cert.certified_key != ed25519_identity:
            raise item.fail("names no family, or certifies another identity")
        _verify_cert(item, cert, cert.signing_key)
        certs.append(cert)
    return certs


def ed25519_from_curve25519(key: bytes, sign: int) -> bytes:
    """Returns the Ed25519 key of a Curve25519 key, 32 bytes each; `sign` is the x-coordinate's.

    Raises ValueError.

    dir-spec, "Converting a curve25519 public key to an ed25519 public key".
    """
    u = int.from_bytes(key, "little") & (2**255 - 1)
    # pow raises ValueError for u = -1, which stands for no point.
    y = (u - 1) * pow(u + 1, -1, CURVE25519_PRIME) % CURVE25519_PRIME
    return (y | sign << 255).to_bytes(32, "little")


def _decode_cert(item: Item, cert_type: int) -> Ed25519Cert:
    try:
        cert = decode_ed25519_cert(item.object)
    except ChannelError as error:
        raise item.fail(str(error)) from None
    if cert.cert_type != cert_type:
        raise item.fail(f"a certificate of type {cert.cert_type}; {cert_type} expected")
    return cert


def _verify_cert(item: Item, cert: Ed25519Cert, signing_key: bytes) -> None:
    try:
        cert.verify(signing_key, now=0)  # the user of the descriptor checks the time
    except ChannelError as error:
        raise item.fail(str(error)) from None


def _decode_policy(items: Items) -> ExitPolicy:
    """`accept` and `reject` lines in the order in which they stand."""
    lines = sorted(items.all("accept") + items.all("reject"), key=lambda item: item.line)
    if not lines:
        raise items.one("router").fail("a descriptor without exit policy")
    return ExitPolicy(item.decode(decode_rule, item.keyword, item.args[0]) for item in lines)
