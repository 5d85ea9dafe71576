"""Meeting an onion service: each message in its place, and what follows where somebody fails."""

import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from fakes import FakeCircuit, FakeRelay, ignore
from onion_service import BLINDED, Introduction, OnionService
from served import PLAIN, build, fresh_relays, relay_of, serve_channel
from trio.testing import MockClock

from torkit._fast.cells import RelayCommand
from torkit.directory.directory import Relay
from torkit.errors import CircuitClosed, CircuitError, EndReason, OnionServiceError, OnionStep, TimedOut
from torkit.hs.descriptor import Descriptor, ProofOfWork
from torkit.hs.introduction import PointFailure, Points
from torkit.hs.pow import Proof, Search, is_valid
from torkit.learnt.build_times import INITIAL, Timeouts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.purpose import ForOnion
from torkit.net.circuits.request import STREAM_TIMEOUT
from torkit.net.link.channel import Channel
from torkit.net.onion.meeting import MAX_ATTEMPTS, MAX_OTHER_FAILURES, PATIENCE, RESTS, Meeting
from torkit.net.onion.work import Worker

GUARD, SECOND, MIDDLE, RENDEZVOUS, SERVICE = range(5)
POINTS = range(5, 8)


class Home:
    """Where a meeting takes place: stems, descriptors, and the service."""

    reserve = None

    def __init__(self, channel: Channel, fakes: list[FakeRelay]) -> None:
        self.channel = channel
        self.fakes = fakes
        self.service = OnionService([fakes[number] for number in POINTS], fakes[SERVICE])
        self.service.stand_at(fakes[RENDEZVOUS])
        self.circuits: list[Circuit] = []
        self.fetched: list[bool] = []  # whether a newer one was asked for
        self.met = 0
        self.released: list[Circuit] = []  # nobody needs them but their padding
        self.points = Points()
        self.worker = Worker()
        self.broken_stems = 0  # how many of the next stems fail
        self.silent_stems = 0  # or are never built
        self.on_built: Callable[[FakeCircuit], object] = ignore  # before the client says anything on it
        self.protocols = PLAIN  # what the directory says of every relay
        self.params: dict[str, int] = {}  # the consensus's

    # --- stems ----------------------------------------------------------------------------------

    @property
    def timeouts(self) -> Timeouts:
        return INITIAL

    async def to_rendezvous_point(self, crowd: Hashable) -> Circuit:
        return await self._let_speak(await self._build(GUARD, SECOND, RENDEZVOUS))

    async def build(self, purpose: ForOnion, crowd: Hashable) -> Circuit:
        if self.silent_stems:
            self.silent_stems -= 1
            await trio.sleep_forever()
        if self.broken_stems:
            self.broken_stems -= 1
            raise CircuitClosed("the guard closed the circuit")
        return await self._build(GUARD, SECOND, MIDDLE)

    async def extend(self, stem: Circuit, target: Relay) -> None:
        try:
            await stem.extend(target, is_last=False)
        except BaseException:
            stem.close()
            raise
        await self._let_speak(stem)

    async def extend_ready(self, target: Relay) -> Circuit | None:
        return None

    async def keep(self) -> None:
        """Nothing is kept here."""

    def renew(self) -> None:
        """Nor does a new identity end anything."""

    def let_go(self, circuit: Circuit, late: RelayCommand | None = None) -> None:
        if circuit.release(late):
            self.released.append(circuit)

    async def _build(self, *numbers: int) -> Circuit:
        fakes = [self.fakes[number] for number in numbers]
        circuit = await build(self.channel, fakes, protocols=self.protocols, params=self.params)
        self.circuits.append(circuit)
        return circuit

    async def _let_speak(self, circuit: Circuit) -> Circuit:
        """Have the last relay say what it wants, and wait until that has arrived."""
        if self.on_built is not ignore:
            far = self.fakes[GUARD].circuits[self.circuits.index(circuit)]
            self.on_built(far)
            far.link.on_output()
            await trio.sleep(0.05)
        return circuit

    # --- descriptors ----------------------------------------------------------------------------

    async def get(self, identity: bytes, client_key: object, *, anew: bool = False) -> Descriptor:
        self.fetched.append(anew)
        await trio.lowlevel.checkpoint()
        return self.service.descriptor()

    def note_met(self, identity: bytes) -> None:
        self.met += 1

    # --- for tests ------------------------------------------------------------------------------

    async def meet(self, seconds: float = STREAM_TIMEOUT) -> Circuit:
        home: Any = self
        meeting = Meeting(
            b"i" * 32,
            "isolation",
            None,
            stems=home,
            descriptors=home,
            points=self.points,
            rng=Random(1),
            worker=self.worker,
            testing=True,
        )
        return await meeting.run(trio.current_time() + seconds)

    @property
    def open_circuits(self) -> list[Circuit]:
        released = self.released
        return [one for one in self.circuits if one.error is None and one not in released]


@asynccontextmanager
async def a_home() -> AsyncIterator[Home]:
    """At the end no relay has anything to complain about, and nothing is left open but what has joined."""
    fakes = fresh_relays(8)
    async with serve_channel(fakes[GUARD]) as channel:
        home = Home(channel, fakes)
        yield home
        assert len(home.open_circuits) == home.met
    assert [fake.complaints for fake in fakes] == [[]] * 8


def batched(items: list[Introduction], count: int) -> list[list[Introduction]]:
    return [items[at : at + count] for at in range(0, len(items), count)]


async def failure_of(home: Home) -> OnionServiceError:
    with pytest.raises(OnionServiceError) as caught:
        await home.meet()
    return caught.value


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
        assert first.circuit is not second.circuit
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
            home.points.note(
                home.service.point(number - POINTS[0]), PointFailure.REFUSED, trio.current_time()
            )
        await home.meet()
        assert home.fetched[:2] == [False, True]  # not before a newer descriptor was asked for


async def test_the_last_of_many_points_that_is_alive_is_found(patient_clock: MockClock) -> None:
    async with a_home() as home:
        service = home.service
        descriptor = service.descriptor()
        dead = [descriptor.points[0]._replace(auth_key=bytes([50 + number]) * 32) for number in range(19)]
        home.service.descriptor = lambda: descriptor._replace(  # type: ignore[method-assign]
            points=(*dead, descriptor.points[1])
        )
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
        assert len(home.points.usable(home.service.descriptor().points, now)) == 3
        home.broken_stems = 1 << 30
        with pytest.raises(CircuitClosed, match="the guard closed the circuit"):
            await home.meet()
        assert home.broken_stems > (1 << 30) - 2 * MAX_OTHER_FAILURES
        assert len(home.points.usable(home.service.descriptor().points, trio.current_time())) == 3


async def test_who_has_been_introduced_is_waited_for_though_no_circuit_can_be_built_any_more(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home, trio.open_nursery() as nursery:

        async def come_late(introduction: Introduction) -> None:
            await trio.sleep(55)
            home.service.meet(introduction)
            home.service.cookies[introduction.cookie][0].link.on_output()

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
        assert len(home.points.usable(home.service.descriptor().points, now)) == 3
        home.silent_stems = 1 << 30
        with pytest.raises(TimedOut):
            await home.meet()
        assert len(home.points.usable(home.service.descriptor().points, trio.current_time())) == 3


async def test_points_that_close_are_unreachable_and_tried_again_once_in_each_round(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:
        home.service.on_introduce = lambda introduction: introduction.circuit.destroy()
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


async def test_the_service_may_come_before_its_points_acknowledgement() -> None:
    async with a_home() as home:
        home.service.on_introduce = home.service.meet
        circuit = await home.meet()
        assert circuit.error is None


# --- Proof of work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", [1, 5])
async def test_a_service_gets_the_proof_of_work_that_it_asks_for(effort: int) -> None:
    async with a_home() as home:
        home.service.work = ProofOfWork(b"e" * 32, effort, expires=int(time.time()) + 3600)
        home.service.sendme_inc = 31
        await home.meet()
        (introduction,) = home.service.introductions
        extensions = introduction.extensions
        assert extensions[:5] == b"\2\1\0\2" + bytes([41])
        version, nonce, asked, head, solution = struct.unpack(">B16sI4s16s", extensions[5:])
        assert (version, asked, head) == (1, effort, b"e" * 4)
        assert is_valid(Proof(nonce, asked, head, solution), blinded=BLINDED, seed=b"e" * 32)


async def test_a_service_that_answers_nobody_gets_a_greater_effort_each_time(
    patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(worker: Worker, search: Search) -> Proof | None:
        return search.run()  # in no thread, for which the clock would not wait

    monkeypatch.setattr(Worker, "run", work)
    async with a_home() as home:
        service = home.service
        service.work = ProofOfWork(b"e" * 32, 1, expires=int(time.time()) + 3600)

        def accept_third(introduction: Introduction) -> None:
            introduction.acknowledge()
            if len(service.introductions) == 3:
                service.meet(introduction)

        service.on_introduce = accept_third
        await home.meet()
        efforts = [int.from_bytes(one.extensions[-24:-20], "big") for one in service.introductions]
        assert efforts == [1, 8, 16]


@pytest.mark.parametrize(("limit", "effort"), [(0, None), (3, 3), (100, 5)])
async def test_no_more_work_is_done_than_the_user_allows(
    limit: int, effort: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_home() as home:
        home.worker = Worker(limit)
        home.service.work = ProofOfWork(b"e" * 32, 5, expires=int(time.time()) + 3600)
        await home.meet()
        (introduction,) = home.service.introductions
        if effort is None:
            assert introduction.extensions == b"\0"
        else:
            assert int.from_bytes(introduction.extensions[-24:-20], "big") == effort
        warned = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(warned) == (limit < 5)


async def test_without_effort_there_is_no_proof_and_an_old_seed_has_a_newer_one_fetched() -> None:
    async with a_home() as home:
        home.service.work = ProofOfWork(b"e" * 32, 0, expires=int(time.time()) - 1)
        await home.meet()
        assert home.service.introductions[0].extensions == b"\0"
        assert home.fetched == [False, True]


async def test_a_search_ends_with_its_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torkit.hs.pow.MAX_EFFORT", 2**32 - 1)  # which nobody finds by chance
    monkeypatch.setattr("torkit.hs.pow.MAX_EFFORT_INTERPRETED", 2**32 - 1)
    async with a_home() as home:
        home.service.work = ProofOfWork(b"e" * 32, 2**32 - 1, expires=int(time.time()) + 3600)
        with trio.move_on_after(0.5):
            await home.meet()
        assert home.service.introductions == []


# --- Messages in a wrong state: tor#41297 and its kind ---------------------------------------------------


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

        def establish_and_speak(circuit: FakeCircuit, number: int) -> None:
            home.service.establish(circuit, number)
            circuit.send(number, RelayCommand.RENDEZVOUS2, 0, bytes(148))

        home.service.on_cookie = establish_and_speak
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


async def test_an_answer_that_is_too_short_is_refused(
    patient_clock: MockClock,
) -> None:
    async with a_home() as home:

        def answer(introduction: Introduction) -> None:
            introduction.acknowledge()
            circuit, number = home.service.cookies[introduction.cookie]
            circuit.send(number, RelayCommand.RENDEZVOUS2, 0, introduction.reply[:63])

        home.service.on_introduce = answer
        assert "RENDEZVOUS2" in str(await failure_of(home))


async def test_a_second_answer_ends_the_circuit_that_has_joined() -> None:
    async with a_home() as home:
        circuit = await home.meet()
        (introduction,) = home.service.introductions
        far, number = home.service.cookies[introduction.cookie]
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
        far, number = home.service.cookies[home.service.introductions[0].cookie]
        far.send(number, RelayCommand.DATA, next(iter(far.streams)), b"forged")
        far.link.on_output()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert stream.failure is not None
        assert stream.failure.reason is EndReason.DESTROY
        home.met = 0


async def test_points_that_no_relay_can_be_are_passed_over() -> None:
    async with a_home() as home:
        good = home.service.descriptor()
        bad = [
            point._replace(link_specifiers=specifiers, auth_key=bytes([9 + number]) * 32)
            for number, (point, specifiers) in enumerate(
                (good.points[0], specifiers)
                for specifiers in ((), good.points[0].link_specifiers[1:], ((0, b"\0" * 6), (2, b"x" * 20)))
            )
        ]
        descriptor = good._replace(points=(*bad, good.points[2]))
        home.service.descriptor = lambda: descriptor  # type: ignore[method-assign]
        await home.meet()
        assert [one.point for one in home.service.introductions] == [2]


async def test_without_points_a_service_is_asleep() -> None:
    async with a_home() as home:
        asleep = home.service.descriptor()._replace(points=())
        home.service.descriptor = lambda: asleep  # type: ignore[method-assign]
        assert (await failure_of(home)).step is OnionStep.INTRODUCTION


@pytest.mark.parametrize("moment", ["cookie", "introduction"])
async def test_a_meeting_that_is_given_up_leaves_nothing_behind(moment: str) -> None:
    async with a_home() as home, trio.open_nursery() as nursery:

        def give_up(*_: object) -> None:
            nursery.cancel_scope.cancel()

        if moment == "cookie":
            home.service.on_cookie = give_up
        else:
            home.service.on_introduce = give_up
        await home.meet()


def test_relays_are_made_of_what_a_service_says_and_of_nothing_else() -> None:
    (fake,) = fresh_relays(1)
    service = OnionService([fake], fake)
    from torkit.hs.introduction import relay_of as introduction_relay

    relay = introduction_relay(service.point(0), allow_internal=True)
    known = relay_of(fake)
    for name in ("identity", "ed25519_identity", "ntor_onion_key", "address", "or_port"):
        assert getattr(relay, name) == getattr(known, name)
    assert not relay.protocols.supports("Relay", 1)
    with pytest.raises(CircuitError, match="none on the internet"):
        introduction_relay(service.point(0), allow_internal=False)
