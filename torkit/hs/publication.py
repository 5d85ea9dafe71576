"""Encodes and signs a service's descriptor: the three layers that hs/descriptor.py reads.

Randomness comes from the caller. rend-spec-v3, "Hidden service descriptors: encryption format". (Order and
spelling of the items as C tor.)
"""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import NamedTuple

from torkit._fast.keys import X25519PrivateKey, aes_256_ctr, wipe
from torkit.hs.descriptor import (
    CERT_AUTH_KEY,
    CERT_ENC_KEY,
    CERT_SIGNING_KEY,
    CLIENT_ID_LEN,
    COOKIE_LEN,
    FIRST_LAYER,
    IV_LEN,
    MAC_LEN,
    SALT_LEN,
    SECOND_LAYER,
    SIGNATURE_PREFIX,
    IntroductionPoint,
    ProofOfWork,
    edwards_form,
)
from torkit.hs.keys import KEY_LEN, SecretKey
from torkit.proto.certs import CERT_VERSION, EXTENSION_SIGNED_WITH_ED25519_KEY, CertifiedKeyType

# Specification constants.
LIFETIME = 180  # minutes that directories keep a descriptor
FIRST_LAYER_MULTIPLE = 10_000  # bytes: the plaintext is padded to a multiple
CLIENTS_MULTIPLE = 16  # lines for clients are padded to a multiple with lines for nobody
FLOW_CONTROL_VERSIONS = "1-2"

CERT_HOURS = 54  # until certificates expire (as C tor)

_LINE_LEN = 64  # characters of armoured lines


class Publication(NamedTuple):
    """The content of a descriptor. `sendme_inc` is None where the service does no congestion control.
    `clients` are the X25519 keys of the clients that it serves, 32 bytes each; empty serves everybody."""

    points: Sequence[IntroductionPoint]
    sendme_inc: int | None
    proof_of_work: ProofOfWork | None = None
    clients: Sequence[bytes] = ()


def encode_descriptor(
    publication: Publication,
    *,
    blinded: SecretKey,
    subcredential: bytes,
    signing: SecretKey,
    revision: int,
    now: float,
    randomness: Callable[[int], bytes],
    rng: Random,
) -> bytes:
    """Returns the whole descriptor, for directories. `signing` is the descriptor signing key.

    `randomness(n)` returns n random bytes that nobody may guess; `rng` shuffles.
    """

    def seal(plaintext: bytes, constant: bytes, secret: bytes) -> bytes:
        keyed = secret + subcredential + revision.to_bytes(8, "big")
        return encrypt_layer(plaintext, keyed, constant, randomness(SALT_LEN))

    cookie = randomness(COOKIE_LEN) if publication.clients else b""
    second = encode_second_layer(publication, signing, now)
    blob = seal(second, SECOND_LAYER, blinded.public + cookie)
    first = _encode_first_layer(blob, publication.clients, cookie, subcredential, randomness, rng)
    padded = first.ljust(-(-len(first) // FIRST_LAYER_MULTIPLE) * FIRST_LAYER_MULTIPLE, b"\0")
    expires = -int(-now // 3600) + CERT_HOURS
    text = b"".join(
        (
            b"hs-descriptor 3\n",
            b"descriptor-lifetime %d\n" % LIFETIME,
            b"descriptor-signing-key-cert\n",
            _cert(CERT_SIGNING_KEY, signing.public, blinded, expires),
            b"\nrevision-counter %d\n" % revision,
            b"superencrypted\n",
            _armour("MESSAGE", seal(padded, FIRST_LAYER, blinded.public)),
            b"\n",
        )
    )
    return text + b"signature " + _unpadded(signing.sign(SIGNATURE_PREFIX + text)) + b"\n"


def encode_second_layer(publication: Publication, signing: SecretKey, now: float) -> bytes:
    """Returns the plaintext of the layer that only clients read."""
    lines = [b"create2-formats 2"]
    if publication.sendme_inc is not None:
        lines.append(f"flow-control {FLOW_CONTROL_VERSIONS} {publication.sendme_inc}".encode())
    work = publication.proof_of_work
    if work is not None:
        until = datetime.fromtimestamp(work.expires, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        lines.append(b"pow-params v1 " + b64encode(work.seed) + f" {work.effort} {until}".encode())
    expires = int(now // 3600) + CERT_HOURS
    for point in publication.points:
        lines += [
            b"introduction-point " + b64encode(_link_specifiers(point)),
            b"onion-key ntor " + b64encode(point.onion_key),
            b"auth-key",
            _cert(CERT_AUTH_KEY, point.auth_key, signing, expires),
            b"enc-key ntor " + b64encode(point.enc_key),
            b"enc-key-cert",
            _cert(CERT_ENC_KEY, edwards_form(point.enc_key), signing, expires),
        ]
    return b"\n".join((*lines, b""))


def encrypt_layer(plaintext: bytes, secret: bytes, constant: bytes, salt: bytes) -> bytes:
    """Returns one layer with its salt and MAC. The keys are made of `secret`, `salt` and `constant`.

    rend-spec-v3, "Encryption keys".
    """
    keys = hashlib.shake_256(secret + salt + constant).digest(KEY_LEN + IV_LEN + MAC_LEN)
    key, iv, mac_key = keys[:KEY_LEN], keys[KEY_LEN : KEY_LEN + IV_LEN], keys[KEY_LEN + IV_LEN :]
    encrypted = aes_256_ctr(key, plaintext, iv)
    lengths = (MAC_LEN.to_bytes(8, "big"), SALT_LEN.to_bytes(8, "big"))
    mac = hashlib.sha3_256(lengths[0] + mac_key + lengths[1] + salt + encrypted).digest()
    for secret_part in (keys, key, mac_key):
        wipe(secret_part)
    return salt + encrypted + mac


def _encode_first_layer(
    second: bytes,
    clients: Sequence[bytes],
    cookie: bytes,
    subcredential: bytes,
    randomness: Callable[[int], bytes],
    rng: Random,
) -> bytes:
    """Returns the first layer, which has the cookie of the second for each client, and the second.

    Lines for nobody hide how many clients there are.
    """
    secret = randomness(KEY_LEN)
    ephemeral = X25519PrivateKey(secret)
    wipe(secret)
    lines = [_client_line(ephemeral, client, cookie, subcredential, randomness(IV_LEN)) for client in clients]
    while not lines or len(lines) % CLIENTS_MULTIPLE:
        lines.append(_auth_client(randomness(CLIENT_ID_LEN), randomness(IV_LEN), randomness(COOKIE_LEN)))
    rng.shuffle(lines)
    return b"\n".join(
        (
            b"desc-auth-type x25519",
            b"desc-auth-ephemeral-key " + b64encode(ephemeral.public_key),
            *lines,
            b"encrypted",
            _armour("MESSAGE", second),
        )
    )


def _client_line(
    ephemeral: X25519PrivateKey, client: bytes, cookie: bytes, subcredential: bytes, iv: bytes
) -> bytes:
    """Returns the line with the cookie for one client, whose key is no point of small order.

    rend-spec-v3, "Client behavior".
    """
    seed = ephemeral.exchange(client)
    keys = hashlib.shake_256(subcredential + seed).digest(CLIENT_ID_LEN + KEY_LEN)
    client_id, cookie_key = keys[:CLIENT_ID_LEN], keys[CLIENT_ID_LEN:]
    line = _auth_client(client_id, iv, aes_256_ctr(cookie_key, cookie, iv))
    for secret in (seed, keys, cookie_key):
        wipe(secret)
    return line


def _auth_client(*fields: bytes) -> bytes:
    return b" ".join((b"auth-client", *map(_unpadded, fields)))


def _cert(cert_type: int, certified: bytes, signer: SecretKey, expires: int) -> bytes:
    """Returns an armoured certificate that names its signer; `expires` is in hours since 1970. cert-spec."""
    body = b"".join(
        (
            bytes([CERT_VERSION, cert_type]),
            expires.to_bytes(4, "big"),
            bytes([CertifiedKeyType.ED25519]),
            certified,
            bytes([1]),  # extensions
            KEY_LEN.to_bytes(2, "big"),
            bytes([EXTENSION_SIGNED_WITH_ED25519_KEY, 0]),
            signer.public,
        )
    )
    return _armour("ED25519 CERT", body + signer.sign(body))


def _link_specifiers(point: IntroductionPoint) -> bytes:
    specifiers = [bytes([kind, len(value)]) + value for kind, value in point.link_specifiers]
    return bytes([len(specifiers)]) + b"".join(specifiers)


def _armour(label: str, body: bytes) -> bytes:
    text = b64encode(body)
    lines = [text[at : at + _LINE_LEN] for at in range(0, len(text), _LINE_LEN)]
    return b"\n".join((f"-----BEGIN {label}-----".encode(), *lines, f"-----END {label}-----".encode()))


def _unpadded(data: bytes) -> bytes:
    return b64encode(data).rstrip(b"=")
