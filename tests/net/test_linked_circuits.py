"""Two circuits that an exit links: the handshake, and how a set ends. Real TLS, scripted relays."""

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from served import CONGESTION_CONTROL, build, fresh_relays, serve_channel
from waiting import until

from torkit._fast.cells import RelayCommand
from torkit.errors import CircuitClosed, CircuitError
from torkit.events import CircuitsLinked, SetEnded
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.linked import LegLinked, LinkedCircuit, link_leg
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.stream import StreamBroken
from torkit.net.circuit.tunnel import Tunnel
from torkit.net.journal import Journal
from torkit.testing.relay import FakeCircuit, FakeRelay, FakeStream, Fault, RelayCell

NONCE = bytes(range(32))
EXIT = 3  # hop


class LinkingExit:
    """Answers LINK, and has what else it was told in `told`, as (circuit, command)."""

    def __init__(self, relay: FakeRelay) -> None:
        self.relay = relay
        self.told: list[tuple[FakeCircuit, int]] = []
        self.answer: Callable[[bytes], bytes | None] = lambda body: body[:49] + b"\1"
        relay.on_unknown = self.receive

    def receive(self, circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        self.told.append((circuit, cell.command))
        if cell.command == RelayCommand.CONFLUX_LINK:
            assert number == EXIT
            answer = self.answer(cell.body)
            if answer is not None:
                circuit.send(number, RelayCommand.CONFLUX_LINKED, 0, answer)

    def count(self, command: int) -> int:
        return [told for _, told in self.told].count(command)


@asynccontextmanager
async def linking() -> AsyncIterator[tuple[Circuit, Circuit, LinkingExit]]:
    """Two circuits to one exit, here by the same guard and middle: an exit does not look at those."""
    relays = fresh_relays(3)
    exit_ = LinkingExit(relays[2])
    async with serve_channel(relays[0]) as channel:
        first = await build(channel, relays, protocols=CONGESTION_CONTROL)
        second = await build(channel, relays, protocols=CONGESTION_CONTROL)
        yield first, second, exit_
        first.close()
        second.close()


async def linked(
    first: Circuit, second: Circuit, journal: Journal | None = None, **params: int
) -> LinkedCircuit:
    legs = [await link_leg(one, NONCE) for one in (first, second)]
    return LinkedCircuit(legs, CircuitSettings(params, journal=journal))


async def test_an_exit_links_two_circuits_and_is_told_that_we_know() -> None:
    async with linking() as (first, second, exit_):
        pair = await linked(first, second)
        await until(lambda: exit_.count(RelayCommand.CONFLUX_LINKED_ACK) == 2)
        assert exit_.count(RelayCommand.CONFLUX_LINK) == 2
        assert pair.paths == (first.path, second.path)
        assert pair.stream_count == 0
        assert not pair.sends_early


async def test_listeners_hear_of_a_set_and_of_what_each_leg_has_carried() -> None:
    async with linking() as (first, second, _):
        heard: list[object] = []
        journal = Journal()
        journal.add(heard.append)
        pair = await linked(first, second, journal)
        await pair.begin("web.test", 80).wait_connected()
        pair.close("the test ends")
        (made,) = (one for one in heard if isinstance(one, CircuitsLinked))
        (ended,) = (one for one in heard if isinstance(one, SetEnded))
        assert (made.circuit, made.legs) == (pair.id, (first.id, second.id))
        assert [leg.circuit for leg in ended.legs] == [first.id, second.id]
        assert sorted((leg.sent, leg.received) for leg in ended.legs) == [(0, 0), (1, 1)]
        assert all(rtt > 0 for rtt in (*made.rtts, *(leg.rtt for leg in ended.legs)))
        assert ended.reason == "the circuit was closed here: the test ends"


async def test_streams_of_a_set_come_by_either_leg() -> None:
    async with linking() as (first, second, _):
        pair = await linked(first, second)
        stream = pair.begin("web.test", 80)
        await stream.wait_connected()
        assert sorted((one.sent, one.received) for one in pair.carried()) == [(0, 0), (1, 1)]
        assert first.stream_count == second.stream_count == 0  # a leg has none of its own


@pytest.mark.parametrize(
    "answer",
    [
        lambda body: b"\2" + body[1:49] + b"\1",
        lambda body: body[:32] + b"\xff" + body[33:49] + b"\1",
        lambda body: body[:33] + struct.pack(">QQB", 1, 0, 1),
        lambda body: body[:49] + b"\5",
        lambda body: b"",
    ],
)
async def test_a_wrong_answer_ends_the_circuit(answer: Callable[[bytes], bytes]) -> None:
    async with linking() as (first, _, exit_):
        exit_.answer = answer
        with pytest.raises(CircuitError, match="CONFLUX_LINKED"):
            await link_leg(first, NONCE)
        assert first.error is not None
        assert exit_.count(RelayCommand.CONFLUX_LINKED_ACK) == 0


@pytest.mark.parametrize(
    "story",
    [
        lambda answer: answer.duplicate(),
        lambda answer: answer.cut(),
        lambda answer: answer.cut(0),
        lambda answer: answer.cut(49),
        lambda answer: answer.corrupt(),
        lambda answer: answer.lie(lambda body: b"\xff" * len(body)),
        lambda answer: answer.destroy(),
    ],
)
async def test_a_leg_whose_answer_goes_wrong_ends_and_the_other_goes_on(
    story: Callable[[Fault], Fault],
) -> None:
    async with linking() as (first, second, exit_):
        wrong = story(exit_.relay.sending(RelayCommand.CONFLUX_LINKED))
        with suppress(CircuitError, CircuitClosed):
            await link_leg(first, NONCE)
        await until(lambda: first.error is not None)
        assert wrong.count == 1
        await link_leg(second, NONCE)
        assert second.error is None


async def test_linked_unasked_or_twice_ends_the_circuit() -> None:
    async with linking() as (first, second, exit_):
        await link_leg(first, NONCE)
        await until(lambda: exit_.count(RelayCommand.CONFLUX_LINKED_ACK) == 1)
        far = exit_.told[0][0]
        far.send(EXIT, RelayCommand.CONFLUX_LINKED, 0, b"\1" + NONCE + bytes(16) + b"\1")
        await until(lambda: first.error is not None)
        assert isinstance(first.error, CircuitError)
        assert second.error is None


async def test_with_a_leg_that_was_used_everything_ends() -> None:
    async with linking() as (first, second, exit_):
        pair = await linked(first, second)
        stream = pair.begin("web.test", 80)
        await stream.wait_connected()
        ended = trio.Event()
        pair.on_end = lambda _: ended.set()
        used = next(leg for leg, one in zip(pair.legs, pair.carried(), strict=True) if one.sent)
        far = next(far for far, _ in exit_.told if far.circ_id == used.core.id)
        far.destroy()
        await ended.wait()
        with pytest.raises(StreamBroken):
            await stream.receive_some()
        assert first.error is not None
        assert second.error is not None
        assert isinstance(pair.error, CircuitClosed)
        with pytest.raises(CircuitClosed):
            pair.begin("web.test", 80)


async def test_as_much_waits_for_its_turn_as_the_consensus_allows() -> None:
    async with linking() as (first, second, exit_):
        pair = await linked(first, second, cfx_max_oooq_bytes=0)
        stream = pair.begin("web.test", 80)
        await stream.wait_connected()
        ended = trio.Event()
        pair.on_end = lambda _: ended.set()
        idle = next(leg for leg, one in zip(pair.legs, pair.carried(), strict=True) if not one.sent)
        far = next(far for far, _ in exit_.told if far.circ_id == idle.core.id)
        far.send(EXIT, RelayCommand.CONFLUX_SWITCH, 0, struct.pack(">I", 2))
        far.send(EXIT, RelayCommand.END, 1, b"\1")  # before one that the other leg never brings
        await ended.wait()
        assert "before what comes first" in str(pair.error)


async def test_nothing_is_sent_before_a_stream_is_connected() -> None:
    async with linking() as (first, second, exit_):
        pair = await linked(first, second)
        far: list[FakeStream] = []
        exit_.relay.on_begin = far.append
        stream = pair.begin("late.test", 80)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"early")
            await until(lambda: far)
            exit_.relay.on_begin = FakeStream.connected
            await pair.begin("web.test", 80).wait_connected()
            assert far[0].received == b""
            far[0].connected()
            await until(lambda: far[0].received == b"early")


async def test_a_leg_that_carried_nothing_is_lost_alone() -> None:
    async with linking() as (first, second, exit_):
        pair = await linked(first, second)
        stream = pair.begin("web.test", 80)
        await stream.wait_connected()
        idle = next(leg for leg, one in zip(pair.legs, pair.carried(), strict=True) if not one.sent)
        next(far for far, _ in exit_.told if far.circ_id == idle.core.id).destroy()
        await until(lambda: idle.error is not None)
        assert pair.error is None
        assert len(pair.legs) == 1
        again = pair.begin("web.test", 80)
        await again.wait_connected()
        pair.close()
        assert first.error is not None
        assert second.error is not None


async def test_closing_a_set_closes_its_legs_once() -> None:
    async with linking() as (first, second, _):
        pair = await linked(first, second)
        stream = pair.begin("web.test", 80)
        ended: list[Tunnel] = []
        pair.on_end = ended.append
        pair.close("the test ends")
        pair.close("again")
        assert ended == [pair]
        assert str(first.error) == str(second.error) == "the circuit was closed here: the test ends"
        with pytest.raises(StreamBroken):
            await stream.wait_connected()


async def test_a_leg_that_ended_while_the_other_was_linked_makes_no_set() -> None:
    async with linking() as (first, second, _):
        legs: list[LegLinked] = [await link_leg(one, NONCE) for one in (first, second)]
        first.close()
        with pytest.raises(Exception, match="a leg is a circuit that is open"):
            LinkedCircuit(legs, CircuitSettings())
