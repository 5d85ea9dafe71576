"""Hands out circuits, ready ones or new ones, and ends those that have served.

Requests of an equal isolation share circuits (shelves.py); where none is ready, they wait for one build, not
each for its own. path-spec, "Attaching streams to circuits" and "Handling failure".
"""

import logging
from collections import Counter
from collections.abc import Collection, Hashable
from ipaddress import IPv4Address
from math import inf
from random import Random

import trio

from torkit.directory.directory import Directory, Relay
from torkit.errors import (
    EndReason,
    NoDirectory,
    OutOfResources,
    Retry,
    StreamClosed,
    TimedOut,
    TorkitError,
)
from torkit.learnt.predicted_ports import PredictedPorts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.tunnel import Tunnel
from torkit.net.circuits.build import Builder, Choice
from torkit.net.circuits.purpose import ForOnion, Need, Path, Shared
from torkit.net.circuits.shelves import Clean, Entry, Shelves
from torkit.net.circuits.turns import Turns, rest
from torkit.net.clock import CLOCK_CHECK, ClockWatch
from torkit.net.progress import diagnose

# Implementation limits.
BUILD_ATTEMPTS = 8  # paths tried for one request before it rests
AFTER_REST_ATTEMPTS = 3  # after each rest: most relays that refused before the rest still refuse
WORN_GRACE = 30.0  # seconds that a worn circuit is kept after its last stream, for what relays still hold

logger = logging.getLogger(__name__)


class Circuits:
    """`take_ready` gives a ready circuit, `acquire` waits for one, `open` builds one that nobody joins."""

    def __init__(
        self, builder: Builder, predicted: PredictedPorts, rng: Random, nursery: trio.Nursery
    ) -> None:
        self.turns = Turns()
        self.identity = 0  # how often `renew` was called
        self.age = 0  # how often all were retired
        self.predicted = predicted
        self.is_short = trio.Event()  # set when more may have to be built ahead; the builder makes it anew
        self.journal = builder.journal
        self._builder = builder
        self._rng = rng
        self._nursery = nursery
        self._directory: Directory | None = None
        self._shelves = Shelves()
        self._on_end = self._forget  # one for all circuits
        self._building: dict[Hashable, trio.Event] = {}  # by key
        self._is_built = trio.Event()  # the next circuit
        self._clock_watch = ClockWatch()

    def __repr__(self) -> str:
        counts = Counter(type(entry.state).__name__.lower() for entry in self._shelves)
        return ", ".join(f"{counts[state]} {state}" for state in ("clean", "dirty", "worn")) + " circuits"

    def take_ready(self, need: Need) -> Tunnel | None:
        """Returns a circuit as `acquire` does, if one is ready. Never waits."""
        now = trio.current_time()
        self.look_at_clock(now)
        entry = self._shelves.find(need, now)
        return None if entry is None else self._claim(entry, need, now)

    async def acquire(self, need: Need, give_up_at: float = inf) -> Tunnel:
        """Returns a circuit for `need`, through exactly its path if it has one.

        Builds that fail are repeated, after BUILD_ATTEMPTS with rests between them; without a directory it
        waits for one. Raises NoPath or NoGuard at once, TimedOut with the last failure at `give_up_at`; with
        a path, what ended the one build.
        """
        self.look_at_clock(trio.current_time())
        failure: TorkitError | None = None
        rest_count, rest_until = 0, -inf
        with trio.move_on_at(give_up_at):
            while True:
                now = trio.current_time()
                entry = self._shelves.find(need, now)
                if entry is not None:
                    return self._claim(entry, need, now)
                if need.key in self._building:
                    await self._building[need.key].wait()
                    continue
                if now < rest_until:
                    with trio.move_on_at(rest_until):
                        await self._is_built.wait()
                    continue
                built = self._building[need.key] = trio.Event()
                try:
                    attempts = BUILD_ATTEMPTS if failure is None else AFTER_REST_ATTEMPTS
                    entry = await self._build_for(need, attempts)
                    return self._claim(entry, need, trio.current_time())
                except TorkitError as error:
                    may_pass = self._may_pass(error)
                    if need.path is not None or not (may_pass or need.avoided):
                        raise
                    need = need._replace(avoided=frozenset())  # the other exits are no better
                    if not may_pass:
                        continue
                    failure = diagnose([error])
                finally:
                    del self._building[need.key]
                    built.set()
                seconds = rest(rest_count, self._rng)
                logger.info("no circuit for a request yet, next try in %.1f s: %s", seconds, failure)
                rest_count, rest_until = rest_count + 1, trio.current_time() + seconds
        if failure is None:
            raise TimedOut("no circuit was built in time")
        raise TimedOut(f"no circuit was built in time: {failure}", hint=failure.hint) from failure

    async def open(self, purpose: Shared | ForOnion, crowd: Hashable = None) -> Circuit:
        """Returns a circuit that no request joins, built in a turn of `crowd`. The caller closes it.

        Raises what ended the one build.
        """
        async with self.turns.take(crowd):
            return await self._build(self._builder.choose(purpose), purpose)

    def note_failed_step(self, last: Relay, target: Relay) -> None:
        """Note that an open circuit could not be extended from `last` to `target`."""
        self._builder.note_failed_step(last, target)

    def _claim(self, entry: Entry, need: Need, now: float) -> Tunnel:
        if need.path is None:
            self.expect(need.purpose.expected_port, now)
        if self._shelves.claim(entry, need, now):
            self.is_short.set()
        entry.circuit.watch.note_use()
        return entry.circuit

    def expect(self, port: int, now: float) -> None:
        """Have circuits ready for streams to this port, from `now` on, a time of trio's."""
        if self.predicted.note(port, now=now, rng=self._rng):
            self.is_short.set()

    def _may_pass(self, error: TorkitError) -> bool:
        """Returns whether a build may succeed soon: a lost directory may come back, a shortage may pass."""
        if isinstance(error, NoDirectory):
            return self._directory is not None
        return error.retry is Retry.NOW or isinstance(error, OutOfResources)

    # --- building ---------------------------------------------------------------------------------

    async def _build_for(self, need: Need, attempts: int) -> Entry:
        """Build a circuit, each attempt in a turn of its crowd."""
        if need.path is None:
            return await self.build_any(need.purpose, need.excluded | need.avoided, need.crowd, attempts)
        async with self.turns.take(need.crowd):
            return await self.build(need.purpose, path=need.path)

    async def build_any(
        self,
        purpose: Shared,
        excluded: Collection[bytes] = (),
        crowd: Hashable = None,
        attempts: int = BUILD_ATTEMPTS,
    ) -> Entry:
        """Build a clean circuit, each attempt in a turn of `crowd`. Raises what ended the last attempt."""
        for attempt in range(attempts):
            async with self.turns.take(crowd):
                try:
                    return await self.build(purpose, excluded)
                except TorkitError as error:
                    if error.retry is not Retry.NOW or attempt == attempts - 1:
                        raise
        raise AssertionError("unreachable")

    async def build(
        self, purpose: Shared, excluded: Collection[bytes] = (), *, path: Path | None = None
    ) -> Entry:
        """Build a clean circuit, through `path` if one is given. Raises what made a hop fail, or TimedOut."""
        builder = self._builder
        choice = builder.choose(purpose, excluded) if path is None else builder.paths.given(path)
        return self.put_up(await self._build(choice, purpose), purpose)

    def put_up(self, circuit: Tunnel, purpose: Shared) -> Entry:
        """Offer a circuit, or linked ones, that requests share."""
        entry = Entry(circuit, purpose, trio.current_time() + self.idle_timeout(self.predicted))
        if self._directory is not None:
            entry.note_directory(self._directory)
        self._shelves.add(entry)
        circuit.on_end = self._on_end
        self._is_built.set()
        self._is_built = trio.Event()
        return entry

    async def _build(self, choice: Choice, purpose: Shared | ForOnion) -> Circuit:
        try:
            return await self._builder.build(choice, purpose)
        except TimedOut:
            if not self._builder.channels.is_open(choice.path[0]):
                self._close_clean(choice.path[0])
            raise

    def idle_timeout(self, expected: PredictedPorts) -> float:
        """Returns how many seconds a new circuit waits for its first use: until it is expected no more."""
        if self._builder.build_times.is_learning:
            return self._builder.build_times.idle_timeout
        left = expected.seconds_left(trio.current_time())
        return left + 1 + self._rng.random() * left / 20

    def _close_clean(self, first: Relay) -> None:
        """Close the circuits through a silent guard, so that no request has to find out."""
        for entry in self._shelves.clean:
            if any(path[0].identity == first.identity for path in entry.circuit.paths):
                entry.circuit.close("its guard does not answer")

    def _forget(self, circuit: Tunnel) -> None:
        if (entry := self._shelves.entry_of(circuit)) is not None:
            self._shelves.forget(entry)
        self.is_short.set()

    # --- ending their use -------------------------------------------------------------------------

    @property
    def clean(self) -> list[Entry]:
        """The circuits that nobody has used, oldest first."""
        return self._shelves.clean

    def state_of(self, circuit: Tunnel) -> str | None:
        """Returns the shelf of a circuit: `clean`, `dirty` or `worn`; None where requests do not share it."""
        entry = self._shelves.entry_of(circuit)
        return None if entry is None else type(entry.state).__name__.lower()

    @property
    def linked_count(self) -> int:
        """How many sets of linked circuits there are."""
        return self._shelves.linked_count

    def retire(self, circuit: Tunnel, why: str) -> None:
        """Let a circuit take no new streams, because of `why`. It is closed when its last stream has gone."""
        if (entry := self._shelves.entry_of(circuit)) is not None:
            self._shelves.retire(entry, why)

    def retire_exit(self, identity: bytes, why: str) -> None:
        """Give no stream to a circuit that ends at this relay, because of `why`."""
        for entry in self._shelves:
            if entry.exit.identity == identity:
                self._end_use(entry, why)

    def note_directory(self, directory: Directory) -> None:
        """Give no stream to a circuit through a relay that is gone, or whose exit no longer allows it."""
        self._directory = directory
        for entry in self._shelves:
            entry.note_directory(directory)
            if not all(map(self._builder.paths.may_go_on, entry.circuit.paths)):
                self._end_use(entry, "the directory allows its path no more")

    def _end_use(self, entry: Entry, why: str) -> None:
        if isinstance(entry.state, Clean):
            entry.circuit.close(why)
        else:
            self._shelves.retire(entry, why)

    def renew(self) -> None:
        """Take another identity: new requests use new circuits only; running streams go on."""
        self.identity += 1
        self._retire_all("a new identity was asked for")

    def _retire_all(self, why: str) -> None:
        """Let no circuit take new streams. Its running streams go on."""
        self.age += 1
        for entry in self._shelves:
            self._shelves.retire(entry, why)
        self.is_short.set()

    def look_at_clock(self, now: float) -> None:
        """Retire all circuits after a suspend: only timeouts would tell that they are dead. (As C tor.)"""
        if self._clock_watch.jump(now) > 0:
            logger.info("the clock has jumped: connections and circuits are made anew")
            self._builder.channels.forget_all()
            self._retire_all("the clock has jumped")

    async def watch_clock(self) -> None:
        """Look at the clock now and then; never returns."""
        while True:
            await trio.sleep(CLOCK_CHECK)
            self.look_at_clock(trio.current_time())

    def close(self) -> None:
        for entry in self._shelves:
            entry.circuit.watch.note_used()  # no guard is blamed for streams that were under way (as C tor)
            entry.circuit.close("the client ends")

    def close_idle(self) -> None:
        """Close clean circuits that nobody has used in time."""
        for entry in self._shelves.clean:
            if isinstance(entry.state, Clean) and trio.current_time() >= entry.state.expires_at:
                entry.circuit.close("nobody has come for it")

    def close_worn(self) -> None:
        """Close circuits that have served.

        Not at once: a DESTROY would overtake what relays still hold of an upload that has ended.
        """
        now = trio.current_time()
        self._shelves.retire_old(now)
        for entry, state in self._shelves.worn:
            if entry.circuit.stream_count > 0:
                state.idle_since = None
            elif state.idle_since is None:
                state.idle_since = now
            elif now - state.idle_since >= WORN_GRACE and not state.is_probed:
                if entry.circuit.watch.needs_probe:
                    state.is_probed = True
                    self._nursery.start_soon(self._probe_and_close, entry.circuit, state.why)
                else:
                    entry.circuit.close(state.why)

    async def _probe_and_close(self, circuit: Tunnel, why: str) -> None:
        """Probe a circuit on which no stream was answered, to see whether that was its fault, then close it.

        path-spec, "Measuring path usage success rates".
        """
        nonce = IPv4Address(self._rng.getrandbits(24))
        try:
            with trio.move_on_after(self._builder.build_times.timeouts.close):
                await circuit.begin_probe(nonce).wait_connected()
        except StreamClosed as error:
            if error.reason is EndReason.EXITPOLICY and error.address == nonce:
                circuit.watch.note_used()
        except TorkitError:
            pass  # it ended before it could be asked
        finally:
            circuit.close(why)
