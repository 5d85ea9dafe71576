"""An onion service's half of meeting a client, over scripted relays. No tests here.

    service = OnionService(relays, service_relay)      its introduction points, one at each of `relays`
    service.stand_at(rendezvous_relay)                 that relay keeps cookies and tells its clients so
    service.descriptor()                               what a client would have read of it

Written from rend-spec-v3 over hashlib and `cryptography`, sharing nothing with torkit but the numbers of
messages. Replace `descriptor`, `on_introduce` or `on_cookie` to break a rule;
`introductions` and `cookies` are what it has seen.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from torkit._fast.cells import RelayCommand
from torkit.hs.descriptor import Descriptor, IntroductionPoint, ProofOfWork
from torkit.testing.relay import FakeCircuit, FakeHop, FakeRelay, OnionServiceLayer, RelayCell, aes_ctr

PROTOID = b"tor-hs-ntor-curve25519-sha3-256-1"
BLINDED, SUBCREDENTIAL = b"b" * 32, b"s" * 32
HEADER_LEN = 56  # of INTRODUCE1, before the client's key


def mac(key: bytes, message: bytes) -> bytes:
    return hashlib.sha3_256(len(key).to_bytes(8, "big") + key + message).digest()


def public_of(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@dataclass
class Introduction:
    """An INTRODUCE1 that was opened, and how to answer it."""

    point: int
    circuit: FakeCircuit
    number: int  # of the hop that got it
    cookie: bytes
    extensions: bytes
    onion_key: bytes
    public_key: bytes  # X
    reply: bytes  # Y and AUTH
    keys: bytes  # of the layer

    def acknowledge(self, status: int = 0) -> None:
        self.circuit.send(self.number, RelayCommand.INTRODUCE_ACK, 0, status.to_bytes(2, "big") + b"\0")


class OnionService:
    def __init__(self, points: Sequence[FakeRelay], relay: FakeRelay) -> None:
        """`relay` gets the streams of clients that have joined."""
        self.points = points
        self.relay = relay
        self.introductions: list[Introduction] = []
        self.cookies: dict[bytes, tuple[FakeCircuit, int]] = {}
        self.sendme_inc: int | None = None
        self.work: ProofOfWork | None = None
        self.descriptor: Callable[[], Descriptor] = self.honest_descriptor
        self.on_introduce: Callable[[Introduction], object] = self.accept
        self.on_cookie: Callable[[FakeCircuit, int], object] = self.establish
        self.subcredential = SUBCREDENTIAL
        self._enc_keys = [X25519PrivateKey.generate() for _ in points]
        for number, point in enumerate(points):
            point.on_unknown = self._introduce_at(number)

    def honest_descriptor(self) -> Descriptor:
        return Descriptor(
            BLINDED,
            self.subcredential,
            revision=1,
            lifetime=180,
            signing_key=bytes(32),
            is_single_onion=False,
            sendme_inc=self.sendme_inc,
            proof_of_work=self.work,
            points=tuple(self.point(number) for number in range(len(self.points))),
        )

    def point(self, number: int) -> IntroductionPoint:
        relay = self.points[number]
        address = bytes(map(int, relay.address[0].split("."))) + relay.address[1].to_bytes(2, "big")
        return IntroductionPoint(
            ((0, address), (2, relay.rsa_identity), (3, relay.ed_identity)),
            onion_key=relay.ntor_onion_key,
            auth_key=bytes([number + 1]) * 32,
            enc_key=public_of(self._enc_keys[number]),
        )

    def stand_at(self, rendezvous: FakeRelay) -> None:
        rendezvous.on_unknown = self.keep_cookie

    def keep_cookie(self, circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        """What a rendezvous point does with a client's message."""
        assert cell.command == RelayCommand.ESTABLISH_RENDEZVOUS
        assert len(cell.body) == 20
        assert cell.body not in self.cookies
        self.cookies[cell.body] = (circuit, number)
        self.on_cookie(circuit, number)

    def establish(self, circuit: FakeCircuit, number: int) -> None:
        circuit.send(number, RelayCommand.RENDEZVOUS_ESTABLISHED)

    def accept(self, introduction: Introduction) -> None:
        introduction.acknowledge()
        self.meet(introduction)

    def meet(self, introduction: Introduction, reply: bytes | None = None) -> None:
        """Come to the rendezvous point: RENDEZVOUS2, and a hop behind it."""
        circuit, number = self.cookies[introduction.cookie]
        circuit.send(number, RelayCommand.RENDEZVOUS2, 0, (reply or introduction.reply) + os.urandom(84))
        hop = FakeHop(self.relay, OnionServiceLayer(introduction.keys))
        if self.sendme_inc is not None and introduction.extensions == b"\1\1\0":
            hop.use_congestion_control()
        circuit.hops.append(hop)

    def _introduce_at(self, point: int) -> Callable[[FakeCircuit, int, RelayCell], None]:
        def receive(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
            assert cell.command == RelayCommand.INTRODUCE1
            introduction = self._open(point, circuit, number, cell.body)
            self.introductions.append(introduction)
            self.on_introduce(introduction)

        return receive

    def _open(self, point: int, circuit: FakeCircuit, number: int, body: bytes) -> Introduction:
        b, auth_key = self._enc_keys[point], bytes([point + 1]) * 32
        enc_key = public_of(b)
        assert len(body) == 310
        assert body[:HEADER_LEN] == bytes(20) + b"\2\0\x20" + auth_key + b"\0"
        x, encrypted, tag = body[HEADER_LEN : HEADER_LEN + 32], body[HEADER_LEN + 32 : -32], body[-32:]
        bx = b.exchange(X25519PublicKey.from_public_bytes(x))
        info = PROTOID + b":hs_key_extract" + PROTOID + b":hs_key_expand" + self.subcredential
        keys = hashlib.shake_256(bx + auth_key + x + enc_key + PROTOID + info).digest(64)
        assert mac(keys[32:], body[:-32]) == tag
        text = aes_ctr(keys[:32]).update(encrypted)
        cookie, count = text[:20], text[20]
        at = 21
        for _ in range(count):
            at += 2 + text[at + 1]
        assert text[at : at + 3] == b"\1\0\x20"
        y = X25519PrivateKey.generate()
        secret = y.exchange(X25519PublicKey.from_public_bytes(x)) + bx + auth_key + enc_key + x + public_of(y)
        secret += PROTOID
        verify = mac(secret, PROTOID + b":hs_verify")
        auth = verify + auth_key + enc_key + public_of(y) + x + PROTOID + b"Server"
        seed = mac(secret, PROTOID + b":hs_key_extract")
        return Introduction(
            point,
            circuit,
            number,
            cookie,
            extensions=text[20:at],
            onion_key=text[at + 3 : at + 35],
            public_key=x,
            reply=public_of(y) + mac(auth, PROTOID + b":hs_mac"),
            keys=hashlib.shake_256(seed + PROTOID + b":hs_key_expand").digest(128),
        )
