"""Builds one circuit, hop by hop, within the timeouts that were learnt.

A request gives up at the timeout for use; the circuit is finished all the same, since its time teaches, and
closed.
path-spec, "Learning when to give up".
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from random import Random
from typing import NamedTuple, Protocol

import trio

from torkit.directory.directory import Relay
from torkit.errors import (
    ChannelClosed,
    ChannelError,
    CircuitClosed,
    CircuitError,
    Closed,
    HandshakeCut,
    InternalError,
    PeerError,
    TimedOut,
    TorkitError,
    UsageError,
)
from torkit.learnt.build_times import HOPS, INITIAL, BuildTimes, Timeouts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.hops import Hops
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits import words
from torkit.net.circuits.guards import UNTOLD, GuardTry
from torkit.net.circuits.purpose import LOOK_UP, AskDirectory, ExitByLegs, ForOnion, Path, Purpose, Shared
from torkit.net.contact import Contact, is_known
from torkit.net.current import Current
from torkit.net.faults import log_fault
from torkit.net.link.channels import Channels
from torkit.net.link.pump import Pump
from torkit.net.progress import Phase, diagnose

# Specification constant (tor-spec, "Relay cells"): RELAY_EARLY cells that a circuit may carry. C tor's
# clients use 8 or 7, at random, so that the guard cannot tell the length of a path by counting.
MAX_RELAY_EARLY = 8

# Implementation limits.
STEP_MEMORY = 60.0  # seconds for which a failed step is passed over: so long a relay refuses to try again
PATH_DRAWS = 16  # paths drawn to find one without a step that has just failed

UNWANTED = "whoever asked for it has left"


class Choice(NamedTuple):
    """The relays of a circuit to be built, and the handle that is told how the first of them did.

    With `is_given` somebody named the relays, and nothing else is asked of them.
    """

    path: Path
    guard: GuardTry
    is_given: bool = False


class Chooser(Protocol):
    """Chooses paths, and tells whether they are still good."""

    def choose(self, purpose: Shared | ForOnion, excluded: Collection[bytes]) -> Choice:
        """Returns relays for a purpose, the last of them none of `excluded`, identities of exits.

        Raises NoPath, NoGuard or NoDirectory.
        """

    def choose_leg(self, purpose: ExitByLegs, exit_relay: Relay, others: Collection[Path]) -> Choice:
        """Returns another path to the exit of `others`. Raises as `choose`."""

    def given(self, path: Path) -> Choice:
        """Returns the choice of exactly these relays. Raises UsageError for an empty path."""

    def may_go_on(self, path: Path) -> bool:
        """Returns whether a circuit through these relays may take new streams, by the directory in use."""


class Builder:
    """Builds circuits that belong to no request yet. Late circuits are finished in `nursery`."""

    def __init__(
        self,
        channels: Channels,
        paths: Chooser,
        current: Current,
        rng: Random,
        nursery: trio.Nursery,
        build_times: BuildTimes,
    ) -> None:
        self.paths = paths
        self.channels = channels
        self.build_times = build_times
        self.journal = current.journal
        self._current = current
        self._rng = rng
        self._nursery = nursery
        self._failed_steps: dict[tuple[bytes, bytes], float] = {}  # when, on trio's clock

    def choose(self, purpose: Shared | ForOnion, excluded: Collection[bytes] = ()) -> Choice:
        """Returns a path without steps that failed lately, for any request, if a few draws find one.

        Steps are passed over, not relays: a relay that has found another one dead refuses for a minute to
        connect to it, while other relays have long found it alive again.
        """
        return self._draw(purpose, partial(self.paths.choose, purpose, excluded))

    def choose_leg(self, purpose: ExitByLegs, exit_relay: Relay, others: Collection[Path]) -> Choice:
        """Returns another path to the exit of `others`, as `choose` does."""
        return self._draw(purpose, partial(self.paths.choose_leg, purpose, exit_relay, others))

    def _draw(self, purpose: Shared | ForOnion, choose: Callable[[], Choice]) -> Choice:
        since = trio.current_time() - STEP_MEMORY
        self._failed_steps = {step: at for step, at in self._failed_steps.items() if at > since}
        target = purpose.target if isinstance(purpose, ForOnion) else None
        then = () if target is None else (target,)
        for _ in range(PATH_DRAWS - 1):
            choice = choose()
            if self._failed_steps.keys().isdisjoint(_steps((*choice.path, *then))):
                return choice
            choice.guard.given_up()
        return choose()

    async def build(self, choice: Choice, purpose: Shared | ForOnion) -> Circuit:
        """Build one circuit. Raises what made a hop fail, or TimedOut.

        A circuit whose path we chose is given out when its guard is usable, and only while the directory has
        all of its relays.
        """
        try:
            circuit = await self._build_in_time(choice, purpose)
        except CircuitClosed as error:
            if error.hop is not None and not choice.is_given:
                for one, next_one in pairwise(choice.path[max(error.hop - 2, 0) : error.hop]):
                    self.note_failed_step(one, next_one)
            raise
        try:
            await choice.guard.wait_usable()
            if circuit.error is not None:  # since its last hop was made
                raise circuit.error
            if not choice.is_given and not self.paths.may_go_on(choice.path):
                raise CircuitClosed("a relay has left the directory while a circuit was built")
        except BaseException as error:
            circuit.close(str(error) if isinstance(error, TorkitError) else UNWANTED)
            raise
        return circuit

    def note_failed_step(self, one: Relay, next_one: Relay) -> None:
        """For a minute, pass over paths on which `one` would have to extend to `next_one`."""
        self._failed_steps[one.identity, next_one.identity] = trio.current_time()

    async def build_through(self, path: Path) -> Circuit:
        """Build one through exactly these relays; build times do not learn from it. Raises as `build`."""
        guard = self.paths.given(path).guard
        settings, timeouts = self._current.circuit_settings(), self.build_times.timeouts
        return await build_circuit(
            self.channels, path, settings, self._rng, timeouts.for_hops(len(path)), guard=guard
        )

    async def _build_in_time(self, choice: Choice, purpose: Shared | ForOnion) -> Circuit:
        """Build within the timeout for use. A later circuit is closed, but its time teaches."""
        timeouts = self.build_times.timeouts.for_hops(len(choice.path))
        build = _Build(
            self.channels,
            choice.path,
            self._current.circuit_settings(),
            timeouts,
            purpose,
            choice.guard,
            self._rng,
        )
        with build.judging():
            await build.begin()
            if await build.wait_for_use():
                circuit = build.finish()
                self._note_built(build)
                self.build_times.note_outcome(timed_out=False)
                return circuit
        self.build_times.note_outcome(timed_out=True)
        self._nursery.start_soon(self._finish_late, build)
        raise build.late()

    async def _finish_late(self, build: "_Build") -> None:
        """Wait for a circuit that nobody wants any more."""
        with suppress(TorkitError), build.judging():
            await build.wait_for_close()
            circuit = build.finish()
            self._note_built(build)
            circuit.close("it came too late")

    def _note_built(self, build: "_Build") -> None:
        if len(build.path) == HOPS:
            self.build_times.note_built(trio.current_time() - build.begun_at)


def _steps(relays: Path) -> set[tuple[bytes, bytes]]:
    """Returns the steps of a path: pairs of identities, of a relay and the one it extends to."""
    return {(one.identity, next_one.identity) for one, next_one in pairwise(relays)}


async def build_circuit(
    channels: Channels,
    path: Path,
    settings: CircuitSettings,
    rng: Random,
    timeouts: Timeouts = INITIAL,
    *,
    guard: GuardTry = UNTOLD,
    purpose: Shared | ForOnion = LOOK_UP,
    begin: Callable[[Circuit], None] | None = None,
) -> Circuit:
    """Returns a circuit through all of `path`. Raises what made a hop fail, or TimedOut.

    The connection and the first hop must each be made within the timeout for use, all hops within that for
    closing. `guard` is told how the first relay did. `begin` is called between connecting and the first hop.
    """
    if not path:
        raise UsageError("a path needs at least one relay")
    build = _Build(channels, path, settings, timeouts, purpose, guard, rng, begin)
    with build.judging():
        await build.begin()
        if not await build.wait_for_use():
            await build.wait_for_close()
        return build.finish()


async def build_directory_circuit(
    channels: Channels, purpose: AskDirectory, settings: CircuitSettings, guard: GuardTry = UNTOLD
) -> Circuit:
    """Returns a one-hop circuit to a directory server. Raises what made it fail, or TimedOut.

    A relay whose keys are known gets the handshake of any circuit's last hop (as from C tor).
    """
    build = _Build(channels, (purpose.server,), settings, INITIAL, purpose, guard)
    with build.judging():
        await build.begin()
        await build.wait_for_use()  # its one hop is there, or has failed
        return build.finish()


class _Build:
    """One circuit under way, from the connection to its first relay on.

    The answers of its relays drive it (circuit/hops.py). Whoever waits for it does so inside `judging`.
    """

    def __init__(
        self,
        channels: Channels,
        path: Sequence[Contact],
        settings: CircuitSettings,
        timeouts: Timeouts,
        purpose: Purpose,
        guard: GuardTry,
        rng: Random | None = None,
        begin: Callable[[Circuit], None] | None = None,
    ) -> None:
        """Without `rng` the circuit cannot be extended."""
        self.path = path
        # On trio's clock: the connection is there. What it takes from now on is learnt from.
        self.begun_at = 0.0
        self._channels = channels
        self._settings = settings
        self._timeouts = timeouts
        self._purpose = purpose
        self._guard = guard
        self._rng = rng
        self._begin = begin
        self._pump = Pump.current()
        self._started = time.monotonic(), self._pump.stalled_seconds
        self._started_at = trio.current_time()
        self._had_channel = channels.is_open(path[0])
        self._circuit: Circuit | None = None
        self._hops: Hops

    async def begin(self) -> None:
        """Connect, and send our half of the first handshake."""
        channel = self._channels.find(self.path[0])
        if channel is None:
            with trio.fail_after(self._timeouts.use):
                channel = await self._channels.get(self.path[0])
        early_count = 0 if self._rng is None else MAX_RELAY_EARLY - self._rng.randrange(2)
        circuit = self._circuit = channel.open_circuit(early_count, self._settings, self._purpose.label)
        self.begun_at = trio.current_time()
        is_to_directory = isinstance(self._purpose, AskDirectory)
        phase = Phase.ONEHOP_CREATE if is_to_directory else Phase.CIRCUIT_CREATE
        self._settings.journal.progress.reach(phase)
        if isinstance(self._purpose, ForOnion):
            circuit.unnamed_hop = len(self.path) + 1  # the target, when it is added
        if not is_to_directory:
            circuit.watch = self._guard.watch
        if self._begin is not None:
            self._begin(circuit)
        # Exits and directories get the handshake of exits; every other last relay gets that of middle hops.
        relays = [relay if is_known(relay) else None for relay in self.path]
        ends_at_exit = not isinstance(self._purpose, ForOnion)
        self._hops = Hops(circuit, relays, ends_at_exit=ends_at_exit, on_hop=self._note_hop)

    def _note_hop(self, count: int) -> None:
        assert self._circuit is not None
        if count == 2 and not self._circuit.watch.note_attempted():
            raise CircuitClosed("the guard is used no more")

    async def wait_for_use(self) -> bool:
        """Wait until the timeout for use. Returns whether the build has ended.

        Raises TooSlowError where not even the first relay has answered.
        """
        with trio.move_on_at(self.begun_at + self._timeouts.use):
            await self._hops.has_ended.wait()
        if self._hops.has_ended.is_set():
            return True
        if not self._hops.count:
            raise trio.TooSlowError
        return False

    async def wait_for_close(self) -> None:
        """Wait until the build has ended. Raises TooSlowError at the timeout for closing."""
        with trio.fail_at(self.begun_at + self._timeouts.close):
            await self._hops.has_ended.wait()

    def finish(self) -> Circuit:
        """Returns the circuit, now that the build has ended. Raises what made a hop fail."""
        self._hops.check()
        circuit = self._circuit
        assert circuit is not None
        if circuit.error is not None:  # it ended in the same read as its last handshake
            raise circuit.error
        circuit.note_built()
        self._guard.reached()
        if not isinstance(self._purpose, AskDirectory):
            words.note_built(circuit, self._purpose, trio.current_time() - self._started_at)
            self._settings.journal.progress.reach(Phase.DONE)
        return circuit

    def late(self) -> TimedOut:
        """Returns the error of a circuit that was not built in time: the next relay has not answered."""
        late = TimedOut(f"a circuit was not built within {self._timeouts.use:.1f} s")
        late.name(self._name(self._hops.count))
        return late

    def _name(self, index: int) -> str:
        """Returns the name of a relay for messages; of the last one at most."""
        assert not isinstance(self._purpose, AskDirectory)
        return words.names_of(self.path, self._purpose)[min(index, len(self.path) - 1)]

    # --- failing ----------------------------------------------------------------------------------

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Tell the guard's handle, the log and events of what is raised inside, and close the circuit."""
        try:
            yield
        except BaseException as error:
            self._judge(error)
            # Nothing below has a name: an error's traceback holds this call, which would hold the error.
            if isinstance(error, TorkitError):
                self._tell(error)
            elif isinstance(error, trio.TooSlowError):
                error.__traceback__ = None  # in Python 3.13 its calls hold it, though nobody sees it any more
                raise self._tell(TimedOut("a circuit was not built in time")) from None
            elif isinstance(error, Exception):
                raise _fault(error) from error
            raise

    def _judge(self, error: BaseException) -> None:
        """Tell the guard's handle what the first relay has to do with it, and close the circuit."""
        circuit, first, guard = self._circuit, self.path[0], self._guard
        is_timeout = isinstance(error, trio.TooSlowError)
        is_excused = _may_be_late(error, self._had_channel) and self._pump.excuse(*self._started)
        has_answered = circuit is not None and (circuit.hops or isinstance(error, CircuitClosed))
        if is_timeout and not has_answered:
            self._channels.forget(first)
        if has_answered:
            guard.reached()  # a relay that answers by DESTROY is there
        elif is_excused or _says_nothing(error, self._had_channel):
            guard.given_up()
        else:
            guard.failed()
        if circuit is None and is_known(first) and isinstance(error, TorkitError):
            error.name(first.nickname)
        if circuit is not None:
            if is_excused or isinstance(error, trio.Cancelled):
                circuit.watch.note_abandoned()
            elif is_timeout:
                circuit.watch.note_timed_out()
            circuit.close(UNWANTED if isinstance(error, trio.Cancelled) else "it could not be built")

    def _tell(self, error: TorkitError) -> TorkitError:
        """Name the relay that failed, and tell the log and events; whoever asks a directory tells it."""
        if isinstance(self._purpose, AskDirectory):
            return error
        built = 0 if self._circuit is None else len(self._circuit.path)
        if isinstance(error, CircuitClosed) and error.hop is not None:
            error.name(self._name(error.hop - 1))
        elif isinstance(error, ChannelClosed | ChannelError):
            error.name(self._name(0))
        elif isinstance(error, CircuitError | TimedOut) and built < len(self.path):
            error.name(self._name(built))
        words.note_failed(self._purpose, error, trio.current_time() - self._started_at)
        self._settings.journal.progress.block(diagnose([error]))
        return error


def _fault(error: Exception) -> InternalError:
    """Returns what ends a circuit for a fault of ours, now logged."""
    fault = InternalError.ending("a circuit", error)
    log_fault(fault)
    return fault


def _may_be_late(error: BaseException, had_channel: bool) -> bool:
    """Returns whether a build may have failed by a stall of this process; so may an older connection."""
    if isinstance(error, trio.TooSlowError | TimedOut | HandshakeCut):
        return True
    return isinstance(error, ChannelClosed) and had_channel


def _says_nothing(error: BaseException, had_channel: bool) -> bool:
    """Returns whether a failure may not be the first relay's fault."""
    if not isinstance(error, PeerError | Closed | TimedOut | trio.TooSlowError):
        return True
    return isinstance(error, trio.TooSlowError) and had_channel  # perhaps only that connection is dead
