"""Scripted relays at which onion services of torkit's stand, and a client that comes to them. No tests here.

    async with onion_network(tmp_path) as (tor, net):     a client of torkit's, and the network
        net.descriptor(address)                           what the directories were given, read and checked
        far = await net.meet(point, subcredential)        introduced, and met: the client's end of the circuit
        stream = far.begin(80, b"sent at once")

Replace `on_establish_intro`, `on_upload` or `on_rendezvous1` to break a rule.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from served import PLAIN, ServedNetwork, serve_network
from waiting import until

from torkit.client import Tor, open_tor
from torkit.errors import DocumentError
from torkit.hs.address import parse_address
from torkit.hs.calendar import TimePeriod
from torkit.hs.descriptor import Descriptor, IntroductionPoint, decode_descriptor
from torkit.hs.keys import blind, subcredential
from torkit.net.onion.descriptors import calendar_of
from torkit.testing import onion
from torkit.testing.directory import make_authorities, signed_service
from torkit.testing.onion import End, FarClient, OnionClient
from torkit.testing.relay import FakeRelay

PROTOCOLS = f"{PLAIN} HSDir=2 HSIntro=4-5 HSRend=1-2"
RENDEZVOUS1_LEN = 168  # (as C tor)


class OnionNetwork(onion.OnionNetwork):
    """The relays by name, and a scripted client."""

    tor: Tor  # whose time the descriptors are read by

    def __init__(self, relays: dict[str, FakeRelay], tor: Tor | None = None) -> None:
        super().__init__(relays.values())
        self.named = relays
        if tor is not None:
            self.tor = tor
        self.client = OnionClient(self)
        self.rendezvous1_lens: set[int] = set()
        self.period: Callable[[], TimePeriod] = lambda: calendar_of(self.tor._parts.current).period

    def answer_rendezvous1(self, end: End, body: bytes) -> None:
        self.rendezvous1_lens.add(len(body))
        super().answer_rendezvous1(end, body)

    @property
    def texts(self) -> dict[str, list[bytes]]:
        """What each directory was given."""
        return {
            name: [text for at, text in self.uploads if at is relay] for name, relay in self.named.items()
        }

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
        for _, text in self.uploads:
            try:
                found.append(decode_descriptor(text, **(reading | changes)))
            except DocumentError:
                continue  # the other period's
        return max(found, key=lambda one: one.revision)

    def introduce(
        self,
        descriptor: Descriptor,
        point: IntroductionPoint | None = None,
        *,
        cookie: bytes | None = None,
        rendezvous: str = "middle",
        extensions: dict[int, bytes] | None = None,
        edit: Callable[[bytes], bytes] = lambda body: body,
    ) -> bytes:
        """INTRODUCE2 by way of one of the points. Returns the cookie."""
        return self.client.introduce(
            onion.IntroductionPoint(*(point or descriptor.points[0])),
            descriptor.subcredential,
            self.named[rendezvous],
            cookie=cookie,
            extensions=(extensions or {}).items(),
            edit=edit,
        )

    async def meet(self, descriptor: Descriptor, **how: Any) -> FarClient:
        """The client's end of a circuit that has joined."""
        cookie = self.introduce(descriptor, **how)
        await until(lambda: cookie in self.client.met)
        return self.client.met[cookie]


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
        assert net.rendezvous1_lens <= {RENDEZVOUS1_LEN}
