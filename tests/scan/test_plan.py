"""Shards and paths: the same in every process that is told the same."""

import subprocess
import sys
from random import Random

import network_docs as nd
import pytest

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import Microdescs
from torkit.directory.positions import Position
from torkit.errors import NoPath, UsageError
from torkit.scan.plan import FIRST_HOPS, Plan, places_in
from torkit.scan.unit import Unit, freeze
from torkit.testing.directory import RelayDoc, encode_microdescs

COUNT = 8


def some_unit(count: int = 200) -> Unit:
    docs = nd.relays(count)
    texts = Microdescs.decode(encode_microdescs(docs))
    return freeze(Directory(parse_consensus(nd.consensus(docs, nd.authorities(1))), texts))


@pytest.fixture(scope="module")
def unit() -> Unit:
    return some_unit()


def test_every_relay_is_in_one_shard(unit: Unit) -> None:
    plan = Plan(unit)
    everyone = list(range(len(unit.directory)))
    shards = [plan.shard(everyone, index, COUNT) for index in range(COUNT)]
    assert sorted(place for shard in shards for place in shard) == everyone
    assert all(shards)


def test_a_relay_stays_in_its_shard_when_others_come(unit: Unit) -> None:
    plan = Plan(unit)
    some = Random(1).sample(range(len(unit.directory)), 50)
    for index in range(COUNT):
        assert set(plan.shard(some, index, COUNT)) <= set(
            plan.shard(range(len(unit.directory)), index, COUNT)
        )


def test_another_seed_gives_other_shards_and_other_paths(unit: Unit) -> None:
    plan, other = Plan(unit), Plan(unit, seed="other")
    everyone = range(len(unit.directory))
    assert plan.shard(everyone, 0, COUNT) != other.shard(everyone, 0, COUNT)
    relay = unit.directory.relay_at(places_in(unit.directory, Position.EXIT)[0])
    assert relay is not None
    assert [plan.path(relay, n) for n in range(3)] != [other.path(relay, n) for n in range(3)]


CHILD = """
import sys
sys.path[:0] = {path!r}
from scan.test_plan import all_paths
print(all_paths({consensus!r}, {microdescs!r}))
"""


def all_paths(consensus: bytes, microdescs: bytes) -> str:
    """The relays of a shard, and of their paths, in order."""
    unit = freeze(Directory(parse_consensus(consensus), Microdescs.decode(microdescs)))
    plan = Plan(unit, port=443)
    places = plan.shard(places_in(unit.directory, Position.EXIT), 3, COUNT)
    relays = filter(None, map(unit.directory.relay_at, places))
    return " ".join(one.fingerprint for relay in relays for one in path_of(plan, relay))


def path_of(plan: Plan, relay: Relay) -> tuple[Relay, ...]:
    try:
        return plan.path(relay)
    except NoPath:
        return (relay,)


def test_another_process_finds_the_same_relays_and_paths() -> None:
    docs = nd.relays(200)
    consensus, microdescs = nd.consensus(docs, nd.authorities(1)), encode_microdescs(docs)
    code = CHILD.format(path=sys.path, consensus=consensus, microdescs=microdescs)
    ended = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == all_paths(consensus, microdescs).split()
    assert len(ended.stdout.split()) > COUNT


@pytest.mark.parametrize(("index", "count"), [(2, 2), (9, 2), (0, 0), (-1, 2)])
def test_a_shard_that_is_none_is_an_error(unit: Unit, index: int, count: int) -> None:
    with pytest.raises(UsageError, match=f"no shard {index}/{count}") as raised:
        Plan(unit).shard([1, 2, 3], index, count)
    assert "count from 0" in (raised.value.hint or "")


def test_a_shard_may_be_empty(unit: Unit) -> None:
    plan = Plan(unit)
    assert sorted(len(plan.shard([7], index, COUNT)) for index in range(COUNT)) == [0] * (COUNT - 1) + [1]


def test_paths_begin_at_few_relays_and_have_theirs_in_position(unit: Unit) -> None:
    for position in Position:
        plan = Plan(unit, position=position)
        places = [
            place
            for place in plan.shard(places_in(unit.directory, position))
            if (one := unit.directory.relay_at(place)) and {"Running", "Valid"} <= one.flags
        ][:40]
        paths = {place: plan.path(relay) for place in places if (relay := unit.directory.relay_at(place))}
        hop = {Position.GUARD: 0, Position.MIDDLE: 1, Position.EXIT: 2}[position]
        assert all(path[hop] == unit.directory.relay_at(place) for place, path in paths.items())
        if position is Position.EXIT:
            first = {path[0].fingerprint for path in paths.values()}
            assert len(first) <= FIRST_HOPS == plan.first_hops


def test_another_attempt_goes_by_other_relays(unit: Unit) -> None:
    plan = Plan(unit)
    relay = unit.directory.relay_at(places_in(unit.directory, Position.EXIT)[0])
    assert relay is not None
    first = plan.path(relay)
    again = plan.path(relay, 1, first)
    assert {one.fingerprint for one in again} & {one.fingerprint for one in first} == {relay.fingerprint}


def test_a_small_network_has_paths_for_another_attempt_too() -> None:
    docs = [
        RelayDoc(f"r{n}", bytes([n]) * 20, f"10.{n}.0.1", flags=f"{flag} {FLAGS}", policy="accept 1-65535")
        for n, flag in enumerate(("Guard", "Guard", "Exit"))
    ]
    texts = Microdescs.decode(encode_microdescs(docs))
    unit = freeze(Directory(parse_consensus(nd.consensus(docs, nd.authorities(1))), texts))
    plan = Plan(unit)
    relay = unit.directory.relay_at(2)
    assert relay is not None
    path = plan.path(relay)
    assert {one.nickname for one in plan.path(relay, 1, path)} == {one.nickname for one in path}


FLAGS = "Fast Running Stable V2Dir Valid"
