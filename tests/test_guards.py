"""Guards: one is kept as long as it can be, others only when it cannot, and the state survives anything."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import network_docs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from network_docs import RelayDoc

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import Microdescs
from torkit.errors import NoGuard
from torkit.guards import PRIMARY_COUNT, RETRY_AFTER, Guards
from torkit.path import Constraints

DOCS = network_docs.relays(60)
NOW = 10_000.0


def directory_of(docs: list[RelayDoc]) -> Directory:
    microdescs = Microdescs()
    consensus = parse_consensus(network_docs.consensus(docs, network_docs.authorities(1)))
    microdescs.add(
        network_docs.microdescs(docs), {d for d in consensus.relays.digests if d}, network_docs.NOW
    )
    return Directory(consensus, microdescs)


@pytest.fixture
def directory() -> Directory:
    return directory_of(DOCS)


def choose(
    guards: Guards, directory: Directory, failed_at: Mapping[bytes, float] | None = None, *, now: float = NOW
) -> Relay:
    return guards.choose(directory, Constraints(), failed_at or {}, now=now, rng=Random(1))


def without(*relays: Relay) -> list[RelayDoc]:
    gone = {relay.identity for relay in relays}
    return [doc for doc in DOCS if doc.identity not in gone]


def test_one_guard_is_chosen_and_kept(directory: Directory) -> None:
    guards = Guards([])
    first = choose(guards, directory)
    assert "Guard" in first.flags
    assert all(
        guards.choose(directory, Constraints(), {}, now=NOW, rng=Random(n)) == first for n in range(50)
    )
    assert guards.identities == [first.identity]


def test_it_is_kept_over_starts(directory: Directory) -> None:
    guards = Guards([])
    first = choose(guards, directory)
    again = Guards.from_state(guards.to_state())
    assert again.choose(directory, Constraints(), {}, now=NOW, rng=Random(2)) == first


def test_choice_follows_bandwidth(directory: Directory) -> None:
    counts: dict[bytes, int] = {}
    rng = Random(1)
    for _ in range(3000):
        guard = Guards([]).choose(directory, Constraints(), {}, now=NOW, rng=rng)
        counts[guard.identity] = counts.get(guard.identity, 0) + 1
    by_identity = {doc.identity: doc for doc in DOCS}
    assert all("Guard" in by_identity[identity].flags for identity in counts)
    heaviest = max(counts, key=lambda identity: counts[identity])
    assert (by_identity[heaviest].bandwidth or 0) > 15_000


def test_an_unreachable_guard_is_passed_over_and_come_back_to(directory: Directory) -> None:
    guards = Guards([])
    first = choose(guards, directory)
    failed_at = {first.identity: NOW}
    second = choose(guards, directory, failed_at)
    assert second != first
    assert choose(guards, directory, failed_at, now=NOW + RETRY_AFTER - 1) == second
    assert choose(guards, directory, failed_at, now=NOW + RETRY_AFTER) == first
    assert guards.identities == [first.identity, second.identity]


def test_a_network_down_does_not_use_up_guards(directory: Directory) -> None:
    """Whoever can make connections fail must not have us try guard after guard until it is theirs."""
    guards = Guards([])
    failed_at: dict[bytes, float] = {}
    for n in range(100):
        failed_at[choose(guards, directory, failed_at, now=NOW + n).identity] = NOW + n
    assert len(guards.identities) == PRIMARY_COUNT
    longest_ago = min(failed_at, key=lambda identity: failed_at[identity])
    assert choose(guards, directory, failed_at, now=NOW + 99).identity == longest_ago


def test_a_guard_that_left_the_consensus_is_replaced_and_come_back_to(directory: Directory) -> None:
    guards = Guards([])
    first = choose(guards, directory)
    second = choose(guards, directory_of(without(first)))
    assert second != first
    assert choose(guards, directory) == first
    assert guards.identities == [first.identity, second.identity]


@pytest.mark.parametrize("flag", ["Running", "Valid"])
def test_a_guard_not_running_or_valid_is_not_used(directory: Directory, flag: str) -> None:
    guards = Guards([])
    first = choose(guards, directory)
    changed = [
        replace(doc, flags=doc.flags.replace(f"{flag} ", "").removesuffix(f" {flag}"))
        if doc.identity == first.identity
        else doc
        for doc in DOCS
    ]
    assert choose(guards, directory_of(changed)) != first


def test_a_guard_keeps_its_place_without_the_guard_flag(directory: Directory) -> None:
    """guard-spec: what matters is that it was chosen, not that it would be chosen again."""
    guards = Guards([])
    first = choose(guards, directory)
    changed = [
        replace(doc, flags=doc.flags.replace("Guard ", "")) if doc.identity == first.identity else doc
        for doc in DOCS
    ]
    assert choose(guards, directory_of(changed)) == replace(first, flags=first.flags - {"Guard"})


def test_no_guard_at_all_is_told() -> None:
    nobody = [replace(doc, flags=doc.flags.replace("Guard ", "")) for doc in DOCS]
    with pytest.raises(NoGuard, match="not a Guard"):
        choose(Guards([]), directory_of(nobody))


def test_the_only_guard_is_tried_again_though_it_failed() -> None:
    only = next(doc for doc in DOCS if "Guard" in doc.flags)
    others = [replace(doc, flags=doc.flags.replace("Guard ", "")) for doc in DOCS if doc is not only]
    directory = directory_of([only, *others])
    guards = Guards([])
    first = choose(guards, directory)
    assert choose(guards, directory, {first.identity: NOW}) == first


def test_guards_share_no_subnet_unless_the_network_has_but_one() -> None:
    docs = [replace(doc, address=f"10.0.0.{n + 1}", ipv6=None) for n, doc in enumerate(DOCS)]
    directory = directory_of(docs)
    guards = Guards([])
    first = choose(guards, directory)
    assert choose(guards, directory, {first.identity: NOW}) == first
    one_subnet = Constraints(distinct_subnets=False)
    assert guards.choose(directory, one_subnet, {first.identity: NOW}, now=NOW, rng=Random(1)) != first


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"guards": None},
        {"guards": "x"},
        {"guards": {"fingerprint": "00" * 20}},
        {
            "guards": [
                None,
                1,
                "x",
                [],
                {},
                {"fingerprint": 7},
                {"fingerprint": "zz"},
                {"fingerprint": "00" * 19},
            ]
        },
    ],
)
def test_a_state_without_guards_is_a_fresh_start(state: dict[str, Any]) -> None:
    assert Guards.from_state(state).identities == []


def test_what_is_good_of_a_state_is_kept_once() -> None:
    good = {"fingerprint": "AB" * 20, "added_by": "a later version"}
    assert Guards.from_state({"guards": [None, good, good], "more": 1}).identities == [b"\xab" * 20]


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["guards", "x"]), _JSON | st.lists(st.fixed_dictionaries({"fingerprint": _JSON}))
    )
)
def test_any_json_gives_guards(state: dict[str, Any]) -> None:
    assert all(len(identity) == 20 for identity in Guards.from_state(state).identities)
