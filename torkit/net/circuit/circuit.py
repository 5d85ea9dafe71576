"""One circuit: its hops' handshakes, its streams, and how it ends. The cells' bytes are the core's.

Every wait here ends by an answer or by the circuit's end; deadlines are the caller's (trio.fail_after).
"""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.circuit import CIRCUIT_WINDOW_INCREMENT
from torkit._fast.circuit import Circuit as CoreCircuit
from torkit._fast.handshake import FastClient
from torkit._fast.keys import wipe
from torkit._fast.onion import Layer, LayerKind
from torkit._fast.stream import Stream as CoreStream
from torkit.errors import CircuitClosed, CircuitError, TorkitError, code_of
from torkit.events import CLOSED_HERE, CircuitBuilt, CircuitEnded, CircuitExtended, CircuitLaunched
from torkit.net.circuit.hops import HopAnswer, Hops
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.stream import Stream
from torkit.net.circuit.tunnel import Tunnel
from torkit.net.contact import first_address
from torkit.net.journal import UNNAMED, name_of
from torkit.params import parameter
from torkit.proto import cells, flow, messages
from torkit.proto.circuit import HopHandshake, NewHop
from torkit.proto.padding import Use

if TYPE_CHECKING:
    from torkit.directory.directory import Relay
    from torkit.proto.setup_padding import SetupPadding


GENERAL = "GENERAL"  # control-spec's purpose of circuits for streams

logger = logging.getLogger(__name__)

_LINK_COMMANDS = {int(command): command for command in Command}
_RELAY_COMMANDS = {int(command): command for command in RelayCommand}


class CircuitHost(Protocol):
    """A channel, as its circuits know it (channel.py)."""

    address: tuple[str, int]
    error: TorkitError | None

    @property
    def clock_skew(self) -> float | None: ...
    def send_control(self, circ_id: int, command: Command, body: bytes) -> None: ...
    def note_use(self, use: Use) -> None: ...
    def close_circuit(self, core: CoreCircuit) -> None: ...


_HopKind = tuple[str, str, str, int]  # all of a HopInfo but its seconds


class HopInfo(NamedTuple):
    """How a hop was made; `sendme_inc` is in DATA cells, `seconds` is what its handshake took."""

    handshake: str  # ntor, ntor-v3
    layer: str  # tor1, cgo
    flow_control: str  # fixed, vegas
    sendme_inc: int
    seconds: float


class Circuit(Tunnel):
    """Made by Channel.open_circuit. `path` grows by one relay with every finished handshake."""

    def __init__(
        self, channel: CircuitHost, core: CoreCircuit, settings: CircuitSettings, purpose: str = GENERAL
    ) -> None:
        """`purpose` is a word for events, one of control-spec's."""
        super().__init__(core, settings, purpose)
        self.path: tuple[Relay, ...] = ()
        self._hop_kinds: tuple[_HopKind, ...] = ()
        self._hop_seconds = array("d")
        self.unnamed_hop: int | None = None  # the number of one that events do not name
        self.is_built = False
        self.began_at = trio.current_time()
        self.is_told = False  # whether a line has told that it was built, and another tells how it ends
        self.linked: Tunnel | None = None  # the set of which it is a leg
        self.kh = b""  # what we and an introduction point know, for whoever asked for it, to wipe
        self._take: Callable[[Stream, bytes], None] | None = None  # streams that the far end begins
        self._heard: tuple[RelayCommand, Callable[[bytes], None]] | None = None
        self._core: CoreCircuit = core
        self._channel = channel
        self._reply: Reply | HopAnswer | None = None
        self._padding: SetupPadding | None = None
        if self.journal.is_heard:
            self.journal.tell(CircuitLaunched(self.id, purpose))

    def __repr__(self) -> str:
        state = "open" if self.error is None else f"ended: {self.error}"
        path = " - ".join(self.names())
        return (
            f"<Circuit {self.id} {self.purpose}, {path or 'no hops'}, {self.stream_count} streams, {state}>"
        )

    @property
    def clock_skew(self) -> float | None:
        """The first relay's clock minus ours as it is set now, in seconds; None if it told no time."""
        return self._channel.clock_skew

    @property
    def last_address(self) -> tuple[str, int]:
        """An address and OR port of the last hop; on a circuit of one hop, the ones that we connected to."""
        return self._channel.address if len(self.path) < 2 else (self.path[-1].address, self.path[-1].or_port)

    # --- hops -------------------------------------------------------------------------------------

    async def create_fast(self) -> None:
        """Make the first hop without an onion key: for directory circuits of one hop, and not in `path`."""
        await Hops(self, (None,), ends_at_exit=False).wait()

    async def create(self, relay: Relay, *, is_last: bool = False) -> None:
        """Make the first hop with its onion key."""
        await Hops(self, (relay,), ends_at_exit=is_last).wait()

    async def extend(self, relay: Relay, *, is_last: bool, keeps_kh: bool = False) -> None:
        """Add a hop behind the last one; with `keeps_kh`, `kh` is then its."""
        await Hops(self, (relay,), ends_at_exit=is_last, keeps_kh=keeps_kh).wait()

    def begin_hop(
        self,
        relay: Relay | None,
        then: Callable[[Exception | None], None],
        *,
        is_last: bool,
        keeps_kh: bool = False,
    ) -> None:
        """Send our half of a handshake with the next hop; without a relay with the first one, by CREATE_FAST.

        `then` is called with None as soon as the hop is there, or with what kept it from being added. With
        `keeps_kh`, `kh` is then its. Raises what has ended the circuit, CircuitError for a relay whose key is
        degenerate, UsageError where the circuit may not be extended any more. tor-spec, "CREATE and CREATED
        cells", "EXTEND and EXTENDED cells".
        """
        if self.error is not None:
            raise self.error
        if relay is None:
            self._create_fast(then)
            return
        started = trio.current_time()
        is_first = not self._core.hop_count
        handshake = self._handshake(relay, is_last=is_last)
        try:
            if is_first:
                self._send_create(handshake)
            else:
                self._send_extend(relay, handshake)
        except BaseException:
            handshake.wipe()
            raise
        decode = cells.decode_created2 if is_first else messages.decode_extended2

        def finish(reply: bytes) -> None:
            self._add_hop(relay, handshake.finish(decode(reply), keeps_kh=keeps_kh), started)

        answer = Command.CREATED2 if is_first else RelayCommand.EXTENDED2
        self._reply = HopAnswer(answer, handshake, finish, then)

    def _send_create(self, handshake: HopHandshake) -> None:
        body = cells.encode_create2(handshake.handshake_type, handshake.handshake)
        self._channel.send_control(self._core.id, Command.CREATE2, body)

    def _send_extend(self, relay: Relay, handshake: HopHandshake) -> None:
        specifiers = messages.encode_link_specifiers(
            [first_address(relay)],  # C tor's clients name one address, too
            rsa_identity=relay.identity,
            ed25519_identity=relay.ed25519_identity,
        )
        body = messages.encode_extend2(specifiers, handshake.handshake_type, handshake.handshake)
        self._core.send(self._core.hop_count - 1, RelayCommand.EXTEND2, 0, body)

    def give_up_hop(self) -> None:
        """Nobody waits for the hop under way any more."""
        if isinstance(self._reply, HopAnswer):
            self._reply.give_up()
            self._reply = None

    def _create_fast(self, then: Callable[[Exception | None], None]) -> None:
        """tor-spec, "CREATE_FAST/CREATED_FAST cells"."""
        handshake = FastClient(os.urandom(cells.HASH_LEN))
        try:
            self._channel.send_control(self._core.id, Command.CREATE_FAST, handshake.handshake)
        except BaseException:
            handshake.wipe()
            raise

        def finish(reply: bytes) -> None:
            keys = handshake.finish(cells.decode_created_fast(reply))
            try:
                self._core.add_hop(keys.layer(LayerKind.TOR1))
            finally:
                keys.wipe()

        self._reply = HopAnswer(Command.CREATED_FAST, handshake, finish, then)

    def _handshake(self, relay: Relay, *, is_last: bool) -> HopHandshake:
        private_key = os.urandom(cells.CURVE25519_KEY_LEN)
        try:
            return HopHandshake(
                relay,
                is_last=is_last,
                cgo=self._settings.cgo,
                params=self._settings.params,
                private_key=private_key,
            )
        finally:
            wipe(private_key)

    def _add_hop(self, relay: Relay, hop: NewHop, started: float) -> None:
        self.kh = hop.kh
        vegas = self._add_layer(hop.layer, hop.sendme_inc, flow.PathKind.EXIT)
        self.path += (relay,)
        sendme_inc = CIRCUIT_WINDOW_INCREMENT if vegas is None else vegas.increment
        self._hop_kinds += (_kind_of(hop.handshake_type, hop.kind, vegas is not None, sendme_inc),)
        self._hop_seconds.append(trio.current_time() - started)
        if self.journal.is_heard:
            self.journal.tell(CircuitExtended(self.id, len(self.path), self.names()[-1]))

    @property
    def hops(self) -> tuple[HopInfo, ...]:
        """How each hop was made, the guard first."""
        # Made when asked for: kept, three took 360 bytes of every circuit.
        return tuple(
            HopInfo(*kind, took) for kind, took in zip(self._hop_kinds, self._hop_seconds, strict=True)
        )

    def note_built(self) -> None:
        """Every hop that it was to have was made."""
        self.is_built = True
        self.watch.note_built()
        if self.journal.is_heard:
            self.journal.tell(CircuitBuilt(self.id, self.names()))

    def names(self, of: Callable[[Relay], str] = name_of) -> tuple[str, ...]:
        """Returns the names of the relays, by default as in events. One of them may be UNNAMED."""
        return tuple(
            UNNAMED if hop == self.unnamed_hop else of(relay) for hop, relay in enumerate(self.path, 1)
        )

    def _add_layer(self, layer: Layer, sendme_inc: int | None, path: flow.PathKind) -> flow.Vegas | None:
        """Add a hop to the core's, with congestion control where `sendme_inc` is given, in DATA cells."""
        vegas = None
        if sendme_inc is None:
            self._core.add_hop(layer, parameter(self._settings.params, "circwindow"))
        else:
            params = self._settings.congestion_params[path]
            vegas = flow.Vegas(params, increment=sendme_inc, clock=self._settings.clock)
            self._core.add_hop(layer, vegas=vegas)
        return vegas

    def join(self, layer: Layer, sendme_inc: int | None, path: flow.PathKind) -> None:
        """Add an onion service behind the last hop, with its layer.

        It is no relay: `path` stays as it is. Streams begun from now on are the service's.
        """
        self.is_joined = True
        self._add_layer(layer, sendme_inc, path)

    def let_in(self, layer: Layer, sendme_inc: int | None, take: Callable[[Stream, bytes], None]) -> None:
        """Put a client behind the last hop, as its onion service.

        `take` is called at once for each stream that it begins, with BEGIN's body, and answers it by
        `Stream.accept` or `Stream.close`, then or later.
        """
        self.join(layer, sendme_inc, flow.PathKind.ONION)
        self._core.let_in(self._hop)
        self._take = take

    @property
    def far_end(self) -> str:
        return super().far_end if self._take is None else "the client"

    def hear(self, command: RelayCommand, hear: Callable[[bytes], None]) -> None:
        """Have `hear` called at once with the body of each message of this kind that the last hop sends."""
        self._heard = command, hear

    @property
    def can_congestion_control(self) -> bool:
        """Whether the consensus asks clients to negotiate congestion control."""
        return flow.wants_congestion_control(self._settings.params)

    # --- messages to the last hop -----------------------------------------------------------------

    async def ask(self, command: RelayCommand, body: bytes, answer: RelayCommand) -> bytes:
        """Send the last hop a message that is no stream's, and wait for the answer; its body."""
        self.tell(command, body)
        return await self.expect(answer).wait()

    def tell(self, command: RelayCommand, body: bytes) -> None:
        """Send the last hop a message that is no stream's. Not waited for."""
        self._core.send(self._core.hop_count - 1, command, 0, body)

    def expect(self, command: Command | RelayCommand) -> Reply:
        """From now on a message of this kind may come from the last hop, once; any other ends the circuit.

        Raises what has ended the circuit.
        """
        if self.error is not None:
            raise self.error
        reply = self._reply = Reply(self, command)
        return reply

    def stop_expecting(self, reply: Reply) -> None:
        """Let no message come any more that nobody has asked for since."""
        if self._reply is reply:
            self._reply = None

    # --- padding of its set-up --------------------------------------------------------------------

    def pad(self, padding: SetupPadding) -> None:
        """Have the second relay pad it, where that relay can and the consensus lets us. Not waited for."""
        if self.error is None and padding.may_run(self.path[padding.hop].protocols, self._settings.params):
            self._padding = padding
            for command, body in padding.start():
                self._core.send(padding.hop, command, 0, body)

    def release(self, late: RelayCommand | None) -> bool:
        """Nobody needs it but its padding: close it where that is over. Returns whether it has to be kept.

        `late`, if given, may still come on it, once.
        """
        if self._padding is None or not self._padding.is_running:
            self.close()
        else:
            self._reply = None if late is None else Reply(self, late)
        return self.error is None

    def _hear_padding(self, padding: SetupPadding, body: bytes) -> None:
        try:
            padding.receive(body)
        except CircuitError as error:
            self.fail(error)

    # --- streams ----------------------------------------------------------------------------------

    @property
    def paths(self) -> tuple[tuple[Relay, ...], ...]:
        return (self.path,)

    @property
    def core(self) -> CoreCircuit:
        """The core's circuit, as a leg of a set of linked circuits."""
        return self._core

    @property
    def _hop(self) -> int:
        return self._core.hop_count - 1

    @property
    def _has_xoff(self) -> bool:
        return self._core.vegas(self._hop) is not None

    def _note_streams(self) -> None:
        if self._core.hop_count > 1:
            self._channel.note_use(Use.STREAMS)

    def begin_directory(self) -> Stream:
        """Returns a stream to the last hop's own directory service."""
        return self._begin(RelayCommand.BEGIN_DIR, b"")

    def bytes_under_way(self, core: CoreStream) -> int:
        """Returns how much of a stream may still come after our XOFF, from a peer that keeps the rules.

        One congestion window may be on its way to us, and another leave before the XOFF arrives. A window
        grows by what we acknowledge: in slow start times a percentage, until cc_ss_max; beyond that, by at
        most cc_cwnd_inc for each SENDME of ours (proposal 324).
        """
        vegas = self._core.vegas(core.hop)
        assert vegas is not None
        params = self._settings.params
        acknowledged = self._core.acknowledged(core.hop)
        first = parameter(params, "cc_cwnd_init")
        in_slow_start = first + acknowledged * parameter(params, "cc_cwnd_inc_pct_ss") // 100
        steady = acknowledged // vegas.increment * parameter(params, "cc_cwnd_inc")
        window = min(in_slow_start, max(first, parameter(params, "cc_ss_max"))) + steady
        return 2 * window * flow.RELAY_DATA_LEN_MAX

    # --- the end ----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self, why: str = "nobody needs it any more") -> None:
        """Send DESTROY, with reason NONE as C tor's clients do, and fail what is still open.

        `why` is for logs and events: relays are never told.
        """
        self.fail(CircuitClosed(f"the circuit was closed here: {why}"), closed_because=why)

    def fail(
        self, error: TorkitError, *, was_destroyed: bool = False, closed_because: str | None = None
    ) -> None:
        """End the circuit, once, for `error`. `closed_because` says why we ourselves close it."""
        if self._error is not None:
            return
        self._error = error.anew()  # the other may be raised
        if self.is_told:
            how = f"failed: {error}" if closed_because is None else f"was closed: {closed_because}"
            logger.info("circuit %d %s", self.id, how)
        self.watch.note_closed(by_us=closed_because is not None)
        if self.journal.is_heard:
            code = CLOSED_HERE if closed_because is not None else code_of(error)
            self.journal.tell(CircuitEnded(self.id, str(error), code))
        if not was_destroyed and self._channel.error is None:
            self._channel.send_control(self._core.id, Command.DESTROY, cells.encode_destroy())
        self._channel.close_circuit(self._core)
        wipe(self.kh)  # where whoever asked for it has left
        self._core.owner = None  # else both, and all that they hold, would wait for a collection of garbage
        if (reply := self._reply) is not None:
            self._reply = None
            reply.on_end(error)
        self._fail_streams(error)

    # --- called by the channel's reader -----------------------------------------------------------

    def on_control_cell(self, command: int, body: bytes) -> None:
        if command == Command.DESTROY:
            reason = cells.decode_destroy(body)
            self.fail(
                CircuitClosed(
                    f"a relay closed the circuit: {reason.sentence} ({reason.name})", reason=reason
                ),
                was_destroyed=True,
            )
        elif (known := _LINK_COMMANDS.get(command)) is not None:
            self._on_reply(known, body)
        # An unknown link command is ignored (as by C tor).

    def on_message(self, hop: int, command: int, body: bytes) -> None:
        if command == RelayCommand.TRUNCATED:
            try:
                reason = messages.decode_truncated(body)
            except CircuitError as error:
                self.fail(error)
                return
            message = f"hop {hop + 2} is gone, says hop {hop + 1}: {reason.sentence} ({reason.name})"
            self.fail(CircuitClosed(message, reason=reason, hop=hop + 2))
            return
        if self._padding is not None and self._padding.takes(hop, command):
            self._hear_padding(self._padding, body)
            return
        if hop != self._core.hop_count - 1:
            self.fail(CircuitError(f"relay command {command} arrived from hop {hop + 1}, not the last"))
            return
        known = _RELAY_COMMANDS.get(command)
        if known is None:
            self.fail(CircuitError(f"relay command {command} arrived, which is unknown"))
            return
        self._on_reply(known, body)

    def on_begin(self, core: CoreStream, body: bytes) -> None:
        """The client that we have let in begins a stream."""
        if self._take is None or self.error is not None:  # it has ended since
            return
        stream = Stream(self, core)
        core.owner = stream
        self._add_stream(stream)
        self._take(stream, body)

    def _on_reply(self, command: Command | RelayCommand, body: bytes) -> None:
        # Compared by identity: a Command and a RelayCommand of the same number are equal.
        if self._heard is not None and self._heard[0] is command:
            self._heard[1](body)
            return
        reply = self._reply
        if reply is None or reply.command is not command:
            self.fail(CircuitError(f"{command.name} arrived, which nobody waits for"))
            return
        self._reply = None
        reply.on_body(body)


@cache
def _kind_of(handshake: Enum, layer: Enum, has_vegas: bool, sendme_inc: int) -> _HopKind:
    """Returns one tuple for all hops that were made so."""
    return _word(handshake), _word(layer), "vegas" if has_vegas else "fixed", sendme_inc


def _word(kind: Enum) -> str:
    return kind.name.lower().replace("_", "-")


class Reply:
    """One answer that is waited for. Made by `Circuit.expect`."""

    def __init__(self, circuit: Circuit, command: Command | RelayCommand) -> None:
        self.command = command
        self.body: bytes | None = None  # also where the circuit ended instead
        self.has_come = trio.Event()
        self._circuit = circuit

    def on_body(self, body: bytes) -> None:
        self.body = body
        self.has_come.set()

    def on_end(self, error: TorkitError) -> None:
        self.has_come.set()

    async def wait(self) -> bytes:
        """Its body. Raises what ended the circuit instead."""
        try:
            await self.has_come.wait()
        finally:
            self._circuit.stop_expecting(self)
        if self.body is None:
            raise self._circuit.error or CircuitClosed("the circuit ended")
        return self.body
