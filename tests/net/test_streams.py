"""Streams through scripted relays over real TLS: trio's own checks, how streams end, and flow control."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import NoReturn

import pytest
import trio
import trio.testing
from served import (
    CONGESTION_CONTROL,
    PLAIN,
    Arrivals,
    FarStream,
    build,
    far_end,
    fresh_relays,
    open_stream,
    serve_channel,
    serve_circuit,
)

from torkit._fast.cells import RelayCommand
from torkit.errors import CircuitError, EndReason, InternalError, StreamClosed, UsageError
from torkit.net.circuit.stream import Stream, StreamBroken
from torkit.proto.messages import Answer, ResolvedError
from torkit.testing.relay import FakeRelay, FakeStream, ignore

CELL = 498  # bytes of data in a full cell
STREAM_WINDOW = 500  # cells
CIRCUIT_WINDOW = 1000


@asynccontextmanager
async def served_stream() -> AsyncIterator[tuple[Stream, FakeStream, FakeRelay]]:
    async with serve_circuit() as (circuit, relays):
        stream, far = await open_stream(circuit, relays[2])
        yield stream, far, relays[2]


async def receive_exactly(stream: Stream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        received = await stream.receive_some()
        assert received, f"ended after {len(data)} bytes"
        data += received
    return data


@pytest.mark.parametrize("protocols", [PLAIN, CONGESTION_CONTROL])
async def test_it_is_a_stream_as_trio_defines_it(protocols: str) -> None:
    async with serve_circuit(protocols=protocols) as (circuit, relays):
        begun = Arrivals(relays[2].on_begin)
        relays[2].on_begin = begun

        async def make() -> tuple[Stream, FarStream]:
            stream = circuit.begin("web.test", 80)
            await stream.wait_connected()
            return stream, FarStream(await begun.next())

        await trio.testing.check_two_way_stream(make, None)


# --- Opening -------------------------------------------------------------------------------------------


async def test_the_exit_is_told_where_to_and_nothing_more() -> None:
    async with serve_circuit() as (circuit, relays):
        _, far = await open_stream(circuit, relays[2])
        assert far.target == ("web.test", 80)
        assert far.hop_number == 3
        assert (await open_stream(circuit, relays[2]))[1].id != far.id


async def test_an_answer_that_comes_whole_with_connected_is_delivered() -> None:
    """CONNECTED, DATA and END in one read: the stream is connected all the same."""

    def answer_at_once(stream: FakeStream) -> None:
        stream.connected()
        stream.data(b"short")
        stream.end(EndReason.DONE)

    async with serve_circuit() as (circuit, relays):
        relays[2].on_begin = answer_at_once
        stream = circuit.begin("web.test", 80)
        await stream.wait_connected()
        assert await receive_exactly(stream, 5) == b"short"
        assert await stream.receive_some() == b""


@pytest.mark.parametrize(
    "reason", [EndReason.EXITPOLICY, EndReason.CONNECTREFUSED, EndReason.RESOLVEFAILED, EndReason.DONE]
)
async def test_a_refusal_tells_its_reason(reason: EndReason) -> None:
    async with serve_circuit() as (circuit, relays):
        relays[2].on_begin = lambda stream: stream.end(reason)
        stream = circuit.begin("web.test", 80)
        with pytest.raises(StreamClosed) as caught:
            await stream.wait_connected()
        assert caught.value.reason is reason
        assert circuit.error is None
        assert circuit.stream_count == 0


async def test_a_refusal_that_names_an_address_is_a_refusal() -> None:
    async with serve_circuit() as (circuit, relays):
        relays[2].on_begin = lambda stream: stream.end(
            EndReason.EXITPOLICY, bytes([192, 0, 2, 1, 0, 0, 0, 9])
        )
        with pytest.raises(StreamBroken) as caught:
            await circuit.begin("web.test", 80).wait_connected()
        assert caught.value.reason is EndReason.EXITPOLICY


async def test_an_unknown_reason_is_misc() -> None:
    async with serve_circuit() as (circuit, relays):
        relays[2].on_begin = lambda stream: stream.end(99)
        with pytest.raises(StreamBroken) as caught:
            await circuit.begin("web.test", 80).wait_connected()
        assert caught.value.reason is EndReason.MISC


@pytest.mark.parametrize("body", [b"", bytes(4), bytes(4) + b"\6" + bytes(15), b"\1\2\3"])
async def test_connected_of_any_length_is_read_or_ends_the_circuit(body: bytes) -> None:
    relays = fresh_relays(3)
    relays[2].on_begin = lambda stream: stream.send(RelayCommand.CONNECTED, body)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        stream = circuit.begin("web.test", 80)
        if body:
            with pytest.raises(StreamBroken):
                await stream.wait_connected()
            assert isinstance(circuit.error, CircuitError)
        else:
            await stream.wait_connected()


async def test_data_before_connected_ends_the_circuit() -> None:
    relays = fresh_relays(3)
    relays[2].on_begin = lambda stream: stream.data(b"early")
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        with pytest.raises(StreamBroken) as caught:
            await circuit.begin("web.test", 80).wait_connected()
        assert isinstance(caught.value.__cause__, CircuitError)


async def test_data_may_be_sent_before_connected_comes() -> None:
    async with serve_circuit() as (circuit, relays):
        begun, arrived = Arrivals(), Arrivals()
        relays[2].on_begin, relays[2].on_data = begun, arrived
        stream = circuit.begin("web.test", 80)
        far = await begun.next()
        await stream.send_all(b"hello")
        assert (await arrived.next())[1] == b"hello"
        far.connected()
        await stream.wait_connected()


async def test_a_name_that_is_none_is_not_sent_and_leaves_nothing_open() -> None:
    async with serve_circuit() as (circuit, relays):
        for host in ("", "with space", "ünicode.test", "a" * 300, "x\0y"):
            with pytest.raises(UsageError):
                circuit.begin(host, 80)
            with pytest.raises(UsageError):
                await circuit.resolve(host)
        # Circuit.resolve opened a stream before it looked at the name, and left it open.
        assert circuit.stream_count == 0
        sent = [cell.command for _, cell in far_end(relays[0]).control_cells]
        assert RelayCommand.BEGIN not in sent
        assert RelayCommand.RESOLVE not in sent


# --- Ending --------------------------------------------------------------------------------------------


async def test_done_is_the_end_after_all_data() -> None:
    async with served_stream() as (stream, far, _):
        far.write(b"last words")
        far.finish()
        assert await receive_exactly(stream, 10) == b"last words"
        assert await stream.receive_some() == b""
        assert await stream.receive_some() == b""
        with pytest.raises(StreamBroken):
            await stream.send_all(b"x")


async def test_data_before_an_end_is_delivered_whatever_the_end() -> None:
    async with served_stream() as (stream, far, _):
        far.write(bytes(100_000))
        far.finish(EndReason.CONNRESET)
        assert await receive_exactly(stream, 100_000) == bytes(100_000)
        with pytest.raises(StreamBroken) as caught:
            await stream.receive_some()
        assert caught.value.reason is EndReason.CONNRESET
        assert isinstance(caught.value, trio.BrokenResourceError)


async def test_data_before_the_circuits_end_is_delivered() -> None:
    relays = fresh_relays(3)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        stream, far = await open_stream(circuit, relays[2])
        far.write(b"last words")
        far.circuit.destroy()
        assert await receive_exactly(stream, 10) == b"last words"
        with pytest.raises(StreamBroken) as caught:
            await stream.receive_some()
        assert caught.value.reason is EndReason.DESTROY


async def test_a_blocked_receiver_and_a_blocked_sender_learn_of_the_end() -> None:
    async with served_stream() as (stream, far, exit_relay):
        exit_relay.on_stream_sendme_due = ignore

        async def receive() -> None:
            with pytest.raises(StreamBroken):
                await stream.receive_some()

        async def send() -> None:
            with pytest.raises(StreamBroken):
                await stream.send_all(bytes(CELL * (STREAM_WINDOW + 1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
            await received_by(exit_relay, far, CELL * STREAM_WINDOW)
            far.end(EndReason.MISC)


async def received_by(exit_relay: FakeRelay, far: FakeStream, length: int) -> None:
    """Until the exit has so much."""
    arrived = Arrivals()
    exit_relay.on_data = arrived
    while len(far.received) < length:
        await arrived.next()


async def test_closing_sends_end_misc_once() -> None:
    async with served_stream() as (stream, far, exit_relay):
        ended = Arrivals()
        exit_relay.on_end = ended
        await stream.aclose()
        await stream.aclose()
        stream.close()
        assert await ended.next() == (far, bytes([EndReason.MISC]))
        sent = [cell.command for _, cell in far.circuit.control_cells]
        assert sent.count(RelayCommand.END) == 1
        assert stream.circuit.stream_count == 0


async def test_closing_what_the_exit_has_ended_sends_nothing() -> None:
    async with served_stream() as (stream, far, _):
        far.end()
        assert await stream.receive_some() == b""
        await stream.aclose()
        assert await stream.circuit.resolve("sync.test")
        sent = [cell.command for _, cell in far.circuit.control_cells]
        assert RelayCommand.END not in sent


async def test_what_crosses_our_end_is_dropped_and_counted() -> None:
    """Else the circuit's windows would leak: the exit may have a whole window under way."""
    async with serve_circuit() as (circuit, relays):
        for _ in range(3):
            stream, far = await open_stream(circuit, relays[2])
            await stream.aclose()
            for _ in range(400):  # before the exit has seen END
                far.data(b"x")
        stream, far = await open_stream(circuit, relays[2])
        far.write(b"still here")
        assert await receive_exactly(stream, 10) == b"still here"


async def test_an_end_without_a_reason_ends_the_circuit() -> None:
    relays = fresh_relays(3)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        stream, far = await open_stream(circuit, relays[2])
        far.send(RelayCommand.END, b"")
        with pytest.raises(StreamBroken):
            await stream.receive_some()
        assert isinstance(circuit.error, CircuitError)


@pytest.mark.parametrize(
    "command", [RelayCommand.CONNECTED, RelayCommand.RESOLVED, RelayCommand.BEGIN, RelayCommand.EXTENDED2, 99]
)
async def test_a_message_that_a_stream_did_not_ask_for_ends_the_circuit(command: int) -> None:
    relays = fresh_relays(3)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        stream, far = await open_stream(circuit, relays[2])
        far.send(command, bytes(8))
        with pytest.raises(StreamBroken):
            await stream.receive_some()
        assert isinstance(circuit.error, CircuitError)


async def test_data_from_another_hop_than_the_streams_ends_the_circuit() -> None:
    relays = fresh_relays(3)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        stream, far = await open_stream(circuit, relays[2])
        far.circuit.send(1, RelayCommand.DATA, far.id, b"injected")
        with pytest.raises(StreamBroken):
            await stream.receive_some()
        assert isinstance(circuit.error, CircuitError)


# --- Misuse --------------------------------------------------------------------------------------------


async def test_a_closed_stream_says_so() -> None:
    async with served_stream() as (stream, _, _):
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.wait_send_all_might_not_block()


async def test_two_tasks_in_one_direction_are_refused() -> None:
    async with served_stream() as (stream, _, exit_relay):
        exit_relay.on_stream_sendme_due = ignore
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            nursery.start_soon(stream.send_all, bytes(CELL * (STREAM_WINDOW + 1)))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            with pytest.raises(trio.BusyResourceError):
                await stream.send_all(b"x")
            nursery.cancel_scope.cancel()


# --- Flow control --------------------------------------------------------------------------------------


async def test_sending_waits_for_the_streams_window_and_goes_on() -> None:
    async with served_stream() as (stream, far, exit_relay):
        acknowledge = exit_relay.on_stream_sendme_due
        exit_relay.on_stream_sendme_due = ignore
        data = bytes(range(250)) * (CELL * 2 * STREAM_WINDOW // 250)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            await received_by(exit_relay, far, CELL * STREAM_WINDOW)
            # A neighbour is not held back.
            other, other_far = await open_stream(stream.circuit, exit_relay)
            await other.send_all(b"neighbour")
            await received_by(exit_relay, other_far, 9)
            assert len(far.received) == CELL * STREAM_WINDOW
            exit_relay.on_stream_sendme_due = acknowledge
            for _ in range(STREAM_WINDOW // 50):
                acknowledge(far)
            await received_by(exit_relay, far, len(data))
        assert bytes(far.received) == data


async def test_sending_waits_for_the_circuits_window_and_goes_on() -> None:
    async with serve_circuit() as (circuit, relays):
        exit_relay = relays[2]
        due: list[tuple[int, bytes]] = []
        exit_relay.on_sendme_due = lambda _, hop, tag: due.append((hop, tag))
        pairs = [await open_stream(circuit, exit_relay) for _ in range(4)]
        arrived = Arrivals()
        exit_relay.on_data = arrived
        async with trio.open_nursery() as nursery:
            for stream, _ in pairs:
                nursery.start_soon(stream.send_all, bytes(CELL * 450))
            while sum(len(far.received) for _, far in pairs) < CELL * CIRCUIT_WINDOW:
                await arrived.next()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(due) == CIRCUIT_WINDOW // 100
            assert sum(len(far.received) for _, far in pairs) == CELL * CIRCUIT_WINDOW
            exit_relay.on_sendme_due = lambda far, hop, tag: far.sendme(hop, tag)
            for hop, tag in due:
                far_end(relays[0]).sendme(hop, tag)
        for _, far in pairs:
            await received_by(exit_relay, far, CELL * 450)


async def test_a_slow_reader_stops_its_own_exit_stream_and_no_other() -> None:
    async with served_stream() as (slow, slow_far, exit_relay):
        data = bytes(range(250)) * (CELL * 3 * STREAM_WINDOW // 250)
        slow_far.write(data)
        quick, quick_far = await open_stream(slow.circuit, exit_relay)
        quick_far.write(data)
        assert await receive_exactly(quick, len(data)) == data
        assert slow_far.package_window == 0
        assert await receive_exactly(slow, len(data)) == data


async def test_receiving_takes_no_more_than_asked_for() -> None:
    async with served_stream() as (stream, far, _):
        far.write(b"abcdef")
        assert await stream.receive_some(2) == b"ab"
        assert await stream.receive_some(1) == b"c"
        assert await receive_exactly(stream, 3) == b"def"


async def test_cancelling_a_send_cuts_no_cell_and_leaves_the_stream_usable() -> None:
    async with served_stream() as (stream, far, exit_relay):
        acknowledge = exit_relay.on_stream_sendme_due
        exit_relay.on_stream_sendme_due = ignore
        data = bytes(range(250)) * (CELL * 2 * STREAM_WINDOW // 250)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            await received_by(exit_relay, far, CELL * STREAM_WINDOW)
            nursery.cancel_scope.cancel()
        exit_relay.on_stream_sendme_due = acknowledge
        for _ in range(STREAM_WINDOW // 50):
            acknowledge(far)
        await stream.send_all(b"and on")
        await received_by(exit_relay, far, CELL * STREAM_WINDOW + 6)
        assert bytes(far.received) == data[: CELL * STREAM_WINDOW] + b"and on"


async def test_xoff_stops_and_xon_resumes_a_stream() -> None:
    async with serve_circuit(protocols=CONGESTION_CONTROL) as (circuit, relays):
        stream, far = await open_stream(circuit, relays[2])
        await stream.send_all(bytes(CELL * 2000))  # enough sent for an XOFF to be allowed
        await received_by(relays[2], far, CELL * 2000)
        far.send(RelayCommand.XOFF, b"\0")
        far.write(b"after the XOFF")
        assert await receive_exactly(stream, 14)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"waits")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(far.received) == CELL * 2000
            far.send(RelayCommand.XON, b"\0" + bytes(4))
            await received_by(relays[2], far, CELL * 2000 + 5)


# --- Resolving -----------------------------------------------------------------------------------------


async def test_a_stream_closed_in_mid_read_hears_no_more_of_it() -> None:
    """What followed in the same read found no owner, and the whole connection ended for it."""

    class Leaving:
        def on_change(self) -> None:
            stream.close()

        def on_xon(self) -> None:
            raise AssertionError

        def on_fault(self, error: InternalError) -> None:
            raise AssertionError

    async with serve_circuit() as (circuit, relays):
        stream, far = await open_stream(circuit, relays[2])
        far.circuit.ended_streams.add(far.id)
        stream.watcher = Leaving()
        far.data(b"the last")
        far.end()
        await circuit.resolve("sync.test")
        assert circuit.error is None


async def test_a_fault_of_ours_in_a_watcher_ends_what_it_serves_and_no_other_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It ended the whole connection to the relay, with the streams of everybody."""

    class Faulty:
        def __init__(self) -> None:
            self.faults: list[InternalError] = []

        def on_change(self) -> NoReturn:
            raise ValueError("web.test")

        on_xon = on_change

        def on_fault(self, error: InternalError) -> None:
            self.faults.append(error)

    async with serve_circuit() as (circuit, relays):
        stream, far = await open_stream(circuit, relays[2])
        other, far_other = await open_stream(circuit, relays[2])
        stream.watcher = faulty = Faulty()
        far.data(b"for nobody")
        far.end()
        far_other.data(b"still here")
        assert await other.receive_some() == b"still here"
        assert circuit.error is None
        said = [str(fault) for fault in faulty.faults]
        assert said == ["an internal error (ValueError) ended a connection"] * 2
        assert "web.test" not in caplog.text


async def test_resolve_gives_every_answer() -> None:
    async with serve_circuit() as (circuit, relays):
        relays[2].hosts["name.test"] = ["192.0.2.1", "2001:db8::1"]
        relays[2].hosts["1.2.0.192.in-addr.arpa"] = ["name.test"]
        assert await circuit.resolve("Name.test") == [
            Answer(IPv4Address("192.0.2.1"), 60),
            Answer(IPv6Address("2001:db8::1"), 60),
        ]
        assert await circuit.resolve(IPv4Address("192.0.2.1")) == [Answer("name.test", 60)]
        assert circuit.stream_count == 0


async def test_resolve_gives_the_error_that_the_exit_answers() -> None:
    async with serve_circuit() as (circuit, _):
        (answer,) = await circuit.resolve("unknown.test")
        assert answer.value is ResolvedError.NONTRANSIENT


async def test_resolve_refused_by_end_tells_the_reason() -> None:
    async with serve_circuit() as (circuit, relays):
        relays[2].on_resolve = lambda far, hop, stream_id, _: far.send(
            hop, RelayCommand.END, stream_id, bytes([EndReason.RESOURCELIMIT])
        )
        with pytest.raises(StreamBroken) as caught:
            await circuit.resolve("name.test")
        assert caught.value.reason is EndReason.RESOURCELIMIT
        assert circuit.stream_count == 0


async def test_resolve_can_be_given_up_and_a_late_answer_is_dropped() -> None:
    async with serve_circuit() as (circuit, relays):
        asked = Arrivals()
        answer = relays[2].on_resolve
        relays[2].on_resolve = asked
        async with trio.open_nursery() as nursery:
            nursery.start_soon(circuit.resolve, "name.test")
            far, hop, stream_id, name = await asked.next()
            far.ended_streams.add(stream_id)
            nursery.cancel_scope.cancel()
        answer(far, hop, stream_id, name)
        relays[2].on_resolve = answer
        assert await circuit.resolve("name.test")
        assert circuit.stream_count == 0


@pytest.mark.parametrize("body", [b"\4", b"\4\4\1\2\3\4", b"\4\3\1\2\3\0\0\0\1", b"\4\xff\1"])
async def test_a_malformed_answer_ends_the_circuit(body: bytes) -> None:
    relays = fresh_relays(3)
    relays[2].on_resolve = lambda far, hop, stream_id, _: far.send(
        hop, RelayCommand.RESOLVED, stream_id, body
    )
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        with pytest.raises(StreamBroken) as caught:
            await circuit.resolve("name.test")
        assert isinstance(caught.value.__cause__, CircuitError)
        assert isinstance(circuit.error, CircuitError)


async def test_data_for_a_look_up_ends_the_circuit() -> None:
    relays = fresh_relays(3)
    relays[2].on_resolve = lambda far, hop, stream_id, _: far.send(hop, RelayCommand.DATA, stream_id, b"x")
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        with pytest.raises(StreamBroken):
            await circuit.resolve("name.test")
        assert isinstance(circuit.error, CircuitError)


async def test_a_stream_that_is_not_answered_can_be_given_up() -> None:
    async with serve_circuit() as (circuit, relays):
        begun, ended = Arrivals(), Arrivals()
        relays[2].on_begin, relays[2].on_end = begun, ended
        stream = circuit.begin("web.test", 80)
        far = await begun.next()
        await stream.aclose()
        assert (await ended.next())[0] is far
        far.connected()  # crossed our END
        assert await circuit.resolve("sync.test")
        assert circuit.stream_count == 0
