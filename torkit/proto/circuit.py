"""Decides which handshake to make with each hop of a circuit, and reads the answer.

By default a relay sees the same handshakes from us as from C tor 0.4.9, the larger crowd:

    the last hop            congestion control where it can, CGO on top where it can; else ntor
    the hops before it      ntor-v3 that asks for nothing, where the relay could do CGO; else ntor

`Cgo.ALL` asks every hop for all that it can; `Cgo.OFF` leaves CGO out and changes nothing else.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple, Protocol

from torkit._fast.handshake import NtorClient, NtorV3Client
from torkit._fast.onion import Layer, LayerKind
from torkit.params import parameter
from torkit.proto.cells import HandshakeType
from torkit.proto.flow import wants_congestion_control
from torkit.proto.ntor import CircuitRequest


class Cgo(Enum):
    """Which hops are asked for Counter Galois Onion."""

    EXIT = "exit"
    ALL = "all"
    OFF = "off"


class Protocols(Protocol):
    """The subprotocol versions that a relay lists."""

    def supports(self, name: str, version: int) -> bool: ...


class HopRelay(Protocol):
    """A relay, as far as a handshake needs to know it."""

    @property
    def identity(self) -> bytes: ...
    @property
    def ed25519_identity(self) -> bytes | None: ...
    @property
    def ntor_onion_key(self) -> bytes: ...
    @property
    def protocols(self) -> Protocols: ...


class NewHop(NamedTuple):
    """A hop that has answered: its layer; KH, which introduction points know, 20 bytes, for the caller to
    wipe, where that was asked for; and its SENDME increment under congestion control."""

    handshake_type: HandshakeType
    kind: LayerKind
    layer: Layer
    kh: bytes
    sendme_inc: int | None


class HopHandshake:
    """Our half of the handshake with one hop: send `handshake` as `handshake_type`, then `finish`.

    `params` are the consensus's, `private_key` is 32 fresh random bytes. Raises CircuitError if the relay
    published a degenerate onion key.
    """

    def __init__(
        self,
        relay: HopRelay,
        *,
        is_last: bool,
        cgo: Cgo,
        params: Mapping[str, int],
        private_key: bytes,
    ) -> None:
        supports = relay.protocols.supports
        speaks_v3 = supports("Relay", 4) and relay.ed25519_identity is not None
        can_negotiate = speaks_v3 and supports("FlowCtrl", 2)
        can_cgo = can_negotiate and supports("Relay", 5) and supports("Relay", 6)
        asks = (is_last or cgo is Cgo.ALL) and can_negotiate and wants_congestion_control(params)
        self._request = CircuitRequest(congestion_control=asks, cgo=asks and can_cgo and cgo is not Cgo.OFF)
        self._sendme_inc = parameter(params, "cc_sendme_inc")
        self._client: NtorClient | NtorV3Client
        if relay.ed25519_identity is not None and (self._request.congestion_control or can_cgo):
            self.handshake_type = HandshakeType.NTOR_V3
            self._client = NtorV3Client(
                ed25519_identity=relay.ed25519_identity,
                onion_key=relay.ntor_onion_key,
                private_key=private_key,
                message=self._request.encode(),
            )
        else:
            self.handshake_type = HandshakeType.NTOR
            self._client = NtorClient(
                rsa_identity=relay.identity, onion_key=relay.ntor_onion_key, private_key=private_key
            )
        self.handshake = self._client.handshake

    def finish(self, reply: bytes, *, keeps_kh: bool = False) -> NewHop:
        """Check the relay's half, HDATA of CREATED2 or EXTENDED2. Raises CircuitError."""
        keys = self._client.finish(reply)
        try:
            sendme_inc = None
            if self.handshake_type is HandshakeType.NTOR_V3:
                sendme_inc = self._request.decode_response(
                    keys.server_message, cc_sendme_inc=self._sendme_inc
                )
            kind = LayerKind.CGO if self._request.cgo else LayerKind.TOR1
            layer = keys.layer(kind)
            return NewHop(self.handshake_type, kind, layer, keys.kh(kind) if keeps_kh else b"", sendme_inc)
        finally:
            keys.wipe()

    def wipe(self) -> None:
        """Overwrite the secrets of this handshake, answered or not."""
        self._client.wipe()
