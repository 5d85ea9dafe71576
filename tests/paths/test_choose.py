"""Path choice: what must never be in a path, how often what may be is, and what NoPath says."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import frequencies
import network_docs as nd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from path_rules import broken_rules

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import REJECT_ALL, split_microdescs
from torkit.errors import NoPath, UsageError
from torkit.paths.choose import check_exit, choose_path, family_of, may_go_on
from torkit.paths.constraints import Constraints
from torkit.paths.guards import Guards
from torkit.paths.text import path_from_json, path_to_json
from torkit.testing.directory import RelayDoc, encode_microdescs
from torkit.testing.directory.consensus import WEIGHTS
from torkit.testing.encoding import bare64

EVEN = dict.fromkeys(WEIGHTS, 10000)


def make(docs: Iterable[RelayDoc], held: Iterable[RelayDoc] | None = None, **options: Any) -> Directory:
    """A directory of these relays that holds the microdescriptors of `held`, or of all."""
    microdescs = split_microdescs(encode_microdescs(docs if held is None else held))
    consensus = parse_consensus(nd.consensus(docs, nd.authorities(1), **options))
    return Directory(consensus, {digest: text for digest, text, _ in microdescs})


def relay(
    number: int,
    flags: str = "Fast Guard Running Stable V2Dir Valid",
    policy: str | None = None,
    **options: Any,
) -> RelayDoc:
    """A relay in a /16 of its own."""
    return RelayDoc(
        f"r{number}",
        bytes([number]) * 20,
        options.pop("address", f"{number}.1.1.1"),
        flags=flags,
        policy=policy,
        ntor_onion_key=bytes([number]) * 32,
        **options,
    )


GUARD, MIDDLE, EXIT = (
    relay(1),
    relay(2, "Fast Running Stable Valid"),
    relay(3, "Exit Fast Running Stable Valid", "accept 80,443"),
)
THREE = [GUARD, MIDDLE, EXIT]


def choose(directory: Directory, seed: int = 0, **constraints: Any) -> tuple[str, ...]:
    return tuple(
        one.nickname for one in choose_path(directory, Constraints(**constraints), random.Random(seed))
    )


def test_the_only_path_is_found() -> None:
    assert choose(make(THREE, weights=EVEN), port=443) == ("r1", "r2", "r3")


def test_no_path_counts_what_excluded_each_relay() -> None:
    with pytest.raises(NoPath) as caught:
        choose(make(THREE, weights=EVEN), port=25)
    assert str(caught.value) == "no exit among 3 relays (exit policy: 3)"
    with pytest.raises(NoPath, match=r"no exit among 3 relays \(no microdescriptor: 2, exit policy: 1\)"):
        choose(make(THREE, held=[GUARD], weights=EVEN), port=443)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"flags": "Exit Fast Stable Valid"}, "not Running and Valid"),
        ({"flags": "Exit Fast Running Stable"}, "not Running and Valid"),
        ({"flags": "BadExit Exit Fast Running Stable Valid"}, "BadExit"),
        ({"flags": "Exit Fast MiddleOnly Running Stable Valid"}, "MiddleOnly"),
        ({"policy": "reject 1-443"}, "exit policy"),
        ({"policy": None, "policy6": "accept 443"}, "exit policy"),
        ({"ntor_onion_key": b"short"}, "no usable microdescriptor"),
    ],
)
def test_relays_that_may_not_be_the_exit(broken: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoPath, match=f"no exit.*{reason}: [13]"):
        choose(make([GUARD, MIDDLE, replace(EXIT, **broken)], weights=EVEN), port=443)
    with pytest.raises(NoPath, match=reason):
        choose(make([GUARD, MIDDLE, replace(EXIT, **broken)], weights=EVEN), port=443, exit="r3")


@pytest.mark.parametrize("lacking", ["Guard", "Stable", "Fast", "V2Dir", "Valid", "Running"])
def test_a_guard_has_all_flags_of_a_guard(lacking: str) -> None:
    flags = " ".join(flag for flag in GUARD.flags.split() if flag != lacking)
    with pytest.raises(NoPath, match="no guard"):
        choose(make([replace(GUARD, flags=flags), MIDDLE, EXIT], weights=EVEN), port=443)


def test_middle_only_relay_is_a_middle() -> None:
    middle = replace(MIDDLE, flags="Fast Guard MiddleOnly Running Stable V2Dir Valid")
    directory = make([GUARD, middle, EXIT], weights=EVEN)
    assert choose(directory, port=443) == ("r1", "r2", "r3")
    with pytest.raises(NoPath, match="MiddleOnly"):
        choose(directory, port=443, guard="r2")


@pytest.mark.parametrize(
    ("policy", "policy6", "port", "is_ipv6", "message"),
    [
        (None, None, 443, False, "r3's exit policy allows no port"),
        (None, None, None, False, "r3's exit policy allows no port"),
        ("accept 80", None, 443, False, "r3's exit policy does not allow this port"),
        ("accept 80", None, 80, True, "r3's exit policy allows no port at IPv6 addresses"),
        ("accept 80", None, None, True, "r3's exit policy allows no port at IPv6 addresses"),
        ("accept 80", "accept 443", 80, True, "r3's exit policy does not allow this port at IPv6 addresses"),
        ("accept 80", None, 80, False, None),
        ("accept 80", None, None, False, None),
        (None, "accept 80", 80, True, None),
        (None, "accept 80", 80, False, None),  # a name may have such an address
        (None, "accept 80", None, False, None),
    ],
)
def test_an_exit_that_somebody_named_is_judged_by_its_policy(
    policy: str | None, policy6: str | None, port: int | None, is_ipv6: bool, message: str | None
) -> None:
    named = make([relay(3, EXIT.flags, policy, policy6=policy6)]).relay_at(0)
    assert named is not None
    if message is None:
        check_exit(named, port, is_ipv6=is_ipv6)
    else:
        with pytest.raises(NoPath) as caught:
            check_exit(named, port, is_ipv6=is_ipv6)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("protocols", "links"),
    [
        ("Conflux=1 FlowCtrl=1-2", True),
        ("Conflux=1 FlowCtrl=1", False),
        ("FlowCtrl=1-2", False),
        ("Conflux=2 FlowCtrl=2", False),
    ],
)
def test_linked_circuits_end_at_exits_that_can_link(protocols: str, links: bool) -> None:
    directory = make([GUARD, MIDDLE, replace(EXIT, protocols=protocols)], weights=EVEN)
    assert choose(directory, port=443) == ("r1", "r2", "r3")
    if links:
        assert choose(directory, port=443, links=True) == ("r1", "r2", "r3")
    else:
        with pytest.raises(NoPath, match="no exit"):
            choose(directory, port=443, links=True)


def test_ipv6_exits_are_chosen_by_their_ipv6_policy() -> None:
    exit6 = relay(4, EXIT.flags, policy6="accept 443")
    directory = make([*THREE, exit6], weights=EVEN)
    assert {choose(directory, n, port=443, ipv6=True)[2] for n in range(20)} == {"r4"}
    assert {choose(directory, n, port=443)[2] for n in range(20)} == {"r3"}
    assert {choose(directory, n)[2] for n in range(40)} == {"r3", "r4"}


def test_long_lived_ports_and_stable_want_stable_relays_where_there_are_such() -> None:
    hasty = relay(4, "Exit Fast Running Valid", "accept 22,443,6523", bandwidth=10**9)
    steady = replace(EXIT, policy="accept 22,443,6523")
    directory = make([GUARD, MIDDLE, steady, hasty], weights=EVEN)
    assert choose(directory, port=443)[2] == "r4"
    assert choose(directory, port=22)[2] == choose(directory, port=6523)[2] == "r3"
    assert choose(directory, port=443, stable=True)[2] == "r3"
    assert choose(make([GUARD, MIDDLE, hasty], weights=EVEN), port=22)[2] == "r4"


def test_relays_that_are_not_fast_are_a_last_resort() -> None:
    slow = relay(4, "Running Stable Valid", bandwidth=10**9)
    assert {choose(make([*THREE, slow], weights=EVEN), n, port=443)[1] for n in range(20)} == {"r2"}
    assert choose(make([GUARD, slow, EXIT], weights=EVEN), port=443)[1] == "r4"


@pytest.mark.parametrize(
    ("one", "other", "params", "is_family"),
    [
        ({"family": f"${EXIT.fingerprint}"}, {"family": f"${MIDDLE.fingerprint}"}, "", True),
        ({"family": "R3"}, {"family": f"${MIDDLE.fingerprint.lower()}~r2"}, "", True),
        ({"family": f"${EXIT.fingerprint}"}, {}, "", False),
        ({"family": f"${EXIT.fingerprint}"}, {"family": "$" + "AB" * 20}, "", False),
        ({"family": "r3"}, {"family": "r2"}, "use-family-lists=0", False),
        ({"family_ids": "a b"}, {"family_ids": "b c"}, "", True),
        ({"family_ids": "a"}, {"family_ids": "b"}, "", False),
        ({"family_ids": "a b"}, {"family_ids": "b c"}, "use-family-ids=0", False),
    ],
)
def test_families_are_mutual_lists_or_a_common_id(
    one: dict[str, Any], other: dict[str, Any], params: str, is_family: bool
) -> None:
    docs = [GUARD, replace(MIDDLE, **one), replace(EXIT, **other)]
    directory = make(docs, weights=EVEN, params=params)
    middle = directory.relay(MIDDLE.identity)
    assert middle is not None
    assert [one.nickname for one in family_of(directory, middle)] == ["r3"] * is_family
    if is_family:
        with pytest.raises(NoPath, match="same family: 1"):
            choose(directory, port=443)
    else:
        assert choose(directory, port=443) == ("r1", "r2", "r3")


def test_family_is_known_as_far_as_microdescriptors_are_held() -> None:
    docs = [replace(one, family=" ".join(f"${other.fingerprint}" for other in THREE)) for one in THREE]
    relay_held = make(docs, held=docs[:2]).relay(docs[0].identity)
    assert relay_held is not None
    assert [one.nickname for one in family_of(make(docs, held=docs[:2]), relay_held)] == ["r2"]
    assert [one.nickname for one in family_of(make(docs), relay_held)] == ["r2", "r3"]


@pytest.mark.parametrize(
    "same",
    [{"address": "3.1.255.1"}, {"ipv6": "[2001:db8:1::1]:9001"}],
)
def test_subnets_are_distinct_unless_switched_off(same: dict[str, Any]) -> None:
    exit_ = replace(EXIT, ipv6="[2001:db8:2::1]:9001")
    directory = make([GUARD, replace(MIDDLE, **same), exit_], weights=EVEN)
    with pytest.raises(NoPath, match="same subnet: 1"):
        choose(directory, port=443)
    assert choose(directory, port=443, distinct_subnets=False) == ("r1", "r2", "r3")
    assert choose(make([GUARD, replace(MIDDLE, address="3.2.1.1"), exit_], weights=EVEN), port=443)


def test_an_ipv6_address_that_only_the_microdescriptor_has_counts() -> None:
    """As by consensus methods below 28."""
    apart = make(THREE, weights=EVEN)
    texts = {digest: text + b"a [2001:db8:1::1]:9001\n" for digest, text in apart._microdescs.items()}
    assert choose(apart, port=443) == ("r1", "r2", "r3")
    with pytest.raises(NoPath, match="same subnet: 1"):
        choose(Directory(apart.consensus, texts), port=443)


def test_named_relays_need_no_flags_but_keep_the_rules() -> None:
    plain = relay(4, "Running Valid")
    directory = make([*THREE, plain, relay(5, EXIT.flags, "accept 80", address="4.1.2.3")], weights=EVEN)
    assert choose(directory, port=443, guard="r4")[0] == "r4"
    assert choose(directory, port=443, middle="$" + plain.fingerprint)[1] == "r4"
    with pytest.raises(NoPath, match="r5 cannot be the exit: exit policy"):
        choose(directory, port=443, exit="r5")
    with pytest.raises(NoPath, match="r5 cannot be the exit: same subnet"):
        choose(directory, port=80, guard="r4", exit="r5")
    with pytest.raises(NoPath, match="r4 cannot be the middle: already in the path"):
        choose(directory, port=80, guard="r4", middle="r4")
    with pytest.raises(NoPath, match="r4 cannot be the guard: excluded"):
        choose(directory, port=443, guard="r4", exclude=frozenset({"r4"}))
    with pytest.raises(UsageError, match="no relay nobody"):
        choose(directory, port=443, guard="nobody")


def test_one_of_several_entries_and_exits_is_chosen() -> None:
    exits = [relay(n, EXIT.flags, "accept 80,443") for n in (4, 5)]
    directory = make([*THREE, relay(6), *exits], weights=EVEN)
    chosen = {
        choose(directory, n, port=443, exits=frozenset({"r4", EXIT.fingerprint, "nobody"})) for n in range(60)
    }
    assert {path[2] for path in chosen} == {"r3", "r4"}
    assert {path[0] for path in chosen} == {"r1", "r6"}
    assert {choose(directory, n, port=443, entries=frozenset({"r6"}))[0] for n in range(20)} == {"r6"}
    with pytest.raises(NoPath, match=r"no exit among 6 relays \(exit policy: 3, excluded: 3\)"):
        choose(directory, port=443, exits=frozenset({"nobody"}))
    with pytest.raises(NoPath, match=r"no guard.*excluded: 2"):
        choose(directory, port=443, entries=frozenset({"nobody"}))


def in_countries(*countries: str) -> Directory:
    """A guard, a middle and an exit, r1 to r3, and then another of each; where each is, r1 first."""
    docs = [*THREE, relay(4), relay(5, MIDDLE.flags), relay(6, EXIT.flags, "accept 80,443")]
    where = {doc.address: country for doc, country in zip(docs, countries, strict=True)}
    directory = make(docs, weights=EVEN)
    return Directory(directory.consensus, directory._microdescs, where.get)


def drawn(directory: Directory, **names: set[str]) -> list[set[str]]:
    """Who is drawn for each position."""
    restrictions: dict[str, Any] = {option: frozenset(some) for option, some in names.items()}
    paths = [choose(directory, seed, port=443, **restrictions) for seed in range(60)]
    return [set(relays) for relays in zip(*paths, strict=True)]


def test_countries_stand_for_the_relays_in_them() -> None:
    directory = in_countries("aa", "bb", "cc", "bb", "??", "aa")
    guards, middles, exits = drawn(directory)
    assert (guards, exits) == ({"r1", "r4"}, {"r3", "r6"})
    assert middles > {"r2", "r5"}
    assert drawn(directory, exits={"{aa}"})[2] == {"r6"}
    assert drawn(directory, exits={"{AA}", "r3"})[2] == {"r3", "r6"}
    assert drawn(directory, entries={"{bb}"})[0] == {"r4"}
    assert "r5" in drawn(directory, exclude={"r1"})[1]
    assert drawn(directory, exclude={"{??}"}) == [guards, middles - {"r5"}, exits]


def test_who_excludes_a_country_excludes_what_may_be_there() -> None:
    """As C tor does unless told otherwise: r5 may be in any country."""
    directory = in_countries("aa", "aa", "cc", "bb", "??", "aa")
    guards, middles, exits = drawn(directory, exclude={"{bb}"})
    assert (guards, exits) == ({"r1"}, {"r3", "r6"})
    assert middles == {"r2", "r3", "r6"}


def test_a_country_without_a_relay_that_fits_is_no_path() -> None:
    directory = in_countries("aa", "bb", "cc", "bb", "??", "aa")
    for country in ("{zz}", "{bb}"):
        with pytest.raises(NoPath, match="no exit among 6 relays"):
            choose(directory, port=443, exits=frozenset({country}))


def test_countries_need_somebody_who_knows_them() -> None:
    directory = make(THREE, weights=EVEN)
    for option in ("entries", "exits", "exclude"):
        with pytest.raises(UsageError, match="nothing says where they are"):
            drawn(directory, **{option: {"{aa}"}})


def test_what_is_to_be_avoided_may_still_be_the_guard() -> None:
    directory = make([*THREE, relay(4, EXIT.flags, "accept 443")], weights=EVEN)
    avoid = frozenset({"r1", "r3"})
    assert {choose(directory, n, port=443, avoid=avoid) for n in range(20)} == {("r1", "r2", "r4")}


def test_a_guard_that_is_picked_goes_with_the_exit() -> None:
    directory = make([*THREE, relay(4)], weights=EVEN)
    by_name = {one.nickname: one for n in range(4) if (one := directory.relay_at(n))}
    asked: list[list[bool]] = []

    def pick(fits: Callable[[Relay], bool]) -> Relay:
        asked.append([fits(by_name[name]) for name in ("r1", "r2", "r3", "r4")])
        return by_name["r4"]

    constraints = Constraints(port=443, exclude=frozenset({"r1"}))
    path = choose_path(directory, constraints, random.Random(1), pick)
    assert [one.nickname for one in path] == ["r4", "r2", "r3"]
    assert asked == [[False, True, False, True]]
    choose_path(directory, Constraints(port=443, entries=frozenset({"r4"})), random.Random(1), pick)
    assert asked[1] == [False, False, False, True]


def test_an_exit_with_which_no_guard_goes_is_left_for_another() -> None:
    """In a network whose only guards are one relay and its family."""
    exits = [relay(n, EXIT.flags, "accept 443", address=f"1.1.{n}.1", bandwidth=10**6) for n in (4, 5)]
    directory = make([*THREE, *exits], weights=EVEN)
    assert {choose(directory, n, port=443) for n in range(20)} == {("r1", "r2", "r3")}
    with pytest.raises(NoPath, match=r"no guard .*same subnet: 1"):
        choose(directory, port=443, exit="r4")
    with pytest.raises(NoPath, match=r"no guard .*same subnet: 1"):
        choose(directory, port=443, exclude=frozenset({"r3"}))


def test_a_nickname_of_two_relays_must_be_a_fingerprint() -> None:
    directory = make([*THREE, replace(relay(4), nickname="r1")], weights=EVEN)
    with pytest.raises(UsageError, match="2 relays are called r1") as caught:
        choose(directory, port=443, guard="r1")
    assert caught.value.hint is not None


def test_excluded_relays_are_never_chosen() -> None:
    directory = make([*THREE, relay(4), relay(5, EXIT.flags, "accept 443")], weights=EVEN)
    chosen = {name for n in range(60) for name in choose(directory, n, port=443, exclude=frozenset({"r4"}))}
    assert chosen == {"r1", "r2", "r3", "r5"}
    with pytest.raises(NoPath, match="excluded: 2"):
        choose(directory, port=443, exclude=frozenset({"r3", EXIT.fingerprint, "r5"}))


def test_when_nearly_all_bandwidth_conflicts_the_rest_is_still_found() -> None:
    big = relay(4, MIDDLE.flags, address="3.1.9.9", bandwidth=2**32 - 1)
    directory = make([GUARD, replace(MIDDLE, bandwidth=1), EXIT, big], weights=EVEN)
    assert {choose(directory, n, port=443) for n in range(5)} == {("r1", "r2", "r3")}


def test_an_unmeasured_network_chooses_evenly() -> None:
    docs = [replace(doc, bandwidth=0) for doc in (*THREE, relay(4, MIDDLE.flags))]
    counts = Counter(choose(make(docs), n, port=443)[1] for n in range(200))
    assert 60 < counts["r2"] < 140
    assert counts["r2"] + counts["r4"] == 200


def test_relays_without_weight_in_a_position_are_not_chosen_there() -> None:
    docs = [*THREE, relay(4, "Exit Fast Guard Running Stable V2Dir Valid", "accept 443")]
    chosen = [
        choose(make(docs, weights=EVEN | {"Wgd": 0, "Wmd": 0, "Wme": 0}), n, port=443) for n in range(40)
    ]
    assert {path[2] for path in chosen} == {"r3", "r4"}
    assert {path[:2] for path in chosen} == {("r1", "r2")}


def test_frequencies_follow_the_weights_in_every_position() -> None:
    """With families and subnets in common, and a scale that is not the usual one."""
    docs = [
        replace(doc, address=f"{10 + n // 6}.7.0.{n % 6 + 1}", ipv6=None)
        for n, doc in enumerate(nd.relays(240, seed=3))
    ]
    weights = {name: value // 10 for name, value in WEIGHTS.items()} | {"Wgd": 400, "Wmd": 300, "Wme": 250}
    directory = make(docs, weights=weights | {"Wdb": 700, "Wgb": 900}, params="bwweightscale=1000")
    rng = random.Random(2)
    paths = [choose_path(directory, Constraints(port=443), rng) for _ in range(50_000)]
    p_values = frequencies.p_values(directory, paths, lambda one: one.policy.accepts(443))
    assert min(p_values.values()) > 0.001, p_values


def test_the_test_of_frequencies_sees_wrong_weights() -> None:
    docs = nd.relays(240, seed=3)
    paths_in, measured_by = make(docs), make(docs, weights=WEIGHTS | {"Wmm": 8000})
    rng = random.Random(2)
    paths = [choose_path(paths_in, Constraints(port=443), rng) for _ in range(10_000)]
    p_values = frequencies.p_values(measured_by, paths, lambda one: one.policy.accepts(443))
    assert p_values["middle"] < 1e-4
    assert min(p_values["guard"], p_values["exit"]) > 0.001


def tempting_relays() -> list[RelayDoc]:
    """A network in which every rule can be broken: much in common, and flags that forbid a position."""
    docs = nd.relays(300)
    for n, doc in enumerate(docs):
        if n % 7 == 0 and doc.policy:
            doc.flags = f"BadExit {doc.flags}"
        if n % 11 == 0:
            doc.flags = f"{doc.flags} MiddleOnly"
        if n % 13 == 0:
            doc.flags = doc.flags.replace("Fast ", "")
        if n % 5 == 0:
            doc.family_ids = f"ed25519:{bare64(bytes([n // 5 % 3]) * 32)}"
        if n % 8 < 2:
            doc.address = f"10.{n % 3}.0.{n % 251 + 1}"
            doc.ipv6 = f"[2001:db8:{n:x}::1]:9001"
    return docs


def test_ten_thousand_paths_obey_every_rule() -> None:
    directory, rng = make(tempting_relays()), random.Random(7)
    guards = Guards()
    guards.update(directory, now=nd.NOW, rng=rng)

    def pick_guard(fits: Callable[[Relay], bool]) -> Relay:
        return guards.choose(directory, fits, now=nd.NOW, rng=rng)

    primary = [guard.identity for guard in guards.primary]
    assert len(primary) == 3
    paths = [choose_path(directory, Constraints(port=443), rng, pick_guard) for _ in range(5000)]
    assert broken_rules(directory, paths, port=443, guards=primary) == []
    paths = [choose_path(directory, Constraints(port=443), rng) for _ in range(5000)]
    assert broken_rules(directory, paths, port=443) == []
    assert any("MiddleOnly" in middle.flags for _, middle, _ in paths)
    assert any("BadExit" in middle.flags for _, middle, _ in paths)


def test_broken_rules_are_noticed() -> None:
    """One by one, of paths that were good."""
    directory = make(tempting_relays())
    relays = [one for place in range(len(directory)) if (one := directory.relay_at(place)) is not None]
    path = choose_path(directory, Constraints(port=443), random.Random(7))
    guard, middle, exit_ = path
    bad_paths = [
        ((guard, guard, exit_), "relays, families, subnets"),
        ((guard, middle._replace(address=exit_.address), exit_), "subnets"),
        ((guard, middle._replace(flags=middle.flags - {"Running"}), exit_), "relays can be used"),
        ((guard._replace(flags=guard.flags - {"Guard"}), middle, exit_), "the first is a guard"),
        ((guard._replace(flags=guard.flags | {"MiddleOnly"}), middle, exit_), "no end is MiddleOnly"),
        ((guard, middle, exit_._replace(flags=exit_.flags | {"BadExit"})), "the exit is not bad"),
        ((guard, middle, exit_._replace(policy=REJECT_ALL)), "the exit accepts the port"),
    ]
    for bad, rule in bad_paths:
        assert {said.partition(":")[0] for said in broken_rules(directory, [bad], port=443)} >= {rule}
    (only,) = broken_rules(directory, [path], port=443, guards=[middle.identity])
    assert only.startswith("the guard is ours")
    for shared in ("family", "family_ids"):
        one = next(one for one in relays if getattr(one, shared))
        other = next(two for two in relays if getattr(two, shared) == getattr(one, shared) and two is not one)
        said = broken_rules(directory, [(one, other, exit_)], port=443)
        assert any(rule.startswith("relays, families, subnets") for rule in said), shared


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_have_a_range(port: int) -> None:
    with pytest.raises(UsageError, match="port"):
        choose_path(DIRECTORY, Constraints(port=port), random.Random(0))


# Paths as JSON.

DIRECTORY = make(THREE, weights=EVEN)
PATH = choose_path(DIRECTORY, Constraints(port=443), random.Random(0))


def test_path_round_trips_as_one_line_of_json() -> None:
    line = path_to_json(PATH)
    assert "\n" not in line
    assert path_from_json(line, DIRECTORY) == PATH
    first = json.loads(line)["path"][0]
    assert first["nickname"] == "r1"
    assert first["fingerprint"] == GUARD.fingerprint
    assert first["address"] == "1.1.1.1:9001"
    assert len(first["ed25519"]) == 43


def test_only_fingerprints_are_needed() -> None:
    line = json.dumps({"path": [{"fingerprint": f"${one.fingerprint.lower()}"} for one in PATH]})
    assert path_from_json(line, DIRECTORY) == PATH


@pytest.mark.parametrize(
    ("hop", "error", "reason"),
    [
        ({"fingerprint": "AB" * 20}, NoPath, "not in the directory"),
        (
            {"fingerprint": GUARD.fingerprint, "ed25519": bare64(b"\3" * 32)},
            NoPath,
            "another Ed25519 identity",
        ),
        ({"fingerprint": GUARD.fingerprint, "ed25519": "AA"}, UsageError, "base64"),
        ({"fingerprint": "AB"}, UsageError, "40 hexadecimal"),
        ({"fingerprint": 3}, UsageError, "hop 1 of the path: a fingerprint expected"),
        ({}, UsageError, "a fingerprint expected"),
        (3, UsageError, "a fingerprint expected"),
    ],
)
def test_hops_that_cannot_be(hop: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        path_from_json(json.dumps({"path": [hop]}), DIRECTORY)


def test_a_relay_without_microdescriptor_is_said_to_be_so() -> None:
    with pytest.raises(NoPath, match="no usable microdescriptor yet"):
        path_from_json(path_to_json(PATH), make(THREE, held=[GUARD], weights=EVEN))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "[]",
        "{}",
        '{"path": []}',
        '{"path": 1}',
        "[" * 10_000,
        "x" * 100_000,
        json.dumps({"path": [{"fingerprint": GUARD.fingerprint}] * 2}),
        json.dumps({"path": [{"fingerprint": GUARD.fingerprint}] * 9}),
    ],
)
def test_lines_that_are_no_path(line: str) -> None:
    with pytest.raises(UsageError):
        path_from_json(line, DIRECTORY)


@given(st.text(max_size=60))
def test_random_lines_raise_only_usage_errors(line: str) -> None:
    with pytest.raises(UsageError):
        path_from_json(line, DIRECTORY)


# --- Paths in use --------------------------------------------------------------------------------------


def test_a_path_may_go_on_while_all_its_relays_are_listed_as_usable() -> None:
    path = choose_path(make(THREE), Constraints(port=80), random.Random(0))
    assert may_go_on(make(THREE), path)
    assert may_go_on(make(THREE, held=[]), path)  # microdescriptors are on their way
    for place, doc in enumerate(THREE):
        others = [one for one in THREE if one is not doc]
        assert not may_go_on(make(others), path)
        for flag in ("Running", "Valid"):
            assert not may_go_on(make([*others, replace(doc, flags=doc.flags.replace(flag, ""))]), path)
        bad_exit = replace(doc, flags=f"BadExit {doc.flags}")
        assert may_go_on(make([*others, bad_exit]), path) is (place < 2)
