"""Builds one circuit, hop by hop, within the timeouts that were learnt.

A request gives up at the timeout for use; the circuit is finished all the same, since its time teaches, and
closed.
path-spec, "Learning when to give up".
"""

import time
from collections.abc import Awaitable, Callable, Collection
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
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits import words
from torkit.net.circuits.guards import UNTOLD, GuardTry
from torkit.net.circuits.purpose import LOOK_UP, AskDirectory, ExitByLegs, ForOnion, Path, Purpose, Shared
from torkit.net.contact import Contact, is_known
from torkit.net.current import Current
from torkit.net.link.channels import Channels
from torkit.net.link.pump import Pump, log_fault
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
        build = _Build()
        self._nursery.start_soon(self._run, build, choice, purpose, timeouts)
        try:
            await build.is_begun.wait()
            with trio.move_on_after(timeouts.use):
                await build.is_over.wait()
            if build.circuit is not None and not build.circuit.hops:
                await build.is_over.wait()  # the first hop's time is up as well, which is being noted
        except BaseException:
            build.scope.cancel()
            if build.circuit is not None and build.is_over.is_set():  # just then it was finished
                build.circuit.close(UNWANTED)
            raise
        if not build.is_over.is_set():
            build.is_late = True
            self.build_times.note_outcome(timed_out=True)
            built = 0 if build.circuit is None else len(build.circuit.path)
            raise _late(words.names_of(choice.path, purpose)[min(built, len(choice.path) - 1)], timeouts.use)
        if build.error is not None:
            raise build.error
        assert build.circuit is not None
        return build.circuit

    async def _run(
        self, build: "_Build", choice: Choice, purpose: Shared | ForOnion, timeouts: Timeouts
    ) -> None:
        """Build one circuit, however long it takes."""
        try:
            with build.scope:
                circuit = await build_circuit(
                    self.channels,
                    choice.path,
                    self._current.circuit_settings(),
                    self._rng,
                    timeouts,
                    guard=choice.guard,
                    purpose=purpose,
                    begin=build.begin,
                )
                if len(choice.path) == HOPS:
                    self.build_times.note_built(trio.current_time() - build.begun_at)
                if build.is_late:
                    circuit.close("it came too late")
                else:
                    self.build_times.note_outcome(timed_out=False)
        except TorkitError as error:
            build.error = error
        except Exception as error:
            build.error = InternalError.ending("a circuit", error)
            log_fault(build.error)
            if build.circuit is not None:
                build.circuit.close()
        finally:
            build.is_begun.set()
            build.is_over.set()


def _late(name: str, seconds: float) -> TimedOut:
    """Returns the error of a circuit that was not built in time: the relay of this name did not answer."""
    late = TimedOut(f"a circuit was not built within {seconds:.1f} s")
    late.name(name)
    return late


def _steps(relays: Path) -> set[tuple[bytes, bytes]]:
    """Returns the steps of a path: pairs of identities, of a relay and the one it extends to."""
    return {(one.identity, next_one.identity) for one, next_one in pairwise(relays)}


class _Build:
    """A circuit under way. It may outlive the request that waits for it."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.is_begun = trio.Event()  # the channel is there: what it takes from now on is learnt from
        self.begun_at = 0.0
        self.is_over = trio.Event()
        self.is_late = False
        self.circuit: Circuit | None = None
        self.error: TorkitError | None = None

    def begin(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.begun_at = trio.current_time()
        self.is_begun.set()


def _do_nothing(circuit: Circuit) -> None:
    """Stands for a `begin` that nobody needs."""


async def build_circuit(
    channels: Channels,
    path: Path,
    settings: CircuitSettings,
    rng: Random,
    timeouts: Timeouts = INITIAL,
    *,
    guard: GuardTry = UNTOLD,
    purpose: Shared | ForOnion = LOOK_UP,
    begin: Callable[[Circuit], None] = _do_nothing,
) -> Circuit:
    """Returns a circuit through all of `path`. Raises what made a hop fail, or TimedOut.

    The connection and the first hop must each be made within the timeout for use, all hops within that for
    closing. `guard` is told how the first relay did. `begin` is called between connecting and the first hop.
    """
    ends_at_exit = isinstance(purpose, Shared)
    progress = settings.journal.progress
    names = words.names_of(path, purpose)
    began = trio.current_time()
    circuit: Circuit | None = None

    async def add_hops(new: Circuit) -> None:
        nonlocal circuit
        circuit = new
        progress.reach(Phase.CIRCUIT_CREATE)
        circuit.watch = guard.watch
        circuit.unnamed_hop = None if ends_at_exit else len(path) + 1  # the target, when it is added
        begin(circuit)
        for number, relay in enumerate(path, 1):
            # Only an exit gets the handshake of exits; every other last relay gets that of middle hops.
            is_last = ends_at_exit and number == len(path)
            try:
                if number == 1:
                    with trio.fail_after(timeouts.use):
                        await circuit.create(relay, is_last=is_last)
                else:
                    await circuit.extend(relay, is_last=is_last)
            except CircuitClosed as error:
                error.hop = number  # the one that could not be added
                error.name(names[number - 1])
                raise
            if number == 2 and not circuit.watch.note_attempted():
                raise CircuitClosed("the guard is used no more")

    if not path:
        raise UsageError("a path needs at least one relay")
    early_count = MAX_RELAY_EARLY - rng.randrange(2)
    try:
        circuit = await _build(channels, path[0], early_count, settings, timeouts, purpose, guard, add_hops)
    except TorkitError as error:
        built = 0 if circuit is None else len(circuit.path)
        if isinstance(error, ChannelClosed | ChannelError):
            error.name(names[0])
        elif isinstance(error, CircuitError | TimedOut) and built < len(path):
            error.name(names[built])
        words.note_failed(purpose, error, trio.current_time() - began)
        progress.block(diagnose([error]))
        raise
    words.note_built(circuit, purpose, trio.current_time() - began)
    progress.reach(Phase.DONE)
    return circuit


async def build_directory_circuit(
    channels: Channels, purpose: AskDirectory, settings: CircuitSettings, guard: GuardTry = UNTOLD
) -> Circuit:
    """Returns a one-hop circuit to a directory server. Raises what made it fail, or TimedOut.

    A relay whose keys are known gets the handshake of any circuit's last hop (as from C tor).
    """

    server = purpose.server

    async def add_hop(circuit: Circuit) -> None:
        settings.journal.progress.reach(Phase.ONEHOP_CREATE)
        if is_known(server):
            await circuit.create(server, is_last=True)
        else:
            await circuit.create_fast()

    return await _build(channels, server, 0, settings, INITIAL, purpose, guard, add_hop)


async def _build(
    channels: Channels,
    first: Contact,
    relay_early_count: int,
    settings: CircuitSettings,
    timeouts: Timeouts,
    purpose: Purpose,
    guard: GuardTry,
    add_hops: Callable[[Circuit], Awaitable[None]],
) -> Circuit:
    circuit: Circuit | None = None
    pump = Pump.current()
    began = time.monotonic(), pump.stalled_seconds
    had_channel = channels.is_open(first)
    try:
        with trio.fail_after(timeouts.use):
            channel = await channels.get(first)
        circuit = channel.open_circuit(relay_early_count, settings, purpose.label)
        with trio.fail_after(timeouts.close):
            await add_hops(circuit)
        if circuit.error is not None:  # it ended in the same read as its last handshake
            raise circuit.error
        circuit.note_built()
    except BaseException as error:
        is_timeout = isinstance(error, trio.TooSlowError)
        is_excused = _may_be_late(error, had_channel) and pump.excuse(*began)
        has_answered = circuit is not None and (circuit.hops or isinstance(error, CircuitClosed))
        if is_timeout and not has_answered:
            channels.forget(first)
        if has_answered:
            guard.reached()  # a relay that answers by DESTROY is there
        elif is_excused or _says_nothing(error, had_channel):
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
        if is_timeout:
            raise TimedOut("a circuit was not built in time") from None
        raise
    guard.reached()
    return circuit


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
