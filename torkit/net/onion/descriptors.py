"""Fetches descriptors of onion services from the directories responsible for them, and keeps them.

torkit.hs says which relays are responsible, and checks descriptors.
"""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import NamedTuple

import trio

from torkit._fast.keys import X25519PrivateKey
from torkit.directory.directory import Directory, Relay, supports
from torkit.errors import DocumentError, NotServed, OnionServiceError, OnionStep, TorkitError
from torkit.hs.calendar import (
    Calendar,
    TimePeriod,
    length_when_testing,
)
from torkit.hs.descriptor import Descriptor, decode_descriptor
from torkit.hs.keys import blind, subcredential
from torkit.hs.ring import Ring
from torkit.net.circuit.circuit import Circuit
from torkit.net.current import Current
from torkit.net.dir.fetch import fetch_onion_descriptor

# Implementation limits: seconds until a directory that was asked for a descriptor is asked again (as C tor).
REQUERY_AFTER = 900.0
REQUERY_AFTER_TESTING = 5.0

# Implementation limit, seconds: until the next directory is asked beside one that is silent.
PATIENCE = 5.0

# Implementation limit: relays read between two turns of other tasks, when the ring is made; about a
# millisecond.
RING_SLICE = 20

# Implementation limit: services whose descriptors are kept. The least recently asked for is dropped first.
MAX_SERVICES = 1000


class _Place(NamedTuple):
    """The directories that are responsible for a service now."""

    period: TimePeriod
    blinded: bytes
    directories: list[list[Relay]]  # of each replica


class _Service:
    """What is known of one service."""

    def __init__(self) -> None:
        self.lock = trio.Lock()  # one request at a time
        self.asked: dict[tuple[bytes, bytes], float] = {}  # (directory, blinded key): when
        self.descriptor: Descriptor | None = None
        self.period: TimePeriod | None = None  # of the descriptor
        self.blinded = b""
        self.greatest_revision = 0  # seen for this blinded key


class Descriptors:
    """Fetches and keeps descriptors. `build` makes a circuit to a relay; we close the circuit."""

    def __init__(
        self,
        current: Current,
        build: Callable[[Relay], Awaitable[Circuit]],
        rng: Random,
    ) -> None:
        self._current = current
        self._build = build
        self._rng = rng
        self._services: dict[bytes, _Service] = {}
        self._ring: tuple[Directory, TimePeriod, Ring[Relay]] | None = None

    async def get(
        self, identity: bytes, client_key: X25519PrivateKey | None = None, *, anew: bool = False
    ) -> Descriptor:
        """Returns the descriptor of the service with this identity key; with `anew`, one fetched now.

        Raises OnionServiceError (NOT_FOUND, DESCRIPTOR, NO_KEY, WRONG_KEY), NoDirectory, or what made every
        circuit fail.
        """
        service = self._services.pop(identity, None) or _Service()
        self._services[identity] = service
        if len(self._services) > MAX_SERVICES:
            del self._services[next(iter(self._services))]
        async with service.lock:
            is_current = service.period == calendar_of(self._current).period
            if anew or service.descriptor is None or not is_current:
                service.descriptor = await self._fetch(service, identity, client_key)
            return service.descriptor

    async def directories(self, identity: bytes) -> list[list[Relay]]:
        """Returns the directories that clients ask for a service's descriptor now, of each replica.

        Raises NoDirectory.
        """
        return (await self._find_place(identity)).directories

    async def ask(self, relay: Relay, identity: bytes, client_key: X25519PrivateKey | None) -> Descriptor:
        """Returns the descriptor that one directory has of a service; it is not kept.

        Raises OnionServiceError (NO_KEY, WRONG_KEY), NotServed where it has none, DocumentError, or what made
        the circuit fail.
        """
        place = await self._find_place(identity)
        return await self._ask(relay, identity, place.blinded, client_key, 0)

    def note_met(self, identity: bytes) -> None:
        """Note that the service was reached: if it cannot be later, every directory may be asked again."""
        if (service := self._services.get(identity)) is not None:
            service.asked.clear()

    def forget(self) -> None:
        """Forget every descriptor, and which directories were asked."""
        self._services.clear()

    async def _fetch(
        self, service: _Service, identity: bytes, client_key: X25519PrivateKey | None
    ) -> Descriptor:
        """Ask one responsible directory after the other, in random order.

        While one is silent, the next is asked beside it; the first valid descriptor ends the other requests.
        """
        place = await self._find_place(identity)
        if place.blinded != service.blinded:
            service.blinded, service.greatest_revision = place.blinded, 0
        fetch = _Fetch()
        async with trio.open_nursery() as nursery:
            directories = [relay for relays in place.directories for relay in relays]
            for relay in self._rng.sample(directories, len(directories)):
                key = (relay.identity, place.blinded)
                requery_after = REQUERY_AFTER_TESTING if self._current.testing else REQUERY_AFTER
                if trio.current_time() - service.asked.get(key, -requery_after) < requery_after:
                    continue
                service.asked[key] = trio.current_time()
                is_over = trio.Event()
                ask = partial(
                    self._ask, relay, identity, place.blinded, client_key, service.greatest_revision
                )
                nursery.start_soon(fetch.run, ask, nursery.cancel_scope, is_over)
                with trio.move_on_after(PATIENCE):
                    await is_over.wait()
        if fetch.descriptor is not None:
            service.greatest_revision = fetch.descriptor.revision
            service.period = place.period
            return fetch.descriptor
        service.asked.clear()  # the next request begins anew
        raise fetch.verdict or _explain(fetch.failures)

    async def _ask(
        self,
        relay: Relay,
        identity: bytes,
        blinded: bytes,
        client_key: X25519PrivateKey | None,
        greatest_revision: int,
    ) -> Descriptor:
        consensus = self._current.directory.consensus
        limit = consensus.param("HSV3MaxDescriptorSize")
        circuit = await self._build(relay)
        try:
            text = await fetch_onion_descriptor(circuit, blinded, limit)
        finally:
            circuit.close()
        descriptor = decode_descriptor(
            text,
            blinded=blinded,
            subcredential=subcredential(identity, blinded),
            now=time.time(),
            sendme_inc=consensus.param("cc_sendme_inc"),
            client_key=client_key,
            max_len=limit,
        )
        if descriptor.revision < greatest_revision:
            raise DocumentError("the directory's descriptor is older than one seen before")
        return descriptor

    async def _find_place(self, identity: bytes) -> _Place:
        directory = self._current.directory
        consensus = directory.consensus
        calendar = calendar_of(self._current)
        blinded = blind(identity, calendar.period)
        if self._ring is None or self._ring[:2] != (directory, calendar.period):
            ring = await make_ring(directory, calendar.period, calendar.shared_random)
            self._ring = (directory, calendar.period, ring)
        ring = self._ring[2]
        chosen = ring.by_replica(
            blinded,
            replicas=consensus.param("hsdir_n_replicas"),
            spread=consensus.param("hsdir_spread_fetch"),
        )
        return _Place(calendar.period, blinded, chosen)


class _Fetch:
    """The outcome of requests for one descriptor."""

    def __init__(self) -> None:
        self.descriptor: Descriptor | None = None
        self.verdict: OnionServiceError | None = None  # the descriptor is valid, our key is not
        self.failures: list[TorkitError] = []

    async def run(
        self, ask: Callable[[], Awaitable[Descriptor]], everybody: trio.CancelScope, is_over: trio.Event
    ) -> None:
        """Ask one directory. A descriptor cancels the scope of all requests, `everybody`."""
        try:
            self.descriptor = await ask()
            everybody.cancel()
        except OnionServiceError as error:
            self.verdict = error
            everybody.cancel()
        except TorkitError as error:
            self.failures.append(error)
        finally:
            is_over.set()


def calendar_of(current: Current) -> Calendar:
    """Returns the time periods of onion services, by the directory in use. Raises NoDirectory."""
    consensus = current.directory.consensus
    interval = consensus.fresh_until - consensus.valid_after
    length = length_when_testing(interval) if current.testing else consensus.param("hsdir_interval")
    values = (consensus.shared_random_current, consensus.shared_random_previous)
    newer, older = (value.value if value else None for value in values)
    return Calendar(consensus.valid_after, interval, length, newer, older)


async def make_ring(directory: Directory, period: TimePeriod, shared_random: bytes) -> Ring[Relay]:
    """Returns the ring of all relays that hold descriptors: flag HSDir, HSDir=2, Ed25519 identity known."""
    flags = directory.consensus.relays.flags
    found = []
    for number, place in enumerate(place for place in range(len(directory)) if "HSDir" in flags[place]):
        if number % RING_SLICE == 0:
            await trio.lowlevel.checkpoint()
        relay = directory.relay_at(place)
        if relay is not None and relay.ed25519_identity is not None and supports(relay, "HSDir", 2):
            found.append((relay.ed25519_identity, relay))
    return Ring(found, shared_random=shared_random, period=period)


def _explain(failures: list[TorkitError]) -> TorkitError:
    """Returns one error for all these failures."""
    if any(isinstance(error, NotServed) for error in failures) or not failures:
        return OnionServiceError.at(OnionStep.NOT_FOUND)
    if all(isinstance(error, DocumentError) for error in failures):
        return OnionServiceError.at(OnionStep.DESCRIPTOR, f": {failures[-1]}")
    return failures[-1]
