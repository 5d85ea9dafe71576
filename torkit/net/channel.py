"""One connection to a relay, shared by every circuit through it: a reader task and a writer task.

The reader hands each TLS read to the compiled core and the events that come back to their circuits and
streams. Only the writer touches TLS for sending, so cancelling an application task can never cut a cell.
What the cells of the link handshake mean is proto/channel.py's.
"""

import time
from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_address
from random import Random

import trio

from torkit._fast.cells import Command
from torkit._fast.channel import Channel as CoreChannel
from torkit._fast.circuit import Circuit as CoreCircuit
from torkit._fast.events import (
    Acknowledged,
    ChannelFailed,
    CircuitFailed,
    ControlCell,
    Event,
    Message,
    Readable,
    Writable,
)
from torkit.errors import ChannelClosed, ChannelError, HandshakeCut, TimedOut, TorkitError
from torkit.net.circuit import Circuit, CircuitSettings
from torkit.net.tls import TlsConnection
from torkit.proto.channel import LinkHandshake, LinkResult

# Implementation limit, seconds: TCP, TLS and link handshake together.
CONNECT_TIMEOUT = 30.0

# Implementation limit: reads until other tasks have their turn. A relay goes on sending while we decrypt, and
# another read costs less than to be woken again.
READS_PER_TURN = 8


class Channel:
    """Made by `connect`; `run` must be running for anything to move. `link` tells who the relay is."""

    def __init__(
        self, tls: TlsConnection, core: CoreChannel, link: LinkResult, address: tuple[str, int], rng: Random
    ) -> None:
        self.link = link
        self.address = address  # what we connected to, and its port
        self.error: TorkitError | None = None
        self.idle_since: float | None = trio.current_time()  # None while there are circuits
        self._tls = tls
        self._core = core
        self._rng = rng
        self._circuits: dict[int, Circuit] = {}
        self._work = trio.Event()
        self._is_sent = trio.Event()
        # One handler per event, in the order of how often they come.
        self._handlers: dict[type[Event], Callable[..., None]] = {
            Readable: _on_readable,
            Writable: _on_writable,
            Message: _on_message,
            Acknowledged: _on_acknowledged,
            ControlCell: self._on_control_cell,
            CircuitFailed: _on_circuit_failed,
            ChannelFailed: self._on_channel_failed,
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
                return await cls._connect(address, port, rsa, ed25519, rng, note_connected)
            except ChannelClosed as error:
                if is_connected.is_set():
                    raise HandshakeCut(str(error)) from error
                raise
        raise TimedOut(f"the relay did not finish the link handshake within {CONNECT_TIMEOUT:.0f} s")

    @classmethod
    async def _connect(
        cls,
        address: str,
        port: int,
        rsa: bytes,
        ed25519: bytes | None,
        rng: Random,
        on_connected: Callable[[], None],
    ) -> "Channel":
        tls = await TlsConnection.connect(address, port, on_connected=on_connected)
        try:
            core = CoreChannel()
            handshake = LinkHandshake(
                expected_rsa=rsa,
                expected_ed25519=ed25519,
                peer_address=ip_address(address),
                tls_certificate_digest=sha256(tls.peer_certificate()).digest(),
                now=time.time(),
            )
            link = await _shake_hands(tls, core, handshake)
        except BaseException:
            tls.close()
            raise
        return cls(tls, core, link, (address, port), rng)

    async def run(self) -> None:
        """Move cells until the connection ends or the task is cancelled; every circuit then fails.

        Never raises for a peer's faults: `error` says how it ended.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        except* TorkitError as group:
            self.error = _first(group)
        except* trio.ClosedResourceError:
            pass
        finally:
            self.error = self.error or ChannelClosed("the connection to the relay ended")
            self._is_sent.set()
            self._tls.close()
            for circuit in list(self._circuits.values()):
                circuit.fail(ChannelClosed(str(self.error)))
            self._circuits.clear()

    async def _read(self) -> None:
        while not self._tls.has_ended:
            for _ in range(READS_PER_TURN):
                if not (count := self._tls.receive_now()):
                    break
                for event in self._core.receive_data(self._tls.buffer, count):
                    self._handlers[type(event)](event)
                if self.error is not None:
                    return
            # What the reads made due, mostly SENDMEs, goes at once: waking the writer costs more.
            if not self._tls.is_blocked and not self._tls.send_now(self._core.data_to_send()):
                self._work.set()
            if count:
                await trio.lowlevel.checkpoint()
            elif not self._tls.has_ended:
                await self._tls.wait_readable()

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while True:
                data = self._core.data_to_send()
                if not data and not self._tls.wants_to_send:
                    break
                await self._tls.send(data)
            self._is_sent.set()

    def flush(self) -> None:
        """Have the writer send what has been sealed."""
        self._work.set()

    async def drain(self) -> None:
        """Until everything sealed so far has been sent, or the channel has ended."""
        self._is_sent = trio.Event()
        self.flush()
        if self.error is None:
            await self._is_sent.wait()

    # --- circuits -----------------------------------------------------------------------------

    @property
    def is_congested(self) -> bool:
        """The relay does not take what we send as fast as we seal it."""
        return self._tls.is_blocked

    def open_circuit(self, relay_early_count: int, settings: CircuitSettings) -> Circuit:
        """A circuit without hops; Circuit.create gives it the first one."""
        if self.error is not None:
            raise ChannelClosed(str(self.error))
        while True:
            # tor-spec, "CREATE and CREATED cells": the initiator of the connection sets the top bit.
            circ_id = self._rng.getrandbits(31) | 0x80000000
            if circ_id not in self._circuits:
                break
        core = self._core.open_circuit(circ_id, self._rng.randrange(1, 65536), relay_early_count)
        circuit = Circuit(self, core, settings)
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
        """Queue a cell that is not a relay cell, and have it sent."""
        self._core.send_control(circ_id, command, body)
        self.flush()

    # --- events -------------------------------------------------------------------------------

    def _on_control_cell(self, event: ControlCell) -> None:
        circuit = self._circuits.get(event.circ_id)
        if circuit is not None:
            circuit.on_control_cell(event.command, event.body)
        elif event.circ_id == 0 and event.command in (Command.VERSIONS, Command.CERTS, Command.NETINFO):
            self._on_channel_failed(ChannelFailed(ChannelError("the relay began a second link handshake")))
        # Anything else is unknown to us or for a circuit just closed: to be ignored.

    def _on_channel_failed(self, event: ChannelFailed) -> None:
        self.error = event.error


def _on_readable(event: Readable) -> None:
    event.stream.owner.on_readable()


def _on_writable(event: Writable) -> None:
    event.stream.owner.on_writable()


def _on_message(event: Message) -> None:
    if event.stream is None:
        event.circuit.owner.on_message(event.hop, event.command, event.body)
    else:
        event.stream.owner.on_message(event.command, event.body)


def _on_acknowledged(event: Acknowledged) -> None:
    event.circuit.owner.on_acknowledged(event.hop, event.rtt, event.in_flight)


def _on_circuit_failed(event: CircuitFailed) -> None:
    event.circuit.owner.fail(event.error)


async def _shake_hands(tls: TlsConnection, core: CoreChannel, handshake: LinkHandshake) -> LinkResult:
    for command, body in handshake.start():
        core.send_control(0, command, body)
    while handshake.result is None:
        await tls.send(core.data_to_send())
        count = await tls.receive()
        if not count:
            raise ChannelClosed("the relay closed the connection during the link handshake")
        for event in core.receive_data(tls.buffer, count):
            if isinstance(event, ChannelFailed):
                raise event.error
            if isinstance(event, ControlCell) and handshake.result is None:
                for command, body in handshake.receive(event.command, event.body):
                    core.send_control(0, command, body)
    await tls.send(core.data_to_send())
    return handshake.result


def _first(group: BaseExceptionGroup[TorkitError]) -> TorkitError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
