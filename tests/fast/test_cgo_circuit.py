"""Circuits with Counter Galois Onion, alone and mixed with tor1: data both ways, and every rule broken."""

from collections.abc import Callable
from itertools import product

import pytest
from fast.talk import CGO, CONGESTION_CONTROL, CWND, WINDOWS, Talk, failure_of
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit._fast.cells import RelayCommand
from torkit._fast.events import Message
from torkit._fast.onion import Layer, LayerKind
from torkit._fast.stream import Stream
from torkit.errors import UsageError
from torkit.proto.circuit import Cgo
from torkit.testing.relay import NTOR, NTOR_V3, FakeCircuit

DATA_LEN = 488  # bytes in a DATA cell of format v1
OTHER_LEN = 490  # in a message without stream id

AT_EXIT = [WINDOWS, WINDOWS, CGO]
ON_ALL = [CGO, CGO, CGO]
BOTH = pytest.mark.parametrize("hops", [AT_EXIT, ON_ALL], ids=["at the exit", "on all hops"])

KINDS = {"windows": WINDOWS, "cc": CONGESTION_CONTROL, "cgo": CGO}
MIXTURES = [
    pytest.param([KINDS[name] for name in names], id=" ".join(names)) for names in product(KINDS, repeat=3)
]


# --- Cells both ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", MIXTURES)
def test_every_hop_of_any_mixture_is_heard_and_hears(hops: list[str]) -> None:
    talk = Talk(hops=hops)
    circuit = talk.circuit()
    far = talk.far_end(circuit)
    for _ in range(2):  # the second cell shows that the first left every layer as it should
        for hop in (2, 0, 1):
            circuit.send(hop, RelayCommand.DROP, 0, b"padding")
            talk.exchange()
            number, cell = far.control_cells[-1]
            assert (number, cell.command, cell.body) == (hop + 1, RelayCommand.DROP, b"padding")
            far.truncated(hop + 1, 8)
            (message,) = talk.exchange()
            assert isinstance(message, Message)
            assert (message.hop, message.command, message.body) == (hop, RelayCommand.TRUNCATED, b"\x08")
    assert talk.complaints == []


@pytest.mark.parametrize("hops", MIXTURES)
def test_data_of_any_mixture_is_equal_both_ways(hops: list[str]) -> None:
    talk = Talk(hops=hops)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_stream(circuit, stream)
    sent = bytes(range(256)) * 80  # 42 cells: past a SENDME of congestion control
    far.write(sent)
    assert stream.put(sent) == len(sent)
    talk.exchange()
    assert stream.take() == sent
    assert far.received == sent
    assert talk.complaints == []


def test_the_default_is_cgo_at_the_exit_and_ntor_v3_before_it() -> None:
    talk = Talk(hops=ON_ALL, cgo=Cgo.EXIT)
    far = talk.far_end(talk.circuit())
    assert [hop.handshake_type for hop in far.hops] == [NTOR_V3] * 3
    assert [hop.kind for hop in talk.made] == [LayerKind.TOR1, LayerKind.TOR1, LayerKind.CGO]
    assert [hop.congestion_control for hop in far.hops] == [False, False, True]


def test_relays_of_another_age_get_what_they_know() -> None:
    talk = Talk(hops=[CGO, WINDOWS, CONGESTION_CONTROL], cgo=Cgo.EXIT)
    far = talk.far_end(talk.circuit())
    assert [hop.handshake_type for hop in far.hops] == [NTOR_V3, NTOR, NTOR_V3]
    assert [hop.kind for hop in talk.made] == [LayerKind.TOR1] * 3
    assert [hop.sendme_inc for hop in talk.made] == [None, None, 31]


@BOTH
@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 1200), min_size=1, max_size=4), chunk=st.integers(1, 1500))
def test_any_chunking_of_the_bytes_gives_the_same_data(hops: list[str], sizes: list[int], chunk: int) -> None:
    talk = Talk(hops=hops)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_stream(circuit, stream)
    pieces = [bytes([i]) * size for i, size in enumerate(sizes)]
    for piece in pieces:
        far.write(piece)
        assert stream.put(piece) == len(piece)
    arriving = talk.link.receive(talk.core.data_to_send())
    far.finish()
    talk.feed(arriving + talk.link.take(), chunk=chunk)
    assert stream.take() == b"".join(pieces)
    assert stream.has_ended
    assert far.received == b"".join(pieces)
    assert talk.complaints == []


@BOTH
def test_sendmes_carry_tags_of_16_bytes_both_ways(hops: list[str]) -> None:
    talk = Talk(hops=hops)
    tags: list[bytes] = []
    honest = talk.relays[2].on_sendme_due

    def note_and_answer(circuit: FakeCircuit, hop: int, tag: bytes) -> None:
        tags.append(tag)
        honest(circuit, hop, tag)

    talk.relays[2].on_sendme_due = note_and_answer
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit)
    stream.put(bytes(DATA_LEN * 93))
    assert talk.exchange() == []
    assert [len(tag) for tag in tags] == [16, 16, 16]
    assert stream.put(bytes(DATA_LEN * 2000)) == DATA_LEN * CWND  # nothing is left in flight

    far.streams[stream.id].write(bytes(DATA_LEN * 93))
    talk.exchange()
    ours = [cell for _, cell in far.control_cells if cell.command == RelayCommand.SENDME]
    assert [len(cell.body) for cell in ours] == [3 + 16] * 3
    assert far.hops[2].sendmes_received == 3
    assert talk.complaints == []


@BOTH
def test_messages_fill_a_cell_and_no_more(hops: list[str]) -> None:
    talk = Talk(hops=hops)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_end(circuit)
    far.streams[stream.id].data(b"d" * DATA_LEN)
    talk.exchange()
    assert stream.take() == b"d" * DATA_LEN
    far.send(3, RelayCommand.TRUNCATED, 0, b"t" * OTHER_LEN)
    (message,) = talk.exchange()
    assert isinstance(message, Message)
    assert message.body == b"t" * OTHER_LEN
    circuit.send(2, RelayCommand.DROP, 0, bytes(DATA_LEN))
    with pytest.raises(UsageError, match="488 bytes, not 489"):
        circuit.send(2, RelayCommand.DROP, 0, bytes(DATA_LEN + 1))
    talk.exchange()
    assert talk.complaints == []


def test_a_cgo_hop_without_congestion_control_is_misuse() -> None:
    circuit = Talk(1).circuit(0)
    with pytest.raises(UsageError, match="congestion control"):
        circuit.add_hop(Layer(LayerKind.CGO, bytes(160)))


# --- Cells that were changed on the way ----------------------------------------------------------------


class Pair:
    """A circuit that something happens to, and its neighbour on the channel, which must not notice."""

    def __init__(self, hops: list[str]) -> None:
        self.talk = Talk(hops=hops)
        self.neighbour = self.talk.circuit()
        self.neighbours_stream = self.talk.stream(self.neighbour)
        self.renew()

    def renew(self) -> None:
        self.circuit = self.talk.circuit()
        self.stream = self.talk.stream(self.circuit)
        self.far = self.talk.far_end(self.circuit)

    def assert_only_the_circuit_fails(self, message: str) -> None:
        """What was sent last on `circuit` ends it; the neighbour's data of the same read arrives."""
        far = self.talk.far_stream(self.neighbour, self.neighbours_stream)
        far.write(b"unharmed")
        assert message in str(failure_of(self.talk.exchange()))
        assert self.circuit.has_ended
        assert not self.stream.is_open
        assert self.stream.put(b"x") == 0
        assert self.neighbours_stream.take() == b"unharmed"
        assert self.talk.complaints == []


NOISE = "recognized by none of the 3 hops"

# Bits of the 4072 of a cell: the tag, command, length and stream id, the padding, and both ends.
BITS = [0, 1, 7, 8, 63, 64, 119, 120, 126, 127]
BITS += list(range(128, 168))
BITS += [168, 171, 1000, 2035, 2036, 3000, 4064, 4070, 4071]


@BOTH
def test_one_flipped_bit_anywhere_makes_noise_of_the_cell(hops: list[str]) -> None:
    pair = Pair(hops)
    for bit in BITS:
        pair.far.send(3, RelayCommand.DATA, pair.stream.id, b"d", flip_bit=bit)
        pair.assert_only_the_circuit_fails(NOISE)
        pair.renew()


@pytest.mark.parametrize("hop", [1, 2, 3])
def test_one_flipped_bit_makes_noise_of_the_cell_of_any_hop(hop: int) -> None:
    pair = Pair(ON_ALL)
    pair.far.send(hop, RelayCommand.DROP, flip_bit=2000)
    pair.assert_only_the_circuit_fails(NOISE)


@BOTH
def test_a_replayed_cell_is_noise(hops: list[str]) -> None:
    pair = Pair(hops)
    cell = pair.far.send(3, RelayCommand.DATA, pair.stream.id, b"once", hold=True)
    pair.talk.link.push(cell + cell)
    pair.assert_only_the_circuit_fails(NOISE)
    assert pair.stream.take() == b"once"


@BOTH
def test_two_cells_in_the_wrong_order_are_noise(hops: list[str]) -> None:
    pair = Pair(hops)
    first, second = (pair.far.send(3, RelayCommand.DATA, pair.stream.id, d, hold=True) for d in (b"1", b"2"))
    pair.talk.link.push(second + first)
    pair.assert_only_the_circuit_fails(NOISE)
    assert pair.stream.take() == b""


@BOTH
def test_after_a_dropped_cell_the_next_is_noise(hops: list[str]) -> None:
    pair = Pair(hops)
    pair.far.send(3, RelayCommand.DATA, pair.stream.id, b"lost", hold=True)
    pair.far.send(3, RelayCommand.DATA, pair.stream.id, b"next")
    pair.assert_only_the_circuit_fails(NOISE)
    assert pair.stream.take() == b""


@pytest.mark.parametrize("hop", [1, 2])
def test_an_inner_hops_dropped_cell_is_felt_by_the_cells_of_all(hop: int) -> None:
    pair = Pair(ON_ALL)
    pair.far.send(hop, RelayCommand.DROP, hold=True)
    pair.far.send(3, RelayCommand.DATA, pair.stream.id, b"next")
    pair.assert_only_the_circuit_fails(NOISE)


@BOTH
def test_a_cell_that_bears_another_tag_is_noise(hops: list[str]) -> None:
    pair = Pair(hops)
    pair.far.send(3, RelayCommand.DROP, wrong_digest=True)
    pair.assert_only_the_circuit_fails(NOISE)


def test_a_cell_of_another_circuit_is_noise() -> None:
    pair = Pair(AT_EXIT)
    cell = pair.talk.far_end(pair.neighbour).send(3, RelayCommand.DROP, hold=True)
    pair.renew()
    pair.talk.link.push(pair.circuit.id.to_bytes(4, "big") + cell[4:])
    assert NOISE in str(failure_of(pair.talk.exchange()))
    assert pair.circuit.has_ended


# --- Messages against the rules ------------------------------------------------------------------------

Breach = Callable[[FakeCircuit, Stream], object]

BREACHES: dict[str, tuple[Breach, str]] = {
    "unknown command": (lambda far, stream: far.send(3, 99), "unknown command 99"),
    "command 0": (lambda far, stream: far.send(3, 0), "unknown command 0"),
    "the highest command": (lambda far, stream: far.send(3, 255), "unknown command 255"),
    "the first command beyond those known": (lambda far, stream: far.send(3, 16), "unknown command 16"),
    "DATA of stream 0": (lambda far, stream: far.send(3, RelayCommand.DATA, 0, b"x"), "DATA arrived without"),
    "END of stream 0": (lambda far, stream: far.send(3, RelayCommand.END, 0, b"\x06"), "END arrived without"),
    "CONNECTED of stream 0": (
        lambda far, stream: far.send(3, RelayCommand.CONNECTED),
        "CONNECTED arrived without a stream",
    ),
    "RESOLVED of stream 0": (
        lambda far, stream: far.send(3, RelayCommand.RESOLVED),
        "RESOLVED arrived without",
    ),
    "XON of stream 0": (
        lambda far, stream: far.send(3, RelayCommand.XON, 0, bytes(5)),
        "XON arrived without",
    ),
    "XOFF of stream 0": (
        lambda far, stream: far.send(3, RelayCommand.XOFF, 0, b"\0"),
        "XOFF arrived without",
    ),
    "DATA beyond the cell": (
        lambda far, stream: far.send(3, RelayCommand.DATA, stream.id, length=DATA_LEN + 1),
        "claims 489 bytes of at most 488",
    ),
    "DROP beyond the cell": (
        lambda far, stream: far.send(3, RelayCommand.DROP, length=OTHER_LEN + 1),
        "claims 491 bytes of at most 490",
    ),
    "the greatest length": (
        lambda far, stream: far.send(3, RelayCommand.DROP, length=65535),
        "claims 65535 bytes",
    ),
    "data for an unknown stream": (
        lambda far, stream: far.send(3, RelayCommand.DATA, stream.id ^ 1, b"x"),
        "not open",
    ),
    "second CONNECTED": (
        lambda far, stream: far.streams[stream.id].connected(),
        "CONNECTED arrived for a stream that was not waiting",
    ),
    "data after END": (
        lambda far, stream: (
            far.send(3, RelayCommand.END, stream.id, b"\x06"),
            far.send(3, RelayCommand.DATA, stream.id, b"x"),
        ),
        "not open",
    ),
    "inbound RELAY_EARLY": (
        lambda far, stream: far.send(3, RelayCommand.DATA, stream.id, b"x", early=True),
        "RELAY_EARLY",
    ),
    "SENDME for nothing": (lambda far, stream: far.sendme(3, bytes(16)), "acknowledges more than was sent"),
}


@pytest.mark.parametrize("name", BREACHES)
@BOTH
def test_a_breach_ends_its_circuit_and_no_other(hops: list[str], name: str) -> None:
    breach, message = BREACHES[name]
    pair = Pair(hops)
    breach(pair.far, pair.stream)
    pair.assert_only_the_circuit_fails(message)


@pytest.mark.parametrize("hop", [1, 2])
def test_data_from_another_hop_ends_the_circuit(hop: int) -> None:
    pair = Pair(ON_ALL)
    pair.far.send(hop, RelayCommand.DATA, pair.stream.id, b"x")
    pair.assert_only_the_circuit_fails(f"DATA arrived from hop {hop} for a stream of hop 3")


SENDMES: dict[str, tuple[Callable[[bytes], tuple[int, bytes]], str]] = {
    "of tor1's length": (lambda tag: (1, tag + bytes(4)), "tag of 20 bytes, not 16"),
    "cut short": (lambda tag: (1, tag[:15]), "tag of 15 bytes, not 16"),
    "wrong in its first bit": (lambda tag: (1, bytes([tag[0] ^ 0x80]) + tag[1:]), "wrong tag"),
    "wrong in its last bit": (lambda tag: (1, tag[:-1] + bytes([tag[-1] ^ 1])), "wrong tag"),
    "unauthenticated": (lambda tag: (0, b""), "not authenticated"),
    "of an unknown version": (lambda tag: (2, tag), "not authenticated"),
}


@pytest.mark.parametrize("name", SENDMES)
@BOTH
def test_a_sendme_that_is_not_the_cells_ends_the_circuit(hops: list[str], name: str) -> None:
    edit, message = SENDMES[name]
    pair = Pair(hops)

    def answer(far: FakeCircuit, hop: int, tag: bytes) -> None:
        version, tag = edit(tag)
        far.sendme(hop, tag, version=version)

    pair.talk.relays[2].on_sendme_due = answer
    pair.stream.put(bytes(DATA_LEN * 31))
    pair.assert_only_the_circuit_fails(message)


def test_a_sendme_that_says_less_than_its_tag_ends_the_circuit() -> None:
    pair = Pair(AT_EXIT)
    pair.talk.relays[2].on_sendme_due = lambda far, hop, tag: far.send(
        hop, RelayCommand.SENDME, 0, b"\x01\x00\x10" + tag[:15]
    )
    pair.stream.put(bytes(DATA_LEN * 31))
    pair.assert_only_the_circuit_fails("15 bytes of a tag of 16")


@BOTH
def test_one_sendme_too_many_ends_the_circuit(hops: list[str]) -> None:
    pair = Pair(hops)
    pair.stream.put(bytes(DATA_LEN * 31))
    pair.talk.exchange()
    pair.far.sendme(3, bytes(16))
    pair.assert_only_the_circuit_fails("acknowledges more than was sent")


def test_sendmes_in_the_wrong_order_end_the_circuit() -> None:
    tags: list[bytes] = []
    pair = Pair(AT_EXIT)
    pair.talk.relays[2].on_sendme_due = lambda far, hop, tag: tags.append(tag)
    pair.stream.put(bytes(DATA_LEN * 62))
    pair.talk.exchange()
    pair.far.sendme(3, tags[1])
    pair.assert_only_the_circuit_fails("wrong tag")


def test_relay_early_cells_of_ours_are_recognized_until_the_budget_is_spent() -> None:
    """A cell's command is part of CGO's tweak, so both kinds of cell must come through."""
    talk = Talk(hops=ON_ALL)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    assert stream.put(bytes(DATA_LEN * 20)) == DATA_LEN * 20
    talk.exchange()
    assert talk.far_end(circuit).early_cells_received == 8
    assert len(talk.far_stream(circuit, stream).received) == DATA_LEN * 20
    assert talk.complaints == []
