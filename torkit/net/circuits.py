"""The circuits in use: which may carry which stream; built ahead, shared by isolation, replaced.

A circuit without an isolation yet is clean. The first stream gives it its own, and from then on only
streams of an equal isolation may join, until the circuit has been dirty for MAX_DIRTINESS. Clean ones are
kept ready for the ports that streams are expected to go to, and closed when nobody has come. path-spec,
"When we build" and "Attaching streams to circuits".
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Hashable
from contextlib import suppress
from ipaddress import IPv4Address
from itertools import pairwise
from math import inf
from random import Random

import trio

from torkit.build_times import HOPS, INITIAL, BuildTimes, Timeouts
from torkit.directory.directory import Directory, Relay
from torkit.errors import (
    CircuitClosed,
    Closed,
    EndReason,
    HandshakeCut,
    NoDirectory,
    NoPath,
    PeerError,
    Retry,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
)
from torkit.net.building import Turns, rest
from torkit.net.channels import Channels
from torkit.net.circuit import Circuit, CircuitSettings
from torkit.net.contact import Contact
from torkit.net.progress import Phase, diagnose
from torkit.net.pump import Pump
from torkit.params import Param
from torkit.path import LONG_LIVED_PORTS, may_go_on
from torkit.path_bias import UNWATCHED, PathBias, Watch
from torkit.predicted_ports import FIRST_PORT, RESOLVE_PORT, PredictedPorts

Path = tuple[Relay, ...]

# Specification constant, seconds (path-spec, "Clients build circuits on demand"): how long after its first
# stream a circuit takes new ones. Not drawn at random, as in C tor.
MAX_DIRTINESS = 600.0

# Specification constant (path-spec, "Clients build circuits preemptively"): clean circuits for every port
# that is expected; one may serve many. One failure then costs no waiting.
SPARE_COUNT = 2

# Specification constant (tor-spec, "Relay cells"): RELAY_EARLY cells that a circuit may carry. C tor's
# clients use 8 or 7, at random, so that the guard cannot tell the length of a path by counting.
MAX_RELAY_EARLY = 8

# Implementation limits.
BUILD_ATTEMPTS = 8  # paths tried for one request before it rests
AFTER_REST_ATTEMPTS = 3  # and after each rest: most relays that refused one then still refuse
STEP_MEMORY = 60.0  # seconds that a step which failed is passed over: so long a relay refuses to try it again
PATH_DRAWS = 16  # paths drawn to find one without a step that has just failed
MAX_SPARES = 14  # clean circuits at which no more are built ahead, as C tor; path-spec says 12
EXPIRY_CHECK = 30.0  # seconds between looks at which circuits have served, as C tor
WORN_GRACE = 30.0  # seconds that a worn circuit is kept after its last stream, for what relays still hold
ROUNDS_BEFORE_WARNING = 2  # failed ones of building ahead, each of some attempts
SPARE_RETRY = 5.0  # seconds before building ahead is tried again after a failure
GUARD_CHECK = 0.25  # seconds between looks at whether a better guard has answered

logger = logging.getLogger(__name__)


class Circuits:
    """Hands out circuits: `take_ready` what is there, `acquire` waits for one.

    `choose_path(port, is_ipv6, excluded)` picks the relays of one. `port` is where its exit must let streams
    go, None for anywhere. `excluded` are exits, by identity, that are not wanted.
    """

    def __init__(
        self,
        channels: Channels,
        choose_path: Callable[[int | None, bool, Collection[bytes]], Path],
        settings: Callable[[], CircuitSettings],
        rng: Random,
        nursery: trio.Nursery,
        build_times: BuildTimes,
        predicted: PredictedPorts,
        path_bias: PathBias,
        is_usable: Callable[[Path], bool | None] = lambda path: True,
    ) -> None:
        """`settings` gives those of the consensus of the moment. Builds run in `nursery`.

        `is_usable` says whether the guard of a path it chose is good enough now that the circuit is built,
        None while that is open.
        """
        self._channels = channels
        self._choose_path = choose_path
        self._settings = settings
        self._rng = rng
        self._nursery = nursery
        self._build_times = build_times
        self._predicted = predicted
        self._path_bias = path_bias
        self._directory: Directory | None = None
        self._is_usable = is_usable
        self._circuits: list[_Entry] = []
        self._building: dict[Hashable, trio.Event] = {}
        self.turns = Turns()
        self.identity = 0  # how often `renew` was called
        self._spare_is_wanted = trio.Event()
        self._failed_steps: dict[tuple[bytes, bytes], float] = {}  # when, on trio's clock
        self._is_built = trio.Event()  # the next circuit

    def take_ready(
        self,
        port: int | None,
        *,
        is_ipv6: bool = False,
        isolation: Hashable,
        path: Path | None = None,
        excluded: Collection[bytes] = (),
    ) -> Circuit | None:
        """A circuit as `acquire` gives it, if one is ready. Never waits."""
        isolation = self._isolation(isolation, self.identity, path)
        entry = self._find(port, is_ipv6, isolation, path, excluded)
        return None if entry is None else self._claim(entry, isolation, port, path)

    async def acquire(
        self,
        port: int | None,
        *,
        is_ipv6: bool = False,
        isolation: Hashable,
        identity: int | None = None,
        path: Path | None = None,
        excluded: Collection[bytes] = (),
        give_up_at: float = inf,
    ) -> Circuit:
        """A circuit whose exit allows `port`, shared with streams of an equal `isolation` only.

        `identity` is that of when the stream began, if it is tried again: where it has been renewed since,
        the stream may share with no later ones. With `path` the circuit goes exactly there. Equal requests
        wait for one build, not each for its own.

        Builds that fail are repeated, after BUILD_ATTEMPTS with rests between them, and a directory is waited
        for. Raises NoPath or NoGuard at once, TimedOut with the last failure at `give_up_at`; with `path`,
        what ended the one build.
        """
        request_isolation = (self.identity if identity is None else identity, isolation)
        isolation = self._isolation(isolation, request_isolation[0], path)
        failure: TorkitError | None = None
        rest_count, rest_until = 0, -inf
        with trio.move_on_at(give_up_at):
            while True:
                entry = self._find(port, is_ipv6, isolation, path, excluded)
                if entry is not None:
                    return self._claim(entry, isolation, port, path)
                if isolation in self._building:
                    await self._building[isolation].wait()
                    continue
                if trio.current_time() < rest_until:
                    with trio.move_on_at(rest_until):
                        await self._is_built.wait()
                    continue
                built = self._building[isolation] = trio.Event()
                try:
                    attempts = BUILD_ATTEMPTS if failure is None else AFTER_REST_ATTEMPTS
                    entry = await self._build_any(port, is_ipv6, path, excluded, request_isolation, attempts)
                    return self._claim(entry, isolation, port, path)
                except TorkitError as error:
                    if path is not None or not self._may_pass(error):
                        raise
                    failure = diagnose([error])
                finally:
                    del self._building[isolation]
                    built.set()
                seconds = rest(rest_count, self._rng)
                logger.info("no circuit for a request yet, next try in %.1f s: %s", seconds, failure)
                rest_count, rest_until = rest_count + 1, trio.current_time() + seconds
        if failure is None:
            raise TimedOut("no circuit was built in time")
        raise TimedOut(f"no circuit was built in time: {failure}", hint=failure.hint) from failure

    def _isolation(self, isolation: Hashable, identity: int, path: Path | None) -> Hashable:
        """What keeps a request apart: also from those of another identity, or with another given path."""
        isolation = (identity, isolation)
        return isolation if path is None else (isolation, tuple(relay.identity for relay in path))

    def _find(
        self,
        port: int | None,
        is_ipv6: bool,
        isolation: Hashable,
        path: Path | None,
        excluded: Collection[bytes],
    ) -> "_Entry | None":
        """The circuit last given this isolation, else the youngest clean one; as C tor."""
        clean = dirty = None
        for entry in self._circuits:
            if entry.dirty_since is not None and entry.isolation != isolation:
                continue
            if not entry.takes_streams:
                continue
            if path is None and (entry.exit.identity in excluded or not entry.serves(port, is_ipv6)):
                continue
            if entry.dirty_since is None:
                clean = entry
            elif dirty is None or entry.dirty_since > (dirty.dirty_since or 0):
                dirty = entry
        return dirty or (clean if path is None else None)

    def _claim(self, entry: "_Entry", isolation: Hashable, port: int | None, path: Path | None) -> Circuit:
        if path is None:
            self._expect(RESOLVE_PORT if port is None else port)
        if entry.dirty_since is None:
            entry.isolation = isolation
            entry.dirty_since = trio.current_time()
            self._spare_is_wanted.set()
        entry.circuit.watch.note_use()
        return entry.circuit

    def _expect(self, port: int) -> None:
        if self._predicted.note(port, now=trio.current_time(), rng=self._rng):
            self._spare_is_wanted.set()

    def _may_pass(self, error: TorkitError) -> bool:
        """Whether what kept a circuit from being built may be gone soon; a lost directory may come back."""
        return error.retry is Retry.NOW or (isinstance(error, NoDirectory) and self._directory is not None)

    async def _build_any(
        self,
        port: int | None,
        is_ipv6: bool,
        path: Path | None,
        excluded: Collection[bytes],
        isolation: Hashable = None,
        attempts: int = BUILD_ATTEMPTS,
    ) -> "_Entry":
        """Build one, each attempt in a turn of `isolation`. Raises what ended the last of `attempts`."""
        for attempt in range(attempts):
            async with self.turns.take(isolation):
                relays = path or self._choose_without_failed(port, is_ipv6, excluded)
                try:
                    return await self.build(
                        relays, is_ours=path is None, is_stable=path is None and port in LONG_LIVED_PORTS
                    )
                except TorkitError as error:
                    if error.retry is not Retry.NOW or path is not None or attempt == attempts - 1:
                        raise
                    if isinstance(error, CircuitClosed) and error.hop is not None:
                        for step in _steps(relays[max(error.hop - 2, 0) : error.hop]):
                            self._failed_steps[step] = trio.current_time()
        raise AssertionError("unreachable")

    def _choose_without_failed(self, port: int | None, is_ipv6: bool, excluded: Collection[bytes]) -> Path:
        """A path without the steps that failed lately, for whomever, if a few draws find one.

        Steps, not relays: a relay refuses for a minute to connect to one that it has found dead, while
        others have long found it alive again.
        """
        since = trio.current_time() - STEP_MEMORY
        self._failed_steps = {step: at for step, at in self._failed_steps.items() if at > since}
        for _ in range(PATH_DRAWS - 1):
            relays = self._choose_path(port, is_ipv6, excluded)
            if self._failed_steps.keys().isdisjoint(_steps(relays)):
                return relays
            self._channels.on_first_hop(relays[0].identity, None)  # nobody waits to hear of it
        return self._choose_path(port, is_ipv6, excluded)

    async def build(self, path: Path, *, is_ours: bool = False, is_stable: bool = False) -> "_Entry":
        """Build one circuit, for nobody yet. Raises what made a hop fail, or TimedOut.

        Where we chose the path, it may not be used before its guard `is_usable`; `is_stable` says that it
        was chosen for streams that last.
        """
        watch = self._path_bias.watch(path[0].identity) if is_ours else UNWATCHED
        circuit = await self._build_in_time(path, watch)
        if is_ours:
            await self._wait_for_guard(circuit)
        if circuit.error is not None:  # since its last hop was made
            raise circuit.error
        entry = _Entry(circuit, is_stable, trio.current_time() + self._idle_timeout())
        if self._directory is not None:
            if is_ours and not may_go_on(self._directory, path):
                circuit.close()
                raise CircuitClosed("a relay has left the directory while a circuit was built")
            entry.note_directory(self._directory)
        self._circuits.append(entry)
        self._is_built.set()
        self._is_built = trio.Event()
        circuit.on_end = lambda: self._forget(entry)
        return entry

    async def build_apart(self, path: Path) -> Circuit:
        """Build a circuit of ours that ends at no exit and that no request joins; the caller closes it.

        Raises what made a hop fail, or TimedOut.
        """
        watch = self._path_bias.watch(path[0].identity)
        circuit = await self._build_in_time(path, watch, ends_at_exit=False)
        await self._wait_for_guard(circuit)
        return circuit

    def _idle_timeout(self) -> float:
        """Seconds that a new circuit waits for its first stream: a little longer than one is expected."""
        if self._build_times.is_learning:
            return self._build_times.idle_timeout
        left = self._predicted.seconds_left(trio.current_time())
        return left + 1 + self._rng.random() * left / 20

    async def _build_in_time(self, path: Path, watch: Watch, *, ends_at_exit: bool = True) -> Circuit:
        """Build within the timeout for use. What comes later is closed, but its time is learnt from."""
        timeouts = self._build_times.timeouts.for_hops(len(path))
        build = _Build(watch, ends_at_exit)
        self._nursery.start_soon(self._run, build, path, timeouts)
        try:
            await build.is_begun.wait()
            with trio.move_on_after(timeouts.use):
                await build.is_over.wait()
            if build.circuit is not None and not build.circuit.hops:
                await build.is_over.wait()  # the first hop's time is up as well, which is being noted
        except BaseException:
            build.scope.cancel()
            if build.circuit is not None and build.is_over.is_set():  # just then it was finished
                build.circuit.close()
            raise
        if not build.is_over.is_set():
            build.is_late = True
            self._build_times.note_outcome(timed_out=True)
            raise TimedOut(f"a circuit was not built within {timeouts.use:.1f} s")
        if build.error is not None:
            raise build.error
        assert build.circuit is not None
        return build.circuit

    async def _run(self, build: "_Build", path: Path, timeouts: Timeouts) -> None:
        """Build one circuit, however late."""
        try:
            with build.scope:
                circuit = await build_circuit(
                    self._channels,
                    path,
                    self._settings(),
                    self._rng,
                    timeouts,
                    build.begin,
                    ends_at_exit=build.ends_at_exit,
                )
                if len(path) == HOPS:
                    self._build_times.note_built(trio.current_time() - build.begun_at)
                if build.is_late:
                    circuit.close()
                else:
                    self._build_times.note_outcome(timed_out=False)
        except TorkitError as error:
            build.error = error
            if isinstance(error, TimedOut) and not self._channels.is_open(path[0]):
                self._close_clean(path[0])
        finally:
            build.is_begun.set()
            build.is_over.set()

    def _close_clean(self, first: Relay) -> None:
        """Let nobody have to find out that the circuits through a relay that is silent are, too."""
        for entry in list(self._circuits):
            if entry.dirty_since is None and entry.circuit.path[0].identity == first.identity:
                entry.circuit.close()

    async def learn_build_times(self, param: Param) -> None:
        """Build circuits to learn from as long as too few have been; never returns.

        path-spec, "How much data to record": not too often, and not too many that nobody uses.
        """
        while True:
            await trio.sleep(param("cbttestfreq"))
            idle = sum(entry.dirty_since is None for entry in self._circuits)
            if not self._build_times.is_learning or idle >= param("cbtmaxopencircs"):
                continue
            if not self.turns.has_room:
                continue
            with suppress(TorkitError):
                async with self.turns.take(None):
                    await self.build(self._choose_path(None, False, ()), is_ours=True)

    async def _wait_for_guard(self, circuit: Circuit) -> None:
        """Until no better guard may still answer. Raises CircuitClosed if one is worth a try."""
        try:
            while (is_usable := self._is_usable(circuit.path)) is None:
                await trio.sleep(GUARD_CHECK)
            if not is_usable:
                raise CircuitClosed("a better guard may be reachable again")
        except BaseException:
            circuit.close()
            raise

    def _forget(self, entry: "_Entry") -> None:
        self._circuits.remove(entry)
        self._spare_is_wanted.set()

    def retire(self, circuit: Circuit) -> None:
        """Let a circuit take no new streams; it is closed when its last one has gone."""
        for entry in self._circuits:
            if entry.circuit is circuit:
                entry.is_retired = True

    def note_directory(self, directory: Directory) -> None:
        """Give no stream to a circuit through a relay that is gone, or whose exit no longer allows it."""
        self._directory = directory
        for entry in list(self._circuits):
            entry.note_directory(directory)
            if not may_go_on(directory, entry.circuit.path):
                self._retire(entry)

    def retire_exit(self, identity: bytes) -> None:
        """Give no stream to a circuit that ends at this relay."""
        for entry in list(self._circuits):
            if entry.exit.identity == identity:
                self._retire(entry)

    def _retire(self, entry: "_Entry") -> None:
        if entry.dirty_since is None:
            entry.circuit.close()
        else:
            entry.is_retired = True

    def renew(self) -> None:
        """Let no stream of later share a circuit with one of before, nor use one built before."""
        self.identity += 1
        self.retire_all()

    def retire_all(self) -> None:
        """Let no circuit take new streams; those that there are go on."""
        for entry in self._circuits:
            entry.is_retired = True
        self._spare_is_wanted.set()

    def close(self) -> None:
        for entry in list(self._circuits):
            entry.circuit.watch.note_used()  # as C tor, no guard is blamed for what was under way
            entry.circuit.close()

    async def keep_spares(self, count: int = SPARE_COUNT) -> None:
        """Keep `count` clean circuits ready for each port that is expected; never returns.

        Those that have served are closed, and those for which nobody came. None is begun while requests wait
        for their turns. Says what is in the way if that goes on, and when it is gone: nobody else does after
        the start.
        """
        failed_rounds = 0
        if count:
            self._expect(FIRST_PORT)
        while True:
            self._spare_is_wanted = trio.Event()
            self._close_idle()
            self._close_worn()
            wait = EXPIRY_CHECK
            port = self._uncovered_port(count)
            if port is not None and not self.turns.has_room:
                wait = SPARE_RETRY
            elif port is not None:
                try:
                    await self._build_spare(port)
                    if failed_rounds >= ROUNDS_BEFORE_WARNING:
                        logger.warning("circuits can be built again")
                    failed_rounds = 0
                    continue
                except TorkitError as error:
                    wait = SPARE_RETRY  # whoever needs a circuit now is told why there is none
                    if not isinstance(error, NoDirectory):  # why there is none is said by who fetches it
                        failure = diagnose([error])
                        self._channels.progress.block(failure)
                        failed_rounds += self._channels.progress.now.is_done
                        if failed_rounds == ROUNDS_BEFORE_WARNING:
                            reason = "; ".join(filter(None, (str(failure), failure.hint)))
                            logger.warning("no circuit can be built: %s", reason)
            with trio.move_on_after(wait):
                await self._spare_is_wanted.wait()

    def _uncovered_port(self, count: int) -> int | None:
        """A port that is expected and for which fewer than `count` circuits are ready."""
        spares = [entry for entry in self._circuits if entry.is_spare]
        if len(spares) >= MAX_SPARES:
            return None
        for port in self._predicted.ports(trio.current_time()):
            if sum(entry.serves(port, False) for entry in spares) < count:
                return port
        return None

    async def _build_spare(self, port: int) -> None:
        try:
            await self._build_any(port, False, None, ())
        except NoPath:
            await self._build_any(None, False, None, ())  # as C tor; and it may not be the port's fault
            self._predicted.forget(port)

    def _close_idle(self) -> None:
        for entry in list(self._circuits):
            if entry.dirty_since is None and trio.current_time() >= entry.expires_at:
                entry.circuit.close()

    def _close_worn(self) -> None:
        """Not at once: a DESTROY would overtake what relays still hold of an upload that has ended."""
        now = trio.current_time()
        for entry in list(self._circuits):
            if entry.takes_streams or entry.circuit.stream_count > 0:
                entry.worn_since = None
            elif entry.worn_since is None:
                entry.worn_since = now
            elif now - entry.worn_since >= WORN_GRACE and not entry.is_probed:
                if entry.circuit.watch.needs_probe:
                    entry.is_probed = True
                    self._nursery.start_soon(self._probe_and_close, entry.circuit)
                else:
                    entry.circuit.close()

    async def _probe_and_close(self, circuit: Circuit) -> None:
        """Close a circuit on which no stream was answered, and first see whether that was its fault.

        path-spec, "Measuring path usage success rates".
        """
        nonce = IPv4Address(self._rng.getrandbits(24))
        try:
            with trio.move_on_after(self._build_times.timeouts.close):
                await circuit.begin_probe(nonce).wait_connected()
        except StreamClosed as error:
            if error.reason is EndReason.EXITPOLICY and error.address == nonce:
                circuit.watch.note_used()
        except TorkitError:
            pass  # it ended before it could be asked
        finally:
            circuit.close()


def _steps(relays: Path) -> set[tuple[bytes, bytes]]:
    """Who is to extend to whom, by identity."""
    return {(one.identity, next_one.identity) for one, next_one in pairwise(relays)}


class _Build:
    """A circuit under way. It may outlive whoever waits for it."""

    def __init__(self, watch: Watch, ends_at_exit: bool) -> None:
        self.ends_at_exit = ends_at_exit
        self.scope = trio.CancelScope()
        self.watch = watch
        self.is_begun = trio.Event()  # the channel is there: what it takes from now on is learnt from
        self.begun_at = 0.0
        self.is_over = trio.Event()
        self.is_late = False
        self.circuit: Circuit | None = None
        self.error: TorkitError | None = None

    def begin(self, circuit: Circuit) -> None:
        circuit.watch = self.watch
        self.circuit = circuit
        self.begun_at = trio.current_time()
        self.is_begun.set()


def _do_nothing(circuit: Circuit) -> None:
    """For those who need not know when a build begins."""


async def build_circuit(
    channels: Channels,
    path: Path,
    settings: CircuitSettings,
    rng: Random,
    timeouts: Timeouts = INITIAL,
    begin: Callable[[Circuit], None] = _do_nothing,
    *,
    ends_at_exit: bool = True,
) -> Circuit:
    """A circuit through all of `path`. Raises what made a hop fail, or TimedOut.

    Where it does not end at an exit, its last hop is asked for what middle hops are. The connection and the
    first hop must each be made within the timeout for use, all hops within that for
    closing. `begin` is called between connecting and the first hop.
    """

    async def add_hops(circuit: Circuit) -> None:
        channels.progress.reach(Phase.CIRCUIT_CREATE)
        begin(circuit)
        for number, relay in enumerate(path, 1):
            is_last = ends_at_exit and number == len(path)
            try:
                with trio.fail_after(timeouts.use if number == 1 else timeouts.close):
                    await (circuit.extend if circuit.path else circuit.create)(relay, is_last=is_last)
            except CircuitClosed as error:
                error.hop = number  # the one that could not be added
                error.name(relay.nickname)
                raise
            if number == 2 and not circuit.watch.note_attempted():
                raise CircuitClosed("the guard is used no more")
        circuit.watch.note_built()

    if not path:
        raise UsageError("a path needs at least one relay")
    early_count = MAX_RELAY_EARLY - rng.randrange(2)
    try:
        circuit = await _build(channels, path[0], early_count, settings, timeouts, add_hops)
    except TorkitError as error:
        channels.progress.block(diagnose([error]))
        raise
    channels.progress.reach(Phase.DONE)
    return circuit


async def build_directory_circuit(channels: Channels, contact: Contact, settings: CircuitSettings) -> Circuit:
    """A one-hop circuit to ask a directory server. Raises what made it fail, or TimedOut.

    Where the relay's keys are known, it is asked for what the last hop of any circuit is, as by C tor.
    """

    async def add_hop(circuit: Circuit) -> None:
        channels.progress.reach(Phase.ONEHOP_CREATE)
        if isinstance(contact, Relay):
            await circuit.create(contact, is_last=True)
        else:
            await circuit.create_fast()

    return await _build(channels, contact, 0, settings, INITIAL, add_hop)


async def _build(
    channels: Channels,
    first: Contact,
    relay_early_count: int,
    settings: CircuitSettings,
    timeouts: Timeouts,
    add_hops: Callable[[Circuit], Awaitable[None]],
) -> Circuit:
    circuit: Circuit | None = None
    began = time.monotonic()
    had_channel = channels.is_open(first)
    try:
        with trio.fail_after(timeouts.use):
            channel = await channels.get(first)
        circuit = channel.open_circuit(relay_early_count, settings)
        with trio.fail_after(timeouts.close):
            await add_hops(circuit)
        if circuit.error is not None:  # it ended in the same read as its last handshake
            raise circuit.error
    except BaseException as error:
        was_reached = _reached(circuit, error)
        if isinstance(error, trio.TooSlowError) and not was_reached:
            channels.forget(first)
            if had_channel:
                was_reached = None  # perhaps only that connection is dead: a new one will tell
        is_late = isinstance(error, (trio.TooSlowError, TimedOut, HandshakeCut))
        if is_late and not was_reached and Pump.current().has_stalled_since(time.monotonic() - began):
            was_reached = None  # its answer may have come while we stood still
        channels.on_first_hop(first.identity, was_reached)
        if circuit is None and isinstance(first, Relay) and isinstance(error, TorkitError):
            error.name(first.nickname)
        if circuit is not None:
            if isinstance(error, trio.TooSlowError):
                circuit.watch.note_timed_out()
            elif isinstance(error, trio.Cancelled):
                circuit.watch.note_abandoned()
            circuit.close()
        if isinstance(error, trio.TooSlowError):
            raise TimedOut("a circuit was not built in time") from None
        raise
    channels.on_first_hop(first.identity, True)
    return circuit


def _reached(circuit: Circuit | None, error: BaseException) -> bool | None:
    """Whether the first relay of a build that failed did answer. One that answers by DESTROY is there."""
    if circuit is not None and (circuit.hops or isinstance(error, CircuitClosed)):
        return True
    return False if isinstance(error, (PeerError, Closed, TimedOut, trio.TooSlowError)) else None


class _Entry:
    """A circuit and whom it may serve."""

    def __init__(self, circuit: Circuit, is_stable: bool, expires_at: float) -> None:
        self.circuit = circuit
        self.exit = circuit.path[-1]  # as the newest directory knows it
        self.isolation: Hashable = None
        self.is_retired = False
        self.dirty_since: float | None = None
        self.expires_at = expires_at  # while it is clean
        self.is_probed = False
        self.worn_since: float | None = None  # first seen without streams, and to take no new ones
        self._is_stable = is_stable

    @property
    def is_spare(self) -> bool:
        return self.dirty_since is None and self.takes_streams

    @property
    def takes_streams(self) -> bool:
        if self.circuit.error is not None or self.is_retired or not self.circuit.has_room:
            return False
        return self.dirty_since is None or trio.current_time() - self.dirty_since < MAX_DIRTINESS

    def serves(self, port: int | None, is_ipv6: bool) -> bool:
        """Whether its relays fit a stream to `port`; None for a look-up."""
        if port is None:
            return True
        if port in LONG_LIVED_PORTS and not self._is_stable:
            return False
        return (self.exit.policy6 if is_ipv6 else self.exit.policy).accepts(port)

    def note_directory(self, directory: Directory) -> None:
        self.exit = directory.relay(self.exit.identity) or self.exit
