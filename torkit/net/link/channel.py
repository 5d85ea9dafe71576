"""One connection to a relay, shared by every circuit through it.

Once the link handshake is done only the pump (net/link/pump.py) touches TLS, so cancelling a task can never
cut a cell. The pump reads, and hands events to the channel, which hands them to circuits and streams. Cells
that these seal go out when every task that can run has run. proto/channel.py knows the link handshake.
"""

import time
from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_address
from random import Random

import trio

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel as CoreChannel
from torkit._fast.circuit import Circuit as CoreCircuit
from torkit._fast.events import (
    ChannelFailed,
    CircuitFailed,
    ControlCell,
    Event,
    Flushed,
    Message,
    Readable,
    Writable,
)
from torkit._fast.sources import Link
from torkit.errors import (
    ChannelClosed,
    ChannelError,
    HandshakeCut,
    InternalError,
    OutOfResources,
    TimedOut,
    TorkitError,
)
from torkit.net.circuit.circuit import GENERAL, Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.tunnel import Tunnel
from torkit.net.clock import set_since, wall_ahead
from torkit.net.faults import log_fault
from torkit.net.link.dial import Dial, dial_directly
from torkit.net.link.pump import Pump
from torkit.net.link.tls import TlsConnection
from torkit.net.shortage import out_of_resources
from torkit.proto.channel import LinkHandshake, LinkResult
from torkit.proto.padding import Use

# Implementation limit, seconds: TCP, TLS and link handshake together.
CONNECT_TIMEOUT = 30.0

# Implementation limit, bytes: VERSIONS, CERTS and AUTH_CHALLENGE of real relays come in one such read.
HANDSHAKE_READ_LEN = 16384


class Channel:
    """Made by `connect`. Bytes move while `run` runs. `link` tells who the relay is."""

    def __init__(
        self, tls: TlsConnection, core: CoreChannel, link: LinkResult, address: tuple[str, int], rng: Random
    ) -> None:
        self.link = link
        self.address = address  # the address that we connected to, and its port
        self.error: TorkitError | None = None
        self._wall_ahead = wall_ahead()
        self.opened_at = trio.current_time()
        self.idle_since: float | None = self.opened_at  # None while there are circuits
        self.use = Use.DIRECTORY
        self._used_more = trio.Event()
        self._last_active = 0.0  # on the core's clock; and on trio's:
        self._active_at = self.opened_at
        self._tls = tls
        self._core = core
        self._rng = rng
        self._circuits: dict[int, Circuit] = {}
        self._link: Link | None = None  # while `run` runs
        self._has_ended = trio.Event()
        self._is_sent = trio.Event()
        # One handler per event, in the order of how often they come.
        self._handlers: dict[type[Event], Callable[..., None]] = {
            Readable: _on_readable,
            Writable: _on_writable,
            Message: _on_message,
            ControlCell: self._on_control_cell,
            CircuitFailed: _on_circuit_failed,
            ChannelFailed: self._on_channel_failed,
            Flushed: self._on_flushed,
        }

    @classmethod
    async def connect(
        cls,
        address: str,
        port: int,
        *,
        rsa: bytes,
        ed25519: bytes | None,
        rng: Random,
        on_connected: Callable[[], None] = lambda: None,
        dial: Dial = dial_directly,
    ) -> "Channel":
        """Connect to the relay with these identities (20 and 32 bytes) and finish the link handshake.

        `ed25519` may be None for a relay known by its RSA identity alone. `on_connected` is called between
        TCP's handshake and TLS's. Raises ChannelClosed or TimedOut where nobody answers, HandshakeCut where
        somebody does and then closes, ChannelError where the relay is another one or breaks the rules.
        """
        is_connected = trio.Event()

        def note_connected() -> None:
            is_connected.set()
            on_connected()

        with trio.move_on_after(CONNECT_TIMEOUT):
            try:
                tls = await TlsConnection.connect(address, port, on_connected=note_connected, dial=dial)
                return await cls._shake_hands(tls, (address, port), rsa, ed25519, rng)
            except ChannelClosed as error:
                if is_connected.is_set():
                    raise HandshakeCut(str(error)) from error
                raise
        raise TimedOut(f"the relay did not finish the link handshake within {CONNECT_TIMEOUT:.0f} s")

    @classmethod
    async def _shake_hands(
        cls,
        tls: TlsConnection,
        address: tuple[str, int],
        rsa: bytes,
        ed25519: bytes | None,
        rng: Random,
    ) -> "Channel":
        try:
            core = CoreChannel()
            handshake = LinkHandshake(
                expected_rsa=rsa,
                expected_ed25519=ed25519,
                peer_address=ip_address(address[0]),
                tls_certificate_digest=sha256(tls.peer_certificate()).digest(),
                now=time.time(),
            )
            link = await _shake_hands(tls, core, handshake)
        except BaseException:
            tls.close()
            raise
        return cls(tls, core, link, address, rng)

    async def run(self) -> None:
        """Move cells until the connection ends or the task is cancelled; every circuit then fails.

        Never raises for a peer's faults: `error` says how it ended.
        """
        pump = Pump.current()
        try:
            self._link = pump.add_link(self._tls.core, self._core, self)
            await self._has_ended.wait()
        except OSError as error:  # it cannot be watched
            self.error = out_of_resources(error)
        finally:
            self.error = self.error or ChannelClosed("the connection to the relay ended")
            if self._link is not None:
                pump.remove(self._link)
            self._is_sent.set()
            self._tls.close()
            for circuit in list(self._circuits.values()):
                circuit.fail(self._end_of_circuits(self.error))
            self._circuits.clear()

    def _end_of_circuits(self, error: TorkitError) -> TorkitError:
        """Returns the error with which circuits fail where the channel has ended for `error`."""
        return error if isinstance(error, OutOfResources) else ChannelClosed(str(error))

    def on_events(self, events: list[Event]) -> None:
        """Hand on what the pump has read. A fault of ours ends the circuit that an event is about, if any."""
        for event in events:
            try:
                self._handlers[type(event)](event)
            except Exception as error:
                if (circuit := self._circuit_of(event)) is None:
                    raise
                fault = InternalError.ending("a circuit", error)
                log_fault(fault)
                circuit.fail(fault)

    def _circuit_of(self, event: Event) -> Tunnel | None:
        if isinstance(event, ControlCell):
            return self._circuits.get(event.circ_id)
        if isinstance(event, Message | CircuitFailed):
            owner: Tunnel | None = event.circuit.owner
            return owner
        if isinstance(event, Readable | Writable) and (stream := event.stream.owner) is not None:
            of_stream: Tunnel = stream.circuit
            return of_stream
        return None

    def on_fault(self, error: InternalError) -> None:
        self._on_channel_failed(ChannelFailed(error))

    async def drain(self) -> None:
        """Wait until everything sealed so far has been sent, or the channel has ended."""
        if self.error is None and self._link is not None:
            self._link.tell_when_sent = True
            await self._is_sent.wait()

    @property
    def clock_skew(self) -> float | None:
        """The relay's clock minus ours as it is set now, in seconds; None if it told no time."""
        skew = self.link.clock_skew
        return None if skew is None else skew - set_since(self._wall_ahead)

    # --- circuits -----------------------------------------------------------------------------

    @property
    def is_congested(self) -> bool:
        """Returns whether the relay takes cells more slowly than we seal them."""
        return self._link is not None and self._link.is_congested

    @property
    def circuits(self) -> list[Circuit]:
        """The circuits on this channel."""
        return list(self._circuits.values())

    def open_circuit(
        self, relay_early_count: int, settings: CircuitSettings, purpose: str = GENERAL
    ) -> Circuit:
        """Returns a circuit without hops; circuit/hops.py gives it the first one."""
        if self.error is not None:
            raise self._end_of_circuits(self.error)
        while True:
            # tor-spec, "CREATE and CREATED cells": the initiator of the connection sets the top bit.
            circ_id = self._rng.getrandbits(31) | 0x80000000
            if circ_id not in self._circuits:
                break
        core = self._core.open_circuit(circ_id, self._rng.randrange(1, 65536), relay_early_count)
        if relay_early_count:  # else it cannot be extended
            self.note_use(Use.CIRCUITS)
        circuit = Circuit(self, core, settings, purpose)
        core.owner = circuit
        self._circuits[circ_id] = circuit
        self.idle_since = None
        return circuit

    def close_circuit(self, core: CoreCircuit) -> None:
        self._circuits.pop(core.id, None)
        if not self._circuits:
            self.idle_since = trio.current_time()
        self._core.close_circuit(core)

    def send_control(self, circ_id: int, command: Command, body: bytes) -> None:
        """Queue a cell that is not a relay cell. Without memory for it the connection ends."""
        try:
            self._core.send_control(circ_id, command, body)
        except MemoryError:
            self.error = self.error or OutOfResources("this machine has no memory for a cell")
            self._has_ended.set()

    # --- padding ------------------------------------------------------------------------------

    @property
    def active_at(self) -> float:
        """When cells last came or went, on trio's clock; now, while the relay takes too little."""
        if self.is_congested:
            return trio.current_time()
        if self._core.last_active != self._last_active:
            self._last_active = self._core.last_active
            age = time.clock_gettime(time.CLOCK_MONOTONIC) - self._last_active
            self._active_at = trio.current_time() - age
        return self._active_at

    def note_use(self, use: Use) -> None:
        """Note what the channel carries from now on."""
        if use > self.use:
            self.use = use
            self._used_more.set()
            self._used_more = trio.Event()

    async def wait_used_more(self) -> None:
        """Wait until `use` grows."""
        await self._used_more.wait()

    async def send_padding(self) -> None:
        """Send one PADDING cell."""
        self.send_control(0, Command.PADDING, b"")
        await self.drain()

    # --- events -------------------------------------------------------------------------------

    def _on_control_cell(self, event: ControlCell) -> None:
        circuit = self._circuits.get(event.circ_id)
        if event.command == Command.PADDING_NEGOTIATE:
            # padding-spec, "Reducing or Disabling Padding via Negotiation": clients MUST reject it from a
            # relay, and close the channel.
            error = ChannelError("the relay sent PADDING_NEGOTIATE, which is for clients to send")
            self._on_channel_failed(ChannelFailed(error))
        elif circuit is not None:
            circuit.on_control_cell(event.command, event.body)
        elif event.circ_id == 0 and event.command in (Command.VERSIONS, Command.CERTS, Command.NETINFO):
            self._on_channel_failed(ChannelFailed(ChannelError("the relay began a second link handshake")))
        # Any other cell is unknown to us, or for a circuit just closed, and is ignored.

    def _on_channel_failed(self, event: ChannelFailed) -> None:
        self.error = self.error or event.error
        self._has_ended.set()

    def _on_flushed(self, event: Flushed) -> None:
        self._is_sent.set()
        self._is_sent = trio.Event()


# Circuits and streams have no owner if an earlier event of the same read has ended them.


def _on_readable(event: Readable) -> None:
    if (owner := event.stream.owner) is not None:
        owner.on_readable()


def _on_writable(event: Writable) -> None:
    if (owner := event.stream.owner) is not None:
        owner.on_writable()


def _on_message(event: Message) -> None:
    if event.stream is not None and (owner := event.stream.owner) is not None:
        owner.on_message(event.command, event.body)
    elif (circuit := event.circuit.owner) is None:
        pass
    elif event.stream is None:
        circuit.on_message(event.hop, event.command, event.body)
    elif event.command == RelayCommand.BEGIN:
        circuit.on_begin(event.stream, event.body)


def _on_circuit_failed(event: CircuitFailed) -> None:
    if (circuit := event.circuit.owner) is not None:
        circuit.fail(event.error)


async def _shake_hands(tls: TlsConnection, core: CoreChannel, handshake: LinkHandshake) -> LinkResult:
    for command, body in handshake.start():
        core.send_control(0, command, body)
    buffer = bytearray(HANDSHAKE_READ_LEN)
    while handshake.result is None:
        await tls.send(core.data_to_send())
        count = await tls.receive(buffer)
        if not count:
            raise ChannelClosed("the relay closed the connection during the link handshake")
        for event in core.receive_data(buffer, count):
            if isinstance(event, ChannelFailed):
                raise event.error
            if isinstance(event, ControlCell) and handshake.result is None:
                for command, body in handshake.receive(event.command, event.body):
                    core.send_control(0, command, body)
    # NETINFO waits for the cell that opens the first circuit, and shares its record (as C tor's clients do).
    return handshake.result
