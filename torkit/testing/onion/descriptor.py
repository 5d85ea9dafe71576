"""A service's descriptor, written and read: three layers. rend-spec-v3, "Hidden service descriptors"."""

import hashlib
import os
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from torkit.testing.ed25519 import ExpandedKey, edwards_of
from torkit.testing.encoding import armor, bare64
from torkit.testing.onion.handshake import decode_link_specifiers, encode_link_specifiers
from torkit.testing.onion.keys import TimePeriod, blind, subcredential
from torkit.testing.relay import make_ed_certificate
from torkit.testing.relay.layers import aes_ctr

HOUR = 3600  # seconds
CERT_HOURS = 54  # until certificates expire
SIGNING_CERT, AUTH_CERT, ENC_CERT = 8, 9, 11  # cert-spec, "List of certificate types"
FIRST, SECOND = b"hsdir-superencrypted-data", b"hsdir-encrypted-data"
SIGNED = b"Tor onion service descriptor sig v3"


class IntroductionPoint(NamedTuple):
    """An introduction point as a descriptor names it.

    `link_specifiers` are (type, value) pairs. The keys have 32 bytes: `onion_key` is the relay's for ntor,
    `auth_key` names the service to the relay, and introductions are encrypted to `enc_key`.
    """

    link_specifiers: tuple[tuple[int, bytes], ...]
    onion_key: bytes
    auth_key: bytes
    enc_key: bytes


@dataclass
class OnionDescriptor:
    """What a client reads. `lifetime` is in minutes, `pow_params` the rest of the line, if there is one."""

    blinded: bytes
    subcredential: bytes
    revision: int
    lifetime: int
    sendme_inc: int | None  # None where the service does no congestion control
    pow_params: str | None
    points: list[IntroductionPoint]


class DescriptorMaker:
    """Makes the descriptors of one service in one period. Each method takes what a test wants to be wrong.

    `blinded` is the secret key of the period; `subcredential` is the one that clients compute, 32 bytes;
    certificates expire CERT_HOURS after `now`. The descriptor signing key and the salt, 16 bytes, are by
    default new ones.
    """

    def __init__(
        self,
        blinded: ExpandedKey,
        subcredential: bytes,
        *,
        now: float | None = None,
        signing: Ed25519PrivateKey | None = None,
        salt: bytes | None = None,
    ) -> None:
        self.secret = blinded
        self.blinded = blinded.public
        self.subcredential = subcredential
        self.now = time.time() if now is None else now
        self._signing = signing or Ed25519PrivateKey.generate()
        self._salt = salt or os.urandom(16)
        self.signing_key = self._signing.public_key().public_bytes_raw()

    def descriptor(self, second: bytes | str, revision: int = 1) -> bytes:
        """The whole descriptor around the second layer's text, which `second` makes."""
        return self.outer(self.first(second, revision), revision)

    def second(
        self,
        points: Sequence[IntroductionPoint],
        *,
        sendme_inc: int | None = None,
        work: tuple[bytes, int, int] | None = None,
    ) -> str:
        """The second layer's text. `work` is the seed, the effort, and when that ends. Proposals 324, 327."""
        text = "create2-formats 2\n"
        if sendme_inc is not None:
            text += f"flow-control 1-2 {sendme_inc}\n"
        if work is not None:
            until = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(work[2]))
            text += f"pow-params v1 {bare64(work[0])} {work[1]} {until}\n"
        return text + "".join(map(self.point, points))

    def point(self, point: IntroductionPoint, /, **changes: str) -> str:
        """One introduction point; `changes` replace whole items, "" leaves one out."""
        encoded = b64encode(encode_link_specifiers(point.link_specifiers)).decode()
        items = {
            "introduction_point": f"introduction-point {encoded}\n",
            "onion_key": f"onion-key ntor {b64encode(point.onion_key).decode()}\n",
            "auth_key": f"auth-key\n{self.cert(AUTH_CERT, point.auth_key)}",
            "enc_key": f"enc-key ntor {b64encode(point.enc_key).decode()}\n",
            "enc_key_cert": f"enc-key-cert\n{self.cert(ENC_CERT, edwards_of(point.enc_key))}",
        }
        return "".join((items | changes).values())

    def first(self, second: bytes | str, revision: int = 1, *, clients: Sequence[bytes] = ()) -> str:
        """The first layer's text around the second's, which only `clients` can read, by their X25519 keys."""
        ephemeral, cookie = X25519PrivateKey.generate(), os.urandom(16) if clients else b""
        lines = [self._client_line(ephemeral, client, cookie) for client in clients]
        lines += [_auth_client(*map(os.urandom, (8, 16, 16))) for _ in range(-len(lines) % 16 or 16)]
        plaintext = second.encode() if isinstance(second, str) else second
        blob = self.layer(plaintext, SECOND, revision, cookie)
        return (
            f"desc-auth-type x25519\n"
            f"desc-auth-ephemeral-key {b64encode(ephemeral.public_key().public_bytes_raw()).decode()}\n"
            f"{''.join(lines)}encrypted\n{armor('MESSAGE', blob)}"
        )

    def outer(self, first: str | bytes, revision: int = 1, /, *, tail: str = "", **changes: str) -> bytes:
        """The whole descriptor around the first layer's text, signed after `changes` of its items."""
        plaintext = first.encode() if isinstance(first, str) else first
        blob = self.layer(plaintext.ljust(-(-len(plaintext) // 10_000) * 10_000, b"\0"), FIRST, revision)
        cert = self.cert(SIGNING_CERT, self.signing_key, by_blinded=True)
        items = {
            "version": "hs-descriptor 3\n",
            "lifetime": "descriptor-lifetime 180\n",
            "cert": f"descriptor-signing-key-cert\n{cert}",
            "revision": f"revision-counter {revision}\n",
            "superencrypted": f"superencrypted\n{armor('MESSAGE', blob)}",
        }
        return self.signed("".join((items | changes).values()).encode()) + tail.encode()

    def signed(self, text: bytes) -> bytes:
        """The outer layer's text with its last item."""
        return text + f"signature {bare64(self._signing.sign(SIGNED + text))}\n".encode()

    def cert(
        self,
        cert_type: int,
        certified: bytes,
        *,
        by_blinded: bool = False,
        signer: bytes | None = None,
        expires: float | None = None,
        key_type: int = 1,
        names_signer: bool = True,
    ) -> str:
        """A certificate object, by the descriptor signing key or the blinded one. It names `signer`."""
        own = self.blinded if by_blinded else self.signing_key
        body = make_ed_certificate(
            cert_type,
            key_type,
            certified,
            signer=self.secret if by_blinded else self._signing,
            expires=self.now + CERT_HOURS * HOUR if expires is None else expires,
            names=(signer or own) if names_signer else None,
        )
        return armor("ED25519 CERT", body)

    def layer(self, plaintext: bytes, constant: bytes, revision: int, cookie: bytes = b"") -> bytes:
        """One layer with salt and MAC. rend-spec-v3, "Encryption keys"."""
        secret = self.blinded + cookie + self.subcredential + revision.to_bytes(8, "big")
        keys = _layer_keys(secret, self._salt, constant)
        encrypted = aes_ctr(keys[:32], keys[32:48]).update(plaintext)
        return self._salt + encrypted + _layer_mac(keys[48:], self._salt, encrypted)

    def _client_line(self, ephemeral: X25519PrivateKey, client: bytes, cookie: bytes) -> str:
        """rend-spec-v3, "Client behavior"."""
        seed = ephemeral.exchange(X25519PublicKey.from_public_bytes(client))
        keys, iv = hashlib.shake_256(self.subcredential + seed).digest(40), os.urandom(16)
        return _auth_client(keys[:8], iv, aes_ctr(keys[8:], iv).update(cookie))


def _auth_client(*fields: bytes) -> str:
    return f"auth-client {' '.join(map(bare64, fields))}\n"


def _layer_keys(secret: bytes, salt: bytes, constant: bytes) -> bytes:
    """A key and an initial vector of AES-256, and a key of the MAC: 32, 16 and 32 bytes."""
    return hashlib.shake_256(secret + salt + constant).digest(80)


def _layer_mac(key: bytes, salt: bytes, encrypted: bytes) -> bytes:
    tagged = len(key).to_bytes(8, "big") + key + len(salt).to_bytes(8, "big") + salt + encrypted
    return hashlib.sha3_256(tagged).digest()


# Reading. Only what has to hold is looked at: no directory or client of ours trusts these.


class Outer(NamedTuple):
    """What a directory sees of a descriptor: the blinded key, and the rest."""

    blinded: bytes
    revision: int
    lifetime: int
    superencrypted: bytes


def read_outer(text: bytes) -> Outer:
    """The outer layer, whose signatures hold. Raises ValueError."""
    begins = text.rfind(b"\nsignature ") + 1
    cert = _object(text, b"descriptor-signing-key-cert")
    if len(cert) != 140 or cert[:2] != b"\1\x08" or cert[6:7] != b"\1" or cert[39:44] != b"\1\0\x20\4\0":
        raise ValueError("the descriptor signing key has no certificate that names its signer")
    blinded = cert[44:76]
    try:
        Ed25519PublicKey.from_public_bytes(blinded).verify(cert[76:], cert[:76])
        signature = _decode64(text[begins:].split()[1])
        Ed25519PublicKey.from_public_bytes(cert[7:39]).verify(signature, SIGNED + text[:begins])
    except (InvalidSignature, IndexError) as error:
        raise ValueError("a signature of the descriptor is wrong") from error
    revision, lifetime = (int(_line(text, name)) for name in (b"revision-counter", b"descriptor-lifetime"))
    return Outer(blinded, revision, lifetime, _object(text, b"superencrypted"))


def read_descriptor(
    text: bytes, identity: bytes, period: TimePeriod, *, client_key: X25519PrivateKey | None = None
) -> OnionDescriptor:
    """What a client with the address reads, and perhaps a key of its own. Raises ValueError.

    `identity` is the service's key, 32 bytes.
    """
    outer = read_outer(text)
    credential = subcredential(identity, outer.blinded)
    if blind(identity, period) != outer.blinded:
        raise ValueError("a descriptor of another service or period")

    def open_layer(blob: bytes, constant: bytes, cookie: bytes = b"") -> bytes:
        salt, encrypted, tag = blob[:16], blob[16:-32], blob[-32:]
        secret = outer.blinded + cookie + credential + outer.revision.to_bytes(8, "big")
        keys = _layer_keys(secret, salt, constant)
        if _layer_mac(keys[48:], salt, encrypted) != tag:
            raise ValueError("the MAC of a layer is wrong: is a client's key missing?")
        return aes_ctr(keys[:32], keys[32:48]).update(encrypted)

    first = open_layer(outer.superencrypted, FIRST).rstrip(b"\0")
    cookie = _read_cookie(first, credential, client_key) if client_key else b""
    second = open_layer(_object(first, b"encrypted"), SECOND, cookie)
    flow_control = _line(second, b"flow-control", b"").split()
    work = _line(second, b"pow-params", b"").decode()
    return OnionDescriptor(
        outer.blinded,
        credential,
        outer.revision,
        outer.lifetime,
        sendme_inc=int(flow_control[1]) if flow_control else None,
        pow_params=work or None,
        points=[_read_point(part) for part in re.split(rb"(?m)^(?=introduction-point )", second)[1:]],
    )


def _read_cookie(first: bytes, credential: bytes, client_key: X25519PrivateKey) -> bytes:
    ephemeral = _decode64(_line(first, b"desc-auth-ephemeral-key"))
    seed = client_key.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    keys = hashlib.shake_256(credential + seed).digest(40)
    for line in re.findall(rb"(?m)^auth-client (.*)$", first):
        client_id, iv, cookie = map(_decode64, line.split())
        if client_id == keys[:8]:
            return aes_ctr(keys[8:], iv).update(cookie)
    raise ValueError("the service does not know this client")


def _read_point(text: bytes) -> IntroductionPoint:
    specifiers, rest = decode_link_specifiers(_decode64(_line(text, b"introduction-point")))
    if rest:
        raise ValueError("bytes after the last link specifier")
    return IntroductionPoint(
        specifiers,
        onion_key=_decode64(_line(text, b"onion-key ntor")),
        auth_key=_object(text, b"auth-key")[7:39],
        enc_key=_decode64(_line(text, b"enc-key ntor")),
    )


def _line(text: bytes, keyword: bytes, default: bytes | None = None) -> bytes:
    found = re.search(rb"(?m)^%s (.*)$" % keyword, text)
    if found is None and default is None:
        raise ValueError(f"no line {keyword.decode()!r}")
    return found[1] if found else default or b""


def _object(text: bytes, keyword: bytes) -> bytes:
    found = re.search(rb"(?m)^%s\n-----BEGIN [A-Z0-9 ]+-----\n([^-]*)-----END" % keyword, text)
    if found is None:
        raise ValueError(f"no item {keyword.decode()!r} with its object")
    return _decode64(found[1].replace(b"\n", b""))


def _decode64(text: bytes) -> bytes:
    return b64decode(text.rstrip(b"=") + b"=" * (-len(text.rstrip(b"=")) % 4), validate=True)
