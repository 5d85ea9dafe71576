"""Circuits that are built ahead."""

from functools import partial

import trio
import trio.testing
from pool import WEB_ONLY, open_pool, settle
from served import ACCEPT_ALL

from torkit.directory.microdesc import PortPolicy
from torkit.learnt.build_times import BuildTimes
from torkit.learnt.predicted_ports import FIRST_PORT, PredictedPorts
from torkit.net.circuits.spares import MAX_SPARES, SPARE_COUNT, SPARE_RETRY
from torkit.params import parameter


async def test_spares_are_kept_ready_and_given_out_clean() -> None:
    async with open_pool() as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        assert pool.chosen == [(FIRST_PORT, False, ())] * SPARE_COUNT
        assert len(pool.fakes[0].circuits) == SPARE_COUNT
        first, second = await pool.acquire("a"), await pool.acquire("b")
        assert len(pool.chosen) == SPARE_COUNT
        assert first is not second
        await settle()
        assert len(pool.fakes[0].circuits) == 2 * SPARE_COUNT
        assert await pool.acquire("c") not in (first, second)


async def test_a_spare_that_ends_is_replaced() -> None:
    async with open_pool() as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        pool.fakes[0].circuits[0].destroy()
        await settle()
        assert len(pool.fakes[0].circuits) == SPARE_COUNT + 1
        assert (await pool.acquire()).error is None


async def test_building_ahead_is_tried_again_after_a_while(mock_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        exits, pool.exits = pool.exits, []
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        assert len(pool.chosen) == 2  # for the port, and for any
        assert str(pool.current.journal.progress.now.error) == "no exit for that"
        pool.exits = exits
        mock_clock.jump(SPARE_RETRY)
        await settle()
        assert len(pool.fakes[0].circuits) == SPARE_COUNT
        assert pool.current.journal.progress.now.is_done


async def test_circuits_are_built_for_ports_asked_for_that_no_ready_one_serves() -> None:
    async with open_pool((WEB_ONLY, ACCEPT_ALL)) as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        assert [port for port, _, _ in pool.chosen] == [FIRST_PORT] * SPARE_COUNT
        await pool.acquire("a", port=80)  # the ready ones serve it, and one is replaced
        await settle()
        assert [port for port, _, _ in pool.chosen[SPARE_COUNT:]] == [80]
        del pool.chosen[:]
        await pool.acquire("a", port=8080)
        await settle()
        assert [port for port, _, _ in pool.chosen] == [8080] * (1 + SPARE_COUNT)
        del pool.chosen[:]
        await pool.acquire("b", port=8080)
        await pool.acquire("b", port=443)
        assert pool.chosen == []
        await settle()
        assert [port for port, _, _ in pool.chosen] == [8080]


async def test_a_look_up_expects_streams_to_the_web() -> None:
    async with open_pool() as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        pool.circuits.predicted.forget(FIRST_PORT)
        await pool.acquire("a", port=None)
        await settle()
        assert pool.chosen[SPARE_COUNT:] == [(80, False, ())]


async def test_only_circuits_chosen_for_it_serve_a_port_of_streams_that_last() -> None:
    async with open_pool() as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        web = await pool.acquire("a", port=443)
        await settle()
        del pool.chosen[:]
        ssh = await pool.acquire("a", port=22)
        assert ssh is not web
        await settle()
        assert [port for port, _, _ in pool.chosen] == [22] * (1 + SPARE_COUNT)
        assert await pool.acquire("a", port=80) is ssh  # the other way round it is no harm


async def test_an_idle_client_becomes_quiet(patient_clock: trio.testing.MockClock) -> None:
    predicted = PredictedPorts(partial(parameter, {"nf_conntimeout_clients": 100}))
    async with open_pool(predicted=predicted) as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await trio.sleep(99)
        assert len(pool.chosen) == SPARE_COUNT
        assert not any(circuit.closed for circuit in pool.fakes[0].circuits)
        await trio.sleep(300.5)  # idle channels close at full seconds: not in the moment of the next request
        assert len(pool.chosen) == SPARE_COUNT  # each was kept as long as it was expected to be of use
        assert all(circuit.closed for circuit in pool.fakes[0].circuits)
        await pool.acquire()
        await trio.sleep(1)
        assert len(pool.chosen) == 2 * SPARE_COUNT + 1


async def test_while_build_times_are_learnt_unused_circuits_live_shorter(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool(times=BuildTimes()) as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await trio.sleep(170)
        assert len(pool.chosen) == SPARE_COUNT
        await trio.sleep(60)
        assert len(pool.chosen) == 2 * SPARE_COUNT


async def test_so_many_circuits_are_kept_ready_and_not_more(mock_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        for port in (80, 22, 21, 6667):
            pool.circuits.expect(port, trio.current_time())
        pool.nursery.start_soon(pool.spares.keep, 20)
        await settle()
        assert len(pool.chosen) == MAX_SPARES


async def test_a_port_that_no_exit_serves_is_expected_no_more() -> None:
    """And whoever waits for a first circuit gets to see one."""
    async with open_pool((PortPolicy(True, ((80, 80),)),) * 2) as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        assert [port for port, _, _ in pool.chosen] == [FIRST_PORT, None]
        assert await pool.acquire(port=80) is not None
        await settle()
        assert [port for port, _, _ in pool.chosen[2:]] == [80] * SPARE_COUNT


async def test_nothing_is_built_ahead_for_a_path_that_is_given() -> None:
    async with open_pool() as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        await pool.acquire("a", 8080, path=pool.path)
        await settle()
        assert len(pool.chosen) == SPARE_COUNT
        assert 8080 not in pool.circuits.predicted.ports(trio.current_time())


async def test_a_ready_circuit_can_be_taken_without_waiting() -> None:
    async with open_pool((WEB_ONLY, WEB_ONLY)) as pool:
        take = pool.take_ready
        assert take("a", 80) is None
        older = (await pool.build(pool.path)).circuit
        younger = (await pool.build(pool.path)).circuit
        assert take("a", 22) is None
        assert take("a", 80, is_ipv6=True) is None
        assert take("a", 80, excluded={pool.exits[0].identity}) is None
        assert take("a", 80, path=pool.path) is None
        assert take("a", 80) is younger
        assert take("a", 80) is younger
        assert take("b", 80) is older
        assert take("c", 80) is None
        assert take("a", 80) is younger


async def test_of_two_circuits_the_one_last_begun_with_is_taken(mock_clock: trio.testing.MockClock) -> None:
    async with open_pool((WEB_ONLY, ACCEPT_ALL)) as pool:
        older = (await pool.build((*pool.path[:2], pool.exits[1]))).circuit
        younger = (await pool.build(pool.path)).circuit
        assert pool.take_ready("a", 80) is younger
        mock_clock.jump(1)
        assert pool.take_ready("a", 8080) is older
        assert pool.take_ready("a", 80) is older
