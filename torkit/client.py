"""Tor for programs: connect, resolve, and the circuits and directory underneath.

async with open_tor(network=load_network(None), data_dir=data_dir(None)) as tor:
    stream = await tor.connect("example.com", 80)
"""

import logging
import os
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

import trio

from torkit.build_times import BuildTimes
from torkit.config import Network, make_data_dir
from torkit.directory.cache import Cache
from torkit.directory.consensus import Consensus, Preamble, read_preamble
from torkit.directory.directory import CountryOf, Directory
from torkit.errors import EndReason, InternalError, StorageError, StreamClosed, TimedOut, UsageError
from torkit.guards import Guards
from torkit.net.bootstrap import Bootstrap
from torkit.net.channels import Channels
from torkit.net.circuit import Circuit
from torkit.net.circuits.build import Builder, build_circuit
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import LOOK_UP, Need, OnionDirectory, Path
from torkit.net.circuits.spares import SPARE_COUNT, Spares
from torkit.net.contact import Contact, DirectoryServer
from torkit.net.current import Current
from torkit.net.guards import GuardKeeper
from torkit.net.journal import Events, trace
from torkit.net.memory import limit_memory
from torkit.net.paths import Paths
from torkit.net.progress import Changes, Progress
from torkit.net.pump import Pump
from torkit.net.request import STREAM_TIMEOUT, Request, Resolved
from torkit.net.sources import Sources
from torkit.net.state import StateFile
from torkit.net.stream import Stream
from torkit.path import Constraints, country_in, places_of
from torkit.predicted_ports import PredictedPorts
from torkit.proto.circuit import Cgo
from torkit.proto.padding import Padding
from torkit.refusals import Refusals
from torkit.vanguards import Vanguards

if TYPE_CHECKING:
    from torkit.hs.client_auth import ClientKey
    from torkit.hs.descriptor import Descriptor
    from torkit.net.onion import Descriptors

CLOSE_TIMEOUT = 2.0  # seconds that closing waits for what has been sealed to be sent

# What `settle` asks an exit: an address, which it answers by itself. One of TEST-NET-1, that nobody has.
SETTLE_QUESTION = "192.0.2.1"
SETTLE_TIMEOUT = 60.0  # seconds; a full congestion window at 8 KB/s

logger = logging.getLogger(__name__)


class Tor:
    """A client of one network; made by `open_tor`."""

    def __init__(
        self,
        network: Network,
        cache: Cache,
        nursery: trio.Nursery,
        rng: Random,
        *,
        cgo: Cgo,
        padding: Padding,
        spare_circuits: int,
        consensus: bytes | None,
        restrictions: Constraints,
        country_of: CountryOf | None,
        state: dict[str, Any],
        guards: Guards,
    ) -> None:
        self.network = network
        self._rng = rng
        self._background = trio.CancelScope()
        self._restrictions = restrictions
        self._spare_circuits = spare_circuits
        self._has_warned = False
        self._current = Current(cgo=cgo, testing=network.testing)
        self._state = StateFile(cache)
        self._guards = GuardKeeper(
            guards,
            self._current,
            self._state,
            nursery,
            rng,
            restrictions,
            keeps_counts=spare_circuits > 0,
        )
        self._refusals = Refusals()
        self._vanguards = Vanguards(restrictions, rng)
        self._paths = Paths(self._current, self._guards, self._refusals, self._vanguards, restrictions, rng)
        self._channels = Channels(
            nursery,
            rng,
            padding=padding,
            params=self._current.params,
            progress=self._current.journal.progress,
        )
        self._build_times = BuildTimes.from_state(state, rng=rng, param=self._current.param)
        self._state.add(self._build_times, is_watched=spare_circuits > 0)  # not for one circuit
        builder = Builder(self._channels, self._paths, self._current, rng, nursery, self._build_times)
        self._circuits = Circuits(builder, PredictedPorts(self._current.param), rng, nursery)
        self._spares = Spares(self._circuits, self._build_times, self._current)
        self._descriptors: Descriptors | None = None  # made when an onion name is used
        self._bootstrap = Bootstrap(
            authorities=network.voters,
            sources=self._directory_sources,
            cache=cache,
            channels=self._channels,
            settings=self._current.circuit_settings,
            rng=rng,
            consensus=None if consensus is None else read_preamble(consensus),
            country_of=country_of,
            current=self._current,
            first_hop=self._guards.attempt,
            missing_guards=self._guards.lacking,
            agree_on_guards=self._guards.agree,
        )
        for reader in (self._refusals_note, self._circuits.note_directory, self._guards.note_directory):
            self._current.add_reader(reader)

    async def wait_ready(self) -> None:
        """Until circuits can be built. Raises NoDirectory, or what made the directory's sources fail."""
        await self._bootstrap.wait_ready()
        await self._guards.has_agreed.wait()
        if not self._has_warned:
            self._has_warned = True
            self._warn_of_restrictions()

    @property
    def progress(self) -> Progress:
        """How far this start has come: phase, percentage, and what is in the way if anything is."""
        return self._current.journal.progress.now

    def progress_changes(self) -> Changes:
        """To iterate over: the progress now and whenever it has changed since, the newest only.

        Ends when the first circuit has been built: for `spare_circuits`, or for somebody who needs one.
        """
        return self._current.journal.progress.changes()

    def events(self) -> Events:
        """What happens from now on, as records of torkit.events: an asynchronous iterator that never ends.

        To circuits, streams, guards, the directory and the start. It listens until it is dropped. No record
        names a destination.
        """
        return self._current.journal.events()

    def __repr__(self) -> str:
        known = self._current.known
        directory = "no directory" if known is None else f"{len(known)} relays"
        return f"<Tor: {self.progress.summary}, {directory}, {self._circuits!r}>"

    async def fetch_consensus(self) -> Consensus:
        """A verified consensus that is live, from the cache or the network. Raises as `wait_ready`."""
        return await self._bootstrap.wait_consensus()

    async def download_consensus(self, flavor: str = "microdesc", held: Preamble | None = None) -> Consensus:
        """A live consensus, `microdesc` or `ns`, from the network even if there is one; nothing else uses it.

        With `held`, one of this flavor, only what has changed since is asked for.
        Raises NoDirectory, DocumentError, or what made the directory's sources fail.
        """
        return await self._bootstrap.download(flavor, held)

    @property
    def directory(self) -> Directory:
        """The newest usable directory. Raises NoDirectory before there is one."""
        return self._current.directory

    def request(
        self, host: str, port: int | None, *, isolation: Hashable = None, path: Path | None = None
    ) -> Request:
        """A stream as `connect` opens it, or without a port a look-up, for whoever begins it by hand.

        Raises UsageError for what no exit can reach, and NoPath where the exit of `path` does not allow it.
        """
        return Request(
            self._circuits,
            self._refusals,
            host,
            port,
            isolation=isolation,
            path=path,
            allow_internal=self.network.testing,
        )

    async def connect(
        self, host: str, port: int, *, isolation: Hashable = None, path: Path | None = None
    ) -> Stream:
        """A stream to `host`, a name or address that the exit resolves; never looked up here.

        Streams share circuits only where `isolation` is equal: any value, as `object()` for a session or a
        tuple for one of a group. Attempts that fail for a circuit's or an exit's fault are repeated
        elsewhere; not with `path`, whose exit's policy is asked first. Raises UsageError for what no exit
        can reach, StreamClosed with the exit's reason, TimedOut, NoPath, or what made circuits fail.
        """
        return await self.request(host, port, isolation=isolation, path=path).connect()

    async def resolve(
        self, host: str, *, isolation: Hashable = None, path: Path | None = None
    ) -> list[Resolved]:
        """The addresses of a name, or for an address its names, as an exit sees them.

        Raises as `connect` does; StreamClosed with RESOLVEFAILED where there is no answer. An answer that
        is internal to a network is none: a program that took it would connect to somebody else's.
        """
        return await self.request(host, None, isolation=isolation, path=path).resolve()

    def new_identity(self) -> None:
        """From now on, streams use circuits that no stream of before has used; those go on as they are.

        The guard stays: a new one would be a risk, and tells nobody who we are.
        """
        self._circuits.renew()
        self._refusals.forget_targets()
        self._vanguards.forget()
        if self._descriptors is not None:
            self._descriptors.forget()

    async def settle(self, stream: Stream) -> None:
        """End `stream`, and wait until the exit has all that was sent on it.

        For those who close the client next: relays drop what they still hold of a circuit when it is
        destroyed. Cells arrive in order, so an answer to what is sent last says that all has come. Raises
        TimedOut, or what ended the circuit first.
        """
        stream.close()
        try:
            with trio.fail_after(SETTLE_TIMEOUT):
                await stream.circuit.resolve(SETTLE_QUESTION)
        except StreamClosed as error:
            if error.reason is EndReason.DESTROY:
                raise
        except trio.TooSlowError:
            raise TimedOut(f"the exit did not take what was sent within {SETTLE_TIMEOUT:g} s") from None

    def choose_path(self, constraints: Constraints) -> Path:
        """Relays for `constraints`, beginning at our guard unless they name another.

        Raises NoPath, NoGuard, UsageError as torkit.path does, NoDirectory before there is one.
        """
        return self._paths.choose_for(constraints)

    async def build_circuit(self, path: Path | None = None) -> Circuit:
        """A circuit of its own through exactly these relays; the caller closes it.

        Without `path` relays are chosen, and others where these fail, as for streams. Raises what made the
        circuit fail, TimedOut, NoPath, NoGuard.
        """
        if path is None:
            give_up_at = trio.current_time() + STREAM_TIMEOUT
            need = Need(LOOK_UP, isolation=object(), identity=self._circuits.identity)
            return await self._circuits.acquire(need, give_up_at)
        timeouts = self._build_times.timeouts.for_hops(len(path))
        settings = self._current.circuit_settings()
        guard = self._paths.given(path).guard
        return await build_circuit(self._channels, path, settings, self._rng, timeouts, guard=guard)

    async def onion_descriptor(self, address: str, client_key: "ClientKey | None" = None) -> "Descriptor":
        """The descriptor of an onion service, every check passed: from its directories, or as it was kept.

        `address` ends in `.onion`; `client_key` opens what the service keeps for clients that it knows.
        Raises OnionServiceError, which says at which step, NoDirectory, or what made circuits fail.
        """
        from torkit._fast.keys import X25519PrivateKey
        from torkit.hs.address import parse_address as parse_onion_address
        from torkit.net.onion import Descriptors

        identity = parse_onion_address(address)
        key = None
        if client_key is not None:
            if client_key.identity != identity:
                raise UsageError("the client key is for another onion service")
            key = X25519PrivateKey(client_key.secret)
        if self._descriptors is None:
            self._descriptors = Descriptors(
                lambda: self.directory,
                lambda relay: self._circuits.open(OnionDirectory(relay)),
                self._rng,
                testing=self.network.testing,
            )
        return await self._descriptors.get(identity, key)

    def _refusals_note(self, directory: Directory) -> None:
        self._refusals.note_consensus(directory.consensus.valid_after)

    def _warn_of_restrictions(self) -> None:
        """A name that means nobody excludes nobody; and few guards that are left tell a user from others."""
        restrictions = self._restrictions
        for name in sorted(restrictions.entries | restrictions.exits | restrictions.exclude):
            if not places_of(self.directory, [name]):
                hint = f"; the country is {{{name}}}" if len(name) == 2 else ""
                logger.warning("no relay %s in the directory%s", name, hint)
        if self._guards.is_extremely_restricted(self.directory):
            logger.warning("hardly any guard is allowed: this client is easy to tell from others")

    def _directory_sources(self, directory: Directory | None) -> Sources:
        """Our guards once there are any to ask; fallbacks and authorities, each in random order."""
        fallbacks = [
            DirectoryServer(f.identity, f.address, f.or_port, f.ipv6) for f in self.network.fallbacks
        ]
        authorities = [
            DirectoryServer(a.fingerprint, a.address, a.or_port, a.ipv6)
            for a in self.network.authorities
            if a.or_port is not None
        ]
        for servers in (fallbacks, authorities):
            self._rng.shuffle(servers)
        return Sources(self._directory_guards(directory), fallbacks, authorities)

    def _directory_guards(self, directory: Directory | None) -> list[Contact]:
        if directory is None:
            return []
        chosen = self._guards.for_directory(directory)
        return [contact for identity in chosen if (contact := _directory_contact(directory, identity))]

    async def run(self) -> None:
        """Keep the directory new and circuits ready; never returns."""
        with self._background:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._bootstrap.run)
                nursery.start_soon(self._circuits.watch_clock)
                await self._bootstrap.is_ready.wait()
                await self._guards.has_agreed.wait()
                nursery.start_soon(self._spares.keep, self._spare_circuits)
                if self._spare_circuits:
                    nursery.start_soon(self._spares.learn)
                    nursery.start_soon(self._state.keep)

    async def aclose(self) -> None:
        """Close every circuit, and see what has been sealed off, within CLOSE_TIMEOUT."""
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            self._background.cancel()  # or spare circuits would be built in place of those closed
            self._circuits.close()
            await self._channels.drain()
            await self._state.save()


@asynccontextmanager
async def open_tor(
    *,
    network: Network,
    data_dir: FilePath,
    cgo: Cgo = Cgo.EXIT,
    padding: Padding = Padding.AUTO,
    spare_circuits: int = SPARE_COUNT,
    consensus: bytes | None = None,
    restrictions: Constraints | None = None,
    country_of: CountryOf | None = None,
    max_memory: int | None = None,
) -> AsyncIterator[Tor]:
    """A client that fetches what it needs in the background; closed with its circuits at the end.

    `data_dir` keeps cache and guards, and is made where it is not there yet.

    `cgo` says which hops are asked for Counter Galois Onion; by default those that C tor asks, since
    whoever asks others is easier to tell apart. With less `padding` than by default, records of the traffic
    to the guard tell better when this client was used. `spare_circuits` are kept ready for streams to come;
    none serves a program that opens one and ends. With `consensus`, that document is verified and used
    instead of the cached or a fetched one. Of `restrictions`, the `entries`, `exits` and `exclude` hold for
    every path: each makes this client easier to tell from others. Those that name countries need
    `country_of`, such as torkit.directory.geoip.country_of on a file. `max_memory` bytes may wait in the
    queues of all clients of this process, by default a quarter of the machine's memory: over that, whoever
    holds most ends. Raises DocumentError if `consensus` is
    none, StorageError where `data_dir` cannot be made. Cancels the caller's block and raises InternalError
    where a fault of ours has ended every connection.
    """
    make_data_dir(data_dir)
    limit_memory(max_memory)
    rng = SystemRandom()
    restrictions = (restrictions or Constraints())._replace(distinct_subnets=network.distinct_subnets)
    names = restrictions.entries | restrictions.exits | restrictions.exclude
    if country_of is None and any(map(country_in, names)):
        raise UsageError("restrictions by country need country_of")
    cache = Cache(data_dir)
    state, guards = await trio.to_thread.run_sync(_load_state, cache, restrictions, rng, time.time())
    try:
        async with trio.open_nursery() as nursery:
            tor = Tor(
                network,
                cache,
                nursery,
                rng,
                cgo=cgo,
                padding=padding,
                spare_circuits=spare_circuits,
                consensus=consensus,
                restrictions=restrictions,
                country_of=country_of,
                state=state,
                guards=guards,
            )
            if os.environ.get("TORKIT_TRACE") == "1":
                tor._current.journal.add(trace)
            nursery.start_soon(tor.run)
            nursery.start_soon(Pump.current().wait_fault)
            try:
                yield tor
            finally:
                await tor.aclose()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The background tasks raise nothing but the pump's failure: else a single exception is the caller's.
        for error in group.exceptions:
            if isinstance(error, InternalError):
                raise error from group
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def _directory_contact(directory: Directory, identity: bytes) -> Contact | None:
    """A relay to ask for documents, also where its microdescriptor has not come; None if it serves none."""
    place = directory.consensus.relays.index_of(identity)
    if place is None:
        return None
    status = directory.consensus.relays[place]
    if "V2Dir" not in status.flags:
        return None
    known = DirectoryServer(identity, status.address, status.or_port, status.ipv6)
    return directory.relay_at(place) or known


def _load_state(
    cache: Cache, restrictions: Constraints, rng: Random, now: float
) -> tuple[dict[str, Any], Guards]:
    """What earlier starts have kept. What cannot be read of it is told, and stays in a file beside it."""
    try:
        state = cache.load_state() or {}
    except StorageError as error:
        logger.warning("the guards of earlier starts cannot be read: %s", error)
        state = {}
    guards, complaints = Guards.from_state(state, now=now, rng=rng, restrictions=restrictions)
    for complaint in complaints:
        logger.warning("left out of the state that was kept: %s", complaint)
    if complaints:
        try:
            logger.warning("the state as it was is kept as %s", cache.set_state_aside())
            cache.update_state(state | guards.to_state())
        except StorageError as error:
            logger.warning("the state cannot be set aside: %s", error)
    return state, guards
