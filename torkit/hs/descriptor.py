"""A service's descriptor, which says how to meet it. Decodes and checks all three layers.

    outer       signed by the blinded key, readable by the directories that hold it
    first       opened with the address: says which clients may open the second
    second      opened with the address, perhaps also a client's key: has the introduction points

Signatures, MACs and certificates are checked before any value is used. A failed check is a DocumentError:
another directory may hold a better descriptor. rend-spec-v3, "Hidden service descriptors: encryption format".
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from torkit._fast.cells import Reader
from torkit._fast.keys import X25519PrivateKey, aes_256_ctr, ed25519_verify
from torkit.directory.netdoc import (
    Count,
    Item,
    Items,
    Place,
    Rule,
    check_text,
    decode_base64,
    decode_int,
    scan,
)
from torkit.errors import ChannelError, DocumentError, OnionServiceError, OnionStep
from torkit.hs.keys import KEY_LEN
from torkit.params import PARAMETERS
from torkit.proto.certs import CertifiedKeyType, Ed25519Cert, decode_ed25519_cert

# Specification constants.
MAX_LIFETIME = 720  # minutes
MAX_POINTS = 20  # introduction points that a client looks at
SIGNATURE_LEN = 64
SIGNATURE_PREFIX = b"Tor onion service descriptor sig v3"
SALT_LEN, IV_LEN, MAC_LEN = 16, 16, 32
COOKIE_LEN = 16  # of an authorised client
CLIENT_ID_LEN = 8
FIRST_LAYER = b"hsdir-superencrypted-data"
SECOND_LAYER = b"hsdir-encrypted-data"

# cert-spec, "List of certificate types".
CERT_SIGNING_KEY, CERT_AUTH_KEY, CERT_ENC_KEY = 8, 9, 11

_CERT = ("ED25519 CERT",)
_OUTER = {
    "hs-descriptor": Rule(Count.ONCE, args=1, no_extra=True, place=Place.START),
    "descriptor-lifetime": Rule(Count.ONCE, args=1, no_extra=True),
    "descriptor-signing-key-cert": Rule(Count.ONCE, no_extra=True, objects=_CERT),
    "revision-counter": Rule(Count.ONCE, args=1, no_extra=True),
    "superencrypted": Rule(Count.ONCE, no_extra=True, objects=("MESSAGE",)),
    "signature": Rule(Count.ONCE, args=1, no_extra=True, place=Place.END),
}
_FIRST = {
    "desc-auth-type": Rule(Count.ONCE, args=1, place=Place.START),
    "desc-auth-ephemeral-key": Rule(Count.ONCE, args=1),
    "auth-client": Rule(Count.ANY, args=3),
    "encrypted": Rule(Count.ONCE, objects=("MESSAGE",)),
}
_SECOND = {
    "create2-formats": Rule(Count.ONCE, args=1, place=Place.START),
    "intro-auth-required": Rule(Count.AT_MOST_ONCE, args=1),
    "single-onion-service": Rule(Count.AT_MOST_ONCE),
    "flow-control": Rule(Count.AT_MOST_ONCE, args=2),
    "pow-params": Rule(Count.ANY, args=1),
}
_POINT = {
    "introduction-point": Rule(Count.ONCE, args=1, place=Place.START),
    "onion-key": Rule(Count.AT_LEAST_ONCE, args=2),
    "auth-key": Rule(Count.ONCE, objects=_CERT),
    "enc-key": Rule(Count.AT_LEAST_ONCE, args=2),
    "enc-key-cert": Rule(Count.ONCE, objects=_CERT),
    "legacy-key": Rule(Count.AT_MOST_ONCE, objects=("RSA PUBLIC KEY",)),
    "legacy-key-cert": Rule(Count.AT_MOST_ONCE, objects=("CROSSCERT",)),
}
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", re.ASCII)
_FIELD = 2**255 - 19  # of Curve25519 and Ed25519


class IntroductionPoint(NamedTuple):
    """A relay that passes requests of clients on to the service.

    `link_specifiers` are (type, value) pairs, as the service gave them. The keys have 32 bytes each:
    `onion_key` is the relay's, for the circuit to it; `auth_key` names the service to the relay; the request
    is encrypted to `enc_key`.
    """

    link_specifiers: tuple[tuple[int, bytes], ...]
    onion_key: bytes
    auth_key: bytes
    enc_key: bytes


class ProofOfWork(NamedTuple):
    """The puzzle for clients of a service under load. `expires` is Unix time. Proposal 327, scheme v1."""

    seed: bytes
    effort: int
    expires: int


class Descriptor(NamedTuple):
    """A descriptor that passed every check. `lifetime` is in minutes.

    `sendme_inc` is the number of cells between acknowledgements if the service does congestion control, else
    None. The descriptor was opened with `blinded` and `subcredential`.
    """

    blinded: bytes
    subcredential: bytes
    revision: int
    lifetime: int
    signing_key: bytes
    is_single_onion: bool
    sendme_inc: int | None
    proof_of_work: ProofOfWork | None
    points: tuple[IntroductionPoint, ...]


def decode_descriptor(
    text: bytes,
    *,
    blinded: bytes,
    subcredential: bytes,
    now: float,
    sendme_inc: int,
    client_key: X25519PrivateKey | None = None,
    max_len: int = PARAMETERS["HSV3MaxDescriptorSize"].default,
) -> Descriptor:
    """Returns the descriptor of the service with this blinded key and subcredential, 32 bytes each.

    `sendme_inc` is the consensus's `cc_sendme_inc`: a service that differs by more than one is refused.
    Raises DocumentError, or OnionServiceError where the service wants a client key (NO_KEY, WRONG_KEY).
    """
    check_text(text, max_len, "an onion service's descriptor")
    outer = scan(text, _OUTER, what="the descriptor", max_object_len=max_len)
    _check_order(outer, _OUTER)
    outer.one("hs-descriptor").decode(_expect, "3", outer.one("hs-descriptor").args[0])
    lifetime = _number(outer.one("descriptor-lifetime"), 1, MAX_LIFETIME)
    revision = _number(outer.one("revision-counter"), 0, 2**64 - 1)
    signing_key = _check_outer_signature(text, outer, blinded, now)

    def open_layer(item: Item, constant: bytes, secret: bytes) -> bytes | None:
        keyed = secret + subcredential + revision.to_bytes(8, "big")
        return _decrypt(item.object, keyed, constant, item)

    item = outer.one("superencrypted")
    plaintext = open_layer(item, FIRST_LAYER, blinded)
    if plaintext is None:
        raise item.fail("the MAC of the first layer is wrong")
    first = _scan_layer(plaintext.partition(b"\0")[0], _FIRST, "the first layer", max_len)
    cookie = _client_cookie(first, subcredential, client_key)
    item = first.one("encrypted")
    plaintext = open_layer(item, SECOND_LAYER, blinded + (cookie or b""))
    if plaintext is None:
        raise _refused(client_key)
    found = _decode_second(plaintext, lifetime, revision, signing_key, now, sendme_inc)
    return found._replace(blinded=blinded, subcredential=subcredential)


def _check_outer_signature(text: bytes, outer: Items, blinded: bytes, now: float) -> bytes:
    """Check the chain from the blinded key to the text. Returns the descriptor signing key."""
    item = outer.one("descriptor-signing-key-cert")
    cert = _cert(item, CERT_SIGNING_KEY, signer=blinded, now=now)
    item = outer.one("signature")
    begins = text.rindex(b"\nsignature ") + 1
    if text.count(b"\n", begins) != 1:
        raise item.fail("something follows the signature")
    signature = item.decode(decode_base64, item.args[0], SIGNATURE_LEN)
    if not ed25519_verify(cert.certified_key, signature, SIGNATURE_PREFIX + text[:begins]):
        raise item.fail("the signature is wrong")
    return cert.certified_key


def _cert(item: Item, cert_type: int, *, signer: bytes, now: float) -> Ed25519Cert:
    """Returns the certificate of an item, which has to name `signer` and be signed by it.

    Raises DocumentError.
    """
    try:
        cert = decode_ed25519_cert(item.object)
        if cert.cert_type != cert_type or cert.key_type != CertifiedKeyType.ED25519:
            raise item.fail(f"a certificate of type {cert_type} for an Ed25519 key expected")
        if cert.signing_key is None:
            raise item.fail("the certificate does not name its signer")
        cert.verify(signer, now=now)
    except ChannelError as error:
        raise item.fail(str(error)) from error
    return cert


def _decrypt(blob: bytes, secret: bytes, constant: bytes, item: Item) -> bytes | None:
    """Returns the plaintext of one layer, None where its MAC is wrong. rend-spec-v3, "Encryption keys"."""
    if len(blob) <= SALT_LEN + MAC_LEN:
        raise item.fail(f"{len(blob)} bytes hold no encrypted layer")
    salt, encrypted, mac = blob[:SALT_LEN], blob[SALT_LEN:-MAC_LEN], blob[-MAC_LEN:]
    keys = hashlib.shake_256(secret + salt + constant).digest(KEY_LEN + IV_LEN + MAC_LEN)
    key, iv, mac_key = keys[:KEY_LEN], keys[KEY_LEN : KEY_LEN + IV_LEN], keys[KEY_LEN + IV_LEN :]
    lengths = (MAC_LEN.to_bytes(8, "big"), SALT_LEN.to_bytes(8, "big"))
    expected = hashlib.sha3_256(lengths[0] + mac_key + lengths[1] + salt + encrypted).digest()
    return aes_256_ctr(key, encrypted, iv) if hmac.compare_digest(mac, expected) else None


def _client_cookie(first: Items, subcredential: bytes, client_key: X25519PrivateKey | None) -> bytes | None:
    """Returns the cookie for our client key; None without a key, and where the service has none for it."""
    item = first.one("desc-auth-type")
    item.decode(_expect, "x25519", item.args[0])
    item = first.one("desc-auth-ephemeral-key")
    ephemeral = item.decode(decode_base64, item.args[0], KEY_LEN)
    if client_key is None:
        return None
    try:
        seed = client_key.exchange(ephemeral)
    except ValueError:
        raise item.fail("the key is of low order") from None
    keys = hashlib.shake_256(subcredential + seed).digest(CLIENT_ID_LEN + KEY_LEN)
    client_id, cookie_key = keys[:CLIENT_ID_LEN], keys[CLIENT_ID_LEN:]
    for item in first.all("auth-client"):
        if hmac.compare_digest(item.decode(decode_base64, item.args[0], CLIENT_ID_LEN), client_id):
            iv = item.decode(decode_base64, item.args[1], IV_LEN)
            return aes_256_ctr(cookie_key, item.decode(decode_base64, item.args[2], COOKIE_LEN), iv)
    return None


def _refused(client_key: X25519PrivateKey | None) -> OnionServiceError:
    """Returns the error for a second layer that stays closed.

    The service has signed the layers around it, so the client's key is at fault.
    """
    if client_key is None:
        return OnionServiceError.at(OnionStep.NO_KEY)
    return OnionServiceError.at(OnionStep.WRONG_KEY)


def _decode_second(
    plaintext: bytes, lifetime: int, revision: int, signing_key: bytes, now: float, sendme_inc: int
) -> Descriptor:
    header, *parts = re.split(rb"(?m)^(?=introduction-point )", plaintext, maxsplit=MAX_POINTS + 1)
    items = _scan_layer(header, _SECOND, "the second layer", len(plaintext))
    item = items.one("create2-formats")
    if "2" not in item.args:
        raise item.fail("the service does not take ntor")
    points = []
    for part in parts[:MAX_POINTS]:
        try:
            points.append(_decode_point(part, signing_key, now))
        except DocumentError:
            continue  # the other points are still good
    return Descriptor(
        blinded=b"",
        subcredential=b"",
        revision=revision,
        lifetime=lifetime,
        signing_key=signing_key,
        is_single_onion=items.maybe("single-onion-service") is not None,
        sendme_inc=_flow_control(items.maybe("flow-control"), sendme_inc),
        proof_of_work=_proof_of_work(items.all("pow-params")),
        points=tuple(points),
    )


def _flow_control(item: Item | None, expected: int) -> int | None:
    """Returns the service's SENDME increment, None where it does no congestion control. Proposal 324."""
    if item is None:
        return None
    first, _, last = item.args[0].partition("-")
    low = item.decode(decode_int, first, 0, 255)
    high = item.decode(decode_int, last, low, 255) if last else low
    increment = item.decode(decode_int, item.args[1], 1, 255)
    if abs(increment - expected) > 1:
        raise item.fail(f"acknowledgements every {increment} cells; the network's are every {expected}")
    return increment if low <= 2 <= high else None


def _proof_of_work(items: Sequence[Item]) -> ProofOfWork | None:
    """Returns the parameters of scheme v1, or None. Other schemes are passed over."""
    ours = [item for item in items if item.args[0] == "v1"]
    if not ours:
        return None
    item = ours[0]
    if len(ours) > 1 or len(item.args) < 4:
        raise item.fail("scheme v1 expected once, with seed, effort and time")
    if not _TIME.fullmatch(item.args[3]):
        raise item.fail("a time YYYY-MM-DDTHH:MM:SS expected")
    expires = item.decode(datetime.fromisoformat, item.args[3]).replace(tzinfo=UTC)
    seed = item.decode(decode_base64, item.args[1], KEY_LEN)
    return ProofOfWork(seed, item.decode(decode_int, item.args[2], 0, 2**32 - 1), int(expires.timestamp()))


def _decode_point(text: bytes, signing_key: bytes, now: float) -> IntroductionPoint:
    items = _scan_layer(text, _POINT, "an introduction point", len(text))
    onion_key = _ntor_key(items, "onion-key")
    enc_key = _ntor_key(items, "enc-key")
    auth_cert = _cert(items.one("auth-key"), CERT_AUTH_KEY, signer=signing_key, now=now)
    item = items.one("enc-key-cert")
    # The certified key is checked, too. (So does Arti; C tor checks the signer only.)
    if _cert(item, CERT_ENC_KEY, signer=signing_key, now=now).certified_key != edwards_form(enc_key):
        raise item.fail("the certificate is for another key")
    item = items.one("introduction-point")
    return IntroductionPoint(_link_specifiers(item), onion_key, auth_cert.certified_key, enc_key)


def _ntor_key(items: Items, keyword: str) -> bytes:
    for item in items.all(keyword):
        if item.args[0] == "ntor":
            key = item.decode(decode_base64, item.args[1], KEY_LEN)
            if not any(key):
                raise item.fail("the key is zero")
            return key
    raise items.all(keyword)[0].fail("no key for ntor")


def edwards_form(montgomery: bytes) -> bytes:
    """Returns the Ed25519 key, with sign bit 0, of an X25519 public key.

    cert-spec, "Ed25519 Certificates" (as proposal 228).
    """
    u = (int.from_bytes(montgomery, "little") & (1 << 255) - 1) % _FIELD
    y = (u - 1) * pow(u + 1, -1, _FIELD) % _FIELD if u + 1 != _FIELD else 0
    return y.to_bytes(KEY_LEN, "little")


def _link_specifiers(item: Item) -> tuple[tuple[int, bytes], ...]:
    encoded = item.args[0]
    raw = item.decode(decode_base64, encoded, 3 * len(encoded.rstrip("=")) // 4)
    reader = Reader(raw, "a list of link specifiers", DocumentError)
    specifiers = tuple(
        (reader.take_int(1), reader.take(reader.take_int(1))) for _ in range(reader.take_int(1))
    )
    reader.finish()
    return specifiers


def _scan_layer(text: bytes, rules: dict[str, Rule], what: str, max_len: int) -> Items:
    if not text.endswith(b"\n"):
        text += b"\n"  # C tor's layers end without one
    check_text(text, max_len + 1, what)
    return scan(text, rules, what=what, max_object_len=max_len)


def _check_order(items: Items, rules: dict[str, Rule]) -> None:
    """Check that the items stand in the order of `rules`. Raises DocumentError."""
    in_order = [items.one(keyword) for keyword in rules]
    for before, item in pairwise(in_order):
        if item.line < before.line:
            raise item.fail(f"it stands before {before.keyword}")


def _number(item: Item, low: int, high: int) -> int:
    return item.decode(decode_int, item.args[0], low, high)


def _expect(wanted: str, seen: str) -> None:
    if seen != wanted:
        raise ValueError(f"{wanted} expected, {seen[:40]!r} seen")
