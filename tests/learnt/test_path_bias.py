"""What is counted of a guard's circuits, when it is scaled, and when somebody is told."""

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.learnt.path_bias import UNWATCHED, Counts, PathBias, Report, State, Watch
from torkit.params import parameter

GUARD = b"g" * 20


class Kept:
    """One guard's counts, and what was said of it."""

    def __init__(self, **params: int) -> None:
        self.counts = Counts()
        self.reports: list[Report] = []
        self.bias = PathBias(
            {GUARD: self.counts}.get,
            partial(parameter, params),
            self.reports.append,
        )

    def built(self) -> Watch:
        watch = self.bias.watch(GUARD)
        assert watch.note_attempted()
        watch.note_built()
        return watch

    def used(self) -> Watch:
        watch = self.built()
        watch.note_use()
        return watch

    def many(self, number: int, *, fail: int) -> None:
        """So many circuits, of which some are never completed."""
        for n in range(number):
            if n < fail:
                watch = self.bias.watch(GUARD)
                assert watch.note_attempted()
                watch.note_closed(by_us=False)
            else:
                self.built().note_closed(by_us=True)


def nothing(watch: Watch) -> None:
    pass


def answered(watch: Watch) -> None:
    watch.note_use()
    watch.note_used()


def answered_and_given_up(watch: Watch) -> None:
    answered(watch)
    watch.note_given_up()


def broken(watch: Watch) -> None:
    answered(watch)
    watch.note_broken()


@pytest.mark.parametrize(
    ("use", "by_us", "counted"),
    [
        (nothing, True, {"successful_circuits_closed"}),
        (nothing, False, {"collapsed_circuits"}),
        (Watch.note_use, True, {"use_attempts", "unusable_circuits"}),
        (answered, True, {"use_attempts", "use_successes", "successful_circuits_closed"}),
        (answered, False, {"use_attempts", "use_successes", "successful_circuits_closed"}),
        (answered_and_given_up, True, {"use_attempts", "unusable_circuits"}),
        (broken, True, {"use_attempts", "unusable_circuits"}),
    ],
)
def test_what_a_circuit_counts_for(use: Callable[[Watch], None], by_us: bool, counted: set[str]) -> None:
    kept = Kept()
    watch = kept.built()
    use(watch)
    for _ in range(2):  # it ends once
        watch.note_closed(by_us=by_us)
        watch.note_use()
        watch.note_used()
    assert kept.counts.to_json() == dict.fromkeys(counted | {"circ_attempts", "circ_successes"}, 1.0)
    assert not kept.counts.open.total()


def test_a_circuit_that_made_two_hops_and_not_three_is_a_failure() -> None:
    kept = Kept()
    for end in (lambda _: None, Watch.note_timed_out):
        watch = kept.bias.watch(GUARD)
        assert watch.note_attempted()
        end(watch)
        watch.note_closed(by_us=True)  # as where its last handshake was wrong
        watch.note_built()  # its last hop came with its end
    assert kept.counts.to_json() == {"circ_attempts": 2.0, "timeouts": 1.0}


def test_a_circuit_that_made_no_two_hops_says_nothing() -> None:
    kept = Kept()
    watch = kept.bias.watch(GUARD)
    watch.note_timed_out()
    watch.note_closed(by_us=False)
    assert kept.counts.to_json() == {}
    assert not kept.bias.has_changed


def test_relays_that_are_no_guards_and_paths_that_are_given_are_not_counted() -> None:
    kept = Kept()
    for watch in (kept.bias.watch(b"?" * 20), UNWATCHED):
        assert watch.note_attempted()
        watch.note_built()
        answered(watch)
        assert not watch.needs_probe
        watch.note_closed(by_us=False)
    assert UNWATCHED.state is State.NEW
    assert kept.counts.to_json() == {}


def test_a_circuit_that_was_used_in_vain_is_to_be_probed() -> None:
    watch = Kept().built()
    assert not watch.needs_probe
    watch.note_use()
    assert watch.needs_probe
    watch.note_used()
    watch.note_use()  # a second stream takes nothing back
    assert not watch.needs_probe
    watch.note_given_up()
    assert watch.needs_probe
    watch.note_broken()
    watch.note_used()
    assert not watch.needs_probe


def test_what_is_open_is_kept_as_if_it_had_gone_well() -> None:
    kept = Kept()
    kept.built(), kept.used()
    assert kept.counts.to_json() == {
        "circ_attempts": 2.0,
        "circ_successes": 2.0,
        "successful_circuits_closed": 2.0,
        "use_attempts": 1.0,
        "use_successes": 1.0,
    }


@pytest.mark.parametrize(
    ("fail", "expected"),
    [(45, []), (46, [False]), (75, [False]), (76, [True]), (105, [True]), (106, [True])],
)
def test_somebody_is_told_once_when_too_few_circuits_succeed(fail: int, expected: list[bool]) -> None:
    """150 circuits are too few to tell; of 151, 70, 50 and 30 percent are the limits."""
    kept = Kept()
    kept.many(150, fail=fail)
    assert kept.reports == []
    kept.built().note_closed(by_us=True)
    assert kept.reports == []
    kept.built().note_closed(by_us=True)
    assert [report.is_warning for report in kept.reports] == expected
    kept.many(5, fail=0)
    assert len(kept.reports) == len(expected)
    assert not any(report.is_dropped for report in kept.reports)


@pytest.mark.parametrize(("fail", "expected"), [(4, []), (5, [False]), (8, [False]), (9, [True])])
def test_somebody_is_told_when_too_few_circuits_carry_streams(fail: int, expected: list[bool]) -> None:
    """20 are too few to tell; of 21, 80 and 60 percent are the limits."""
    kept = Kept()
    for number in range(21):
        watch = kept.used()
        if number >= fail:
            watch.note_used()
        watch.note_closed(by_us=True)
    assert kept.reports == []
    kept.used()
    assert [report.is_warning for report in kept.reports] == expected


def test_open_circuits_are_not_held_against_a_guard() -> None:
    kept = Kept()
    for _ in range(200):
        kept.used()
    assert kept.reports == []


def test_circuits_under_way_are_not_held_against_a_guard() -> None:
    """1,000 identities at once: all circuits are begun before the first is complete."""
    kept = Kept()
    watches = [kept.bias.watch(GUARD) for _ in range(1000)]
    assert all(watch.note_attempted() for watch in watches)
    assert kept.reports == []
    for watch in watches:
        watch.note_built()
    for watch in watches:
        watch.note_use()
    assert kept.reports == []
    for watch in watches:
        watch.note_used()
        watch.note_closed(by_us=True)
    kept.used()
    assert kept.reports == []


def test_circuits_under_way_do_not_excuse_those_that_failed() -> None:
    kept = Kept()
    kept.many(151, fail=151)
    for _ in range(1000):
        assert kept.bias.watch(GUARD).note_attempted()
    assert [report.is_warning for report in kept.reports] == [True]


def test_circuits_under_way_are_kept_as_if_they_had_not_been_begun() -> None:
    """Or each end of the program would leave some failures behind."""
    kept = Kept()
    for _ in range(7):
        assert kept.bias.watch(GUARD).note_attempted()
    assert kept.counts.to_json() == {}


def test_a_circuit_that_we_abandon_says_nothing() -> None:
    kept = Kept()
    watch = kept.bias.watch(GUARD)
    assert watch.note_attempted()
    watch.note_abandoned()
    watch.note_closed(by_us=True)
    assert kept.counts.to_json() == {}
    assert not kept.counts.open.total()
    complete = kept.built()
    complete.note_abandoned()
    complete.note_closed(by_us=False)
    assert kept.counts.to_json() == {"circ_attempts": 1, "circ_successes": 1, "collapsed_circuits": 1}


def test_a_guard_is_dropped_only_if_the_network_asks_for_it() -> None:
    for drops in (False, True):
        kept = Kept(pb_dropguards=int(drops))
        kept.many(151, fail=151)
        assert kept.bias.watch(GUARD).note_attempted() is not drops
        assert [report.is_dropped for report in kept.reports] == [drops]
        assert kept.counts.is_disabled is drops
        assert kept.bias.watch(GUARD).note_attempted() is not drops
        assert kept.counts.circ_attempts == (151 if drops else 153)
        assert len(kept.reports) == 1

    kept = Kept(pb_dropguards=1)
    for _ in range(21):
        kept.used().note_closed(by_us=True)
    kept.used()
    assert [report.is_dropped for report in kept.reports] == [True]


def test_a_guard_is_dropped_for_nothing_less_than_extreme_failure() -> None:
    kept = Kept(pb_dropguards=1)
    kept.many(151, fail=75)
    assert kept.bias.watch(GUARD).note_attempted()
    assert [report.is_dropped for report in kept.reports] == [False]


def test_limits_of_zero_switch_it_off() -> None:
    names = ("pb_extremepct", "pb_warnpct", "pb_noticepct", "pb_extremeusepct", "pb_noticeusepct")
    kept = Kept(**dict.fromkeys(names, 0))
    kept.many(200, fail=200)
    for _ in range(50):
        kept.used().note_closed(by_us=False)
    assert kept.reports == []


def test_what_was_long_ago_counts_less() -> None:
    kept = Kept()
    opened = [kept.built() for _ in range(10)]
    kept.many(290, fail=100)
    assert (kept.counts.circ_attempts, kept.counts.circ_successes) == (300, 200)
    under_way = kept.bias.watch(GUARD)
    assert under_way.note_attempted()
    assert kept.counts.circ_attempts == 301
    kept.many(1, fail=1)
    # What is open stays as it is, of the other attempts half; and one is new.
    assert kept.counts.circ_attempts == (301 - 11) / 2 + 11 + 1
    assert kept.counts.circ_successes == (200 - 10) / 2 + 10
    assert kept.counts.successful_circuits_closed == 190 / 2
    for watch in opened:
        watch.note_closed(by_us=True)
    assert kept.counts.closed_well == 190 / 2 + 10


def test_uses_are_scaled_apart() -> None:
    kept = Kept(pb_scaleuse=10, pb_multfactor=1, pb_scalefactor=4)
    opened = kept.used()
    for _ in range(10):
        watch = kept.used()
        watch.note_used()
        watch.note_closed(by_us=True)
    assert (kept.counts.use_attempts, kept.counts.use_successes) == (11, 10)
    kept.used()
    assert kept.counts.use_attempts == (11 - 1) / 4 + 1 + 1
    assert kept.counts.use_successes == 10 / 4
    opened.note_used()
    opened.note_closed(by_us=True)
    assert kept.counts.use_successes == 10 / 4 + 1


def test_nothing_grows_by_being_scaled() -> None:
    kept = Kept(pb_scaleuse=10, pb_multfactor=9, pb_scalefactor=4)
    for _ in range(12):
        kept.used().note_closed(by_us=True)
    assert kept.counts.use_attempts == 12


@pytest.mark.parametrize("values", [None, 1, [], {}, {"circ_attempts": "7"}, {"timeouts": True}, {"x": 1}])
def test_what_is_no_count_is_nothing(values: object) -> None:
    assert Counts.from_json(values).to_json() == {}


def test_nothing_but_counts_is_read() -> None:
    assert not Counts.from_json({"is_disabled": 1}).is_disabled


def test_no_count_is_negative() -> None:
    assert Counts.from_json({"circ_attempts": -1}).circ_attempts == 0


def test_counts_are_kept_and_made_consistent() -> None:
    kept = Kept()
    kept.many(7, fail=2)
    assert Counts.from_json(kept.counts.to_json()).to_json() == kept.counts.to_json()
    wrong = {
        "circ_attempts": 1e10,
        "circ_successes": 3,
        "use_attempts": 1.5,
        "use_successes": 2,
        "timeouts": -1,
    }
    assert Counts.from_json(wrong).to_json() == {"use_attempts": 1.5, "use_successes": 1.5}


STEPS = ["attempted", "built", "timed_out", "abandoned", "use", "used", "given_up", "broken", "closed"]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(STEPS)), max_size=300))
def test_no_order_of_events_makes_more_successes_than_attempts(steps: list[tuple[int, str]]) -> None:
    kept = Kept(pb_scalecircs=10, pb_scaleuse=10)
    watches = [kept.bias.watch(GUARD) for _ in range(6)]
    for number, step in steps:
        if step == "closed":
            watches[number].note_closed(by_us=True)
            watches[number] = kept.bias.watch(GUARD)
        else:
            getattr(watches[number], f"note_{step}")()
        counts = kept.counts
        assert all(count >= 0 for count in counts.open.values())
        assert counts.circ_attempts >= counts.circ_successes >= counts.closed_well - 1e-9
        assert counts.use_attempts >= counts.used_well - 1e-9
        assert counts.open.total() <= 6
