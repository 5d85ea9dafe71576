"""Builds of circuits: what happens when they fail, and what their times teach."""

from collections.abc import Collection
from functools import partial
from random import Random

import pytest
import trio
import trio.testing
from pool import WEB_ONLY, Pool, failing_at_first, learnt_enough, open_pool
from served import CONGESTION_CONTROL, Arrivals, fresh_relays, relay_of, source_of

from torkit.directory.directory import Relay
from torkit.directory.netdoc import decode_protocols
from torkit.errors import CircuitClosed, NoPath, TimedOut, UsageError
from torkit.learnt.build_times import INITIAL, BuildTimes
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.build import Choice, build_circuit, build_directory_circuit
from torkit.net.circuits.pool import BUILD_ATTEMPTS
from torkit.net.circuits.purpose import AskDirectory
from torkit.net.onion.stems import Stems
from torkit.params import parameter
from torkit.testing.relay import FakeCircuit, RelayCell, answer_extend2, ignore

# --- Builds that fail ----------------------------------------------------------------------------------


async def test_a_failing_build_is_repeated_on_another_path() -> None:
    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = failing_at_first(BUILD_ATTEMPTS - 1)
        assert (await pool.acquire()).error is None
        assert len(pool.fakes[0].circuits) == BUILD_ATTEMPTS


def draw_each_exit_three_times(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> list[Relay]:
    draws: list[Relay] = []

    def choose(purpose: object, excluded: Collection[bytes]) -> Choice:
        draws.append(pool.exits[len(draws) // 3])
        return Choice((*pool.path[:2], draws[-1]), pool.guard)

    monkeypatch.setattr(pool, "choose", choose)
    return draws


async def test_a_step_that_failed_is_not_tried_again_for_that_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_pool() as pool:
        draws = draw_each_exit_three_times(pool, monkeypatch)
        pool.fakes[1].on_extend2 = failing_at_first(1)
        assert (await pool.acquire()).path[-1] == pool.exits[1]
        assert len(pool.fakes[0].circuits) == 2
        assert len(draws) == 4


async def test_a_relay_that_could_not_extend_to_an_onion_services_directory_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_pool() as pool:
        draws = draw_each_exit_three_times(pool, monkeypatch)
        (target,) = fresh_relays(1)
        pool.fakes[2].on_extend2 = failing_at_first(1 << 30)
        pool.fakes[3].known = [target]
        stems = Stems(pool.circuits, BuildTimes(learnt_enough), lambda identity: False, None)
        circuit = await stems.to_directory(relay_of(target))
        assert circuit.path[2].identity == pool.exits[1].identity
        assert len(draws) == 4
        circuit.close()


async def test_a_step_that_failed_is_tried_again_where_there_is_no_other() -> None:
    async with open_pool() as pool:
        del pool.exits[1]
        pool.fakes[1].on_extend2 = failing_at_first(1)
        assert (await pool.acquire()).path[-1] == pool.exits[0]


async def test_a_given_path_is_tried_once() -> None:
    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = failing_at_first(1)
        with pytest.raises(CircuitClosed):
            await pool.acquire("a", 80, path=pool.path)
        assert len(pool.fakes[0].circuits) == 1


async def test_no_path_is_told_at_once() -> None:
    async with open_pool((WEB_ONLY, WEB_ONLY)) as pool:
        with pytest.raises(NoPath):
            await pool.acquire(port=22)
        assert len(pool.chosen) == 1


async def test_whoever_waited_for_a_build_that_failed_builds_himself() -> None:
    async with open_pool() as pool:
        asked = Arrivals()
        pool.fakes[1].on_extend2 = asked
        got: list[object] = []

        async def acquire() -> None:
            try:
                got.append(await pool.acquire("a", 80, path=pool.path))
            except CircuitClosed as error:
                got.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(acquire)
            nursery.start_soon(acquire)
            far, _, _ = await asked.next()
            pool.fakes[1].on_extend2 = answer_extend2
            far.destroy()
        assert [type(one) for one in got] == [CircuitClosed, Circuit]


async def test_a_cancelled_build_lets_others_build_and_leaves_no_circuit() -> None:
    async with open_pool() as pool:
        asked = Arrivals()
        destroyed = Arrivals()
        pool.fakes[1].on_extend2, pool.fakes[0].on_destroy = asked, destroyed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.acquire)
            await asked.next()
            nursery.cancel_scope.cancel()
        await destroyed.next()
        pool.fakes[1].on_extend2 = answer_extend2
        assert (await pool.acquire()).error is None


async def test_a_circuit_that_ends_as_it_is_finished_is_not_given_out() -> None:
    """Its end came in the same read as its last EXTENDED2; it then stayed in the pool as a dead spare."""
    destroyed: list[FakeCircuit] = []

    def answer_and_destroy_once(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        answer_extend2(circuit, number, cell)
        if not destroyed:
            destroyed.append(circuit)
            circuit.destroy()

    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = answer_and_destroy_once
        circuit = await pool.acquire()
        assert len(destroyed) == 1
        assert circuit.error is None


async def test_a_build_that_takes_too_long_is_given_up(patient_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        destroyed = Arrivals()
        pool.fakes[1].on_extend2, pool.fakes[0].on_destroy = ignore, destroyed
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await build_circuit(pool.channels, pool.path, CircuitSettings(), Random(), guard=pool.guard)
        assert trio.current_time() - started >= INITIAL.close
        await destroyed.next()


# --- Build times ---------------------------------------------------------------------------------------


def learnt(seconds: float) -> BuildTimes:
    """Timeouts after one circuit that took so long: it suffices here."""
    times = BuildTimes(partial(parameter, {"cbtmincircs": 1}))
    times.note_built(seconds)
    return times


def count(times: BuildTimes) -> int:
    return sum(times.to_state()["build_times"].values())


async def test_circuits_of_three_hops_teach_how_long_they_take() -> None:
    async with open_pool(times=BuildTimes()) as pool:
        times = pool.builder.build_times
        await pool.acquire()
        assert count(times) == 1
        await pool.acquire("a", 80, path=(relay_of(pool.fakes[0]), pool.exits[1]))
        assert count(times) == 1


async def test_a_circuit_that_comes_late_is_not_used_but_learnt_from(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool(times=learnt(2.0)) as pool:
        asked, destroyed = Arrivals(), Arrivals()
        pool.fakes[1].on_extend2, pool.fakes[0].on_destroy = asked, destroyed
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await pool.build(pool.path)
        assert 2.0 <= trio.current_time() - started < 2.5
        await trio.sleep(8.0)
        answer_extend2(*await asked.next())
        await destroyed.next()
        assert max(map(int, pool.builder.build_times.to_state()["build_times"])) >= 10_000
        pool.fakes[1].on_extend2 = answer_extend2
        assert len(pool.fakes[0].circuits) == 1
        await pool.acquire()
        assert len(pool.fakes[0].circuits) == 2


async def test_a_circuit_that_never_comes_is_closed(patient_clock: trio.testing.MockClock) -> None:
    async with open_pool(times=learnt(2.0)) as pool:
        destroyed = Arrivals()
        pool.fakes[1].on_extend2, pool.fakes[0].on_destroy = ignore, destroyed
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await pool.build(pool.path)
        await destroyed.next()
        assert trio.current_time() - started >= INITIAL.close
        assert count(pool.builder.build_times) == 1


async def test_a_build_given_up_is_destroyed_at_once() -> None:
    async with open_pool(times=learnt(2.0)) as pool:
        asked, destroyed = Arrivals(), Arrivals()
        pool.fakes[1].on_extend2, pool.fakes[0].on_destroy = asked, destroyed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.build, pool.path)
            await asked.next()
            nursery.cancel_scope.cancel()
        await destroyed.next()
        assert count(pool.builder.build_times) == 1


async def test_a_silent_guard_is_connected_to_anew_before_it_is_blamed(
    patient_clock: trio.testing.MockClock,
) -> None:
    """After a machine slept, or its address changed, only the old connection is dead."""
    async with open_pool(times=learnt(2.0)) as pool:
        guard = pool.path[0].identity
        spare = await pool.build(pool.path)
        pool.fakes[0].on_create = silent = Arrivals()
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await pool.build(pool.path)
        assert pool.first_hops == [(guard, True), (guard, None)]
        assert spare.circuit.error is not None  # nobody shall have to find out that it is dead
        with pytest.raises(TimedOut):
            await pool.build(pool.path)
        assert pool.first_hops[2:] == [(guard, False)]
        assert trio.current_time() - started < 10
        await silent.next()
        assert len(pool.fakes[0].links) == 2


async def test_circuits_are_built_to_learn_from_until_enough_is_learnt(
    patient_clock: trio.testing.MockClock,
) -> None:
    param = partial(parameter, {"cbtmincircs": 15})
    times = BuildTimes(param)
    async with open_pool(times=times) as pool:
        pool.nursery.start_soon(pool.spares.keep, 0)
        pool.nursery.start_soon(pool.spares.learn)
        await trio.sleep(9.5)
        assert count(times) == 0
        await trio.sleep(10)
        assert count(times) == 1
        await trio.sleep(150)
        assert count(times) == 10  # that many are open, and nobody has used one
        await trio.sleep(200)
        assert count(times) == 15
        await trio.sleep(400)
        assert count(times) == 15
        assert all(circuit.closed for circuit in pool.fakes[0].circuits)


class Steps(trio.abc.Instrument):
    """Counts the steps of one task."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.count = 0
        self._task = task

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


async def test_no_task_is_woken_between_two_hops() -> None:
    """The answers drive it. A task that each hop wakes costs more than the hop's own handshake in Python."""
    async with open_pool() as pool:
        (await pool.acquire("to connect first")).close()
        steps = Steps(trio.lowlevel.current_task())
        trio.lowlevel.add_instrument(steps)
        try:
            circuit = await build_circuit(pool.channels, pool.path, CircuitSettings(), Random())
        finally:
            trio.lowlevel.remove_instrument(steps)
        assert len(circuit.path) == 3
        assert steps.count == 1  # when all hops are there


async def test_an_empty_path_is_misuse() -> None:
    async with open_pool() as pool:
        with pytest.raises(UsageError):
            await build_circuit(pool.channels, (), CircuitSettings(), Random())


async def test_directory_circuits_have_one_hop_by_the_key_that_is_known() -> None:
    async with open_pool() as pool:
        fake = pool.fakes[0]
        fake.directory = lambda _: b""
        relay = relay_of(fake, protocols=decode_protocols(CONGESTION_CONTROL))
        known = await build_directory_circuit(pool.channels, AskDirectory(relay), CircuitSettings())
        assert [(hop.handshake, hop.flow_control) for hop in known.hops] == [("ntor-v3", "vegas")]
        unknown = await build_directory_circuit(
            pool.channels, AskDirectory(source_of(fake)), CircuitSettings()
        )
        assert unknown.path == ()
        for circuit in (known, unknown):
            await circuit.begin_directory().wait_connected()
        assert len(fake.links) == 1


async def test_the_guard_cannot_count_hops_by_relay_early_cells() -> None:
    async with open_pool() as pool:
        counts = set()
        for isolation in range(24):
            circuit = await pool.acquire(isolation)
            far = pool.fakes[0].circuits[-1]
            for _ in range(10):
                await circuit.resolve("name.test")
            counts.add(far.early_cells_received)
        assert counts == {7, 8}
