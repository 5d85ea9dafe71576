"""The compiled core against the scripted relays: streams, windows, and every rule a relay may break."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from fast.talk import CGO, CONGESTION_CONTROL, WINDOWS, Talk, failure_of
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel
from torkit._fast.circuit import Circuit
from torkit._fast.events import ChannelFailed, ControlCell, Message, Readable, Writable
from torkit._fast.onion import Layer, LayerKind
from torkit._fast.stream import Stream
from torkit.errors import UsageError
from torkit.testing.relay import FakeCircuit, FakeHop, FakeStream, Tor1Layer


@pytest.fixture
def talk() -> Talk:
    return Talk()


def complaints(talk: Talk) -> list[str]:
    return [complaint for relay in talk.relays for complaint in relay.complaints]


def test_data_arrives_and_departs_in_order(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit).streams[stream.id]
    far.write(b"hello from the exit")
    assert [type(event) for event in talk.exchange()] == [Readable]
    assert stream.take() == b"hello from the exit"
    assert stream.put(b"x" * 5000) == 5000
    talk.exchange()
    assert far.received == b"x" * 5000
    assert complaints(talk) == []


@pytest.mark.parametrize("hop", [WINDOWS, CONGESTION_CONTROL, CGO], ids=["windows", "congestion", "CGO"])
def test_where_there_is_nothing_nothing_is_copied(hop: str) -> None:
    """Copying no bytes to or from nowhere is undefined in C: what makes this fail is `make sanitize`."""
    talk = Talk(hops=[hop] * 2)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_stream(circuit, stream)
    far.data(b"")
    talk.exchange()
    assert stream.take() == b""
    assert stream.put(b"") == 0
    talk.core.receive_data(bytearray(), 0)
    circuit.send(1, RelayCommand.DROP, 0, b"")
    talk.core.send_control(0, Command.VPADDING, b"")
    far.write(b"hello")
    talk.exchange()
    assert stream.take() == b"hello"
    assert complaints(talk) == []


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=6), chunk=st.integers(1, 5000))
def test_any_chunking_of_the_bytes_gives_the_same_data(sizes: list[int], chunk: int) -> None:
    talk = Talk(2)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit).streams[stream.id]
    sent = b"".join(bytes([i % 256]) * size for i, size in enumerate(sizes))
    far.write(sent)
    far.finish()
    got = bytearray()
    while True:
        sealed = talk.core.data_to_send()
        data = talk.link.receive(sealed) if sealed else talk.link.take()
        if not data:
            break
        talk.feed(data, chunk=chunk)
        got += stream.take()
    assert got == sent
    assert stream.has_ended
    assert complaints(talk) == []


def test_a_reader_that_keeps_up_never_stalls_its_peer(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit).streams[stream.id]
    sent = bytes(range(256)) * 8192  # 2 MiB: many times every window
    far.write(sent)
    got = bytearray()
    while data := stream.take() or (talk.exchange() and stream.take()):
        got += data
    assert got == sent
    assert complaints(talk) == []


def test_a_sink_takes_what_arrives_without_an_event(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit).streams[stream.id]
    near, sink = socket.socketpair()
    with near, sink:
        sink.setblocking(False)
        stream.sink = sink.fileno()
        for number in range(600):  # more cells than the stream's window has
            far.write(bytes([number % 256]) * 498)
            assert talk.exchange() == []
            assert near.recv(1000) == bytes([number % 256]) * 498
    assert stream.queued == 0
    assert complaints(talk) == []


def test_what_a_sink_does_not_take_waits_and_is_told(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit).streams[stream.id]
    near, sink = socket.socketpair()
    sent = bytes(range(256)) * 8192  # 2 MiB: more than a socket holds
    got = bytearray()
    with near, sink:
        sink.setblocking(False)
        stream.sink = sink.fileno()
        far.write(sent)
        assert [type(event) for event in talk.exchange()][-1] is Readable
        assert stream.queued
        stream.sink = -1
        near.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                got += near.recv(65536)
        while data := stream.take() or (talk.exchange() and stream.take()):
            got += data
    assert got == sent
    assert complaints(talk) == []


def test_a_sink_that_fails_is_told_like_one_that_is_full(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit).streams[stream.id]
    near, sink = socket.socketpair()
    with sink:
        near.close()
        stream.sink = sink.fileno()
        far.write(b"to nobody")
        assert [type(event) for event in talk.exchange()] == [Readable]
    assert stream.take() == b"to nobody"


def test_a_slow_reader_holds_only_its_own_stream(talk: Talk) -> None:
    circuit = talk.circuit()
    slow, quick = talk.stream(circuit), talk.stream(circuit)
    far = talk.far_end(circuit)
    far.streams[slow.id].write(b"s" * 2_000_000)
    talk.exchange()
    assert slow.queued == 500 * 498  # the stream window, and not a byte more
    far.streams[quick.id].write(b"q" * 2_000_000)
    got = 0
    while data := quick.take() or (talk.exchange() and quick.take()):
        got += len(data)
    assert got == 2_000_000
    assert complaints(talk) == []


def test_a_reader_that_lags_holds_its_peer_up(talk: Talk) -> None:
    """A stream's SENDMEs wait until ten cells or less are queued."""
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_stream(circuit, stream)
    for _ in range(250):
        far.data(b"x" * 498)
    talk.exchange()
    stream.take(240 * 498 - 1)
    talk.exchange()
    assert sendmes(talk, circuit, stream) == 0
    stream.take(1)
    talk.exchange()
    assert sendmes(talk, circuit, stream) == 5


def test_a_stream_that_has_ended_is_not_acknowledged(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_stream(circuit, stream)
    for _ in range(250):
        far.data(b"x" * 498)
    far.end()
    talk.exchange()
    assert len(stream.take()) == 250 * 498
    talk.exchange()
    assert sendmes(talk, circuit, stream) == 0


def sendmes(talk: Talk, circuit: Circuit, stream: Stream) -> int:
    """How many SENDMEs the peer of a stream has had."""
    said = [(cell.command, cell.stream_id) for _, cell in talk.far_end(circuit).control_cells]
    return said.count((RelayCommand.SENDME, stream.id))


def test_an_upload_waits_for_the_stream_window(talk: Talk) -> None:
    talk.relays[2].on_stream_sendme_due = lambda stream: None
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    assert stream.put(b"u" * 1_000_000) == 500 * 498
    talk.exchange()
    assert stream.put(b"u") == 0
    far = talk.far_end(circuit).streams[stream.id]
    far.deliver_window += 50
    far.send(RelayCommand.SENDME)
    assert [type(event) for event in talk.exchange()] == [Writable]
    assert stream.put(b"u" * 1_000_000) == 50 * 498


def test_an_upload_waits_for_the_circuit_window(talk: Talk) -> None:
    talk.relays[2].on_sendme_due = lambda circuit, hop, tag: held.append(tag)
    held: list[bytes] = []
    circuit = talk.circuit()
    streams = [talk.stream(circuit) for _ in range(3)]
    accepted = [stream.put(b"u" * 300_000) for stream in streams]
    assert sum(accepted) == 1000 * 498
    talk.exchange()
    assert len(held) == 10
    talk.far_end(circuit).sendme(3, held[0])
    writable = [event.stream for event in talk.exchange() if isinstance(event, Writable)]
    assert streams[2] in writable
    assert streams[2].put(b"u" * 300_000) == 100 * 498


def test_a_stream_closed_here_hears_of_no_window(talk: Talk) -> None:
    talk.relays[2].on_sendme_due = lambda circuit, hop, tag: held.append(tag)
    held: list[bytes] = []
    circuit = talk.circuit()
    streams = [talk.stream(circuit) for _ in range(3)]
    assert sum(stream.put(b"u" * 300_000) for stream in streams) == 1000 * 498
    circuit.close_stream(streams[2], b"\x01", 60.0)
    talk.exchange()
    talk.far_end(circuit).sendme(3, held[0])
    assert streams[2] not in [event.stream for event in talk.exchange() if isinstance(event, Writable)]


def test_relay_early_goes_to_every_hop_but_the_guard_until_spent(talk: Talk) -> None:
    circuit = talk.circuit()  # two EXTEND2: one to the guard, one through it
    stream = talk.stream(circuit)
    stream.put(b"x" * 498 * 20)
    talk.exchange()
    assert talk.far_end(circuit).early_cells_received == 8
    with pytest.raises(UsageError, match="RELAY_EARLY"):
        circuit.send(2, RelayCommand.EXTEND2, 0, b"")


def test_nothing_for_the_guard_itself_is_relay_early_but_extend2(talk: Talk) -> None:
    circuit = talk.circuit(1)
    talk.stream(circuit).put(b"x" * 498 * 20)
    talk.exchange()
    assert talk.far_end(circuit).early_cells_received == 0


@pytest.mark.parametrize("command", [Command.PADDING, Command.VPADDING])
def test_padding_of_the_link_is_told_to_nobody(talk: Talk, command: Command) -> None:
    talk.circuit()
    talk.link.send_cell(0, command)
    assert talk.exchange() == []


def test_data_before_connected_may_be_sent_and_is_delivered(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = circuit.open_stream(2)
    circuit.send(2, RelayCommand.BEGIN, stream.id, b"web.test:80\0")
    assert stream.put(b"GET / HTTP/1.0\r\n\r\n") == 18
    talk.exchange()
    assert talk.far_end(circuit).streams[stream.id].received == b"GET / HTTP/1.0\r\n\r\n"


def test_what_arrives_for_a_stream_closed_here_is_dropped_until_end(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit).streams[stream.id]
    talk.relays[2].on_end = lambda stream, body: None
    circuit.close_stream(stream, b"\x01", 60.0)
    for _ in range(500):
        far.data(b"late")
    assert talk.exchange() == []
    far.send(RelayCommand.END, b"\x06")
    assert talk.exchange() == []
    assert circuit.stream_count == 0
    assert not circuit.has_ended


def test_a_closed_stream_still_counts_its_window(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit).streams[stream.id]
    talk.relays[2].on_end = lambda stream, body: None
    circuit.close_stream(stream, b"\x01", 60.0)
    for _ in range(501):
        far.data(b"late")
    assert "deliver window" in str(failure_of(talk.exchange()))


def test_connected_may_still_arrive_for_a_stream_closed_before_it(talk: Talk) -> None:
    begun: list[FakeStream] = []
    talk.relays[2].on_begin = begun.append
    circuit = talk.circuit()
    stream = circuit.open_stream(2)
    circuit.send(2, RelayCommand.BEGIN, stream.id, b"web.test:80\0")
    talk.exchange()
    circuit.close_stream(stream, b"\x01", 60.0)
    begun[0].connected()
    assert talk.exchange() == []
    begun[0].connected()
    assert "was not waiting" in str(failure_of(talk.exchange()))


def send_cells(far: FakeStream, count: int) -> None:
    for _ in range(count):
        far.data(b"x")


Breach = Callable[[Talk, Circuit, Stream], object]

BREACHES: dict[str, tuple[Breach, str]] = {
    "wrong digest": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(3, RelayCommand.DROP, wrong_digest=True),
        "recognized by none",
    ),
    "flipped bit": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(3, RelayCommand.DROP, flip_bit=2000),
        "recognized by none",
    ),
    "inbound RELAY_EARLY": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(3, RelayCommand.DROP, early=True),
        "RELAY_EARLY",
    ),
    "length beyond the cell": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(3, RelayCommand.DROP, length=499),
        "claims 499 bytes",
    ),
    "data for an unknown stream": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(3, RelayCommand.DATA, stream.id ^ 1, b"x"),
        "not open",
    ),
    "data without a stream": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(3, RelayCommand.DATA, 0, b"x"),
        "without a stream",
    ),
    "data from another hop": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(2, RelayCommand.DATA, stream.id, b"x"),
        "from hop 2 for a stream of hop 3",
    ),
    "second CONNECTED": (
        lambda talk, circuit, stream: talk.far_end(circuit).streams[stream.id].connected(),
        "CONNECTED",
    ),
    "RESOLVED for a connection": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(3, RelayCommand.RESOLVED, stream.id),
        "asked for no name",
    ),
    "data after END": (
        lambda talk, circuit, stream: (
            talk.far_end(circuit).send(3, RelayCommand.END, stream.id, b"\x06"),
            talk.far_end(circuit).send(3, RelayCommand.DATA, stream.id, b"x"),
        ),
        "not open",
    ),
    "stream SENDME for nothing": (
        lambda talk, circuit, stream: talk.far_end(circuit).send(3, RelayCommand.SENDME, stream.id),
        "stream SENDME acknowledges more",
    ),
    "circuit SENDME for nothing": (
        lambda talk, circuit, stream: talk.far_end(circuit).sendme(3, bytes(20)),
        "circuit SENDME acknowledges more",
    ),
    "more data than the stream's window": (
        lambda talk, circuit, stream: send_cells(talk.far_end(circuit).streams[stream.id], 501),
        "deliver window",
    ),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_ends_its_circuit_and_no_other(talk: Talk, name: str) -> None:
    breach, message = BREACHES[name]
    circuit, neighbour = talk.circuit(), talk.circuit()
    stream, neighbours_stream = talk.stream(circuit), talk.stream(neighbour)
    breach(talk, circuit, stream)
    talk.far_end(neighbour).streams[neighbours_stream.id].write(b"unharmed")
    events = talk.exchange()
    assert message in str(failure_of(events))
    assert circuit.has_ended
    assert not stream.is_open
    assert neighbours_stream.take() == b"unharmed"
    assert stream.put(b"x") == 0


def upload_100_cells(talk: Talk, edit: Callable[[bytes], tuple[int, bytes]]) -> str:
    def answer(circuit: object, hop: int, tag: bytes) -> None:
        version, tag = edit(tag)
        talk.far_end(ours).sendme(hop, tag, version=version)

    talk.relays[2].on_sendme_due = answer
    ours = talk.circuit()
    stream = talk.stream(ours)
    stream.put(b"u" * 498 * 100)
    return str(failure_of(talk.exchange()))


def test_sendme_with_wrong_tag_closes_circuit(talk: Talk) -> None:
    assert "wrong tag" in upload_100_cells(talk, lambda tag: (1, tag[:-1] + bytes([tag[-1] ^ 1])))


def test_sendme_with_short_tag_closes_circuit(talk: Talk) -> None:
    assert "tag of 16 bytes" in upload_100_cells(talk, lambda tag: (1, tag[:16]))


def test_unauthenticated_sendme_closes_circuit(talk: Talk) -> None:
    assert "not authenticated" in upload_100_cells(talk, lambda tag: (0, b""))


def test_one_sendme_too_many_closes_circuit(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    stream.put(b"u" * 498 * 100)
    talk.exchange()
    talk.far_end(circuit).sendme(3, bytes(20))
    assert "more than was sent" in str(failure_of(talk.exchange()))


def test_an_inner_hops_digest_does_not_move_for_a_cell_that_only_looked_recognized(talk: Talk) -> None:
    """One foreign cell in 65,536 shows an inner hop recognized=0: it must pass on, and leave no trace."""
    backward_key = next(
        key
        for key in (i.to_bytes(16, "big") for i in range(1 << 20))
        if Cipher(AES(key), ECB()).encryptor().update(bytes(16))[1:3] == b"\0\0"
    )
    keys = [bytes(range(72)), bytes(56) + backward_key]
    circuit = talk.circuit(0)
    far = FakeCircuit(talk.link, circuit.id)
    for key_material in keys:
        circuit.add_hop(Layer(LayerKind.TOR1, key_material))
        far.hops.append(FakeHop(talk.relays[0], Tor1Layer(key_material)))
    far.truncated(2, 8)  # looks recognized at hop 1
    far.truncated(1, 9)  # and is followed by one that is
    messages = talk.feed(talk.link.take())
    assert [(m.hop, m.body) for m in messages if isinstance(m, Message)] == [(1, b"\x08"), (0, b"\x09")]


def test_destroy_ends_the_circuit_and_is_reported(talk: Talk) -> None:
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    talk.far_end(circuit).destroy(9)
    (destroyed,) = talk.exchange()
    assert isinstance(destroyed, ControlCell)
    assert (destroyed.command, destroyed.body[0]) == (Command.DESTROY, 9)
    assert circuit.has_ended
    assert stream.has_ended


def test_cells_for_a_circuit_just_closed_are_dropped(talk: Talk) -> None:
    circuit = talk.circuit()
    far = talk.far_end(circuit)
    talk.core.close_circuit(circuit)
    far.send(3, RelayCommand.DROP)
    far.destroy()
    assert talk.exchange() == []


def test_messages_carry_hop_stream_and_body(talk: Talk) -> None:
    circuit = talk.circuit()
    talk.far_end(circuit).truncated(2, 8)
    (message,) = talk.exchange()
    assert isinstance(message, Message)
    assert (message.hop, message.command, message.body) == (1, RelayCommand.TRUNCATED, b"\x08")
    assert message.circuit is circuit
    assert message.stream is None


def test_stream_ids_are_not_reused_while_the_peer_may_still_send(talk: Talk) -> None:
    talk.relays[2].on_end = lambda stream, body: None
    circuit = talk.circuit()
    ids = set()
    for _ in range(300):
        stream = circuit.open_stream(2)
        assert stream.id not in ids
        assert stream.id != 0
        ids.add(stream.id)
        circuit.close_stream(stream, b"\x01", 60.0)


def test_a_circuit_takes_a_bounded_number_of_streams(talk: Talk) -> None:
    circuit = talk.circuit()
    for _ in range(16384):
        circuit.open_stream(2)
    with pytest.raises(UsageError, match="no more streams"):
        circuit.open_stream(2)


def test_when_cells_came_or_went_is_noted() -> None:
    def now() -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC)

    core = Channel()
    core.send_control(0, Command.VERSIONS, b"\0\5")
    core.receive_data(bytearray(1), 0)
    assert core.last_active == 0.0
    started = now()
    assert core.data_to_send()
    sent = core.last_active
    assert started <= sent <= now()
    assert core.data_to_send() == b""
    assert core.last_active == sent
    core.receive_data(bytearray(b"\0\0\7\0\2\0\5"), 7)
    assert sent < core.last_active <= now()


def test_misuse_raises(talk: Talk) -> None:
    circuit = talk.circuit()
    with pytest.raises(UsageError):
        circuit.open_stream(3)
    with pytest.raises(UsageError):
        circuit.send(0, RelayCommand.DATA, 1, b"")
    with pytest.raises(UsageError):
        circuit.send(0, RelayCommand.BEGIN, 1, bytes(499))
    with pytest.raises(UsageError):
        talk.core.open_circuit(1, 1, 8)
    with pytest.raises(UsageError):
        talk.core.open_circuit(circuit.id, 1, 8)
    with pytest.raises(UsageError):
        talk.core.send_control(0, Command.NETINFO, bytes(510))
    with pytest.raises(UsageError):
        talk.core.receive_data(bytearray(4), 5)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=2000), chunk=st.integers(1, 600))
def test_random_bytes_give_events_and_never_raise(data: bytes, chunk: int) -> None:
    talk = Talk(1)
    talk.circuit()
    talk.feed(data, chunk=chunk)


def test_a_fixed_cell_before_versions_ends_the_channel() -> None:
    for chunk in (1, 2, 3, 600):
        core = Channel()
        data = bytes([0, 0, Command.NETINFO]) + bytes(509)
        events = []
        for start in range(0, len(data), chunk):
            piece = bytearray(data[start : start + chunk])
            events += core.receive_data(piece, len(piece))
        assert [type(event) for event in events] == [ChannelFailed]


@pytest.mark.parametrize("chunk", [1, 6, 1000])
def test_a_huge_variable_length_cell_ends_the_channel_at_its_header(talk: Talk, chunk: int) -> None:
    huge = bytes([0, 0, 0, 0, Command.CERTS, 0xFF, 0xFF])
    (event,) = talk.feed(huge, chunk=chunk)
    assert isinstance(event, ChannelFailed)
    assert talk.feed(bytes(70_000)) == []
