"""How long to wait for a circuit: learnt from those that were built. path-spec, "Learning when to give up".

Pure: times and outcomes are arguments, and so is randomness. Only circuits of three hops teach. Their times
are taken for the tail of a Pareto distribution, F(t) = 1 - (Xm / t)^alpha for t of Xm and more, where

    Xm      is the average of the ten commonest times, in bins of 10 ms, each as often as it came
    alpha   is n / sum(ln(max(t, Xm)) - ln(Xm)) over the n times: the likeliest, given that Xm

A circuit that takes longer than four of five others, by that distribution, is used no more; one that takes
longer than 99 of a hundred is closed. A circuit between the two still teaches: without the tail the estimate
would shrink.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from heapq import nlargest
from math import exp, inf, log
from random import Random
from typing import Any, NamedTuple

from torkit.params import INT32_MAX, Param, default_param

# Specification constants.
BIN_WIDTH = 10  # ms
MAX_TIMES = 1000  # that are remembered
HOPS = 3  # of a circuit that teaches

# Implementation limit: a build that takes twice the close timeout and this many ms more says that the
# machine slept (as C tor).
CLOCK_SLACK = 1000


class Timeouts(NamedTuple):
    """When a circuit of three hops is used no more and when it is closed, in seconds."""

    use: float
    close: float

    def for_hops(self, count: int) -> Timeouts:
        """Returns the same for `count` hops: a build takes 1 + 2 + ... + count trips between neighbours."""
        factor = count * (count + 1) / (HOPS * (HOPS + 1))
        return Timeouts(self.use * factor, self.close * factor)


# Until something is learnt, by the consensus parameters' defaults.
INITIAL = Timeouts(60.0, 60.0)


class Times:
    """The last MAX_TIMES build times, in ms, kept so that an estimate looks at few of them."""

    def __init__(self, times: Iterable[int] = ()) -> None:
        self.by_length: list[int] = []
        self.logs: list[float] = []  # of each
        self.bins: Counter[int] = Counter()  # how many there are, by the middle of their bin
        self._by_age: deque[int] = deque()  # oldest first
        for time in times:
            self.add(time)

    def add(self, time: int) -> None:
        time = max(time, 1)  # less has no logarithm
        if len(self._by_age) == MAX_TIMES:
            self._forget(self._by_age.popleft())
        self._by_age.append(time)
        insort(self.by_length, time)
        insort(self.logs, log(time))
        self.bins[_middle(time)] += 1

    def _forget(self, time: int) -> None:
        place = bisect_left(self.by_length, time)
        del self.by_length[place], self.logs[place]
        middle = _middle(time)
        self.bins[middle] -= 1
        if not self.bins[middle]:
            del self.bins[middle]


class BuildTimes:
    """Callers tell with `note_*` how builds went; `timeouts` follows. `to_state` is for the state file."""

    def __init__(self, param: Param = default_param) -> None:
        self.has_changed = False  # since the state was last kept
        self._param = param
        self._times = Times()
        self._recent: deque[bool] = deque()  # whether each of the last circuits timed out
        self._backoff = 1  # of the initial timeout, doubled by every reset that did not help
        self._timeouts: Timeouts | None = None  # once computed

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, rng: Random, param: Param = default_param) -> BuildTimes:
        """Read what `to_state` gave; values that are no build times are left out.

        The file does not keep their order: they are shuffled, lest the shortest be forgotten first.
        """
        times = cls(param)
        bins = state.get("build_times")
        counts = {
            int(middle): count
            for middle, count in (bins.items() if isinstance(bins, dict) else ())
            if re.fullmatch(r"[0-9]{1,9}", middle) and type(count) is int and 0 < count <= MAX_TIMES
        }
        if counts:
            size = min(sum(counts.values()), MAX_TIMES)
            times._times = Times(rng.sample(list(counts), size, counts=list(counts.values())))
        return times

    def to_state(self) -> dict[str, Any]:
        """Returns JSON values: the count of each bin, by its middle in ms."""
        return {"build_times": {str(middle): count for middle, count in sorted(self._times.bins.items())}}

    @property
    def is_learning(self) -> bool:
        """Returns whether more circuits should be built to learn from."""
        return not self._is_disabled and len(self._times.by_length) < self._min_count

    @property
    def idle_timeout(self) -> int:
        """Returns for how many seconds an unused circuit is kept while we are learning."""
        return self._param("cbtlearntimeout")

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts in force now."""
        if self._is_disabled or len(self._times.by_length) < self._min_count:
            waiting = self._initial * self._backoff / 1000
            return Timeouts(waiting, waiting)
        if self._timeouts is None:
            self._timeouts = self._estimate()
        return self._timeouts

    def note_built(self, seconds: float) -> None:
        """Note that the third hop of a circuit was made `seconds` after the build began.

        Callers report circuits too that nobody wants any more.
        """
        milliseconds = round(1000 * seconds)
        if self._is_disabled or milliseconds > 2000 * self.timeouts.close + CLOCK_SLACK:
            return
        self._times.add(milliseconds)
        self._timeouts = None
        self.has_changed = True

    def note_outcome(self, *, timed_out: bool) -> None:
        """Note whether a circuit took too long for use. Its first hop was made, so the network was there.

        When nearly all of the last circuits took too long, the network has changed: all is learnt anew.
        """
        if self._is_disabled:
            return
        self._recent.append(timed_out)
        while len(self._recent) > self._param("cbtrecentcount"):
            self._recent.popleft()
        if sum(self._recent) >= self._param("cbtmaxtimeouts"):
            self._backoff = 2 * self._backoff if 1000 * self.timeouts.use >= self._initial else 1
            self._backoff = min(self._backoff, INT32_MAX // self._initial)
            self._times = Times()
            self._recent.clear()
            self._timeouts = None
            self.has_changed = True

    def _estimate(self) -> Timeouts:
        """path-spec, "Parameter estimation"."""
        xm, alpha = fit_pareto(self._times, self._param("cbtnummodes"))
        longest = self._times.by_length[-1]
        use = min(pareto_quantile(xm, alpha, self._param("cbtquantile") / 100), longest)
        close = min(pareto_quantile(xm, alpha, self._param("cbtclosequantile") / 100), 2 * longest)
        use = max(use, self._param("cbtmintimeout"))
        return Timeouts(use / 1000, max(close, self._initial, use) / 1000)

    @property
    def _is_disabled(self) -> bool:
        return bool(self._param("cbtdisabled"))

    @property
    def _min_count(self) -> int:
        return self._param("cbtmincircs")

    @property
    def _initial(self) -> int:
        """The timeout for use before anything is learnt, in ms."""
        return max(self._param("cbtinitialtimeout"), self._param("cbtmintimeout"))


def fit_pareto(times: Times, mode_count: int) -> tuple[float, float]:
    """Returns Xm in ms and alpha; alpha is infinite where no time is above Xm. "Parameter estimation"."""
    # The fullest bins; of those equally full the lowest. There is an estimate for each circuit, and sorting
    # all bins took two thirds of it.
    modes = nlargest(mode_count, [(count, -middle) for middle, count in times.bins.items()])
    xm = sum(-middle * count for count, middle in modes) / sum(count for count, _ in modes)
    above = times.logs[bisect_right(times.by_length, xm) :]
    excess = sum(above) - len(above) * log(xm)
    return xm, len(times.by_length) / excess if excess > 1e-9 else inf


def pareto_quantile(xm: float, alpha: float, fraction: float) -> float:
    """Returns the time, in ms, within which this part of all circuits is built."""
    return xm * exp(-log(1 - fraction) / alpha)


def _middle(time: int) -> int:
    """Returns the middle, in ms, of the bin that a build time falls into."""
    return time // BIN_WIDTH * BIN_WIDTH + BIN_WIDTH // 2
