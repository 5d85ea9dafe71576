"""Timeouts of circuits against numbers worked out by hand, and how they are learnt, kept and forgotten."""

from collections import Counter
from math import inf, log
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.learnt.build_times import (
    INITIAL,
    MAX_TIMES,
    BuildTimes,
    Timeouts,
    Times,
    fit_pareto,
    pareto_quantile,
)
from torkit.params import Param, default_param, parameter


def params(**values: int) -> Param:
    """A consensus that sets these."""

    def param(name: str) -> int:
        return parameter(values, name)

    return param


def learnt(times: list[float], param: Param = default_param) -> BuildTimes:
    build_times = BuildTimes(param)
    for seconds in times:
        build_times.note_built(seconds)
    return build_times


# --- The distribution ----------------------------------------------------------------------------------


def test_one_mode_and_its_alpha() -> None:
    """Bins 100..109 (twice) and 400..409: Xm = 105 with one mode; alpha = 3 / (2*0 + ln(402/105))."""
    xm, alpha = fit_pareto(Times([101, 107, 402]), 1)
    assert xm == 105
    # ln(107/105) = 0.018868..., ln(402/105) = 1.342492...: 101 counts as 105.
    assert alpha == pytest.approx(3 / (0.0188683 + 1.3424916), rel=1e-5)


def test_several_modes_are_averaged_each_as_often_as_it_came() -> None:
    """105 three times and 205 once among the modes: (3*105 + 1*205) / 4 = 130."""
    assert fit_pareto(Times([100, 102, 109, 200, 305]), 2)[0] == 130


def test_of_bins_equally_common_the_earlier_count() -> None:
    assert fit_pareto(Times([900, 500, 100, 700]), 2)[0] == (105 + 505) / 2


def test_the_last_thousand_are_counted_and_in_order() -> None:
    rng = Random(7)
    times = [rng.randrange(1, 3000) for _ in range(MAX_TIMES + 500)]
    kept = Times(times)
    assert kept.by_length == sorted(times[500:])
    assert kept.logs == [log(time) for time in kept.by_length]
    assert kept.bins == Counter(time // 10 * 10 + 5 for time in times[500:])
    assert 0 not in kept.bins.values()


def test_quantiles() -> None:
    """With alpha 2, four fifths are done by Xm * sqrt(5), 99 of a hundred by Xm * 10."""
    assert pareto_quantile(100, 2, 0.8) == pytest.approx(223.606798)
    assert pareto_quantile(100, 2, 0.99) == pytest.approx(1000)
    assert pareto_quantile(100, inf, 0.99) == 100


def test_equal_times_have_no_tail() -> None:
    assert fit_pareto(Times([100] * 5), 10) == (105, inf)


# --- Timeouts ------------------------------------------------------------------------------------------


def test_before_a_hundred_circuits_the_initial_timeout_holds() -> None:
    build_times = learnt([0.3] * 99)
    assert build_times.timeouts == INITIAL
    assert build_times.is_learning
    build_times.note_built(0.3)
    # All in one bin, whose middle is 305 ms; no more than the longest that was seen.
    assert build_times.timeouts == Timeouts(0.3, 60.0)
    assert not build_times.is_learning


def test_timeouts_of_a_distribution_worked_by_hand() -> None:
    """Fifty of 100 ms and fifty of 1 s; one mode, so Xm = 105 ms.

    alpha = 100 / (50 * ln(1000/105)) = 100 / (50 * 2.253795) = 0.887392, so that
    F(0.8) = 105 ms * 5^1.126897 = 643.9 ms;
    F(0.99) = 105 ms * 100^1.126897 = 18.84 s, but at most twice the longest and at least the initial minute.
    """
    times = [0.1] * 50 + [1.0] * 50
    one = learnt(times, params(cbtnummodes=1)).timeouts
    assert one.use == pytest.approx(0.6439, rel=1e-3)
    assert one.close == 60.0
    low = learnt(times, params(cbtnummodes=1, cbtinitialtimeout=500)).timeouts
    assert low.close == 2.0
    tighter = learnt(times, params(cbtnummodes=1, cbtinitialtimeout=500, cbtclosequantile=80)).timeouts
    assert tighter.close == pytest.approx(0.6439, rel=1e-3)
    backwards = learnt(times, params(cbtnummodes=1, cbtinitialtimeout=500, cbtclosequantile=10)).timeouts
    assert backwards == tighter  # no circuit is closed while it might still be used


def test_no_timeout_is_shorter_than_the_shortest_allowed() -> None:
    assert learnt([0.001] * 100).timeouts.use == 0.010
    assert learnt([0.001] * 100, params(cbtmintimeout=700)).timeouts.use == 0.7
    assert learnt([], params(cbtinitialtimeout=500, cbtmintimeout=700)).timeouts == Timeouts(0.7, 0.7)


def test_longer_and_shorter_circuits_have_timeouts_by_their_trips() -> None:
    timeouts = Timeouts(6.0, 60.0)
    assert timeouts.for_hops(3) == timeouts
    assert timeouts.for_hops(1) == Timeouts(1.0, 10.0)
    assert timeouts.for_hops(2) == Timeouts(3.0, 30.0)
    assert timeouts.for_hops(4) == Timeouts(10.0, 100.0)


def test_new_times_take_the_place_of_old_ones() -> None:
    build_times = learnt([1.0] * MAX_TIMES)
    assert build_times.timeouts.use == 1.0
    for _ in range(MAX_TIMES):
        build_times.note_built(0.2)
    assert build_times.timeouts.use == 0.2


def test_a_machine_that_slept_teaches_nothing() -> None:
    build_times = learnt([0.3] * 99)
    build_times.note_built(121.001)
    assert build_times.is_learning
    build_times.note_built(121.0)
    assert not build_times.is_learning


def test_learning_can_be_switched_off() -> None:
    build_times = learnt([0.3] * 200, params(cbtdisabled=1))
    assert build_times.timeouts == INITIAL
    assert not build_times.is_learning
    assert build_times.to_state() == {"build_times": {}}


def test_what_was_learnt_counts_for_nothing_while_learning_is_switched_off() -> None:
    values: dict[str, int] = {}
    build_times = learnt([0.3] * 100, lambda name: parameter(values, name))
    timeouts = build_times.timeouts
    assert timeouts != INITIAL
    values["cbtdisabled"] = 1
    assert build_times.timeouts == INITIAL
    for _ in range(20):
        build_times.note_outcome(timed_out=True)
    values["cbtdisabled"] = 0
    assert build_times.timeouts == timeouts


# --- Networks that change ------------------------------------------------------------------------------


def test_when_nearly_all_time_out_everything_is_learnt_anew() -> None:
    build_times = learnt([0.3] * 100)
    for _ in range(17):
        build_times.note_outcome(timed_out=True)
    build_times.note_outcome(timed_out=False)
    build_times.note_outcome(timed_out=False)
    assert not build_times.is_learning
    build_times.note_outcome(timed_out=True)
    assert build_times.is_learning
    assert build_times.timeouts == INITIAL


def test_only_the_last_twenty_count() -> None:
    build_times = learnt([0.3] * 100)
    for _ in range(100):
        for timed_out in [True] * 17 + [False] * 3:
            build_times.note_outcome(timed_out=timed_out)
    assert not build_times.is_learning


def test_when_learning_anew_does_not_help_the_initial_timeout_doubles() -> None:
    build_times = learnt([0.3] * 100)
    waits = []
    for _ in range(3):
        for _ in range(18):
            build_times.note_outcome(timed_out=True)
        waits.append(build_times.timeouts.use)
    assert waits == [60.0, 120.0, 240.0]
    for _ in range(100):
        build_times.note_built(0.3)
    assert build_times.timeouts.use == 0.3
    for _ in range(18):
        build_times.note_outcome(timed_out=True)
    assert build_times.timeouts.use == 60.0


def test_the_timeout_does_not_double_for_ever() -> None:
    build_times = BuildTimes()
    for _ in range(10_000):
        build_times.note_outcome(timed_out=True)
    assert build_times.timeouts.use < 2**31 / 1000


def test_more_timeouts_than_are_remembered_never_come() -> None:
    build_times = learnt([0.3] * 100, params(cbtmaxtimeouts=21))
    for _ in range(100):
        build_times.note_outcome(timed_out=True)
    assert not build_times.is_learning


# --- What is kept --------------------------------------------------------------------------------------


def test_times_are_kept_in_bins() -> None:
    build_times = learnt([0.101, 0.109, 0.302])
    assert build_times.to_state() == {"build_times": {"105": 2, "305": 1}}
    again = BuildTimes.from_state(build_times.to_state(), rng=Random(1))
    assert again.to_state() == build_times.to_state()


def test_times_are_shuffled_so_that_the_shortest_are_not_forgotten_first() -> None:
    state = learnt([0.1] * 500 + [0.9] * 500).to_state()
    again = BuildTimes.from_state(state, rng=Random(1))
    for _ in range(400):
        again.note_built(5.0)
    bins = again.to_state()["build_times"]
    assert 250 < bins["105"] < 350
    assert bins["105"] + bins["905"] == 600


@pytest.mark.parametrize(
    "bins",
    [
        None,
        [],
        "x",
        5,
        {"x": 5},
        {"": 5},
        {"-5": 1},
        {"105": "5"},
        {"105": True},
        {"105": -3},
        {"105": 1001},
        {"1" * 20: 1},
    ],
)
def test_what_is_no_time_is_left_out(bins: Any) -> None:
    assert BuildTimes.from_state({"build_times": bins}, rng=Random(1)).to_state() == {"build_times": {}}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.dictionaries(
        st.just("build_times"), _JSON | st.dictionaries(st.integers(0, 10**12).map(str), st.integers())
    )
)
def test_any_json_gives_timeouts(state: dict[str, Any]) -> None:
    build_times = BuildTimes.from_state(state, rng=Random(1))
    assert 0 < build_times.timeouts.use <= build_times.timeouts.close < inf


@given(st.lists(st.floats(0, 100), min_size=100, max_size=200))
def test_timeouts_lie_within_what_was_seen(times: list[float]) -> None:
    timeouts = learnt(times).timeouts
    assert 0.010 <= timeouts.use <= max(0.010, round(max(times), 3))
    assert timeouts.use <= timeouts.close
