"""A place where a client meets a scripted onion service: its stems and descriptors, without a pool."""

import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from served import PLAIN, build, fresh_relays, serve_channel

from torkit._fast.cells import RelayCommand
from torkit.directory.directory import Relay
from torkit.errors import CircuitClosed, OnionServiceError
from torkit.hs.descriptor import Descriptor, IntroductionPoint, decode_descriptor
from torkit.hs.introduction import Points
from torkit.learnt.build_times import INITIAL, Timeouts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.purpose import ForOnion
from torkit.net.circuits.request import STREAM_TIMEOUT
from torkit.net.link.channel import Channel
from torkit.net.onion.meeting import Meeting
from torkit.net.onion.work import Worker
from torkit.testing.onion import OnionNetwork, OnionService
from torkit.testing.relay import FakeCircuit, FakeRelay, ignore

GUARD, SECOND, MIDDLE, RENDEZVOUS, SERVICE = range(5)
POINTS = range(5, 8)
INTRODUCE1_LEN = 310  # whatever is in it (as C tor)


class Home:
    """Where a meeting takes place: stems, descriptors, and the service."""

    reserve = None

    def __init__(self, channel: Channel, fakes: list[FakeRelay]) -> None:
        self.channel = channel
        self.fakes = fakes
        self.net = OnionNetwork(fakes)
        self.service = OnionService(self.net, [fakes[number] for number in POINTS], fakes[SERVICE])
        self.descriptor: Callable[[], Descriptor] = self.honest_descriptor
        self.circuits: list[Circuit] = []
        self.fetched: list[bool] = []  # whether a newer one was asked for
        self.met = 0
        self.released: list[Circuit] = []  # nobody needs them but their padding
        self.points = Points()
        self.worker = Worker()
        self.broken_stems = 0  # how many of the next stems fail
        self.silent_stems = 0  # or are never built
        self.on_built: Callable[[FakeCircuit], object] = ignore  # before the client says anything on it
        self.protocols = PLAIN  # what the directory says of every relay
        self.params: dict[str, int] = {}  # the consensus's

    # --- stems ----------------------------------------------------------------------------------

    @property
    def timeouts(self) -> Timeouts:
        return INITIAL

    async def to_rendezvous_point(self, crowd: Hashable) -> Circuit:
        return await self._let_speak(await self._build(GUARD, SECOND, RENDEZVOUS))

    async def build(self, purpose: ForOnion, crowd: Hashable) -> Circuit:
        if self.silent_stems:
            self.silent_stems -= 1
            await trio.sleep_forever()
        if self.broken_stems:
            self.broken_stems -= 1
            raise CircuitClosed("the guard closed the circuit")
        return await self._build(GUARD, SECOND, MIDDLE)

    async def extend(self, stem: Circuit, target: Relay) -> None:
        try:
            await stem.extend(target, is_last=False)
        except BaseException:
            stem.close()
            raise
        await self._let_speak(stem)

    async def extend_ready(self, target: Relay) -> Circuit | None:
        return None

    async def keep(self) -> None:
        """Nothing is kept here."""

    def renew(self) -> None:
        """Nor does a new identity end anything."""

    def let_go(self, circuit: Circuit, late: RelayCommand | None = None) -> None:
        if circuit.release(late):
            self.released.append(circuit)

    async def _build(self, *numbers: int) -> Circuit:
        fakes = [self.fakes[number] for number in numbers]
        circuit = await build(self.channel, fakes, protocols=self.protocols, params=self.params)
        self.circuits.append(circuit)
        return circuit

    async def _let_speak(self, circuit: Circuit) -> Circuit:
        """Have the last relay say what it wants, and wait until that has arrived."""
        if self.on_built is not ignore:
            far = self.fakes[GUARD].circuits[self.circuits.index(circuit)]
            self.on_built(far)
            far.link.on_output()
            await trio.sleep(0.05)
        return circuit

    # --- descriptors ----------------------------------------------------------------------------

    async def get(self, identity: bytes, client_key: object, *, anew: bool = False) -> Descriptor:
        self.fetched.append(anew)
        await trio.lowlevel.checkpoint()
        return self.descriptor()

    def honest_descriptor(self) -> Descriptor:
        """As a client reads it."""
        return decode_descriptor(
            self.service.descriptor(),
            blinded=self.service.maker.blinded,
            subcredential=self.service.subcredential,
            now=time.time(),
            sendme_inc=31,
        )

    def point(self, number: int) -> IntroductionPoint:
        return self.honest_descriptor().points[number]

    def note_met(self, identity: bytes) -> None:
        self.met += 1

    # --- for tests ------------------------------------------------------------------------------

    async def meet(self, seconds: float = STREAM_TIMEOUT) -> Circuit:
        home: Any = self
        meeting = Meeting(
            b"i" * 32,
            "isolation",
            None,
            stems=home,
            descriptors=home,
            points=self.points,
            rng=Random(1),
            worker=self.worker,
            testing=True,
        )
        return await meeting.run(trio.current_time() + seconds)

    @property
    def open_circuits(self) -> list[Circuit]:
        released = self.released
        return [one for one in self.circuits if one.error is None and one not in released]


@asynccontextmanager
async def a_home() -> AsyncIterator[Home]:
    """At the end no relay has anything to complain about, and nothing is left open but what has joined."""
    fakes = fresh_relays(8)
    async with serve_channel(fakes[GUARD]) as channel:
        home = Home(channel, fakes)
        yield home
        assert len(home.open_circuits) == home.met
        assert {len(one.body) for one in home.service.introductions} <= {INTRODUCE1_LEN}
    assert [fake.complaints for fake in fakes] == [[]] * 8


async def failure_of(home: Home) -> OnionServiceError:
    with pytest.raises(OnionServiceError) as caught:
        await home.meet()
    return caught.value
