"""Stems that are built ahead for onion services: how many, for whom, and when they go."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio
from pool import Pool, learnt_enough, open_pool
from served import fresh_relays, relay_of
from trio.testing import MockClock

from torkit.directory.directory import Relay
from torkit.learnt.build_times import BuildTimes
from torkit.learnt.predicted_ports import PredictedPorts
from torkit.net.circuits.spares import SPARE_RETRY
from torkit.net.onion.reserve import PACE, RESERVE_COUNT, Reserve
from torkit.net.onion.stems import Stems
from torkit.testing.relay import FakeRelay


class Home:
    def __init__(self, pool: Pool) -> None:
        times = BuildTimes(learnt_enough)
        self.pool = pool
        self.reserve = Reserve(pool.circuits, PredictedPorts(), pool.may_go_on, Random(1))
        self.stems = Stems(pool.circuits, times, self.excluded.__contains__, self.reserve)
        pool.nursery.start_soon(self.reserve.keep)

    excluded: frozenset[bytes] = frozenset()

    @property
    def count(self) -> int:
        """How many circuits the guard has been asked for."""
        return len(self.pool.fakes[0].circuits)

    def new_target(self) -> tuple[FakeRelay, Relay]:
        """A relay that every last relay of a stem can reach."""
        (fake,) = fresh_relays(1)
        for last in self.pool.fakes[2:]:
            last.known = [*last.known, fake]
        return fake, relay_of(fake)


async def time_to_build() -> None:
    """For more than there are."""
    await trio.sleep((RESERVE_COUNT + 2) * PACE)


@asynccontextmanager
async def a_reserve() -> AsyncIterator[Home]:
    """Three stems are ready."""
    async with open_pool() as pool:
        home = Home(pool)
        await time_to_build()
        assert home.count == 0  # nobody has asked for an onion service
        home.reserve.expect()
        await time_to_build()
        assert home.count == RESERVE_COUNT
        yield home


async def test_whoever_asks_gets_a_stem_for_himself_and_it_is_replaced(
    patient_clock: MockClock,
) -> None:
    async with a_reserve() as home:
        circuits = [await home.stems.to_rendezvous_point("a"), await home.stems.to_rendezvous_point("b")]
        assert circuits[0] is not circuits[1]
        assert [len(circuit.path) for circuit in circuits] == [3, 3]
        await time_to_build()
        assert home.count == RESERVE_COUNT
        home.reserve.expect()
        await time_to_build()
        assert home.count == RESERVE_COUNT + 2


async def test_a_directory_and_a_point_are_one_hop_away(patient_clock: MockClock) -> None:
    async with a_reserve() as home:
        _, target = home.new_target()
        for circuit in await home.stems.to_directory(target), await home.stems.extend_ready(target):
            assert circuit is not None
            assert circuit.path[3] == target
        assert home.count == RESERVE_COUNT


async def test_a_relay_is_not_on_a_path_twice(patient_clock: MockClock) -> None:
    async with a_reserve() as home:
        assert await home.stems.extend_ready(home.pool.path[1]) is None
        assert home.count == RESERVE_COUNT


async def test_what_fails_behind_an_old_stem_is_tried_behind_a_new_one(
    patient_clock: MockClock,
) -> None:
    async with a_reserve() as home:
        for last in home.pool.fakes[2:]:
            last.on_extend2 = lambda circuit, *_: circuit.destroy()
        _, target = home.new_target()
        assert await home.stems.extend_ready(target) is None


async def test_nothing_leads_to_a_relay_that_the_user_excludes(patient_clock: MockClock) -> None:
    async with a_reserve() as home:
        _, target = home.new_target()
        home.stems = Stems(
            home.pool.circuits, BuildTimes(learnt_enough), {target.identity}.__contains__, home.reserve
        )
        assert await home.stems.extend_ready(target) is None


async def test_one_that_ends_is_replaced(patient_clock: MockClock) -> None:
    async with a_reserve() as home:
        home.pool.fakes[0].circuits[1].destroy()
        await time_to_build()
        assert home.count == RESERVE_COUNT + 1


async def test_a_new_identity_has_new_ones(patient_clock: MockClock) -> None:
    async with a_reserve() as home:
        old = home.reserve.take(None)
        assert old is not None
        home.pool.circuits.renew()
        assert home.reserve.take(None) is None
        home.reserve.renew()
        await time_to_build()
        assert home.count == 2 * RESERVE_COUNT


async def test_an_hour_after_the_last_use_they_are_closed(patient_clock: MockClock) -> None:
    async with a_reserve() as home:
        await trio.sleep(3601)
        assert home.reserve.take(None) is None
        assert home.count == RESERVE_COUNT


async def test_what_cannot_be_built_is_tried_again_after_a_while(patient_clock: MockClock) -> None:
    async with open_pool() as pool:
        home = Home(pool)
        exits, pool.exits = pool.exits, []
        home.reserve.expect()
        await trio.sleep(SPARE_RETRY - 1)
        assert len(pool.chosen) == 1
        pool.exits = exits
        await trio.sleep(2)
        await time_to_build()
        assert home.count == RESERVE_COUNT


async def test_the_client_closes_them(patient_clock: MockClock) -> None:
    async with a_reserve() as home:
        home.reserve.close()
        assert home.reserve.take(None) is None
