"""Tor for programs: connect, resolve, and the circuits and directory underneath.

async with open_tor() as tor:
    stream = await tor.connect("example.com", 80)
"""

import os
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from random import SystemRandom
from typing import TYPE_CHECKING

import trio

from torkit.config import Network, StrPath, chosen_data_dir, chosen_network
from torkit.directory.cache import Cache
from torkit.directory.consensus import Consensus, Preamble
from torkit.directory.directory import CountryOf, Directory
from torkit.errors import InternalError, UsageError
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.stream import Stream
from torkit.net.circuits.purpose import LOOK_UP, Need, Path
from torkit.net.circuits.request import STREAM_TIMEOUT, Request, Resolved, settle
from torkit.net.circuits.spares import SPARE_COUNT
from torkit.net.contact import DirectoryServer
from torkit.net.dir.servers import Sources
from torkit.net.journal import Events, trace
from torkit.net.link.pump import Pump
from torkit.net.memory import limit_memory
from torkit.net.parts import Parts
from torkit.net.progress import Changes, Progress
from torkit.net.shortage import run_in_thread
from torkit.net.state import load_state
from torkit.paths.constraints import Constraints, VanguardMode, country_in
from torkit.proto.circuit import Cgo
from torkit.proto.destination import is_onion
from torkit.proto.padding import Padding

if TYPE_CHECKING:
    import ssl
    from pathlib import Path as FilePath

    from torkit.hs.client_auth import ClientKey
    from torkit.hs.descriptor import Descriptor
    from torkit.hs.keys import SecretKey
    from torkit.net.hosting.means import Wishes
    from torkit.net.hosting.serve import OnionListener, Ports
    from torkit.net.journal import Listener
    from torkit.net.monitor.status import Status
    from torkit.net.onion.request import OnionRequest


class Tor:
    """A client of one network; made by `open_tor`."""

    def __init__(self, network: Network, parts: Parts, apart: object = None) -> None:
        """`apart` keeps the streams of this object on circuits of their own."""
        self.network = network
        self._parts = parts
        self._apart = apart

    def __repr__(self) -> str:
        known = self._parts.current.known
        directory = "no directory" if known is None else f"{len(known)} relays"
        return f"<Tor: {self.progress.summary}, {directory}, {self._parts.circuits!r}>"

    @property
    def data_dir(self) -> "FilePath":
        """The directory of cache and state."""
        return self._parts.data_dir

    def isolated(self) -> "Tor":
        """Returns the same client, for requests that share no circuit with another object's.

        Directory, guards and identity are common, and it ends with the client that it is of.
        """
        return Tor(self.network, self._parts, apart=object())

    async def wait_ready(self) -> None:
        """Wait until circuits can be built, without a deadline. Calls before that raise NoDirectory.

        Raises NoDirectory, or what made the directory's sources fail.
        """
        self._check_open()
        await self._parts.wait_ready()

    @property
    def progress(self) -> Progress:
        """The progress of this start: its phase, percentage, and the obstacle, if there is one."""
        return self._parts.journal.progress.now

    def progress_changes(self) -> Changes:
        """Returns an iterator: the progress now and whenever it has changed, the newest only.

        Ends when the first circuit has been built: for `spare_circuits`, or for somebody who needs one.
        """
        return self._parts.journal.progress.changes()

    def events(self) -> Events:
        """Returns an asynchronous iterator over all events from now on, endless: records of torkit.events.

        To circuits, streams, guards, the directory and the start. It listens until it is dropped. No record
        names a destination.
        """
        return self._parts.journal.events()

    def listen(self, listener: "Listener") -> None:
        """Call `listener` at once with every event from now on. It must neither wait nor raise."""
        self._parts.journal.add(listener)

    def status(self) -> "Status":
        """Returns the state now: circuits, streams, guards, bytes of streams. It names no destination."""
        from torkit.net.monitor.status import look_at

        return look_at(self._parts)

    async def fetch_consensus(self) -> Consensus:
        """Returns a verified consensus that is live, from the cache or the network.

        Raises as `wait_ready`.
        """
        self._check_open()
        return await self._parts.keeper.wait_consensus()

    async def download_consensus(self, flavor: str = "microdesc", held: Preamble | None = None) -> Consensus:
        """Returns a live consensus, `microdesc` or `ns`, fetched now; the directory does not use it.

        With `held`, one of this flavor, only what has changed since is asked for.
        Raises NoDirectory, DocumentError, or what made the directory's sources fail.
        """
        self._check_open()
        return await self._parts.keeper.download(flavor, held)

    @property
    def directory(self) -> Directory:
        """The newest usable directory. Raises NoDirectory before there is one."""
        return self._parts.current.directory

    def request(
        self, host: str, port: int | None, *, isolation: Hashable = None, path: Path | None = None
    ) -> "Request | OnionRequest":
        """Returns a stream as `connect` opens it, or without a port a look-up, for whoever begins it by hand.

        Raises UsageError for what no exit can reach or where the client is closed, and NoPath where the exit
        of `path` does not allow it.
        """
        self._check_open()
        if self._apart is not None:
            isolation = self._apart, isolation
        if port is not None and is_onion(host):
            from torkit.net.onion.request import OnionRequest

            if path is not None:
                raise UsageError("no path can be given to an onion service: it has a say in it")
            return OnionRequest(self._parts.onion_services(), host, port, isolation=isolation)
        return Request(
            self._parts.circuits,
            self._parts.refusals,
            host,
            port,
            isolation=isolation,
            path=path,
            allow_internal=self.network.testing,
        )

    async def connect(
        self, host: str, port: int, *, isolation: Hashable = None, path: Path | None = None
    ) -> Stream:
        """Returns a stream to `host`, a name or address that the exit resolves; never looked up here.

        A name in .onion is an onion service's, which is met without an exit.
        Streams share circuits only where `isolation` is equal: any value, as `object()` for a session or a
        tuple for one of a group. Attempts that fail for a circuit's or an exit's fault are repeated
        elsewhere; not with `path`, whose exit's policy is asked first. That takes STREAM_TIMEOUT, 120 s, at
        most, and less where the caller's `trio.fail_after` ends it, which leaves nothing behind. Raises
        UsageError for what no exit can reach, StreamClosed with the exit's reason, OnionServiceError with the
        step that failed, TimedOut, NoPath, NoDirectory, or what made circuits fail.
        """
        return await self.request(host, port, isolation=isolation, path=path).connect()

    async def connect_tls(
        self,
        host: str,
        port: int,
        *,
        ssl_context: "ssl.SSLContext | None" = None,
        server_hostname: str | None = None,
        isolation: Hashable = None,
        path: Path | None = None,
    ) -> "trio.SSLStream[Stream]":
        """Returns a TLS stream to `host`, after the handshake: the server has proved to be `server_hostname`.

        By default that is `host`, and the system's authorities say so. Raises as `connect` does, StreamClosed
        where the stream ends within the handshake, and ssl.SSLError where the handshake fails, such as
        ssl.SSLCertVerificationError. The handshake has no deadline but the caller's. A stream that is cut
        off raises trio.BrokenResourceError: no cut looks like an end.
        """
        import ssl

        context = ssl_context or ssl.create_default_context()
        stream = await self.connect(host, port, isolation=isolation, path=path)
        tls = trio.SSLStream(stream, context, server_hostname=server_hostname or host)
        try:
            await tls.do_handshake()
        except BaseException as error:
            stream.close()
            if isinstance(error, trio.BrokenResourceError) and isinstance(error.__cause__, ssl.SSLError):
                raise error.__cause__ from None
            raise
        return tls

    async def resolve(
        self, host: str, *, isolation: Hashable = None, path: Path | None = None
    ) -> list[Resolved]:
        """Returns the addresses of a name, or for an address its names, as an exit sees them.

        Raises as `connect` does; StreamClosed with RESOLVEFAILED where there is no answer. An answer that
        is internal to a network is none: a program that took it would connect to somebody else's.
        """
        request = self.request(host, None, isolation=isolation, path=path)
        assert isinstance(request, Request)
        return await request.resolve()

    def new_identity(self) -> None:
        """From now on, new streams use circuits that no earlier stream has used. Earlier streams go on.

        The guard stays: it tells nobody who we are, and a new one would be a risk.
        """
        self._parts.circuits.renew()
        self._parts.refusals.forget_targets()
        self._parts.vanguards.forget()
        if self._parts.reserve is not None:
            self._parts.reserve.renew()
        if self._parts.onions is not None:
            self._parts.onions.forget()

    async def settle(self, stream: Stream) -> None:
        """End `stream`, and wait until the exit has all that was sent on it.

        Call it before closing the client: relays drop cells that they still hold of a destroyed circuit.
        Cells arrive in order, so an answer to the last one says that all have come. Raises TimedOut, or what
        ended the circuit first.
        """
        await settle(stream)

    def choose_path(self, constraints: Constraints) -> Path:
        """Returns relays for `constraints`, beginning at our guard unless they name another.

        Raises NoPath, NoGuard, UsageError as torkit.paths.choose does, NoDirectory before there is one.
        """
        return self._parts.paths.choose_for(constraints)

    async def build_circuit(self, path: Path | None = None) -> Circuit:
        """Returns a circuit of its own through exactly these relays; the caller closes it.

        Without `path` relays are chosen, and others where these fail, as for streams. Raises what made the
        circuit fail, TimedOut, NoPath, NoGuard.
        """
        self._check_open()
        if path is None:
            give_up_at = trio.current_time() + STREAM_TIMEOUT
            need = Need(
                LOOK_UP, isolation=object(), identity=self._parts.circuits.identity, may_be_linked=False
            )
            circuit = await self._parts.circuits.acquire(need, give_up_at)
            assert isinstance(circuit, Circuit)
            return circuit
        return await self._parts.builder.build_through(path)

    async def onion_descriptor(self, address: str, client_key: "ClientKey | None" = None) -> "Descriptor":
        """Returns the verified descriptor of an onion service, from its directories, or as it was kept.

        `address` ends in `.onion`; `client_key` opens what the service keeps for clients that it knows.
        Raises OnionServiceError, which says at which step, NoDirectory, or what made circuits fail.
        """
        from torkit._fast.keys import X25519PrivateKey
        from torkit.hs.address import parse_address

        self._check_open()
        identity = parse_address(address)
        if client_key is not None and client_key.identity != identity:
            raise UsageError("the client key is for another onion service")
        key = None if client_key is None else X25519PrivateKey(client_key.secret)
        return await self._parts.onion_services().descriptor(identity, key)

    @asynccontextmanager
    async def serve_onion(
        self, ports: "Ports", key: "SecretKey | None" = None, wishes: "Wishes | None" = None
    ) -> "AsyncIterator[OnionListener]":
        """An onion service, run until the block ends: a trio listener whose `address` is known at once.

        `ports` are what clients may ask for; where they map to targets (torkit.net.hosting.forward.Target),
        streams are carried there, and only the others are for `accept`. Without `key` the service is one that
        nobody knows yet. Raises UsageError for what is no port, NoDirectory before there is a directory.
        """
        from torkit.net.hosting.means import Wishes
        from torkit.net.hosting.serve import serve

        await self.wait_ready()
        async with serve(self._parts.hosting(), ports, key, wishes or Wishes()) as listener:
            yield listener

    def add_client_key(self, key: "ClientKey") -> None:
        """Use this key with the onion service that it is for, which serves only clients that it knows.

        Keys are looked for in the data directory's `onion-auth`, too.
        """
        self._parts.onion_services().keys.add(key)

    def _check_open(self) -> None:
        """Raises UsageError where the client is closed: nothing would answer any more."""
        if self._parts.is_closed:
            raise closed()


def closed() -> UsageError:
    """Returns the error for calls of a client that is closed."""
    return UsageError("this client of torkit is closed")


@asynccontextmanager
async def open_tor(
    *,
    network: Network | StrPath | None = None,
    data_dir: StrPath | None = None,
    cgo: Cgo = Cgo.EXIT,
    padding: Padding = Padding.AUTO,
    spare_circuits: int = SPARE_COUNT,
    conflux: bool = True,
    consensus: bytes | None = None,
    restrictions: Constraints | None = None,
    country_of: CountryOf | None = None,
    max_memory: int | None = None,
    pow_max_effort: int | None = None,
    vanguards: VanguardMode = VanguardMode.LITE,
) -> AsyncIterator[Tor]:
    """A client that fetches its documents in the background. It is closed, with its circuits, at the end.

    `network` is one, or the name of a file; by default the file that TORKIT_NETWORK names, else the public
    network. `data_dir` keeps cache and guards, and is made where it is not there yet; by default what
    TORKIT_DATA_DIR names, else `torkit.data_dir(network, None)`.

    `cgo` says which hops are asked for Counter Galois Onion; by default those that C tor asks, since
    whoever asks others is easier to tell apart. With less `padding` than by default, records of the traffic
    to the guard tell better when this client was used. `spare_circuits` are kept ready for streams to come;
    none serves a program that opens one and ends. Where some are and `conflux` is wanted, streams go over two
    circuits at once as C tor's do, as far as exits and the consensus allow. With `consensus`, that document
    is verified and used instead of the cached or a fetched one. Of `restrictions`, the `entries`, `exits` and
    `exclude` hold for every path: each makes this client easier to tell from others. Those that name
    countries need `country_of`, such as torkit.directory.geoip.country_of on a file. `max_memory` bytes may
    wait in the queues of all clients of this process, by default a quarter of the machine's memory: over
    that, whoever holds most ends. An onion service may ask for a proof of work of `pow_max_effort`, by
    default what takes some 40 s (torkit.hs.pow.max_effort).
    With FULL `vanguards`, circuits for onion services are one relay longer, and who attacks them takes longer
    to find the guard.

    Opening waits for files only. Closing sends what has been sealed, for CLOSE_TIMEOUT, 2 s, at most; a
    stream that is open is cut off, unless `Tor.settle` has waited for it.

    Raises UsageError outside of trio, for a network file that is none, and for arguments that do not fit;
    StorageError where the data directory cannot be made or is another user's; DocumentError if `consensus`
    is none. Cancels the caller's block and raises InternalError where a fault of ours has ended every
    connection. One exception of the caller's block comes out as it is.
    """
    if not trio.lowlevel.in_trio_task():
        raise UsageError(
            "torkit.open_tor runs under trio: use torkit.aio.open_tor under asyncio, and "
            "torkit.blocking.open_tor without an event loop"
        )
    if not isinstance(network, Network):  # in a thread: the file may be a pipe that nobody writes to
        network = await run_in_thread(chosen_network, network, abandon_on_cancel=True)
    cache = Cache(chosen_data_dir(network, data_dir))
    limit_memory(max_memory)
    rng = SystemRandom()
    restrictions = (restrictions or Constraints())._replace(distinct_subnets=network.distinct_subnets)
    names = restrictions.entries | restrictions.exits | restrictions.exclude
    if country_of is None and any(map(country_in, names)):
        raise UsageError("restrictions by country need country_of")
    state, guards = await run_in_thread(load_state, cache, restrictions, rng, time.time())
    try:
        async with trio.open_nursery() as nursery:
            parts = Parts(
                nursery,
                cache,
                rng,
                _directory_servers(network),
                voters=network.voters,
                testing=network.testing,
                cgo=cgo,
                padding=padding,
                spare_circuits=spare_circuits,
                conflux=conflux,
                consensus=consensus,
                restrictions=restrictions,
                country_of=country_of,
                pow_max_effort=pow_max_effort,
                vanguards=vanguards,
                state=state,
                guards=guards,
            )
            if os.environ.get("TORKIT_TRACE") == "1":
                parts.journal.add(trace)
            nursery.start_soon(parts.run)
            nursery.start_soon(Pump.current().wait_fault)
            try:
                yield Tor(network, parts)
            finally:
                await parts.aclose()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The background tasks raise nothing but the pump's failure: else a single exception is the caller's.
        for error in group.exceptions:
            if isinstance(error, InternalError):
                raise error from group
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def _directory_servers(network: Network) -> Sources:
    """Returns the directory servers that the network names: there are no guards to ask yet."""
    fallbacks = [DirectoryServer(f.identity, f.address, f.or_port, f.ipv6) for f in network.fallbacks]
    authorities = [
        DirectoryServer(a.fingerprint, a.address, a.or_port, a.ipv6)
        for a in network.authorities
        if a.or_port is not None
    ]
    return Sources([], fallbacks, authorities)
