"""The guard of a path is a handle: what it is told, once, and what dropping it says."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import network_docs
import pytest
import trio
import waiting

from torkit.directory.cache import Cache
from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import split_microdescs
from torkit.errors import CircuitClosed, NoDirectory, NoGuard, NoPath
from torkit.events import GuardChanged
from torkit.learnt.refusals import Refusals
from torkit.net.circuits.guards import GuardKeeper, GuardOfOurs
from torkit.net.circuits.paths import Paths
from torkit.net.circuits.purpose import OnionDirectory
from torkit.net.current import Current
from torkit.net.state import StateFile
from torkit.paths.constraints import Constraints, VanguardMode
from torkit.paths.guards import Guard, Guards, Reachability
from torkit.paths.vanguards import Vanguards
from torkit.testing.directory import RelayDoc, encode_microdescs, make_authorities

DOCS = network_docs.relays(40)


def directory_of(docs: list[RelayDoc]) -> Directory:
    consensus = parse_consensus(
        network_docs.consensus(docs, make_authorities(1), valid_after=int(time.time()))
    )
    microdescs = split_microdescs(encode_microdescs(docs))
    return Directory(consensus, {digest: text for digest, text, _ in microdescs})


@asynccontextmanager
async def open_keeper(tmp_path: Path) -> AsyncIterator[GuardKeeper]:
    """One that has agreed on its guards, all of whose primary ones are down: so that others are tried."""
    async with trio.open_nursery() as nursery:
        current = Current(testing=True)
        keeper = GuardKeeper(
            Guards(),
            current,
            StateFile(Cache(tmp_path)),
            nursery,
            Random(1),
            Constraints(),
            keeps_counts=True,
        )
        directory = directory_of(DOCS)
        with pytest.raises(NoGuard):
            keeper.pick(any_relay)
        current.add_reader(keeper.note_directory)
        current.use(directory)
        await keeper.has_agreed.wait()
        fail_primary(keeper)
        yield keeper


def fail_primary(keeper: GuardKeeper) -> None:
    for guard in keeper.guards.primary:
        keeper.note_failed(guard.identity)


def any_relay(relay: Relay) -> bool:
    return True


def guard_of(keeper: GuardKeeper, picked: GuardOfOurs) -> Guard:
    return next(one for one in keeper.guards.sample if one.identity == picked.relay.identity)


async def test_a_guard_that_is_dropped_was_given_up(tmp_path: Path) -> None:
    async with open_keeper(tmp_path) as keeper:
        picked = keeper.pick(any_relay)
        guard = guard_of(keeper, picked)
        assert guard.pending_since is not None
        assert keeper.pick(any_relay).relay != picked.relay  # it is being tried
        del picked
        assert guard.pending_since is None
        assert guard.reachability is Reachability.MAYBE


async def test_what_came_first_counts(tmp_path: Path) -> None:
    async with open_keeper(tmp_path) as keeper:
        picked = keeper.pick(any_relay)
        guard = guard_of(keeper, picked)
        picked.reached()
        picked.failed()
        picked.given_up()
        assert guard.failing_since is None
        attempt = keeper.attempt(guard.identity)
        attempt.failed()
        attempt.reached()
        assert guard.failing_since is not None


async def test_changes_of_a_guard_are_told_and_repetitions_are_not(tmp_path: Path) -> None:
    async with open_keeper(tmp_path) as keeper:
        events = keeper._current.journal.events()
        picked = keeper.pick(any_relay)
        name = f"${picked.relay.fingerprint}"
        picked.reached()
        for outcome in ("reached", "failed", "failed", "reached"):
            getattr(keeper.attempt(picked.relay.identity), outcome)()
        keeper.attempt(bytes(20)).failed()  # no guard
        assert [await anext(events) for _ in range(3)] == [
            GuardChanged(name, status) for status in ("UP", "DOWN", "UP")
        ]
        assert not events._mailbox.waiting


async def test_a_guard_is_confirmed_once_its_circuit_may_be_used(tmp_path: Path) -> None:
    async with open_keeper(tmp_path) as keeper:
        picked = keeper.pick(any_relay)
        picked.reached()
        assert guard_of(keeper, picked).confirmed_on is None
        fail_primary(keeper)  # who answers has the better ones tried again
        await picked.wait_usable()
        assert guard_of(keeper, picked).confirmed_on is not None


async def test_a_guard_is_not_used_where_a_better_one_is_worth_a_try(tmp_path: Path) -> None:
    async with open_keeper(tmp_path) as keeper:
        picked = keeper.pick(any_relay)
        picked.reached()
        assert keeper.guards.primary[0].reachability is Reachability.MAYBE
        with pytest.raises(CircuitClosed, match="better guard"):
            await picked.wait_usable()
        assert guard_of(keeper, picked).confirmed_on is None


async def test_a_guard_whose_path_cannot_be_completed_is_given_up(tmp_path: Path) -> None:
    """Though somebody keeps the error, and with it all that was at hand when it was raised."""
    async with open_keeper(tmp_path) as keeper:
        everybody = Constraints(exclude=frozenset(doc.nickname for doc in DOCS))
        vanguards = Vanguards(everybody, Random(1))
        paths = Paths(keeper._current, keeper, Refusals(), vanguards, everybody, Random(1))
        target = keeper._current.directory.relay(DOCS[0].identity)
        assert target is not None
        with pytest.raises(NoPath) as kept:
            paths.choose(OnionDirectory(target))
        assert kept.value is not None
        assert [one.last_tried is not None for one in keeper.guards.sample].count(True) > 3
        assert all(guard.pending_since is None for guard in keeper.guards.sample)


async def test_full_vanguards_are_written_down_as_soon_as_they_are_drawn(tmp_path: Path) -> None:
    """Each start that ended by a crash within ten minutes drew others, and more relays knew of us."""
    async with open_keeper(tmp_path) as keeper:
        vanguards = Vanguards(Constraints(), Random(1), VanguardMode.FULL)
        keeper._state.add(vanguards, is_watched=True)
        paths = Paths(keeper._current, keeper, Refusals(), vanguards, Constraints(), Random(1))
        keeper.has_changed = False
        target = keeper._current.directory.relay(DOCS[0].identity)
        assert target is not None
        paths.choose(OnionDirectory(target))
        await waiting.until(lambda: "vanguards" in (Cache(tmp_path).load_state() or {}))
        assert (Cache(tmp_path).load_state() or {})["vanguards"] == vanguards.to_state()["vanguards"]


async def test_a_path_that_is_only_chosen_leaves_nobody_waiting(tmp_path: Path) -> None:
    async with open_keeper(tmp_path) as keeper:
        anybody = Constraints()
        vanguards = Vanguards(anybody, Random(1))
        paths = Paths(keeper._current, keeper, Refusals(), vanguards, anybody, Random(1))
        chosen = {paths.choose_for(Constraints(exit=DOCS[-1].nickname))[0].identity for _ in range(5)}
        assert len(chosen) == 1
        assert all(guard.pending_since is None for guard in keeper.guards.sample)


async def test_without_a_directory_one_is_asked_for(tmp_path: Path) -> None:
    async with open_keeper(tmp_path) as keeper:
        keeper._current.drop()
        with pytest.raises(NoDirectory):
            keeper.pick(any_relay)
        assert keeper._current.is_wanted.is_set()
