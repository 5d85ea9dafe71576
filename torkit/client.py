"""Tor for programs: connect, resolve, and the circuits and directory underneath.

async with open_tor() as tor:
    stream = await tor.connect("example.com", 80)
"""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from torkit.config import Network, StrPath
from torkit.directory.consensus import Consensus, Preamble
from torkit.directory.directory import CountryOf, Directory
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.linked import LinkedCircuit
from torkit.net.circuit.stream import Stream
from torkit.net.circuits.purpose import Path
from torkit.net.circuits.request import Request, Resolved, settle
from torkit.net.circuits.spares import SPARE_COUNT
from torkit.net.journal import Events
from torkit.net.parts import Parts, Settings
from torkit.net.progress import Changes, Progress
from torkit.opening import open_parts
from torkit.paths.constraints import Constraints, VanguardMode
from torkit.proto.circuit import Cgo
from torkit.proto.padding import Padding

if TYPE_CHECKING:
    import ssl

    from torkit.hs.client_auth import ClientKey
    from torkit.hs.descriptor import Descriptor
    from torkit.hs.keys import SecretKey
    from torkit.net.hosting.means import Wishes
    from torkit.net.hosting.serve import OnionListener, Ports
    from torkit.net.journal import Listener
    from torkit.net.monitor.status import Status
    from torkit.net.onion.look import Look
    from torkit.net.onion.request import OnionRequest


class Tor:
    """A client of `network`, which keeps cache and guards in `data_dir`; made by `open_tor`."""

    def __init__(self, network: Network, parts: Parts, apart: object = None) -> None:
        """`apart` keeps the streams of this object on circuits of their own."""
        self.network = network
        self.data_dir = parts.data_dir
        self._parts = parts
        self._apart = apart

    def __repr__(self) -> str:
        known = self._parts.current.known
        directory = "no directory" if known is None else f"{len(known)} relays"
        return f"<Tor: {self.progress.summary}, {directory}, {self._parts.circuits!r}>"

    def isolated(self) -> "Tor":
        """Returns a view of this client, which ends with it. Its requests share no circuit with another's."""
        return Tor(self.network, self._parts, apart=object())

    async def wait_ready(self) -> None:
        """Wait until circuits can be built, however long. Raises NoDirectory, or what made servers fail."""
        self._parts.check_open()
        await self._parts.wait_ready()

    @property
    def progress(self) -> Progress:
        """The progress of this start: its phase, percentage, and the obstacle, if there is one."""
        return self._parts.journal.progress.now

    def progress_changes(self) -> Changes:
        """Returns an iterator over the progress, now and as it changes, until a first circuit is built."""
        return self._parts.journal.progress.changes()

    def events(self) -> Events:
        """Returns an endless iterator over events (torkit.events) from now on. They name no destination."""
        return self._parts.journal.events()

    def listen(self, listener: "Listener") -> None:
        """Call `listener` at once with every event from now on. It must neither wait nor raise."""
        self._parts.journal.add(listener)

    def status(self) -> "Status":
        """Returns the state now: circuits, streams, guards, bytes of streams. It names no destination."""
        from torkit.net.monitor.status import look_at

        return look_at(self._parts)

    async def fetch_consensus(self) -> Consensus:
        """Returns a verified, live consensus, from the cache or the network. Raises as `wait_ready`."""
        self._parts.check_open()
        return await self._parts.keeper.wait_consensus()

    async def download_consensus(self, flavor: str = "microdesc", held: Preamble | None = None) -> Consensus:
        """Returns a live consensus, `microdesc` or `ns`, fetched now; the directory does not use it.

        With `held`, one of this flavor, changes are asked for. Raises DocumentError, and as `wait_ready`.
        """
        self._parts.check_open()
        return await self._parts.keeper.download(flavor, held)

    @property
    def directory(self) -> Directory:
        """The newest usable directory. Raises NoDirectory before there is one."""
        return self._parts.current.directory

    def request(
        self, host: str, port: int | None, *, isolation: Hashable = None, path: Path | None = None
    ) -> "Request | OnionRequest":
        """Returns a request for a stream, or without a port for a look-up, that has not begun yet.

        Raises UsageError for what no exit can reach, NoPath where the exit of `path` does not allow it.
        """
        self._parts.check_open()
        if self._apart is not None:
            isolation = self._apart, isolation
        return self._parts.request(host, port, isolation, path)

    async def connect(
        self, host: str, port: int, *, isolation: Hashable = None, path: Path | None = None
    ) -> Stream:
        """Returns a stream to `host`, a name or address that the exit resolves; never looked up here.

        A name in .onion is an onion service's, which is met without an exit. Streams share circuits only
        where `isolation` is equal: any value, as `object()` for a session or a tuple for one of a group.
        Attempts that fail for a circuit's or an exit's fault are repeated elsewhere, for 120 s at most; not
        with `path`, whose exit's policy is asked first. A caller's `trio.fail_after` leaves nothing behind.
        Raises UsageError for what no exit can reach, StreamClosed with the exit's reason, OnionServiceError
        with the step that failed, TimedOut, NoPath, NoDirectory, or what made circuits fail.
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

        By default that is `host`, and the system's authorities say so. The handshake has no deadline but the
        caller's. Raises as `connect` does, StreamClosed where the stream ends within the handshake, and
        ssl.SSLError where the handshake fails. A stream that is cut off raises trio.BrokenResourceError.
        """
        from torkit.net.secured import shake_hands

        stream = await self.connect(host, port, isolation=isolation, path=path)
        return await shake_hands(stream, ssl_context, server_hostname or host)

    async def resolve(
        self, host: str, *, isolation: Hashable = None, path: Path | None = None
    ) -> list[Resolved]:
        """Returns the addresses of a name, or for an address its names, as an exit sees them.

        Raises as `connect` does; StreamClosed with RESOLVEFAILED where there is no answer, or only addresses
        internal to a network: a program that took one would connect to a machine of its own network.
        """
        request = self.request(host, None, isolation=isolation, path=path)
        assert isinstance(request, Request)
        return await request.resolve()

    def new_identity(self) -> None:
        """From now on, new streams use circuits that no earlier stream has used. Earlier streams go on.

        The guard stays: it tells nobody who we are, and a new one would be a risk.
        """
        self._parts.renew()

    async def settle(self, stream: Stream) -> None:
        """End `stream`, and wait until the exit has all that was sent on it.

        Call it before closing the client: relays drop cells that they still hold of a destroyed circuit.
        Raises TimedOut, or what ended the circuit first.
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
        self._parts.check_open()
        if path is None:
            return await self._parts.acquire_unshared()
        return await self._parts.builder.build_through(path)

    async def build_linked_circuit(self, port: int = 443) -> LinkedCircuit:
        """Returns two circuits to one exit for `port`, linked as for downloads; the caller closes it.

        Raises UsageError where the client was opened without linked circuits, NotPossible where the consensus
        switches them off, and as `build_circuit`.
        """
        self._parts.check_open()
        return await self._parts.build_linked(port)

    async def onion_descriptor(self, address: str, client_key: "ClientKey | None" = None) -> "Descriptor":
        """Returns the verified descriptor of an onion service, from its directories, or as it was kept.

        `address` ends in `.onion`; `client_key` opens what the service keeps for clients that it knows.
        Raises OnionServiceError, which says at which step, NoDirectory, or what made circuits fail.
        """
        self._parts.check_open()
        return await self._parts.onion_services().descriptor(address, client_key)

    def look_at_onion(self, address: str, client_key: "ClientKey | None" = None) -> "Look":
        """Returns what asks an onion service's directories one by one and meets it, to see how it stands.

        `client_key` is used with this service from now on. Raises OnionServiceError (ADDRESS), UsageError.
        """
        self._parts.check_open()
        return self._parts.look_at_onion(address, client_key)

    @asynccontextmanager
    async def serve_onion(
        self, ports: "Ports", key: "SecretKey | None" = None, wishes: "Wishes | None" = None
    ) -> "AsyncIterator[OnionListener]":
        """Run an onion service until the block ends. Gives a trio listener, whose `address` is known at once.

        `ports` are what clients may ask for; where they map to targets (torkit.net.hosting.forward.Target),
        streams are carried there, and only the others are for `accept`. Without `key` the service gets a new
        address. Raises UsageError for what is no port, and as `wait_ready`.
        """
        await self.wait_ready()
        async with self._parts.serve(ports, key, wishes) as listener:
            yield listener

    def add_client_key(self, key: "ClientKey") -> None:
        """Use `key` with its onion service. Keys in the data directory's `onion-auth` are used, too."""
        self._parts.onion_services().keys.add(key)


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
    shared_cache: StrPath | None = None,
) -> AsyncIterator[Tor]:
    """A client that fetches its documents in the background. It is closed, with its circuits, at the end.

    `network` is a Network or the name of a file; by default the file that TORKIT_NETWORK names, else the
    public network. `data_dir` keeps cache and guards, and is made where it is missing; by default what
    TORKIT_DATA_DIR names, else `torkit.data_dir(network, None)`. A client whose other arguments are not
    the defaults is easier to tell from others, above all one with `restrictions`.

    cgo: the hops that are asked for Counter Galois Onion.
    padding: less of it, and records of the traffic to the guard tell better when this client was used.
    spare_circuits: kept ready for coming streams; 0 serves a program that opens one stream and ends.
    conflux: with spare circuits, streams use two at once where the exit and the consensus allow it.
    consensus: verified, and used in place of the cached or a fetched one.
    restrictions: their `entries`, `exits` and `exclude` hold for every path.
    country_of: for restrictions by country, such as torkit.directory.geoip.country_of on a file.
    max_memory: bytes that may wait in this process, by default a quarter of the machine's memory.
    pow_max_effort: of a proof of work for an onion service; by default some 40 s (torkit.hs.pow.max_effort).
    vanguards: FULL makes circuits for onion services one relay longer, and the guard harder to find.
    shared_cache: where several clients keep consensus and microdescriptors: one fetches what is due, all use
    it. Who may not write there fetches only what nobody else did. Guards stay in `data_dir`.

    Opening waits for files only. Closing sends what has been sealed, for CLOSE_TIMEOUT, 2 s, at most; a
    stream that is open is cut off, unless `Tor.settle` has waited for it.

    Raises UsageError outside of trio, for an invalid network file, and for arguments that do not fit;
    StorageError where the data directory cannot be made or is another user's; DocumentError for an invalid
    `consensus`. Cancels the caller's block and raises InternalError where a fault of ours has ended every
    connection. One exception of the caller's block comes out as it is.
    """
    wanted = restrictions or Constraints()
    settings = Settings(
        cgo, padding, spare_circuits, conflux, consensus, wanted, country_of, pow_max_effort, vanguards
    )
    async with open_parts(network, data_dir, shared_cache, max_memory, settings) as (chosen, parts):
        yield Tor(chosen, parts)
