"""What guards are told of the circuits that begin at them."""

import time
from ipaddress import IPv4Address, IPv4Network
from random import Random

import pytest
import trio
import trio.testing
from pool import failing_at_first, open_pool, settle
from served import Arrivals

from torkit.errors import ChannelClosed, CircuitClosed, EndReason, TimedOut
from torkit.learnt.build_times import INITIAL
from torkit.learnt.path_bias import State
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.build import PATH_DRAWS, build_circuit, build_directory_circuit
from torkit.net.circuits.pool import WORN_GRACE
from torkit.net.circuits.purpose import AskDirectory
from torkit.net.circuits.request import STREAM_TIMEOUT
from torkit.net.circuits.spares import EXPIRY_CHECK
from torkit.net.link.pump import STALL, Pump
from torkit.testing.relay import FakeCircuit, FakeLink, FakeStream, RelayCell, answer_extend2, ignore

# --- Guards --------------------------------------------------------------------------------------------


async def test_a_first_hop_that_was_made_is_told() -> None:
    async with open_pool() as pool:
        guard = pool.path[0].identity
        await pool.acquire()
        assert pool.first_hops == [(guard, True)]
        pool.fakes[1].on_extend2 = failing_at_first(1)
        with pytest.raises(CircuitClosed):
            await pool.build(pool.path)
        await pool.acquire("b")
        assert pool.first_hops == [(guard, True)] * 3
        await build_directory_circuit(
            pool.channels, AskDirectory(pool.path[0]), CircuitSettings(), pool.guard
        )
        assert pool.first_hops == [(guard, True)] * 4


async def test_a_first_relay_that_answers_by_destroy_is_there() -> None:
    async with open_pool() as pool:
        pool.fakes[0].on_create = lambda circuit, *_: circuit.destroy()
        with pytest.raises(CircuitClosed):
            await build_circuit(pool.channels, pool.path, CircuitSettings(), Random(), guard=pool.guard)
        assert pool.first_hops == [(pool.path[0].identity, True)]


async def test_a_first_relay_that_cannot_be_connected_to_is_told() -> None:
    async with open_pool() as pool:
        pool.fakes[0].on_versions = lambda link: link.close()
        with pytest.raises(ChannelClosed):
            await build_circuit(pool.channels, pool.path, CircuitSettings(), Random(), guard=pool.guard)
        assert pool.first_hops == [(pool.path[0].identity, False)]


async def test_a_first_relay_that_does_not_answer_is_told(patient_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        pool.fakes[0].on_create = ignore
        with pytest.raises(TimedOut):
            await build_circuit(pool.channels, pool.path, CircuitSettings(), Random(), guard=pool.guard)
        assert pool.first_hops == [(pool.path[0].identity, False)]


async def test_a_first_relay_is_not_blamed_for_what_passed_while_everything_stood_still(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:
        pool.fakes[0].on_create = lambda *_: Pump.current()._stalls.begin(None, time.monotonic() + 2 * STALL)
        with pytest.raises(TimedOut):
            await build_circuit(pool.channels, pool.path, CircuitSettings(), Random(), guard=pool.guard)
        assert pool.first_hops == [(pool.path[0].identity, None)]


async def test_a_directory_that_cut_a_handshake_while_everything_stood_still_is_not_blamed() -> None:
    async with open_pool() as pool:

        def stand_still_and_close(link: FakeLink) -> None:
            Pump.current()._stalls.begin(None, time.monotonic() + 2 * STALL)
            link.close()

        pool.fakes[0].on_versions = stand_still_and_close
        with pytest.raises(ChannelClosed):
            await build_directory_circuit(pool.channels, pool.server, CircuitSettings(), pool.guard)
        assert pool.first_hops == [(pool.path[0].identity, None)]


async def test_a_connection_that_ended_while_everything_stood_still_is_not_held_against_its_relay() -> None:
    """As after a night in which the machine slept: whatever is between has forgotten the connection."""
    async with open_pool() as pool:
        await pool.acquire()

        def stand_still_and_close(circuit: FakeCircuit, *_: object) -> None:
            Pump.current()._stalls.begin(None, time.monotonic() + 2 * STALL)
            circuit.link.close()

        pool.fakes[0].on_create = stand_still_and_close
        with pytest.raises(ChannelClosed):
            await pool.build(pool.path)
        assert pool.first_hops[1:] == [(pool.path[0].identity, None)]


async def test_a_circuit_that_was_late_while_everything_stood_still_is_no_sign_of_bias(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:

        def stand_still(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
            if number == 1:
                answer_extend2(circuit, number, cell)
            else:
                Pump.current()._stalls.begin(None, time.monotonic() + 2 * STALL)

        pool.fakes[1].on_extend2 = stand_still
        with pytest.raises(TimedOut):
            await pool.build()
        await settle()
        assert (pool.counts.circ_attempts, pool.counts.timeouts) == (0, 0)


async def test_a_build_given_up_says_nothing_of_its_first_relay() -> None:
    async with open_pool() as pool:
        pool.fakes[0].on_create = asked = Arrivals()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.acquire)
            await asked.next()
            nursery.cancel_scope.cancel()
        await settle()
        assert pool.first_hops == [(pool.path[0].identity, None)]


async def test_the_guard_of_a_path_that_is_drawn_and_not_used_is_not_waited_for() -> None:
    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = failing_at_first(1)
        guard = pool.path[0].identity
        await pool.acquire()  # each draw gives the step that failed
        assert pool.first_hops == [(guard, True), *[(guard, None)] * (PATH_DRAWS - 1), (guard, True)]


async def test_a_circuit_waits_until_it_is_known_that_its_guard_is_good_enough(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:
        pool.verdicts = [None] * 8
        circuit = await pool.acquire()
        assert pool.verdicts == []
        assert circuit.error is None
        assert len(pool.fakes[0].circuits) == 1


async def test_a_circuit_whose_guard_is_not_good_enough_is_built_anew() -> None:
    async with open_pool() as pool:
        pool.verdicts = [False]
        pool.fakes[0].on_destroy = destroyed = Arrivals()
        circuit = await pool.acquire()
        assert circuit.error is None
        assert await destroyed.next()
        assert len(pool.fakes[0].circuits) == 2
        assert await pool.acquire("b") is not circuit


async def test_nobody_gets_a_circuit_that_still_waits_for_a_better_guard(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:
        pool.verdicts = [None] * 4
        got: list[Circuit] = []

        async def acquire(isolation: str) -> None:
            got.append(await pool.acquire(isolation))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(acquire, "a")
            while len(pool.verdicts) == 4:
                await trio.sleep(0.01)
            nursery.start_soon(acquire, "b")
        assert got[0] is not got[1]


async def test_a_circuit_that_ends_while_its_guard_is_judged_is_not_given_out(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:
        pool.verdicts = [None] * 4
        got: list[Circuit] = []

        async def acquire() -> None:
            got.append(await pool.acquire())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(acquire)
            while len(pool.verdicts) == 4:
                await trio.sleep(0.01)
            pool.fakes[0].circuits[0].destroy()
        assert got[0].error is None
        assert len(pool.fakes[0].circuits) == 2


async def test_a_path_that_was_given_is_used_whatever_its_guard() -> None:
    async with open_pool() as pool:
        pool.verdicts = [False]
        assert (await pool.acquire("a", 80, path=pool.path)).error is None


# --- Path bias -----------------------------------------------------------------------------------------


async def test_circuits_count_for_their_guard_by_how_they_went() -> None:
    async with open_pool() as pool:
        used = await pool.acquire("a")
        assert pool.counts.to_json() == {
            "circ_attempts": 1.0,
            "circ_successes": 1.0,
            "successful_circuits_closed": 1.0,
            "use_attempts": 1.0,
            "use_successes": 1.0,
        }
        used.close()
        assert pool.counts.unusable_circuits == 1  # nobody has answered
        (await pool.build()).circuit.close()
        assert pool.counts.successful_circuits_closed == 1
        destroyed = (await pool.build()).circuit
        pool.fakes[0].circuits[-1].destroy()
        await settle()
        assert destroyed.error is not None
        assert (pool.counts.collapsed_circuits, pool.counts.circ_attempts) == (1, 3)


async def test_a_circuit_counts_from_its_second_hop_on(patient_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        attempts = []
        for hop in (2, 3):

            def destroy_at(circuit: FakeCircuit, number: int, cell: RelayCell, hop: int = hop) -> None:
                if number + 1 == hop:
                    circuit.destroy()
                else:
                    answer_extend2(circuit, number, cell)

            for fake in pool.fakes:
                fake.on_extend2 = destroy_at
            with pytest.raises(CircuitClosed):
                await pool.build()
            attempts.append((pool.counts.circ_attempts, pool.counts.circ_successes))
        assert attempts == [(0, 0), (1, 0)]
        pool.fakes[1].on_extend2 = lambda circuit, number, cell: (
            answer_extend2(circuit, number, cell) if number == 1 else None
        )
        with pytest.raises(TimedOut):
            await pool.build()
        await settle()
        assert (pool.counts.circ_attempts, pool.counts.timeouts) == (2, 1)


async def test_a_circuit_whose_client_went_away_does_not_count() -> None:
    """While it was built: such a circuit was a failure of its guard's."""
    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = lambda circuit, number, cell: (
            answer_extend2(circuit, number, cell) if number == 1 else None
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.acquire)
            with trio.fail_after(5):
                while not pool.counts.count(State.ATTEMPTED):
                    await settle()
            nursery.cancel_scope.cancel()
        await settle()
        assert not pool.counts.count(State.ATTEMPTED)
        assert pool.counts.to_json() == {}


async def test_paths_that_were_given_do_not_count() -> None:
    async with open_pool() as pool:
        (await pool.acquire("a", 80, path=pool.path)).close()
        assert pool.counts.to_json() == {}


async def test_a_guard_that_is_dropped_gets_no_circuit(patient_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        pool.counts.is_disabled = True
        with pytest.raises(TimedOut, match="used no more"):
            await pool.acquire("a", 80, give_up_at=trio.current_time() + STREAM_TIMEOUT)


@pytest.mark.parametrize("answers", [True, False])
async def test_a_circuit_on_which_nobody_answered_is_probed_before_it_is_closed(
    patient_clock: trio.testing.MockClock, answers: bool
) -> None:
    async with open_pool() as pool:
        asked: list[FakeStream] = []

        def answer(stream: FakeStream) -> None:
            asked.append(stream)
            assert stream.target is not None
            address = IPv4Address(stream.target[0]) if answers else IPv4Address("0.0.0.1")
            stream.end(EndReason.EXITPOLICY, address.packed + bytes(4))

        pool.fakes[2].on_begin = answer
        pool.nursery.start_soon(pool.spares.keep, 0)
        circuit = await pool.acquire("a")
        pool.circuits.retire(circuit, "a test wants it")
        await trio.sleep(2 * EXPIRY_CHECK + WORN_GRACE + 1)
        (stream,) = asked
        assert stream.target is not None
        assert IPv4Address(stream.target[0]) in IPv4Network("0.0.0.0/8")
        assert (stream.target[1], stream.flags) == (25, 0)
        assert circuit.error is not None
        assert pool.counts.use_successes == answers
        assert pool.counts.unusable_circuits == (not answers)


async def test_a_probe_that_is_not_answered_is_given_up(patient_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        pool.fakes[2].on_begin = ignore
        pool.nursery.start_soon(pool.spares.keep, 0)
        circuit = await pool.acquire("a")
        pool.circuits.retire(circuit, "a test wants it")
        await trio.sleep(2 * EXPIRY_CHECK + WORN_GRACE + INITIAL.close + 1)
        assert circuit.error is not None
        assert pool.counts.unusable_circuits == 1
        assert len(pool.fakes[0].circuits) == 1


async def test_a_circuit_that_ends_just_before_its_probe_harms_nobody() -> None:
    """Its end was raised in a task of the pool's nursery, and ended the client."""
    async with open_pool() as pool:
        circuit = await pool.acquire("a")
        pool.fakes[0].circuits[0].destroy()
        await settle()
        await pool.circuits._probe_and_close(circuit, "a test wants it")
        assert pool.counts.unusable_circuits == 1


async def test_circuits_that_are_closed_at_the_end_are_not_held_against_their_guard() -> None:
    async with open_pool() as pool:
        await pool.acquire("a")
        pool.circuits.close()
        assert (pool.counts.use_successes, pool.counts.unusable_circuits) == (1, 0)
