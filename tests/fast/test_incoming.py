"""The core as an onion service: streams that a client begins, DATA behind BEGIN, ends on either side."""

import pytest
from fast.talk import Talk, failure_of

from torkit._fast.cells import RelayCommand
from torkit._fast.circuit import Circuit
from torkit._fast.events import Message, Readable
from torkit._fast.stream import Stream
from torkit.errors import UsageError
from torkit.testing.relay import FakeCircuit, FakeStream

CLIENT = 4  # the hop behind the rendezvous point, counted from 1
NO_GRACE = 0.0


class Story(Talk):
    """With a client that does congestion control, or none."""

    def __init__(self, *, has_congestion_control: bool) -> None:
        super().__init__()
        self.has_congestion_control = has_congestion_control


@pytest.fixture(params=[False, True], ids=["windows", "congestion"])
def talk(request: pytest.FixtureRequest) -> Story:
    return Story(has_congestion_control=request.param)


def met(talk: Story) -> tuple[Circuit, FakeCircuit]:
    """A circuit on which a client has been let in; its end at the client."""
    circuit = talk.circuit()
    talk.join(circuit, talk.relays[-1], has_congestion_control=talk.has_congestion_control)
    circuit.let_in(circuit.hop_count - 1)
    talk.relays[-1].on_unknown = lambda *_: None  # CONNECTED
    return circuit, talk.far_end(circuit)


def begin(far: FakeCircuit, stream_id: int, data: bytes = b"") -> FakeStream:
    """A client's BEGIN, and what it sends without waiting."""
    stream = far.streams[stream_id] = FakeStream(far, CLIENT, stream_id)
    far.send(CLIENT, RelayCommand.BEGIN, stream_id, b":80\0")
    if data:
        stream.write(data)
    return stream


def begun(talk: Talk) -> list[Stream]:
    return [
        event.stream
        for event in talk.exchange()
        if isinstance(event, Message) and event.command == RelayCommand.BEGIN and event.stream
    ]


def test_data_behind_begin_in_the_same_read_is_not_lost(talk: Story) -> None:
    circuit, far = met(talk)
    theirs = begin(far, 7, b"GET / HTTP/1.0\r\n\r\n" * 100)
    message, readable = talk.exchange()
    assert isinstance(message, Message)
    assert (message.command, message.body, message.stream_id) == (RelayCommand.BEGIN, b":80\0", 7)
    assert isinstance(readable, Readable)
    assert readable.stream is message.stream
    assert message.stream.take() == b"GET / HTTP/1.0\r\n\r\n" * 100
    circuit.send(CLIENT - 1, RelayCommand.CONNECTED, 7, b"")
    assert message.stream.put(b"x" * 5000) == 5000
    talk.exchange()
    assert theirs.received == b"x" * 5000
    said = [cell.command for _, cell in far.control_cells if cell.stream_id == 7]
    assert said[0] == RelayCommand.CONNECTED
    assert talk.complaints == []


def test_either_side_ends(talk: Story) -> None:
    circuit, far = met(talk)
    theirs = begin(far, 7)
    begin(far, 8)
    ours, other = begun(talk)
    theirs.end(6)
    talk.exchange()
    assert ours.has_ended
    circuit.close_stream(other, b"\6", NO_GRACE)
    talk.exchange()
    assert 8 not in far.streams
    assert talk.complaints == []


def test_nobody_begins_a_stream_who_was_not_let_in(talk: Story) -> None:
    circuit = talk.circuit()
    talk.far_end(circuit).send(3, RelayCommand.BEGIN, 7, b":80\0")
    assert "BEGIN arrived for a stream that is not open" in str(failure_of(talk.exchange()))
    circuit, far = met(talk)
    far.send(3, RelayCommand.BEGIN, 7, b":80\0")  # the rendezvous point itself
    assert "BEGIN arrived for a stream that is not open" in str(failure_of(talk.exchange()))
    with pytest.raises(UsageError):
        circuit.let_in(CLIENT)


def test_a_stream_that_is_open_is_not_begun_again(talk: Story) -> None:
    _, far = met(talk)
    begin(far, 7)
    begin(far, 7)
    assert "BEGIN arrived for a stream that is open" in str(failure_of(talk.exchange()))


def test_an_id_serves_again_after_our_end(talk: Story) -> None:
    circuit, far = met(talk)
    begin(far, 7)
    (first,) = begun(talk)
    circuit.close_stream(first, b"\6", 1000.0)
    talk.exchange()
    begin(far, 7, b"again")
    (second,) = begun(talk)
    assert second is not first
    assert second.take() == b"again"
    assert circuit.stream_count == 1
    assert talk.complaints == []


def test_streams_that_we_ended_take_no_room_for_ever(talk: Story) -> None:
    """No END answers ours. What still comes for one that is forgotten is dropped, and acknowledged."""
    circuit, far = met(talk)
    for stream_id in range(1, 1001):
        begin(far, stream_id)
        (stream,) = begun(talk)
        circuit.close_stream(stream, b"\6", NO_GRACE)
        talk.exchange()
    assert circuit.stream_count <= 130
    far.control_cells.clear()
    far.streams[5] = FakeStream(far, CLIENT, 5)
    far.streams[5].write(b"late" * 15_000)
    assert talk.exchange() == []
    assert {(cell.command, cell.stream_id) for _, cell in far.control_cells} == {(RelayCommand.SENDME, 0)}
    assert not circuit.has_ended
    assert talk.complaints == []


def test_what_is_no_data_of_a_forgotten_stream_opens_no_window(talk: Story) -> None:
    _, far = met(talk)
    far.control_cells.clear()
    for _ in range(300):
        far.send(CLIENT, RelayCommand.END, 9, b"\6")
    assert talk.exchange() == []
    assert far.control_cells == []


def test_who_goes_on_with_forgotten_streams_loses_the_circuit(talk: Story) -> None:
    _, far = met(talk)
    for _ in range(6000):
        far.send(CLIENT, RelayCommand.END, 9, b"\6")
    assert "cells that serve nothing" in str(failure_of(talk.exchange()))


def test_a_circuit_has_room_for_so_many_streams(talk: Story) -> None:
    _, far = met(talk)
    for stream_id in range(1, 16_386):
        far.send(CLIENT, RelayCommand.BEGIN, stream_id, b":80\0")
    assert "more streams than a circuit has room for" in str(failure_of(talk.exchange()))
