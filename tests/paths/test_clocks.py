"""What is kept for the next start, where the clock is a year off at one: a live consensus tells at which."""

import json
from random import Random
from typing import Any

import network_docs
import pytest

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs
from torkit.paths.constraints import Constraints, VanguardMode
from torkit.paths.guards import DAY, Guards
from torkit.paths.vanguards import Vanguards
from torkit.testing.directory import encode_microdescs
from torkit.testing.directory.authority import HOUR

YEAR = 365 * DAY
NOW = float(network_docs.NOW)
DOCS = network_docs.relays(60)
SIGNERS = network_docs.authorities(1)


def directory_at(now: float) -> Directory:
    """Live then."""
    consensus = network_docs.consensus(DOCS, SIGNERS, valid_after=int(now) - HOUR // 2)
    return Directory(parse_consensus(consensus), Microdescs.decode(encode_microdescs(DOCS)))


def read_guards(state: dict[str, Any], now: float) -> Guards:
    guards, complaints = Guards.from_state(json.loads(json.dumps(state)), now=now, rng=Random(2))
    assert complaints == []
    return guards


def identities(guards: Guards) -> list[bytes]:
    return [guard.identity for guard in guards.sample]


def guards_of(now: float) -> Guards:
    """Those of a first start, the first of which have carried streams."""
    guards = Guards()
    guards.update(directory_at(now), now=now, rng=Random(1))
    for guard in guards.primary:
        guards.confirm(guard.identity, now=now, rng=Random(1))
    return guards


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
def test_a_start_by_a_clock_that_is_wrong_costs_no_guard(jump: float) -> None:
    """No consensus is live then; but a guard may be a fallback, too, and what became of it is written down.

    Every date of every guard was that of the wrong clock then, and the next start threw all of them away.
    """
    first = guards_of(NOW)
    wrong = read_guards(first.to_state(), NOW + jump)
    wrong.note_failed(first.primary[0].identity, now=NOW + jump)
    assert wrong.has_changed
    again = read_guards(wrong.to_state(), NOW)
    again.update(directory_at(NOW), now=NOW, rng=Random(3))
    assert identities(again) == identities(first)
    for name in ("sampled_on", "confirmed_on"):
        kept = [[one.get(name) for one in guards.to_state()["guards"]] for guards in (first, again)]
        assert kept[0] == kept[1]


def test_guards_of_a_clock_that_was_ahead_serve_no_longer_than_others() -> None:
    ahead = guards_of(NOW + YEAR)
    again = read_guards(ahead.to_state(), NOW)
    again.update(directory_at(NOW), now=NOW, rng=Random(3))
    assert identities(again) == identities(ahead)
    assert {one.sampled_on for one in again.sample} == {NOW}
    assert {one.confirmed_on for one in again.sample} == {NOW, None}
    assert again.has_changed  # else each start would find them new


def test_vanguards_of_a_clock_that_was_ahead_serve_no_longer_than_others() -> None:
    ahead = Vanguards(Constraints(), Random(1), VanguardMode.FULL)
    ahead.choose(directory_at(NOW + YEAR), unwanted=set(), now=NOW + YEAR)
    again = Vanguards.from_state(ahead.to_state(), Constraints(), Random(2), VanguardMode.FULL)
    for wrong in (NOW - YEAR, NOW):  # while no consensus is live, nothing is known of the clock
        again.choose(directory_at(NOW), unwanted=set(), now=wrong)
        assert again.has_changed is (wrong == NOW)
    kept, drawn = again.to_state()["vanguards"]["l2"], ahead.to_state()["vanguards"]["l2"]
    assert kept.keys() == drawn.keys()
    assert max(kept.values()) < min(drawn.values())
    again.choose(directory_at(NOW + 30 * DAY), unwanted=set(), now=NOW + 30 * DAY)
    assert kept.keys() != again.to_state()["vanguards"]["l2"].keys()
