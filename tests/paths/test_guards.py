"""Guards: the scenarios of guard-spec, each with its own clock, and a state that survives anything."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from guard_user import (
    CONNECT_TIMEOUT,
    DIRECTORY,
    DOCS,
    HOUR,
    IDENTITIES,
    IDLE_TIMEOUT,
    LIKELY_DOWN,
    MINUTE,
    NICKNAMES,
    NOW,
    User,
    anyone,
    directory_of,
    none_of,
    without,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit.directory.directory import Directory
from torkit.errors import NoDirectory, NoGuard, NoPath
from torkit.paths.constraints import Constraints
from torkit.paths.guards import DAY, RETRY_SCHEDULE, Guards, Verdict

# --- Primary guards ------------------------------------------------------------------------------------


def test_one_guard_is_used_and_kept(user: User) -> None:
    first = user.choose()
    assert first == user.primary[0]
    assert {user.use() for _ in range(50)} == {first}


def test_a_primary_guard_that_fails_is_passed_over_and_come_back_to(user: User) -> None:
    first = user.use()
    user.fail(first)
    second = user.use()
    assert second == user.primary[1]
    user.now += 10 * MINUTE - 1
    assert user.use() == second
    user.now += 1
    assert user.use() == first


def test_guards_are_preferred_in_the_order_of_sampling_whichever_was_used_first(user: User) -> None:
    """As by C tor since proposal 310; guard-spec has the order of confirmation."""
    first, second, third = user.primary
    user.fail(first)
    assert user.use() == second
    user.fail(second)
    assert user.use() == third
    assert user.primary == [first, second, third]
    user.now += HOUR
    assert user.use() == first


def test_used_guards_that_are_not_primary_come_before_those_never_used(user: User) -> None:
    used = user.sample[10:15]
    for name in reversed(used):
        user.guards.confirm(IDENTITIES[name], now=user.now, rng=user.rng)
    assert user.primary == used[:3]
    assert user.choose(none_of(*user.primary)) == used[3]
    assert user.choose(none_of(*user.primary)) == used[4]
    assert user.choose(none_of(*user.primary)) == user.sample[0]


def test_a_guard_first_used_takes_the_place_of_a_primary_one_never_used(user: User) -> None:
    first, second, third = user.primary
    user.use()
    user.fail_primary()
    fourth = user.use()
    assert fourth not in (first, second, third)
    assert user.primary == [first, second, fourth]


def test_a_primary_guard_stays_one_though_a_better_unused_one_is_back(user: User) -> None:
    first, second, third = user.primary
    user.see(directory_of(without(first)))
    fourth = user.primary[2]
    assert user.primary == [second, third, fourth]
    user.see(DIRECTORY)
    assert first not in user.primary
    assert set(user.primary) == {second, third, fourth}


def test_a_path_that_excludes_the_guard_gets_the_next_and_changes_nothing(user: User) -> None:
    first, second, _ = user.primary
    assert user.use() == first
    assert user.use(none_of(first)) == second
    assert user.use() == first


def test_with_two_in_use_the_one_that_does_not_fit_still_counts() -> None:
    user = User(directory=directory_of(DOCS, params="guard-n-primary-guards-to-use=2"))
    first, second, third = user.primary
    assert {user.choose() for _ in range(50)} == {first, second}
    assert {user.choose(none_of(first)) for _ in range(50)} == {second}
    assert {user.choose(none_of(first, second)) for _ in range(50)} == {third}


def test_directories_are_asked_of_three_in_any_order(user: User) -> None:
    def sources() -> tuple[str, ...]:
        identities = user.guards.choose_for_directory(DIRECTORY, now=user.now, rng=user.rng)
        return tuple(NICKNAMES[identity] for identity in identities)

    orders = [sources() for _ in range(50)]
    assert {frozenset(order) for order in orders} == {frozenset(user.primary)}
    assert len(set(orders)) == 6
    user.fail_primary()
    (other,) = sources()
    assert other not in user.primary


def test_directories_are_asked_of_guards_that_failed_where_all_have(user: User) -> None:
    def ask() -> list[bytes]:
        return user.guards.choose_for_directory(DIRECTORY, now=NOW, rng=Random(1))

    failed = user.fail_all()
    user.fail(*failed)
    assert IDENTITIES[failed[0]] in ask()


def test_a_directory_answer_confirms_nobody(user: User) -> None:
    user.reach(user.primary[2])
    assert all(guard.confirmed_on is None for guard in user.guards.sample)


# --- Failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failing_for", "wait"),
    [
        (0.0, 10 * MINUTE),
        (6 * HOUR, 10 * MINUTE),
        (6 * HOUR + 1, 90 * MINUTE),
        (4 * DAY, 90 * MINUTE),
        (4 * DAY + 1, 4 * HOUR),
        (7 * DAY, 4 * HOUR),
        (7 * DAY + 1, 9 * HOUR),
        (50 * DAY, 9 * HOUR),
    ],
)
def test_primary_guards_are_retried_by_their_schedule(user: User, failing_for: float, wait: float) -> None:
    first = user.use()
    guard = user.guards.primary[0]
    user.fail(first)
    # Retried and failed once more when it had failed so long, less the wait that then was due.
    guard.last_tried = NOW + failing_for - wait
    user.now = NOW + failing_for - 0.5
    assert user.choose() != first
    user.now = NOW + failing_for
    assert user.choose() == first


@pytest.mark.parametrize(
    ("failing_for", "wait"),
    [
        (0.0, HOUR),
        (6 * HOUR, HOUR),
        (6 * HOUR + 1, 4 * HOUR),
        (4 * DAY + 1, 18 * HOUR),
        (7 * DAY + 1, 36 * HOUR),
    ],
)
def test_other_guards_are_retried_less_often(user: User, failing_for: float, wait: float) -> None:
    user.fail_primary()
    other = user.choose()
    user.fail(other)
    guard = next(one for one in user.guards.sample if one.identity == IDENTITIES[other])
    guard.last_tried = NOW + failing_for - wait
    user.now = NOW + failing_for - 0.5
    user.fail_primary()
    assert user.choose() != other
    user.now = NOW + failing_for
    assert user.choose() == other


def test_the_schedule_covers_any_age() -> None:
    assert RETRY_SCHEDULE[-1][0] == float("inf")


def test_a_clock_set_back_does_not_put_off_retries(user: User) -> None:
    first = user.use()
    user.fail(first)
    user.now -= 30 * DAY
    assert user.choose() == first


def test_after_a_night_asleep_the_first_guard_is_tried_first(user: User) -> None:
    first = user.use()
    user.fail_all()
    user.fail_primary()
    user.now += 8 * HOUR
    assert user.choose() == first


def test_when_all_have_failed_all_are_tried_again_from_the_first(user: User) -> None:
    tried = user.fail_all()
    assert tried == user.sample
    assert user.choose() == tried[0]


def test_when_all_have_failed_the_first_that_answers_brings_back_the_better_ones(user: User) -> None:
    """This machine was offline for less than guard-spec's ten minutes: no guard is to blame."""
    first = user.use()
    tried = user.fail_all()
    user.fail(*tried[:2])
    assert user.choose() == tried[2]
    user.reach(tried[2])
    assert user.choose() == first
    user.fail(first)
    user.reach(tried[2])
    assert user.choose() == tried[1]


def test_the_only_guard_is_tried_again_though_it_failed() -> None:
    only = next(doc for doc in DOCS if "Guard" in doc.flags)
    others = [replace(doc, flags=doc.flags.replace("Guard ", "")) for doc in DOCS if doc is not only]
    user = User(directory=directory_of([only, *others]))
    first = user.choose()
    user.fail(first)
    assert user.choose() == first


def test_a_path_that_no_guard_goes_with_forgives_nobody(user: User) -> None:
    first = user.use()
    user.fail(first)
    with pytest.raises(NoPath, match="does not go with the path: 20") as caught:
        user.choose(lambda relay: False)
    assert caught.value.hint is None
    assert user.choose() != first


# --- Circuits through others than primary guards -----------------------------------------------------------


def test_a_guard_that_is_not_primary_is_used_when_all_primary_ones_are_down(user: User) -> None:
    user.use()  # we are on the internet
    user.fail_primary()
    fourth = user.choose()
    assert fourth not in user.primary
    user.reach(fourth)
    assert user.judge(fourth) is Verdict.USABLE


def test_two_circuits_at_once_try_two_guards_and_the_better_is_waited_for(user: User) -> None:
    user.use()
    user.fail_primary()
    fourth, fifth = user.choose(), user.choose()
    assert fourth != fifth
    user.reach(fifth)
    assert user.judge(fifth) is Verdict.UNDECIDED
    user.reach(fourth)
    assert user.judge(fourth) is Verdict.USABLE
    assert user.judge(fifth) is Verdict.BETTER_FIRST


def test_the_worse_guard_is_used_once_the_better_has_failed(user: User) -> None:
    user.use()
    user.fail_primary()
    fourth, fifth = user.choose(), user.choose()
    user.reach(fifth)
    user.fail(fourth)
    assert user.judge(fifth) is Verdict.USABLE


def test_the_better_guard_is_waited_for_only_so_long(user: User) -> None:
    user.use()
    user.fail_primary()
    _, fifth = user.choose(), user.choose()
    user.now += CONNECT_TIMEOUT - 1
    user.reach(fifth)
    assert user.judge(fifth) is Verdict.UNDECIDED
    user.now += 1
    assert user.judge(fifth) is Verdict.USABLE


def test_a_circuit_waits_as_long_as_for_any_better_guard(user: User) -> None:
    user.use()
    user.fail_primary()
    fourth, fifth = user.choose(), user.choose()
    user.guards.note_given_up(IDENTITIES[fourth])
    user.now += CONNECT_TIMEOUT + 1
    assert user.choose() == fourth  # tried a moment ago, unlike the fifth
    sixth = user.choose()
    user.reach(sixth)
    assert user.judge(sixth) is Verdict.UNDECIDED
    assert fifth not in (fourth, sixth)


def test_a_better_guard_whose_microdescriptor_has_gone_is_not_waited_for(user: User) -> None:
    user.use()
    user.fail_primary()
    fourth, fifth = user.choose(), user.choose()
    assert user.judge(fifth) is Verdict.UNDECIDED
    user.see(directory_of(DOCS, held=without(fourth)))
    assert user.judge(fifth) is Verdict.USABLE


def test_a_circuit_by_any_primary_guard_is_usable(user: User) -> None:
    assert [user.judge(name) for name in user.primary] == [Verdict.USABLE] * 3


def test_a_better_guard_that_does_not_go_with_the_path_is_not_waited_for(user: User) -> None:
    user.use()
    user.fail_primary()
    fourth, fifth = user.choose(), user.choose()
    user.reach(fifth)
    assert user.judge(fifth, none_of(fourth)) is Verdict.USABLE


def test_an_attempt_given_up_or_forgotten_holds_nobody_up(user: User) -> None:
    user.use()
    user.fail_primary()
    fourth, fifth = user.choose(), user.choose()
    user.guards.note_given_up(IDENTITIES[fourth])
    assert user.choose() == fourth
    user.now += IDLE_TIMEOUT - 1  # the primary ones are not due yet
    assert user.choose() not in (fourth, fifth)
    user.fail_primary()
    user.now += 1
    assert user.choose() == fourth


def test_an_attempt_that_began_in_the_future_holds_nobody_up(user: User) -> None:
    user.use()
    user.fail_primary()
    fourth = user.choose()
    user.now -= DAY
    user.fail_primary()
    assert user.choose() == fourth


def test_when_all_others_are_being_tried_the_best_of_them_is_tried_twice(user: User) -> None:
    user.use()
    user.fail_primary()
    others = [user.choose() for _ in range(17)]
    assert len(set(others)) == 17
    assert user.choose() == others[0]


def test_a_circuit_gives_way_when_a_primary_guard_is_worth_a_try_again(user: User) -> None:
    first = user.use()
    user.fail_primary()
    user.now += 10 * MINUTE - 1
    fourth = user.choose()
    user.now += 1
    user.reach(fourth)
    assert user.judge(fourth) is Verdict.BETTER_FIRST
    assert user.choose() == first
    user.fail_primary()
    assert user.choose() == fourth
    assert user.judge(fourth) is Verdict.USABLE


def test_after_the_network_was_down_primary_guards_come_first_again(user: User) -> None:
    first = user.use()
    user.now += LIKELY_DOWN + 1
    user.fail_primary()
    fourth = user.choose()
    user.reach(fourth)
    assert user.judge(fourth) is Verdict.BETTER_FIRST
    assert user.choose() == first


def test_a_network_that_was_up_a_moment_ago_is_not_taken_for_down(user: User) -> None:
    user.use()
    user.now += LIKELY_DOWN
    user.fail_primary()
    fourth = user.choose()
    user.reach(fourth)
    assert user.judge(fourth) is Verdict.USABLE


def test_at_the_start_nothing_is_known_of_the_network(user: User) -> None:
    user.fail_primary()
    fourth = user.choose()
    user.reach(fourth)
    assert user.judge(fourth) is Verdict.BETTER_FIRST
    assert user.choose() == user.primary[0]


def test_a_network_that_was_up_in_the_future_may_have_been_down(user: User) -> None:
    user.use()
    user.now -= DAY
    user.fail_primary()
    fourth = user.choose()
    user.reach(fourth)
    assert user.judge(fourth) is Verdict.BETTER_FIRST


def test_a_consensus_forgives_nobody_but_at_the_start(user: User) -> None:
    user.use()
    user.fail_primary()
    user.see(directory_of(DOCS))
    assert user.choose() not in user.primary


def test_outcomes_are_noted_before_there_is_a_directory(user: User) -> None:
    first = IDENTITIES[user.use()]
    guards, _ = Guards.from_state(user.guards.to_state(), now=NOW, rng=Random(1))
    guards.note_failed(first, now=NOW)
    assert guards.has_changed
    guards.note_reached(first, now=NOW)


def test_outcomes_of_strangers_are_ignored(user: User) -> None:
    state = user.guards.to_state()
    stranger = b"\0" * 20
    user.guards.note_reached(stranger, now=NOW)
    user.guards.note_failed(stranger, now=NOW)
    user.guards.note_given_up(stranger)
    user.guards.confirm(stranger, now=NOW, rng=Random(1))
    assert user.guards.to_state() == state


def test_a_guard_whose_microdescriptor_has_not_come_is_waited_for(user: User) -> None:
    """It was passed over, and the next one became confirmed for good."""
    first = user.use()
    user.see(directory_of(DOCS, held=without(first)))
    with pytest.raises(NoDirectory, match=f"the microdescriptor of the guard {first} has not come"):
        user.choose()
    assert user.guards.lacking(user.directory, now=user.now, rng=user.rng) == [first]
    user.see(directory_of(DOCS))
    assert user.use() == first
    assert [guard.confirmed_on is not None for guard in user.guards.sample].count(True) == 1


@pytest.mark.parametrize(("down", "lacking"), [((), [0, 1]), ((0,), [1, 2]), ((0, 1), [2])])
def test_one_guard_more_than_are_in_use_is_waited_for_of_those_that_may_be_reachable(
    user: User, down: tuple[int, ...], lacking: list[int]
) -> None:
    primary = user.primary
    user.see(directory_of(DOCS, held=without(*primary)))
    user.fail(*(primary[number] for number in down))
    assert user.guards.lacking(user.directory, now=user.now, rng=user.rng) == [primary[n] for n in lacking]


def test_a_third_guard_is_waited_for_as_soon_as_it_is_next(user: User) -> None:
    first, second, third = user.primary
    user.see(directory_of(DOCS, held=without(third)))
    assert user.use() == first
    user.fail(first, second)
    with pytest.raises(NoDirectory, match=third):
        user.choose()


def test_a_guard_whose_microdescriptor_nobody_can_use_is_passed_over(user: User) -> None:
    """The authorities have agreed on it, so no directory source can choose that."""
    first, second, _ = user.primary
    place = DIRECTORY.consensus.relays.index_of(IDENTITIES[first])
    assert place is not None
    digest = DIRECTORY.consensus.relays.digests[place]
    assert digest is not None
    user.directory = Directory(DIRECTORY.consensus, dict(DIRECTORY._microdescs) | {digest: b"onion-key\n"})
    assert user.directory.relay(IDENTITIES[first]) is None
    assert user.use() == second


def test_directories_are_asked_of_guards_whose_microdescriptors_have_not_come() -> None:
    """As C tor's clients do for their first ones, instead of asking whoever served the consensus."""
    user = User(directory=directory_of(DOCS, held=()))
    asked = user.guards.choose_for_directory(user.directory, now=user.now, rng=user.rng)
    assert {NICKNAMES[one] for one in asked} == set(user.primary)


def test_an_older_directory_still_in_use_changes_nothing(user: User) -> None:
    first = user.use()
    newer = directory_of(without(first), at=NOW + HOUR)
    user.see(newer)
    primary = user.primary
    assert first not in primary
    user.guards.has_changed = False
    user.see(DIRECTORY)
    assert (user.primary, user.guards.has_changed) == (primary, False)
    assert user.choose() == primary[0]


def test_a_few_guards_of_a_small_network_are_all_sampled() -> None:
    user = User(directory=directory_of(DOCS[:10]))
    assert len(user.sample) == 5
    assert len(user.primary) == 3


# --- What users restrict -------------------------------------------------------------------------------


def restricted(count: int, **changes: Any) -> Guards:
    """To the first `count` guards of the directory."""
    relays = DIRECTORY.consensus.relays
    names = [
        identity.hex()
        for identity, flags in zip(relays.identities, relays.flags, strict=True)
        if "Guard" in flags
    ][:count]
    return Guards(Constraints(entries=frozenset(names), **changes))


def test_excluded_relays_stay_in_the_sample_but_are_not_used(user: User) -> None:
    first = user.use()
    guards, _ = Guards.from_state(
        user.guards.to_state(),
        now=NOW,
        rng=Random(1),
        restrictions=Constraints(exclude=frozenset({first})),
    )
    other = User(guards)
    assert first in other.sample
    assert other.use() != first
    assert user.restart().use() == first


def test_an_excluded_guard_that_is_not_primary_is_not_used_either(user: User) -> None:
    first, *_, fourth = user.sample[:4]
    user.fail(first)
    guards, _ = Guards.from_state(
        user.guards.to_state(),
        now=NOW,
        rng=Random(1),
        restrictions=Constraints(exclude=frozenset({fourth})),
    )
    other = User(guards)
    assert fourth not in other.primary
    assert fourth not in other.fail_all()


def test_entry_nodes_are_the_only_ones_used() -> None:
    guards = restricted(30)
    user = User(guards)
    allowed = {doc.nickname for doc in DOCS if doc.fingerprint.lower() in guards._restrictions.entries}
    assert set(user.primary) <= allowed
    assert not guards.is_extremely_restricted


def test_entry_nodes_may_be_countries() -> None:
    where = {doc.nickname: "aa" if place < len(DOCS) / 2 else "bb" for place, doc in enumerate(DOCS)}
    addresses = {doc.address: where[doc.nickname] for doc in DOCS}
    assert len(addresses) == len(DOCS)
    directory = Directory(DIRECTORY.consensus, {}, addresses.get)
    for constraints, country in (
        (Constraints(entries=frozenset({"{aa}"})), "aa"),
        (Constraints(exclude=frozenset({"{AA}"})), "bb"),
    ):
        user = User(Guards(constraints), directory)
        assert {where[name] for name in user.primary} == {country}
        assert len(user.guards._allowed) > 20


def test_few_entry_nodes_have_a_sample_of_their_own(user: User) -> None:
    first = user.use()
    guards, _ = Guards.from_state(user.guards.to_state(), now=NOW, rng=Random(1))
    guards._restrictions = restricted(5)._restrictions
    few = User(guards)
    assert len(few.sample) == 5
    few.use()
    state = few.guards.to_state()
    assert len(state["restricted_guards"]) == 5
    assert state["guards"] == user.guards.to_state()["guards"]
    again, complaints = Guards.from_state(state, now=NOW, rng=Random(1))
    assert complaints == []
    assert User(again).use() == first


def test_a_sample_is_not_changed_for_a_little_more_or_less() -> None:
    user = User(restricted(20))
    user.see(directory_of(DOCS))
    assert user.guards.to_state().get("restricted_guards") is None
    user.see(directory_of(DOCS, params="guard-meaningful-restriction-percent=21"))
    assert user.guards.to_state().get("restricted_guards") is None
    user.see(directory_of(DOCS, params="guard-meaningful-restriction-percent=22"))
    assert len(user.guards.to_state()["restricted_guards"]) == 20
    user.see(directory_of(DOCS, params="guard-meaningful-restriction-percent=20"))
    assert user.sample == [
        NICKNAMES[bytes.fromhex(g["fingerprint"])] for g in user.guards.to_state()["restricted_guards"]
    ]
    user.see(directory_of(DOCS, params="guard-meaningful-restriction-percent=19"))
    assert user.sample == [
        NICKNAMES[bytes.fromhex(g["fingerprint"])] for g in user.guards.to_state()["guards"]
    ]


def test_a_choice_that_gives_a_user_away_is_noticed() -> None:
    assert not User(restricted(1)).guards.is_extremely_restricted
    user = User(restricted(1), directory=directory_of(DOCS, params="guard-extreme-restriction-percent=2"))
    assert user.guards.is_extremely_restricted


def test_entry_nodes_that_are_not_there_are_no_guard() -> None:
    user = User(Guards(Constraints(entries=frozenset({"nobody"}))))
    with pytest.raises(NoGuard, match="allowed"):
        user.choose()


def test_a_list_that_earlier_entry_nodes_have_filled_is_told_with_what_to_do() -> None:
    """It holds as many as C tor's. The error named no cause, for weeks."""
    guards = [doc.nickname for doc in DOCS if "Guard" in doc.flags]
    state: dict[str, Any] = {}
    for name in guards[:20]:
        restrictions = Constraints(entries=frozenset({name}))
        kept, _ = Guards.from_state(state, now=NOW, rng=Random(1), restrictions=restrictions)
        assert User(kept).use() == name
        state = kept.to_state()
    restrictions = Constraints(entries=frozenset({guards[20]}))
    kept, _ = Guards.from_state(state, now=NOW, rng=Random(1), restrictions=restrictions)
    with pytest.raises(NoPath, match="excluded: 20") as caught:
        User(kept).choose()
    assert "--entry-nodes" in str(caught.value.hint)
    assert "--data-dir" in str(caught.value.hint)


# --- What is kept --------------------------------------------------------------------------------------


def test_the_state_is_kept_over_starts(user: User) -> None:
    first, second, third = user.primary
    user.fail(first)
    user.use()
    again = user.restart()
    assert again.sample == user.sample
    assert again.primary == user.primary == [first, second, third]
    assert again.guards.to_state() == user.guards.to_state()
    assert not again.guards.has_changed
    assert again.use() == second


def test_a_guard_that_is_down_is_passed_over_by_the_next_start_until_its_retry_is_due(user: User) -> None:
    """Commands that run for a moment asked a dead guard for ever."""
    first, second, _ = user.primary
    user.choose()
    user.fail(first)
    again = user.restart()
    assert again.use() == second
    again.now += 10 * MINUTE - 1
    assert again.restart().use() == second
    again.now += 1
    assert again.restart().use() == first
    again.reach(first)
    assert not {"failing_since", "last_tried"} & again.guards.to_state()["guards"][0].keys()


def test_failures_that_leave_no_primary_guard_are_not_believed_by_the_next_start(user: User) -> None:
    """Whoever was offline a moment ago would go to a guard never used."""
    first = user.use()
    user.fail_all()
    user.fail_primary()
    again = user.restart()
    assert again.use() == first
    assert again.primary == user.primary


def test_a_guard_that_is_down_is_noticed_once_and_when_it_is_back(user: User) -> None:
    first = user.use()
    outcomes: list[tuple[Callable[[str], None], bool]] = [
        (user.fail, True),
        (user.fail, False),
        (user.reach, True),
        (user.reach, False),
    ]
    for outcome, is_new in outcomes:
        user.guards.has_changed = False
        outcome(first)
        assert user.guards.has_changed is is_new


def test_a_change_is_noticed_once(user: User) -> None:
    assert user.guards.has_changed
    user.guards.has_changed = False
    user.use()
    assert user.guards.has_changed
    user.guards.has_changed = False
    user.use()
    user.see(directory_of(DOCS))
    assert not user.guards.has_changed
    user.see(directory_of(without(user.primary[0])))
    assert user.guards.has_changed


@pytest.mark.parametrize("step", ["reach", "fail", "see"])
def test_what_changes_nothing_hides_no_change(user: User, step: str) -> None:
    first = user.use()
    if step == "fail":
        user.fail(first)
    assert user.guards.has_changed
    if step == "reach":
        user.reach(first)
    elif step == "fail":
        user.fail(first)
    else:
        user.see(directory_of(DOCS))
    assert user.guards.has_changed


def test_the_state_has_the_order_of_sampling(user: User) -> None:
    first, second, _ = user.primary
    user.fail(first)
    assert user.use() == second
    fingerprints = [guard["fingerprint"] for guard in user.guards.to_state()["guards"]]
    assert fingerprints == [IDENTITIES[name].hex().upper() for name in user.sample]
    assert user.sample[:2] == [first, second]


def test_fingerprints_kept_by_an_older_version_are_guards_in_use() -> None:
    docs = [doc for doc in DOCS if "Guard" in doc.flags][7:9]
    state = {"guards": [{"fingerprint": doc.fingerprint} for doc in docs]}
    guards, complaints = Guards.from_state(state, now=NOW, rng=Random(1))
    assert complaints == []
    user = User(guards)
    assert user.primary[:2] == [doc.nickname for doc in docs]
    assert len(user.sample) == 20
    assert all(NOW - 12 * DAY <= (g.confirmed_on or 0) <= NOW for g in user.guards.primary[:2])


def test_what_a_newer_version_keeps_of_a_guard_is_kept() -> None:
    entry = {
        "fingerprint": "AB" * 20,
        "sampled_on": "2026-11-01T10:00:00",
        "confirmed_on": "2026-11-02T10:00:00",
        "unlisted_since": "2026-11-03T10:00:00",
        "path_bias": {"circ_attempts": 7.5, "circ_successes": 6.25},
        "of a later version": {"n": 7},
    }
    guards, complaints = Guards.from_state({"guards": [entry]}, now=NOW, rng=Random(1))
    assert complaints == []
    assert guards.to_state() == {"guards": [entry]}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        1,
        "x",
        [],
        {},
        {"fingerprint": 7},
        {"fingerprint": "zz"},
        {"fingerprint": "00" * 19},
        {"fingerprint": "00" * 20, "sampled_on": 5},
        {"fingerprint": "00" * 20, "sampled_on": "yesterday"},
        {"fingerprint": "00" * 20, "sampled_on": "2026-02-30T10:00:00"},
        {"fingerprint": "00" * 20, "sampled_on": "2026-02-03 10:00:00"},
        {"fingerprint": "00" * 20, "sampled_on": "2026-02-03T10:00:00", "confirmed_on": True},
        {"fingerprint": "AB" * 20},  # again
    ],
)
def test_a_malformed_entry_is_left_out_alone_and_told(entry: Any) -> None:
    good = {"fingerprint": "AB" * 20, "sampled_on": "2026-11-01T10:00:00"}
    other = {"fingerprint": "CD" * 20, "sampled_on": "2026-11-01T10:00:00"}
    guards, complaints = Guards.from_state({"guards": [good, entry, other]}, now=NOW, rng=Random(1))
    assert [one.identity for one in guards.sample] == [b"\xab" * 20, b"\xcd" * 20]
    assert len(complaints) == 1
    assert complaints[0].startswith("guards, entry 2: ")


@pytest.mark.parametrize("value", [None, "x", 7, {"fingerprint": "00" * 20}])
def test_what_is_no_list_is_told(value: Any) -> None:
    guards, complaints = Guards.from_state({"guards": value}, now=NOW, rng=Random(1))
    assert guards.sample == []
    assert complaints == ["guards: a list expected"]


def test_no_state_is_a_fresh_start() -> None:
    guards, complaints = Guards.from_state({"other": 1}, now=NOW, rng=Random(1))
    assert (guards.sample, complaints) == ([], [])


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_DATE = st.sampled_from(["2026-11-01T10:00:00", "1000-01-01T00:00:00", "2999-12-31T23:59:59"]) | _JSON
_ENTRY = st.fixed_dictionaries(
    {"fingerprint": st.sampled_from([doc.fingerprint for doc in DOCS[:30]]) | _JSON},
    optional={"sampled_on": _DATE, "confirmed_on": _DATE, "unlisted_since": _DATE},
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["guards", "restricted_guards", "x"]), _JSON | st.lists(_ENTRY | _JSON)),
    st.integers(0, 5),
)
def test_any_json_gives_guards_that_work(state: dict[str, Any], seed: int) -> None:
    guards, _ = Guards.from_state(state, now=NOW, rng=Random(seed))
    user = User(guards, seed=seed)
    user.use()
    assert len({guard.identity for guard in guards.sample}) == len(guards.sample) >= 20


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.floats(0, 3 * DAY)), max_size=60))
def test_whatever_happens_the_lists_stay_in_order(steps: list[tuple[int, int, float]]) -> None:
    """Primary guards filtered and few, in the order of sampling, nobody twice, somebody always chosen."""
    user = User()
    smaller = directory_of(DOCS[::2] + DOCS[1:60:2])
    for kind, number, wait in steps:
        user.now += wait
        guard = IDENTITIES[user.sample[number % len(user.sample)]]
        if kind == 0:
            user.guards.note_failed(guard, now=user.now)
        elif kind == 1:
            user.guards.note_reached(guard, now=user.now)
            user.guards.confirm(guard, now=user.now, rng=user.rng)
        elif kind == 2:
            user.see(smaller if user.directory is DIRECTORY else DIRECTORY)
        elif kind == 3:
            user = user.restart()
        else:
            assert user.judge(user.choose()) in Verdict
        assert user.primary == [one for one in user.sample if one in user.primary]
        assert len(set(user.sample)) == len(user.sample) <= 60
        assert len(user.guards.primary) == 3
        assert set(user.primary) <= set(user.sample)
        assert user.choose() is not None


# --- Path bias -----------------------------------------------------------------------------------------


def test_only_guards_of_the_sample_are_counted_and_one_that_is_dropped_is_used_no_more() -> None:
    directory = DIRECTORY
    guards = Guards()
    first = guards.choose(directory, anyone, now=NOW, rng=Random(1))
    counts = guards.path_bias_of(first.identity)
    assert counts is not None
    assert counts is guards.sample[0].path_bias
    assert guards.path_bias_of(b"?" * 20) is None
    assert "path_bias" not in guards.to_state()["guards"][0]
    counts.circ_attempts = 2.0
    assert guards.to_state()["guards"][0]["path_bias"] == {"circ_attempts": 2.0}
    counts.is_disabled = True
    guards.note_dropped()
    assert first.identity not in {guard.identity for guard in guards.primary}
    second = guards.choose(directory, anyone, now=NOW, rng=Random(1))
    assert second != first
    later, _ = Guards.from_state(guards.to_state(), now=NOW, rng=Random(1))
    assert later.choose(directory, anyone, now=NOW, rng=Random(1)) == first
