"""One circuit with all its hops, its streams as exits and directories see them, and the default answers."""

from __future__ import annotations

import ipaddress
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from torkit._fast.cells import Command, RelayCommand
from torkit.testing.relay.cells import (
    CIRCWINDOW_INCREMENT,
    CIRCWINDOW_START,
    CONNECTFAILED,
    DONE,
    MAX_RELAY_EARLY,
    NOTDIRECTORY,
    PROTOCOL,
    SENDME_V1,
    STREAMWINDOW_INCREMENT,
    STREAMWINDOW_START,
    RelayCell,
    encode_cell,
)
from torkit.testing.relay.faults import Level, Passage, let_pass
from torkit.testing.relay.layers import CgoLayer, OnionServiceLayer, Tor1Layer
from torkit.testing.relay.state import RelayState


class LinkHost(Protocol):
    """A link, as its circuits know it (link.py)."""

    relay: RelayState
    circuits: dict[int, FakeCircuit]
    on_output: Callable[[], object]

    def push(self, data: bytes) -> None: ...
    def send_cell(self, circ_id: int, command: int, body: bytes = b"") -> None: ...
    def close(self, *, abrupt: bool = False) -> None: ...
    def later(self, seconds: float, call: Callable[[], object]) -> None: ...


@dataclass
class FakeHop:
    """One relay's end of a circuit: its layer and its circuit-level windows."""

    relay: RelayState
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
    kh: bytes = b""  # what follows the layer's keys, where ntor or ntor-v3 made the hop

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

    def __init__(self, link: LinkHost, circ_id: int) -> None:
        self.link = link
        self.circ_id = circ_id
        self.hops: list[FakeHop] = []
        self.streams: dict[int, FakeStream] = {}
        self.ended_streams: set[int] = set()
        self.control_cells: list[tuple[int, RelayCell]] = []  # (hop, cell) of what arrived, but for DATA
        self.early_cells_received = 0
        self.closed = False
        self.continued: FakeCircuit | None = None  # by a rendezvous point, behind the last hop

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
        the cell but leaves the sending to the caller, who reorders or drops it with `link.push`, past all
        faults. No window is looked at here: `FakeStream.write` does that.
        """
        origin = self.hops[hop - 1]
        cell_command = Command.RELAY_EARLY if early else Command.RELAY
        made: list[bytes] = []

        def seal(body: bytes) -> None:
            cell = RelayCell(command, stream_id, body)
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
            made.append(encode_cell(self.circ_id, cell_command, sealed))
            if not hold:
                origin.relay.on_sent(self, hop, command, stream_id, body)
                self.link.send_cell(self.circ_id, cell_command, sealed)

        if hold or not origin.relay.faults:
            seal(body)
        else:
            room = origin.layer.DATA_LEN_MAX  # what a lie has grown beyond is cut off
            one = self._passage(True, hop, command, body, lambda body: seal(body[:room]))
            let_pass(origin.relay.faults, one)
        return b"".join(made)

    def _passage(
        self, is_sent: bool, hop: int, command: int, body: bytes, go: Callable[[bytes], object]
    ) -> Passage:
        return Passage(is_sent, Level.MESSAGE, command, 0, body, self.link, self, (self, hop), go)

    def sendme(self, hop: int, tag: bytes, *, version: int = SENDME_V1) -> None:
        """A circuit-level SENDME. tor-spec, "SENDME Cell Format"."""
        self.hops[hop - 1].sendmes_sent += 1
        self.send(hop, RelayCommand.SENDME, 0, struct.pack(">BH", version, len(tag)) + tag)

    def truncated(self, hop: int, reason: int = CONNECTFAILED) -> None:
        self.send(hop, RelayCommand.TRUNCATED, 0, bytes([reason]))

    def destroy(self, reason: int = PROTOCOL) -> None:
        self.forget(reason)
        self.link.send_cell(self.circ_id, Command.DESTROY, bytes([reason]))

    def forget(self, reason: int) -> None:
        """It has ended; so has what continued it."""
        self.closed = True
        self.link.circuits.pop(self.circ_id, None)
        other, self.continued = self.continued, None
        if other is not None:
            other.continued = None
            other.destroy(reason)

    def continue_at(self, other: FakeCircuit) -> None:
        """Join two circuits at their last hops: what no hop recognizes goes on to the other's client."""
        self.continued, other.continued = other, self

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
                    self._hear(number, cell, tag)
                return
        if self.continued is None:
            self.complain(len(self.hops), "a relay cell that no hop recognizes")
        else:
            self.continued.pass_on(body)

    def pass_on(self, body: bytes) -> None:
        """What came by the circuit that this one continues, in the layers of all our hops."""
        for hop in reversed(self.hops):
            body = hop.layer.encrypt_backward(Command.RELAY, body)
        self.link.send_cell(self.circ_id, Command.RELAY, body)

    def _hear(self, number: int, cell: RelayCell, tag: bytes) -> None:
        def dispatch(body: bytes) -> None:
            self._dispatch(number, replace(cell, body=body), tag)

        if faults := self.hops[number - 1].relay.faults:
            let_pass(faults, self._passage(False, number, cell.command, cell.body, dispatch))
        else:
            self._dispatch(number, cell, tag)

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
            relay.on_resolve(self, number, cell.stream_id, name.decode("ascii", "replace"))
            return
        stream = FakeStream(self, number, cell.stream_id)
        if cell.command == RelayCommand.BEGIN:
            address, nul, flags = cell.body.partition(b"\0")
            host, _, port = address.decode("ascii", "replace").rpartition(":")
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


class FakeStream:
    """One stream at one hop: the exit's or directory's end."""

    def __init__(self, circuit: FakeCircuit, hop_number: int, stream_id: int) -> None:
        self.circuit = circuit
        self.hop_number = hop_number
        self.id = stream_id
        self.target: tuple[str, int] | None = None  # None for BEGIN_DIR
        self.flags = 0
        self.received = bytearray()
        self.package_window = STREAMWINDOW_START  # cells; so the next
        self.deliver_window = STREAMWINDOW_START
        self.sending = True  # False after XOFF
        self.xoffs_received = 0
        self.rates: list[int] = []  # kbps_ewma of every XON
        self.bytes_sent = 0
        self._waiting = bytearray()
        self._end_reason: int | None = None

    @property
    def hop(self) -> FakeHop:
        return self.circuit.hops[self.hop_number - 1]

    def send(self, command: int, body: bytes = b"") -> bytes:
        """One relay cell on this stream, whatever the windows say."""
        return self.circuit.send(self.hop_number, command, self.id, body)

    def connected(self, address: str = "127.0.0.1", ttl: int = 60) -> None:
        packed = ipaddress.ip_address(address).packed
        body = packed if len(packed) == 4 else bytes(4) + b"\x06" + packed
        self.send(RelayCommand.CONNECTED, body + struct.pack(">I", ttl))

    def write(self, data: bytes) -> None:
        """Send data as the windows allow, the rest when SENDME or XON comes."""
        self._waiting += data
        self.circuit.pump(self.hop_number)

    def finish(self, reason: int = DONE) -> None:
        """END after everything written has gone."""
        self._end_reason = reason
        self.circuit.pump(self.hop_number)
        self._end_if_drained()

    def data(self, body: bytes) -> None:
        """One DATA cell, past any window."""
        self.package_window -= 1
        self.bytes_sent += len(body)
        self.send(RelayCommand.DATA, body)

    def xoff(self) -> None:
        """Ask the client to pause, whatever it has sent. Proposal 324, "Flow Control"."""
        self.send(RelayCommand.XOFF, b"\0")

    def xon(self, kbps_ewma: int = 0) -> None:
        """Ask it to go on, at this rate in 1000 bytes a second; 0 is no limit."""
        self.send(RelayCommand.XON, struct.pack(">BI", 0, kbps_ewma))

    def end(self, reason: int = DONE, more: bytes = b"") -> None:
        """END at once; `more` follows the reason."""
        self.forget()
        self.send(RelayCommand.END, bytes([reason]) + more)

    def forget(self) -> None:
        self.circuit.streams.pop(self.id, None)
        self.circuit.ended_streams.add(self.id)

    def send_waiting_cell(self) -> bool:
        """Send one DATA cell if there is one and both windows allow; whether it went."""
        stream_window = self.sending if self.hop.congestion_control else self.package_window > 0
        if not self._waiting or not stream_window or self.hop.package_window <= 0 or self.circuit.closed:
            return False
        body = bytes(self._waiting[: self.hop.layer.DATA_LEN_MAX])
        del self._waiting[: len(body)]
        self.data(body)
        self._end_if_drained()
        return True

    def _end_if_drained(self) -> None:
        if self._end_reason is not None and not self._waiting and self.id in self.circuit.streams:
            self.end(self._end_reason)

    def receive_data(self, body: bytes) -> None:
        self.received += body
        if not self.hop.congestion_control:
            self.deliver_window -= 1
            if self.deliver_window < 0:
                self.circuit.complain(self.hop_number, "DATA beyond the stream's window")
                return
            if self.deliver_window <= STREAMWINDOW_START - STREAMWINDOW_INCREMENT:
                self.hop.relay.on_stream_sendme_due(self)
        if self.target is None:
            self._answer_directory_request()
        else:
            self.hop.relay.on_data(self, body)

    def receive_sendme(self) -> None:
        if self.hop.congestion_control:
            self.circuit.complain(self.hop_number, "a stream SENDME under congestion control")
            return
        self.package_window += STREAMWINDOW_INCREMENT
        if self.package_window > STREAMWINDOW_START:
            self.circuit.complain(self.hop_number, "a stream SENDME too many")
            return
        self.circuit.pump(self.hop_number)

    def receive_xon_xoff(self, cell: RelayCell) -> None:
        if not self.hop.congestion_control or cell.body[:1] != b"\0":
            self.circuit.complain(self.hop_number, "XON or XOFF not agreed on, or not of version 0")
        elif cell.command == RelayCommand.XOFF:
            self.xoffs_received += 1
            if not self.sending:
                self.circuit.complain(self.hop_number, "XOFF in XOFF")
            elif (
                self.bytes_sent < self.xoffs_received * self.hop.relay.cc_xoff_client * CgoLayer.DATA_LEN_MAX
            ):
                self.circuit.complain(self.hop_number, "XOFF before the data that could have caused it")
            else:
                self.sending = False
        else:
            self.rates.append(int.from_bytes(cell.body[1:5], "big"))
            self.sending = True
            self.circuit.pump(self.hop_number)

    def _answer_directory_request(self) -> None:
        directory = self.hop.relay.directory
        head, blank, body = bytes(self.received).partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if directory is None or not blank or (lengths and len(body) < int(lengths[0].split(b":")[1])):
            return
        request = bytes(self.received)
        self.received.clear()
        self._answer(request, directory(request))

    def _answer(self, request: bytes, answer: bytes) -> None:
        """Say it as often as faults will have it, and END behind the last; where they keep it, nothing."""
        said = is_late = False

        def say(answer: bytes) -> None:
            nonlocal said
            said = True
            self.write(answer)
            if is_late:
                self.finish()

        relay, circuit = self.hop.relay, self.circuit
        one = Passage(True, Level.ANSWER, None, 0, answer, circuit.link, circuit, relay, say, request)
        let_pass(relay.faults, one)
        is_late = True
        if said:
            self.finish()


def answer_begin(stream: FakeStream) -> None:
    """CONNECTED, to wherever it was."""
    stream.connected()


def answer_begin_dir(stream: FakeStream) -> None:
    """CONNECTED where the relay has a directory, else END with NOTDIRECTORY."""
    if stream.hop.relay.directory is None:
        stream.end(NOTDIRECTORY)
    else:
        stream.send(RelayCommand.CONNECTED)


def answer_stream_sendme_due(stream: FakeStream) -> None:
    """Acknowledge 50 more cells of one stream."""
    stream.deliver_window += STREAMWINDOW_INCREMENT
    stream.send(RelayCommand.SENDME)


def answer_resolve(circuit: FakeCircuit, number: int, stream_id: int, name: str) -> None:
    """RESOLVED from `relay.hosts`. tor-spec, "Remote hostname lookup"."""
    answers = b""
    for value in circuit.hops[number - 1].relay.hosts.get(name, []):
        try:
            packed = ipaddress.ip_address(value).packed
            kind = 4 if len(packed) == 4 else 6
        except ValueError:
            kind, packed = 0, value.encode("ascii")
        answers += bytes([kind, len(packed)]) + packed + struct.pack(">I", 60)
    error = b"Error resolving hostname"
    answers = answers or b"\xf1" + bytes([len(error)]) + error + struct.pack(">I", 60)
    circuit.send(number, RelayCommand.RESOLVED, stream_id, answers)


def answer_truncate(circuit: FakeCircuit, number: int, _: RelayCell) -> None:
    """Forget the hops behind this one and say so."""
    del circuit.hops[number:]
    circuit.truncated(number, 3)


def answer_sendme_due(circuit: FakeCircuit, number: int, tag: bytes) -> None:
    """Acknowledge another increment of DATA cells; `tag` is the digest at the last of them."""
    circuit.sendme(number, tag)


def http_response(body: bytes, *, status: str = "200 OK") -> bytes:
    """What a directory's callable returns."""
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
