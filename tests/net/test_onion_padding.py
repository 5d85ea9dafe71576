"""Circuits to onion services that their second relay pads: what goes to whom, and when they end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from onion_home import MIDDLE, SECOND, Home, a_home
from onion_home import RENDEZVOUS as POINT
from served import PLAIN
from setup_padder import ERR, INTRODUCTION, RENDEZVOUS, START, STOP, SetupPadder, say
from waiting import until

from torkit.errors import CircuitError
from torkit.net.circuits.shelves import MAX_DIRTINESS
from torkit.net.onion.stems import MAX_RELEASED, Stems
from torkit.testing.onion import Introduction
from torkit.testing.relay import FakeCircuit


@asynccontextmanager
async def a_padded_home() -> AsyncIterator[tuple[Home, SetupPadder]]:
    async with a_home() as home:
        home.protocols = f"{PLAIN} Padding=2"
        padder = SetupPadder()
        padder.pad_at(home.fakes[SECOND])
        yield home, padder


async def test_both_circuits_are_padded_by_their_second_relay() -> None:
    async with a_padded_home() as (home, padder):
        order: list[str] = []
        accept = home.service.accept
        ask = padder.answer

        def introduce(introduction: Introduction) -> None:
            order.append("INTRODUCE1")
            accept(introduction)

        def answer(circuit: FakeCircuit, machine: int) -> None:
            order.append(f"machine {machine}")
            ask(circuit, machine)

        home.service.on_introduce, padder.on_start = introduce, answer
        circuit = await home.meet()
        await until(lambda: len(home.open_circuits) == 1)
        assert circuit.error is None
        assert order == ["machine 1", "INTRODUCE1", "machine 0"]
        (introduction,), (rendezvous,) = padder.asked.values()
        assert padder.dropped == [(rendezvous, 2)]
        assert introduction.closed or introduction.hops[2].relay is home.fakes[MIDDLE]
        assert rendezvous.hops[2].relay is home.fakes[POINT]


async def test_an_introduction_circuit_that_is_still_padded_is_kept() -> None:
    async with a_padded_home() as (home, padder):
        padder.stops = False
        await home.meet()
        (kept,) = home.released
        (circuit,) = padder.asked[INTRODUCTION]
        say(circuit, STOP, INTRODUCTION)
        circuit.link.on_output()
        await trio.sleep(0.05)
        assert kept.error is None
        kept.release(None)  # now it need not be
        assert kept.error is not None


@pytest.mark.parametrize("is_early", [True, False])
async def test_an_acknowledgement_may_come_once_while_a_circuit_is_only_padded(is_early: bool) -> None:
    async with a_padded_home() as (home, padder):
        padder.stops = False
        if not is_early:
            home.service.on_introduce = home.service.meet
        await home.meet()
        (padded,) = home.released
        (introduction,) = home.service.introductions
        for _ in range(1 if is_early else 2):
            assert padded.error is None
            introduction.acknowledge()
            introduction.end.circuit.link.on_output()
            await trio.sleep(0.05)
        assert isinstance(padded.error, CircuitError)


async def test_a_relay_that_refuses_to_pad_is_not_waited_for() -> None:
    async with a_padded_home() as (home, padder):
        padder.on_start = lambda circuit, machine: say(circuit, START, machine, response=ERR)
        circuit = await home.meet()
        await until(lambda: len(home.open_circuits) == 1)
        assert circuit.error is None
        assert [len(circuits) for circuits in padder.asked.values()] == [1, 1]


async def test_a_relay_that_cannot_pad_or_need_not_is_not_asked() -> None:
    async with a_padded_home() as (home, padder):
        home.params = {"circpad_padding_disabled": 1}
        await home.meet()
        home.params, home.protocols = {}, PLAIN
        await home.meet()
        assert padder.asked == {INTRODUCTION: [], RENDEZVOUS: []}


@pytest.mark.parametrize("hop", [1, 3])
async def test_who_was_not_asked_to_pad_must_not_say_so(hop: int) -> None:
    async with a_padded_home() as (home, padder):
        answer = padder.answer

        def lie_at_first(circuit: FakeCircuit, machine: int) -> None:
            if len(padder.asked[machine]) == 1:
                say(circuit, START, machine, hop=hop)
            else:
                answer(circuit, machine)

        padder.on_start = lie_at_first
        await home.meet()
        await until(lambda: len(home.open_circuits) == 1)
        assert any(isinstance(one.error, CircuitError) for one in home.circuits)


async def test_nobody_may_negotiate_on_a_circuit_that_asked_for_nothing() -> None:
    async with a_home() as home:
        circuit = await home.meet()
        (far, _) = next(iter(home.net.cookies.values()))
        say(far, START, RENDEZVOUS)
        far.link.on_output()
        await until(lambda: circuit.error is not None)
        assert isinstance(circuit.error, CircuitError)
        home.met = 0


class Padded:
    """A circuit that is padded still."""

    def __init__(self) -> None:
        self.error: object = None

    def release(self, late: object) -> bool:
        return True

    def close(self, why: str = "") -> None:
        self.error = why


@asynccontextmanager
async def padded_circuits(count: int) -> AsyncIterator[tuple[Stems, list[Any]]]:
    anything: Any = None
    async with trio.open_nursery() as nursery:
        stems = Stems(anything, anything, anything, None)
        nursery.start_soon(stems.keep)
        circuits: list[Any] = [Padded() for _ in range(count)]
        for circuit in circuits:
            stems.let_go(circuit)
        yield stems, circuits
        nursery.cancel_scope.cancel()


async def test_not_too_many_circuits_are_kept_to_be_padded(autojump_clock: object) -> None:
    async with padded_circuits(MAX_RELEASED + 1) as (stems, circuits):
        assert [circuit.error is None for circuit in circuits] == [False] + MAX_RELEASED * [True]
        stems.close()
        assert all(circuit.error == "the client ends" for circuit in circuits[1:])


async def test_a_padded_circuit_is_closed_as_late_as_one_that_has_been_used(autojump_clock: object) -> None:
    async with padded_circuits(1) as (stems, circuits):
        await trio.sleep(MAX_DIRTINESS / 2)
        circuits.append(Padded())
        stems.let_go(circuits[1])
        await trio.sleep(MAX_DIRTINESS / 2 - 1)
        assert [circuit.error is None for circuit in circuits] == [True, True]
        await trio.sleep(2)
        assert [circuit.error is None for circuit in circuits] == [False, True]
        await trio.sleep(MAX_DIRTINESS / 2)
        assert circuits[1].error is not None


async def test_a_new_identity_keeps_none(autojump_clock: object) -> None:
    async with padded_circuits(2) as (stems, circuits):
        stems.renew()
        assert all(circuit.error is not None for circuit in circuits)
