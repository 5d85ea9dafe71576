"""A relay, and its default answers to handshakes."""

import struct
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from torkit._fast.cells import Command, RelayCommand
from torkit.testing.relay.cells import (
    CC_REQUEST,
    CC_RESPONSE,
    CONNECTFAILED,
    NTOR,
    NTOR_V3,
    OR_IDENTITY,
    PROTOCOL,
    RELAY_CRYPT_CGO,
    SUBPROTO_REQUEST,
    HandshakeRefusedError,
    RelayCell,
    ignore,
)
from torkit.testing.relay.circuit import (
    FakeCircuit,
    FakeHop,
    FakeStream,
    answer_begin,
    answer_begin_dir,
    answer_resolve,
    answer_sendme_due,
    answer_stream_sendme_due,
    answer_truncate,
)
from torkit.testing.relay.handshakes import (
    KH_LEN,
    answer_handshake_fast,
    answer_handshake_ntor,
    answer_handshake_ntor_v3,
    decode_extensions,
    encode_extensions,
)
from torkit.testing.relay.layers import CgoLayer, Tor1Layer
from torkit.testing.relay.link import FakeLink, answer_versions
from torkit.testing.relay.state import RelayState


@dataclass(frozen=True)
class Agreement:
    """What the extensions of an ntor-v3 handshake settle: the reply's message, and what the hop will use."""

    reply: bytes
    congestion_control: bool = False
    cgo: bool = False


class FakeRelay(RelayState):
    """The keys of one relay and its way to answer. Holds no connection itself: see `link`.

    `now` dates the certificates. Every `on_*` attribute is a handler and may be replaced.
    """

    def __init__(self, *, address: tuple[str, int] = ("127.0.0.1", 9001), now: float | None = None) -> None:
        super().__init__(address=address, now=now)
        self.known: list[FakeRelay] = []  # the relays that EXTEND2 can reach from here
        self.links: list[FakeLink] = []
        self.circuits: list[FakeCircuit] = []  # every circuit with a hop here, closed ones too

        # For those who watch: called for what each read from a socket brings, for each cell of our links,
        # each that a hop of their circuits recognized, and each message that leaves a hop of ours, with the
        # number of that hop, command, stream id and body.
        self.on_wire: Callable[[FakeLink, bytes], object] = ignore
        self.on_link_cell: Callable[[FakeLink, int, int, bytes], object] = ignore
        self.on_relay_cell: Callable[[FakeCircuit, int, RelayCell], object] = ignore
        self.on_sent: Callable[[FakeCircuit, int, int, int, bytes], object] = ignore
        # The answers. Typed loosely so that a test's lambda may return anything.
        self.edit_certs: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]] = lambda certs: certs
        self.edit_extensions: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]] = (
            lambda extensions: extensions
        )
        self.on_versions: Callable[[FakeLink], object] = answer_versions
        self.on_netinfo: Callable[[FakeLink, bytes], object] = ignore
        self.on_padding: Callable[[FakeLink], object] = ignore
        self.on_padding_negotiate: Callable[[FakeLink, int, int, int], object] = ignore
        self.on_create: Callable[[FakeCircuit, int, bytes], object] = answer_create
        self.on_destroy: Callable[[FakeCircuit, int], object] = ignore
        self.on_extend2: Callable[[FakeCircuit, int, RelayCell], object] = answer_extend2
        self.on_truncate: Callable[[FakeCircuit, int, RelayCell], object] = answer_truncate
        self.on_drop: Callable[[FakeCircuit, int, RelayCell], object] = ignore
        self.on_unknown: Callable[[FakeCircuit, int, RelayCell], object] = ignore
        self.on_sendme_due: Callable[[FakeCircuit, int, bytes], object] = answer_sendme_due
        self.on_begin: Callable[[FakeStream], object] = answer_begin
        self.on_begin_dir: Callable[[FakeStream], object] = answer_begin_dir
        self.on_data: Callable[[FakeStream, bytes], object] = ignore
        self.on_end: Callable[[FakeStream, bytes], object] = ignore
        self.on_stream_sendme_due: Callable[[FakeStream], object] = answer_stream_sendme_due
        self.on_resolve: Callable[[FakeCircuit, int, int, str], object] = answer_resolve

    def link(self) -> "FakeLink":
        """A new connection from a client, after TLS."""
        link = FakeLink(self)
        self.links.append(link)
        return link

    def answer_extensions(self, message: bytes) -> "Agreement":
        """What comes of a client's ntor-v3 message. Proposal 324, "How to negotiate"; proposal 346."""
        wanted = decode_extensions(message)
        has_cc = CC_REQUEST in wanted and self.supports("FlowCtrl", 2)
        has_cgo = SUBPROTO_REQUEST in wanted
        if has_cgo and not (self.supports("Relay", 5) and self.supports("Relay", 6)):
            raise HandshakeRefusedError("asked for a subprotocol that this relay does not advertise")
        if has_cgo and wanted[SUBPROTO_REQUEST] != RELAY_CRYPT_CGO:
            raise HandshakeRefusedError("asked for a subprotocol that is not negotiated")
        if has_cgo and not has_cc:
            raise HandshakeRefusedError("CGO without congestion control")
        reply = [(CC_RESPONSE, bytes([self.cc_sendme_inc]))] if has_cc else []
        return Agreement(encode_extensions(self.edit_extensions(reply)), has_cc, has_cgo)

    def handshake(self, handshake_type: int, data: bytes) -> tuple[bytes, "FakeHop"]:
        """Answer a client's ntor or ntor-v3 handshake: the reply and the new hop."""
        ephemeral = X25519PrivateKey.generate()
        if handshake_type == NTOR:
            reply, keys = answer_handshake_ntor(
                data, node_id=self.rsa_identity, onion_key=self.onion_key, ephemeral=ephemeral
            )
            layer_keys, kh = keys[: Tor1Layer.KEY_MATERIAL_LEN], keys[Tor1Layer.KEY_MATERIAL_LEN :]
            return reply, FakeHop(self, Tor1Layer(layer_keys), NTOR, kh=kh)
        if handshake_type != NTOR_V3 or not self.supports("Relay", 4):
            raise HandshakeRefusedError(f"handshake type {handshake_type}")
        agreed: list[Agreement] = []
        messages: list[bytes] = []

        def reply_to(message: bytes) -> bytes:
            messages.append(message)
            agreed.append(self.answer_extensions(message))
            return agreed[0].reply

        reply, key_stream = answer_handshake_ntor_v3(
            data, node_id=self.ed_identity, onion_key=self.onion_key, ephemeral=ephemeral, reply_to=reply_to
        )
        kind = CgoLayer if agreed[0].cgo else Tor1Layer
        keys = key_stream(kind.KEY_MATERIAL_LEN + KH_LEN)
        layer_keys, kh = keys[: kind.KEY_MATERIAL_LEN], keys[kind.KEY_MATERIAL_LEN :]
        hop = FakeHop(self, kind(layer_keys), NTOR_V3, messages[0], kh=kh)
        if agreed[0].congestion_control:
            hop.use_congestion_control()
        return reply, hop


def make_chain(count: int = 3, *, now: float | None = None) -> list[FakeRelay]:
    """Relays that all know each other, with addresses 127.0.0.1 to 127.0.0.`count`."""
    relays = [FakeRelay(address=(f"127.0.0.{i}", 9000 + i), now=now) for i in range(1, count + 1)]
    for relay in relays:
        relay.known = relays
    return relays


def fresh(relays: Iterable[FakeRelay]) -> list[FakeRelay]:
    """The same relays as new ones, to whom nobody has spoken: their keys take a while to make."""
    relays = [copy(relay) for relay in relays]
    for relay in relays:
        relay.known = relays
        relay.links, relay.circuits, relay.complaints, relay.faults, relay.hosts = [], [], [], [], {}
    return relays


def answer_create(circuit: FakeCircuit, command: int, body: bytes) -> None:
    """CREATED_FAST or CREATED2; DESTROY where the handshake is not for this relay."""
    relay = circuit.link.relay
    assert isinstance(relay, FakeRelay)
    try:
        if command == Command.CREATE_FAST:
            reply, keys = answer_handshake_fast(body)
            circuit.hops.append(FakeHop(relay, Tor1Layer(keys)))
            circuit.link.send_cell(circuit.circ_id, Command.CREATED_FAST, reply)
            return
        handshake_type, length = struct.unpack_from(">HH", body)
        reply, hop = relay.handshake(handshake_type, body[4 : 4 + length])
    except (HandshakeRefusedError, struct.error) as error:
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
    assert isinstance(relay, FakeRelay)
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
