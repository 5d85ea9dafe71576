"""One relay's keys, how it was told to behave, and what it has seen: all that its links and circuits need."""

import hashlib
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from torkit._fast.cells import Command, RelayCommand
from torkit.testing.relay.cells import FULL
from torkit.testing.relay.certificates import make_ed_certificate, make_rsa_crosscert, make_x509
from torkit.testing.relay.faults import Fault
from torkit.testing.relay.handshakes import public_bytes


class RelayState:
    """The part of a FakeRelay that is below its links and circuits. `now` dates the certificates."""

    # The handlers, whose defaults FakeRelay has.
    on_wire: Callable[..., object]
    on_link_cell: Callable[..., object]
    on_relay_cell: Callable[..., object]
    on_sent: Callable[..., object]
    edit_certs: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]]
    on_versions: Callable[..., object]
    on_netinfo: Callable[..., object]
    on_padding: Callable[..., object]
    on_padding_negotiate: Callable[..., object]
    on_create: Callable[..., object]
    on_destroy: Callable[..., object]
    on_extend2: Callable[..., object]
    on_truncate: Callable[..., object]
    on_drop: Callable[..., object]
    on_unknown: Callable[..., object]
    on_sendme_due: Callable[..., object]
    on_begin: Callable[..., object]
    on_begin_dir: Callable[..., object]
    on_data: Callable[..., object]
    on_end: Callable[..., object]
    on_stream_sendme_due: Callable[..., object]
    on_resolve: Callable[..., object]
    directory: Callable[[bytes], bytes] | None = None  # a whole HTTP request to a whole answer

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
        self.hosts: dict[str, list[str]] = {}  # what RESOLVE answers

        self.circuits: list[Any] = []  # every FakeCircuit with a hop here, closed ones too
        self.faults: list[Fault] = []
        self.complaints: list[str] = []

    def sending(
        self,
        step: Command | RelayCommand | None = None,
        *,
        nth: int | None = 1,
        byte: int | None = None,
        circuit: Any = None,
    ) -> Fault:
        """A step at which something goes wrong with what this relay says. See faults.py."""
        return self._fault(True, step, nth, byte, circuit)

    def receiving(
        self,
        step: Command | RelayCommand | None = None,
        *,
        nth: int | None = 1,
        byte: int | None = None,
        circuit: Any = None,
    ) -> Fault:
        """The same with what arrives at this relay."""
        return self._fault(False, step, nth, byte, circuit)

    def answering(self, path: str = "/tor/", *, nth: int | None = 1, circuit: Any = None) -> Fault:
        """The same with what it answers as a directory, to requests whose path begins like this."""
        return self._fault(True, path, nth, None, circuit)

    def _fault(
        self,
        is_sent: bool,
        step: Command | RelayCommand | str | None,
        nth: int | None,
        byte: int | None,
        circuit: object,
    ) -> Fault:
        fault = Fault(is_sent=is_sent, step=step, nth=nth, byte=byte, circuit=circuit)
        self.faults.append(fault)
        return fault

    def make_certs(self) -> list[tuple[int, bytes]]:
        """The certificates of a CERTS cell, (type, bytes), before `edit_certs`. tor-spec, "CERTS cells"."""
        expires = self.now + 30 * 86400
        identity, signing = self.ed_identity, public_bytes(self.ed_signing_key)
        tls_digest = hashlib.sha256(self.tls_certificate).digest()
        return [
            (2, make_x509(self.rsa_key, name="www.identity.example", now=self.now)),
            (4, make_ed_certificate(4, 1, signing, signer=self.ed_key, expires=expires, names=identity)),
            (5, make_ed_certificate(5, 3, tls_digest, signer=self.ed_signing_key, expires=expires)),
            (7, make_rsa_crosscert(identity, signer=self.rsa_key, expires=expires)),
        ]

    def supports(self, name: str, version: int) -> bool:
        """Whether `protocols` list a subprotocol's version. tor-spec, "Subprotocol versioning"."""
        ranges = dict(entry.split("=") for entry in self.protocols.split()).get(name, "")
        for low, _, high in (part.partition("-") for part in ranges.split(",") if part):
            if int(low) <= version <= int(high or low):
                return True
        return False

    def ssl_context(self) -> ssl.SSLContext:
        """A server's context with this relay's TLS certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key = self.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with tempfile.TemporaryDirectory() as directory:  # load_cert_chain reads files only
            file = Path(directory, "chain.pem")
            file.write_bytes(key + ssl.DER_cert_to_PEM_cert(self.tls_certificate).encode())
            context.load_cert_chain(file)
        return context
