"""Tor for programs: connect, resolve, and the circuits and directory underneath.

async with open_tor(network=load_network(None), data_dir=data_dir(None)) as tor:
    stream = await tor.connect("example.com", 80)
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path as FilePath
from random import Random, SystemRandom
from typing import Literal, TypeVar

import trio

from torkit.config import Network
from torkit.directory.cache import Cache
from torkit.directory.consensus import Consensus, parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.errors import (
    Closed,
    EndReason,
    NoDirectory,
    NoGuard,
    NoPath,
    PeerError,
    StorageError,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
)
from torkit.guards import Guards
from torkit.net.bootstrap import Bootstrap
from torkit.net.channels import Channels
from torkit.net.circuit import Circuit, CircuitSettings
from torkit.net.circuits import SPARE_COUNT, Circuits, Path, build_circuit
from torkit.net.contact import DirectoryServer
from torkit.net.sources import Sources
from torkit.net.stream import Stream
from torkit.path import Constraints, choose_path
from torkit.proto.circuit import Cgo
from torkit.proto.flow import ClockGuard
from torkit.proto.messages import ResolvedError

# As C tor: two attempts of 10 s on different circuits, then 15 s each. path-spec, "Handling failure".
ATTEMPT_TIMEOUTS = (10.0, 10.0, 15.0)

# Ends that another exit may not give, as C tor takes them; DESTROY is a circuit's fault.
_RETRIED = frozenset(
    {
        EndReason.DESTROY,
        EndReason.EXITPOLICY,
        EndReason.HIBERNATING,
        EndReason.MISC,
        EndReason.NOROUTE,
        EndReason.RESOLVEFAILED,
        EndReason.RESOURCELIMIT,
    }
)

CLOSE_TIMEOUT = 2.0  # seconds that closing waits for what has been sealed to be sent

# What `settle` asks an exit: an address, which it answers by itself. One of TEST-NET-1, that nobody has.
SETTLE_QUESTION = "192.0.2.1"
SETTLE_TIMEOUT = 60.0  # seconds; a full congestion window at 8 KB/s

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resolved:
    """One answer to a look-up; `ttl` in seconds."""

    kind: Literal["ipv4", "ipv6", "hostname"]
    value: str
    ttl: int


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
        spare_circuits: int,
        consensus: bytes | None,
    ) -> None:
        self.network = network
        self._cache = cache
        self._nursery = nursery
        self._rng = rng
        self._background = trio.CancelScope()
        self._cgo = cgo
        self._spare_circuits = spare_circuits
        self._clock = ClockGuard()
        self._guards = _load_guards(cache)
        self._channels = Channels(nursery, rng)
        self._circuits = Circuits(self._channels, self._choose_for, self._circuit_settings, rng)
        self._bootstrap = Bootstrap(
            authorities=network.voters,
            sources=self._directory_sources,
            cache=cache,
            channels=self._channels,
            rng=rng,
            consensus=None if consensus is None else parse_consensus(consensus),
        )

    async def wait_ready(self) -> None:
        """Until circuits can be built. Raises NoDirectory, or what made the directory's sources fail."""
        await self._bootstrap.wait_ready()

    async def fetch_consensus(self) -> Consensus:
        """A verified consensus that is live, from the cache or the network. Raises as `wait_ready`."""
        return await self._bootstrap.wait_consensus()

    async def download_consensus(self, flavor: str = "microdesc", held: Consensus | None = None) -> Consensus:
        """A live consensus, `microdesc` or `ns`, from the network even if there is one; nothing else uses it.

        With `held`, one of this flavor, only what has changed since is asked for.
        Raises NoDirectory, DocumentError, or what made the directory's sources fail.
        """
        return await self._bootstrap.download(flavor, held)

    @property
    def directory(self) -> Directory:
        """The newest usable directory. Raises NoDirectory before there is one."""
        if self._bootstrap.directory is None:
            raise self._bootstrap.failure or NoDirectory("there is no directory yet")
        return self._bootstrap.directory

    async def connect(
        self, host: str, port: int, *, isolation: Hashable = None, path: Path | None = None
    ) -> Stream:
        """A stream to `host`, a name or address that the exit resolves; never looked up here.

        Streams share circuits only where `isolation` is equal. Attempts that fail for a circuit's or an
        exit's fault are repeated elsewhere. Raises StreamClosed with the exit's reason, TimedOut, NoPath,
        or what made circuits fail.
        """
        _refuse_special(host)
        is_ipv6 = ":" in host

        async def begin(circuit: Circuit) -> Stream:
            stream = circuit.begin(host, port)
            try:
                await stream.wait_connected()
            except BaseException:
                stream.close()
                raise
            return stream

        return await self._attempt(begin, port, is_ipv6, isolation, path)

    async def resolve(
        self, host: str, *, isolation: Hashable = None, path: Path | None = None
    ) -> list[Resolved]:
        """The addresses of a name, or for an address its names, as an exit sees them.

        Raises as `connect` does; StreamClosed with RESOLVEFAILED where there is no answer.
        """
        _refuse_special(host)
        try:
            question: str | IPv4Address | IPv6Address = ip_address(host)
        except ValueError:
            question = host

        async def look_up(circuit: Circuit) -> list[Resolved]:
            found = []
            for answer in await circuit.resolve(question):
                if isinstance(answer.value, str):
                    found.append(Resolved("hostname", answer.value, answer.ttl))
                elif not isinstance(answer.value, ResolvedError):
                    kind: Literal["ipv4", "ipv6"] = "ipv4" if answer.value.version == 4 else "ipv6"
                    found.append(Resolved(kind, str(answer.value), answer.ttl))
            if not found:
                raise StreamClosed("the exit found no answer", reason=EndReason.RESOLVEFAILED)
            return found

        return await self._attempt(look_up, None, False, isolation, path)

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

    async def _attempt(
        self,
        use: Callable[[Circuit], Awaitable[T]],
        port: int | None,
        is_ipv6: bool,
        isolation: Hashable,
        path: Path | None,
    ) -> T:
        """Use a circuit, and where that fails for its or its exit's fault, another."""
        failure: TorkitError = TimedOut("the stream was not tried")
        excluded: set[bytes] = set()
        for timeout in ATTEMPT_TIMEOUTS:
            try:
                circuit = await self._circuits.acquire(
                    port, is_ipv6=is_ipv6, isolation=isolation, path=path, excluded=excluded
                )
            except NoPath:
                if not excluded:
                    raise
                break  # no other exit is left: why the last one failed says more
            try:
                with trio.move_on_after(timeout):
                    return await use(circuit)
                self._circuits.retire(circuit)
                failure = TimedOut(f"the exit did not answer within {timeout:.0f} s")
            except StreamClosed as error:
                if error.reason not in _RETRIED:
                    raise
                failure = error
            except (PeerError, Closed) as error:
                failure = error
            excluded.add(circuit.path[-1].identity)
        raise failure

    def choose_path(self, constraints: Constraints) -> Path:
        """Relays for `constraints`, beginning at our guard unless they name another.

        Raises NoPath, NoGuard, UsageError as torkit.path does, NoDirectory before there is one.
        """
        constraints = replace(constraints, distinct_subnets=self.network.distinct_subnets)
        if constraints.guard is None:
            constraints = replace(constraints, guard=self._guard(constraints).fingerprint)
        return choose_path(self.directory, constraints, self._rng)

    async def build_circuit(self, path: Path) -> Circuit:
        """A circuit of its own through exactly these relays; the caller closes it."""
        return await build_circuit(self._channels, path, self._circuit_settings(), self._rng)

    # --- what the parts below ask for -------------------------------------------------------------

    def _circuit_settings(self) -> CircuitSettings:
        return CircuitSettings(self.directory.consensus.params, self._cgo, self._clock)

    def _choose_for(self, port: int | None, is_ipv6: bool, excluded: Collection[bytes]) -> Path:
        guard = self._guard(Constraints()).fingerprint
        exclude = frozenset(identity.hex().upper() for identity in excluded) - {guard}
        return self.choose_path(Constraints(port=port, ipv6=is_ipv6, guard=guard, exclude=exclude))

    def _guard(self, constraints: Constraints) -> Relay:
        known = list(self._guards.identities)
        constraints = replace(constraints, distinct_subnets=self.network.distinct_subnets)
        guard = self._guards.choose(
            self.directory,
            constraints,
            self._channels.failed_at,
            now=trio.current_time(),
            rng=self._rng,
        )
        if self._guards.identities != known:
            self._nursery.start_soon(self._save_guards)
        return guard

    async def _save_guards(self) -> None:
        try:
            await trio.to_thread.run_sync(self._cache.save_state, self._guards.to_state())
        except StorageError as error:
            logger.warning("the guard could not be kept: %s", error)

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

    def _directory_guards(self, directory: Directory | None) -> list[Relay]:
        """The guard in use, then others of the list: who knows us already. guard-spec."""
        if directory is None:
            return []
        try:
            guard = self._guard(Constraints())
        except NoGuard:
            return []
        listed = (directory.relay(identity) for identity in self._guards.identities)
        others = [one for one in listed if one is not None and one != guard and "Running" in one.flags]
        return [one for one in (guard, *others) if "V2Dir" in one.flags]

    async def run(self) -> None:
        """Keep the directory new and circuits ready; never returns."""
        with self._background:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._bootstrap.run)
                await self._bootstrap.is_ready.wait()
                nursery.start_soon(self._circuits.keep_spares, self._spare_circuits)

    async def aclose(self) -> None:
        """Close every circuit, and see what has been sealed off, within CLOSE_TIMEOUT."""
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            self._background.cancel()  # or spare circuits would be built in place of those closed
            self._circuits.close()
            await self._channels.drain()


@asynccontextmanager
async def open_tor(
    *,
    network: Network,
    data_dir: FilePath,
    cgo: Cgo = Cgo.EXIT,
    spare_circuits: int = SPARE_COUNT,
    consensus: bytes | None = None,
) -> AsyncIterator[Tor]:
    """A client that fetches what it needs in the background; closed with its circuits at the end.

    `cgo` says which hops are asked for Counter Galois Onion; by default those that C tor asks, since
    whoever asks others is easier to tell apart. `spare_circuits` are kept ready for streams to come; none
    serves a program that opens one and ends. With `consensus`, that document is verified and used
    instead of the cached or a fetched one. Raises DocumentError if it is none.
    """
    rng = SystemRandom()
    try:
        async with trio.open_nursery() as nursery:
            tor = Tor(
                network,
                Cache(data_dir),
                nursery,
                rng,
                cgo=cgo,
                spare_circuits=spare_circuits,
                consensus=consensus,
            )
            nursery.start_soon(tor.run)
            try:
                yield tor
            finally:
                await tor.aclose()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The background tasks raise nothing: a single exception is the caller's own.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def _load_guards(cache: Cache) -> Guards:
    try:
        return Guards.from_state(cache.load_state() or {})
    except StorageError as error:
        logger.warning("the guards of earlier starts cannot be read: %s", error)
        return Guards([])


def _refuse_special(host: str) -> None:
    """Names that mean something else than a host to look up at an exit."""
    last_label = host.rstrip(".").lower().rpartition(".")[2]
    if last_label == "onion":
        raise UsageError("onion services are not supported yet")
    if last_label == "exit":
        raise UsageError("names in .exit are not supported", hint="choose an exit with --path")
