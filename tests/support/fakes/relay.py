"""The keys of one relay and its way to answer."""

import hashlib
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from .cells import (
    CC_REQUEST,
    CC_RESPONSE,
    FULL,
    NTOR,
    NTOR_V3,
    RELAY_CRYPT_CGO,
    SUBPROTO_REQUEST,
    HandshakeRefusedError,
    RelayCell,
    ignore,
)
from .certificates import make_ed_certificate, make_rsa_crosscert, make_x509
from .circuit import FakeCircuit, FakeHop, answer_create, answer_extend2, answer_sendme_due, answer_truncate
from .handshakes import (
    answer_handshake_ntor,
    answer_handshake_ntor_v3,
    decode_extensions,
    encode_extensions,
    public_bytes,
)
from .layers import CgoLayer, Tor1Layer
from .link import FakeLink, answer_versions
from .stream import FakeStream, answer_begin, answer_begin_dir, answer_resolve, answer_stream_sendme_due


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
        self.ed_identity = public_bytes(self.ed_key)
        self.ntor_onion_key = public_bytes(self.onion_key)

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

        # For those who watch: called for what each read from a socket brings, for each cell of our links, and
        # each that a hop of their circuits recognized.
        self.on_wire: Callable[[FakeLink, bytes], object] = ignore
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
        signing = public_bytes(self.ed_signing_key)
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
            layer_keys, kh = keys[: Tor1Layer.KEY_MATERIAL_LEN], keys[Tor1Layer.KEY_MATERIAL_LEN :]
            return reply, FakeHop(self, Tor1Layer(layer_keys), NTOR, kh=kh)
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
