"""The whole path of a cell through the compiled core, beside bare libcrypto on the same number of bytes.

    python -m pytest bench/bench_core.py --benchmark-enable --benchmark-timer=time.process_time

Inbound is what the channel's reader does for a download: `Channel.receive_data` on full TLS reads (framing,
circuit, all layers, digest or tag, stream, copy into its queue, circuit SENDMEs sealed), `Stream.take` and
`Channel.data_to_send`. Outbound is `Stream.put` of what one read from a SOCKS client brings, and
`data_to_send`. The floor (floor.pyx) runs before each round, so both see the same moments of the machine;
`extra_info` holds its seconds per cell, round by round.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.cgo import CgoLayer
from torkit._fast.channel import Channel
from torkit._fast.events import Message, Readable
from torkit._fast.onion import (
    CGO_KEYS_LEN,
    TOR1_DIGEST_LEN,
    TOR1_KEYS_LEN,
    TOR1_ONION_DIGEST_LEN,
    TOR1_ONION_KEYS_LEN,
    Layer,
    LayerKind,
)
from torkit._fast.stream import Stream
from torkit.proto.flow import ClockGuard, CongestionParams, Vegas

CELL_BODY_LEN = 509
CELL_LEN = 514
DIGEST_AT, DIGEST_LEN = 5, 4
CGO_TAG_LEN = 16
DATA_LEN = {LayerKind.TOR1: 498, LayerKind.CGO: 488, LayerKind.TOR1_ONION: 498}
KEYS_LEN = {
    LayerKind.TOR1: TOR1_KEYS_LEN,
    LayerKind.CGO: CGO_KEYS_LEN,
    LayerKind.TOR1_ONION: TOR1_ONION_KEYS_LEN,
}

CIRC_ID = 0x80000001
SENDME_INC = 31  # cells: what today's relays negotiate
WINDOW = (1 << 31) - 1  # cells: never full, since nobody acknowledges here
CONGESTION = CongestionParams.from_params({})._replace(cwnd_init=WINDOW, cwnd_max=WINDOW)
READ_CELLS = 255  # a TLS read of 128 KiB
READS = 4  # in one round
PUTS, PUT_LEN = 8, 65_536  # in one round; bytes of one read from a SOCKS client
ROUNDS = 30

HOPS = {
    "tor1": (LayerKind.TOR1, LayerKind.TOR1, LayerKind.TOR1),
    "cgo-exit": (LayerKind.TOR1, LayerKind.TOR1, LayerKind.CGO),
    "cgo-all": (LayerKind.CGO, LayerKind.CGO, LayerKind.CGO),
    "onion": (LayerKind.TOR1, LayerKind.TOR1, LayerKind.TOR1, LayerKind.TOR1_ONION),
}


class RelaySide(Protocol):
    """The backward direction of one hop, as its relay has it."""

    def originate(self, command: int, stream_id: int, data: bytes) -> bytearray: ...
    def encrypt(self, body: bytearray) -> bytearray: ...


class Tor1Relay:
    def __init__(self, kind: LayerKind, keys: bytes) -> None:
        is_onion = kind == LayerKind.TOR1_ONION
        digest_len = TOR1_ONION_DIGEST_LEN if is_onion else TOR1_DIGEST_LEN
        key_len = len(keys) // 2 - digest_len
        self._digest = hashlib.new("sha3_256" if is_onion else "sha1", keys[digest_len : 2 * digest_len])
        self._cipher = Cipher(AES(keys[-key_len:]), CTR(bytes(16))).encryptor()

    def originate(self, command: int, stream_id: int, data: bytes) -> bytearray:
        header = bytes([command, 0, 0]) + stream_id.to_bytes(2) + bytes(DIGEST_LEN) + len(data).to_bytes(2)
        body = bytearray((header + data).ljust(CELL_BODY_LEN, b"\0"))
        self._digest.update(body)
        body[DIGEST_AT : DIGEST_AT + DIGEST_LEN] = self._digest.digest()[:DIGEST_LEN]
        return self.encrypt(body)

    def encrypt(self, body: bytearray) -> bytearray:
        return bytearray(self._cipher.update(body))


class CgoRelay:
    def __init__(self, keys: bytes) -> None:
        self._layer = CgoLayer(keys[CGO_KEYS_LEN // 2 :], relay=True)

    def originate(self, command: int, stream_id: int, data: bytes) -> bytearray:
        header = bytes(CGO_TAG_LEN) + bytes([command]) + len(data).to_bytes(2) + stream_id.to_bytes(2)
        body = bytearray((header + data).ljust(CELL_BODY_LEN, b"\0"))
        self._layer.relay_originate(Command.RELAY, body)
        return body

    def encrypt(self, body: bytearray) -> bytearray:
        self._layer.relay_backward(Command.RELAY, body)
        return body


class Talk:
    """A channel with one circuit and one open stream, and the relays that seal cells for it."""

    def __init__(self, kinds: Sequence[LayerKind]) -> None:
        self.channel = Channel()
        versions = bytearray(b"\0\0\x07\0\x02\0\x05")
        self.channel.receive_data(versions, len(versions))
        self.circuit = self.channel.open_circuit(CIRC_ID, 1, 0)
        self._relays: list[RelaySide] = []
        for number, kind in enumerate(kinds):
            keys = bytes((7 * i + number) % 256 for i in range(KEYS_LEN[kind]))
            vegas = Vegas(CONGESTION, increment=SENDME_INC, clock=ClockGuard())
            self.circuit.add_hop(Layer(kind, keys), vegas=vegas)
            self._relays.append(CgoRelay(keys) if kind == LayerKind.CGO else Tor1Relay(kind, keys))
        self.stream: Stream = self.circuit.open_stream(len(kinds) - 1)
        self.data_len = DATA_LEN[kinds[-1]]
        (event,) = self.receive(self.seal(RelayCommand.CONNECTED, b""))
        assert isinstance(event, Message)

    def seal(self, command: RelayCommand, data: bytes) -> bytes:
        """One cell from the last hop."""
        *inner, last = self._relays
        body = last.originate(command, self.stream.id, data)
        for relay in reversed(inner):
            body = relay.encrypt(body)
        return CIRC_ID.to_bytes(4) + bytes([Command.RELAY]) + body

    def seal_read(self) -> bytearray:
        """A whole TLS read of full DATA cells."""
        data = bytes(self.data_len)
        return bytearray(b"".join(self.seal(RelayCommand.DATA, data) for _ in range(READ_CELLS)))

    def receive(self, cells: bytes) -> list[Any]:
        return self.channel.receive_data(bytearray(cells), len(cells))


@pytest.fixture(scope="session")
def floors(build: Callable[[str], Any]) -> Any:
    return build("floor")


@pytest.fixture
def floor(floors: Any, layers: str) -> Any:
    return floors.Floor(onion=layers == "onion")


class Interleaved:
    """The floor before every round, on a buffer as large as a round's cells."""

    def __init__(self, floor: Any, cells: int) -> None:
        self._floor = floor
        self._buffer = bytearray(cells * CELL_LEN)
        self._cells = cells
        self.seconds_per_cell: list[float] = []

    def run(self) -> None:
        started = time.process_time()
        self._floor.run(self._buffer)
        self.seconds_per_cell.append((time.process_time() - started) / self._cells)


@pytest.mark.parametrize("layers", HOPS)
def test_inbound(benchmark: Any, floor: Any, layers: str) -> None:
    cells = READS * READ_CELLS
    talk, beside = Talk(HOPS[layers]), Interleaved(floor, cells)
    taken = []

    def setup() -> tuple[tuple[list[bytearray]], dict[str, Any]]:
        reads = [talk.seal_read() for _ in range(READS)]
        beside.run()
        return (reads,), {}

    def work(reads: list[bytearray]) -> None:
        for read in reads:
            events = talk.channel.receive_data(read, len(read))
            taken.append((len(talk.stream.take()), events))
            talk.channel.data_to_send()

    benchmark.pedantic(work, setup=setup, rounds=ROUNDS)
    assert {length for length, _ in taken} == {READ_CELLS * talk.data_len}
    assert all([type(event) for event in events] == [Readable] for _, events in taken)
    benchmark.extra_info.update(cells=cells, floor=beside.seconds_per_cell)


@pytest.mark.parametrize("layers", HOPS)
def test_outbound(benchmark: Any, floor: Any, layers: str) -> None:
    talk = Talk(HOPS[layers])
    cells = PUTS * -(-PUT_LEN // talk.data_len)
    beside = Interleaved(floor, cells)
    data = bytes(PUT_LEN)
    sent = []

    def work() -> None:
        for _ in range(PUTS):
            accepted = talk.stream.put(data)
            sent.append((accepted, len(talk.channel.data_to_send())))

    benchmark.pedantic(work, setup=beside.run, rounds=ROUNDS)
    assert set(sent) == {(PUT_LEN, cells // PUTS * CELL_LEN)}
    benchmark.extra_info.update(cells=cells, floor=beside.seconds_per_cell)
