"""The circuits at hand: found by isolation, with work that does not grow with how many others there are."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from served import ACCEPT_ALL

from torkit.net.circuit.linked import LinkedCircuit
from torkit.net.circuits.purpose import LOOK_UP, ExitTo, Need, Shared
from torkit.net.circuits.shelves import MAX_DIRTINESS, Dirty, Entry, Shelves, Worn

WEB = ExitTo(80)


class FakeCircuit:
    """What shelves look at."""

    error = None
    has_room = True
    exit = SimpleNamespace(identity=b"exit", policy=ACCEPT_ALL, policy6=ACCEPT_ALL)


def entry_of(purpose: Shared = WEB) -> Entry:
    return Entry(cast(Any, FakeCircuit()), purpose, expires_at=1000.0)


def put_up(shelves: Shelves, *keys: Any) -> list[Entry]:
    """Clean circuits, each given to the request of one isolation unless that is None."""
    entries = []
    for number, key in enumerate(keys):
        entry = entry_of()
        shelves.add(entry)
        entries.append(entry)
        if key is not None:
            assert shelves.claim(entry, Need(WEB, key), now=float(number))
    return entries


@pytest.mark.parametrize("count", [10, 8000])
def test_a_circuit_is_found_without_a_look_at_every_other(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search among 8,000 identities took 58 % of the client's time."""
    shelves = Shelves()
    entries = put_up(shelves, *range(count), None)
    looks: list[Entry] = []
    serves = Entry.serves

    def look(entry: Entry, need: Need, now: float) -> bool:
        looks.append(entry)
        return serves(entry, need, now)

    monkeypatch.setattr(Entry, "serves", look)
    assert shelves.find(Need(WEB, 3), now=10.0) is entries[3]
    assert shelves.find(Need(WEB, "new"), now=10.0) is entries[-1]
    assert shelves.find(Need(WEB, 3, identity=1), now=10.0) is entries[-1]
    assert len(looks) == 3


def test_only_those_that_are_too_old_are_looked_at_when_they_are_retired() -> None:
    shelves = Shelves()
    entries = put_up(shelves, *range(100))
    shelves.retire_old(now=MAX_DIRTINESS + 1.0)
    assert [isinstance(one.state, Worn) for one in entries] == [True] * 2 + [False] * 98
    assert [entry for entry, _ in shelves.worn] == entries[:2]
    assert shelves.find(Need(WEB, 0), now=MAX_DIRTINESS + 1.0) is None


def test_a_circuit_never_goes_back() -> None:
    shelves = Shelves()
    (entry,) = put_up(shelves, "a")
    assert not shelves.claim(entry, Need(WEB, "b"), now=5.0)
    assert entry.state == Dirty(Need(WEB, "a").key, 0.0)
    shelves.retire(entry, "a test")
    worn = entry.state
    shelves.retire(entry, "a test")
    assert entry.state is worn
    assert not shelves.claim(entry, Need(WEB, "a"), now=6.0)
    shelves.forget(entry)
    assert not list(shelves)
    assert not shelves.worn


def test_nothing_is_kept_of_circuits_that_have_ended() -> None:
    shelves = Shelves()
    for entry in put_up(shelves, "a", "a", "b", None):
        shelves.forget(entry)
    assert not any(vars(shelves).values())


def test_who_may_join_is_asked_of_the_purpose() -> None:
    stable = ExitTo(22)
    for purpose, built_for, may_join in (
        (WEB, stable, True),
        (stable, WEB, False),
        (stable, stable, True),
        (LOOK_UP, WEB, True),
        (stable, LOOK_UP, False),
        (WEB, LOOK_UP, True),
    ):
        assert entry_of(built_for).serves(Need(purpose), now=0.0) is may_join
    assert not entry_of().serves(Need(WEB, excluded=frozenset({b"exit"})), now=0.0)


class FakeSet(LinkedCircuit):
    """Linked circuits, as shelves know them."""

    has_room = True

    def __init__(self) -> None:
        self._error = None
        self.path = (cast(Any, FakeCircuit()).exit,)


def test_linked_circuits_are_preferred_and_those_of_ones_own_first() -> None:
    shelves = Shelves()
    [single] = put_up(shelves, "a")
    assert shelves.find(Need(WEB, "a"), 0.0) is single
    own, clean = (Entry(FakeSet(), WEB, expires_at=1000.0) for _ in range(2))
    shelves.add(clean)
    assert shelves.find(Need(WEB, "a"), 0.0) is clean
    shelves.add(own)
    shelves.claim(own, Need(WEB, "a"), 0.0)
    assert shelves.find(Need(WEB, "a"), 0.0) is own
    assert shelves.find(Need(WEB, "b"), 0.0) is clean
    assert shelves.find(Need(WEB, "a", may_be_linked=False), 0.0) is single
    assert shelves.linked_count == 2
    shelves.forget(own)
    shelves.forget(single)
    assert shelves.linked_count == 1
