"""A circuit through scripted relays, in memory: the compiled core on one side, the fakes on the other."""

import copy
import random
from functools import cache
from ipaddress import ip_address

from fakes import FakeCircuit, FakeRelay, make_chain

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel
from torkit._fast.circuit import Circuit
from torkit._fast.events import CircuitFailed, ControlCell, Event, Message
from torkit._fast.onion import Layer, LayerKind
from torkit._fast.stream import Stream
from torkit.errors import CircuitError
from torkit.proto import cells, messages, ntor

RNG = random.Random(20261122)


@cache
def _keys() -> list[FakeRelay]:
    return make_chain(3)  # RSA keys take a while: made once


def fresh_relays(count: int) -> list[FakeRelay]:
    """Scripted relays that nobody has spoken to."""
    relays = [copy.copy(relay) for relay in _keys()[:count]]
    for relay in relays:
        relay.known, relay.links, relay.circuits, relay.complaints = relays, [], [], []
    return relays


class Talk:
    """One channel with circuits; `exchange` moves bytes until both sides are quiet."""

    def __init__(self, hop_count: int = 3) -> None:
        self.relays: list[FakeRelay] = fresh_relays(hop_count)
        self.link = self.relays[0].link()
        self.core = Channel()
        self.events: list[Event] = []
        self.core.send_control(0, Command.VERSIONS, cells.encode_versions((4, 5)))
        self.exchange()
        self.core.send_control(0, Command.NETINFO, bytes(20))
        self.exchange()
        self.events.clear()

    def feed(self, data: bytes, *, chunk: int | None = None) -> list[Event]:
        """Give the core bytes from the relay, in reads of `chunk` bytes."""
        events: list[Event] = []
        step = chunk or len(data) or 1
        for start in range(0, len(data), step):
            piece = bytearray(data[start : start + step])
            events += self.core.receive_data(piece, len(piece))
        self.events += events
        return events

    def exchange(self) -> list[Event]:
        events: list[Event] = []
        while True:
            sent = self.core.data_to_send()
            received = self.link.receive(sent) if sent else self.link.take()
            if not sent and not received:
                return events
            events += self.feed(received)

    def circuit(self, hop_count: int | None = None) -> Circuit:
        circuit = self.core.open_circuit(0x80000000 | RNG.getrandbits(31), RNG.randrange(1, 65536), 8)
        for number, relay in enumerate(self.relays[:hop_count]):
            handshake = ntor.NtorClient(
                rsa_identity=relay.rsa_identity,
                onion_key=relay.ntor_onion_key,
                private_key=RNG.randbytes(32),
            )
            if number == 0:
                body = cells.encode_create2(handshake.handshake_type, handshake.handshake)
                self.core.send_control(circuit.id, Command.CREATE2, body)
                (created,) = self.exchange()
                assert isinstance(created, ControlCell)
                reply = cells.decode_created2(created.body)
            else:
                specifiers = messages.encode_link_specifiers(
                    [(ip_address(relay.address[0]), relay.address[1])],
                    rsa_identity=relay.rsa_identity,
                    ed25519_identity=relay.ed_identity,
                )
                body = messages.encode_extend2(specifiers, handshake.handshake_type, handshake.handshake)
                circuit.send(number - 1, RelayCommand.EXTEND2, 0, body)
                (extended,) = self.exchange()
                assert isinstance(extended, Message)
                reply = messages.decode_extended2(extended.body)
            circuit.add_hop(Layer(LayerKind.TOR1, handshake.finish(reply).derive(72)))
        return circuit

    def stream(self, circuit: Circuit) -> Stream:
        stream = circuit.open_stream(circuit.hop_count - 1)
        circuit.send(stream.hop, RelayCommand.BEGIN, stream.id, b"web.test:80\0")
        self.exchange()
        assert stream.is_open
        return stream

    def far_end(self, circuit: Circuit) -> FakeCircuit:
        return self.link.circuits[circuit.id]


def failure_of(events: list[Event]) -> CircuitError:
    (failed,) = [event for event in events if isinstance(event, CircuitFailed)]
    return failed.error
