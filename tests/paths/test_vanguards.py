"""Vanguards: how many, for how long, and what a path to a named relay may hold. vanguards-spec."""

import json
import random

import network_docs as nd
import pytest

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import split_microdescs
from torkit.errors import NoPath
from torkit.paths.constraints import Constraints, VanguardMode
from torkit.paths.vanguards import Vanguards, choose_stem
from torkit.testing.directory import RelayDoc, encode_microdescs

STABLE = "Fast Guard HSDir Running Stable V2Dir Valid"
DAY = 86400.0


def directory_of(
    flags: list[str],
    params: str = "",
    families: bool = False,
    rendezvous: range = range(256),
    now: int = nd.NOW,
) -> Directory:
    """Relays r1, r2, ... with these flags; those numbered in `rendezvous` can be rendezvous points."""
    docs = [
        RelayDoc(
            f"r{n}",
            bytes([n]) * 20,
            f"10.{0 if families else n}.1.{n}",
            flags=line,
            protocols="HSRend=1-2 Relay=2" if n in rendezvous else "HSRend=1 Relay=2",
        )
        for n, line in enumerate(flags, 1)
    ]
    microdescs = split_microdescs(encode_microdescs(docs))
    consensus = parse_consensus(nd.consensus(docs, nd.authorities(1), params=params, valid_after=now - 1800))
    return Directory(consensus, {digest: text for digest, text, _ in microdescs})


def relay(directory: Directory, number: int) -> Relay:
    found = directory.relay(bytes([number]) * 20)
    assert found is not None
    return found


def vanguards(seed: int = 1) -> Vanguards:
    return Vanguards(Constraints(), random.Random(seed))


def chosen(
    set_: Vanguards, directory: Directory, now: float = nd.NOW, count: int = 200, name: str = "l2"
) -> set[bytes]:
    return {set_.choose(directory, unwanted=set(), now=now, name=name).identity for _ in range(count)}


@pytest.mark.parametrize(
    ("params", "number"), [("", 4), ("guard-hs-l2-number=2", 2), ("guard-hs-l2-number=99", 19)]
)
def test_the_second_place_is_one_of_as_many_as_the_network_says(params: str, number: int) -> None:
    directory = directory_of([STABLE] * 24, params)
    assert len(chosen(vanguards(), directory, count=2000)) == number


def test_a_vanguard_is_kept_until_its_time_is_up() -> None:
    directory = directory_of([STABLE] * 20)
    one = vanguards()
    first = chosen(one, directory)
    assert chosen(one, directory, now=nd.NOW + 0.99 * DAY) == first
    later = nd.NOW + 13 * 86400
    assert chosen(one, directory_of([STABLE] * 20, now=later), now=later) != first


@pytest.mark.parametrize("mode", VanguardMode)
def test_a_clock_that_is_set_ahead_draws_no_vanguards(mode: VanguardMode) -> None:
    """Who controls our time would choose when new ones are drawn, and how often."""
    directory = directory_of([STABLE] * 30)
    one = Vanguards(Constraints(), random.Random(1), mode)
    for name in mode.sets:
        first = chosen(one, directory, name=name)
        expires = dict(one._expires[name])
        assert chosen(one, directory, now=nd.NOW + 90 * DAY, name=name) == first
        assert chosen(one, directory, now=nd.NOW + 60, name=name) == first
        assert one._expires[name] == expires


def test_a_vanguard_drawn_by_a_clock_that_is_ahead_is_known_when_it_is_right_again() -> None:
    """The one look that was needed was left out until the next directory: it served a month too long."""
    directory = directory_of([STABLE] * 5, "guard-hs-l2-lifetime-min=100 guard-hs-l2-lifetime-max=100")
    one = vanguards()
    chosen(one, directory)
    del one._expires["l2"][min(one._expires["l2"])]  # as one that was no longer listed
    chosen(one, directory, now=nd.NOW + 30 * DAY)
    chosen(one, directory, now=nd.NOW + 1)
    assert max(one._expires["l2"].values()) <= nd.NOW + 101


def test_a_clock_that_was_set_back_leaves_no_vanguard_for_longer_than_others() -> None:
    directory = directory_of([STABLE] * 20, "guard-hs-l2-lifetime-min=100 guard-hs-l2-lifetime-max=100")
    one = vanguards()
    first = chosen(one, directory, now=nd.NOW + 3600)
    assert chosen(one, directory, now=nd.NOW) == first
    assert set(one._expires["l2"].values()) == {nd.NOW + 100}
    assert chosen(one, directory, now=nd.NOW + 101) != first


def test_a_lifetime_is_the_greater_of_two_draws_within_the_bounds() -> None:
    directory = directory_of([STABLE] * 4, "guard-hs-l2-lifetime-min=100 guard-hs-l2-lifetime-max=200")
    lifetimes: list[float] = []
    for seed in range(400):
        one = vanguards(seed)
        one.choose(directory, unwanted=set(), now=0.0)
        lifetimes += one._expires["l2"].values()
    assert min(lifetimes) >= 100
    assert max(lifetimes) <= 200
    # The greater of two uniform draws has two thirds of the range as its mean.
    assert 160 < sum(lifetimes) / len(lifetimes) < 173


def test_a_vanguard_that_is_no_longer_stable_or_listed_is_replaced() -> None:
    one = vanguards()
    before = chosen(one, directory_of([STABLE] * 6))
    lost = min(before)[0]
    flags = [STABLE.replace(" Stable", "") if n == lost else STABLE for n in range(1, 7)]
    assert bytes([lost]) * 20 not in chosen(one, directory_of(flags))
    assert len(chosen(one, directory_of(flags))) == 4


def test_a_new_identity_forgets_the_set() -> None:
    directory = directory_of([STABLE] * 24)
    sets = []
    one = vanguards()
    for _ in range(8):
        sets.append(frozenset(chosen(one, directory)))
        one.forget()
    assert len(set(sets)) > 1
    assert {len(set_) for set_ in sets} == {4}


def test_a_stem_has_no_relay_twice_and_not_its_target() -> None:
    directory = directory_of([STABLE] * 9, families=True)  # all in one subnet, which does not count
    one, rng = vanguards(), random.Random(3)
    guards = set()
    for number in range(1, 10):
        for _ in range(30):
            path = choose_stem(
                directory,
                bytes([number]) * 20,
                one,
                lambda fits: relay(directory, 5),
                Constraints(),
                rng,
                now=0.0,
            )
            guard, second, middle = (hop.identity for hop in path)
            guards.add(guard)
            assert len({second, middle, bytes([number]) * 20}) == 3
            assert guard not in (second, middle)
    assert guards == {bytes([5]) * 20}  # also where the guard itself is the target: tries tell nothing


def test_the_target_has_no_say_in_who_is_guard() -> None:
    directory = directory_of([STABLE] * 6)
    asked = []

    def pick_guard(fits: object) -> Relay:
        assert callable(fits)
        asked.append(all(fits(relay(directory, n)) for n in range(1, 7)))
        return relay(directory, 1)

    choose_stem(directory, bytes([1]) * 20, vanguards(), pick_guard, Constraints(), random.Random(1), now=0.0)
    assert asked == [True]


def test_too_small_a_network_has_no_path() -> None:
    directory = directory_of([STABLE] * 3)
    with pytest.raises(NoPath):
        choose_stem(
            directory,
            bytes([3]) * 20,
            vanguards(),
            lambda fits: relay(directory, 1),
            Constraints(),
            random.Random(1),
            now=0.0,
        )


def rendezvous_points(directory: Directory) -> set[bytes]:
    one, rng = vanguards(), random.Random(3)

    def pick_guard(fits: object) -> Relay:
        return relay(directory, 1)

    stems = [choose_stem(directory, None, one, pick_guard, Constraints(), rng, now=0.0) for _ in range(200)]
    assert all(len({hop.identity for hop in stem}) == 3 for stem in stems)
    return {stem[2].identity for stem in stems}


def test_a_rendezvous_point_can_be_one_and_is_no_middle_only_relay() -> None:
    flags = [STABLE] * 12
    flags[11] += " MiddleOnly"
    directory = directory_of(flags, rendezvous=range(8, 13))
    assert rendezvous_points(directory) <= {bytes([n]) * 20 for n in (8, 9, 10, 11)}


def test_without_a_rendezvous_point_there_is_no_path() -> None:
    with pytest.raises(NoPath, match="rendezvous point"):
        rendezvous_points(directory_of([STABLE] * 9, rendezvous=range(0)))


# --- Full --------------------------------------------------------------------------------------------------


def full(seed: int = 1) -> Vanguards:
    return Vanguards(Constraints(), random.Random(seed), VanguardMode.FULL)


@pytest.mark.parametrize("target", [bytes([9]) * 20, None])
def test_full_vanguards_guard_two_places(target: bytes | None) -> None:
    directory = directory_of([STABLE] * 30)
    one, rng = full(), random.Random(3)

    def pick_guard(fits: object) -> Relay:
        return relay(directory, 1)

    stems = [choose_stem(directory, target, one, pick_guard, Constraints(), rng, now=0.0) for _ in range(500)]
    places = [{hop.identity for hop in hops} for hops in zip(*stems, strict=True)]
    assert len(places[0]) == 1
    assert 3 <= len(places[1]) <= 4  # the guard may be one of the set
    assert 7 <= len(places[2]) <= 8
    assert len(places[3]) > 15
    for stem in stems:
        assert len({hop.identity for hop in stem} | {target}) == 5


def test_full_vanguards_outlive_identities_and_starts() -> None:
    directory = directory_of([STABLE] * 24)
    one = full()
    sets = [chosen(one, directory, name=name) for name in ("l2", "l3")]
    assert one.has_changed
    one.forget()
    state = json.loads(json.dumps(one.to_state()))
    again = Vanguards.from_state(state, Constraints(), random.Random(2), VanguardMode.FULL)
    assert [chosen(again, directory, name=name) for name in ("l2", "l3")] == sets
    assert again.to_state() == one.to_state()
    later = nd.NOW + 49 * 3600
    assert chosen(again, directory_of([STABLE] * 24, now=later), now=later, name="l3") != sets[1]
    assert Vanguards(Constraints(), random.Random(1)).to_state() == {}  # lite sets are kept by nobody


@pytest.mark.parametrize(
    "kept",
    [
        None,
        [],
        {"l2": []},
        {"l2": {"x": "2026-01-01T00:00:00"}},
        {"l2": {"01" * 20: None}, "l3": 7},
        {"l2": {"01" * 20: "soon"}, "l9": {}},
        {"l2": {f"{n:040X}": "2099-01-01T00:00:00" for n in range(5000)}},
    ],
)
def test_kept_vanguards_that_are_none_are_drawn_anew(kept: object) -> None:
    one = Vanguards.from_state({"vanguards": kept}, Constraints(), random.Random(1), VanguardMode.FULL)
    assert len(chosen(one, directory_of([STABLE] * 24))) == 4
