"""Decides which handshake to make with each hop of a circuit, and reads the answer.

By default a relay sees the same handshakes from us as from C tor 0.4.9, the larger crowd:

    the last hop            congestion control where it can, CGO on top where it can; else ntor
    the hops before it      ntor-v3 that asks for nothing, where the relay could do CGO; else ntor

`Cgo.ALL` asks every hop for all that it can; `Cgo.OFF` leaves CGO out and changes nothing else.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple, Protocol

from torkit._fast.onion import CGO_KEYS_LEN, TOR1_KEYS_LEN, LayerKind
from torkit.params import parameter
from torkit.proto.cells import HASH_LEN, HandshakeType
from torkit.proto.flow import wants_congestion_control
from torkit.proto.ntor import CircuitRequest, HopKeys, NtorClient, NtorV3Client, Secrets


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
    """A hop that has answered: its layer's keys and KH, which introduction points know, 20 bytes, for the
    caller to wipe; and its SENDME increment under congestion control."""

    handshake_type: HandshakeType
    layer: LayerKind
    keys: bytes
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
        can_congestion_control = speaks_v3 and supports("FlowCtrl", 2) and wants_congestion_control(params)
        can_cgo = speaks_v3 and supports("FlowCtrl", 2) and supports("Relay", 5) and supports("Relay", 6)
        asks = is_last or cgo is Cgo.ALL
        self._request = CircuitRequest(
            congestion_control=asks and can_congestion_control,
            cgo=asks and can_congestion_control and can_cgo and cgo is not Cgo.OFF,
        )
        self._sendme_inc = parameter(params, "cc_sendme_inc")
        self._client: NtorClient | NtorV3Client
        if relay.ed25519_identity is not None and (self._request.congestion_control or can_cgo):
            self._client = NtorV3Client(
                ed25519_identity=relay.ed25519_identity,
                onion_key=relay.ntor_onion_key,
                private_key=private_key,
                message=self._request.encode(),
            )
        else:
            self._client = NtorClient(
                rsa_identity=relay.identity, onion_key=relay.ntor_onion_key, private_key=private_key
            )
        self.handshake_type = self._client.handshake_type
        self.handshake = self._client.handshake

    def finish(self, reply: bytes) -> NewHop:
        """Check the relay's half, HDATA of CREATED2 or EXTENDED2. Raises CircuitError."""
        keys: HopKeys = self._client.finish(reply)
        try:
            sendme_inc = None
            if isinstance(self._client, NtorV3Client):
                sendme_inc = self._request.decode_response(
                    keys.server_message, cc_sendme_inc=self._sendme_inc
                )
            kind, length = (
                (LayerKind.CGO, CGO_KEYS_LEN) if self._request.cgo else (LayerKind.TOR1, TOR1_KEYS_LEN)
            )
            with Secrets() as keep:
                material = memoryview(keep(keys.derive(length + HASH_LEN)))
                return NewHop(
                    self.handshake_type, kind, bytes(material[:length]), bytes(material[length:]), sendme_inc
                )
        finally:
            keys.wipe()

    def wipe(self) -> None:
        """Overwrite the secrets of this handshake, answered or not."""
        self._client.wipe()
