"""What relays do for onion services: HSDir, introduction point, rendezvous point. rend-spec-v3."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from torkit._fast.cells import RelayCommand
from torkit.testing.encoding import bare64
from torkit.testing.onion.descriptor import read_outer
from torkit.testing.onion.handshake import COOKIE_LEN, HEADER_LEN, mac
from torkit.testing.relay import FakeCircuit, FakeRelay, RelayCell, http_response

ACCEPTED, UNKNOWN_ID = 0, 1  # of INTRODUCE_ACK


class End(NamedTuple):
    """One hop of a circuit, counted from 1: where somebody waits for messages."""

    circuit: FakeCircuit
    number: int

    @property
    def relay(self) -> FakeRelay:
        relay = self.circuit.hops[self.number - 1].relay
        assert isinstance(relay, FakeRelay)
        return relay

    def send(self, command: int, body: bytes = b"") -> None:
        """A message from that hop."""
        self.circuit.send(self.number, command, 0, body)

    def acknowledge(self, status: int = ACCEPTED) -> None:
        """INTRODUCE_ACK, with one of rend-spec-v3's numbers."""
        self.send(RelayCommand.INTRODUCE_ACK, status.to_bytes(2, "big") + b"\0")


class Service(Protocol):
    """A scripted service at an introduction point (service.py)."""

    def hear(self, end: End, auth_key: bytes, body: bytes) -> None: ...


class Client(Protocol):
    """A scripted client at a rendezvous point (client.py)."""

    def join(self, end: End, cookie: bytes, reply: bytes) -> None: ...
    def hear(self, end: End, cell: RelayCell) -> None: ...


class OnionNetwork:
    """Each of `relays` as HSDir, introduction point and rendezvous point.

    Services and clients under test come by circuits; an OnionService or an OnionClient is the scripted other
    half. Every `on_*` attribute is a handler and may be replaced. What is wrong in a message ends its circuit
    and is noted in the relay's `complaints`.
    """

    def __init__(self, relays: Iterable[FakeRelay]) -> None:
        self.relays = list(relays)
        self.uploads: list[tuple[FakeRelay, bytes]] = []  # descriptors, each time
        self.descriptors: dict[tuple[FakeRelay, bytes], bytes] = {}  # by relay and blinded key
        self.points: dict[bytes, End] = {}  # of services under test, by auth-key
        self.established: list[bytes] = []  # auth-keys, each time
        self.cookies: dict[bytes, End] = {}  # of clients under test, those that were met too
        self.services: dict[tuple[FakeRelay, bytes], Service] = {}  # scripted ones, by relay and auth-key
        self.clients: dict[bytes, Client] = {}  # scripted ones, by cookie
        self.joined: dict[FakeCircuit, Client] = {}  # circuits of services that have come to them

        self.on_upload: Callable[[FakeRelay, bytes], bytes] = self.answer_upload
        self.on_establish_intro: Callable[[End], object] = self.answer_establish_intro
        self.on_introduce1: Callable[[End, bytes], object] = self.answer_introduce1
        self.on_establish_rendezvous: Callable[[End, bytes], object] = self.answer_establish_rendezvous
        self.on_rendezvous1: Callable[[End, bytes], object] = self.answer_rendezvous1
        for relay in self.relays:
            relay.directory = partial(self._answer, relay, relay.directory)
            relay.on_unknown = partial(self._hear, relay.on_unknown)

    # --- HSDir ------------------------------------------------------------------------------------

    def _answer(self, relay: FakeRelay, before: Callable[[bytes], bytes] | None, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        if head.startswith(b"POST /tor/hs/3/publish "):
            return self.on_upload(relay, body)
        if head.startswith(b"GET /tor/hs/3/"):
            name = head.split()[1].removeprefix(b"/tor/hs/3/")
            for (at, blinded), text in self.descriptors.items():
                if at is relay and bare64(blinded).encode() == name.rstrip(b"="):
                    return http_response(text)
        elif before is not None:
            return before(request)
        return http_response(b"", status="404 Not found")

    def answer_upload(self, relay: FakeRelay, text: bytes) -> bytes:
        """Keep a descriptor whose signatures hold and that is newer than what is there; else answer 400."""
        try:
            outer = read_outer(text)
        except ValueError as error:
            relay.complaints.append(f"a descriptor: {error}")
            return http_response(b"", status="400 Invalid descriptor")
        held = self.descriptors.get((relay, outer.blinded))
        if held is not None and read_outer(held).revision >= outer.revision:
            return http_response(b"", status="400 Not newer")
        self.uploads.append((relay, text))
        self.descriptors[relay, outer.blinded] = text
        return http_response(b"")

    # --- introduction point -----------------------------------------------------------------------

    def answer_establish_intro(self, end: End) -> None:
        """INTRO_ESTABLISHED."""
        end.send(RelayCommand.INTRO_ESTABLISHED, b"\0")

    def answer_introduce1(self, end: End, body: bytes) -> None:
        """INTRODUCE2 to the service, and INTRODUCE_ACK; a scripted service acknowledges by itself."""
        auth_key = body[HEADER_LEN - 33 : HEADER_LEN - 1]
        if service := self.services.get((end.relay, auth_key)):
            service.hear(end, auth_key, body)
        elif (point := self.points.get(auth_key)) and point.relay is end.relay and not point.circuit.closed:
            point.send(RelayCommand.INTRODUCE2, body)
            end.acknowledge()
        else:
            end.acknowledge(UNKNOWN_ID)

    # --- rendezvous point -------------------------------------------------------------------------

    def answer_establish_rendezvous(self, end: End, cookie: bytes) -> None:
        """RENDEZVOUS_ESTABLISHED."""
        end.send(RelayCommand.RENDEZVOUS_ESTABLISHED)

    def answer_rendezvous1(self, end: End, body: bytes) -> None:
        """RENDEZVOUS2 to the client; from then on each circuit is the other's continuation."""
        cookie, reply = body[:COOKIE_LEN], body[COOKIE_LEN:]
        if client := self.clients.pop(cookie, None):
            self.joined[end.circuit] = client
            client.join(end, cookie, reply)
        elif (waiting := self.cookies.get(cookie)) and waiting.circuit.continued is None:
            waiting.send(RelayCommand.RENDEZVOUS2, reply)
            waiting.circuit.continue_at(end.circuit)
        else:
            end.circuit.complain(end.number, "RENDEZVOUS1 with a cookie that nobody waits by")

    # --- what comes -------------------------------------------------------------------------------

    def _hear(
        self,
        before: Callable[[FakeCircuit, int, RelayCell], object],
        circuit: FakeCircuit,
        number: int,
        cell: RelayCell,
    ) -> None:
        end, body = End(circuit, number), cell.body
        if cell.command == RelayCommand.ESTABLISH_INTRO:
            if wrong := _what_is_wrong(body, circuit.hops[number - 1].kh):
                circuit.complain(number, f"ESTABLISH_INTRO: {wrong}")
                return
            self.points[body[3:35]] = end
            self.established.append(body[3:35])
            self.on_establish_intro(end)
        elif cell.command == RelayCommand.INTRODUCE1:
            self.on_introduce1(end, body)
        elif cell.command == RelayCommand.ESTABLISH_RENDEZVOUS:
            if len(body) != COOKIE_LEN or body in self.cookies:
                circuit.complain(number, "ESTABLISH_RENDEZVOUS without a new cookie of 20 bytes")
                return
            self.cookies[body] = end
            self.on_establish_rendezvous(end, body)
        elif cell.command == RelayCommand.RENDEZVOUS1:
            self.on_rendezvous1(end, body)
        elif client := self.joined.get(circuit):
            client.hear(end, cell)
        else:
            before(circuit, number, cell)


def _what_is_wrong(body: bytes, kh: bytes) -> str | None:
    """As an introduction point looks. rend-spec-v3, "Registering an introduction point on a circuit"."""
    if body[:3] != b"\2\0\x20" or len(body) < 134 or body[-66:-64] != b"\0\x40":
        return "not in the form that Ed25519 keys have"
    if body[-98:-66] != mac(kh, body[:-98]):
        return "the MAC is wrong"
    signed = b"Tor establish-intro cell v1" + body[:-66]
    try:
        Ed25519PublicKey.from_public_bytes(body[3:35]).verify(body[-64:], signed)
    except InvalidSignature:
        return "the signature is wrong"
    return None
