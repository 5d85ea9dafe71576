"""The streams of one circuit, or of several that are linked: how they begin, and how all end at once.

What carries them is in circuit.py and linked.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

import trio

from torkit._fast.cells import RelayCommand
from torkit._fast.stream import Stream as CoreStream
from torkit._fast.tunnel import Tunnel as CoreTunnel
from torkit.errors import CircuitError, EndReason, TorkitError
from torkit.learnt.path_bias import UNWATCHED
from torkit.net.circuit.stream import Stream, StreamBroken, StreamFlow, cut_off, ended_by
from torkit.proto import cells, messages
from torkit.proto.destination import is_internal

if TYPE_CHECKING:
    from torkit.directory.directory import Relay
    from torkit.net.circuit.settings import CircuitSettings

# Specification constant (path-spec, "Measuring path usage success rates").
PROBE_PORT = 25

IPV6_WELCOME = messages.BeginFlags.IPV6_OK | messages.BeginFlags.IPV6_PREFERRED

# What `settle` asks an exit: an address, which it answers by itself. One of TEST-NET-1, that nobody has.
SETTLE_QUESTION = "192.0.2.1"


class StreamOwner(Protocol):
    """What the core's stream events are handed to."""

    def on_message(self, command: int, body: bytes) -> None: ...
    def fail(self, error: TorkitError) -> None: ...


class Tunnel(ABC):
    """What Circuit and LinkedCircuit have in common. `core` has the streams; its `hop` serves them."""

    path: tuple[Relay, ...]
    sends_early = True  # what a program sends with its request goes behind BEGIN

    def __init__(self, core: CoreTunnel, settings: CircuitSettings, purpose: str) -> None:
        """`purpose` is a word for events, one of control-spec's."""
        self.journal = settings.journal
        self.id = self.journal.next_circuit()
        self.purpose = purpose
        self._error: TorkitError | None = None
        self.on_end: Callable[[Tunnel], None] | None = None
        self.watch = UNWATCHED  # told what becomes of it, for its guard's sake
        self.is_joined = False  # with an onion service, behind the last of `path`
        self._core = core
        self._settings = settings
        self._streams: set[StreamOwner] | None = None  # an empty one would take 216 bytes of every circuit

    @property
    def exit(self) -> Relay:
        """The relay at which its streams leave."""
        return self.path[-1]

    @property
    @abstractmethod
    def paths(self) -> tuple[tuple[Relay, ...], ...]:
        """The path of each leg."""

    @property
    @abstractmethod
    def _hop(self) -> int:
        """The index of the hop that serves streams."""

    @property
    @abstractmethod
    def _has_xoff(self) -> bool:
        """Whether streams have XON and XOFF instead of windows."""

    @property
    def _half_open_time(self) -> float:
        """Seconds for which data may still arrive for a stream that we closed."""
        return self._settings.half_open_time

    @abstractmethod
    def _note_streams(self) -> None:
        """A stream is about to be opened."""

    @abstractmethod
    def bytes_under_way(self, core: CoreStream) -> int:
        """How much of a stream may still come after our XOFF, from a peer that keeps the rules."""

    @abstractmethod
    def close(self, why: str = "nobody needs it any more") -> None:
        """End it here, because of `why`."""

    @property
    def error(self) -> TorkitError | None:
        """What has ended it: each time another exception, to be raised."""
        return None if self._error is None else self._error.anew()

    @abstractmethod
    def fail(self, error: TorkitError) -> None:
        """End it, once, for `error`."""

    @property
    def stream_count(self) -> int:
        """Streams that this end holds open."""
        return 0 if self._streams is None else len(self._streams)

    @property
    def has_room(self) -> bool:
        """Returns whether one more stream can be opened."""
        return self._core.has_room

    @property
    def far_end(self) -> str:
        """Who ends its streams, for sentences."""
        return "the onion service" if self.is_joined else "the exit"

    def begin(self, host: str, port: int, number: int | None = None) -> Stream:
        """Ask the last hop to connect to `host`, a name or address it resolves. Not waited for.

        With `number`, events tell of the stream under it.
        """
        flags = messages.NO_FLAGS
        if self.exit.policy6.accepts(port):
            # As C tor's clients do on the port that Tor Browser has them open, where the exit can use it.
            flags = IPV6_WELCOME
        return self._begin(RelayCommand.BEGIN, messages.encode_begin(host, port, flags), number)

    def begin_service(self, port: int, number: int | None = None) -> Stream:
        """Ask the onion service that has joined for `port`, otherwise as `begin`."""
        return self._begin(RelayCommand.BEGIN, messages.encode_begin_service(port), number)

    def refuses(self, address: cells.IPAddress | None) -> bool:
        """Returns whether an exit that says this address is wrong or has been fooled, as C tor judges."""
        return self._settings.refuse_internal and address is not None and is_internal(address)

    def begin_probe(self, address: IPv4Address) -> Stream:
        """Ask for `address`, of 0.0.0.0/8, which exits refuse by policy and name in doing so.

        path-spec, "Measuring path usage success rates".
        """
        body = messages.encode_begin(str(address), PROBE_PORT, messages.NO_FLAGS)
        return self._begin(RelayCommand.BEGIN, body)

    def _begin(self, command: RelayCommand, body: bytes, number: int | None = None) -> Stream:
        core = self._open_stream(is_resolve=False)
        stream = Stream(self, core, number)
        core.owner = stream
        self._add_stream(stream)
        self._core.send(core.hop, command, core.id, body)
        return stream

    def note_kept(self, count: int) -> None:
        """Count `count` more bytes, or fewer, that are kept of what its streams have brought."""
        self._core.keep(count)

    def stream_flow(self) -> StreamFlow | None:
        """Returns what watches XON and XOFF of one stream; None where it has windows."""
        if not self._has_xoff:
            return None
        return StreamFlow(
            self._settings.stream_params, self._settings.clock, peer_is_onion_service=self.is_joined
        )

    async def settle(self) -> None:
        """Wait until the last hop has all that was sent: it answers what is sent now, and cells keep order.

        An onion service looks nothing up, but refuses port 0. Raises what ended the circuit.
        """
        try:
            if self.is_joined:
                await self._begin(RelayCommand.BEGIN, messages.BEGIN_NOWHERE).wait_connected()
            else:
                await self.resolve(SETTLE_QUESTION)
        except StreamBroken as error:
            if error.reason is EndReason.DESTROY:
                raise

    async def resolve(self, name: str | cells.IPAddress) -> list[messages.Answer]:
        """What the last hop resolves `name` to; for an address literal, its names.

        Raises StreamBroken where the exit cannot say. tor-spec, "Remote hostname lookup".
        """
        question = messages.encode_resolve(name)
        core = self._open_stream(is_resolve=True)
        resolution = _Resolution(self)
        core.owner = resolution
        self._add_stream(resolution)
        self._core.send(core.hop, RelayCommand.RESOLVE, core.id, question)
        try:
            await resolution.has_come.wait()
        finally:
            self.close_stream(resolution, core, messages.encode_end(EndReason.MISC))
        if resolution.answers is None:
            raise resolution.broken()
        return resolution.answers

    def _open_stream(self, *, is_resolve: bool) -> CoreStream:
        if self.error is not None:
            raise self.error
        self._note_streams()
        return self._core.open_stream(self._hop, is_resolve)

    def _add_stream(self, owner: StreamOwner) -> None:
        if self._streams is None:
            self._streams = set()
        self._streams.add(owner)

    def close_stream(self, owner: StreamOwner, core: CoreStream, end_body: bytes) -> None:
        self._core.close_stream(core, end_body, self._half_open_time)
        core.owner = None  # the core keeps its stream for what is under way, long after everybody else
        self.forget_stream(owner)

    def send_message(self, core: CoreStream, command: RelayCommand, body: bytes) -> None:
        """Seal one message on a stream, if it is still open."""
        if not core.has_ended:
            self._core.send(core.hop, command, core.id, body)

    def forget_stream(self, owner: StreamOwner) -> None:
        """It has ended."""
        if self._streams is not None:
            self._streams.discard(owner)
            self._streams = self._streams or None

    def _fail_streams(self, error: TorkitError) -> None:
        """Tell every stream that the tunnel has ended, and whoever holds it; all, even if one raises."""
        raised: Exception | None = None
        while self._streams:
            try:
                self._streams.pop().fail(error)
            except Exception as second:
                raised = second
        self._streams = None
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end(self)
        if raised is not None:
            raise raised


class _Resolution:
    """The owner of a RESOLVE's stream."""

    def __init__(self, circuit: Tunnel) -> None:
        self.answers: list[messages.Answer] | None = None
        self.has_come = trio.Event()
        self._circuit = circuit
        self._reason: EndReason | None = None
        self._failure: TorkitError | None = None

    def broken(self) -> StreamBroken:
        if self._reason is not None:
            return ended_by(self._circuit, self._reason)
        return cut_off(self._circuit, self._failure)

    def on_message(self, command: int, body: bytes) -> None:
        try:
            if command == RelayCommand.RESOLVED:
                self.answers = messages.decode_resolved(body)
            elif command == RelayCommand.END:
                self._reason = messages.decode_end(body).reason
            else:
                raise CircuitError(f"relay command {command} arrived for a name look-up")
        except CircuitError as error:
            self._circuit.fail(error)
        self.has_come.set()

    def fail(self, error: TorkitError) -> None:
        self._failure = error
        self.has_come.set()
