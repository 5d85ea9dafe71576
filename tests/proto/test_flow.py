"""Congestion windows and XON/XOFF against traces worked out by hand and the vectors of C tor's tests."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit._fast.vegas import ClockGuard, RoundTripTime, Vegas, n_ewma
from torkit.errors import CircuitError
from torkit.params import PARAMETERS, parameter
from torkit.proto.flow import (
    RELAY_DATA_LEN_MAX,
    RELAY_DATA_LEN_MIN,
    XOFF,
    XOFF_CREDIT_MAX,
    CongestionParams,
    DrainWatch,
    PathKind,
    StreamParams,
    Xoff,
    XoffCheck,
    Xon,
    wants_congestion_control,
)

CONGESTION = sorted(name for name in PARAMETERS if name.startswith("cc_"))
DEFAULTS = CongestionParams.from_params({})


def make_vegas(params: CongestionParams = DEFAULTS, *, increment: int = 31) -> Vegas:
    return Vegas(params, increment=increment, clock=ClockGuard())


def feed(vegas: Vegas, rtt: int, in_flight: int, *, blocked: bool = False) -> None:
    """One SENDME with the number of cells in flight at its arrival."""
    """`rtt` in microseconds, in which the vectors are."""
    vegas.acknowledge(rtt / 1_000_000, in_flight=in_flight, blocked=blocked)


# --- Parameters ----------------------------------------------------------------------------------------


def test_defaults_are_those_of_c_tor() -> None:
    # src/core/or/congestion_control_{common,vegas}.c of 0.4.9.11, with 31 cells to a TLS record.
    assert (
        CongestionParams(
            sendme_inc=31,
            cwnd_init=124,
            cwnd_min=124,
            cwnd_max=2**31 - 1,
            cwnd_inc=1,
            cwnd_inc_pct_ss=100,
            cwnd_inc_rate=31,
            ewma_cwnd_pct=50,
            ewma_max=10,
            ewma_ss=2,
            rtt_reset_pct=100,
            ss_max=5000,
            ss_cap=600,
            cwnd_full_gap=4,
            cwnd_full_minpct=25,
            cwnd_full_per_cwnd=True,
            alpha=186,
            beta=248,
            gamma=186,
            delta=310,
        )
        == DEFAULTS
    )


def test_each_kind_of_path_has_its_own_queue_lengths() -> None:
    names = ("alpha", "beta", "gamma", "delta")
    consensus = {f"cc_vegas_{name}_onion": number for number, name in enumerate(names, 1)}
    onion = CongestionParams.from_params(consensus | {"cc_sscap_onion": 101}, PathKind.ONION)
    assert (onion.alpha, onion.beta, onion.gamma, onion.delta, onion.ss_cap) == (1, 2, 3, 4, 101)
    assert CongestionParams.from_params(consensus, PathKind.EXIT) == DEFAULTS


def test_congestion_control_is_wanted_unless_the_consensus_says_fixed_windows() -> None:
    assert wants_congestion_control({})
    assert not wants_congestion_control({"cc_alg": 0})


# --- Time ------------------------------------------------------------------------------------------------


def test_average_multiplies_before_it_divides() -> None:
    assert n_ewma(150_000, 0, 2) == 150_000  # the first value is taken as it is
    assert n_ewma(150_000, 100_000, 2) == 133_333  # (2*150000 + 1*100000) / 3
    assert n_ewma(7, 5, 10) == 5  # (2*7 + 9*5) / 11 = 59 / 11 = 5.36


def test_clock_heuristics_agree_with_c_tors_vectors() -> None:
    # C tor, src/test/test_congestion_control.c, test_congestion_control_clock:
    # smoothed RTT, new RTT, in slow start; then: stalled afterwards, value refused.
    vectors = [
        (0, 1, 1, 0, 0),
        (0, 0, 1, 1, 1),
        (1, 1, 1, 1, 0),
        (1, 4999, 0, 0, 0),
        (4999, 1, 0, 0, 0),
        (5001, 1, 0, 0, 0),
        (5001, 0, 0, 1, 1),
        (5001, 1, 0, 1, 1),
        (5001, 1, 1, 1, 0),
        (0, 5001, 0, 1, 0),
        (1, 5001, 1, 1, 0),
        (1, 1, 0, 0, 0),
        (5001, 1, 0, 0, 0),
        (1, 5001, 0, 0, 1),
        (0, 5001, 0, 0, 0),
        (5001, 1, 1, 0, 0),
        (1, 1, 0, 0, 0),
    ]
    clock = ClockGuard()
    for smoothed, rtt, slow_start, stalled, refused in vectors:
        assert clock.accepts(rtt, 0 if slow_start else smoothed) is not bool(refused)
        assert clock.is_stalled is bool(stalled)


@pytest.mark.parametrize(("rtt", "is_accepted"), [(49_999, True), (50_000, True), (50_001, False)])
def test_rtt_over_5000_times_the_average_is_refused(rtt: int, is_accepted: bool) -> None:
    assert ClockGuard().accepts(rtt, 10) is is_accepted


def test_clock_that_went_backwards_counts_as_stalled() -> None:
    clock = ClockGuard()
    assert not clock.accepts(-1, 0)
    assert clock.is_stalled


def test_rtt_agrees_with_c_tors_vectors() -> None:
    # C tor, test_congestion_control_rtt: RTT, whether cwnd is at its minimum after slow start, N by
    # 2.1.2 (2 throughout, as (124 + 480)/961 = 0 updates to a window); then: smoothed, minimum.
    vectors = [
        (100_000, False, 100_000, 100_000),
        (100_000, False, 100_000, 100_000),
        (150_000, False, 133_333, 100_000),  # (2*150000 + 100000) / 3
        (50_000, False, 77_777, 77_777),  # (2*50000 + 133333) / 3
        (100_000, False, 92_592, 77_777),
        (50_000, False, 64_197, 64_197),
        (125_000, True, 104_732, 104_732),  # cc_rtt_reset_pct = 100: the larger
        (25_000, True, 51_577, 104_732),
        (50_000, False, 50_525, 50_525),
    ]
    time = RoundTripTime()
    for rtt, at_minimum, smoothed, minimum in vectors:
        time.update(rtt, n=2, reset_pct=100 if at_minimum else None)
        assert (time.ewma, time.minimum) == (smoothed, minimum)
    assert time.maximum == 150_000


def test_rtt_minimum_is_reset_by_a_percentage() -> None:
    time = RoundTripTime()
    time.update(100_000, n=2, reset_pct=None)
    time.update(400_000, n=2, reset_pct=30)
    assert time.ewma == 300_000  # (2*400000 + 100000) / 3
    assert time.minimum == 160_000  # 30*300000/100 + 70*100000/100 = 90000 + 70000


# --- Vegas -----------------------------------------------------------------------------------------------

# C tor, test_congestion_control_vegas_cwnd: when the cell was sent and when its SENDME came (usec), whether
# the channel is blocked, cells in flight; then: smoothed RTT, minimum RTT, cwnd, slow start, full, blocked.
VegasVector = tuple[int, int, int, int, int, int, int, int, int, int]
SLOW_START_TO_DELTA: list[VegasVector] = [
    (100000, 200000, 0, 124, 100000, 100000, 155, 1, 0, 0),
    (200000, 300000, 0, 155, 100000, 100000, 186, 1, 1, 0),
    (350000, 500000, 0, 186, 133333, 100000, 217, 1, 1, 0),
    (500000, 550000, 0, 217, 77777, 77777, 248, 1, 1, 0),
    (600000, 700000, 0, 248, 92592, 77777, 279, 1, 1, 0),
    (700000, 750000, 0, 279, 64197, 64197, 310, 1, 0, 0),
    (750000, 875000, 0, 310, 104732, 64197, 341, 1, 1, 0),
    (875000, 900000, 0, 341, 51577, 51577, 372, 1, 1, 0),
    (900000, 950000, 0, 279, 50525, 50525, 403, 1, 1, 0),
    (950000, 1000000, 0, 279, 50175, 50175, 434, 1, 1, 0),
    (1000000, 1050000, 0, 279, 50058, 50058, 465, 1, 1, 0),
    (1050000, 1100000, 0, 279, 50019, 50019, 496, 1, 1, 0),
    (1100000, 1150000, 0, 279, 50006, 50006, 527, 1, 1, 0),
    (1150000, 1200000, 0, 279, 50002, 50002, 558, 1, 1, 0),
    (1200000, 1250000, 0, 550, 50000, 50000, 589, 1, 1, 0),
    (1250000, 1300000, 0, 550, 50000, 50000, 620, 1, 0, 0),
    (1300000, 1350000, 0, 550, 50000, 50000, 635, 1, 1, 0),
    (1350000, 1400000, 0, 550, 50000, 50000, 650, 1, 1, 0),
    (1400000, 1450000, 0, 150, 50000, 50000, 650, 1, 0, 0),
    (1450000, 1500000, 0, 150, 50000, 50000, 650, 1, 0, 0),
    (1500000, 1550000, 0, 550, 50000, 50000, 664, 1, 1, 0),
    (1500000, 1600000, 0, 550, 83333, 50000, 584, 0, 1, 0),
    (1600000, 1650000, 0, 550, 61111, 50000, 585, 0, 1, 0),
    (1650000, 1700000, 0, 550, 53703, 50000, 586, 0, 1, 0),
    (1700000, 1750000, 0, 100, 51234, 50000, 586, 0, 0, 0),
    (1750000, 1900000, 0, 100, 117078, 50000, 559, 0, 0, 0),
    (1900000, 2000000, 0, 100, 105692, 50000, 558, 0, 0, 0),
    (2000000, 2075000, 0, 500, 85230, 50000, 558, 0, 1, 0),
    (2075000, 2125000, 1, 500, 61743, 50000, 557, 0, 1, 1),
    (2125000, 2150000, 0, 500, 37247, 37247, 558, 0, 1, 0),
    (2150000, 2350000, 0, 500, 145749, 37247, 451, 0, 1, 0),
]
BLOCKED_CHANNEL: list[VegasVector] = [
    (100000, 200000, 0, 124, 100000, 100000, 155, 1, 0, 0),
    (200000, 300000, 0, 155, 100000, 100000, 186, 1, 1, 0),
    (350000, 500000, 0, 186, 133333, 100000, 217, 1, 1, 0),
    (500000, 550000, 1, 217, 77777, 77777, 403, 0, 1, 1),
    (600000, 700000, 0, 248, 92592, 77777, 404, 0, 1, 0),
    (700000, 750000, 1, 404, 64197, 64197, 403, 0, 0, 1),
    (750000, 875000, 0, 403, 104732, 64197, 404, 0, 1, 0),
]
REAL_UPLOAD: list[VegasVector] = [
    (358297091, 358854163, 0, 83, 557072, 557072, 155, 1, 0, 0),
    (358297649, 359123845, 0, 52, 736488, 557072, 186, 1, 1, 0),
    (359492879, 359995330, 0, 186, 580463, 557072, 217, 1, 1, 0),
    (359493043, 360489243, 0, 217, 857621, 557072, 248, 1, 1, 0),
    (359493232, 360489673, 0, 248, 950167, 557072, 279, 1, 1, 0),
    (359493795, 360489971, 0, 279, 980839, 557072, 310, 1, 0, 0),
    (359493918, 360490248, 0, 310, 991166, 557072, 341, 1, 1, 0),
    (359494029, 360716465, 0, 341, 1145346, 557072, 372, 1, 1, 0),
    (359996888, 360948867, 0, 372, 1016434, 557072, 403, 1, 1, 0),
    (359996979, 360949330, 0, 403, 973712, 557072, 434, 1, 1, 0),
    (360489528, 361113615, 0, 434, 740628, 557072, 465, 1, 1, 0),
    (360489656, 361281604, 0, 465, 774841, 557072, 496, 1, 1, 0),
    (360489837, 361500461, 0, 496, 932029, 557072, 482, 0, 1, 0),
    (360489963, 361500631, 0, 482, 984455, 557072, 482, 0, 1, 0),
    (360490117, 361842481, 0, 482, 1229727, 557072, 481, 0, 1, 0),
]


@pytest.mark.parametrize("vectors", [SLOW_START_TO_DELTA, BLOCKED_CHANNEL, REAL_UPLOAD])
def test_vegas_agrees_with_c_tors_vectors(vectors: list[VegasVector]) -> None:
    vegas = make_vegas()
    for sent, arrived, blocked, in_flight, ewma, minimum, cwnd, slow_start, full, is_blocked in vectors:
        feed(vegas, arrived - sent, in_flight, blocked=bool(blocked))
        assert (vegas.rtt.ewma, vegas.rtt.minimum, vegas.window) == (ewma, minimum, cwnd)
        assert (vegas.in_slow_start, vegas.is_full, vegas.is_blocked) == (slow_start, full, is_blocked)


# The hand-worked circuit: increment 31, one look per window, cwnd 200 at first.
#   SENDME 1, RTT 100 ms, 200 in flight: RTT_min = ewma = 100 ms, BDP = 200, queue_use = 0 < gamma; full as
#     200 + 4*31 >= 200; cwnd = 200 + 100*31/100 = 231. Slow start goes on as 31 * 7 > 10 * 1.
#   SENDME 2, RTT 130 ms: ewma = (2*130 + 100)/3 = 120 ms, BDP = 231*100/120 = 192, queue_use = 39 >= gamma;
#     cwnd = 192 + gamma = 192 + 30 = 222. Steady state; next look after round(222/31) = 7 SENDMEs.
#   SENDMEs 3 to 9, RTT 120 ms: N = 7*50/100 = 3, ewma = (2*120 + 2*120)/4 = 120 ms. At the last of them
#     BDP = 222*100/120 = 185 and queue_use = 37.
HAND_WORKED = DEFAULTS._replace(
    cwnd_init=200,
    cwnd_min=31,
    cwnd_inc=10,
    cwnd_inc_rate=1,
    alpha=20,
    beta=40,
    gamma=30,
    delta=100,
)


def reach_steady_state(params: CongestionParams, *, in_flight: int = 222) -> Vegas:
    vegas = make_vegas(params)
    feed(vegas, 100_000, 200)
    assert (vegas.window, vegas.in_slow_start) == (231, True)
    feed(vegas, 130_000, 231)
    assert (vegas.window, vegas.in_slow_start) == (222, False)
    for _ in range(6):
        feed(vegas, 120_000, in_flight)
        assert vegas.window == 222
    feed(vegas, 120_000, in_flight)
    return vegas


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"delta": 36}, 211),  # 37 > delta: 185 + 36 - 10
        ({"delta": 37, "beta": 37}, 222),  # over neither
        ({"delta": 37, "beta": 36}, 212),  # not over delta, but over beta: 222 - 10
        ({"beta": 37, "alpha": 37}, 222),  # neither over beta nor under alpha
        ({"alpha": 38}, 232),  # under alpha and full: 222 + 10
    ],
)
def test_steady_state_acts_on_the_queue_it_sees(changes: dict[str, Any], window: int) -> None:
    assert reach_steady_state(HAND_WORKED._replace(**changes)).window == window


def test_steady_state_does_not_grow_a_window_that_is_not_full() -> None:
    # Full was the window in SENDME 2; that is forgotten with the window of round(231/31) = 7 SENDMEs that
    # began at SENDME 1, so at SENDME 8. In SENDME 9, 97 + 4*31 = 221 < 222 is not full, one cell more is.
    assert reach_steady_state(HAND_WORKED._replace(alpha=38), in_flight=97).window == 222
    assert reach_steady_state(HAND_WORKED._replace(alpha=38), in_flight=98).window == 232


@pytest.mark.parametrize(
    ("gamma", "window", "slow_start"), [(38, 230, False), (39, 231, False), (40, 262, True)]
)
def test_slow_start_ends_when_the_queue_reaches_gamma(gamma: int, window: int, slow_start: bool) -> None:
    vegas = make_vegas(HAND_WORKED._replace(gamma=gamma))
    feed(vegas, 100_000, 200)
    feed(vegas, 130_000, 231)  # queue_use 39
    assert (vegas.window, vegas.in_slow_start) == (window, slow_start)


@pytest.mark.parametrize(("in_flight", "window"), [(199, 200), (200, 231)])
def test_slow_start_grows_only_a_full_window(in_flight: int, window: int) -> None:
    vegas = make_vegas(HAND_WORKED._replace(cwnd_full_gap=0))
    feed(vegas, 100_000, in_flight)
    assert vegas.window == window


@pytest.mark.parametrize(("in_flight", "window"), [(130, 262), (131, 293)])
def test_window_stops_being_full_below_minpct(in_flight: int, window: int) -> None:
    vegas = make_vegas(HAND_WORKED._replace(cwnd_full_gap=0, cwnd_full_minpct=50))
    feed(vegas, 100_000, 200)
    feed(vegas, 100_000, 231)
    assert (vegas.window, vegas.is_full) == (262, True)
    feed(vegas, 100_000, in_flight)  # 50 % of 262 is 131
    assert vegas.window == window


def test_full_state_expires_at_each_update_if_the_consensus_says_so() -> None:
    vegas = make_vegas(HAND_WORKED._replace(cwnd_full_per_cwnd=False))
    feed(vegas, 100_000, 200)
    feed(vegas, 100_000, 231)
    assert not vegas.is_full


@pytest.mark.parametrize(
    ("cwnd", "grown"),
    [
        (599, 630),
        (600, 631),  # at the cap: all of 31
        (601, 616),  # above: round(31*600 / (2*601)) = round(15.47)
        (4000, 4002),  # round(31*600 / 8000) = round(2.3)
    ],
)
def test_slow_start_grows_less_above_the_cap(cwnd: int, grown: int) -> None:
    vegas = make_vegas(DEFAULTS._replace(cwnd_init=cwnd))
    feed(vegas, 100_000, cwnd)
    assert vegas.window == grown


def test_slow_start_grows_by_one_cell_at_least() -> None:
    params = DEFAULTS._replace(cwnd_init=4000, ss_cap=100)  # round(31*100 / 8000) = 0
    vegas = make_vegas(params)
    feed(vegas, 100_000, 4000)
    assert vegas.window == 4001


@pytest.mark.parametrize(
    ("ss_max", "window", "slow_start"), [(230, 230, False), (231, 231, False), (232, 231, True)]
)
def test_slow_start_ends_at_its_hard_maximum(ss_max: int, window: int, slow_start: bool) -> None:
    vegas = make_vegas(HAND_WORKED._replace(ss_max=ss_max))
    feed(vegas, 100_000, 200)
    assert (vegas.window, vegas.in_slow_start) == (window, slow_start)


@pytest.mark.parametrize(
    ("cwnd", "inc", "slow_start"),
    [
        (200, 216, True),  # 31 cells at each of round(231/31) = 7 SENDMEs: 217
        (200, 217, False),
        (205, 247, True),  # and of round(236/31) = round(7.6) = 8 SENDMEs: 248
        (205, 248, False),
    ],
)
def test_slow_start_ends_where_steady_state_grows_as_fast(cwnd: int, inc: int, slow_start: bool) -> None:
    vegas = make_vegas(HAND_WORKED._replace(cwnd_init=cwnd, cwnd_inc=inc))
    feed(vegas, 100_000, cwnd)
    assert vegas.in_slow_start is slow_start


def test_steady_state_looks_once_in_a_rounded_window() -> None:
    # As HAND_WORKED, but cwnd = 192 + 10 = 202 after SENDME 2: a look after round(202/31) = round(6.5) = 7.
    vegas = make_vegas(HAND_WORKED._replace(gamma=10, alpha=1000, beta=1000, delta=1000))
    feed(vegas, 100_000, 200)
    windows = []
    for rtt in (130_000, *[120_000] * 7):
        feed(vegas, rtt, 202)
        windows.append(vegas.window)
    assert windows == [202] * 7 + [212]


def test_channel_that_blocks_or_unblocks_is_looked_at_once_and_at_once() -> None:
    vegas = make_vegas(HAND_WORKED._replace(alpha=38))
    feed(vegas, 100_000, 200)
    feed(vegas, 130_000, 231)  # cwnd 222, the next look seven SENDMEs away
    windows = []
    for blocked in (True, True, False, False):
        feed(vegas, 120_000, 222, blocked=blocked)
        windows.append(vegas.window)
    # Down by 10; no change; up by 10 as queue_use = 212 - 212*100/120 = 212 - 176 = 36 < 38; no change.
    assert windows == [212, 212, 222, 222]


def test_stalled_clock_changes_nothing_but_the_count() -> None:
    vegas = make_vegas(HAND_WORKED)
    feed(vegas, 0, 200, blocked=True)
    assert (vegas.window, vegas.rtt.ewma, vegas.in_slow_start, vegas.is_blocked) == (200, 0, True, False)


@pytest.mark.parametrize(("increment", "window"), [(30, 31), (31, 31), (32, 32), (254, 254)])
def test_window_never_sinks_below_one_increment(increment: int, window: int) -> None:
    shrinking = HAND_WORKED._replace(cwnd_init=255, gamma=0, delta=0, alpha=0, cwnd_inc=1000)
    vegas = make_vegas(shrinking, increment=increment)
    feed(vegas, 100_000, 0)
    for _ in range(20):
        feed(vegas, 50_000_000, 0)  # queue_use > delta as soon as RTT rises: BDP + 0 - 1000 is below zero
    assert vegas.window == window


def test_rtt_minimum_is_reset_at_the_smallest_window() -> None:
    vegas = make_vegas(HAND_WORKED._replace(cwnd_init=31, gamma=0))
    feed(vegas, 100_000, 31)  # queue_use 0 >= gamma: steady state with cwnd = BDP = 31
    assert (vegas.window, vegas.in_slow_start) == (31, False)
    feed(vegas, 400_000, 31)
    assert vegas.rtt.minimum == vegas.rtt.ewma == 300_000  # (2*400 + 100)/3, N at least 2


@given(
    consensus=st.dictionaries(st.sampled_from(CONGESTION), st.integers(-(2**31), 2**31 - 1)),
    path=st.sampled_from(PathKind),
    increment=st.integers(1, 254),
    steps=st.lists(
        st.tuples(st.integers(-(10**6), 10**10), st.integers(0, 10**5), st.booleans()), max_size=60
    ),
)
def test_vegas_keeps_its_window_in_bounds(
    consensus: dict[str, int], path: PathKind, increment: int, steps: list[tuple[int, int, bool]]
) -> None:
    params = CongestionParams.from_params(consensus, path)
    vegas = make_vegas(params, increment=increment)
    for rtt, in_flight, blocked in steps:
        feed(vegas, rtt, in_flight, blocked=blocked)
        assert min(max(params.cwnd_min, increment), params.cwnd_max) <= vegas.window <= params.cwnd_max
        assert vegas.window >= increment
        assert 0 <= vegas.rtt.minimum <= vegas.rtt.maximum


# --- Fixed windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("voted", "window"), [(99, 100), (100, 100), (200, 200), (1000, 1000), (1001, 1000)])
def test_fixed_window_starts_where_the_consensus_says(voted: int, window: int) -> None:
    assert parameter({"circwindow": voted}, "circwindow") == window


# --- XON and XOFF: what we send ----------------------------------------------------------------------------

STREAM = StreamParams.from_params({})
XOFF_LIMIT = 500 * RELAY_DATA_LEN_MIN  # 244000 bytes
XON_RATE = 500 * RELAY_DATA_LEN_MAX  # 249000 bytes


def make_watch() -> DrainWatch:
    return DrainWatch(STREAM, ClockGuard())


def test_stream_parameters_are_cells_of_the_right_size() -> None:
    assert StreamParams(XOFF_LIMIT, XOFF_LIMIT, XON_RATE, 25, 2) == STREAM


def test_xoff_goes_out_when_the_queue_stays_over_the_limit_past_the_grace() -> None:
    watch = make_watch()
    assert watch.queued(XOFF_LIMIT, 0.0) is None  # at the limit, not over
    assert watch.queued(XOFF_LIMIT + 1, 1.0) is None  # over: the grace begins
    assert watch.queued(XOFF_LIMIT + 2, 1.005) is None  # the grace lasts 5 ms
    assert watch.queued(XOFF_LIMIT + 3, 1.005001) is XOFF
    assert watch.queued(XOFF_LIMIT + 4, 9.0) is None  # one is enough


def test_queue_that_sinks_within_the_grace_costs_no_xoff() -> None:
    watch = make_watch()
    watch.queued(XOFF_LIMIT + 1, 1.0)
    watch.queued(XOFF_LIMIT, 1.004)
    assert watch.queued(XOFF_LIMIT + 1, 2.0) is None


def test_rate_grows_though_data_comes_in_bursts() -> None:
    """A paused reader told a low rate for good: every burst of over 32 cells began its measurement anew."""
    watch = stopped_watch()
    told = watch.drained(300_000, 0, 4.0)
    assert isinstance(told, Xon)
    low = watch.rate
    burst = 40 * RELAY_DATA_LEN_MIN
    for turn in range(1 + XON_RATE // burst):
        watch.queued(burst, 5.0 + turn)
        watch.drained(burst, 0, 5.001 + turn)
    assert watch.rate == 2 * low


def test_reader_that_catches_up_begins_the_grace_anew() -> None:
    watch = make_watch()
    watch.queued(XOFF_LIMIT + 1, 1.0)
    watch.drained(XOFF_LIMIT + 1, 0, 1.004)
    assert watch.queued(XOFF_LIMIT + 1, 2.0) is None
    assert watch.queued(XOFF_LIMIT + 1, 2.006) is XOFF


def stopped_watch() -> DrainWatch:
    """A queue of 300000 bytes, XOFF sent, the stop-watch running since 1.0."""
    watch = make_watch()
    watch.queued(300_000, 1.0)
    assert watch.queued(300_000, 1.1) is XOFF
    return watch


def test_xon_follows_once_the_queue_is_empty_with_the_rate_it_drained_at() -> None:
    watch = stopped_watch()
    assert watch.drained(250_000, 50_000, 2.0) is None  # 250000 bytes in 1 s: 250 * 1000 bytes/s
    assert watch.drained(50_000, 0, 2.2) == Xon(250)
    assert not watch.xoff_sent


def test_xon_has_no_rate_before_enough_bytes_were_drained() -> None:
    watch = make_watch()
    watch.queued(XOFF_LIMIT + 1, 1.0)
    assert watch.queued(XOFF_LIMIT + 1, 1.1) is XOFF
    assert watch.drained(XOFF_LIMIT + 1, 0, 2.0) == Xon(0)


@pytest.mark.parametrize(("drained", "rate"), [(XON_RATE, 0), (XON_RATE + 1, 249)])
def test_rate_takes_more_than_xon_rate_cells(drained: int, rate: int) -> None:
    watch = stopped_watch()
    watch.drained(drained, 300_000 - drained, 2.0)
    assert watch.rate == rate


def test_rate_from_before_an_xoff_is_not_told_after_it() -> None:
    watch = stopped_watch()
    watch.drained(250_000, 50_000, 2.0)
    assert watch.drained(50_000, 0, 2.2) == Xon(250)
    watch.queued(XOFF_LIMIT + 1, 3.0)
    assert watch.queued(XOFF_LIMIT + 1, 4.0) is XOFF
    assert watch.drained(XOFF_LIMIT + 1, 0, 5.0) == Xon(0)


def test_rates_are_averaged() -> None:
    watch = stopped_watch()
    watch.drained(250_000, 50_000, 2.0)
    watch.drained(250_000, 50_000, 2.5)  # 500, so (2*500 + 250)/3
    assert watch.rate == 416


# The rate told is 1000 and N is 2, so that a new rate r gives (2*r + 1000)/3; a quarter's change is advised.
@pytest.mark.parametrize(
    ("rate", "answer"),
    [
        (1375, None),  # (2750 + 1000)/3 = 1250, not over 1250
        (1377, Xon(1251)),  # (2754 + 1000)/3 = 1251.3
        (625, None),  # (1250 + 1000)/3 = 750, not under 750
        (624, Xon(749)),  # (1248 + 1000)/3 = 749.3
    ],
)
def test_changed_rate_is_advised(rate: int, answer: Xon | None) -> None:
    watch = make_watch()
    watch.queued(1_000_005, 0.0)
    assert watch.queued(1_000_005, 0.5) is XOFF
    assert watch.drained(1_000_000, 5, 1.0) is None
    assert watch.drained(5, 0, 1.0) == Xon(1000)
    watch.queued(2_000_000, 2.0)
    assert watch.drained(rate * 1000, 2_000_000 - rate * 1000, 3.0) == answer


def test_rate_doubles_while_nothing_waits() -> None:
    watch = stopped_watch()
    watch.drained(250_000, 50_000, 2.0)
    assert watch.drained(50_000, 0, 2.2) == Xon(250)
    assert watch.drained(XON_RATE - 1, 0, 3.0) is None
    assert watch.drained(1, 0, 3.0) is None  # doubled only now
    assert watch.drained(1, 0, 3.0) == Xon(500)


def test_no_rate_is_told_before_an_xoff() -> None:
    watch = make_watch()
    watch.queued(300_000, 1.0)
    assert watch.drained(250_000, 50_000, 2.0) is None
    assert watch.rate == 250


def test_no_change_is_told_by_a_stalled_clock() -> None:
    clock = ClockGuard()
    watch = DrainWatch(STREAM, clock)
    watch.queued(300_000, 1.0)
    assert watch.queued(300_000, 1.1) is XOFF
    watch.drained(250_000, 50_000, 2.0)
    assert watch.drained(50_000, 0, 2.2) == Xon(250)
    watch.rate = 500  # as though measured
    clock.accepts(0, 0)
    assert watch.drained(1, 0, 3.0) is None


def test_stalled_clock_measures_nothing() -> None:
    clock = ClockGuard()
    watch = DrainWatch(STREAM, clock)
    watch.queued(300_000, 1.0)
    watch.queued(300_000, 1.1)
    clock.accepts(0, 0)
    watch.drained(250_000, 50_000, 2.0)
    assert watch.drained(50_000, 0, 3.0) == Xon(0)


# --- XON and XOFF: what we are sent ------------------------------------------------------------------------


def test_xoff_needs_the_data_that_could_have_caused_it() -> None:
    check = XoffCheck(STREAM)
    check.data_sent(XOFF_LIMIT - 1)
    with pytest.raises(CircuitError):
        check.xoff()
    check.data_sent(1)
    check.xoff()
    assert check.is_xoff


def test_second_xoff_needs_an_xon_and_as_much_data_again() -> None:
    check = XoffCheck(STREAM)
    check.data_sent(2 * XOFF_LIMIT - 1)
    check.xoff()
    with pytest.raises(CircuitError):
        check.xoff()  # XOFF in XOFF
    check.xon(0)
    with pytest.raises(CircuitError):
        check.xoff()  # a byte short
    check.data_sent(1)
    check.xoff()


@pytest.mark.parametrize(("xon_rate", "limit"), [(1, RELAY_DATA_LEN_MAX), (5000, XOFF_LIMIT)])
def test_xon_needs_the_smaller_of_both_limits(xon_rate: int, limit: int) -> None:
    check = XoffCheck(StreamParams.from_params({"cc_xon_rate": xon_rate}))
    check.data_sent(limit - 1)
    with pytest.raises(CircuitError):
        check.xon(1)
    check.data_sent(1)
    check.xon(1)
    with pytest.raises(CircuitError):
        check.xon(1)


def test_onion_services_have_a_limit_of_their_own() -> None:
    params = StreamParams.from_params({"cc_xoff_client": 1, "cc_xoff_exit": 2})
    check = XoffCheck(params, peer_is_onion_service=True)
    check.data_sent(RELAY_DATA_LEN_MIN)
    check.xoff()


@pytest.mark.parametrize(
    ("kbps_ewma", "rate"),
    [(0, None), (1, 1000), (2_147_483, 2_147_483_000), (2_147_484, None), (2**32 - 1, None)],
)
def test_rate_of_an_xon_is_in_units_of_1000_bytes(kbps_ewma: int, rate: int | None) -> None:
    check = XoffCheck(STREAM)
    check.data_sent(XON_RATE)
    check.xon(kbps_ewma)
    assert check.rate == rate


def test_long_transfer_does_not_pay_for_a_volley_at_its_end() -> None:
    check = XoffCheck(STREAM)
    check.data_sent(10**9)
    for _ in range(XOFF_CREDIT_MAX // XOFF_LIMIT):
        check.xon(0)
    with pytest.raises(CircuitError):
        check.xon(0)


Events = list[tuple[bool, int, float]]


@given(
    consensus=st.fixed_dictionaries(
        {},
        optional={
            name: st.integers(PARAMETERS[name].low, PARAMETERS[name].high)
            for name in ("cc_xon_rate", "cc_xon_change_pct", "cc_xon_ewma_cnt")
        },
    ),
    xoff=st.integers(1, 600),
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 400_000), st.floats(0, 10)), max_size=80),
)
def test_no_honest_receiver_is_ever_held_to_be_early(
    consensus: dict[str, int], xoff: int, events: Events
) -> None:
    params = StreamParams.from_params(consensus | {"cc_xoff_client": xoff, "cc_xoff_exit": xoff})
    watch, check = DrainWatch(params, ClockGuard()), XoffCheck(params)
    queue, now = 0, 0.0
    for arrives, count, seconds in events:
        now += seconds
        if arrives:
            check.data_sent(count)
            queue += count
            answer: Xoff | Xon | None = watch.queued(queue, now)
        else:
            count = min(count, queue)
            queue -= count
            answer = watch.drained(count, queue, now)
        if isinstance(answer, Xoff):
            check.xoff()
        elif isinstance(answer, Xon):
            assert 0 <= answer.kbps_ewma < 2**31
            check.xon(answer.kbps_ewma)
    assert watch.xoff_sent == check.is_xoff
