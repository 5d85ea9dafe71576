"""A scripted client, for onion services under test. rend-spec-v3."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torkit._fast.cells import RelayCommand
from torkit.testing.onion.descriptor import IntroductionPoint, OnionDescriptor, read_descriptor
from torkit.testing.onion.handshake import COOKIE_LEN, ClientHandshake
from torkit.testing.onion.keys import TimePeriod, blind, decode_address
from torkit.testing.onion.network import End, OnionNetwork
from torkit.testing.relay import FakeCircuit, FakeHop, FakeRelay, FakeStream, OnionServiceLayer, RelayCell


@dataclass
class FarClient:
    """The client's end of a circuit that a service has come by."""

    circuit: FakeCircuit
    number: int  # of the hop that the client's streams come from
    next_id: int = 1
    answers: list[RelayCell] = field(default_factory=list)  # CONNECTED and the like

    def begin(self, port: int, data: bytes = b"") -> FakeStream:
        """A stream to a port of the service, with `data` before any answer."""
        stream = FakeStream(self.circuit, self.number, self.next_id)
        self.circuit.streams[self.next_id] = stream
        self.circuit.send(self.number, RelayCommand.BEGIN, self.next_id, f":{port}\0".encode())
        self.next_id += 1
        if data:
            stream.write(data)
        return stream


class OnionClient:
    """Clients of services that have published to `network` and have introduction points there."""

    def __init__(self, network: OnionNetwork) -> None:
        self.network = network
        self.met: dict[bytes, FarClient] = {}  # by cookie
        self._waiting: dict[bytes, ClientHandshake] = {}

    def descriptor(self, address: str, period: TimePeriod) -> OnionDescriptor:
        """The newest that any HSDir of the network has. Raises ValueError where none has one to be read."""
        identity = decode_address(address)
        blinded = blind(identity, period)
        texts = [text for (_, name), text in self.network.descriptors.items() if name == blinded]
        found = [read_descriptor(text, identity, period) for text in texts]
        return max(found, key=lambda one: one.revision)

    def introduce(
        self,
        point: IntroductionPoint,
        subcredential: bytes,
        rendezvous: FakeRelay,
        *,
        cookie: bytes | None = None,
        extensions: Iterable[tuple[int, bytes]] = (),
        edit: Callable[[bytes], bytes] = lambda body: body,
    ) -> bytes:
        """Have the service told, by one of its points, that a client waits at `rendezvous`.

        Returns the cookie, 20 bytes, by default a new one: once the service has come, `met` has the client.
        `edit` makes another INTRODUCE2. Raises KeyError for a point that no service has established.
        """
        cookie = os.urandom(COOKIE_LEN) if cookie is None else cookie
        handshake = ClientHandshake(
            auth_key=point.auth_key, enc_key=point.enc_key, subcredential=subcredential
        )
        self._waiting[cookie] = handshake
        self.network.clients[cookie] = self
        body = handshake.introduce(cookie, rendezvous, extensions)
        self.network.points[point.auth_key].send(RelayCommand.INTRODUCE2, edit(body))
        return cookie

    def join(self, end: End, cookie: bytes, reply: bytes) -> None:
        """A RENDEZVOUS1 with one of our cookies has come."""
        try:
            keys = self._waiting.pop(cookie).finish(reply)
        except ValueError as error:
            end.circuit.complain(end.number, f"RENDEZVOUS1: {error}")
            return
        df, db, kf, kb = (keys[at : at + 32] for at in (0, 32, 64, 96))
        layer = OnionServiceLayer(db + df + kb + kf)  # a scripted hop sends what a client would open
        end.circuit.hops.append(FakeHop(end.relay, layer))
        self.met[cookie] = FarClient(end.circuit, end.number + 1)

    def hear(self, end: End, cell: RelayCell) -> None:
        """What else comes by a circuit that has joined."""
        for far in self.met.values():
            if far.circuit is end.circuit:
                far.answers.append(cell)
