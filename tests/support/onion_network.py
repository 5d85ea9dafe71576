"""Scripted relays at which onion services of torkit's stand, and a client that comes to them. No tests here.

    async with onion_network(tmp_path) as (tor, net):     a client of torkit's, and the network
        net.descriptor(address)                           what the directories were given, read and checked
        far = await net.meet(point, subcredential)        introduced, and met: the client's end of the circuit
        stream = far.begin(80, b"sent at once")

What relays check of ESTABLISH_INTRO is checked here from rend-spec-v3. Replace `on_establish`, `on_upload` or
`on_rendezvous` to break a rule.
"""

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from served import PLAIN, ServedNetwork, serve_network
from waiting import until

from torkit._fast.cells import RelayCommand
from torkit.client import Tor, open_tor
from torkit.errors import DocumentError
from torkit.hs.address import parse_address
from torkit.hs.calendar import TimePeriod
from torkit.hs.descriptor import Descriptor, IntroductionPoint, decode_descriptor
from torkit.hs.handshake import ServiceHandshake
from torkit.hs.keys import blind, subcredential
from torkit.hs.messages import decode_rendezvous2, introduce_header, introduce_plaintext
from torkit.net.onion.descriptors import calendar_of
from torkit.proto.messages import encode_link_specifiers
from torkit.testing.directory import make_authorities, signed_service
from torkit.testing.relay import (
    FakeCircuit,
    FakeHop,
    FakeRelay,
    FakeStream,
    OnionServiceLayer,
    RelayCell,
    http_response,
)

PROTOCOLS = f"{PLAIN} HSDir=2 HSIntro=4-5 HSRend=1-2"


@dataclass
class FarClient:
    """A client's end of a circuit that has joined."""

    circuit: FakeCircuit
    number: int  # of the hop that the service's streams come from
    next_id: int = 1
    answers: list[RelayCell] = field(default_factory=list)  # CONNECTED and the like

    def begin(self, port: int, data: bytes = b"") -> FakeStream:
        stream = FakeStream(self.circuit, self.number, self.next_id)
        self.circuit.streams[self.next_id] = stream
        self.circuit.send(self.number, RelayCommand.BEGIN, self.next_id, f":{port}\0".encode())
        self.next_id += 1
        if data:
            stream.write(data)
        self.flush()
        return stream

    def flush(self) -> None:
        self.circuit.link.on_output()


class OnionNetwork:
    tor: Tor  # whose time the descriptors are read by

    def __init__(self, relays: dict[str, FakeRelay], tor: Tor | None = None) -> None:
        self.relays = relays
        if tor is not None:
            self.tor = tor
        self.period: Callable[[], TimePeriod] = lambda: calendar_of(self.tor._parts.current).period
        self.uploads: dict[str, list[bytes]] = {name: [] for name in relays}  # by relay
        self.points: dict[bytes, tuple[FakeCircuit, int]] = {}  # by auth-key
        self.established: list[bytes] = []  # auth-keys, each time
        self.met: dict[bytes, FarClient] = {}  # by cookie
        self.on_establish: Callable[[FakeCircuit, int], object] = self.establish
        self.on_upload: Callable[[str, bytes], bytes] = self.take
        self.on_rendezvous: Callable[[FakeCircuit, int, RelayCell], object] = self._join
        self._waiting: dict[
            bytes, Callable[[bytes], bytes]
        ] = {}  # by cookie: from the reply to a layer's keys
        for name, relay in relays.items():
            relay.on_unknown = self._hear
            relay.directory = self._directory(name, relay.directory)

    # --- directories ------------------------------------------------------------------------------

    def _directory(self, name: str, before: Callable[[bytes], bytes] | None) -> Callable[[bytes], bytes]:
        def answer(request: bytes) -> bytes:
            head, _, body = request.partition(b"\r\n\r\n")
            if head.startswith(b"POST /tor/hs/3/publish HTTP/1.0\r\n"):
                assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head + b"\r\n"
                return self.on_upload(name, body)
            assert before is not None
            return before(request)

        return answer

    def take(self, name: str, text: bytes) -> bytes:
        self.uploads[name].append(text)
        return http_response(b"")

    def descriptor(self, address: str, **changes: Any) -> Descriptor:
        """The newest that any directory has for the period in force."""
        identity = parse_address(address)
        blinded = blind(identity, self.period())
        reading: dict[str, Any] = {
            "blinded": blinded,
            "subcredential": subcredential(identity, blinded),
            "now": time.time(),
            "sendme_inc": 31,
        }
        found = []
        for text in (text for texts in self.uploads.values() for text in texts):
            try:
                found.append(decode_descriptor(text, **(reading | changes)))
            except DocumentError:
                continue  # the other period's
        return max(found, key=lambda one: one.revision)

    # --- introduction and rendezvous points -------------------------------------------------------

    def _hear(self, circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        if cell.command == RelayCommand.ESTABLISH_INTRO:
            auth_key = cell.body[3:35]
            _check_establish(cell.body, circuit.hops[number - 1].kh)
            self.points[auth_key] = circuit, number
            self.established.append(auth_key)
            self.on_establish(circuit, number)
        elif cell.command == RelayCommand.RENDEZVOUS1:
            assert len(cell.body) == 168
            self.on_rendezvous(circuit, number, cell)
        else:
            for far in self.met.values():
                if far.circuit is circuit:
                    far.answers.append(cell)

    def establish(self, circuit: FakeCircuit, number: int) -> None:
        circuit.send(number, RelayCommand.INTRO_ESTABLISHED, 0, b"\0")

    def _join(self, circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        cookie = cell.body[:20]
        keys = self._waiting.pop(cookie)(cell.body[20:])
        circuit.hops.append(FakeHop(circuit.hops[number - 1].relay, OnionServiceLayer(keys)))
        self.met[cookie] = FarClient(circuit, number + 1)

    # --- a client ---------------------------------------------------------------------------------

    def relay_of(self, circuit: FakeCircuit, number: int) -> FakeRelay:
        relay = circuit.hops[number - 1].relay
        assert isinstance(relay, FakeRelay)
        return relay

    def introduce(
        self,
        descriptor: Descriptor,
        point: IntroductionPoint | None = None,
        *,
        cookie: bytes = b"",
        rendezvous: str = "middle",
        extensions: dict[int, bytes] | None = None,
        edit: Callable[[bytes], bytes] = lambda body: body,
    ) -> bytes:
        """INTRODUCE2 by way of one of the points. Returns the cookie."""
        point = point or descriptor.points[0]
        cookie = cookie or os.urandom(20)
        relay = self.relays[rendezvous]
        client = ServiceHandshake(
            auth_key=point.auth_key,
            enc_key=point.enc_key,
            subcredential=descriptor.subcredential,
            private_key=os.urandom(32),
        )
        header = introduce_header(point.auth_key)
        host, port = relay.address
        specifiers = encode_link_specifiers(
            [(ip_address(host), port)],
            rsa_identity=relay.rsa_identity,
            ed25519_identity=relay.ed_identity,
        )
        plaintext = introduce_plaintext(
            cookie=cookie,
            onion_key=relay.ntor_onion_key,
            link_specifiers=specifiers,
            extensions=extensions or {},
            header_len=len(header),
        )

        def finish(reply: bytes) -> bytes:
            keys = client.finish(decode_rendezvous2(reply)).derive(128)
            df, db, kf, kb = (keys[at : at + 32] for at in (0, 32, 64, 96))
            return db + df + kb + kf  # the scripted hop sends what we open: from the client's end

        self._waiting[cookie] = finish
        circuit, number = self.points[point.auth_key]
        body = edit(header + client.seal(header, plaintext))
        circuit.send(number, RelayCommand.INTRODUCE2, 0, body)
        circuit.link.on_output()
        return cookie

    async def meet(self, descriptor: Descriptor, **how: Any) -> FarClient:
        """The client's end of a circuit that has joined."""
        cookie = self.introduce(descriptor, **how)
        await until(lambda: cookie in self.met)
        return self.met[cookie]


def _check_establish(body: bytes, kh: bytes) -> None:
    """As an introduction point does. rend-spec-v3, "Registering an introduction point on a circuit"."""
    assert body[:3] == b"\2\0\x20"
    assert body[-66:-64] == b"\0\x40"
    before_mac = body[:-98]
    mac = hashlib.sha3_256(len(kh).to_bytes(8, "big") + kh + before_mac).digest()
    assert body[-98:-66] == mac, "the MAC is not by this circuit's KH"
    Ed25519PublicKey.from_public_bytes(body[3:35]).verify(
        body[-64:], b"Tor establish-intro cell v1" + body[:-66]
    )


@asynccontextmanager
async def onion_relays(params: str = "") -> AsyncIterator[ServedNetwork]:
    """A network whose relays say that they can do what onion services need."""
    async with serve_network(guards=3, exits=3, params=params) as network:
        for doc in network.docs:
            doc.protocols = PROTOCOLS
        renewed = signed_service(network.docs, make_authorities(), params=params)
        network.service.consensus = renewed.consensus
        network.service.microdescs = renewed.microdescs
        network.service.certificates = renewed.certificates
        yield network
        assert [relay.complaints for relay in network.relays.values()] == [[]] * len(network.relays)


@asynccontextmanager
async def onion_network(tmp_path: Path, params: str = "") -> AsyncIterator[tuple[Tor, OnionNetwork]]:
    """A client that is ready on such a network."""
    async with (
        onion_relays(params) as network,
        open_tor(network=network.config, data_dir=tmp_path, spare_circuits=0) as tor,
    ):
        net = OnionNetwork(network.relays, tor)
        await tor.wait_ready()
        yield tor, net
