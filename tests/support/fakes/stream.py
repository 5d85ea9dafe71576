"""The exit's or directory's end of a stream."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING

from torkit._fast.cells import RelayCommand

from .cells import DONE, NOTDIRECTORY, STREAMWINDOW_INCREMENT, STREAMWINDOW_START, RelayCell
from .layers import CgoLayer

if TYPE_CHECKING:
    from .circuit import FakeCircuit, FakeHop


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
        self.write(directory(request))
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


def http_response(body: bytes, *, status: str = "200 OK") -> bytes:
    """What a directory's callable returns."""
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
