"""The layer shared with an onion service: cells beside the oracle's, data both ways, every rule broken."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from fast.talk import CGO, CONGESTION_CONTROL, CWND, WINDOWS, Talk, failure_of, fresh_relays
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.circuit import Circuit
from torkit._fast.events import Message
from torkit._fast.onion import TOR1_ONION_KEYS_LEN, Layer, LayerKind
from torkit.errors import UsageError
from torkit.testing.relay import FakeCircuit, OnionServiceLayer, RelayCell, reference

BOTH = pytest.mark.parametrize("cc", [False, True], ids=["windows", "congestion control"])
STEMS = pytest.mark.parametrize(
    "hops",
    [[WINDOWS] * 3, [CONGESTION_CONTROL] * 3, [CGO] * 3, [WINDOWS, CGO, WINDOWS]],
    ids=["windows", "cc", "cgo", "mixed"],
)


def join(hops: list[str], cc: bool) -> tuple[Talk, Circuit]:
    talk = Talk(hops=hops)
    circuit = talk.circuit()
    (service,) = fresh_relays(1)
    talk.relays.append(service)
    talk.join(circuit, service, has_congestion_control=cc)
    return talk, circuit


@BOTH
@STEMS
def test_data_is_equal_both_ways_behind_any_rendezvous_circuit(hops: list[str], cc: bool) -> None:
    talk, circuit = join(hops, cc)
    stream = talk.stream(circuit, b":80\0")
    far = talk.far_stream(circuit, stream)
    sent = os.urandom(60_000)  # 121 cells: past SENDMEs, and within every window
    far.write(sent)
    assert stream.put(sent) == len(sent)
    talk.exchange()
    assert stream.take() == sent
    assert far.received == sent
    assert talk.complaints == []


@BOTH
@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 1200), min_size=1, max_size=4), chunk=st.integers(1, 1500))
def test_any_chunking_of_the_bytes_gives_the_same_data(cc: bool, sizes: list[int], chunk: int) -> None:
    talk, circuit = join([WINDOWS] * 3, cc)
    stream = talk.stream(circuit, b":80\0")
    far = talk.far_stream(circuit, stream)
    pieces = [bytes([i]) * size for i, size in enumerate(sizes)]
    for piece in pieces:
        far.write(piece)
    far.finish()
    talk.feed(talk.link.take(), chunk=chunk)
    assert stream.take() == b"".join(pieces)
    assert stream.has_ended
    assert talk.complaints == []


@given(keys=st.binary(min_size=128, max_size=128), data=st.lists(st.binary(max_size=498), max_size=5))
@settings(deadline=None)
def test_cells_are_those_of_the_oracle(keys: bytes, data: list[bytes]) -> None:
    # The compiled side speaks to the scripted relay in every other test here: so those two are compared.
    layer, oracle = OnionServiceLayer(keys), reference.Tor1Layer(keys)
    client = reference.Tor1Layer(keys)
    for body in data:
        cell = RelayCell(RelayCommand.DATA, 7, body)
        sealed, tag = layer.originate(Command.RELAY, cell)
        opened = client.client_backward(Command.RELAY, sealed)
        assert opened[1] == tag
        assert opened[0][11 : 11 + len(body)] == body
        sealed, tag = client.client_originate(Command.RELAY, opened[0])
        assert layer.open_forward(Command.RELAY, sealed)[1] == tag
        assert oracle.relay_forward(Command.RELAY, sealed)[1] == tag


@BOTH
def test_sendmes_carry_the_first_20_bytes_of_digests_both_ways(cc: bool) -> None:
    talk, circuit = join([WINDOWS] * 3, cc)
    tags: list[bytes] = []
    service = talk.relays[3]
    honest = service.on_sendme_due

    def note_and_answer(circuit: FakeCircuit, hop: int, tag: bytes) -> None:
        tags.append(tag)
        honest(circuit, hop, tag)

    service.on_sendme_due = note_and_answer
    stream = talk.stream(circuit, b":80\0")
    count = 93 if cc else 300
    stream.put(bytes(498 * count))
    assert talk.exchange() == []
    assert [len(tag) for tag in tags] == [20] * 3
    assert stream.put(bytes(498 * 2000)) == 498 * (CWND if cc else 500)  # nothing is left in flight

    far = talk.far_end(circuit)
    far.streams[stream.id].write(bytes(498 * count))
    talk.exchange()
    ours = [
        cell for _, cell in far.control_cells if cell.command == RelayCommand.SENDME and not cell.stream_id
    ]
    assert [len(cell.body) for cell in ours] == [3 + 20] * 3
    assert far.hops[3].sendmes_received == 3
    assert talk.complaints == []


@pytest.mark.parametrize(
    "forge",
    [lambda tag: bytes(20), lambda tag: tag[:16], lambda tag: tag + bytes(12), lambda tag: tag[::-1]],
    ids=["zeros", "16 bytes", "32 bytes", "turned"],
)
def test_a_sendme_with_another_tag_ends_the_circuit(forge: Callable[[bytes], bytes]) -> None:
    talk, circuit = join([WINDOWS] * 3, False)
    talk.relays[3].on_sendme_due = lambda circuit, hop, tag: circuit.sendme(hop, forge(tag))
    stream = talk.stream(circuit, b":80\0")
    stream.put(bytes(498 * 100))
    assert "tag" in str(failure_of(talk.exchange()))


@BOTH
def test_cells_of_the_rendezvous_point_are_no_cells_of_the_service(cc: bool) -> None:
    talk, circuit = join([WINDOWS] * 3, cc)
    stream = talk.stream(circuit, b":80\0")
    far = talk.far_end(circuit)
    for hop in (1, 2, 3):  # padding may come from any
        far.send(hop, RelayCommand.DROP)
    assert talk.exchange() == []
    far.send(3, RelayCommand.DATA, stream.id, b"forged")
    assert "from hop 3 for a stream of hop 4" in str(failure_of(talk.exchange()))


def test_a_cell_before_the_layer_is_recognized_by_nobody() -> None:
    talk = Talk()
    circuit = talk.circuit()
    (service,) = fresh_relays(1)
    keys = os.urandom(TOR1_ONION_KEYS_LEN)
    far = talk.far_end(circuit)
    far.hops.append(type(far.hops[0])(service, OnionServiceLayer(keys)))
    far.send(4, RelayCommand.DATA, 1, b"early")
    assert "recognized by none" in str(failure_of(talk.exchange()))


@pytest.mark.parametrize("oddity", [{"wrong_digest": True}, {"recognized": 1}, {"flip_bit": 4000}])
def test_a_changed_cell_ends_the_circuit(oddity: dict[str, Any]) -> None:
    talk, circuit = join([WINDOWS] * 3, False)
    talk.far_end(circuit).send(4, RelayCommand.DROP, **oddity)
    assert "recognized by none" in str(failure_of(talk.exchange()))


def test_messages_of_a_meeting_are_known_in_both_formats() -> None:
    for hops in ([WINDOWS] * 3, [CGO] * 3):
        talk = Talk(hops=hops)
        circuit = talk.circuit()
        circuit.send(2, RelayCommand.ESTABLISH_RENDEZVOUS, 0, bytes(20))
        talk.exchange()
        number, cell = talk.far_end(circuit).control_cells[-1]
        assert (number, cell.command, cell.body) == (3, RelayCommand.ESTABLISH_RENDEZVOUS, bytes(20))
        talk.far_end(circuit).send(3, RelayCommand.RENDEZVOUS_ESTABLISHED)
        (message,) = talk.exchange()
        assert isinstance(message, Message)
        assert (message.command, message.stream_id) == (RelayCommand.RENDEZVOUS_ESTABLISHED, 0)


@pytest.mark.parametrize("length", [0, 72, 127, 129, 160])
def test_only_keys_of_128_bytes_will_do(length: int) -> None:
    with pytest.raises(UsageError, match=f"128 bytes of keys, not {length}"):
        Layer(LayerKind.TOR1_ONION, bytes(length))
