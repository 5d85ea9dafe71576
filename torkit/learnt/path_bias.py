"""Judges whether a guard fails more of our circuits than chance would. It could choose our paths that way.

Pure. Counted, for its guard, is every circuit that we chose and that made two hops: whether it was completed
and closed in good order, and whether a stream on it was answered. Other circuits say nothing of the guard
alone. A circuit passes from NEW to the state that says how it went:

    NEW -> ATTEMPTED -> BUILT -> USE_ATTEMPTED <-> USE_SUCCEEDED
                                       `-> USE_FAILED                 and from each of these to COUNTED

Where too few circuits went well, a line in the log says so; the guard is dropped only if the consensus asks
for that. path-spec,
"Detecting route manipulation by Guard nodes (Path Bias)".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

from torkit.params import Param, default_param

# Implementation limit: the greatest count that is read from a state file (as C tor).
MAX_COUNT = 1e9


class State(IntEnum):
    """How far one circuit has come."""

    NEW = 0
    ATTEMPTED = 1
    BUILT = 2
    USE_ATTEMPTED = 3
    USE_SUCCEEDED = 4
    USE_FAILED = 5
    COUNTED = 6


class Level(IntEnum):
    """How badly a guard does."""

    NOTICE = 1
    WARN = 2
    EXTREME = 3


_MEANINGS = {
    Level.NOTICE: "fails more often than usual",
    Level.WARN: "fails very often, most likely for an overload",
    Level.EXTREME: "fails extremely often, for an attack or an overload",
}

_COMPLETE = (State.BUILT, State.USE_ATTEMPTED, State.USE_SUCCEEDED, State.USE_FAILED)


class Counts:
    """The counts of one guard, as floats: they are scaled down at times. (Names as in C tor's state.)"""

    def __init__(self) -> None:
        self.circ_attempts = 0.0
        self.circ_successes = 0.0
        self.successful_circuits_closed = 0.0
        self.collapsed_circuits = 0.0  # that somebody else closed before they were used
        self.unusable_circuits = 0.0  # that were used, and no stream was answered
        self.timeouts = 0.0
        self.use_attempts = 0.0
        self.use_successes = 0.0
        self.open = Counter[State]()  # circuits not closed yet, which are not kept
        self.told: dict[str, Level] = {}  # the worst said, of circuits and of use
        self.is_disabled = False

    @classmethod
    def from_json(cls, values: Any) -> Counts:
        """Read what `to_json` gave; a value that is no count is taken for 0."""
        counts = cls()
        for name, value in values.items() if isinstance(values, dict) else ():
            if name in _KEPT and type(value) in (int, float) and 0 <= value <= MAX_COUNT:
                setattr(counts, name, float(value))
        counts.circ_successes = min(counts.circ_successes, counts.circ_attempts)
        counts.use_successes = min(counts.use_successes, counts.use_attempts)
        return counts

    def to_json(self) -> dict[str, float]:
        """Returns JSON values, in which open circuits count as successes."""
        values = {name: getattr(self, name) for name in _KEPT}
        values |= {
            "circ_attempts": self.settled_attempts,
            "successful_circuits_closed": self.closed_well,
            "use_successes": self.used_well,
        }
        return {name: round(value, 6) for name, value in values.items() if value > 0}

    @property
    def settled_attempts(self) -> float:
        """Returns how many attempts have been completed or have failed. (C tor judges by all attempts.)"""
        return self.circ_attempts - self.count(State.ATTEMPTED)

    @property
    def closed_well(self) -> float:
        """Returns how many circuits were completed and not ended by others, or may still be."""
        return self.successful_circuits_closed + self.count(
            State.BUILT, State.USE_ATTEMPTED, State.USE_SUCCEEDED
        )

    @property
    def used_well(self) -> float:
        """Returns on how many circuits a stream was answered, or may still be."""
        return self.use_successes + self.count(State.USE_ATTEMPTED, State.USE_SUCCEEDED)

    def count(self, *states: State) -> int:
        """Returns how many circuits are open in these states."""
        return sum(self.open[state] for state in states)


_KEPT = [name for name, value in vars(Counts()).items() if isinstance(value, float)]


class Report(NamedTuple):
    """A judgement of one guard. With `is_dropped` the guard shall be used no more."""

    guard: bytes
    is_warning: bool
    is_dropped: bool
    message: str


def _no_guard(identity: bytes) -> Counts | None:
    """Stands for `counts_of` where no guards are kept: finds none."""
    return None


def _ignore(report: Report) -> None:
    """Takes a report and does nothing."""


class PathBias:
    """Gives out a Watch for each circuit. `counts_of` gives the counts of a guard, None for other relays."""

    def __init__(
        self,
        counts_of: Callable[[bytes], Counts | None] = _no_guard,
        param: Param = default_param,
        report: Callable[[Report], None] = _ignore,
    ) -> None:
        self.has_changed = False  # since the counts were last kept
        self._counts_of = counts_of
        self._param = param
        self._report = report

    def watch(self, guard: bytes) -> Watch:
        """Returns the Watch of a circuit that begins at this relay and whose relays we chose."""
        return Watch(self, guard)

    # --- called by Watch --------------------------------------------------------------------------

    def begin(self, guard: bytes) -> Counts | None:
        """Count one more circuit, and judge the guard by the earlier ones."""
        counts = self._counts_of(guard)
        if counts is None:
            return None
        self._judge_circuits(guard, counts)
        if not counts.is_disabled:
            self._scale_circuits(counts)
            counts.circ_attempts += 1
            self.has_changed = True
        return counts

    def begin_use(self, guard: bytes, counts: Counts) -> None:
        """Count one more circuit as used, and judge the guard by the earlier ones."""
        self._judge_use(guard, counts)
        self._scale_use(counts)
        counts.use_attempts += 1
        self.has_changed = True

    def _judge_circuits(self, guard: bytes, counts: Counts) -> None:
        attempts = counts.settled_attempts
        if attempts <= self._param("pb_mincircs"):
            return
        rate = counts.closed_well / attempts
        done = f"{round(counts.closed_well)} of {round(attempts)} circuits succeeded"
        if rate < self._percent("pb_extremepct"):
            self._tell(guard, counts, "circuits", Level.EXTREME, done)
        elif rate < self._percent("pb_warnpct"):
            self._tell(guard, counts, "circuits", Level.WARN, done)
        elif rate < self._percent("pb_noticepct"):
            self._tell(guard, counts, "circuits", Level.NOTICE, done)

    def _judge_use(self, guard: bytes, counts: Counts) -> None:
        if counts.use_attempts <= self._param("pb_minuse"):
            return
        rate = counts.used_well / counts.use_attempts
        done = f"{round(counts.used_well)} of {round(counts.use_attempts)} circuits carried streams"
        if rate < self._percent("pb_extremeusepct"):
            self._tell(guard, counts, "use", Level.EXTREME, done)
        elif rate < self._percent("pb_noticeusepct"):
            self._tell(guard, counts, "use", Level.NOTICE, done)

    def _tell(self, guard: bytes, counts: Counts, what: str, level: Level, done: str) -> None:
        """Report each level once, and none after a worse one."""
        if level is Level.EXTREME and self._param("pb_dropguards"):
            if not counts.is_disabled:
                counts.is_disabled = True
                message = f"fails extremely often and is used no more: {done}"
                self._report(Report(guard, is_warning=True, is_dropped=True, message=message))
            return
        if level <= counts.told.get(what, 0):
            return
        counts.told[what] = level
        message = f"{_MEANINGS[level]}: {done}"
        self._report(Report(guard, is_warning=level > Level.NOTICE, is_dropped=False, message=message))

    def _percent(self, name: str) -> float:
        return self._param(name) / 100

    def _scale_circuits(self, counts: Counts) -> None:
        """Scale old counts down; open circuits count in full. "Scaling success counts"."""
        if counts.circ_attempts <= self._param("pb_scalecircs"):
            return
        ratio = self._ratio()
        built = counts.count(*_COMPLETE)
        attempted = built + counts.count(State.ATTEMPTED)
        counts.circ_attempts = (counts.circ_attempts - attempted) * ratio + attempted
        counts.circ_successes = (counts.circ_successes - built) * ratio + built
        counts.timeouts *= ratio
        counts.successful_circuits_closed *= ratio
        counts.collapsed_circuits *= ratio
        counts.unusable_circuits *= ratio

    def _scale_use(self, counts: Counts) -> None:
        if counts.use_attempts <= self._param("pb_scaleuse"):
            return
        ratio = self._ratio()
        opened = counts.count(State.USE_ATTEMPTED, State.USE_SUCCEEDED)
        counts.use_attempts = (counts.use_attempts - opened) * ratio + opened
        counts.use_successes *= ratio

    def _ratio(self) -> float:
        divisor = self._param("pb_scalefactor")
        return min(self._param("pb_multfactor"), divisor) / divisor


class Watch:
    """Callers tell with `note_*` how one circuit fares. Reports that do not fit its state change nothing."""

    def __init__(self, bias: PathBias | None, guard: bytes) -> None:
        self.state = State.NEW
        self._bias = bias
        self._guard = guard
        self._counts: Counts | None = None

    @property
    def needs_probe(self) -> bool:
        """Returns whether streams were tried and no answer has shown that the circuit works."""
        return self.state is State.USE_ATTEMPTED

    def note_attempted(self) -> bool:
        """Note that two hops were made. Returns False where the guard is used no more."""
        if self._bias is None or self.state is not State.NEW:
            return True
        self._counts = self._bias.begin(self._guard)
        if self._counts is None:
            self.state = State.COUNTED
            return True
        if self._counts.is_disabled:
            return False
        self._enter(State.ATTEMPTED)
        return True

    def note_built(self) -> None:
        """Note that all hops were made."""
        if self.state is State.ATTEMPTED:
            self._add("circ_successes")
            self._enter(State.BUILT)

    def note_timed_out(self) -> None:
        """Note that not all hops were made in time."""
        if self.state is State.ATTEMPTED:
            self._add("timeouts")

    def note_abandoned(self) -> None:
        """Note that we ended the circuit before its outcome was known, which says nothing of its guard."""
        if self.state is State.ATTEMPTED:
            self._add("circ_attempts", -1)
            self._enter(State.COUNTED)

    def note_use(self) -> None:
        """Note that a stream is tried on the circuit."""
        if self.state is State.BUILT and self._bias is not None and self._counts is not None:
            self._bias.begin_use(self._guard, self._counts)
            self._enter(State.USE_ATTEMPTED)

    def note_used(self) -> None:
        """Note that the exit has answered: CONNECTED, RESOLVED, or an END that no broken cell explains."""
        if self.state is State.USE_ATTEMPTED:
            self._enter(State.USE_SUCCEEDED)

    def note_given_up(self) -> None:
        """Note that a stream is tried again elsewhere: a relay here may have held something back."""
        if self.state is State.USE_SUCCEEDED:
            self._enter(State.USE_ATTEMPTED)

    def note_broken(self) -> None:
        """Note that the exit got broken cells."""
        if self.state in (State.USE_ATTEMPTED, State.USE_SUCCEEDED):
            self._enter(State.USE_FAILED)

    def note_closed(self, *, by_us: bool) -> None:
        """Note that the circuit has ended."""
        if self.state is State.USE_SUCCEEDED or (self.state is State.BUILT and by_us):
            self._add("successful_circuits_closed")
        elif self.state is State.BUILT:
            self._add("collapsed_circuits")
        elif self.state in (State.USE_ATTEMPTED, State.USE_FAILED):
            self._add("unusable_circuits")
        if self.state is State.USE_SUCCEEDED:
            self._add("use_successes")
        if self.state not in (State.NEW, State.COUNTED):
            self._enter(State.COUNTED)

    def _add(self, name: str, count: int = 1) -> None:
        assert self._bias is not None
        setattr(self._counts, name, getattr(self._counts, name) + count)
        self._bias.has_changed = True

    def _enter(self, state: State) -> None:
        if self._counts is not None:
            self._counts.open[self.state] -= self.state is not State.NEW
            self._counts.open[state] += state is not State.COUNTED
        self.state = state


# The Watch of circuits that we did not choose, and of circuits of one hop.
UNWATCHED = Watch(None, b"")
