"""One circuit with all its hops, and the default answers to what arrives on it."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torkit._fast.cells import Command, RelayCommand

from .cells import (
    CIRCWINDOW_INCREMENT,
    CIRCWINDOW_START,
    CONNECTFAILED,
    MAX_RELAY_EARLY,
    OR_IDENTITY,
    PROTOCOL,
    SENDME_V1,
    HandshakeRefusedError,
    RelayCell,
    encode_cell,
)
from .handshakes import answer_handshake_fast
from .layers import CgoLayer, OnionServiceLayer, Tor1Layer
from .stream import FakeStream

if TYPE_CHECKING:
    from .link import FakeLink
    from .relay import FakeRelay


@dataclass
class FakeHop:
    """One relay's end of a circuit: its layer and its circuit-level windows."""

    relay: FakeRelay
    layer: Tor1Layer | CgoLayer
    handshake_type: int | None = None  # None for CREATE_FAST
    client_message: bytes | None = None  # what an ntor-v3 handshake carried
    congestion_control: bool = False
    sendme_inc: int = CIRCWINDOW_INCREMENT  # DATA cells to a circuit-level SENDME
    data_sent: int = 0  # cells since the circuit began; so with the three below
    data_received: int = 0
    sendmes_sent: int = 0
    sendmes_received: int = 0
    expected_tags: deque[bytes] = field(default_factory=deque)
    kh: bytes = b""  # what follows the layer's keys, where ntor made the hop

    def use_congestion_control(self) -> None:
        """From the first cell on, or not at all."""
        self.congestion_control = True
        self.sendme_inc = self.relay.cc_sendme_inc

    @property
    def package_window(self) -> int:
        start = self.relay.cc_cwnd if self.congestion_control else CIRCWINDOW_START
        return start - self.data_sent + self.sendme_inc * self.sendmes_received


class FakeCircuit:
    """One circuit of a link, with all its hops in memory. `hop` counts from 1 everywhere."""

    def __init__(self, link: FakeLink, circ_id: int) -> None:
        self.link = link
        self.circ_id = circ_id
        self.hops: list[FakeHop] = []
        self.streams: dict[int, FakeStream] = {}
        self.ended_streams: set[int] = set()
        self.control_cells: list[tuple[int, RelayCell]] = []  # (hop, cell) of what arrived, but for DATA
        self.early_cells_received = 0
        self.closed = False

    # Sending

    def send(
        self,
        hop: int,
        command: int,
        stream_id: int = 0,
        body: bytes = b"",
        *,
        early: bool = False,
        recognized: int = 0,
        length: int | None = None,
        wrong_digest: bool = False,
        flip_bit: int | None = None,
        hold: bool = False,
    ) -> bytes:
        """Send one relay cell from `hop`, through the layers of the hops before it; returns the cell.

        Oddities: `early` sends RELAY_EARLY; `recognized`, `length` lie in the header; `wrong_digest`
        spoils the digest field, or the tag; `flip_bit` flips that bit of the ciphertext; `hold` builds
        the cell but leaves the sending to the caller, who reorders or drops it with `link.push`.
        No window is looked at here: `FakeStream.write` does that.
        """
        origin = self.hops[hop - 1]
        cell = RelayCell(command, stream_id, body)
        cell_command = Command.RELAY_EARLY if early else Command.RELAY
        sealed, tag = origin.layer.originate(
            cell_command, cell, recognized=recognized, length=length, wrong_digest=wrong_digest
        )
        if command == RelayCommand.DATA:
            origin.data_sent += 1
            if origin.data_sent % origin.sendme_inc == 0:
                origin.expected_tags.append(tag)
        for outer in reversed(self.hops[: hop - 1]):
            sealed = outer.layer.encrypt_backward(cell_command, sealed)
        if flip_bit is not None:
            flipped = bytearray(sealed)
            flipped[flip_bit // 8] ^= 0x80 >> flip_bit % 8
            sealed = bytes(flipped)
        wire = encode_cell(self.circ_id, cell_command, sealed)
        if not hold:
            self.link.push(wire)
        return wire

    def sendme(self, hop: int, tag: bytes, *, version: int = SENDME_V1) -> None:
        """A circuit-level SENDME. tor-spec, "SENDME Cell Format"."""
        self.hops[hop - 1].sendmes_sent += 1
        self.send(hop, RelayCommand.SENDME, 0, struct.pack(">BH", version, len(tag)) + tag)

    def truncated(self, hop: int, reason: int = CONNECTFAILED) -> None:
        self.send(hop, RelayCommand.TRUNCATED, 0, bytes([reason]))

    def destroy(self, reason: int = PROTOCOL) -> None:
        self.closed = True
        self.link.circuits.pop(self.circ_id, None)
        self.link.send_cell(self.circ_id, Command.DESTROY, bytes([reason]))

    def complain(self, hop: int, why: str) -> None:
        """The client broke a rule at `hop`: note it and do as a relay does."""
        self.hops[hop - 1].relay.complaints.append(why)
        self.destroy(PROTOCOL)

    # Receiving

    def receive(self, body: bytes, *, early: bool) -> None:
        """The body of a RELAY or RELAY_EARLY cell from the client."""
        command = Command.RELAY_EARLY if early else Command.RELAY
        if early:
            self.early_cells_received += 1
            if self.early_cells_received > MAX_RELAY_EARLY:
                self.complain(1, "more than 8 RELAY_EARLY cells")
                return
        for number, hop in enumerate(self.hops, 1):
            body, tag = hop.layer.open_forward(command, body)
            if tag is not None:
                try:
                    cell = hop.layer.decode(body, early=early)
                except ValueError as error:
                    self.complain(number, str(error))
                else:
                    self._dispatch(number, cell, tag)
                return
        self.complain(len(self.hops), "a relay cell that no hop recognizes")

    def _dispatch(self, number: int, cell: RelayCell, tag: bytes) -> None:
        hop, relay = self.hops[number - 1], self.hops[number - 1].relay
        self.link.relay.on_relay_cell(self, number, cell)
        if cell.command == RelayCommand.DATA:
            self._receive_data(number, cell, tag)
            return
        self.control_cells.append((number, cell))
        if cell.command == RelayCommand.SENDME and cell.stream_id == 0:
            self._receive_sendme(number, hop, cell)
        elif cell.command == RelayCommand.EXTEND2:
            relay.on_extend2(self, number, cell)
        elif cell.command == RelayCommand.TRUNCATE:
            relay.on_truncate(self, number, cell)
        elif cell.command == RelayCommand.DROP:
            relay.on_drop(self, number, cell)
        elif cell.command in (RelayCommand.BEGIN, RelayCommand.BEGIN_DIR, RelayCommand.RESOLVE):
            self._receive_begin(number, cell)
        elif cell.command in (RelayCommand.END, RelayCommand.SENDME, RelayCommand.XON, RelayCommand.XOFF):
            self._receive_for_stream(number, cell)
        else:
            relay.on_unknown(self, number, cell)

    def _receive_data(self, number: int, cell: RelayCell, tag: bytes) -> None:
        hop = self.hops[number - 1]
        hop.data_received += 1
        window = CIRCWINDOW_START - hop.data_received + hop.sendme_inc * hop.sendmes_sent
        if not hop.congestion_control and window < 0:
            self.complain(number, "DATA beyond the circuit's window")
            return
        if hop.data_received % hop.sendme_inc == 0:
            hop.relay.on_sendme_due(self, number, tag)
        if self._stream_of(number, cell) is not None:
            self.streams[cell.stream_id].receive_data(cell.body)

    def _receive_sendme(self, number: int, hop: FakeHop, cell: RelayCell) -> None:
        if not hop.expected_tags:
            self.complain(number, "a SENDME without a cell that asks for one")
            return
        tag = hop.expected_tags.popleft()
        if cell.body != struct.pack(">BH", SENDME_V1, len(tag)) + tag:
            self.complain(number, "a SENDME with a wrong tag")
            return
        hop.sendmes_received += 1
        self.pump(number)

    def _receive_begin(self, number: int, cell: RelayCell) -> None:
        relay = self.hops[number - 1].relay
        if cell.stream_id == 0 or cell.stream_id in self.streams:
            self.complain(number, f"stream id {cell.stream_id} is zero or in use")
            return
        if cell.command == RelayCommand.RESOLVE:
            name, nul, rest = cell.body.partition(b"\0")
            if not nul or rest:
                self.complain(number, "RESOLVE is not one NUL-terminated name")
                return
            relay.on_resolve(self, number, cell.stream_id, name.decode("ascii"))
            return
        stream = FakeStream(self, number, cell.stream_id)
        if cell.command == RelayCommand.BEGIN:
            address, nul, flags = cell.body.partition(b"\0")
            host, _, port = address.decode("ascii").rpartition(":")
            names_host = not isinstance(self.hops[number - 1].layer, OnionServiceLayer)
            if not nul or bool(host) != names_host or not port.isdigit():
                self.complain(number, "BEGIN without ADDRESS:PORT and its NUL")
                return
            stream.target = (host, int(port))
            stream.flags = int.from_bytes(flags.ljust(4, b"\0"), "big")
        self.streams[stream.id] = stream
        self.ended_streams.discard(stream.id)
        if cell.command == RelayCommand.BEGIN:
            relay.on_begin(stream)
        else:
            relay.on_begin_dir(stream)

    def _receive_for_stream(self, number: int, cell: RelayCell) -> None:
        stream = self._stream_of(number, cell)
        if stream is None:
            return
        if cell.command == RelayCommand.END:
            stream.forget()
            stream.hop.relay.on_end(stream, cell.body)
        elif cell.command == RelayCommand.SENDME:
            stream.receive_sendme()
        else:
            stream.receive_xon_xoff(cell)

    def _stream_of(self, number: int, cell: RelayCell) -> FakeStream | None:
        stream = self.streams.get(cell.stream_id)
        if stream is None:
            if cell.stream_id not in self.ended_streams:  # what crosses our END on the way is no fault
                self.complain(number, f"stream {cell.stream_id} was never begun")
        elif stream.hop_number != number:
            self.complain(number, f"stream {cell.stream_id} is not at hop {number}")
        else:
            return stream
        return None

    def pump(self, number: int) -> None:
        """Send what the streams of one hop have waiting, a cell each in turn, while windows last."""
        progress = True
        while progress:
            waiting = [stream for stream in self.streams.values() if stream.hop_number == number]
            progress = sum(stream.send_waiting_cell() for stream in waiting) > 0  # a turn for each


def answer_create(circuit: FakeCircuit, command: int, body: bytes) -> None:
    """CREATED_FAST or CREATED2; DESTROY where the handshake is not for this relay."""
    relay = circuit.link.relay
    try:
        if command == Command.CREATE_FAST:
            reply, keys = answer_handshake_fast(body)
            circuit.hops.append(FakeHop(relay, Tor1Layer(keys)))
            circuit.link.send_cell(circuit.circ_id, Command.CREATED_FAST, reply)
            return
        handshake_type, length = struct.unpack_from(">HH", body)
        reply, hop = relay.handshake(handshake_type, body[4 : 4 + length])
    except HandshakeRefusedError as error:
        relay.complaints.append(str(error))
        circuit.destroy(PROTOCOL)
        return
    circuit.hops.append(hop)
    circuit.link.send_cell(circuit.circ_id, Command.CREATED2, struct.pack(">H", len(reply)) + reply)


def decode_extend2(body: bytes) -> tuple[list[tuple[int, bytes]], int, bytes]:
    """Link specifiers, handshake type and data. tor-spec, "EXTEND and EXTENDED cells"."""
    specifiers, at = [], 1
    for _ in range(body[0]):
        kind, length = body[at], body[at + 1]
        specifiers.append((kind, body[at + 2 : at + 2 + length]))
        at += 2 + length
    handshake_type, length = struct.unpack_from(">HH", body, at)
    if len(body) != at + 4 + length:
        raise HandshakeRefusedError("EXTEND2 is longer or shorter than it says")
    return specifiers, handshake_type, body[at + 4 :]


def answer_extend2(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
    """Play the next hop in memory: EXTENDED2, or DESTROY as today's relays do."""
    relay = circuit.hops[number - 1].relay
    if not cell.early:
        circuit.complain(number, "EXTEND2 outside RELAY_EARLY")
        return
    if number != len(circuit.hops):
        circuit.complain(number, "EXTEND2 to a hop that is not the last")
        return
    try:
        specifiers, handshake_type, data = decode_extend2(cell.body)
    except (HandshakeRefusedError, IndexError, struct.error) as error:
        circuit.complain(number, f"EXTEND2: {error}")
        return
    named = dict(specifiers)
    target = next((r for r in relay.known if r.rsa_identity == named.get(2)), None)
    if target is None:
        circuit.destroy(CONNECTFAILED)
        return
    if named.get(3, target.ed_identity) != target.ed_identity:
        circuit.destroy(OR_IDENTITY)
        return
    try:
        reply, hop = target.handshake(handshake_type, data)
    except HandshakeRefusedError as error:
        target.complaints.append(str(error))
        circuit.destroy(PROTOCOL)
        return
    circuit.hops.append(hop)
    target.circuits.append(circuit)
    circuit.send(number, RelayCommand.EXTENDED2, 0, struct.pack(">H", len(reply)) + reply)


def answer_truncate(circuit: FakeCircuit, number: int, _: RelayCell) -> None:
    """Forget the hops behind this one and say so."""
    del circuit.hops[number:]
    circuit.truncated(number, 3)


def answer_sendme_due(circuit: FakeCircuit, number: int, tag: bytes) -> None:
    """Acknowledge another increment of DATA cells; `tag` is the digest at the last of them."""
    circuit.sendme(number, tag)
