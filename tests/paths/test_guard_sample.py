"""The sample of guards: who comes into it, when it grows, and who leaves it."""

from dataclasses import replace
from random import Random

import pytest
from guard_user import (
    DIRECTORY,
    DOCS,
    IDENTITIES,
    NICKNAMES,
    NOW,
    User,
    directory_of,
    without,
)

from torkit.directory.positions import Position
from torkit.errors import NoGuard, NoPath
from torkit.paths.guards import DAY, Guards

ROOM = "guard-max-sample-threshold-percent=50"  # for fifty of the hundred


def test_twenty_guards_are_sampled_and_three_are_primary(user: User) -> None:
    assert len(user.sample) == 20
    assert user.primary == user.sample[:3]
    flags = {doc.nickname: set(doc.flags.split()) for doc in DOCS}
    for name in user.sample:
        assert flags[name] >= {"Fast", "Guard", "Running", "Stable", "V2Dir", "Valid"}


@pytest.mark.parametrize("flag", ["Fast", "Guard", "Running", "Stable", "V2Dir", "Valid"])
def test_who_lacks_a_flag_of_a_guard_is_not_sampled(flag: str) -> None:
    docs = [replace(doc, flags=doc.flags.replace(flag, "")) for doc in DOCS]
    with pytest.raises(NoGuard, match="not a Guard"):
        User(directory=directory_of(docs)).choose()


def test_middle_only_relays_are_not_sampled() -> None:
    docs = [replace(doc, flags=f"{doc.flags} MiddleOnly") for doc in DOCS]
    assert User(directory=directory_of(docs)).sample == []


def test_the_sample_follows_the_weights() -> None:
    """The first of each sample, chi-squared over ten groups of guards: 9 degrees of freedom."""
    weights = DIRECTORY.weights(Position.GUARD)
    identities = DIRECTORY.consensus.relays.identities
    flags = DIRECTORY.consensus.relays.flags
    group = {identity: place % 10 for place, identity in enumerate(identities) if "Guard" in flags[place]}
    expected = [0.0] * 10
    for place, identity in enumerate(identities):
        if identity in group:
            expected[group[identity]] += weights[place]
    draws = 2000
    counts = [0] * 10
    rng = Random(5)
    for _ in range(draws):
        guards = Guards()
        guards.update(DIRECTORY, now=NOW, rng=rng)
        counts[group[guards.sample[0].identity]] += 1
    scale = draws / sum(expected)
    assert sum((n - e * scale) ** 2 / (e * scale) for n, e in zip(counts, expected, strict=True)) < 27.9


def test_an_unmeasured_network_samples_evenly() -> None:
    directory = directory_of(replace(doc, bandwidth=0) for doc in DOCS)
    assert len({User(directory=directory, seed=seed).sample[0] for seed in range(60)}) > 20


def test_the_sample_is_kept_when_relays_come() -> None:
    user = User(directory=directory_of(DOCS[:150]))
    before = list(user.sample)
    user.see(DIRECTORY)
    assert user.sample == before


def test_the_sample_grows_while_too_few_are_usable_and_has_a_largest_size(user: User) -> None:
    assert len(user.fail_all()) == 20  # a fifth of a hundred guards, and never less than twenty
    for params, size in [("", 50), ("guard-max-sample-size=25", 25)]:
        params += " guard-max-sample-threshold-percent=50"
        assert len(User(directory=directory_of(DOCS, params=params)).fail_all()) == size


def test_no_more_are_sampled_than_are_wanted() -> None:
    assert len(User(directory=directory_of(DOCS, params=ROOM)).sample) == 20


def test_a_guard_that_is_not_listed_is_no_usable_one() -> None:
    user = User(directory=directory_of(DOCS, params=ROOM))
    user.see(directory_of(without(user.sample[-1]), params=ROOM))
    assert len(user.sample) == 21


def test_a_sample_larger_than_the_largest_size_does_not_grow() -> None:
    user = User(directory=directory_of(DOCS, params=ROOM))
    user.fail_all()
    assert len(user.sample) == 50
    user.see(directory_of(DOCS, params=f"{ROOM} guard-max-sample-size=40"))
    user.fail_all()
    assert len(user.sample) == 50


def test_a_guard_without_the_flag_is_unlisted_and_one_that_is_back_keeps_its_place(user: User) -> None:
    first = user.use()
    plain = [replace(doc, flags=doc.flags.replace("Guard ", "")) for doc in DOCS if doc.nickname == first]
    user.see(directory_of(without(first) + plain))
    assert user.guards.sample[0].unlisted_since is not None
    assert user.use() != first
    user.see(DIRECTORY)
    assert user.guards.sample[0].unlisted_since is None
    assert user.use() == first


def test_a_guard_long_unlisted_is_removed(user: User) -> None:
    first = user.use()
    user.see(directory_of(without(first)))
    since = user.guards.sample[0].unlisted_since
    assert since is not None
    assert NOW - 4 * DAY <= since <= NOW
    user.now = since + 20 * DAY
    user.see(directory_of(without(first), at=user.now))
    assert first in user.sample
    user.now = since + 20 * DAY + 1
    user.see(directory_of(without(first), at=user.now))
    assert first not in user.sample


def test_a_guard_never_used_is_removed_after_its_lifetime(user: User) -> None:
    last = user.guards.sample[-1]
    assert NOW - 12 * DAY <= last.sampled_on <= NOW
    user.now = last.sampled_on + 120 * DAY
    user.see(directory_of(DOCS, at=user.now))
    assert NICKNAMES[last.identity] in user.sample
    user.now += 1
    user.see(directory_of(DOCS, at=user.now))
    assert NICKNAMES[last.identity] not in user.sample


def test_a_used_guard_is_removed_sixty_days_after(user: User) -> None:
    first = user.use()
    confirmed_on = user.guards.sample[0].confirmed_on
    assert confirmed_on is not None
    assert NOW - 12 * DAY <= confirmed_on <= NOW
    user.now = confirmed_on + 60 * DAY
    user.see(directory_of(DOCS, at=user.now))
    assert user.use() == first
    user.now += 1
    user.see(directory_of(DOCS, at=user.now))
    assert first not in user.sample
    assert len(user.sample) == 20


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_is_wrong_removes_nobody(user: User, days: int) -> None:
    """A consensus that is not live by our clock tells that one of them is wrong."""
    first = user.use()
    kept = user.guards.to_state()
    user.now += days * DAY
    user.see(directory_of(without(first)))
    assert user.guards.to_state() == kept
    user.now = NOW
    user.see(directory_of(DOCS))
    assert user.use() == first
    assert user.guards.to_state() == kept


def test_dates_do_not_tell_when_they_were_made() -> None:
    """Sampled and confirmed up to twelve days earlier, a tenth of a lifetime; unlisted up to four."""
    user = User()
    for name in user.sample:
        user.guards.confirm(IDENTITIES[name], now=NOW, rng=user.rng)
    user.see(directory_of(without(*user.sample)))
    unlisted = [guard for guard in user.guards.sample if guard.unlisted_since is not None]
    assert len(unlisted) == 20
    for name, days in [("sampled_on", 12), ("confirmed_on", 12), ("unlisted_since", 4)]:
        ages = [NOW - getattr(guard, name) for guard in unlisted]
        assert 0 <= min(ages) < days * DAY / 4
        assert days * DAY * 3 / 4 < max(ages) <= days * DAY


def test_a_sample_of_another_network_says_where_to_look(user: User) -> None:
    user.see(directory_of(without(*user.sample)))
    with pytest.raises(NoPath, match=r"20 sampled \(not listed: 20\)") as caught:
        user.choose()
    assert "--data-dir" in str(caught.value.hint)
