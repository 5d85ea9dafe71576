"""One connection: framing, the link handshake, the table of circuits."""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial

from torkit._fast.cells import Command
from torkit.testing.relay.cells import CELL_BODY_LEN, PADDING_LINK, encode_cell, ignore
from torkit.testing.relay.certificates import encode_certs
from torkit.testing.relay.circuit import FakeCircuit
from torkit.testing.relay.faults import Level, Passage, let_pass, pieces
from torkit.testing.relay.state import RelayState


class FakeLink:
    """One connection: framing, the link handshake, and the table of circuits."""

    def __init__(self, relay: RelayState) -> None:
        self.relay = relay
        self.version: int | None = None
        self.circuits: dict[int, FakeCircuit] = {}
        self.control_cells: list[tuple[int, int, bytes]] = []  # what arrived, but for RELAY and RELAY_EARLY
        self.closed = False
        self.abrupt = False
        self.on_output: Callable[[], object] = ignore  # called when there is something to write, or a close
        self.delayed: list[tuple[float, Callable[[], object]]] = []  # seconds, and what to call then
        self.on_delay: Callable[[float, Callable[[], object]], object] = lambda *one: self.delayed.append(one)
        self._input = bytearray()
        self._output = bytearray()
        self.sent_count = self.received_count = 0  # bytes, whatever became of them

    def receive(self, data: bytes) -> bytes:
        """Bytes from the client in any cut; what the relay says to that."""
        self.hear(data)
        return self.take()

    def hear(self, data: bytes) -> None:
        """The same, but what the relay says waits until it is taken."""
        start, self.received_count = self.received_count, self.received_count + len(data)
        self._let_pass(False, start, data, self._hear)

    def take(self) -> bytes:
        """What waits to be sent, after a test had the relay speak unasked."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def push(self, data: bytes) -> None:
        """Queue bytes for the client as they are."""
        start, self.sent_count = self.sent_count, self.sent_count + len(data)
        self._let_pass(True, start, data, self._queue)

    def send_cell(self, circ_id: int, command: int, body: bytes = b"") -> None:
        def push(body: bytes) -> None:
            self.push(encode_cell(circ_id, command, body if command >= 128 else body[:CELL_BODY_LEN]))

        self._let_cell_pass(True, circ_id, command, body, push)

    def send_versions(self, versions: Sequence[int]) -> None:
        """The first cell, with its 2-byte circuit id."""
        body = struct.pack(f">{len(versions)}H", *versions)
        self._let_cell_pass(True, 0, Command.VERSIONS, body, self._push_versions)

    def close(self, *, abrupt: bool = False) -> None:
        """End the connection once the output is written; `abrupt` leaves out TLS's own goodbye."""
        self.closed = True
        self.abrupt = abrupt
        self.on_output()

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call this so much later; where the link has no clock, that is for whoever reads `delayed`."""
        self.on_delay(seconds, call)

    def complain(self, why: str) -> None:
        self.relay.complaints.append(why)
        self.close()

    def _let_pass(self, is_sent: bool, start: int, data: bytes, go: Callable[[bytes], object]) -> None:
        faults = self.relay.faults
        if not faults:
            go(data)
            return
        for at, piece in pieces(faults, start, data):
            let_pass(faults, Passage(is_sent, Level.BYTES, None, at, piece, self, None, self, go))

    def _let_cell_pass(
        self, is_sent: bool, circ_id: int, command: int, body: bytes, go: Callable[[bytes], object]
    ) -> None:
        if not self.relay.faults:
            go(body)
            return
        circuit = self.circuits.get(circ_id)
        one = Passage(is_sent, Level.CELL, command, 0, body, self, circuit, self, go)
        let_pass(self.relay.faults, one)

    def _queue(self, data: bytes) -> None:
        self._output += data
        self.on_output()

    def _push_versions(self, body: bytes) -> None:
        self.push(struct.pack(">HBH", 0, Command.VERSIONS, len(body)) + body)

    def _hear(self, data: bytes) -> None:
        self._input += data
        while not self.closed and (cell := self._next_cell()) is not None:
            circ_id, command, body = cell
            self._let_cell_pass(False, circ_id, command, body, partial(self._handle, circ_id, command))

    def _next_cell(self) -> tuple[int, int, bytes] | None:
        circ_id_len = 2 if self.version is None else 4  # VERSIONS alone has short ids
        if len(self._input) < circ_id_len + 1:
            return None
        circ_id = int.from_bytes(self._input[:circ_id_len], "big")
        command = self._input[circ_id_len]
        start, length = circ_id_len + 1, CELL_BODY_LEN
        if command == Command.VERSIONS or command >= 128:
            if len(self._input) < start + 2:
                return None
            length = int.from_bytes(self._input[start : start + 2], "big")
            start += 2
        if len(self._input) < start + length:
            return None
        body = bytes(self._input[start : start + length])
        del self._input[: start + length]
        return circ_id, command, body

    def _handle(self, circ_id: int, command: int, body: bytes) -> None:
        self.relay.on_link_cell(self, circ_id, command, body)
        if command in (Command.RELAY, Command.RELAY_EARLY):
            if circ_id in self.circuits:  # a cell in flight to a closed circuit is dropped
                self.circuits[circ_id].receive(body, early=command == Command.RELAY_EARLY)
            return
        self.control_cells.append((circ_id, command, body))
        if self.version is None:
            self._handle_versions(command, body)
        elif command in (Command.CREATE_FAST, Command.CREATE2):
            self._handle_create(circ_id, command, body)
        elif command == Command.DESTROY and circ_id in self.circuits:
            circuit, reason = self.circuits[circ_id], int.from_bytes(body[:1], "big")
            circuit.forget(reason)
            for hop in circuit.hops:
                hop.relay.on_destroy(circuit, reason)
        elif command == Command.NETINFO:
            if body[:4] != bytes(4):
                self.relay.complaints.append("a client's NETINFO carries a timestamp")
            self.relay.on_netinfo(self, body)
        elif command == Command.PADDING:
            self.relay.on_padding(self)
        elif command == Command.PADDING_NEGOTIATE:
            self._handle_padding_negotiate(circ_id, body)

    def _handle_padding_negotiate(self, circ_id: int, body: bytes) -> None:
        """Stop (1) or start (2), with the shortest and longest silence in ms. tor-spec, "Link padding"."""
        version, command, low, high = struct.unpack_from(">BBHH", body)
        if circ_id != 0 or version != 0 or command not in (1, 2) or any(body[6:]):
            self.complain("PADDING_NEGOTIATE as no relay understands it")
        elif (self.version or 0) < PADDING_LINK:
            self.complain("PADDING_NEGOTIATE on a link without padding")
        else:
            self.relay.on_padding_negotiate(self, command, low, high)

    def _handle_versions(self, command: int, body: bytes) -> None:
        if command != Command.VERSIONS or len(body) % 2:
            self.complain("the first cell is not a well-formed VERSIONS")
            return
        offered = set(struct.unpack(f">{len(body) // 2}H", body))
        self.version = max(offered & set(self.relay.link_versions), default=0)
        self.relay.on_versions(self)

    def _handle_create(self, circ_id: int, command: int, body: bytes) -> None:
        if not circ_id & 0x80000000 or circ_id in self.circuits:
            self.complain(f"circuit id {circ_id:#x} is not the initiator's or is in use")
            return
        circuit = FakeCircuit(self, circ_id)
        self.circuits[circ_id] = circuit
        self.relay.circuits.append(circuit)
        self.relay.on_create(circuit, command, body)


def answer_versions(link: FakeLink) -> None:
    """VERSIONS, CERTS, AUTH_CHALLENGE, NETINFO. tor-spec, "Negotiating and initializing connections"."""
    relay = link.relay
    link.send_versions(relay.link_versions)
    link.send_cell(0, Command.CERTS, encode_certs(relay.edit_certs(relay.make_certs())))
    link.send_cell(0, Command.AUTH_CHALLENGE, os.urandom(32) + struct.pack(">HH", 1, 3))
    link.send_cell(0, Command.NETINFO, encode_netinfo(relay))


def encode_netinfo(relay: RelayState) -> bytes:
    """tor-spec, "NETINFO cells": the time, the client's address as seen, one address of our own."""
    ours = ipaddress.ip_address(relay.address[0]).packed
    client = b"\x04\x04" + ipaddress.ip_address("127.0.0.1").packed
    return struct.pack(">I", int(relay.now)) + client + b"\x01\x04\x04" + ours
