"""Messages in a wrong state while an onion service is met: tor#41297 and its kind."""

from collections.abc import Callable

import pytest
import trio
from onion_home import GUARD, RENDEZVOUS, a_home, failure_of
from trio.testing import MockClock

from torkit._fast.cells import RelayCommand
from torkit.errors import CircuitError, EndReason, OnionStep
from torkit.net.onion.meeting import MAX_ATTEMPTS
from torkit.testing.onion import End, Introduction


async def test_a_rendezvous_point_that_speaks_before_it_is_asked_loses_its_circuit(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:
        home.on_built = lambda far: len(far.hops) == 3 and far.send(3, RelayCommand.RENDEZVOUS_ESTABLISHED)
        error = await failure_of(home)
        assert error.step is OnionStep.RENDEZVOUS
        assert "RENDEZVOUS_ESTABLISHED arrived, which nobody waits for" in str(error)
        assert home.service.introductions == []  # nothing was sent to anybody


async def test_a_service_that_comes_before_it_was_asked_ends_the_circuit(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:

        def establish_and_speak(end: End, cookie: bytes) -> None:
            home.net.answer_establish_rendezvous(end, cookie)
            end.send(RelayCommand.RENDEZVOUS2, bytes(148))

        home.net.on_establish_rendezvous = establish_and_speak
        error = await failure_of(home)
        assert error.step is OnionStep.RENDEZVOUS
        assert "RENDEZVOUS2 arrived, which nobody waits for" in str(error)


async def test_an_acknowledgement_before_the_introduction_ends_its_circuit(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:
        home.on_built = lambda far: (
            len(far.hops) == 4 and far.send(4, RelayCommand.INTRODUCE_ACK, 0, b"\0\0\0")
        )
        error = await failure_of(home)
        assert error.step is OnionStep.INTRODUCTION
        assert "INTRODUCE_ACK arrived, which nobody waits for" in str(error)
        assert home.service.introductions == []


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda reply: reply[:32] + bytes(32), "AUTH is wrong"),
        (lambda reply: bytes(64), "degenerate"),
        (lambda reply: reply[32:] + reply[:32], "AUTH is wrong"),
    ],
    ids=["no AUTH", "no key", "turned"],
)
async def test_somebody_else_at_the_rendezvous_point_is_not_taken_for_the_service(
    patient_clock: MockClock, spoil: Callable[[bytes], bytes], match: str
) -> None:
    async with a_home() as home:
        service = home.service

        def answer(introduction: Introduction) -> None:
            introduction.acknowledge()
            service.meet(introduction, spoil(introduction.reply))

        service.on_introduce = answer
        error = await failure_of(home)
        assert error.step is OnionStep.RENDEZVOUS
        assert match in str(error)
        cookies = [one.cookie for one in service.introductions]
        assert 1 < len(cookies) <= MAX_ATTEMPTS
        assert len(set(cookies)) == len(cookies)


async def test_who_guesses_the_answer_at_the_rendezvous_point_is_nobody(patient_clock: MockClock) -> None:
    async with a_home() as home:
        rendezvous, other = home.fakes[RENDEZVOUS], home.fakes[GUARD]
        fault = rendezvous.sending(RelayCommand.RENDEZVOUS2, nth=None).impersonate(other)
        assert "AUTH is wrong" in str(await failure_of(home))
        assert fault.count > 1


async def test_an_answer_that_is_too_short_is_refused(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:

        def answer(introduction: Introduction) -> None:
            introduction.acknowledge()
            circuit, number = home.net.cookies[introduction.cookie]
            circuit.send(number, RelayCommand.RENDEZVOUS2, 0, introduction.reply[:63])

        home.service.on_introduce = answer
        assert "RENDEZVOUS2" in str(await failure_of(home))


async def test_a_second_answer_ends_the_circuit_that_has_joined() -> None:
    async with a_home() as home:
        circuit = await home.meet()
        (introduction,) = home.service.introductions
        far, number = home.net.cookies[introduction.cookie]
        far.send(number, RelayCommand.RENDEZVOUS2, 0, introduction.reply)
        far.link.on_output()
        with trio.fail_after(10):
            while circuit.error is None:
                await trio.sleep(0.01)
        assert isinstance(circuit.error, CircuitError)
        home.met = 0


async def test_streams_are_not_the_rendezvous_points(tmp_path: object) -> None:
    async with a_home() as home:
        circuit = await home.meet()
        stream = circuit.begin_service(80)
        await stream.wait_connected()
        far, number = home.net.cookies[home.service.introductions[0].cookie]
        far.send(number, RelayCommand.DATA, next(iter(far.streams)), b"forged")
        far.link.on_output()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert stream.failure is not None
        assert stream.failure.reason is EndReason.DESTROY
        home.met = 0
