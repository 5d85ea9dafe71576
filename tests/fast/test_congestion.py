"""Circuits under congestion control: windows that move at SENDMEs, and streams that have none."""

from collections import deque
from collections.abc import Callable
from time import monotonic

import pytest
from fast.talk import (
    CGO,
    CONGESTION_CONTROL,
    CWND,
    DEFAULTS,
    STILL,
    WINDOWS,
    Talk,
    failure_of,
    still,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit._fast.cells import RelayCommand
from torkit._fast.circuit import Circuit
from torkit._fast.events import Message, Readable, Writable
from torkit._fast.stream import Stream
from torkit.errors import CircuitError
from torkit.proto.circuit import Cgo
from torkit.proto.flow import ClockGuard, CongestionParams, Vegas
from torkit.testing.relay import CC_RESPONSE, FakeStream

AT_EXIT = [WINDOWS, WINDOWS, CONGESTION_CONTROL]
WITH_CGO = [WINDOWS, WINDOWS, CGO]
DATA_LEN = {CONGESTION_CONTROL: 498, CGO: 488}
QUEUE_LEN_MAX = 16 << 20

END_MISC = b"\x01"


class Held:
    """A circuit through a relay that keeps its SENDMEs until the test says so. Time stands still."""

    def __init__(self, hops: list[str], congestion: CongestionParams = STILL, increment: int = 31) -> None:
        self.talk = Talk(hops=hops, congestion=congestion)
        self.talk.clock.set_to = 1.0
        self.talk.relays[2].cc_sendme_inc = increment
        self.due: deque[bytes] = deque()
        self.talk.relays[2].on_sendme_due = lambda far, hop, tag: self.due.append(tag)
        self.circuit = self.talk.circuit()
        self.stream = self.talk.stream(self.circuit)
        self.data_len = DATA_LEN[hops[2]]

    @property
    def vegas(self) -> Vegas:
        return vegas_of(self.circuit, 2)

    def wait(self, usec: int) -> None:
        self.talk.clock.set_to += usec / 1e6

    def put(self, count: int, stream: Stream | None = None) -> int:
        """Put so many cells; how many of them will go."""
        accepted = (stream or self.stream).put(bytes(count * self.data_len))
        self.talk.exchange()
        return accepted // self.data_len

    def fill(self, stream: Stream | None = None) -> int:
        """Put as much as will go: so many cells."""
        return self.put(2000, stream)

    def acknowledge(self) -> list[object]:
        """The oldest SENDME that is due; what it does here."""
        self.talk.far_end(self.circuit).sendme(3, self.due.popleft())
        return list(self.talk.exchange())


def vegas_of(circuit: Circuit, hop: int) -> Vegas:
    vegas = circuit.vegas(hop)
    assert vegas is not None
    return vegas


# --- Our window ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [AT_EXIT, WITH_CGO], ids=["tor1", "cgo"])
def test_put_stops_at_the_window_and_a_sendme_makes_room_for_one_increment(hops: list[str]) -> None:
    held = Held(hops)
    assert held.fill() == CWND
    assert held.fill() == 0
    held.wait(250_000)
    (writable,) = held.acknowledge()
    assert isinstance(writable, Writable)
    assert writable.stream is held.stream
    assert held.vegas.rtt.ewma == 250_000
    assert held.fill() == 31
    assert held.talk.complaints == []


def test_the_round_trip_is_that_of_the_cell_acknowledged() -> None:
    held = Held(AT_EXIT)
    for _ in range(2):
        held.wait(1_000_000)
        assert held.put(31) == 31
    held.wait(3_000_000)
    held.acknowledge()
    assert held.vegas.rtt.ewma == 4_000_000
    held.wait(500_000)
    held.acknowledge()
    assert held.vegas.rtt.ewma == (2 * 3_500_000 + 4_000_000) // 3  # N is 2 in slow start
    assert held.vegas.rtt.maximum == 4_000_000


def test_the_round_trip_is_by_the_monotonic_clock() -> None:
    held = Held(AT_EXIT)
    held.talk.clock.set_to = 0.0
    before = monotonic()
    held.stream.put(bytes(498 * 31))
    sealed = monotonic()
    held.talk.exchange()
    held.talk.far_end(held.circuit).sendme(3, held.due.popleft())
    read_at = monotonic()
    held.talk.exchange()
    rtt = held.vegas.rtt.ewma / 1e6
    assert read_at - sealed - 1e-6 <= rtt <= monotonic() - before + 1e-6


def test_a_larger_window_takes_more_at_once() -> None:
    held = Held(AT_EXIT, DEFAULTS._replace(cwnd_inc_pct_ss=161))
    assert held.fill() == CWND
    held.wait(100_000)
    held.acknowledge()
    assert held.vegas.window == CWND + 50
    assert held.fill() == 50 + 31
    assert held.fill() == 0


@pytest.mark.parametrize(("in_flight", "room"), [(CWND, 31 + 31), (CWND - 1, 32)])
def test_what_was_in_flight_before_the_sendme_says_whether_the_window_was_full(
    in_flight: int, room: int
) -> None:
    held = Held(AT_EXIT, DEFAULTS._replace(cwnd_full_gap=0, cwnd_inc_pct_ss=100))
    assert held.put(in_flight) == in_flight
    held.wait(100_000)
    held.acknowledge()
    assert held.fill() == room


def test_below_what_is_in_flight_a_window_takes_nothing_until_enough_is_acknowledged() -> None:
    held = Held(AT_EXIT, DEFAULTS._replace(cwnd_min=31, ss_max=62, alpha=0))
    assert held.fill() == CWND
    held.wait(100_000)
    for _ in range(2):
        held.acknowledge()
        assert held.vegas.window == 62
        assert held.fill() == 0
    held.acknowledge()
    assert held.fill() == 31
    assert held.talk.complaints == []


def test_the_window_has_moved_when_the_streams_hear_of_a_sendme() -> None:
    """So it counts for what they send next."""
    held = Held(AT_EXIT, DEFAULTS._replace(cwnd_inc_pct_ss=100))
    others = [held.talk.stream(held.circuit) for _ in range(2)]
    held.fill()
    assert [held.fill(other) for other in others] == [0, 0]
    held.wait(100_000)
    events = held.acknowledge()
    assert [type(event) for event in events] == [Writable, Writable, Writable]
    assert [event.stream for event in events if isinstance(event, Writable)] == [held.stream, *others]
    assert held.fill() == 31 + 31


def test_a_window_stays_full_for_many_rounds() -> None:
    held = Held(AT_EXIT)
    held.fill()
    for _ in range(100):
        held.acknowledge()
        assert held.fill() == 31
    assert held.talk.complaints == []


# Round trips of every kind: none measured, usual ones, a jump of the clock.
WAITS = st.one_of(st.just(0), st.integers(1, 400_000), st.integers(1, 100_000_000_000))


@settings(max_examples=80, deadline=None)
@given(
    increment=st.sampled_from([30, 31, 32]),
    window=st.integers(1, 300),
    queue=st.tuples(*[st.integers(0, 120)] * 4),
    steps=st.lists(st.tuples(st.integers(0, 300), st.lists(WAITS, max_size=5)), max_size=20),
)
def test_a_hops_window_is_that_of_its_congestion_control_alone(
    increment: int, window: int, queue: tuple[int, ...], steps: list[tuple[int, list[int]]]
) -> None:
    """Whatever is sent, and whenever it is acknowledged: SENDMEs are expected in order, too."""
    alpha, beta, gamma, delta = queue
    params = DEFAULTS._replace(
        cwnd_init=window, cwnd_min=31, alpha=alpha, beta=beta, gamma=gamma, delta=delta
    )
    held = Held(AT_EXIT, params, increment)
    clock = ClockGuard()
    alone = Vegas(params, increment=increment, clock=clock)
    sealed_at: deque[float] = deque()
    in_flight = 0
    for count, waits in steps:
        accepted = held.put(count)
        assert accepted == max(0, min(count, alone.window - in_flight))
        for _ in range(accepted):
            in_flight += 1
            if in_flight % increment == 0:
                sealed_at.append(held.talk.clock.set_to)
        for wait in waits[: len(sealed_at)]:
            held.wait(wait)
            rtt = held.talk.clock.set_to - sealed_at.popleft()
            alone.acknowledge(rtt, in_flight=in_flight, blocked=False)
            in_flight -= increment
            held.acknowledge()
            assert state_of(held.vegas) == state_of(alone)
            assert held.talk.clock.is_stalled == clock.is_stalled
    assert not held.circuit.has_ended
    assert held.talk.complaints == []


def state_of(vegas: Vegas) -> tuple[int, ...]:
    rtt = vegas.rtt
    return (vegas.window, vegas.in_slow_start, vegas.is_full, rtt.ewma, rtt.minimum, rtt.maximum)


@pytest.mark.parametrize("hop", [0, 1])
def test_a_hop_with_fixed_windows_has_no_congestion_control(hop: int) -> None:
    assert Talk(hops=AT_EXIT).circuit().vegas(hop) is None


@pytest.mark.parametrize("sendme_inc", [30, 31, 32])
def test_sendmes_go_both_ways_every_negotiated_increment(sendme_inc: int) -> None:
    talk = Talk(hops=AT_EXIT)
    talk.relays[2].cc_sendme_inc = sendme_inc
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit)
    for up_to in (sendme_inc - 1, sendme_inc, 2 * sendme_inc - 1, 2 * sendme_inc):
        cells = up_to - far.hops[2].data_received
        assert stream.put(bytes(498 * cells)) == 498 * cells
        far.streams[stream.id].write(bytes(498 * cells))
        talk.exchange()
        assert far.hops[2].sendmes_sent == far.hops[2].sendmes_received == up_to // sendme_inc
    assert talk.complaints == []


def test_each_hop_has_an_increment_and_a_window_of_its_own() -> None:
    talk = Talk(hops=[CONGESTION_CONTROL] * 3)
    for relay, sendme_inc in zip(talk.relays, (30, 31, 32), strict=True):
        relay.cc_sendme_inc = sendme_inc
    circuit = talk.circuit()
    far = talk.far_end(circuit)
    for hop, sendme_inc in enumerate((30, 31, 32)):
        stream = circuit.open_stream(hop)
        circuit.send(hop, RelayCommand.BEGIN, stream.id, b"web.test:80\0")
        talk.exchange()
        far.streams[stream.id].write(bytes(498 * 100))
        assert stream.put(bytes(498 * 100)) == 498 * 100
        assert [type(event) for event in talk.exchange()] == [Readable]
        assert [vegas_of(circuit, number).rtt.ewma > 0 for number in range(3)] == [
            number <= hop for number in range(3)
        ]
        assert stream.put(bytes(498 * 200)) == 498 * (CWND - 100 % sendme_inc)
        assert stream.take() == bytes(498 * 100)
    assert [hop.sendmes_received for hop in far.hops] == [3, 3, 3]
    assert talk.complaints == []


# --- Streams without windows ---------------------------------------------------------------------------


def test_no_stream_window_stops_either_side() -> None:
    talk = Talk(hops=AT_EXIT, congestion=still(2000))
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_stream(circuit, stream)
    assert stream.put(bytes(498 * 800)) == 498 * 800  # stream windows are of 500 cells
    for _ in range(800):
        far.data(bytes(498))
    talk.exchange()
    assert stream.queued == 498 * 800
    stream.take()
    talk.exchange()
    assert talk.complaints == []  # a stream SENDME would be one


def test_a_paused_stream_sends_nothing_and_its_neighbour_goes_on() -> None:
    talk = Talk(hops=AT_EXIT)
    circuit = talk.circuit()
    paused, neighbour = talk.stream(circuit), talk.stream(circuit)
    paused.pause()
    assert paused.is_xoff
    assert paused.put(b"x") == 0
    assert neighbour.put(b"y") == 1
    paused.resume()
    assert not paused.is_xoff
    assert paused.put(b"x") == 1


@pytest.mark.parametrize(("command", "body"), [(RelayCommand.XOFF, b"\0"), (RelayCommand.XON, bytes(5))])
def test_xon_and_xoff_are_the_owners_to_judge(command: RelayCommand, body: bytes) -> None:
    talk = Talk(hops=AT_EXIT)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    talk.far_stream(circuit, stream).send(command, body)
    (message,) = talk.exchange()
    assert isinstance(message, Message)
    assert (message.stream, message.command, message.body) == (stream, command, body)
    assert not stream.is_xoff


def test_what_arrives_for_a_stream_closed_here_is_dropped_and_acknowledged_within_the_grace() -> None:
    talk = Talk(hops=AT_EXIT)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_stream(circuit, stream)
    circuit.close_stream(stream, END_MISC, 60.0)
    talk.exchange()
    for _ in range(62):
        far.data(b"late")
    far.xoff()
    far.xon()
    assert talk.exchange() == []
    assert talk.far_end(circuit).hops[2].sendmes_received == 2
    far.send(RelayCommand.END, b"\x06")
    assert talk.exchange() == []
    assert circuit.stream_count == 0
    assert talk.complaints == []


# --- Negotiation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sendme_inc", [0, 29, 33, 255])
@pytest.mark.parametrize("hops", [AT_EXIT, WITH_CGO], ids=["tor1", "cgo"])
def test_an_increment_out_of_range_ends_the_circuit_and_no_other(hops: list[str], sendme_inc: int) -> None:
    talk = Talk(hops=hops)
    neighbour = talk.circuit()
    stream = talk.stream(neighbour)
    talk.relays[2].cc_sendme_inc = sendme_inc
    with pytest.raises(CircuitError, match=f"every {sendme_inc} cells, not every 31"):
        talk.circuit()
    assert_alive(talk, neighbour, stream)


def test_congestion_control_that_nobody_asked_for_ends_the_circuit_and_no_other() -> None:
    talk = Talk(hops=[CGO] * 3, cgo=Cgo.EXIT)
    neighbour = talk.circuit()
    stream = talk.stream(neighbour)
    talk.relays[0].edit_extensions = lambda _: [(CC_RESPONSE, b"\x1f")]
    with pytest.raises(CircuitError, match="did not ask for"):
        talk.circuit()
    assert_alive(talk, neighbour, stream)


def test_cgo_without_congestion_control_ends_the_circuit_and_no_other() -> None:
    talk = Talk(hops=WITH_CGO)
    neighbour = talk.circuit()
    stream = talk.stream(neighbour)
    talk.relays[2].edit_extensions = lambda _: []
    with pytest.raises(CircuitError, match="refused congestion control, which CGO needs"):
        talk.circuit()
    assert_alive(talk, neighbour, stream)


def assert_alive(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    talk.far_stream(circuit, stream).write(b"unharmed")
    assert [type(event) for event in talk.exchange()] == [Readable]
    assert stream.take() == b"unharmed"
    assert not circuit.has_ended
    assert talk.complaints == []


# --- Rules that a relay may break ----------------------------------------------------------------------


def close_at_once(talk: Talk, circuit: Circuit, stream: Stream) -> FakeStream:
    """Close a stream with a grace of nothing."""
    far = talk.far_stream(circuit, stream)
    circuit.close_stream(stream, END_MISC, 0.0)
    talk.exchange()
    return far


def data_after_the_grace(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    close_at_once(talk, circuit, stream).data(b"late")


def a_second_connected_for_a_closed_stream(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    close_at_once(talk, circuit, stream).connected()


def stream_sendme(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    talk.far_stream(circuit, stream).send(RelayCommand.SENDME)


def stream_sendme_for_what_was_sent(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    stream.put(bytes(498 * 100))
    talk.exchange()
    talk.far_stream(circuit, stream).send(RelayCommand.SENDME)


def circuit_sendme_for_nothing(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    talk.far_end(circuit).sendme(3, bytes(20))


def circuit_sendme_of_another_hop(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    held: list[bytes] = []
    talk.relays[2].on_sendme_due = lambda far, hop, tag: held.append(tag)
    stream.put(bytes(498 * 31))
    talk.exchange()
    talk.far_end(circuit).sendme(2, held[0])


def circuit_sendme_with_cgos_tag(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    talk.relays[2].on_sendme_due = lambda far, hop, tag: far.sendme(hop, tag[:16])
    stream.put(bytes(498 * 31))


def circuit_sendme_with_wrong_tag(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    talk.relays[2].on_sendme_due = lambda far, hop, tag: far.sendme(hop, bytes(20))
    stream.put(bytes(498 * 31))


def unauthenticated_circuit_sendme(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    talk.relays[2].on_sendme_due = lambda far, hop, tag: far.send(hop, RelayCommand.SENDME)
    stream.put(bytes(498 * 31))


def xoff_of_an_unknown_stream(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    talk.far_end(circuit).send(3, RelayCommand.XOFF, stream.id ^ 1, b"\0")


def xoff_from_another_hop(talk: Talk, circuit: Circuit, stream: Stream) -> None:
    talk.far_end(circuit).send(2, RelayCommand.XOFF, stream.id, b"\0")


Breach = Callable[[Talk, Circuit, Stream], None]

BREACHES: list[tuple[Breach, str]] = [
    (data_after_the_grace, "DATA arrived long after its stream was closed"),
    (a_second_connected_for_a_closed_stream, "CONNECTED arrived for a stream that was not waiting"),
    (stream_sendme, "a stream SENDME arrived under congestion control"),
    (stream_sendme_for_what_was_sent, "a stream SENDME arrived under congestion control"),
    (circuit_sendme_for_nothing, "acknowledges more than was sent"),
    (circuit_sendme_of_another_hop, "acknowledges more than was sent"),
    (circuit_sendme_with_cgos_tag, "tag of 16 bytes, not 20"),
    (circuit_sendme_with_wrong_tag, "wrong tag"),
    (unauthenticated_circuit_sendme, "not authenticated"),
    (xoff_of_an_unknown_stream, "XOFF arrived for a stream that is not open"),
    (xoff_from_another_hop, "XOFF arrived from hop 2 for a stream of hop 3"),
]


@pytest.mark.parametrize(("breach", "message"), BREACHES)
def test_a_breach_ends_its_circuit_and_no_other(breach: Breach, message: str) -> None:
    talk = Talk(hops=AT_EXIT)
    circuit, neighbour = talk.circuit(), talk.circuit()
    stream, neighbours_stream = talk.stream(circuit), talk.stream(neighbour)
    breach(talk, circuit, stream)
    talk.far_stream(neighbour, neighbours_stream).write(b"unharmed")
    assert message in str(failure_of(talk.exchange()))
    assert circuit.has_ended
    assert stream.put(b"x") == 0
    assert neighbours_stream.take() == b"unharmed"
    assert not neighbour.has_ended
    assert talk.complaints == []


def test_what_a_peer_without_ears_for_xoff_can_queue_is_bounded() -> None:
    talk = Talk(hops=AT_EXIT)
    circuit, neighbour = talk.circuit(), talk.circuit()
    stream, neighbours_stream = talk.stream(circuit), talk.stream(neighbour)
    far = talk.far_stream(circuit, stream)
    data = bytes(498)
    for _ in range(QUEUE_LEN_MAX // 498 + 1):
        far.data(data)
    talk.exchange()
    assert QUEUE_LEN_MAX < stream.queued < QUEUE_LEN_MAX + 498
    far.data(data)
    talk.far_stream(neighbour, neighbours_stream).write(b"unharmed")
    assert "goes on sending DATA after XOFF" in str(failure_of(talk.exchange()))
    assert stream.queued < QUEUE_LEN_MAX + 498
    assert neighbours_stream.take() == b"unharmed"
    assert talk.complaints == []
