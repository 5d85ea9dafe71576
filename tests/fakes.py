"""A scriptable Tor relay for tests: the server's side of the link, circuit and stream protocols.

Plain Python over hashlib and `cryptography`, written from the specifications and sharing nothing with
torkit but the command numbers, so that each side checks the other; CGO is the oracle's (reference.py).
Slow and obvious is right here.

    relay = FakeRelay()                       keys, certificates, and a handler for each thing that can arrive
    link = relay.link()                       one connection: the plaintext inside TLS
    link.receive(data) -> bytes               sans-IO: bytes from the client in, bytes for the client out
    async with serve_relay(relay) as (host, port): ...      the same over real TLS on loopback

A circuit is one `FakeCircuit` with all its hops in memory: EXTEND2 finds the next `FakeRelay` among those
that `make_chain` introduced to each other, and every hop keeps its own onion layer and windows. Hops count
from 1. Whatever arrives is answered by the handler of the relay it reached: `relay.on_begin`,
`relay.on_data`, ... whose default is the function `answer_begin`, `answer_data`, ... below. To misbehave,
replace one, or reach in and send something:

    relay.on_begin = ignore                                             never answers
    relay.on_begin = lambda stream: stream.end(4)                       refuses
    relay.on_sendme_due = lambda circuit, hop, tag: circuit.sendme(hop, bytes(20))      a wrong tag
    relay.edit_certs = lambda certs: certs[1:]                          a certificate short
    circuit.send(1, RelayCommand.DATA, stream.id, b"x")                 from the wrong hop
    circuit.send(3, RelayCommand.DROP, wrong_digest=True)               recognized by nobody
    link.push(cell[:100]); link.close()                                 ends in mid-cell

What a relay can do is what its `protocols` say: a whole relay (FULL) speaks ntor-v3, congestion control and
CGO with whoever asks, and WITHOUT_NTOR_V3, WITHOUT_CONGESTION_CONTROL, WITHOUT_CGO are older ones. It refuses
a handshake that asks for more. `relay.edit_extensions` answers one with something else.

What the *client* does wrong is answered as a relay would (DESTROY, closed link) and noted in
`relay.complaints`, which a test of an honest client asserts to be empty.
"""

import hashlib
import hmac
import ipaddress
import os
import ssl
import struct
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import reference
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from torkit._fast.cells import Command, RelayCommand

# Specification constants, stated here again on purpose: the fake is the second opinion.
CELL_BODY_LEN = 509  # tor-spec, "Cell Packet format"
RELAY_HEADER_LEN = 11  # tor-spec, "Relay cells"
RELAY_BODY_LEN = CELL_BODY_LEN - RELAY_HEADER_LEN
CIRCWINDOW_START, CIRCWINDOW_INCREMENT = 1000, 100  # tor-spec, "Circuit-level flow control"
STREAMWINDOW_START, STREAMWINDOW_INCREMENT = 500, 50  # tor-spec, "Stream-level flow control"
MAX_RELAY_EARLY = 8  # tor-spec, "Handling relay_early cells"
PADDING_LINK = 5  # the first link protocol with padding

NTOR, NTOR_V3 = 2, 3  # handshake types of CREATE2
CC_REQUEST, CC_RESPONSE, SUBPROTO_REQUEST = 1, 2, 3  # ntor-v3 extension types
RELAY_CRYPT_CGO = b"\x02\x06"  # a subprotocol request for Relay=6

PROTOCOL, CONNECTFAILED, OR_IDENTITY = 1, 6, 7  # reasons in DESTROY
DONE, EXITPOLICY, NOTDIRECTORY = 6, 4, 14  # reasons in END

SENDME_V1 = 1

# Relay-cell format v1, proposals 340 and 359: the commands that carry a stream id, and the others.
STREAM_COMMANDS = frozenset({1, 2, 3, 4, 11, 12, 13, 43, 44})
OTHER_COMMANDS = frozenset({5, 6, 7, 8, 9, 10, 14, 15})

# What a relay lists in its "pr" line.
FULL = "Cons=2 DirCache=2 FlowCtrl=1-2 Link=4-5 Microdesc=2 Relay=2-6"
WITHOUT_NTOR_V3 = "Cons=2 DirCache=2 FlowCtrl=1-2 Link=4-5 Microdesc=2 Relay=2-3"
WITHOUT_CONGESTION_CONTROL = "Cons=2 DirCache=2 FlowCtrl=1 Link=4-5 Microdesc=2 Relay=2-6"
WITHOUT_CGO = "Cons=2 DirCache=2 FlowCtrl=1-2 Link=4-5 Microdesc=2 Relay=2-4"


def ignore(*_: object) -> None:
    """The handler that does nothing: silence."""


class HandshakeRefusedError(Exception):
    """What the client sent in CREATE_FAST, CREATE2 or EXTEND2 is not a handshake with this relay."""


# --- Cells ---------------------------------------------------------------------------------------------


def encode_cell(circ_id: int, command: int, body: bytes = b"") -> bytes:
    """One cell of link protocol 4 or later; a fixed-length body is padded with zeros."""
    head = struct.pack(">IB", circ_id, command)
    if command == Command.VERSIONS or command >= 128:
        return head + struct.pack(">H", len(body)) + body
    return head + body.ljust(CELL_BODY_LEN, b"\0")


def encode_versions(versions: Iterable[int]) -> bytes:
    """The first cell of a link, with its 2-byte circuit id."""
    body = b"".join(struct.pack(">H", version) for version in versions)
    return struct.pack(">HBH", 0, Command.VERSIONS, len(body)) + body


@dataclass(frozen=True)
class RelayCell:
    """The decoded body of a RELAY or RELAY_EARLY cell that a hop recognized, and what fills it up."""

    command: int
    stream_id: int
    body: bytes
    early: bool = False
    padding: bytes = field(default=b"", compare=False, repr=False)


# --- Onion layers, the relay's half --------------------------------------------------------------------


def _aes_ctr(key: bytes) -> CipherContext:
    return Cipher(AES(key), CTR(bytes(16))).encryptor()


class Tor1Layer:
    """AES-128-CTR and running SHA-1 digests of one hop. tor-spec, "Routing relay cells", "Relay cells".

    CgoLayer has the same four methods. `command` is the cell's: RELAY or RELAY_EARLY.
    """

    KEY_MATERIAL_LEN = 72
    DATA_LEN_MAX = RELAY_BODY_LEN

    def __init__(self, key_material: bytes) -> None:
        """`key_material` is Df | Db | Kf | Kb: 20, 20, 16 and 16 bytes."""
        self._forward_digest = hashlib.sha1(key_material[0:20])
        self._backward_digest = hashlib.sha1(key_material[20:40])
        self._forward_cipher = _aes_ctr(key_material[40:56])
        self._backward_cipher = _aes_ctr(key_material[56:72])

    def open_forward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        """Take off this hop's layer: the bytes, and the SENDME tag if the cell is for this hop."""
        body = self._forward_cipher.update(body)
        if body[1:3] != b"\0\0":
            return body, None
        digest = self._forward_digest.copy()
        digest.update(body[:5] + bytes(4) + body[9:])
        if digest.digest()[:4] != body[5:9]:
            return body, None
        self._forward_digest = digest
        return body, digest.digest()

    def decode(self, body: bytes, *, early: bool) -> RelayCell:
        command, _, stream_id, _, length = struct.unpack_from(">BHHIH", body)
        if length > RELAY_BODY_LEN:
            raise ValueError(f"a relay cell announces {length} bytes")
        padding = body[RELAY_HEADER_LEN + length :]
        if any(padding[:4]):
            raise ValueError("the first four bytes of padding are not zero")
        return RelayCell(
            command, stream_id, body[RELAY_HEADER_LEN : RELAY_HEADER_LEN + length], early, padding
        )

    def originate(
        self,
        command: int,
        cell: RelayCell,
        *,
        recognized: int = 0,
        length: int | None = None,
        wrong_digest: bool = False,
    ) -> tuple[bytes, bytes]:
        """Encode and seal a cell of this hop's own: the body as it leaves the hop, and the SENDME tag."""
        length = len(cell.body) if length is None else length
        head = struct.pack(">BHHIH", cell.command, recognized, cell.stream_id, 0, length)
        body = _pad(head + cell.body)
        self._backward_digest.update(body)
        tag = self._backward_digest.digest()
        digest = bytes(byte ^ 0xFF for byte in tag[:4]) if wrong_digest else tag[:4]
        return self.encrypt_backward(command, body[:5] + digest + body[9:]), tag

    def encrypt_backward(self, command: int, body: bytes) -> bytes:
        """Add this hop's layer to a cell on its way to the client."""
        return self._backward_cipher.update(body)


class CgoLayer:
    """Counter Galois Onion and relay-cell format v1 of one hop. Proposals 359 and 340."""

    TAG_LEN = 16
    KEY_MATERIAL_LEN = 160
    DATA_LEN_MAX = CELL_BODY_LEN - 16 - 5

    def __init__(self, key_material: bytes) -> None:
        self._layer = reference.CgoLayer(key_material)

    def open_forward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        return self._layer.relay_forward(command, body)

    def decode(self, body: bytes, *, early: bool) -> RelayCell:
        command, length = struct.unpack_from(">BH", body, self.TAG_LEN)
        at, stream_id = self.TAG_LEN + 3, 0
        if command in STREAM_COMMANDS:
            stream_id = int.from_bytes(body[at : at + 2], "big")
            at += 2
            if stream_id == 0:
                raise ValueError(f"relay command {command} without a stream id")
        elif command not in OTHER_COMMANDS:
            raise ValueError(f"unknown relay command {command}")
        if at + length > CELL_BODY_LEN:
            raise ValueError(f"a relay cell announces {length} bytes")
        padding = body[at + length :]
        if any(padding[:4]):
            raise ValueError("the first four bytes of padding are not zero")
        return RelayCell(command, stream_id, body[at : at + length], early, padding)

    def originate(
        self,
        command: int,
        cell: RelayCell,
        *,
        recognized: int = 0,
        length: int | None = None,
        wrong_digest: bool = False,
    ) -> tuple[bytes, bytes]:
        """`wrong_digest` spoils the tag; `recognized` does not exist here."""
        if recognized:
            raise ValueError("format v1 has no field 'recognized'")
        length = len(cell.body) if length is None else length
        head = struct.pack(">BH", cell.command, length)
        if cell.command in STREAM_COMMANDS:
            head += struct.pack(">H", cell.stream_id)
        elif cell.stream_id:
            raise ValueError(f"in format v1, relay command {cell.command} has no stream id")
        body, tag = self._layer.relay_originate(command, _pad(bytes(self.TAG_LEN) + head + cell.body))
        return (bytes([body[0] ^ 0xFF]) + body[1:] if wrong_digest else body), tag

    def encrypt_backward(self, command: int, body: bytes) -> bytes:
        return self._layer.relay_backward(command, body)


def _pad(body: bytes) -> bytes:
    """Four zero bytes, then random ones. tor-spec, "Relay cells"."""
    room = CELL_BODY_LEN - len(body)
    return body + bytes(min(4, room)) + os.urandom(max(0, room - 4))


# --- Handshakes, the relay's half ----------------------------------------------------------------------


def _public_bytes(key: X25519PrivateKey | Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _exchange(secret: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # the point at infinity, or not 32 bytes
        raise HandshakeRefusedError("a degenerate curve25519 point") from error


def kdf_tor(secret: bytes, length: int) -> bytes:
    """tor-spec, "KDF-TOR"."""
    blocks = b"".join(hashlib.sha1(secret + bytes([i])).digest() for i in range(length // 20 + 1))
    return blocks[:length]


def kdf_rfc5869(key_seed: bytes, info: bytes, length: int) -> bytes:
    """tor-spec, "KDF-RFC5869"; `key_seed` has been extracted already."""
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(key_seed, block + info + bytes([counter]), "sha256")
        output += block
        counter += 1
    return output[:length]


def answer_handshake_fast(client_handshake: bytes) -> tuple[bytes, bytes]:
    """The body of CREATED_FAST and the key material. tor-spec, "CREATE_FAST/CREATED_FAST cells"."""
    y = os.urandom(20)
    keys = kdf_tor(client_handshake[:20] + y, 20 + Tor1Layer.KEY_MATERIAL_LEN)
    return y + keys[:20], keys[20:]


def answer_handshake_ntor(
    client_handshake: bytes, *, node_id: bytes, onion_key: X25519PrivateKey, ephemeral: X25519PrivateKey
) -> tuple[bytes, bytes]:
    """The reply and the key material. tor-spec, 'The "ntor" handshake'; `node_id` is the RSA identity."""
    if len(client_handshake) != 84:
        raise HandshakeRefusedError(f"an ntor handshake has 84 bytes, not {len(client_handshake)}")
    onion_public = _public_bytes(onion_key)
    if client_handshake[:20] != node_id or client_handshake[20:52] != onion_public:
        raise HandshakeRefusedError("ntor for another relay or another onion key")
    client_public = client_handshake[52:84]
    server_public = _public_bytes(ephemeral)

    protoid = b"ntor-curve25519-sha256-1"
    secret_input = _exchange(ephemeral, client_public) + _exchange(onion_key, client_public)
    secret_input += node_id + onion_public + client_public + server_public + protoid
    key_seed = hmac.digest(protoid + b":key_extract", secret_input, "sha256")
    verify = hmac.digest(protoid + b":verify", secret_input, "sha256")
    auth_input = verify + node_id + onion_public + server_public + client_public + protoid + b"Server"
    auth = hmac.digest(protoid + b":mac", auth_input, "sha256")
    keys = kdf_rfc5869(key_seed, protoid + b":key_expand", Tor1Layer.KEY_MATERIAL_LEN + 20)
    return server_public + auth, keys


def _encap(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


def answer_handshake_ntor_v3(
    client_handshake: bytes,
    *,
    node_id: bytes,
    onion_key: X25519PrivateKey,
    ephemeral: X25519PrivateKey,
    reply_to: Callable[[bytes], bytes],
    verification: bytes = b"circuit extend",
) -> tuple[bytes, Callable[[int], bytes]]:
    """The reply, and a function that gives the first n bytes of key material. Proposal 332.

    `node_id` is the Ed25519 identity; `reply_to` turns the client's message into the server's.
    """
    protoid = b"ntor3-curve25519-sha3_256-1"

    def sha3(tweak: bytes, data: bytes) -> bytes:
        return hashlib.sha3_256(_encap(protoid + tweak) + data).digest()

    def shake(tweak: bytes, data: bytes, length: int) -> bytes:
        return hashlib.shake_256(_encap(protoid + tweak) + data).digest(length)

    if len(client_handshake) < 128:
        raise HandshakeRefusedError(
            f"an ntor-v3 handshake has at least 128 bytes, not {len(client_handshake)}"
        )
    onion_public = _public_bytes(onion_key)
    client_id, key_id, client_public = (client_handshake[i : i + 32] for i in (0, 32, 64))
    encrypted, mac = client_handshake[96:-32], client_handshake[-32:]
    if client_id != node_id or key_id != onion_public:
        raise HandshakeRefusedError("ntor-v3 for another relay or another onion key")

    xb = _exchange(onion_key, client_public)
    phase1 = xb + node_id + client_public + onion_public + protoid + _encap(verification)
    keys = shake(b":kdf_phase1", phase1, 64)
    expected = sha3(b":msg_mac", _encap(keys[32:]) + node_id + onion_public + client_public + encrypted)
    if not hmac.compare_digest(mac, expected):
        raise HandshakeRefusedError("ntor-v3 with a wrong MAC")
    server_message = reply_to(_aes_ctr(keys[:32]).update(encrypted))

    server_public = _public_bytes(ephemeral)
    secret_input = _exchange(ephemeral, client_public) + xb + node_id + onion_public
    secret_input += client_public + server_public + protoid + _encap(verification)
    key_seed, verify = sha3(b":key_seed", secret_input), sha3(b":verify", secret_input)
    encrypted = _aes_ctr(shake(b":kdf_final", key_seed, 32)).update(server_message)
    auth_input = verify + node_id + onion_public + server_public + client_public + mac
    auth_input += _encap(encrypted) + protoid + b"Server"
    reply = server_public + sha3(b":auth_final", auth_input) + encrypted
    return reply, lambda length: shake(b":kdf_final", key_seed, 32 + length)[32:]


def encode_extensions(extensions: Iterable[tuple[int, bytes]]) -> bytes:
    """The message inside ntor-v3: a count, then type, length and body of each."""
    extensions = list(extensions)
    fields = (bytes([kind, len(body)]) + body for kind, body in extensions)
    return bytes([len(extensions)]) + b"".join(fields)


def decode_extensions(message: bytes) -> dict[int, bytes]:
    """Extensions by type; out of order, twice, or not filling the message is refused."""
    if not message:
        raise HandshakeRefusedError("an empty extension message")
    found: dict[int, bytes] = {}
    at = 1
    for _ in range(message[0]):
        if at + 2 > len(message) or at + 2 + message[at + 1] > len(message):
            raise HandshakeRefusedError("a truncated extension")
        kind, length = message[at], message[at + 1]
        if found and kind <= max(found):
            raise HandshakeRefusedError("extensions are not sorted and unique")
        found[kind] = message[at + 2 : at + 2 + length]
        at += 2 + length
    if at != len(message):
        raise HandshakeRefusedError("bytes after the last extension")
    return found


# --- Certificates --------------------------------------------------------------------------------------


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
    signer: Ed25519PrivateKey,
    expires: float,
    with_signer: bool = False,
) -> bytes:
    """cert-spec, "Ed25519 Certificates". `with_signer` bundles the signing key (extension 4)."""
    head = struct.pack(">BBIB", 1, cert_type, int(expires) // 3600, key_type) + certified
    extension = struct.pack(">HBB", 32, 4, 0) + _public_bytes(signer) if with_signer else b""
    signed = head + bytes([with_signer]) + extension
    return signed + signer.sign(signed)


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


# --- The relay -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """What the extensions of an ntor-v3 handshake settle: the reply's message, and what the hop will use."""

    reply: bytes
    congestion_control: bool = False
    cgo: bool = False


class FakeRelay:
    """The keys of one relay and its way to answer. Holds no connection itself: see `link`.

    `now` dates the certificates. Every `on_*` attribute is a handler and may be replaced.
    """

    def __init__(self, *, address: tuple[str, int] = ("127.0.0.1", 9001), now: float | None = None) -> None:
        self.address = address
        self.now = time.time() if now is None else now
        self.rsa_key = rsa.generate_private_key(65537, 1024)
        self.ed_key = Ed25519PrivateKey.generate()
        self.ed_signing_key = Ed25519PrivateKey.generate()
        self.onion_key = X25519PrivateKey.generate()
        self.tls_key = ec.generate_private_key(ec.SECP256R1())
        self.tls_certificate = make_x509(self.tls_key, name="www.fake.example", now=self.now)

        rsa_public = self.rsa_key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
        self.rsa_identity = hashlib.sha1(rsa_public).digest()
        self.ed_identity = _public_bytes(self.ed_key)
        self.ntor_onion_key = _public_bytes(self.onion_key)

        self.link_versions: tuple[int, ...] = (3, 4, 5)
        self.protocols = FULL
        self.cc_sendme_inc = 31  # DATA cells to a SENDME under congestion control
        self.cc_cwnd = 1000  # cells; the fake's congestion window never moves
        self.cc_xoff_client = 500  # cells of 488 bytes that a client must have had for each XOFF
        self.known: list[FakeRelay] = []  # the relays that EXTEND2 can reach from here
        self.hosts: dict[str, list[str]] = {}  # what RESOLVE answers

        self.links: list[FakeLink] = []
        self.circuits: list[FakeCircuit] = []  # every circuit with a hop here, closed ones too
        self.complaints: list[str] = []

        # For those who watch: called for each cell of our links, and each that a hop of their circuits
        # recognized.
        self.on_link_cell: Callable[[FakeLink, int, int, bytes], object] = ignore
        self.on_relay_cell: Callable[[FakeCircuit, int, RelayCell], object] = ignore

        # The answers. Typed loosely so that a test's lambda may return anything.
        self.edit_certs: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]] = lambda certs: certs
        self.edit_extensions: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]] = (
            lambda extensions: extensions
        )
        self.on_versions: Callable[[FakeLink], object] = answer_versions
        self.on_netinfo: Callable[[FakeLink, bytes], object] = ignore
        self.on_padding: Callable[[FakeLink], object] = ignore
        self.on_padding_negotiate: Callable[[FakeLink, int, int, int], object] = ignore
        self.on_create: Callable[[FakeCircuit, int, bytes], object] = answer_create
        self.on_destroy: Callable[[FakeCircuit, int], object] = ignore
        self.on_extend2: Callable[[FakeCircuit, int, RelayCell], object] = answer_extend2
        self.on_truncate: Callable[[FakeCircuit, int, RelayCell], object] = answer_truncate
        self.on_drop: Callable[[FakeCircuit, int, RelayCell], object] = ignore
        self.on_unknown: Callable[[FakeCircuit, int, RelayCell], object] = ignore
        self.on_sendme_due: Callable[[FakeCircuit, int, bytes], object] = answer_sendme_due
        self.on_begin: Callable[[FakeStream], object] = answer_begin
        self.on_begin_dir: Callable[[FakeStream], object] = answer_begin_dir
        self.on_data: Callable[[FakeStream, bytes], object] = ignore
        self.on_end: Callable[[FakeStream, bytes], object] = ignore
        self.on_stream_sendme_due: Callable[[FakeStream], object] = answer_stream_sendme_due
        self.on_resolve: Callable[[FakeCircuit, int, int, str], object] = answer_resolve
        self.directory: Callable[[bytes], bytes] | None = None  # a whole HTTP request to a whole answer

    def link(self) -> "FakeLink":
        """A new connection from a client, after TLS."""
        link = FakeLink(self)
        self.links.append(link)
        return link

    def make_certs(self) -> list[tuple[int, bytes]]:
        """The certificates of a CERTS cell, (type, bytes), before `edit_certs`. tor-spec, "CERTS cells"."""
        expires = self.now + 30 * 86400
        signing = _public_bytes(self.ed_signing_key)
        tls_digest = hashlib.sha256(self.tls_certificate).digest()
        return [
            (2, make_x509(self.rsa_key, name="www.identity.example", now=self.now)),
            (4, make_ed_certificate(4, 1, signing, signer=self.ed_key, expires=expires, with_signer=True)),
            (5, make_ed_certificate(5, 3, tls_digest, signer=self.ed_signing_key, expires=expires)),
            (7, make_rsa_crosscert(self.ed_identity, signer=self.rsa_key, expires=expires)),
        ]

    def supports(self, name: str, version: int) -> bool:
        """Whether `protocols` list a subprotocol's version. tor-spec, "Subprotocol versioning"."""
        ranges = dict(entry.split("=") for entry in self.protocols.split()).get(name, "")
        for low, _, high in (part.partition("-") for part in ranges.split(",") if part):
            if int(low) <= version <= int(high or low):
                return True
        return False

    def answer_extensions(self, message: bytes) -> "Agreement":
        """What comes of a client's ntor-v3 message. Proposal 324, "How to negotiate"; proposal 346."""
        wanted = decode_extensions(message)
        has_cc = CC_REQUEST in wanted and self.supports("FlowCtrl", 2)
        has_cgo = SUBPROTO_REQUEST in wanted
        if has_cgo and not (self.supports("Relay", 5) and self.supports("Relay", 6)):
            raise HandshakeRefusedError("asked for a subprotocol that this relay does not advertise")
        if has_cgo and wanted[SUBPROTO_REQUEST] != RELAY_CRYPT_CGO:
            raise HandshakeRefusedError("asked for a subprotocol that is not negotiated")
        if has_cgo and not has_cc:
            raise HandshakeRefusedError("CGO without congestion control")
        reply = [(CC_RESPONSE, bytes([self.cc_sendme_inc]))] if has_cc else []
        return Agreement(encode_extensions(self.edit_extensions(reply)), has_cc, has_cgo)

    def handshake(self, handshake_type: int, data: bytes) -> tuple[bytes, "FakeHop"]:
        """Answer a client's ntor or ntor-v3 handshake: the reply and the new hop."""
        ephemeral = X25519PrivateKey.generate()
        if handshake_type == NTOR:
            reply, keys = answer_handshake_ntor(
                data, node_id=self.rsa_identity, onion_key=self.onion_key, ephemeral=ephemeral
            )
            return reply, FakeHop(self, Tor1Layer(keys), NTOR)
        if handshake_type != NTOR_V3 or not self.supports("Relay", 4):
            raise HandshakeRefusedError(f"handshake type {handshake_type}")
        agreed: list[Agreement] = []
        messages: list[bytes] = []

        def reply_to(message: bytes) -> bytes:
            messages.append(message)
            agreed.append(self.answer_extensions(message))
            return agreed[0].reply

        reply, key_stream = answer_handshake_ntor_v3(
            data, node_id=self.ed_identity, onion_key=self.onion_key, ephemeral=ephemeral, reply_to=reply_to
        )
        kind = CgoLayer if agreed[0].cgo else Tor1Layer
        layer = kind(key_stream(kind.KEY_MATERIAL_LEN))
        hop = FakeHop(self, layer, NTOR_V3, messages[0])
        if agreed[0].congestion_control:
            hop.use_congestion_control()
        return reply, hop

    def ssl_context(self) -> ssl.SSLContext:
        """A server's context with this relay's TLS certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key = self.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with tempfile.TemporaryDirectory() as directory:  # load_cert_chain reads files only
            file = Path(directory, "chain.pem")
            file.write_bytes(key + ssl.DER_cert_to_PEM_cert(self.tls_certificate).encode())
            context.load_cert_chain(file)
        return context


def make_chain(count: int = 3, *, now: float | None = None) -> list[FakeRelay]:
    """Relays that all know each other, with addresses 127.0.0.1 to 127.0.0.`count`."""
    relays = [FakeRelay(address=(f"127.0.0.{i}", 9000 + i), now=now) for i in range(1, count + 1)]
    for relay in relays:
        relay.known = relays
    return relays


# --- Links ---------------------------------------------------------------------------------------------


class FakeLink:
    """One connection: framing, the link handshake, and the table of circuits."""

    def __init__(self, relay: FakeRelay) -> None:
        self.relay = relay
        self.version: int | None = None
        self.circuits: dict[int, FakeCircuit] = {}
        self.control_cells: list[tuple[int, int, bytes]] = []  # what arrived, but for RELAY and RELAY_EARLY
        self.closed = False
        self.abrupt = False
        self.on_output: Callable[[], object] = ignore  # called when there is something to write, or a close
        self._input = bytearray()
        self._output = bytearray()

    def receive(self, data: bytes) -> bytes:
        """Bytes from the client in any cut; what the relay says to that."""
        self._input += data
        while not self.closed and (cell := self._next_cell()) is not None:
            self._handle(*cell)
        return self.take()

    def take(self) -> bytes:
        """What waits to be sent, after a test had the relay speak unasked."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def push(self, data: bytes) -> None:
        """Queue bytes for the client as they are."""
        self._output += data
        self.on_output()

    def send_cell(self, circ_id: int, command: int, body: bytes = b"") -> None:
        self.push(encode_cell(circ_id, command, body))

    def close(self, *, abrupt: bool = False) -> None:
        """End the connection once the output is written; `abrupt` leaves out TLS's own goodbye."""
        self.closed = True
        self.abrupt = abrupt
        self.on_output()

    def complain(self, why: str) -> None:
        self.relay.complaints.append(why)
        self.close()

    def _next_cell(self) -> tuple[int, int, bytes] | None:
        circ_id_len = 2 if self.version is None else 4  # VERSIONS alone has short ids
        if len(self._input) < circ_id_len + 1:
            return None
        circ_id = int.from_bytes(self._input[:circ_id_len], "big")
        command = self._input[circ_id_len]
        start, length = circ_id_len + 1, CELL_BODY_LEN
        if command == Command.VERSIONS or command >= 128:
            if len(self._input) < start + 2:
                return None
            length = int.from_bytes(self._input[start : start + 2], "big")
            start += 2
        if len(self._input) < start + length:
            return None
        body = bytes(self._input[start : start + length])
        del self._input[: start + length]
        return circ_id, command, body

    def _handle(self, circ_id: int, command: int, body: bytes) -> None:
        self.relay.on_link_cell(self, circ_id, command, body)
        if command in (Command.RELAY, Command.RELAY_EARLY):
            if circ_id in self.circuits:  # a cell in flight to a closed circuit is dropped
                self.circuits[circ_id].receive(body, early=command == Command.RELAY_EARLY)
            return
        self.control_cells.append((circ_id, command, body))
        if self.version is None:
            self._handle_versions(command, body)
        elif command in (Command.CREATE_FAST, Command.CREATE2):
            self._handle_create(circ_id, command, body)
        elif command == Command.DESTROY and circ_id in self.circuits:
            circuit = self.circuits.pop(circ_id)
            circuit.closed = True
            for hop in circuit.hops:
                hop.relay.on_destroy(circuit, body[0])
        elif command == Command.NETINFO:
            if body[:4] != bytes(4):
                self.relay.complaints.append("a client's NETINFO carries a timestamp")
            self.relay.on_netinfo(self, body)
        elif command == Command.PADDING:
            self.relay.on_padding(self)
        elif command == Command.PADDING_NEGOTIATE:
            self._handle_padding_negotiate(circ_id, body)

    def _handle_padding_negotiate(self, circ_id: int, body: bytes) -> None:
        """Stop (1) or start (2), with the shortest and longest silence in ms. tor-spec, "Link padding"."""
        version, command, low, high = struct.unpack_from(">BBHH", body)
        if circ_id != 0 or version != 0 or command not in (1, 2) or any(body[6:]):
            self.complain("PADDING_NEGOTIATE as no relay understands it")
        elif (self.version or 0) < PADDING_LINK:
            self.complain("PADDING_NEGOTIATE on a link without padding")
        else:
            self.relay.on_padding_negotiate(self, command, low, high)

    def _handle_versions(self, command: int, body: bytes) -> None:
        if command != Command.VERSIONS or len(body) % 2:
            self.complain("the first cell is not a well-formed VERSIONS")
            return
        offered = set(struct.unpack(f">{len(body) // 2}H", body))
        self.version = max(offered & set(self.relay.link_versions), default=0)
        self.relay.on_versions(self)

    def _handle_create(self, circ_id: int, command: int, body: bytes) -> None:
        if not circ_id & 0x80000000 or circ_id in self.circuits:
            self.complain(f"circuit id {circ_id:#x} is not the initiator's or is in use")
            return
        circuit = FakeCircuit(self, circ_id)
        self.circuits[circ_id] = circuit
        self.relay.circuits.append(circuit)
        self.relay.on_create(circuit, command, body)


def answer_versions(link: FakeLink) -> None:
    """VERSIONS, CERTS, AUTH_CHALLENGE, NETINFO. tor-spec, "Negotiating and initializing connections"."""
    relay = link.relay
    link.push(encode_versions(relay.link_versions))
    link.send_cell(0, Command.CERTS, encode_certs(relay.edit_certs(relay.make_certs())))
    link.send_cell(0, Command.AUTH_CHALLENGE, os.urandom(32) + struct.pack(">HH", 1, 3))
    link.send_cell(0, Command.NETINFO, encode_netinfo(relay))


def encode_netinfo(relay: FakeRelay) -> bytes:
    """tor-spec, "NETINFO cells": the time, the client's address as seen, one address of our own."""
    ours = ipaddress.ip_address(relay.address[0]).packed
    client = b"\x04\x04" + ipaddress.ip_address("127.0.0.1").packed
    return struct.pack(">I", int(relay.now)) + client + b"\x01\x04\x04" + ours


# --- Circuits ------------------------------------------------------------------------------------------


@dataclass
class FakeHop:
    """One relay's end of a circuit: its layer and its circuit-level windows."""

    relay: FakeRelay
    layer: Tor1Layer | CgoLayer
    handshake_type: int | None = None  # None for CREATE_FAST
    client_message: bytes | None = None  # what an ntor-v3 handshake carried
    congestion_control: bool = False
    sendme_inc: int = CIRCWINDOW_INCREMENT  # DATA cells to a circuit-level SENDME
    data_sent: int = 0  # cells since the circuit began; so with the three below
    data_received: int = 0
    sendmes_sent: int = 0
    sendmes_received: int = 0
    expected_tags: deque[bytes] = field(default_factory=deque)

    def use_congestion_control(self) -> None:
        """From the first cell on, or not at all."""
        self.congestion_control = True
        self.sendme_inc = self.relay.cc_sendme_inc

    @property
    def package_window(self) -> int:
        start = self.relay.cc_cwnd if self.congestion_control else CIRCWINDOW_START
        return start - self.data_sent + self.sendme_inc * self.sendmes_received


class FakeCircuit:
    """One circuit of a link, with all its hops in memory. `hop` counts from 1 everywhere."""

    def __init__(self, link: FakeLink, circ_id: int) -> None:
        self.link = link
        self.circ_id = circ_id
        self.hops: list[FakeHop] = []
        self.streams: dict[int, FakeStream] = {}
        self.ended_streams: set[int] = set()
        self.control_cells: list[tuple[int, RelayCell]] = []  # (hop, cell) of what arrived, but for DATA
        self.early_cells_received = 0
        self.closed = False

    # Sending

    def send(
        self,
        hop: int,
        command: int,
        stream_id: int = 0,
        body: bytes = b"",
        *,
        early: bool = False,
        recognized: int = 0,
        length: int | None = None,
        wrong_digest: bool = False,
        flip_bit: int | None = None,
        hold: bool = False,
    ) -> bytes:
        """Send one relay cell from `hop`, through the layers of the hops before it; returns the cell.

        Oddities: `early` sends RELAY_EARLY; `recognized`, `length` lie in the header; `wrong_digest`
        spoils the digest field, or the tag; `flip_bit` flips that bit of the ciphertext; `hold` builds
        the cell but leaves the sending to the caller, who reorders or drops it with `link.push`.
        No window is looked at here: `FakeStream.write` does that.
        """
        origin = self.hops[hop - 1]
        cell = RelayCell(command, stream_id, body)
        cell_command = Command.RELAY_EARLY if early else Command.RELAY
        sealed, tag = origin.layer.originate(
            cell_command, cell, recognized=recognized, length=length, wrong_digest=wrong_digest
        )
        if command == RelayCommand.DATA:
            origin.data_sent += 1
            if origin.data_sent % origin.sendme_inc == 0:
                origin.expected_tags.append(tag)
        for outer in reversed(self.hops[: hop - 1]):
            sealed = outer.layer.encrypt_backward(cell_command, sealed)
        if flip_bit is not None:
            flipped = bytearray(sealed)
            flipped[flip_bit // 8] ^= 0x80 >> flip_bit % 8
            sealed = bytes(flipped)
        wire = encode_cell(self.circ_id, cell_command, sealed)
        if not hold:
            self.link.push(wire)
        return wire

    def sendme(self, hop: int, tag: bytes, *, version: int = SENDME_V1) -> None:
        """A circuit-level SENDME. tor-spec, "SENDME Cell Format"."""
        self.hops[hop - 1].sendmes_sent += 1
        self.send(hop, RelayCommand.SENDME, 0, struct.pack(">BH", version, len(tag)) + tag)

    def truncated(self, hop: int, reason: int = CONNECTFAILED) -> None:
        self.send(hop, RelayCommand.TRUNCATED, 0, bytes([reason]))

    def destroy(self, reason: int = PROTOCOL) -> None:
        self.closed = True
        self.link.circuits.pop(self.circ_id, None)
        self.link.send_cell(self.circ_id, Command.DESTROY, bytes([reason]))

    def complain(self, hop: int, why: str) -> None:
        """The client broke a rule at `hop`: note it and do as a relay does."""
        self.hops[hop - 1].relay.complaints.append(why)
        self.destroy(PROTOCOL)

    # Receiving

    def receive(self, body: bytes, *, early: bool) -> None:
        """The body of a RELAY or RELAY_EARLY cell from the client."""
        command = Command.RELAY_EARLY if early else Command.RELAY
        if early:
            self.early_cells_received += 1
            if self.early_cells_received > MAX_RELAY_EARLY:
                self.complain(1, "more than 8 RELAY_EARLY cells")
                return
        for number, hop in enumerate(self.hops, 1):
            body, tag = hop.layer.open_forward(command, body)
            if tag is not None:
                try:
                    cell = hop.layer.decode(body, early=early)
                except ValueError as error:
                    self.complain(number, str(error))
                else:
                    self._dispatch(number, cell, tag)
                return
        self.complain(len(self.hops), "a relay cell that no hop recognizes")

    def _dispatch(self, number: int, cell: RelayCell, tag: bytes) -> None:
        hop, relay = self.hops[number - 1], self.hops[number - 1].relay
        self.link.relay.on_relay_cell(self, number, cell)
        if cell.command == RelayCommand.DATA:
            self._receive_data(number, cell, tag)
            return
        self.control_cells.append((number, cell))
        if cell.command == RelayCommand.SENDME and cell.stream_id == 0:
            self._receive_sendme(number, hop, cell)
        elif cell.command == RelayCommand.EXTEND2:
            relay.on_extend2(self, number, cell)
        elif cell.command == RelayCommand.TRUNCATE:
            relay.on_truncate(self, number, cell)
        elif cell.command == RelayCommand.DROP:
            relay.on_drop(self, number, cell)
        elif cell.command in (RelayCommand.BEGIN, RelayCommand.BEGIN_DIR, RelayCommand.RESOLVE):
            self._receive_begin(number, cell)
        elif cell.command in (RelayCommand.END, RelayCommand.SENDME, RelayCommand.XON, RelayCommand.XOFF):
            self._receive_for_stream(number, cell)
        else:
            relay.on_unknown(self, number, cell)

    def _receive_data(self, number: int, cell: RelayCell, tag: bytes) -> None:
        hop = self.hops[number - 1]
        hop.data_received += 1
        window = CIRCWINDOW_START - hop.data_received + hop.sendme_inc * hop.sendmes_sent
        if not hop.congestion_control and window < 0:
            self.complain(number, "DATA beyond the circuit's window")
            return
        if hop.data_received % hop.sendme_inc == 0:
            hop.relay.on_sendme_due(self, number, tag)
        if self._stream_of(number, cell) is not None:
            self.streams[cell.stream_id].receive_data(cell.body)

    def _receive_sendme(self, number: int, hop: FakeHop, cell: RelayCell) -> None:
        if not hop.expected_tags:
            self.complain(number, "a SENDME without a cell that asks for one")
            return
        tag = hop.expected_tags.popleft()
        if cell.body != struct.pack(">BH", SENDME_V1, len(tag)) + tag:
            self.complain(number, "a SENDME with a wrong tag")
            return
        hop.sendmes_received += 1
        self.pump(number)

    def _receive_begin(self, number: int, cell: RelayCell) -> None:
        relay = self.hops[number - 1].relay
        if cell.stream_id == 0 or cell.stream_id in self.streams:
            self.complain(number, f"stream id {cell.stream_id} is zero or in use")
            return
        if cell.command == RelayCommand.RESOLVE:
            name, nul, rest = cell.body.partition(b"\0")
            if not nul or rest:
                self.complain(number, "RESOLVE is not one NUL-terminated name")
                return
            relay.on_resolve(self, number, cell.stream_id, name.decode("ascii"))
            return
        stream = FakeStream(self, number, cell.stream_id)
        if cell.command == RelayCommand.BEGIN:
            address, nul, flags = cell.body.partition(b"\0")
            host, _, port = address.decode("ascii").rpartition(":")
            if not nul or not host or not port.isdigit():
                self.complain(number, "BEGIN without ADDRESS:PORT and its NUL")
                return
            stream.target = (host, int(port))
            stream.flags = int.from_bytes(flags.ljust(4, b"\0"), "big")
        self.streams[stream.id] = stream
        self.ended_streams.discard(stream.id)
        if cell.command == RelayCommand.BEGIN:
            relay.on_begin(stream)
        else:
            relay.on_begin_dir(stream)

    def _receive_for_stream(self, number: int, cell: RelayCell) -> None:
        stream = self._stream_of(number, cell)
        if stream is None:
            return
        if cell.command == RelayCommand.END:
            stream.forget()
            stream.hop.relay.on_end(stream, cell.body)
        elif cell.command == RelayCommand.SENDME:
            stream.receive_sendme()
        else:
            stream.receive_xon_xoff(cell)

    def _stream_of(self, number: int, cell: RelayCell) -> "FakeStream | None":
        stream = self.streams.get(cell.stream_id)
        if stream is None:
            if cell.stream_id not in self.ended_streams:  # what crosses our END on the way is no fault
                self.complain(number, f"stream {cell.stream_id} was never begun")
        elif stream.hop_number != number:
            self.complain(number, f"stream {cell.stream_id} is not at hop {number}")
        else:
            return stream
        return None

    def pump(self, number: int) -> None:
        """Send what the streams of one hop have waiting, a cell each in turn, while windows last."""
        progress = True
        while progress:
            waiting = [stream for stream in self.streams.values() if stream.hop_number == number]
            progress = sum(stream.send_waiting_cell() for stream in waiting) > 0  # a turn for each


def answer_create(circuit: FakeCircuit, command: int, body: bytes) -> None:
    """CREATED_FAST or CREATED2; DESTROY where the handshake is not for this relay."""
    relay = circuit.link.relay
    try:
        if command == Command.CREATE_FAST:
            reply, keys = answer_handshake_fast(body)
            circuit.hops.append(FakeHop(relay, Tor1Layer(keys)))
            circuit.link.send_cell(circuit.circ_id, Command.CREATED_FAST, reply)
            return
        handshake_type, length = struct.unpack_from(">HH", body)
        reply, hop = relay.handshake(handshake_type, body[4 : 4 + length])
    except HandshakeRefusedError as error:
        relay.complaints.append(str(error))
        circuit.destroy(PROTOCOL)
        return
    circuit.hops.append(hop)
    circuit.link.send_cell(circuit.circ_id, Command.CREATED2, struct.pack(">H", len(reply)) + reply)


def decode_extend2(body: bytes) -> tuple[list[tuple[int, bytes]], int, bytes]:
    """Link specifiers, handshake type and data. tor-spec, "EXTEND and EXTENDED cells"."""
    specifiers, at = [], 1
    for _ in range(body[0]):
        kind, length = body[at], body[at + 1]
        specifiers.append((kind, body[at + 2 : at + 2 + length]))
        at += 2 + length
    handshake_type, length = struct.unpack_from(">HH", body, at)
    if len(body) != at + 4 + length:
        raise HandshakeRefusedError("EXTEND2 is longer or shorter than it says")
    return specifiers, handshake_type, body[at + 4 :]


def answer_extend2(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
    """Play the next hop in memory: EXTENDED2, or DESTROY as today's relays do."""
    relay = circuit.hops[number - 1].relay
    if not cell.early:
        circuit.complain(number, "EXTEND2 outside RELAY_EARLY")
        return
    if number != len(circuit.hops):
        circuit.complain(number, "EXTEND2 to a hop that is not the last")
        return
    try:
        specifiers, handshake_type, data = decode_extend2(cell.body)
    except (HandshakeRefusedError, IndexError, struct.error) as error:
        circuit.complain(number, f"EXTEND2: {error}")
        return
    named = dict(specifiers)
    target = next((r for r in relay.known if r.rsa_identity == named.get(2)), None)
    if target is None:
        circuit.destroy(CONNECTFAILED)
        return
    if named.get(3, target.ed_identity) != target.ed_identity:
        circuit.destroy(OR_IDENTITY)
        return
    try:
        reply, hop = target.handshake(handshake_type, data)
    except HandshakeRefusedError as error:
        target.complaints.append(str(error))
        circuit.destroy(PROTOCOL)
        return
    circuit.hops.append(hop)
    target.circuits.append(circuit)
    circuit.send(number, RelayCommand.EXTENDED2, 0, struct.pack(">H", len(reply)) + reply)


def answer_truncate(circuit: FakeCircuit, number: int, _: RelayCell) -> None:
    """Forget the hops behind this one and say so."""
    del circuit.hops[number:]
    circuit.truncated(number, 3)


def answer_sendme_due(circuit: FakeCircuit, number: int, tag: bytes) -> None:
    """Acknowledge another increment of DATA cells; `tag` is the digest at the last of them."""
    circuit.sendme(number, tag)


# --- Streams -------------------------------------------------------------------------------------------


class FakeStream:
    """One stream at one hop: the exit's or directory's end."""

    def __init__(self, circuit: FakeCircuit, hop_number: int, stream_id: int) -> None:
        self.circuit = circuit
        self.hop_number = hop_number
        self.id = stream_id
        self.target: tuple[str, int] | None = None  # None for BEGIN_DIR
        self.flags = 0
        self.received = bytearray()
        self.package_window = STREAMWINDOW_START  # cells; so the next
        self.deliver_window = STREAMWINDOW_START
        self.sending = True  # False after XOFF
        self.xoffs_received = 0
        self.rates: list[int] = []  # kbps_ewma of every XON
        self.bytes_sent = 0
        self._waiting = bytearray()
        self._end_reason: int | None = None

    @property
    def hop(self) -> FakeHop:
        return self.circuit.hops[self.hop_number - 1]

    def send(self, command: int, body: bytes = b"") -> bytes:
        """One relay cell on this stream, whatever the windows say."""
        return self.circuit.send(self.hop_number, command, self.id, body)

    def connected(self, address: str = "127.0.0.1", ttl: int = 60) -> None:
        packed = ipaddress.ip_address(address).packed
        body = packed if len(packed) == 4 else bytes(4) + b"\x06" + packed
        self.send(RelayCommand.CONNECTED, body + struct.pack(">I", ttl))

    def write(self, data: bytes) -> None:
        """Send data as the windows allow, the rest when SENDME or XON comes."""
        self._waiting += data
        self.circuit.pump(self.hop_number)

    def finish(self, reason: int = DONE) -> None:
        """END after everything written has gone."""
        self._end_reason = reason
        self.circuit.pump(self.hop_number)
        self._end_if_drained()

    def data(self, body: bytes) -> None:
        """One DATA cell, past any window."""
        self.package_window -= 1
        self.bytes_sent += len(body)
        self.send(RelayCommand.DATA, body)

    def xoff(self) -> None:
        """Ask the client to pause, whatever it has sent. Proposal 324, "Flow Control"."""
        self.send(RelayCommand.XOFF, b"\0")

    def xon(self, kbps_ewma: int = 0) -> None:
        """Ask it to go on, at this rate in 1000 bytes a second; 0 is no limit."""
        self.send(RelayCommand.XON, struct.pack(">BI", 0, kbps_ewma))

    def end(self, reason: int = DONE, more: bytes = b"") -> None:
        """END at once; `more` follows the reason."""
        self.forget()
        self.send(RelayCommand.END, bytes([reason]) + more)

    def forget(self) -> None:
        self.circuit.streams.pop(self.id, None)
        self.circuit.ended_streams.add(self.id)

    def send_waiting_cell(self) -> bool:
        """Send one DATA cell if there is one and both windows allow; whether it went."""
        stream_window = self.sending if self.hop.congestion_control else self.package_window > 0
        if not self._waiting or not stream_window or self.hop.package_window <= 0 or self.circuit.closed:
            return False
        body = bytes(self._waiting[: self.hop.layer.DATA_LEN_MAX])
        del self._waiting[: len(body)]
        self.data(body)
        self._end_if_drained()
        return True

    def _end_if_drained(self) -> None:
        if self._end_reason is not None and not self._waiting and self.id in self.circuit.streams:
            self.end(self._end_reason)

    def receive_data(self, body: bytes) -> None:
        self.received += body
        if not self.hop.congestion_control:
            self.deliver_window -= 1
            if self.deliver_window < 0:
                self.circuit.complain(self.hop_number, "DATA beyond the stream's window")
                return
            if self.deliver_window <= STREAMWINDOW_START - STREAMWINDOW_INCREMENT:
                self.hop.relay.on_stream_sendme_due(self)
        if self.target is None:
            self._answer_directory_request()
        else:
            self.hop.relay.on_data(self, body)

    def receive_sendme(self) -> None:
        if self.hop.congestion_control:
            self.circuit.complain(self.hop_number, "a stream SENDME under congestion control")
            return
        self.package_window += STREAMWINDOW_INCREMENT
        if self.package_window > STREAMWINDOW_START:
            self.circuit.complain(self.hop_number, "a stream SENDME too many")
            return
        self.circuit.pump(self.hop_number)

    def receive_xon_xoff(self, cell: RelayCell) -> None:
        if not self.hop.congestion_control or cell.body[:1] != b"\0":
            self.circuit.complain(self.hop_number, "XON or XOFF not agreed on, or not of version 0")
        elif cell.command == RelayCommand.XOFF:
            self.xoffs_received += 1
            if not self.sending:
                self.circuit.complain(self.hop_number, "XOFF in XOFF")
            elif (
                self.bytes_sent < self.xoffs_received * self.hop.relay.cc_xoff_client * CgoLayer.DATA_LEN_MAX
            ):
                self.circuit.complain(self.hop_number, "XOFF before the data that could have caused it")
            else:
                self.sending = False
        else:
            self.rates.append(int.from_bytes(cell.body[1:5], "big"))
            self.sending = True
            self.circuit.pump(self.hop_number)

    def _answer_directory_request(self) -> None:
        directory = self.hop.relay.directory
        head, blank, body = bytes(self.received).partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if directory is None or not blank or (lengths and len(body) < int(lengths[0].split(b":")[1])):
            return
        request = bytes(self.received)
        self.received.clear()
        self.write(directory(request))
        self.finish()


def answer_begin(stream: FakeStream) -> None:
    """CONNECTED, to wherever it was."""
    stream.connected()


def answer_begin_dir(stream: FakeStream) -> None:
    """CONNECTED where the relay has a directory, else END with NOTDIRECTORY."""
    if stream.hop.relay.directory is None:
        stream.end(NOTDIRECTORY)
    else:
        stream.send(RelayCommand.CONNECTED)


def answer_stream_sendme_due(stream: FakeStream) -> None:
    """Acknowledge 50 more cells of one stream."""
    stream.deliver_window += STREAMWINDOW_INCREMENT
    stream.send(RelayCommand.SENDME)


def answer_resolve(circuit: FakeCircuit, number: int, stream_id: int, name: str) -> None:
    """RESOLVED from `relay.hosts`. tor-spec, "Remote hostname lookup"."""
    answers = b""
    for value in circuit.hops[number - 1].relay.hosts.get(name, []):
        try:
            packed = ipaddress.ip_address(value).packed
            kind = 4 if len(packed) == 4 else 6
        except ValueError:
            kind, packed = 0, value.encode("ascii")
        answers += bytes([kind, len(packed)]) + packed + struct.pack(">I", 60)
    error = b"Error resolving hostname"
    answers = answers or b"\xf1" + bytes([len(error)]) + error + struct.pack(">I", 60)
    circuit.send(number, RelayCommand.RESOLVED, stream_id, answers)


def http_response(body: bytes, *, status: str = "200 OK") -> bytes:
    """What a directory's callable returns."""
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


# --- Over TLS ------------------------------------------------------------------------------------------


@asynccontextmanager
async def serve_relay(relay: FakeRelay) -> AsyncIterator[tuple[str, int]]:
    """Serve `relay` over TLS on a loopback port; yields (host, port). Ends all its links at exit.

    A handler that raises ends the block with that exception.
    """
    context = relay.ssl_context()

    async def serve(transport: trio.SocketStream) -> None:
        link = relay.link()
        output = trio.Event()

        def wake() -> None:
            output.set()

        link.on_output = wake
        stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)

        async def write() -> None:
            nonlocal output
            while True:
                await output.wait()
                output = trio.Event()
                while data := link.take():
                    await stream.send_all(data)
                if link.closed:
                    nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                while data := await stream.receive_some(65536):
                    link.push(link.receive(bytes(data)))
                nursery.cancel_scope.cancel()
            if not link.abrupt:
                await stream.aclose()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away, which is its right
        finally:
            link.closed = True
            await trio.aclose_forcefully(transport)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        host, port = listeners[0].socket.getsockname()
        yield host, port
        nursery.cancel_scope.cancel()
