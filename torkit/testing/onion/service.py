"""A scripted onion service, for clients under test. rend-spec-v3."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from torkit._fast.cells import RelayCommand
from torkit.testing.onion.descriptor import HOUR, DescriptorMaker, IntroductionPoint
from torkit.testing.onion.handshake import Opened, link_specifiers_of, open_introduction, public_of
from torkit.testing.onion.keys import OnionKey, TimePeriod, subcredential
from torkit.testing.onion.network import ACCEPTED, End, OnionNetwork
from torkit.testing.relay import FakeHop, FakeRelay, OnionServiceLayer

CC_REQUESTED = b"\1\1\0"  # extensions of an introduction: congestion control and no other
PADDING_LEN = 84  # of RENDEZVOUS2


@dataclass(frozen=True)
class Introduction(Opened):
    """An INTRODUCE1 that the service has opened."""

    point: int  # of the service's, counted from 0
    end: End  # of the client's circuit to that point
    body: bytes

    def acknowledge(self, status: int = ACCEPTED) -> None:
        """INTRODUCE_ACK, by the introduction point."""
        self.end.acknowledge(status)


class OnionService:
    """One service in one time period, with an introduction point at each of `points`.

    `relay` gets the streams of clients that have joined: its `on_begin` and so on are the service's. `key` is
    by default a new one, `period` that of a consensus which is valid from half an hour ago. Replace
    `on_introduce`, or change any field, to break a rule; `introductions` is what it has seen. What is wrong
    in an introduction ends its circuit and is noted in the point's `complaints`.
    """

    def __init__(
        self,
        network: OnionNetwork,
        points: Sequence[FakeRelay],
        relay: FakeRelay,
        *,
        key: OnionKey | None = None,
        period: TimePeriod | None = None,
    ) -> None:
        self.network = network
        self.relay = relay
        self.key = key or OnionKey()
        self.period = period or TimePeriod.at(time.time() - HOUR // 2)
        self.sendme_inc: int | None = None  # None without congestion control
        self.work: tuple[bytes, int, int] | None = None  # seed, effort, until when
        self.clients: Sequence[bytes] = ()  # X25519 keys; empty serves everybody
        self.on_introduce: Callable[[Introduction], object] = self.accept
        self.introductions: list[Introduction] = []
        blinded = self.key.blinded(self.period)
        self.subcredential = subcredential(self.key.public, blinded.public)
        self.maker = DescriptorMaker(blinded, self.subcredential)
        self._enc_keys = [X25519PrivateKey.generate() for _ in points]
        self.points = [
            IntroductionPoint(
                link_specifiers_of(point),
                onion_key=point.ntor_onion_key,
                auth_key=Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
                enc_key=public_of(enc_key),
            )
            for point, enc_key in zip(points, self._enc_keys, strict=True)
        ]
        for at, point in zip(points, self.points, strict=True):
            network.services[at, point.auth_key] = self

    @property
    def address(self) -> str:
        """What clients ask for."""
        return self.key.address

    def descriptor(self, revision: int = 1) -> bytes:
        """The descriptor as the fields have it now."""
        second = self.maker.second(self.points, sendme_inc=self.sendme_inc, work=self.work)
        return self.maker.outer(self.maker.first(second, revision, clients=self.clients), revision)

    def publish(self, relays: Iterable[FakeRelay] | None = None, *, text: bytes | None = None) -> None:
        """Have these relays, by default all, give `descriptor()` or another text to whoever asks."""
        text = self.descriptor() if text is None else text
        for relay in self.network.relays if relays is None else relays:
            self.network.descriptors[relay, self.maker.blinded] = text

    def hear(self, end: End, auth_key: bytes, body: bytes) -> None:
        """An INTRODUCE1 has come."""
        number = [point.auth_key for point in self.points].index(auth_key)
        try:
            opened = open_introduction(
                body, auth_key=auth_key, enc=self._enc_keys[number], subcredential=self.subcredential
            )
        except ValueError as error:
            end.circuit.complain(end.number, f"INTRODUCE1: {error}")
            return
        introduction = Introduction(**vars(opened), point=number, end=end, body=body)
        self.introductions.append(introduction)
        self.on_introduce(introduction)

    def accept(self, introduction: Introduction) -> None:
        """INTRODUCE_ACK, and come."""
        introduction.acknowledge()
        self.meet(introduction)

    def meet(self, introduction: Introduction, reply: bytes | None = None) -> None:
        """Come to the rendezvous point: RENDEZVOUS2, and a hop behind it. `reply` stands for Y and AUTH."""
        waiting = self.network.cookies.get(introduction.cookie)
        if waiting is None:
            introduction.end.circuit.complain(introduction.end.number, "a cookie that nobody waits by")
            return
        waiting.send(RelayCommand.RENDEZVOUS2, (reply or introduction.reply) + os.urandom(PADDING_LEN))
        hop = FakeHop(self.relay, OnionServiceLayer(introduction.keys))
        if self.sendme_inc is not None and introduction.extensions == CC_REQUESTED:
            hop.use_congestion_control()
        waiting.circuit.hops.append(hop)
