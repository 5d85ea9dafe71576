"""The circuits in use: who shares one, when a new one is built, and what happens when builds fail."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from math import inf
from random import Random
from typing import Any

import network_docs
import pytest
import trio
import trio.testing
from fakes import FakeCircuit, FakeLink, FakeRelay, FakeStream, RelayCell, answer_extend2, ignore
from served import (
    ACCEPT_ALL,
    CONGESTION_CONTROL,
    Arrivals,
    authorities,
    doc_of,
    fresh_relays,
    open_stream,
    relay_of,
    serve,
    source_of,
)

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import REJECT_ALL, PortPolicy, split_microdescs
from torkit.directory.netdoc import decode_protocols
from torkit.errors import ChannelClosed, CircuitClosed, EndReason, NoPath, TimedOut, UsageError
from torkit.learnt.build_times import INITIAL, BuildTimes
from torkit.learnt.path_bias import Counts, PathBias, State
from torkit.learnt.predicted_ports import FIRST_PORT, PredictedPorts
from torkit.net.circuit.circuit import Circuit, CircuitSettings
from torkit.net.circuits.build import PATH_DRAWS, Builder, Choice, build_circuit, build_directory_circuit
from torkit.net.circuits.guards import GUARD_CHECK, GuardTry
from torkit.net.circuits.pool import BUILD_ATTEMPTS, WORN_GRACE, Circuits
from torkit.net.circuits.purpose import LOOK_UP, AskDirectory, ExitTo, ForOnion, Need, Path, Shared
from torkit.net.circuits.shelves import MAX_DIRTINESS, Entry
from torkit.net.circuits.spares import EXPIRY_CHECK, MAX_SPARES, SPARE_COUNT, SPARE_RETRY, Spares
from torkit.net.current import Current
from torkit.net.link.channels import Channels
from torkit.net.link.pump import STALL, Pump
from torkit.net.onion.stems import Stems
from torkit.params import parameter
from torkit.paths.choose import may_go_on
from torkit.proto.padding import Padding

WEB_ONLY = PortPolicy(True, ((80, 80), (443, 443)))


def purpose_of(port: int | None, *, is_ipv6: bool = False) -> Shared:
    """For a stream to `port`, or for a look-up."""
    return LOOK_UP if port is None else ExitTo(port, is_ipv6=is_ipv6)


@dataclass
class Pool:
    """A pool over one guard, one middle and two exits; `chosen` counts the paths asked for."""

    fakes: list[FakeRelay]
    exits: list[Relay]
    channels: Channels
    nursery: trio.Nursery
    builder: Builder = field(init=False)
    circuits: Circuits = field(init=False)
    spares: Spares = field(init=False)
    current: Current = field(default_factory=lambda: Current(testing=True))
    chosen: list[tuple[int | None, bool, Collection[bytes]]] = field(default_factory=list)
    first_hops: list[tuple[bytes, bool | None]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)  # of the guard
    verdicts: list[bool | None] = field(default_factory=list)  # on guards to come; then all are good

    @property
    def path(self) -> tuple[Relay, Relay, Relay]:
        return (relay_of(self.fakes[0]), relay_of(self.fakes[1]), self.exits[0])

    @property
    def server(self) -> AskDirectory:
        return AskDirectory(self.path[0])

    @property
    def guard(self) -> "Told":
        """A handle of the first relay, for tests that build a circuit by hand."""
        return Told(self, self.path[0].identity)

    def need(
        self,
        isolation: object = "a",
        port: int | None = 80,
        excluded: Collection[bytes] = (),
        *,
        path: Path | None = None,
        is_ipv6: bool = False,
    ) -> Need:
        return Need(purpose_of(port, is_ipv6=is_ipv6), isolation, self.circuits.identity, path, excluded)

    async def acquire(self, *args: Any, give_up_at: float = inf, **options: Any) -> Circuit:
        return await self.circuits.acquire(self.need(*args, **options), give_up_at)

    def take_ready(self, *args: Any, **options: Any) -> Circuit | None:
        return self.circuits.take_ready(self.need(*args, **options))

    async def build(self, path: Path | None = None) -> Entry:
        """A clean circuit, through relays that we choose if no path is given."""
        return await self.circuits.build(LOOK_UP, path=path)

    def note_directory(self, directory: Directory) -> None:
        self.current.use(directory)

    # --- the chooser of its paths ---------------------------------------------------------------

    def choose(self, purpose: Shared | ForOnion, excluded: Collection[bytes]) -> Choice:
        port, is_ipv6 = (purpose.port, purpose.is_ipv6) if isinstance(purpose, ExitTo) else (None, False)
        self.chosen.append((port, is_ipv6, excluded))
        for relay in self.exits:
            policy = relay.policy6 if is_ipv6 else relay.policy
            if relay.identity not in excluded and (port is None or policy.accepts(port)):
                path = (*self.path[:2], relay)
                guard = Told(self, path[0].identity, self.verdicts)
                guard.watch = PathBias({path[0].identity: self.counts}.get).watch(path[0].identity)
                return Choice(path, guard)
        raise NoPath("no exit for that")

    def may_go_on(self, path: Path) -> bool:
        return self.current.known is None or may_go_on(self.current.known, path)

    def given(self, path: Path) -> Choice:
        return Choice(path, Told(self, path[0].identity), is_given=True)


class Told(GuardTry):
    """Keeps what it is told in `pool.first_hops`: whether a guard was reached, None where it was given up."""

    def __init__(self, pool: Pool, identity: bytes, verdicts: list[bool | None] | None = None) -> None:
        self._pool = pool
        self._identity = identity
        self._verdicts = verdicts

    def reached(self) -> None:
        self._pool.first_hops.append((self._identity, True))

    def failed(self) -> None:
        self._pool.first_hops.append((self._identity, False))

    def given_up(self) -> None:
        self._pool.first_hops.append((self._identity, None))

    async def wait_usable(self) -> None:
        while self._verdicts:
            verdict = self._verdicts.pop(0)
            if verdict is None:
                await trio.sleep(GUARD_CHECK)
            elif verdict:
                return
            else:
                raise CircuitClosed("a better guard may be reachable again")


# No circuits to learn from are wanted, and the timeouts are those of the beginning.
learnt_enough = partial(parameter, {"cbtdisabled": 1})


def directory_of(
    pool: "Pool", *left_out: FakeRelay, flags: str = "Exit", policies: Sequence[str] = ("accept 1-65535",) * 4
) -> Directory:
    """One that lists the pool's relays but for some, with these flags and each with its policy."""
    docs = [
        doc_of(fake, f"fake{n}", flags=flags, policy=policy)
        for n, (fake, policy) in enumerate(zip(pool.fakes, policies, strict=True))
        if fake not in left_out
    ]
    microdescs = split_microdescs(network_docs.microdescs(docs))
    consensus = parse_consensus(network_docs.consensus(docs, authorities(1)))
    return Directory(consensus, {digest: text for digest, text, _ in microdescs})


@asynccontextmanager
async def open_pool(
    policies: tuple[PortPolicy, PortPolicy] = (ACCEPT_ALL, ACCEPT_ALL),
    times: BuildTimes | None = None,
    predicted: PredictedPorts | None = None,
) -> AsyncIterator[Pool]:
    fakes = fresh_relays(4)
    async with serve(fakes[0]), trio.open_nursery() as nursery:
        # A padded channel is looked at every 1.5 s, and a patient clock stops there each time.
        channels = Channels(nursery, Random(), padding=Padding.OFF)

        exits = [
            relay_of(fake, policy=policy, policy6=REJECT_ALL)
            for fake, policy in zip(fakes[2:], policies, strict=True)
        ]
        pool = Pool(fakes, exits, channels, nursery)
        times = times or BuildTimes(learnt_enough)
        pool.builder = Builder(channels, pool, pool.current, Random(), nursery, times)
        pool.circuits = Circuits(pool.builder, predicted or PredictedPorts(), Random(), nursery)
        pool.spares = Spares(pool.circuits, times, pool.current)
        pool.current.add_reader(pool.circuits.note_directory)
        yield pool
        nursery.cancel_scope.cancel()
    assert [fake.complaints for fake in fakes] == [[]] * 4


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
        assert pool.chosen[-1] == (80, True, ())


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


# --- Built ahead ---------------------------------------------------------------------------------------


async def settle() -> None:
    """Until nothing moves any more."""
    await trio.testing.wait_all_tasks_blocked(0.1)


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
        await trio.sleep(300)
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
            pool.circuits.expect(port)
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


# --- Builds that fail ----------------------------------------------------------------------------------


def failing_at_first(count: int) -> Callable[[FakeCircuit, int, RelayCell], None]:
    """EXTEND2 answered by DESTROY so many times, and then as it should be."""
    failures: list[int] = []

    def answer(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        if len(failures) < count:
            failures.append(number)
            circuit.destroy()
        else:
            answer_extend2(circuit, number, cell)

    return answer


async def test_a_failing_build_is_repeated_on_another_path() -> None:
    async with open_pool() as pool:
        pool.fakes[1].on_extend2 = failing_at_first(BUILD_ATTEMPTS - 1)
        assert (await pool.acquire()).error is None
        assert len(pool.fakes[0].circuits) == BUILD_ATTEMPTS


async def test_a_step_that_failed_is_not_tried_again_for_that_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_pool() as pool:
        draws: list[Relay] = []

        def choose(purpose: object, excluded: Collection[bytes]) -> Choice:
            draws.append(pool.exits[len(draws) // 3])  # the same three times
            return Choice((*pool.path[:2], draws[-1]), pool.guard)

        monkeypatch.setattr(pool, "choose", choose)
        pool.fakes[1].on_extend2 = failing_at_first(1)
        assert (await pool.acquire()).path[-1] == pool.exits[1]
        assert len(pool.fakes[0].circuits) == 2
        assert len(draws) == 4


async def test_a_relay_that_could_not_extend_to_an_onion_services_directory_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_pool() as pool:
        draws: list[Relay] = []

        def choose(purpose: object, excluded: Collection[bytes]) -> Choice:
            draws.append(pool.exits[len(draws) // 3])  # the same three times
            return Choice((*pool.path[:2], draws[-1]), pool.guard)

        monkeypatch.setattr(pool, "choose", choose)
        (target,) = fresh_relays(1)
        pool.fakes[2].on_extend2 = failing_at_first(1 << 30)
        pool.fakes[3].known = [target]
        stems = Stems(pool.circuits, BuildTimes(learnt_enough), lambda identity: False)
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


async def test_a_guard_that_is_dropped_gets_no_circuit() -> None:
    async with open_pool() as pool:
        pool.counts.is_disabled = True
        with pytest.raises(TimedOut, match="used no more"):
            await pool.acquire("a", 80, give_up_at=trio.current_time() + 0.5)


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
