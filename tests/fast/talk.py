"""A circuit through scripted relays, in memory: the compiled core on one side, scripted relays on the other.

Talk(3)                                 three hops with fixed windows
Talk(hops=[WINDOWS, WINDOWS, CGO])      a mixture: what each relay lists, and so gets
Talk(hops=[CGO] * 3, cgo=Cgo.EXIT)      what the default makes of three whole relays
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel
from torkit._fast.circuit import Circuit
from torkit._fast.events import CircuitFailed, ControlCell, Event, Message
from torkit._fast.onion import Layer, LayerKind
from torkit._fast.stream import Stream
from torkit.errors import CircuitError
from torkit.proto import cells, messages
from torkit.proto.circuit import Cgo, HopHandshake, NewHop
from torkit.proto.flow import ClockGuard, CongestionParams, Vegas
from torkit.testing.relay import (
    FULL,
    WITHOUT_CGO,
    WITHOUT_NTOR_V3,
    FakeCircuit,
    FakeHop,
    FakeRelay,
    FakeStream,
    OnionServiceLayer,
    fresh,
    make_chain,
)

RNG = random.Random(20261122)

# Hops by what they come to be, where everything is asked for: what their relays list.
WINDOWS = WITHOUT_NTOR_V3  # tor1 with fixed windows
CONGESTION_CONTROL = WITHOUT_CGO  # tor1
CGO = FULL

CWND = 124  # cells: the window of a hop with congestion control, unless a test gives other parameters
DEFAULTS = CongestionParams.from_params({})


def still(window: int) -> CongestionParams:
    """Congestion control whose window, in cells, stays as it is."""
    return DEFAULTS._replace(cwnd_init=window, cwnd_min=window, cwnd_max=window)


STILL = still(CWND)


@cache
def _keys() -> list[FakeRelay]:
    return make_chain(3)  # RSA keys take a while: made once


def fresh_relays(count: int) -> list[FakeRelay]:
    """Scripted relays that nobody has spoken to."""
    return fresh(_keys()[:count])


@dataclass(frozen=True)
class HandshakeRelay:
    """A scripted relay as HopHandshake knows relays; its own `protocols` too."""

    fake: FakeRelay

    @property
    def identity(self) -> bytes:
        return self.fake.rsa_identity

    @property
    def ed25519_identity(self) -> bytes | None:
        return self.fake.ed_identity

    @property
    def ntor_onion_key(self) -> bytes:
        return self.fake.ntor_onion_key

    @property
    def protocols(self) -> "HandshakeRelay":
        return self

    def supports(self, name: str, version: int) -> bool:
        return self.fake.supports(name, version)


class Talk:
    """One channel with circuits; `exchange` moves bytes until both sides are quiet.

    `congestion` is what moves the windows of hops with congestion control, by `clock`.
    """

    def __init__(
        self,
        hop_count: int = 3,
        *,
        hops: Sequence[str] = (),
        cgo: Cgo = Cgo.ALL,
        congestion: CongestionParams = STILL,
    ) -> None:
        hops = hops or [WINDOWS] * hop_count
        self.relays: list[FakeRelay] = fresh_relays(len(hops))
        for relay, protocols in zip(self.relays, hops, strict=True):
            relay.protocols = protocols
        self.cgo = cgo
        self.congestion = congestion
        self.clock = ClockGuard()
        self.made: list[NewHop] = []  # the hops of the circuit made last
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
        """A circuit through the first `hop_count` relays, or all. Raises CircuitError as a handshake does."""
        circuit = self.core.open_circuit(0x80000000 | RNG.getrandbits(31), RNG.randrange(1, 65536), 8)
        self.made = []
        for number, relay in enumerate(self.relays[:hop_count]):
            is_last = number == len(self.relays[:hop_count]) - 1
            handshake = HopHandshake(
                HandshakeRelay(relay), is_last=is_last, cgo=self.cgo, params={}, private_key=RNG.randbytes(32)
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
            hop = handshake.finish(reply)
            circuit.add_hop(hop.layer, vegas=None if hop.sendme_inc is None else self._vegas(hop.sendme_inc))
            self.made.append(hop)
        return circuit

    def _vegas(self, increment: int) -> Vegas:
        return Vegas(self.congestion, increment=increment, clock=self.clock)

    def join(self, circuit: Circuit, service: FakeRelay, *, has_congestion_control: bool = False) -> None:
        """Put an onion service behind the last hop, as a rendezvous point does."""
        keys = RNG.randbytes(OnionServiceLayer.KEY_MATERIAL_LEN)
        hop = FakeHop(service, OnionServiceLayer(keys))
        if has_congestion_control:
            hop.use_congestion_control()
        vegas = self._vegas(hop.sendme_inc) if has_congestion_control else None
        circuit.add_hop(Layer(LayerKind.TOR1_ONION, keys), vegas=vegas)
        self.far_end(circuit).hops.append(hop)

    def stream(self, circuit: Circuit, target: bytes = b"web.test:80\0") -> Stream:
        stream = circuit.open_stream(circuit.hop_count - 1)
        circuit.send(stream.hop, RelayCommand.BEGIN, stream.id, target)
        self.exchange()
        assert stream.is_open
        return stream

    def far_end(self, circuit: Circuit) -> FakeCircuit:
        return self.link.circuits[circuit.id]

    def far_stream(self, circuit: Circuit, stream: Stream) -> FakeStream:
        return self.far_end(circuit).streams[stream.id]

    @property
    def complaints(self) -> list[str]:
        """What the relays hold against us."""
        return [complaint for relay in self.relays for complaint in relay.complaints]


def failure_of(events: list[Event]) -> CircuitError:
    (failed,) = [event for event in events if isinstance(event, CircuitFailed)]
    return failed.error
