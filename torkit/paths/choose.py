"""Choose the relays of a path: a pure function of directory, constraints and randomness.

The exit is chosen first, by its policy; then the guard, which the caller may pick so that it goes with that
exit; then the middle. Each is drawn by bandwidth, weighted for its position, among the relays that fit there.
A draw that conflicts with a relay already chosen is drawn again. That gives the same distribution as a draw
among the relays without a conflict, and needs no list of these. path-spec, "Path selection and constraints".
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from random import Random
from typing import NamedTuple

from torkit.directory.directory import Directory, Relay
from torkit.directory.positions import Position, flags_refusal
from torkit.directory.steps import Steps, complete
from torkit.errors import NoPath, UsageError
from torkit.paths.constraints import Constraints, excluded_places, places_of

# Subprotocols of exits that can link circuits: proposal 329, and the congestion control that it stands on.
LINKING = (("Conflux", 1), ("FlowCtrl", 2))

# Implementation limits.

MAX_DRAWS = 64  # before listing what is left: enough unless nearly all bandwidth conflicts
MAX_EXITS = 16  # exits tried before we conclude that no guard fits any of them
MAX_TABLES = 64  # kinds of exits remembered per directory; each takes about 100 kB on the real network
LINK_STEP = 100  # exits that are asked in one step whether they can link

PATH = (Position.GUARD, Position.MIDDLE, Position.EXIT)


class _Table(NamedTuple):
    """The candidates for a position: their places in the consensus, and the running sums of their weights."""

    indexes: "array[int]"
    sums: "array[float]"


# Picks a guard that passes the given test, which tells whether a relay goes with the rest of the path.
PickGuard = Callable[[Callable[[Relay], bool]], Relay]


def choose_path(
    directory: Directory, constraints: Constraints, rng: Random, pick_guard: PickGuard | None = None
) -> tuple[Relay, Relay, Relay]:
    """Returns a guard, a middle and an exit that fit `constraints`.

    `rng` is a SystemRandom, except in tests. A path has no relay, family or (unless switched off)
    subnet twice. Where no fitting relay is Fast and, if wanted, Stable, relays without
    these two flags are taken, since small networks have few (as in C tor). Raises NoPath, which says what
    excluded the candidates; what `pick_guard` raises; UsageError for a port out of range, and for a name that
    no relay has or several have.
    """
    if constraints.port is not None and not 0 < constraints.port < 65536:
        raise UsageError(f"port {constraints.port} is not from 1 to 65535")
    names = {
        Position.GUARD: constraints.guard,
        Position.MIDDLE: constraints.middle,
        Position.EXIT: constraints.exit,
    }
    excluded = excluded_places(directory, constraints)
    named: dict[Position, Relay] = {}
    for position, name in names.items():
        if name is not None:
            named[position] = _named_relay(directory, position, name, constraints, excluded, named.values())
    avoided = excluded | places_of(directory, constraints.avoid)

    def draw(position: Position, unwanted: set[int]) -> Relay:
        return _draw(directory, position, constraints, unwanted, list(chosen.values()), rng)

    chosen = dict(named)
    guardless: set[int] = set()  # exits with which no guard goes
    failure: NoPath | None = None
    while Position.GUARD not in chosen:
        try:
            if Position.EXIT not in named:
                chosen.pop(Position.EXIT, None)
                chosen[Position.EXIT] = draw(Position.EXIT, avoided | guardless)
            if pick_guard is None:
                chosen[Position.GUARD] = draw(Position.GUARD, excluded)
            else:
                others = list(chosen.values())
                chosen[Position.GUARD] = pick_guard(partial(goes_with, directory, constraints, others))
        except NoPath as error:
            failure = failure or error
            if Position.EXIT in named or Position.EXIT not in chosen or len(guardless) == MAX_EXITS:
                raise failure from None
            guardless.add(_index_of(directory, chosen[Position.EXIT].fingerprint))
    for position in (Position.EXIT, Position.MIDDLE):
        if position not in chosen:
            chosen[position] = draw(position, avoided)
    guard, middle, exit_ = (chosen[position] for position in PATH)
    return guard, middle, exit_


def prepare(directory: Directory) -> Steps[None]:
    """Make the tables of most paths in steps, and of most legs of linked circuits.

    Else the first path of a new directory, and the first look at the share of exits that can link, make all
    at once.
    """
    for position in PATH:
        _table(directory, position, Constraints(port=443), relaxed=False)
        yield
    if directory.consensus.param("cfx_enabled"):
        linking = yield from _linking_in_steps(directory)
        directory.memo(LINKING_KEY, lambda: linking, MAX_TABLES)
        for position in PATH if linking else ():
            _table(directory, position, Constraints(port=443, stable=True, links=True), relaxed=False)
            yield


def draw_middle(
    directory: Directory, constraints: Constraints, unwanted: Iterable[bytes], rng: Random
) -> Relay:
    """Returns a relay for a place in the middle, drawn by bandwidth, none of the identities `unwanted`.

    Families and subnets do not count: for paths of onion circuits (vanguards-spec). Raises NoPath.
    """
    relays = directory.consensus.relays
    excluded = excluded_places(directory, constraints)
    excluded |= {place for one in unwanted if (place := relays.index_of(one)) is not None}
    return _draw(directory, Position.MIDDLE, constraints, excluded, [], rng)


def goes_with(directory: Directory, constraints: Constraints, others: Sequence[Relay], relay: Relay) -> bool:
    """Returns whether `relay` may be the guard of a path with all of `others`."""
    if constraints.exclude or constraints.entries:
        index = directory.consensus.relays.index_of(relay.identity)
        if index in excluded_places(directory, constraints):
            return False
        if constraints.entries and index not in places_of(directory, constraints.entries):
            return False
    return _conflict(directory, relay, others, constraints) is None


def may_go_on(directory: Directory, path: Sequence[Relay]) -> bool:
    """Returns whether a circuit through these relays may take new streams.

    It may while the consensus lists all of them, and the last one without BadExit. (C tor looks at the last
    one only.)
    """
    relays = directory.consensus.relays
    flags: frozenset[str] = frozenset()
    for relay in path:
        place = relays.index_of(relay.identity)
        flags = frozenset() if place is None else relays.flags[place]
        if not {"Running", "Valid"} <= flags:
            return False
    return "BadExit" not in flags


def check_exit(relay: Relay, port: int | None, *, is_ipv6: bool = False) -> None:
    """Check that the exit of a path that somebody named allows streams to `port`, to IPv6 if `is_ipv6`.

    Without a port, the exit has to allow any, as look-ups need. Raises NoPath.
    """
    policies = (relay.policy6,) if is_ipv6 else (relay.policy, relay.policy6)
    where = " at IPv6 addresses" if is_ipv6 else ""
    if all(policy.rejects_all for policy in policies):
        hint = "end the path with another relay"
        raise NoPath(f"{relay.nickname}'s exit policy allows no port{where}", hint=hint)
    if port is None or any(policy.accepts(port) for policy in policies):
        return
    raise NoPath(
        f"{relay.nickname}'s exit policy does not allow this port{where}",
        hint=f"torkit relays {'--exit-port6' if is_ipv6 else '--exit-port'} PORT lists exits that do",
    )


def _named_relay(
    directory: Directory,
    position: Position,
    name: str,
    constraints: Constraints,
    excluded: set[int],
    chosen: Iterable[Relay],
) -> Relay:
    index = _index_of(directory, name)
    refusal = _refusal(directory, index, position, constraints, is_named=True)
    relay = directory.relay_at(index)
    if relay is None:
        refusal = refusal or "no usable microdescriptor"
    elif index in excluded:
        refusal = "excluded"
    else:
        refusal = refusal or _conflict(directory, relay, list(chosen), constraints)
    if refusal or relay is None:
        raise NoPath(f"{name} cannot be the {position.name.lower()}: {refusal}")
    return relay


def _index_of(directory: Directory, name: str) -> int:
    indexes = directory.indexes_of(name)
    if not indexes:
        raise UsageError(f"no relay {name} in the directory")
    if len(indexes) > 1:
        raise UsageError(f"{len(indexes)} relays are called {name}", hint="name it by its fingerprint")
    return indexes[0]


def _draw(
    directory: Directory,
    position: Position,
    constraints: Constraints,
    excluded: set[int],
    chosen: list[Relay],
    rng: Random,
) -> Relay:
    tables = [_table(directory, position, constraints, relaxed=False)]
    for table in tables:
        for _ in range(MAX_DRAWS if table.indexes else 0):
            index = table.indexes[_pick(table.sums, rng)]
            if index not in excluded:
                relay = directory.relay_at(index)
                if relay is not None and _conflict(directory, relay, chosen, constraints) is None:
                    return relay
        fitting = _without_conflicts(directory, table, constraints, excluded, chosen)
        if fitting.indexes:
            relay = directory.relay_at(fitting.indexes[_pick(fitting.sums, rng)])
            if relay is not None:
                return relay
        if len(tables) == 1:
            tables.append(_table(directory, position, constraints, relaxed=True))
    raise NoPath(_explain(directory, position, constraints, excluded, chosen))


def _pick(sums: "array[float]", rng: Random) -> int:
    return min(bisect_right(sums, rng.random() * sums[-1]), len(sums) - 1)


def _table(directory: Directory, position: Position, constraints: Constraints, *, relaxed: bool) -> _Table:
    """Returns the candidates for a position, whatever else is in the path. The directory remembers them."""
    exit_key = (constraints.port, constraints.ipv6, constraints.links) if position is Position.EXIT else None
    wanted = _wanted(position, constraints)
    needs_stable = constraints.needs_stable
    key = (position, needs_stable, relaxed, exit_key, wanted)

    def make() -> _Table:
        flags = directory.consensus.relays.flags
        allowed = {
            one
            for one in set(flags)
            if flags_refusal(one, position, needs_stable=needs_stable, is_relaxed=relaxed) is None
        }
        held = directory.held
        places = directory.exits if position is Position.EXIT else range(len(directory))
        fits = [place for place in places if flags[place] in allowed and held[place]]
        if wanted:
            chosen = places_of(directory, wanted)
            fits = [place for place in fits if place in chosen]
        if position is Position.EXIT:
            fits = [place for place in fits if _exits_to(directory, place, constraints)]
        return _weighted(directory, position, fits)

    table: _Table = directory.memo(key, make, MAX_TABLES)
    return table


def _wanted(position: Position, constraints: Constraints) -> frozenset[str]:
    """Returns the names that the user allows in this position; no names where any relay is allowed."""
    wanted = {Position.GUARD: constraints.entries, Position.EXIT: constraints.exits}
    return wanted.get(position, frozenset())


def _weighted(directory: Directory, position: Position, indexes: list[int]) -> _Table:
    """Keep relays that have weight. Where none has, as in a network not yet measured, all count alike."""
    weights = directory.weights(position)
    weighty = [index for index in indexes if weights[index] > 0]
    if weighty:
        return _Table(array("I", weighty), array("d", accumulate(map(weights.__getitem__, weighty))))
    return _Table(array("I", indexes), array("d", accumulate(1.0 for _ in indexes)))


def _without_conflicts(
    directory: Directory, table: _Table, constraints: Constraints, excluded: set[int], chosen: list[Relay]
) -> _Table:
    """Returns the candidates that conflict with nothing. Slower than another draw, and sure to find one."""
    fitting, weights = array("I"), array("d")
    before = 0.0
    for index, after in zip(table.indexes, table.sums, strict=True):
        relay = None if index in excluded else directory.relay_at(index)
        if relay is not None and _conflict(directory, relay, chosen, constraints) is None:
            fitting.append(index)
            weights.append(after - before)
        before = after
    return _Table(fitting, array("d", accumulate(weights)))


def _explain(
    directory: Directory,
    position: Position,
    constraints: Constraints,
    excluded: set[int],
    chosen: list[Relay],
) -> str:
    counts: Counter[str] = Counter()
    names = _wanted(position, constraints)
    wanted = places_of(directory, names)
    for index in range(len(directory)):
        reason = _refusal(directory, index, position, constraints, is_relaxed=True)
        if reason is None and (index in excluded or (names and index not in wanted)):
            reason = "excluded"
        if reason is None:
            relay = directory.relay_at(index)
            reason = "no usable microdescriptor"
            if relay is not None:
                reason = _conflict(directory, relay, chosen, constraints) or "no weight"
        counts[reason] += 1
    why = ", ".join(f"{reason}: {count}" for reason, count in counts.most_common())
    return f"no {position.name.lower()} among {len(directory)} relays ({why})"


# The rules. Each returns the reason that excludes a relay, or None.


def _refusal(
    directory: Directory,
    index: int,
    position: Position,
    constraints: Constraints,
    *,
    is_relaxed: bool = False,
    is_named: bool = False,
) -> str | None:
    """Returns why the relay at this place in the consensus does not fit a position, or None if it fits."""
    flags = directory.consensus.relays.flags[index]
    refusal = flags_refusal(
        flags, position, needs_stable=constraints.needs_stable, is_relaxed=is_relaxed, is_named=is_named
    )
    if refusal is None and not directory.has_microdesc(index):
        return "no microdescriptor"
    if refusal is None and position is Position.EXIT and not _exits_to(directory, index, constraints):
        return "exit policy"
    return refusal


def _exits_to(directory: Directory, index: int, constraints: Constraints) -> bool:
    if constraints.links and index not in _linking(directory):
        return False
    policy, policy6 = directory.exit_policies_at(index)
    if constraints.port is None:
        return not (policy.rejects_all and policy6.rejects_all)
    return (policy6 if constraints.ipv6 else policy).accepts(constraints.port)


def can_link(directory: Directory, index: int) -> bool:
    """Returns whether the relay at this place in the consensus can be the exit of linked circuits."""
    protocols = directory.consensus.relays[index].protocols
    return all(protocols.supports(name, version) for name, version in LINKING)


LINKING_KEY = ("linking",)  # of what a directory remembers


def _linking(directory: Directory) -> frozenset[int]:
    """Returns the places of the exits that can link circuits. The directory remembers them."""
    linking: frozenset[int] = directory.memo(
        LINKING_KEY, lambda: complete(_linking_in_steps(directory)), MAX_TABLES
    )
    return linking


def _linking_in_steps(directory: Directory) -> Steps[frozenset[int]]:
    linking = set()
    for number, place in enumerate(directory.exits):
        if can_link(directory, place):
            linking.add(place)
        if number % LINK_STEP == 0:
            yield
    return frozenset(linking)


def linking_share(directory: Directory) -> float:
    """Returns the share of exits that can link circuits, from 0 to 1, by number (as C tor counts)."""

    def count() -> float:
        flags, linking = directory.consensus.relays.flags, _linking(directory)
        exits = [place for place in directory.exits if "BadExit" not in flags[place]]
        return sum(place in linking for place in exits) / len(exits) if exits else 0.0

    share: float = directory.memo(("linking share",), count, MAX_TABLES)
    return share


def _conflict(
    directory: Directory, relay: Relay, chosen: Sequence[Relay], constraints: Constraints
) -> str | None:
    """Returns why `relay` may not be in one path with the relays already chosen, or None if it may."""
    for other in chosen:
        if relay.identity == other.identity:
            return "already in the path"
        if _in_one_family(directory, relay, other):
            return "same family"
        if constraints.distinct_subnets and not relay.networks.isdisjoint(other.networks):
            return "same subnet"
    return None


def family_of(directory: Directory, relay: Relay) -> list[Relay]:
    """Returns the other relays of a family, with none of which the relay is ever in one path.

    Both relays have to name each other, so only relays whose microdescriptors are held can be found.
    """
    indexes = {index for name in relay.family for index in directory.indexes_of(name)}
    if relay.family_ids:
        indexes.update(directory.indexes_with_family_ids())
    others = (directory.relay_at(index) for index in sorted(indexes))
    return [
        one
        for one in others
        if one and one.identity != relay.identity and _in_one_family(directory, relay, one)
    ]


def _in_one_family(directory: Directory, one: Relay, other: Relay) -> bool:
    """Returns whether each relay lists the other, or both are certified members of a family.

    Proposal 321, "Client behavior".
    """
    param = directory.consensus.param
    if not one.family_ids.isdisjoint(other.family_ids) and param("use-family-ids"):
        return True
    return (
        bool(one.family and other.family)
        and _lists(one, other)
        and _lists(other, one)
        and bool(param("use-family-lists"))
    )


def _lists(one: Relay, other: Relay) -> bool:
    return f"${other.fingerprint}" in one.family or other.nickname.lower() in one.family
