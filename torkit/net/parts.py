"""The parts of one client, put together, and the tasks that run them. What each does, it says itself.

request -> circuits (pool) -> builder -> paths -> guards
                                      -> channels -> dial
keeper (of the directory) -> current -> everybody
"""

from collections.abc import Hashable
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from torkit.directory.cache import Cache
from torkit.directory.consensus import read_preamble
from torkit.directory.directory import CountryOf
from torkit.errors import UsageError
from torkit.learnt.build_times import BuildTimes
from torkit.learnt.predicted_ports import PredictedPorts
from torkit.learnt.refusals import Refusals
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.linked import LinkedCircuit
from torkit.net.circuits.build import Builder
from torkit.net.circuits.guards import GuardKeeper
from torkit.net.circuits.paths import Paths
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import LOOK_UP, ExitByLegs, Need, Path
from torkit.net.circuits.request import STREAM_TIMEOUT, Request
from torkit.net.circuits.sets import Sets
from torkit.net.circuits.spares import Spares
from torkit.net.current import Current
from torkit.net.dir.keeper import DirectoryKeeper
from torkit.net.dir.servers import Sources
from torkit.net.link.channels import Channels
from torkit.net.onion.reserve import Reserve
from torkit.net.state import StateFile
from torkit.paths.constraints import Constraints, VanguardMode, excluded_places
from torkit.paths.guards import Guards
from torkit.paths.vanguards import Vanguards
from torkit.proto.circuit import Cgo
from torkit.proto.destination import is_onion
from torkit.proto.padding import Padding

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from torkit.hs.client_auth import ClientKey
    from torkit.hs.keys import SecretKey
    from torkit.net.hosting.means import Wishes
    from torkit.net.hosting.serve import OnionListener, Ports
    from torkit.net.onion.look import Look
    from torkit.net.onion.request import OnionRequest
    from torkit.net.onion.services import OnionServices

CLIENT_KEYS = "onion-auth"  # in the data directory: keys for onion services that serve clients they know

CLOSE_TIMEOUT = 2.0  # seconds that closing waits for what has been sealed to be sent


class Settings(NamedTuple):
    """What the user of a client may choose, with the names of `open_tor`, which says what each is."""

    cgo: Cgo
    padding: Padding
    spare_circuits: int
    conflux: bool
    consensus: bytes | None
    restrictions: Constraints
    country_of: CountryOf | None
    pow_max_effort: int | None
    vanguards: VanguardMode


class Parts:
    """`servers` are the directory servers that the network names; `state` and `guards` are those kept.

    `cache` keeps the state. `documents` keeps the directory: the same one, or one that clients share.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        cache: Cache,
        documents: Cache,
        rng: Random,
        servers: Sources,
        *,
        voters: dict[bytes, str],
        testing: bool,
        settings: Settings,
        state: dict[str, Any],
        guards: Guards,
    ) -> None:
        restrictions = settings.restrictions
        is_lasting = settings.spare_circuits > 0  # else what one circuit teaches is not worth writing down
        self._is_closed = False
        self._nursery = nursery
        self._settings = settings
        self._background = trio.CancelScope()
        self.data_dir = cache.directory
        self.onions: OnionServices | None = None  # once a name in .onion was used
        self.rng = rng
        self.current = Current(cgo=settings.cgo, testing=testing)
        self.journal = self.current.journal
        self.state = StateFile(cache)
        self.guards = GuardKeeper(
            guards, self.current, self.state, nursery, rng, restrictions, keeps_counts=is_lasting
        )
        self.refusals = Refusals()
        self.vanguards = Vanguards.from_state(state, restrictions, rng, settings.vanguards)
        self.state.add(self.vanguards, is_watched=True)
        self.paths = Paths(self.current, self.guards, self.refusals, self.vanguards, restrictions, rng)
        self.channels = Channels(
            nursery, rng, padding=settings.padding, params=self.current.params, progress=self.journal.progress
        )
        self.build_times = BuildTimes.from_state(state, rng=rng, param=self.current.param)
        self.state.add(self.build_times, is_watched=is_lasting)
        self.builder = Builder(self.channels, self.paths, self.current, rng, nursery, self.build_times)
        self.circuits = Circuits(self.builder, PredictedPorts(self.current.param), rng, nursery)
        self.sets = Sets(self.circuits, self.builder, self.current, nursery) if settings.conflux else None
        self.spares = Spares(self.circuits, self.build_times, self.current, self.sets)
        self.reserve: Reserve | None = None
        if is_lasting:
            expected = PredictedPorts(self.current.param)
            self.reserve = Reserve(self.circuits, expected, self.paths.may_go_on, rng)
        self.keeper = DirectoryKeeper(
            authorities=voters,
            sources=lambda directory: servers.shuffled(self.guards.contacts(directory), rng),
            cache=documents,
            is_cache_shared=documents is not cache,
            channels=self.channels,
            settings=self.current.circuit_settings,
            rng=rng,
            consensus=None if settings.consensus is None else read_preamble(settings.consensus),
            country_of=settings.country_of,
            current=self.current,
            first_hop=self.guards.attempt,
            missing_guards=self.guards.lacking,
            agree_on_guards=self.guards.agree,
        )
        self.current.add_reader(lambda one: self.refusals.note_consensus(one.consensus.valid_after))
        self.current.add_reader(self.circuits.note_directory)
        self.current.add_reader(self.guards.note_directory)

    def onion_services(self) -> "OnionServices":
        """What reaches onion services; made when it is first needed, since most clients never do."""
        if self.onions is None:
            from torkit.net.onion.client_keys import ClientKeys
            from torkit.net.onion.services import OnionServices
            from torkit.net.onion.stems import Stems
            from torkit.net.onion.work import Worker

            self.onions = OnionServices(
                Stems(self.circuits, self.build_times, self._is_excluded, self.reserve),
                self.circuits,
                self.current,
                ClientKeys(self.data_dir / CLIENT_KEYS),
                Worker(self._settings.pow_max_effort),
                self.rng,
                self._nursery,
            )
        return self.onions

    def look_at_onion(self, address: str, client_key: "ClientKey | None") -> "Look":
        """Returns what asks an onion service's directories, and meets it. Raises as `Look`."""
        from torkit.net.onion.look import Look

        return Look(self.onion_services(), address, client_key)

    def serve(
        self, ports: "Ports", key: "SecretKey | None", wishes: "Wishes | None"
    ) -> "AbstractAsyncContextManager[OnionListener]":
        """Returns an onion service of ours, which runs in the block of this context."""
        from torkit.net.hosting.means import Means, Wishes
        from torkit.net.hosting.serve import serve

        means = Means(self.onion_services().stems, self.current, self.rng, self._settings.restrictions)
        return serve(means, ports, key, wishes or Wishes())

    def _is_excluded(self, identity: bytes) -> bool:
        directory = self.current.directory
        excluded = excluded_places(directory, self._settings.restrictions)
        return directory.consensus.relays.index_of(identity) in excluded

    def request(
        self, host: str, port: int | None, isolation: Hashable, path: Path | None
    ) -> "Request | OnionRequest":
        """Returns the request for `host`, not begun yet; without a port it is for a look-up."""
        if port is not None and is_onion(host):
            from torkit.net.onion.request import OnionRequest

            if path is not None:
                raise UsageError("no path can be given to an onion service: it has a say in it")
            return OnionRequest(self.onion_services(), host, port, isolation=isolation)
        internal = self.current.testing
        return Request(
            self.circuits, self.refusals, host, port, isolation=isolation, path=path, allow_internal=internal
        )

    async def acquire_unshared(self) -> Circuit:
        """Returns a circuit that no other request gets. Raises as `Circuits.acquire`."""
        need = Need(LOOK_UP, isolation=object(), identity=self.circuits.identity, may_be_linked=False)
        circuit = await self.circuits.acquire(need, trio.current_time() + STREAM_TIMEOUT)
        assert isinstance(circuit, Circuit)
        return circuit

    async def build_linked(self, port: int) -> LinkedCircuit:
        """Returns two linked circuits to an exit for `port`. Raises UsageError; and as `Sets.build`."""
        if self.sets is None:
            raise UsageError("this client links no circuits")
        return await self.sets.build(ExitByLegs(port))

    def renew(self) -> None:
        """From now on, have nothing new share anything with what was before."""
        self.circuits.renew()
        self.refusals.forget_targets()
        self.vanguards.forget()
        if self.reserve is not None:
            self.reserve.renew()
        if self.onions is not None:
            self.onions.forget()

    def check_open(self) -> None:
        """Raises UsageError where the client is closed: nothing would answer any more."""
        if self._is_closed:
            raise closed()

    async def wait_ready(self) -> None:
        """Until circuits can be built. Raises NoDirectory, or what made the directory's sources fail."""
        await self.keeper.wait_ready()
        await self.guards.has_agreed.wait()
        self.guards.warn_of_restrictions()

    async def run(self) -> None:
        """Keep the directory new and circuits ready; never returns."""
        with self._background:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.keeper.run)
                nursery.start_soon(self.circuits.watch_clock)
                await self.keeper.is_ready.wait()
                await self.guards.has_agreed.wait()
                nursery.start_soon(self.spares.keep, self._settings.spare_circuits)
                if self.reserve is not None:
                    self.reserve.expect()  # as C tor, which takes it that they may be wanted
                    nursery.start_soon(self.reserve.keep)
                    nursery.start_soon(self.spares.learn)
                    nursery.start_soon(self.state.keep)

    async def aclose(self) -> None:
        """Close every circuit, and see what has been sealed off, within CLOSE_TIMEOUT."""
        self._is_closed = True
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            self._background.cancel()  # or spare circuits would be built in place of those closed
            self.circuits.close()
            if self.onions is not None:
                self.onions.close()
            if self.reserve is not None:
                self.reserve.close()
            async with trio.open_nursery() as nursery:  # a relay that takes nothing may use up the time
                nursery.start_soon(self.state.save)
                await self.channels.drain()


def closed() -> UsageError:
    """Returns the error for calls of a client that is closed."""
    return UsageError("this client of torkit is closed")
