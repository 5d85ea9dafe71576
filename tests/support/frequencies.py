"""How often each relay should stand in each position of many paths: a second opinion, without torkit.paths.

Expected counts follow from what was drawn before: a guard's chance, given the exits that came, is its weight
among the guards that go with each. So relays that conflict, which shift these chances, do not blur the test.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from math import erfc, sqrt

from torkit.directory.directory import Directory, Relay

Weights = dict[bytes, float]  # by identity


def position_weights(directory: Directory, letter: str, fits: Callable[[Relay], bool]) -> Weights:
    """Bandwidth times Wxx over bwweightscale, of the relays that fit. path-spec, "Path selection"."""
    factors = directory.consensus.bandwidth_weights
    scale = directory.consensus.params.get("bwweightscale", 10000)
    weights = {}
    for place in range(len(directory)):
        relay = directory.relay_at(place)
        if relay is None or not fits(relay):
            continue
        is_guard, is_exit = "Guard" in relay.flags, "Exit" in relay.flags and "BadExit" not in relay.flags
        kind = {(True, True): "d", (True, False): "g", (False, True): "e", (False, False): "m"}[
            is_guard, is_exit
        ]
        weight = relay.bandwidth * factors.get(f"W{letter}{kind}", 0) / scale
        if "V2Dir" in relay.flags:
            weight *= factors[f"W{kind}b"] / scale
        if weight > 0:
            weights[relay.identity] = weight
    return weights


def conflicts(directory: Directory) -> dict[bytes, set[bytes]]:
    """For each relay those that may not be in a path with it, itself included."""
    relays = [relay for place in range(len(directory)) if (relay := directory.relay_at(place)) is not None]
    sharing = defaultdict(set)
    named = {f"${relay.fingerprint}": relay for relay in relays}
    by_nickname = defaultdict(list)
    for relay in relays:
        by_nickname[relay.nickname.lower()].append(relay)
        for shared in (*relay.networks, *relay.family_ids, relay.identity):
            sharing[shared].add(relay.identity)
    listed = {
        relay.identity: {
            other.identity
            for name in relay.family
            for other in ([named[name]] if name in named else by_nickname.get(name, []))
        }
        for relay in relays
    }
    return {
        relay.identity: set().union(
            *(sharing[shared] for shared in (*relay.networks, *relay.family_ids, relay.identity)),
            {other for other in listed[relay.identity] if relay.identity in listed[other]},
        )
        for relay in relays
    }


def expected(weights: Weights, others: Sequence[Sequence[bytes]], apart: dict[bytes, set[bytes]]) -> Weights:
    """How often each of `weights` should be drawn, once beside each of `others`."""
    total = sum(weights.values())
    everybody = 0.0  # what each would have, of its weight, if it conflicted with nobody
    missed: dict[bytes, float] = defaultdict(float)
    for beside, times in Counter(map(tuple, others)).items():
        blocked = {one for other in beside for one in apart[other] if one in weights}
        share = times / (total - sum(weights[one] for one in blocked))
        everybody += share
        for one in blocked:
            missed[one] += share
    return {one: weight * (everybody - missed[one]) for one, weight in weights.items()}


def chi_squared_p(counts: Counter[bytes], wanted: Weights) -> float:
    """How probable counts as far from what is wanted are. Relays seldom drawn are taken together.

    Wilson and Hilferty's approximation, good to a few per cent from 30 degrees of freedom.
    """
    assert set(counts) <= {one for one, times in wanted.items() if times > 0}
    bins: list[tuple[int, float]] = []
    drawn, times = 0, 0.0
    for one in sorted(wanted, key=wanted.__getitem__):
        drawn, times = drawn + counts[one], times + wanted[one]
        if times >= 8:
            bins.append((drawn, times))
            drawn, times = 0, 0.0
    chi_squared = sum((drawn - times) ** 2 / times for drawn, times in bins)
    freedom = len(bins) - 1
    z = ((chi_squared / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / sqrt(2 / (9 * freedom))
    return erfc(z / sqrt(2)) / 2


def p_values(
    directory: Directory, paths: Sequence[tuple[Relay, Relay, Relay]], accepts: Callable[[Relay], bool]
) -> dict[str, float]:
    """For each position, how probable frequencies as far from the weights as those of `paths` are."""
    apart = conflicts(directory)

    def is_fast(relay: Relay) -> bool:
        return {"Fast", "Running", "Valid"} <= relay.flags

    guards = position_weights(
        directory, "g", lambda r: is_fast(r) and {"Guard", "Stable", "V2Dir"} <= r.flags
    )
    middles = position_weights(directory, "m", is_fast)
    exits = position_weights(directory, "e", lambda r: is_fast(r) and "BadExit" not in r.flags and accepts(r))
    ids = [tuple(relay.identity for relay in path) for path in paths]
    return {
        "exit": chi_squared_p(Counter(e for _, _, e in ids), expected(exits, [() for _ in ids], apart)),
        "guard": chi_squared_p(
            Counter(g for g, _, _ in ids), expected(guards, [(e,) for _, _, e in ids], apart)
        ),
        "middle": chi_squared_p(
            Counter(m for _, m, _ in ids), expected(middles, [(g, e) for g, _, e in ids], apart)
        ),
    }
