"""Meeting an onion service: each message in its place, and what follows where somebody fails."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
from onion_home import POINTS, RENDEZVOUS, SERVICE, a_home, failure_of
from served import fresh_relays, relay_of
from trio.testing import MockClock

from torkit._fast.cells import RelayCommand
from torkit.errors import CircuitClosed, CircuitError, OnionStep, TimedOut
from torkit.hs.descriptor import IntroductionPoint
from torkit.hs.introduction import PointFailure
from torkit.net.circuits.request import STREAM_TIMEOUT
from torkit.net.onion.meeting import MAX_ATTEMPTS, MAX_OTHER_FAILURES, PATIENCE, RESTS
from torkit.testing.onion import Introduction, OnionNetwork, OnionService
from torkit.testing.relay import ignore


def batched(items: list[Introduction], count: int) -> list[list[Introduction]]:
    return [items[at : at + count] for at in range(0, len(items), count)]


@pytest.mark.parametrize("sendme_inc", [None, 31], ids=["windows", "congestion control"])
async def test_streams_of_a_circuit_that_has_joined_are_the_services(sendme_inc: int | None) -> None:
    async with a_home() as home:
        home.service.sendme_inc = sendme_inc
        begun: list[Any] = []

        def answer(stream: Any) -> None:
            begun.append(stream)
            stream.send(RelayCommand.CONNECTED)

        home.fakes[SERVICE].on_begin = answer
        circuit = await home.meet()
        stream = circuit.begin_service(80)
        await stream.wait_connected()
        data = os.urandom(100_000)
        begun[0].write(data)
        received = b""
        await stream.send_all(data[::-1])
        while len(received) < len(data):
            received += await stream.receive_some()
        assert received == data
        await trio.sleep(0)
        with trio.fail_after(10):
            while len(begun[0].received) < len(data):
                await trio.sleep(0.01)
        assert bytes(begun[0].received) == data[::-1]
        assert begun[0].target == ("", 80)
        assert begun[0].flags == 0
        assert len(home.service.introductions) == 1
        assert home.service.introductions[0].onion_key == home.fakes[RENDEZVOUS].ntor_onion_key
        assert [relay.nickname for relay in circuit.path] == ["fake"] * 3


@pytest.mark.parametrize("status", [1, 2, 3, 77])
async def test_a_point_that_refuses_is_followed_by_another_with_the_same_cookie(status: int) -> None:
    async with a_home() as home:
        service = home.service

        def refuse_once(introduction: Introduction) -> None:
            if len(service.introductions) == 1:
                introduction.acknowledge(status)
            else:
                service.accept(introduction)

        service.on_introduce = refuse_once
        await home.meet()
        first, second = service.introductions
        assert first.point != second.point
        assert first.end.circuit is not second.end.circuit
        assert first.cookie == second.cookie  # nobody was told of it
        assert first.public_key != second.public_key
        assert home.fetched == [False]


async def test_where_every_point_refuses_a_newer_descriptor_is_asked_for_and_the_step_told(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:
        home.service.on_introduce = lambda introduction: introduction.acknowledge(1)
        error = await failure_of(home)
        assert error.step is OnionStep.INTRODUCTION
        assert "UNKNOWN_ID" in str(error)
        rounds = [{one.point for one in group} for group in batched(home.service.introductions, 3)]
        assert rounds == [{0, 1, 2}] * (1 + len(RESTS))
        assert home.fetched == [False] + [True] * len(rounds)


async def test_a_service_that_comes_back_to_the_same_points_is_met(patient_clock: MockClock) -> None:
    async with a_home() as home:
        service = home.service

        def refuse_at_first(introduction: Introduction) -> None:
            if len(service.introductions) <= 6:
                introduction.acknowledge(1)
            else:
                service.accept(introduction)

        service.on_introduce = refuse_at_first
        await home.meet()
        assert len(service.introductions) == 7


async def test_points_that_failed_in_an_earlier_meeting_are_tried_once_no_other_is_left() -> None:
    async with a_home() as home:
        for number in POINTS:
            home.points.note(home.point(number - POINTS[0]), PointFailure.REFUSED, trio.current_time())
        await home.meet()
        assert home.fetched[:2] == [False, True]  # not before a newer descriptor was asked for


async def test_points_that_were_slow_once_are_tried_again() -> None:
    """Where a whole network is slow for a moment, each of them is; the second time it is passed over."""
    async with a_home() as home:
        points = [home.point(number - POINTS[0]) for number in POINTS]
        for point in points:
            home.points.note(point, PointFailure.TIMED_OUT, trio.current_time())
        await home.meet()
        assert home.fetched == [False]
        for point in points:
            home.points.note(point, PointFailure.TIMED_OUT, trio.current_time())
        assert (await failure_of(home)).step is OnionStep.INTRODUCTION_TIMEOUT


async def test_the_last_of_many_points_that_is_alive_is_found(patient_clock: MockClock) -> None:
    async with a_home() as home:
        service = home.service
        descriptor = home.descriptor()
        dead = [descriptor.points[0]._replace(auth_key=bytes([50 + number]) * 32) for number in range(19)]
        home.descriptor = lambda: descriptor._replace(points=(*dead, descriptor.points[1]))
        for number, point in enumerate(dead):  # all but three are known to have failed
            if number >= 3:
                home.points.note(point, PointFailure.REFUSED, trio.current_time())
        home.fakes[POINTS[0]].on_unknown = lambda circuit, number, cell: circuit.send(
            number, RelayCommand.INTRODUCE_ACK, 0, b"\0\1\0"
        )
        await home.meet()
        assert [one.point for one in service.introductions] == [1]


async def test_stems_that_fail_are_no_fault_of_the_points(patient_clock: MockClock) -> None:
    async with a_home() as home:
        home.broken_stems = 6
        await home.meet()
        now = trio.current_time()
        assert len(home.points.usable(home.descriptor().points, now)) == 3
        home.broken_stems = 1 << 30
        with pytest.raises(CircuitClosed, match="the guard closed the circuit"):
            await home.meet()
        assert home.broken_stems > (1 << 30) - 2 * MAX_OTHER_FAILURES
        assert len(home.points.usable(home.descriptor().points, trio.current_time())) == 3


async def test_who_has_been_introduced_is_waited_for_though_no_circuit_can_be_built_any_more(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home, trio.open_nursery() as nursery:

        async def come_late(introduction: Introduction) -> None:
            await trio.sleep(55)
            home.service.meet(introduction)
            home.net.cookies[introduction.cookie][0].link.on_output()

        def acknowledge(introduction: Introduction) -> None:
            introduction.acknowledge()
            home.broken_stems = 1 << 30
            nursery.start_soon(come_late, introduction)

        home.service.on_introduce = acknowledge
        await home.meet()
        assert home.broken_stems == (1 << 30) - MAX_OTHER_FAILURES


async def test_stems_that_are_silent_are_no_fault_of_the_points(patient_clock: MockClock) -> None:
    async with a_home() as home:
        home.silent_stems = 2
        await home.meet()
        now = trio.current_time()
        assert len(home.points.usable(home.descriptor().points, now)) == 3
        home.silent_stems = 1 << 30
        with pytest.raises(TimedOut):
            await home.meet()
        assert len(home.points.usable(home.descriptor().points, trio.current_time())) == 3


async def test_points_that_close_are_unreachable_and_tried_again_once_in_each_round(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:
        home.service.on_introduce = lambda introduction: introduction.end.circuit.destroy()
        assert (await failure_of(home)).step is OnionStep.INTRODUCTION
        points = [one.point for one in home.service.introductions]
        assert sorted(points[:6]) == [0, 0, 1, 1, 2, 2]
        assert len(points) == 6 * (1 + len(RESTS))
        cookies = [one.cookie for one in home.service.introductions]
        assert len(set(cookies)) == len(cookies)  # the service may have heard of each


async def test_beside_a_silent_point_another_is_tried(patient_clock: MockClock) -> None:
    async with a_home() as home:
        service = home.service

        def accept_second(introduction: Introduction) -> None:
            if len(service.introductions) == 2:
                service.accept(introduction)

        service.on_introduce = accept_second
        began = trio.current_time()
        await home.meet()
        assert trio.current_time() - began < 2 * PATIENCE
        first, second = service.introductions
        assert first.cookie != second.cookie


async def test_after_an_acknowledgement_and_silence_a_newer_descriptor_is_asked_for(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:
        service = home.service

        def acknowledge(introduction: Introduction) -> None:
            introduction.acknowledge()
            if len(service.introductions) == 2:
                service.meet(introduction)

        service.on_introduce = acknowledge
        await home.meet()
        assert home.fetched == [False, True]
        first, second = service.introductions
        assert first.cookie != second.cookie


@pytest.mark.parametrize(
    ("answer", "step"),
    [(ignore, OnionStep.INTRODUCTION_TIMEOUT), (Introduction.acknowledge, OnionStep.RENDEZVOUS)],
    ids=["points", "service"],
)
async def test_lasting_silence_is_told_in_time(
    patient_clock: MockClock, answer: Callable[[Introduction], object], step: OnionStep
) -> None:
    async with a_home() as home:
        home.service.on_introduce = answer
        began = trio.current_time()
        assert (await failure_of(home)).step is step
        assert trio.current_time() - began < STREAM_TIMEOUT + 1
        assert len(home.service.introductions) <= MAX_ATTEMPTS


async def test_a_service_that_was_silent_is_asked_again_by_the_next_request(patient_clock: MockClock) -> None:
    """Its points have answered: only they are passed over for two minutes who have not."""
    async with a_home() as home:
        home.service.on_introduce = Introduction.acknowledge
        assert (await failure_of(home)).step is OnionStep.RENDEZVOUS
        tried = [one.point for one in home.service.introductions]
        assert sorted(tried) == [0, 1, 2]  # none twice
        home.service.on_introduce = home.service.accept
        await home.meet()


async def test_the_service_may_come_before_its_points_acknowledgement() -> None:
    async with a_home() as home:
        home.service.on_introduce = home.service.meet
        circuit = await home.meet()
        assert circuit.error is None


async def test_points_that_no_relay_can_be_are_passed_over() -> None:
    async with a_home() as home:
        good = home.descriptor()
        bad = [
            point._replace(link_specifiers=specifiers, auth_key=bytes([9 + number]) * 32)
            for number, (point, specifiers) in enumerate(
                (good.points[0], specifiers)
                for specifiers in ((), good.points[0].link_specifiers[1:], ((0, b"\0" * 6), (2, b"x" * 20)))
            )
        ]
        descriptor = good._replace(points=(*bad, good.points[2]))
        home.descriptor = lambda: descriptor
        await home.meet()
        assert [one.point for one in home.service.introductions] == [2]


async def test_without_points_a_service_is_asleep() -> None:
    async with a_home() as home:
        asleep = home.descriptor()._replace(points=())
        home.descriptor = lambda: asleep
        assert (await failure_of(home)).step is OnionStep.INTRODUCTION


@pytest.mark.parametrize("moment", ["cookie", "introduction"])
async def test_a_meeting_that_is_given_up_leaves_nothing_behind(moment: str) -> None:
    async with a_home() as home, trio.open_nursery() as nursery:

        def give_up(*_: object) -> None:
            nursery.cancel_scope.cancel()

        if moment == "cookie":
            home.net.on_establish_rendezvous = give_up
        else:
            home.service.on_introduce = give_up
        await home.meet()


def test_relays_are_made_of_what_a_service_says_and_of_nothing_else() -> None:
    (fake,) = fresh_relays(1)
    service = OnionService(OnionNetwork([fake]), [fake], fake)
    point = IntroductionPoint(*service.points[0])
    from torkit.hs.introduction import relay_of as introduction_relay

    relay = introduction_relay(point, allow_internal=True)
    known = relay_of(fake)
    for name in ("identity", "ed25519_identity", "ntor_onion_key", "address", "or_port"):
        assert getattr(relay, name) == getattr(known, name)
    assert not relay.protocols.supports("Relay", 1)
    with pytest.raises(CircuitError, match="none on the internet"):
        introduction_relay(point, allow_internal=False)
