"""The circuits in use: who shares one, how they grow old, and what a new directory or identity ends."""

import logging
from collections.abc import Callable

import pytest
import trio
import trio.testing
from pool import WEB_ONLY, Pool, directory_of, open_pool, settle
from served import ACCEPT_ALL, Arrivals, open_stream, relay_of

from torkit.errors import CircuitClosed, NoPath
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.pool import WORN_GRACE
from torkit.net.circuits.shelves import MAX_DIRTINESS
from torkit.net.circuits.spares import EXPIRY_CHECK, SPARE_COUNT
from torkit.testing.relay import answer_extend2

# --- Who shares ----------------------------------------------------------------------------------------


async def test_equal_isolation_shares_a_circuit_and_different_never_does() -> None:
    async with open_pool() as pool:
        first = await pool.acquire("a")
        assert await pool.acquire("a") is first
        second = await pool.acquire("b")
        assert second is not first
        assert await pool.acquire("b") is second
        assert await pool.acquire(None) not in (first, second)
        assert await pool.acquire("a") is first


async def test_requests_of_one_isolation_at_once_build_one_circuit() -> None:
    async with open_pool() as pool:
        got: list[Circuit] = []

        async def acquire(isolation: str) -> None:
            got.append(await pool.acquire(isolation))

        async with trio.open_nursery() as nursery:
            for isolation in "aabbaabb":
                nursery.start_soon(acquire, isolation)
        assert len(set(map(id, got))) == 2
        assert len(pool.fakes[0].circuits) == 2


async def test_a_circuit_serves_only_ports_that_its_exit_lets_through() -> None:
    async with open_pool((WEB_ONLY, ACCEPT_ALL)) as pool:
        web = await pool.acquire(port=80)
        assert await pool.acquire(port=443) is web
        ssh = await pool.acquire(port=22)
        assert ssh is not web
        assert ssh.path[-1] == pool.exits[1]
        assert await pool.acquire(port=None) in (web, ssh)


async def test_ipv6_asks_for_an_exit_with_an_ipv6_policy() -> None:
    async with open_pool() as pool:
        await pool.acquire(port=80)
        with pytest.raises(NoPath):
            await pool.acquire("a", 80, is_ipv6=True)
        assert pool.chosen[-1] == (80, True, frozenset())


async def test_an_excluded_exit_is_not_used_again() -> None:
    async with open_pool() as pool:
        first = await pool.acquire()
        second = await pool.acquire(excluded={first.path[-1].identity})
        assert second.path[-1] != first.path[-1]


async def test_a_circuit_with_a_path_goes_there_and_is_shared_by_equal_path_and_isolation() -> None:
    async with open_pool() as pool:
        path = (relay_of(pool.fakes[0]), pool.exits[1])
        first = await pool.acquire("a", 25, path=path)
        assert first.path == path
        assert pool.chosen == []
        assert await pool.acquire("a", 80, path=path) is first
        assert await pool.acquire("b", 80, path=path) is not first
        assert await pool.acquire("a") is not first


async def test_a_clean_circuit_is_never_given_to_a_request_for_a_path() -> None:
    async with open_pool() as pool:
        await pool.build(pool.path)
        path = (relay_of(pool.fakes[0]), pool.exits[1])
        assert (await pool.acquire("a", 80, path=path)).path == path


# --- Growing old ---------------------------------------------------------------------------------------


async def test_a_circuit_takes_no_stream_after_its_time(mock_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        first = await pool.acquire()
        mock_clock.jump(MAX_DIRTINESS - 1)
        assert await pool.acquire() is first
        mock_clock.jump(1)
        assert await pool.acquire() is not first
        assert first.error is None


async def test_a_circuit_is_dirty_from_its_first_stream_on(mock_clock: trio.testing.MockClock) -> None:
    async with open_pool() as pool:
        entry = await pool.build(pool.path)
        mock_clock.jump(10 * MAX_DIRTINESS)
        assert await pool.acquire() is entry.circuit
        mock_clock.jump(MAX_DIRTINESS - 1)
        assert await pool.acquire() is entry.circuit  # and no stream makes it younger
        mock_clock.jump(1)
        assert await pool.acquire() is not entry.circuit


async def test_a_dirty_circuit_is_closed_some_time_after_its_time_if_it_has_no_stream(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:
        idle, busy = await pool.acquire("idle"), await pool.acquire("busy")
        stream, _ = await open_stream(busy, pool.fakes[2])
        await trio.sleep(MAX_DIRTINESS - EXPIRY_CHECK - WORN_GRACE - 1)
        pool.nursery.start_soon(pool.spares.keep, 0)
        await trio.sleep(EXPIRY_CHECK + WORN_GRACE)
        assert idle.error is None
        await trio.sleep(1 + 2 * EXPIRY_CHECK + WORN_GRACE)
        assert idle.error is not None
        assert busy.error is None
        await stream.aclose()
        await trio.sleep(2 * EXPIRY_CHECK + WORN_GRACE)
        assert busy.error is not None


async def test_a_retired_circuit_keeps_its_streams_and_takes_no_more() -> None:
    async with open_pool() as pool:
        first = await pool.acquire()
        stream, far = await open_stream(first, pool.fakes[2])
        pool.circuits.retire(first, "a test wants it")
        assert await pool.acquire() is not first
        far.write(b"still here")
        assert await stream.receive_some() == b"still here"


async def test_an_exit_can_be_retired_with_all_its_circuits() -> None:
    async with open_pool() as pool:
        used = await pool.acquire("a")
        clean = (await pool.build(pool.path)).circuit
        other = (await pool.build((*pool.path[:2], pool.exits[1]))).circuit
        pool.circuits.retire_exit(pool.exits[0].identity, "a test wants it")
        assert clean.error is not None
        assert used.error is None
        assert await pool.acquire("a") is other


async def test_a_worn_circuit_is_closed_some_time_after_its_last_stream(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with open_pool() as pool:
        first = await pool.acquire()
        stream, _ = await open_stream(first, pool.fakes[2])
        pool.circuits.retire(first, "a test wants it")
        built = Arrivals(answer_extend2)
        pool.fakes[1].on_extend2 = built
        pool.nursery.start_soon(pool.spares.keep)
        for _ in range(SPARE_COUNT):
            await built.next()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert first.error is None
        await stream.aclose()
        mock_clock.jump(MAX_DIRTINESS)
        await trio.testing.wait_all_tasks_blocked()
        assert first.error is None  # relays may still hold what was sent
        mock_clock.jump(MAX_DIRTINESS)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(first.error, CircuitClosed)


WHY_CLOSED: dict[str, Callable[[Pool, Circuit], None]] = {
    "it has served for 600 s": lambda pool, circuit: None,
    "a new identity was asked for": lambda pool, circuit: pool.circuits.renew(),
    "its exit was silent": lambda pool, circuit: pool.circuits.retire(circuit, "its exit was silent"),
    "the directory allows its path no more": lambda pool, circuit: pool.note_directory(
        directory_of(pool, pool.fakes[2])
    ),
    "the client ends": lambda pool, circuit: pool.circuits.close(),
}


@pytest.mark.parametrize("why", WHY_CLOSED)
async def test_the_line_of_a_circuit_that_was_closed_says_why(
    patient_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    caplog.set_level(logging.INFO)
    async with open_pool() as pool:
        circuit = await pool.acquire()
        WHY_CLOSED[why](pool, circuit)
        pool.nursery.start_soon(pool.spares.keep, 0)
        await trio.sleep(MAX_DIRTINESS + 3 * EXPIRY_CHECK + WORN_GRACE)
        assert f"circuit {circuit.id} was closed: {why}" in caplog.messages
        assert str(circuit.error) == f"the circuit was closed here: {why}"


async def test_the_line_of_a_circuit_that_nobody_used_says_so(
    patient_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_pool() as pool:
        circuit = (await pool.build()).circuit
        pool.nursery.start_soon(pool.spares.keep, 0)
        while circuit.error is None:
            await trio.sleep(EXPIRY_CHECK)
        assert f"circuit {circuit.id} was closed: nobody has come for it" in caplog.messages


# --- A new directory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [0, 1, 2])
async def test_a_circuit_through_a_relay_that_is_gone_takes_no_new_stream(hop: int) -> None:
    async with open_pool() as pool:
        used = await pool.acquire("a")
        stream, far = await open_stream(used, pool.fakes[2])
        clean = (await pool.build(pool.path)).circuit
        pool.note_directory(directory_of(pool))
        assert clean.error is None
        assert await pool.acquire("a") is used
        pool.note_directory(directory_of(pool, pool.fakes[hop]))
        assert clean.error is not None
        assert pool.take_ready("a", 80) is None
        far.write(b"still here")
        assert await stream.receive_some() == b"still here"


async def test_a_circuit_ends_where_streams_may_exit_now() -> None:
    async with open_pool() as pool:
        clean = (await pool.build(pool.path)).circuit
        pool.note_directory(directory_of(pool, policies=["accept 80"] * 4))
        assert pool.take_ready("a", 443) is None
        pool.note_directory(directory_of(pool, policies=["accept 443"] * 4))
        assert pool.take_ready("a", 443) is clean
        pool.note_directory(directory_of(pool, flags="BadExit Exit"))
        assert pool.take_ready("a", 443) is None
        assert clean.error is None


async def test_a_circuit_that_was_being_built_when_its_relay_left_is_not_used() -> None:
    async with open_pool() as pool:
        asked = Arrivals()
        pool.fakes[1].on_extend2 = asked
        got: list[Circuit] = []

        async def acquire() -> None:
            got.append(await pool.acquire())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(acquire)
            answer_to = await asked.next()
            pool.note_directory(directory_of(pool, pool.fakes[2]))
            del pool.exits[0]
            pool.fakes[1].on_extend2 = answer_extend2
            answer_extend2(*answer_to)
        assert got[0].path[-1] == pool.exits[0]


async def test_spares_through_a_relay_that_is_gone_are_replaced() -> None:
    async with open_pool() as pool:
        pool.nursery.start_soon(pool.spares.keep)
        await settle()
        gone = pool.fakes[2]
        del pool.exits[0]
        pool.note_directory(directory_of(pool, gone))
        await settle()
        assert len(pool.chosen) == 2 * SPARE_COUNT
        taken = pool.take_ready("a", 80)
        assert taken is not None
        assert taken.path[-1].identity != gone.rsa_identity


# --- A new identity ------------------------------------------------------------------------------------


async def test_a_renewed_pool_uses_no_circuit_of_before() -> None:
    async with open_pool() as pool:
        before = [await pool.acquire(isolation) for isolation in "ab"]
        spare = (await pool.build(pool.path)).circuit
        pool.circuits.renew()
        after = [await pool.acquire(isolation) for isolation in "abc"]
        assert not {*before, spare} & set(after)
        assert [circuit.error for circuit in before] == [None, None]
        assert await pool.acquire("a") is after[0]


async def test_a_stream_asked_for_before_shares_nothing_with_those_after_a_renewal() -> None:
    async with open_pool() as pool:
        asked = Arrivals()
        pool.fakes[1].on_extend2 = asked
        got: list[Circuit] = []

        async def acquire() -> None:
            got.append(await pool.acquire("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(acquire)
            circuit, number, cell = await asked.next()
            pool.circuits.renew()
            pool.fakes[1].on_extend2 = answer_extend2
            answer_extend2(circuit, number, cell)
        assert await pool.acquire("a") is not got[0]


async def test_closing_closes_every_circuit() -> None:
    async with open_pool() as pool:
        circuits = [await pool.acquire(isolation) for isolation in range(3)]
        pool.circuits.close()
        assert all(isinstance(circuit.error, CircuitClosed) for circuit in circuits)
