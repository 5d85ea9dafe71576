"""How many circuits are under way at once and whose is next; how a request waits while builds fail."""

import logging
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from pool import directory_of, failing_at_first, learnt_enough, open_pool
from served import Arrivals, relay_of

from torkit.errors import CircuitClosed, NoDirectory, NoPath, TimedOut
from torkit.learnt.build_times import INITIAL, BuildTimes
from torkit.net.circuits.pool import AFTER_REST_ATTEMPTS, BUILD_ATTEMPTS
from torkit.net.circuits.request import STREAM_TIMEOUT
from torkit.net.circuits.spares import SPARE_RETRY
from torkit.net.circuits.turns import MAX_PENDING, RESTS, Turns, rest
from torkit.testing.relay import FakeRelay, answer_extend2, ignore


def under_way(fake: FakeRelay) -> int:
    """Circuits that a first relay holds and that end at it."""
    return sum(not circuit.closed and len(circuit.hops) == 1 for circuit in fake.circuits)


async def until_quiet() -> None:
    """Until nothing has moved for a moment."""
    await trio.testing.wait_all_tasks_blocked(0.1)


# --- Turns ---------------------------------------------------------------------------------------------


class Crowd:
    """Tasks that want a turn. Each notes its name in `begun` and keeps the turn until it is told."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.turns = Turns()
        self.begun: list[str] = []
        self.ends: list[trio.Event] = []
        self._nursery = nursery

    async def add(self, isolation: str, scope: trio.CancelScope | None = None) -> None:
        self._nursery.start_soon(self._hold, isolation, scope or trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()

    async def end_first(self) -> None:
        self.ends.pop(0).set()
        await trio.testing.wait_all_tasks_blocked()

    async def _hold(self, isolation: str, scope: trio.CancelScope) -> None:
        with scope:
            async with self.turns.take(isolation):
                self.begun.append(isolation)
                end = trio.Event()
                self.ends.append(end)
                await end.wait()


async def test_so_many_have_a_turn_at_once_and_no_more() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        for count in range(1, MAX_PENDING + 1):
            assert crowd.turns.has_room
            await crowd.add("a")
            assert len(crowd.begun) == count
        assert not crowd.turns.has_room
        await crowd.add("a")
        assert len(crowd.begun) == MAX_PENDING
        await crowd.end_first()
        assert len(crowd.begun) == MAX_PENDING + 1
        assert not crowd.turns.has_room
        await crowd.end_first()
        assert crowd.turns.has_room
        nursery.cancel_scope.cancel()


async def test_isolations_have_their_turns_one_after_another() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        for _ in range(MAX_PENDING + 99):
            await crowd.add("crowd")
        for isolation in ("b", "c", "b"):
            await crowd.add(isolation)
        del crowd.begun[:]
        for _ in range(6):
            await crowd.end_first()
        assert crowd.begun == ["crowd", "b", "c", "crowd", "b", "crowd"]
        nursery.cancel_scope.cancel()


async def test_a_turn_that_is_waited_for_no_more_goes_to_the_next() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        for _ in range(MAX_PENDING):
            await crowd.add("a")
        waiting, given = trio.CancelScope(), trio.CancelScope()
        await crowd.add("gone", waiting)
        await crowd.add("given", given)
        await crowd.add("last")
        waiting.cancel()
        await trio.testing.wait_all_tasks_blocked()
        crowd.ends.pop(0).set()
        given.cancel()  # in the same moment in which it gets its turn, or just before
        await trio.testing.wait_all_tasks_blocked()
        assert crowd.begun[-1] == "last"
        nursery.cancel_scope.cancel()


def test_rests_grow_and_differ() -> None:
    rng = Random(1)
    for number, seconds in enumerate((*RESTS, RESTS[-1])):
        drawn = [rest(number, rng) for _ in range(100)]
        assert seconds / 2 <= min(drawn) < max(drawn) < seconds * 1.5
        assert len(set(drawn)) == 100


# --- Circuits under way --------------------------------------------------------------------------------


async def test_so_many_circuits_are_under_way_at_once_and_no_more() -> None:
    async with open_pool() as pool:
        pool.fakes[0].on_extend2 = ignore
        for number in range(MAX_PENDING + 8):
            pool.nursery.start_soon(pool.acquire, number)
        await until_quiet()
        assert under_way(pool.fakes[0]) == MAX_PENDING


async def test_a_crowd_in_one_isolation_delays_no_other(patient_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        asked: list[object] = []
        pool.fakes[0].on_extend2 = ignore

        async def acquire(isolation: str, number: int) -> None:
            path = tuple(relay._replace(nickname=f"{isolation}{number}") for relay in pool.path)
            crowd = (*path[:1], relay_of(pool.fakes[1], identity=bytes([number]) * 20), path[2])
            with pytest.raises((CircuitClosed, TimedOut)):
                await pool.acquire(isolation, 80, path=crowd)
            asked.append((isolation, number))

        for number in range(MAX_PENDING + 99):
            pool.nursery.start_soon(acquire, "crowd", number)
        await until_quiet()
        pool.nursery.start_soon(acquire, "other", 200)
        await trio.sleep(2.5 * INITIAL.use)
        assert ("other", 200) in asked
        assert len(asked) < MAX_PENDING + 99


async def test_a_circuit_that_was_given_up_makes_room(patient_clock: trio.testing.MockClock) -> None:
    """It is finished for what it teaches, and counts no more. As C tor."""
    async with open_pool() as pool:
        pool.fakes[0].on_extend2 = asked = Arrivals()
        for number in range(MAX_PENDING):
            pool.nursery.start_soon(pool.acquire, number)
        while asked.count < MAX_PENDING:
            await asked.next()
        pool.fakes[0].on_extend2 = answer_extend2
        with trio.fail_after(1.5 * INITIAL.use):
            assert (await pool.acquire("late")).error is None


async def test_nothing_is_built_ahead_while_requests_wait_for_their_turns(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool(times=BuildTimes(learnt_enough)) as pool:
        pool.fakes[0].on_extend2 = ignore

        async def wait_for_ever(number: int) -> None:
            async with pool.circuits.turns.take(number):
                await trio.sleep_forever()

        async with trio.open_nursery() as requests:
            for number in range(MAX_PENDING + 1):
                requests.start_soon(wait_for_ever, number)
            await trio.testing.wait_all_tasks_blocked()
            pool.nursery.start_soon(pool.spares.keep)
            await trio.sleep(4 * SPARE_RETRY)
            assert pool.chosen == []
            requests.cancel_scope.cancel()
        await trio.sleep(2 * SPARE_RETRY)
        assert pool.chosen


# --- Builds that fail ----------------------------------------------------------------------------------


async def test_a_request_for_which_builds_fail_waits_for_one_that_does_not(
    patient_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = failing_at_first(BUILD_ATTEMPTS + 2 * AFTER_REST_ATTEMPTS)
        started = trio.current_time()
        assert (await pool.acquire()).error is None
        assert len(pool.fakes[0].circuits) == BUILD_ATTEMPTS + 2 * AFTER_REST_ATTEMPTS + 1
        assert sum(RESTS[:3]) / 2 < trio.current_time() - started < sum(RESTS[:3]) * 1.5 + 1
    said = [record.message for record in caplog.records if "no circuit for a request" in record.message]
    assert len(said) == 3
    assert all("next try in" in line and "closed the circuit" in line for line in said)


async def test_a_request_is_given_up_in_time_and_says_why(patient_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = failing_at_first(1000)
        started = trio.current_time()
        with pytest.raises(TimedOut, match="no circuit was built in time: fake: a relay closed") as caught:
            await pool.acquire("a", 80, give_up_at=started + STREAM_TIMEOUT)
        assert trio.current_time() - started == pytest.approx(STREAM_TIMEOUT, abs=1)
        assert isinstance(caught.value.__cause__, CircuitClosed)
        assert BUILD_ATTEMPTS + 60 <= len(pool.fakes[0].circuits) <= BUILD_ATTEMPTS + 240


async def test_a_request_that_rests_takes_what_is_built_for_another(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = failing_at_first(BUILD_ATTEMPTS)
        got: list[float] = []

        async def acquire() -> None:
            await pool.acquire()
            got.append(trio.current_time())

        patient_clock.autojump_threshold = float("inf")
        pool.nursery.start_soon(acquire)
        while len(pool.fakes[0].circuits) < BUILD_ATTEMPTS or under_way(pool.fakes[0]):
            await until_quiet()
        pool.nursery.start_soon(pool.spares.keep)
        while not got:
            await until_quiet()
        assert got[0] < RESTS[0] / 2


async def test_a_request_that_rests_lets_others_of_its_isolation_build(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:
        patient_clock.autojump_threshold = float("inf")
        pool.fakes[1].on_extend2 = failing_at_first(BUILD_ATTEMPTS)
        pool.nursery.start_soon(pool.acquire)
        while len(pool.fakes[0].circuits) < BUILD_ATTEMPTS or under_way(pool.fakes[0]):
            await until_quiet()
        assert (await pool.acquire(port=443)).error is None


async def test_a_directory_that_is_gone_is_waited_for_and_a_path_that_cannot_be_is_not(
    patient_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_pool() as pool:
        choose, missing = pool.choose, [NoDirectory("too old")] * 2

        def choose_later(*args: Any) -> object:
            if missing:
                raise missing.pop()
            return choose(*args)

        monkeypatch.setattr(pool, "choose", choose_later)
        with pytest.raises(NoDirectory):  # a start waits for its first by itself
            await pool.acquire()
        pool.note_directory(directory_of(pool))
        assert (await pool.acquire()).error is None
        del pool.exits[:]
        with pytest.raises(NoPath):
            await pool.acquire("b")
