"""Congestion control, XON and XOFF over real TLS: what we send of them, and what we take from a peer.

The clock is trio's mock clock, which stands still until a test moves it.
"""

import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import pytest
import trio
import trio.testing
from clocks import HastyClock
from served import Arrivals, fresh_relays, open_stream, relay_of, serve_channel
from waiting import until

from torkit._fast.cells import Command, RelayCommand
from torkit.directory.netdoc import decode_protocols
from torkit.errors import CircuitError, DestroyReason, EndReason
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.stream import Stream, StreamBroken
from torkit.net.link.channel import Channel
from torkit.testing.relay import (
    CC_RESPONSE,
    FULL,
    WITHOUT_CGO,
    WITHOUT_NTOR_V3,
    FakeCircuit,
    FakeRelay,
    FakeStream,
    answer_begin,
    answer_resolve,
)
from torkit.testing.relay.raw_tls import RawPeer, raw_server

# Small, for speed: XOFF takes 10 cells.
LIMIT_CELLS = 10
LIMIT = LIMIT_CELLS * 488  # bytes
PARAMS = {"cc_xoff_client": LIMIT_CELLS, "cc_xoff_exit": LIMIT_CELLS, "cc_xon_rate": LIMIT_CELLS}
GRACE = 0.005  # seconds

LAYERS = pytest.mark.parametrize("protocols", [WITHOUT_CGO, FULL], ids=["tor1", "cgo"])


@dataclass
class Served:
    """A circuit with a stream, both ends of it; and a neighbour on the same channel."""

    channel: Channel
    relays: list[FakeRelay]
    circuit: Circuit
    stream: Stream
    far: FakeStream
    neighbour: Stream
    far_neighbour: FakeStream

    async def settle(self) -> None:
        """Until what either end has said so far has been heard by the other, and answered."""
        for _ in range(2):
            await self.circuit.resolve("name.test")

    async def assert_neighbour_lives(self) -> None:
        self.far_neighbour.write(b"unharmed")
        assert await self.neighbour.receive_some() == b"unharmed"
        await self.neighbour.send_all(b"as well")
        await self.neighbour.circuit.resolve("name.test")
        assert self.far_neighbour.received.endswith(b"as well")
        assert self.channel.error is None

    async def assert_only_the_circuit_fails(self, message: str) -> None:
        """The circuit ends by a breach of the peer's: with DESTROY, and without its neighbour."""
        destroyed = Arrivals()
        self.relays[0].on_destroy = destroyed
        with pytest.raises(StreamBroken) as caught:
            await self.stream.receive_some()
        assert isinstance(self.circuit.error, CircuitError)
        assert repr(caught.value.__cause__) == repr(self.circuit.error)
        with pytest.raises(StreamBroken):
            await self.stream.send_all(b"x")
        assert message in str(self.circuit.error)
        far, reason = await destroyed.next()
        assert far is self.far.circuit
        assert reason == DestroyReason.NONE
        await self.assert_neighbour_lives()


async def build(channel: Channel, fakes: list[FakeRelay], settings: CircuitSettings) -> Circuit:
    """A circuit through relays that list what they can do."""
    circuit = channel.open_circuit(8, settings)
    for number, fake in enumerate(fakes):
        relay = relay_of(fake, protocols=decode_protocols(fake.protocols))
        is_last = number == len(fakes) - 1
        if number == 0:
            await circuit.create(relay, is_last=is_last)
        else:
            await circuit.extend(relay, is_last=is_last)
    return circuit


@asynccontextmanager
async def serve(
    protocols: str, *, sendme_inc: int = 31, half_open_time: float = 60.0
) -> AsyncIterator[Served]:
    """Two circuits of two hops, whose exit lists `protocols`; at the end no relay has a complaint."""
    relays = fresh_relays(2)
    relays[1].protocols = protocols
    relays[1].cc_sendme_inc = sendme_inc
    relays[1].cc_xoff_client = LIMIT_CELLS
    relays[1].hosts["name.test"] = ["192.0.2.1"]
    settings = CircuitSettings(PARAMS, half_open_time=half_open_time)
    async with serve_channel(relays[0]) as channel:
        neighbour = await build(channel, relays, settings)
        neighbours_ends = await open_stream(neighbour, relays[1])
        circuit = await build(channel, relays, settings)
        yield Served(channel, relays, circuit, *await open_stream(circuit, relays[1]), *neighbours_ends)
    assert [relay.complaints for relay in relays] == [[], []]


# --- Our XOFF and XON ----------------------------------------------------------------------------------


@LAYERS
async def test_a_slow_reader_sends_one_xoff_after_the_grace_and_xon_once_drained(
    protocols: str, mock_clock: trio.testing.MockClock
) -> None:
    async with serve(protocols) as served:
        far = served.far
        far.write(bytes(LIMIT + 1))
        await served.settle()
        mock_clock.jump(GRACE)
        far.write(b"x")
        await served.settle()
        assert far.xoffs_received == 0
        mock_clock.jump(0.000_01)
        far.write(b"x")
        await served.settle()
        assert far.xoffs_received == 1
        assert not far.sending

        mock_clock.jump(1)
        for _ in range(50):
            far.data(b"under way")
        await served.settle()
        assert far.xoffs_received == 1

        expected = LIMIT + 3 + 50 * len(b"under way")
        got = len(await served.stream.receive_some(expected - 1))
        await served.settle()
        assert far.rates == []  # a byte is left
        got += len(await served.stream.receive_some())
        await served.settle()
        assert got == expected
        assert far.sending
        assert len(far.rates) == 1
        far.write(b"goes on")
        assert await served.stream.receive_some() == b"goes on"


async def test_a_reader_that_catches_up_within_the_grace_sends_no_xoff(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serve(WITHOUT_CGO) as served:
        for length in (LIMIT + 1, 1, LIMIT + 1, 1):
            served.far.write(bytes(length))
            await served.settle()
            mock_clock.jump(GRACE)
            assert len(await served.stream.receive_some()) == length
            mock_clock.jump(1)
        assert served.far.xoffs_received == 0


async def test_a_slow_reader_does_not_hold_its_neighbour_on_the_circuit(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serve(WITHOUT_CGO) as served:
        other, far_other = await open_stream(served.circuit, served.relays[1])
        served.far.write(bytes(LIMIT + 1))
        await served.settle()
        mock_clock.jump(1)
        served.far.write(b"x")
        await served.settle()
        assert not served.far.sending
        far_other.write(b"q" * 100_000)
        got = 0
        while got < 100_000:
            got += len(await other.receive_some())


# --- The peer's XOFF and XON ---------------------------------------------------------------------------


@LAYERS
async def test_xoff_pauses_sending_and_xon_resumes_it(protocols: str) -> None:
    async with serve(protocols) as served:
        stream, far = served.stream, served.far
        other, far_other = await open_stream(served.circuit, served.relays[1])
        await stream.send_all(bytes(LIMIT))
        await served.settle()
        far.xoff()
        await served.settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"after XON")
            await other.send_all(b"meanwhile")
            await served.settle()
            assert far.received == bytes(LIMIT)
            assert far_other.received == b"meanwhile"
            far.xon()
        await served.settle()
        assert far.received == bytes(LIMIT) + b"after XON"


@pytest.mark.parametrize("end", [lambda far: far.end(EndReason.TIMEOUT), lambda far: far.circuit.destroy()])
async def test_a_paused_sender_hears_of_the_end(end: Callable[[FakeStream], object]) -> None:
    async with serve(WITHOUT_CGO) as served:
        await served.stream.send_all(bytes(LIMIT))
        await served.settle()
        served.far.xoff()
        await served.settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_broken, served.stream)
            await trio.testing.wait_all_tasks_blocked()
            end(served.far)


async def send_until_broken(stream: Stream) -> None:
    with pytest.raises(StreamBroken):
        await stream.send_all(b"never")


async def test_the_rate_in_an_xon_is_kept_to(mock_clock: trio.testing.MockClock) -> None:
    async with serve(WITHOUT_CGO) as served:
        await served.stream.send_all(bytes(LIMIT))
        await served.settle()
        served.far.xon(kbps_ewma=1)  # 1000 bytes a second
        await served.settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.stream.send_all, bytes(2500))
            for sent in (1000, 2000):
                for _ in range(2):
                    await served.settle()
                    assert len(served.far.received) == LIMIT + sent
                    mock_clock.jump(0.51)
        await served.settle()
        assert len(served.far.received) == LIMIT + 2500


async def test_a_sender_goes_on_though_its_time_comes_while_it_looks(hasty_clock: HastyClock) -> None:
    """It once looked twice, and where its time came in between, it waited for ever."""
    async with serve(WITHOUT_CGO) as served:
        await served.stream.send_all(bytes(LIMIT))
        await served.settle()
        served.far.xon(kbps_ewma=1000)  # 1 MB a second
        await served.settle()
        with trio.fail_after(60):
            for _ in range(9):
                await served.stream.send_all(bytes(2_100))  # a piece has two looks, and a bit
            await served.settle()
        assert len(served.far.received) == LIMIT + 9 * 2_100


@pytest.mark.parametrize("end", [lambda far: far.end(EndReason.TIMEOUT), lambda far: far.circuit.destroy()])
async def test_a_sender_that_keeps_to_a_rate_hears_of_the_end(
    end: Callable[[FakeStream], object], mock_clock: trio.testing.MockClock
) -> None:
    async with serve(WITHOUT_CGO) as served:
        await served.stream.send_all(bytes(LIMIT))
        await served.settle()
        served.far.xon(kbps_ewma=1)
        await served.settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_much_until_broken, served.stream)
            await trio.testing.wait_all_tasks_blocked()
            end(served.far)


async def send_much_until_broken(stream: Stream) -> None:
    with pytest.raises(StreamBroken):
        await stream.send_all(bytes(1_000_000))


async def test_a_new_rate_counts_at_once(mock_clock: trio.testing.MockClock) -> None:
    async with serve(WITHOUT_CGO) as served:
        stream, far = served.stream, served.far
        await stream.send_all(bytes(3 * LIMIT))
        await served.settle()
        far.xon(kbps_ewma=1)
        await served.settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(50_000))
            await trio.testing.wait_all_tasks_blocked()
            far.xon(kbps_ewma=0)  # no limit
        await served.settle()
        assert len(far.received) == 3 * LIMIT + 50_000


async def test_xoff_before_connected_is_no_answer() -> None:
    async with serve(WITHOUT_CGO) as served:
        begun = Arrivals()
        served.relays[1].on_begin = begun
        stream = served.circuit.begin("slow.test", 80)
        await stream.send_all(bytes(LIMIT))
        await served.settle()
        far = await begun.next()
        far.xoff()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.wait_connected)
            await served.settle()
            answer_begin(far)


async def test_a_stream_closed_here_tolerates_what_was_under_way() -> None:
    async with serve(WITHOUT_CGO) as served:
        await served.stream.send_all(bytes(LIMIT))
        await served.settle()
        await served.stream.aclose()
        served.far.xoff()
        served.far.xon()
        for _ in range(40):
            served.far.data(b"late")
        await served.settle()
        assert served.circuit.error is None


async def test_a_name_lookup_tolerates_xon_and_xoff() -> None:
    """An exit may treat every edge alike, and stop one that reads nothing."""

    def answer_after_flow_control(circuit: FakeCircuit, hop: int, stream_id: int, name: str) -> None:
        circuit.send(hop, RelayCommand.XOFF, stream_id, b"\0")
        circuit.send(hop, RelayCommand.XOFF, stream_id, b"\0")
        circuit.send(hop, RelayCommand.XON, stream_id, bytes(5))
        answer_resolve(circuit, hop, stream_id, name)

    async with serve(WITHOUT_CGO) as served:
        served.relays[1].on_resolve = answer_after_flow_control
        assert len(await served.circuit.resolve("name.test")) == 1
        assert served.circuit.error is None


# --- Windows -------------------------------------------------------------------------------------------


@LAYERS
async def test_an_upload_far_beyond_the_first_window_arrives(protocols: str) -> None:
    async with serve(protocols) as served:
        data = bytes(range(256)) * 1000  # 514 cells or more
        await served.stream.send_all(data)
        await served.settle()
        assert served.far.received == data


@pytest.mark.parametrize("sendme_inc", [30, 32])
async def test_both_ways_keep_to_the_increment_that_the_relay_negotiated(sendme_inc: int) -> None:
    async with serve(WITHOUT_CGO, sendme_inc=sendme_inc) as served:
        hop = served.far.hop
        await served.stream.send_all(bytes(498 * 64))
        served.far.write(bytes(498 * 64))
        await served.settle()
        assert (hop.sendmes_sent, hop.sendmes_received) == (2, 2)


async def test_the_window_grows_while_it_is_full() -> None:
    async with serve(WITHOUT_CGO) as served:
        held: list[bytes] = []
        served.relays[1].on_sendme_due = lambda circuit, hop, tag: held.append(tag)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.stream.send_all, bytes(498 * 1000))
            await served.settle()
            assert served.far.hop.data_received == 124
            for round_ in (1, 2, 3):  # below gamma, so in slow start whatever the round trips were
                served.far.circuit.sendme(2, held.pop(0))
                await served.settle()
                assert served.far.hop.data_received == 124 + round_ * (31 + 31)
            nursery.cancel_scope.cancel()


async def test_congestion_control_knows_at_each_sendme_whether_the_relay_takes_too_little() -> None:
    [relay] = fresh_relays(1)
    is_blocked, may_read, is_unblocked = (threading.Event() for _ in range(3))

    def play(peer: RawPeer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        peer.shake_hands()
        link = peer.open_link()
        due: list[tuple[FakeCircuit, bytes]] = []
        relay.on_sendme_due = lambda circuit, hop, tag: due.append((circuit, tag))
        relay.on_begin_dir = lambda stream: stream.connected()
        while len(due) < 2:
            peer.send(peer.records(link.receive(peer.receive())))
        for may_acknowledge, (circuit, tag) in zip((is_blocked, is_unblocked), due, strict=True):
            assert may_acknowledge.wait(60)
            circuit.sendme(1, tag)
            peer.send(peer.records(link.take()))
            assert may_read.wait(60)
            while not is_unblocked.wait(0):
                link.receive(peer.receive())
        peer.wait_closed()

    with raw_server(relay, play) as address:
        async with trio.open_nursery() as nursery:
            channel = await Channel.connect(
                *address, rsa=relay.rsa_identity, ed25519=relay.ed_identity, rng=Random()
            )
            nursery.start_soon(channel.run)
            channel._tls._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
            circuit = channel.open_circuit(8, CircuitSettings())
            await circuit.create(relay_of(relay, protocols=decode_protocols(WITHOUT_CGO)), is_last=True)
            vegas = circuit.core.vegas(0)
            assert vegas is not None
            stream = circuit.begin_directory()
            await stream.wait_connected()
            await stream.send_all(bytes(498 * 62))
            for _ in range(400):  # 6 MB: no buffer of a socket has so much room
                channel.send_control(0, Command.VPADDING, bytes(16_000))
            await until(lambda: channel.is_congested)
            is_blocked.set()
            await until(lambda: vegas.rtt.maximum)
            assert (vegas.is_blocked, vegas.in_slow_start) == (True, False)
            may_read.set()
            await until(lambda: not channel.is_congested)
            is_unblocked.set()
            channel.send_control(0, Command.VPADDING, b"")  # so that the peer looks
            await until(lambda: not vegas.is_blocked)
            nursery.cancel_scope.cancel()


# --- Rules that a peer may break -----------------------------------------------------------------------


def early_xoff(served: Served) -> None:
    served.far.xoff()


def early_xon(served: Served) -> None:
    served.far.xon()


def xoff_of_another_version(served: Served) -> None:
    served.far.send(RelayCommand.XOFF, b"\1")


def empty_xoff(served: Served) -> None:
    served.far.send(RelayCommand.XOFF)


def xon_of_another_version(served: Served) -> None:
    served.far.send(RelayCommand.XON, b"\1\0\0\0\0")


def short_xon(served: Served) -> None:
    served.far.send(RelayCommand.XON, bytes(4))


@LAYERS
@pytest.mark.parametrize(
    ("misbehave", "message"),
    [
        (early_xoff, "XOFF before the data"),
        (early_xon, "XON before the data"),
        (xoff_of_another_version, "XOFF has version 1"),
        (empty_xoff, "XOFF"),
        (xon_of_another_version, "XON has version 1"),
        (short_xon, "XON"),
    ],
)
async def test_a_breach_ends_its_circuit_and_no_other(
    protocols: str, misbehave: Callable[[Served], None], message: str
) -> None:
    async with serve(protocols) as served:
        misbehave(served)
        await served.assert_only_the_circuit_fails(message)


async def test_a_byte_too_few_makes_an_xoff_early() -> None:
    async with serve(WITHOUT_CGO) as served:
        await served.stream.send_all(bytes(LIMIT - 1))
        await served.settle()
        served.far.xoff()
        await served.assert_only_the_circuit_fails("XOFF before the data")


async def test_xoff_in_xoff_ends_its_circuit_and_no_other() -> None:
    async with serve(WITHOUT_CGO) as served:
        await served.stream.send_all(bytes(5 * LIMIT))
        await served.settle()
        served.far.xoff()
        await served.settle()
        assert served.circuit.error is None
        served.far.xoff()
        await served.assert_only_the_circuit_fails("XOFF while XOFF holds")


@pytest.mark.parametrize("misbehave", [early_xoff, early_xon])
async def test_xon_and_xoff_without_congestion_control_end_the_circuit(
    misbehave: Callable[[Served], None],
) -> None:
    async with serve(WITHOUT_NTOR_V3) as served:
        await served.stream.send_all(bytes(5 * LIMIT))
        await served.settle()
        misbehave(served)
        await served.assert_only_the_circuit_fails("did not ask for it")


async def test_a_stream_sendme_under_congestion_control_ends_its_circuit_and_no_other() -> None:
    async with serve(WITHOUT_CGO) as served:
        served.far.send(RelayCommand.SENDME)
        await served.assert_only_the_circuit_fails("a stream SENDME arrived under congestion control")


async def test_data_after_the_grace_of_a_closed_stream_ends_its_circuit_and_no_other() -> None:
    async with serve(WITHOUT_CGO, half_open_time=0.0) as served:
        other, _ = await open_stream(served.circuit, served.relays[1])
        await served.stream.aclose()
        served.far.data(b"late")
        served.stream = other
        await served.assert_only_the_circuit_fails("DATA arrived long after its stream was closed")


def grant_what_nobody_asked(relays: list[FakeRelay]) -> None:
    relays[0].edit_extensions = lambda _: [(CC_RESPONSE, b"\x1f")]


def withhold_what_cgo_needs(relays: list[FakeRelay]) -> None:
    relays[1].edit_extensions = lambda _: []


def ask_for_rare_sendmes(relays: list[FakeRelay]) -> None:
    relays[1].cc_sendme_inc = 33


def ask_for_no_sendmes(relays: list[FakeRelay]) -> None:
    relays[1].cc_sendme_inc = 0


@pytest.mark.parametrize(
    ("misbehave", "message"),
    [
        (grant_what_nobody_asked, "did not ask for"),
        (withhold_what_cgo_needs, "CGO needs"),
        (ask_for_rare_sendmes, "every 33 cells"),
        (ask_for_no_sendmes, "every 0 cells"),
    ],
)
async def test_what_was_not_negotiated_makes_no_circuit_and_harms_no_other(
    misbehave: Callable[[list[FakeRelay]], None], message: str
) -> None:
    async with serve(FULL) as served:
        misbehave(served.relays)
        with pytest.raises(CircuitError, match=message):
            await build(served.channel, served.relays, CircuitSettings(PARAMS))
        await served.assert_neighbour_lives()
