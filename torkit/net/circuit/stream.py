"""One stream as trio knows streams: bytes in, bytes out, each wait ended by the core's events.

Tor has no half-close: `aclose` ends both directions. No windows are counted here (_fast/stream).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Protocol

import trio

from torkit._fast.cells import RelayCommand
from torkit._fast.stream import Stream as CoreStream
from torkit.errors import CircuitError, EndReason, InternalError, Retry, StreamClosed, TorkitError, code_of
from torkit.events import CLOSED_HERE, StreamAttached, StreamEnded, StreamFailed, StreamSucceeded
from torkit.net.faults import log_fault
from torkit.proto.destination import INTERNAL, INTERNAL_HINT
from torkit.proto.flow import ClockGuard, DrainWatch, StreamParams, Xoff, XoffCheck, Xon
from torkit.proto.messages import (
    Answer,
    decode_connected,
    decode_end,
    decode_xoff,
    decode_xon,
    encode_end,
    encode_xoff,
    encode_xon,
)

if TYPE_CHECKING:
    from torkit._fast.sources import Local
    from torkit.directory.directory import Relay
    from torkit.learnt.path_bias import Watch
    from torkit.net.journal import Journal
    from torkit.proto.cells import IPAddress


class StreamHost(Protocol):
    """A circuit, as its streams and their users know it (circuit.py)."""

    id: int  # its number in events
    path: tuple[Relay, ...]
    journal: Journal
    watch: Watch  # told whether the exit has answered
    is_joined: bool  # with an onion service, behind the last of `path`
    sends_early: bool  # what a program sends with its request goes behind BEGIN

    @property
    def error(self) -> TorkitError | None: ...
    @property
    def exit(self) -> Relay: ...
    @property
    def paths(self) -> tuple[tuple[Relay, ...], ...]: ...
    @property
    def far_end(self) -> str: ...
    @property
    def stream_count(self) -> int: ...
    def begin(self, host: str, port: int, number: int | None = None) -> Stream: ...
    def close(self) -> None: ...
    def refuses(self, address: IPAddress | None) -> bool: ...
    def bytes_under_way(self, core: CoreStream) -> int: ...
    def send_message(self, core: CoreStream, command: RelayCommand, body: bytes) -> None: ...
    def close_stream(self, owner: Stream, core: CoreStream, end_body: bytes) -> None: ...
    def forget_stream(self, owner: Stream) -> None: ...
    def fail(self, error: TorkitError) -> None: ...
    def stream_flow(self) -> StreamFlow | None: ...
    async def resolve(self, name: str | IPAddress) -> list[Answer]: ...
    async def settle(self) -> None: ...


class StreamBroken(StreamClosed, trio.BrokenResourceError):
    """The stream ended other than in good order; also what trio's own wrappers expect to see."""


class Stream(trio.abc.Stream):
    """Made by Circuit.begin. One task may send while another receives.

    `receive_some` returns b"" once the peer has ended with DONE and everything was read; for any other
    end it raises StreamBroken with the reason.
    """

    def __init__(self, circuit: StreamHost, core: CoreStream, number: int | None = None) -> None:
        self.circuit = circuit
        self.id = number  # the number of the stream in events; None for streams of our own
        self.address: IPAddress | None = None  # where the exit has connected to, as it says
        self.port: int | None = None  # that a client of our onion service asks for
        self._core = core
        self._flow: StreamFlow | None = None  # made when it is needed, which it seldom is
        self._failure: TorkitError | None = None
        self._end: EndReason | None = None
        self._refused: IPAddress | None = None
        self._is_closed = False
        self._is_connected = False
        self._is_accepted = False
        self._is_told = False  # events know that it has ended
        self.watcher: Watcher | None = None
        self._unsent = memoryview(b"")  # what send_all still has to seal
        self._readers: Waiters | None = None  # made for the first: no task waits for a stream of the proxy's
        self._writers: Waiters | None = None
        if number is not None and circuit.journal.is_heard:
            circuit.journal.tell(StreamAttached(number, circuit.id))

    def __repr__(self) -> str:
        if self._is_closed:
            state = "closed"
        elif self.has_ended:
            state = "whole" if self._is_whole else f"ended: {self._broken()}"
        else:
            state = "connected" if self._is_connected else "waits for the exit"
        return f"<Stream {self.id or 'of our own'} on circuit {self.circuit.id}, {state}>"

    @property
    def path(self) -> tuple[Relay, ...]:
        """The relays that carry this stream; those of the first circuit, where circuits are linked."""
        return self.circuit.path

    @property
    def paths(self) -> tuple[tuple[Relay, ...], ...]:
        """The relays of each circuit that carries this stream; several paths where circuits are linked."""
        return self.circuit.paths

    async def wait_connected(self) -> None:
        """Wait for CONNECTED. Raises StreamBroken if the exit refuses, or what ended the circuit."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        while not self._is_connected:
            if self.has_ended:
                raise self._broken()
            await self._reading.park()
            self._check_open()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, as fast as the windows let it.

        Before CONNECTED arrives nothing is sent by linked circuits (as C tor); by any other, it is.
        While this waits, the channel's reader goes on sealing `data` as windows open (`on_writable`).
        """
        with self._writing:
            self._check_open()
            await trio.lowlevel.checkpoint()
            if not self.circuit.sends_early:
                await self.wait_connected()
            self._unsent = memoryview(data)
            try:
                while self._unsent:
                    self._check_open()
                    if self.has_ended:
                        raise self._broken()
                    go_on_at = self._seal()
                    if self._unsent:
                        with trio.move_on_at(go_on_at):
                            await self._writing.park()  # a window, another rate, or the end
            finally:
                self._unsent = memoryview(b"")

    def _seal(self) -> float:
        """Seal what waits to be sent, as far as windows and the peer's rate allow; when the rate allows more.

        That is never where a window or XOFF holds it: then a Writable or an XON comes first.
        """
        if self._flow is None:
            self._unsent = self._unsent[self._core.put(self._unsent) :]
            return inf
        now = trio.current_time()
        if now < self._flow.next_send_at:
            return self._flow.next_send_at
        allowed = self._unsent[: self._flow.check.rate]
        accepted = self._core.put(allowed)
        self._flow.pace(accepted, now)
        self._unsent = self._unsent[accepted:]
        return self._flow.next_send_at if accepted == len(allowed) else inf

    async def wait_send_all_might_not_block(self) -> None:
        with self._writing:
            self._check_open()
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._reading:
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                data = self._take(-1 if max_bytes is None else max_bytes)
                if data:
                    return data
                if self.is_over():
                    return b""
                await self._reading.park()

    def push(self, descriptor: int) -> bool:
        """Write what has arrived to a non-blocking descriptor. Returns whether that was all.

        If it was, the core goes on writing there by itself, and `watcher` hears of what the descriptor does
        not take. Raises OSError where the descriptor fails.
        """
        before = self._core.queued
        is_done = self._core.write_to(descriptor)
        self._note_taken(before - self._core.queued)
        # A reader that lagged is watched until its peer has been told that it lags no more.
        self._core.sink = descriptor if is_done and self._is_idle else -1
        return is_done

    def hold(self) -> None:
        """Stop writing to a descriptor: what arrives waits for `receive_some` or `push`."""
        self._core.sink = -1

    def put(self, data: bytes) -> int:
        """Send as much of `data` at once as windows allow; how much that was.

        Before CONNECTED nothing is sent by linked circuits (as C tor).
        """
        return self._core.put(data) if self._is_connected or self.circuit.sends_early else 0

    def be_fed(self, local: Local, early: bytes) -> None:
        """Have the core seal bytes that it reads from `local`, `early` first, without Python."""
        local.feed(self._core, early)

    def accept(self) -> None:
        """Answer a stream that the peer has begun: CONNECTED, without an address, as onion services do."""
        if not self._is_closed and not self.has_ended:
            self._is_connected = self._is_accepted = True
            self.circuit.send_message(self._core, RelayCommand.CONNECTED, b"")

    def close(self, reason: EndReason = EndReason.MISC) -> None:
        """Send END, once; what the peer has under way is dropped.

        Exits are never told a `reason` but MISC, as by C tor's clients; clients of an onion service are.
        """
        if not self._is_closed:
            self._tell_end("closed here", CLOSED_HERE)
            self._is_closed = True
            self.hold()
            self.circuit.close_stream(self, self._core, encode_end(reason))
            self._wake()

    def finish(self) -> None:
        """As `close`; the client of an onion service is told that it has got everything, as by a socket."""
        self.close(EndReason.DONE if self._is_accepted else EndReason.MISC)

    async def aclose(self) -> None:
        """As `finish`."""
        self.finish()
        await trio.lowlevel.checkpoint()

    def is_over(self) -> bool:
        """Returns whether the peer has ended in good order; more may wait. Raises StreamBroken."""
        if self._is_whole:
            return True
        if self.has_ended:
            raise self._broken()
        return False

    @property
    def has_ended(self) -> bool:
        """Returns whether the peer has ended it, or its circuit has; there may be more to read."""
        return self._end is not None or self._failure is not None or self._core.is_cut

    @property
    def queued(self) -> int:
        """Bytes that have arrived and were not taken."""
        return self._core.queued

    @property
    def failure(self) -> StreamBroken | None:
        """Why it has ended other than in good order, or before it was connected; None otherwise."""
        return self._broken() if self.has_ended and not self._is_whole else None

    @property
    def _is_whole(self) -> bool:
        """Returns whether the peer has ended in good order, and nothing that it sent is lost."""
        return self._end is EndReason.DONE and self._is_connected and not self._core.is_cut

    @property
    def is_connected(self) -> bool:
        """Returns whether the exit has answered that it is; it may have ended since."""
        return self._is_connected

    @property
    def sent(self) -> int:
        """How many bytes have been sealed so far."""
        return self._core.sent

    @property
    def received(self) -> int:
        """How many bytes have arrived so far."""
        return self._core.received

    def _take(self, max_bytes: int) -> bytes:
        """Received bytes; whatever message that makes due is sealed."""
        data = self._core.take(max_bytes)
        self._note_taken(len(data))
        return data

    def _note_taken(self, count: int) -> None:
        if count and (self._core.queued or not self._is_idle) and (flow := self._watched()) is not None:
            self._advise(flow.watch.drained(count, self._core.queued, trio.current_time()))

    @property
    def _is_idle(self) -> bool:
        """Whether an emptied queue needs no message."""
        return self._flow is None or self._flow.watch.is_idle

    def _watched(self) -> StreamFlow | None:
        """What watches XON and XOFF; None for a stream that has windows."""
        if self._flow is None:
            self._flow = self.circuit.stream_flow()
        return self._flow

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed here")

    def _broken(self) -> StreamBroken:
        if self._core.is_cut:
            message = (
                "what had arrived was dropped: its circuit held the most when the memory limit was passed"
            )
            return StreamBroken(message, reason=EndReason.RESOURCELIMIT)
        if self._end is not None:
            is_internal = self.circuit.refuses(self._refused)
            return ended_by(self.circuit, self._end, address=self._refused, is_internal=is_internal)
        return cut_off(self.circuit, self._failure)

    def _tell_end(self, reason: str, code: str) -> None:
        """Tell events, unless they know that it has ended."""
        if self.id is None or self._is_told:
            return
        self._is_told = True
        if self.circuit.journal.is_heard:
            event = StreamEnded if self._is_connected else StreamFailed
            self.circuit.journal.tell(event(self.id, reason, code))

    @property
    def _reading(self) -> Waiters:
        if self._readers is None:
            self._readers = Waiters("another task is receiving on this stream")
        return self._readers

    @property
    def _writing(self) -> Waiters:
        if self._writers is None:
            self._writers = Waiters("another task is sending on this stream")
        return self._writers

    def _wake(self) -> None:
        if self._readers is not None:
            self._readers.wake()
        if self._writers is not None:
            self._writers.wake()
        if self.watcher is not None:
            _tell(self.watcher, self.watcher.on_change)

    def _advise(self, advice: Xon | Xoff | None) -> None:
        """Send what the queue's length asks for."""
        if isinstance(advice, Xoff):
            self.circuit.send_message(self._core, RelayCommand.XOFF, encode_xoff())
            self._core.note_xoff_sent(self.circuit.bytes_under_way(self._core))
        elif isinstance(advice, Xon):
            self.circuit.send_message(self._core, RelayCommand.XON, encode_xon(advice.kbps_ewma))
            self._core.note_xon_sent()

    # --- called by the channel's reader ---------------------------------------------------------

    def on_readable(self) -> None:
        if self.watcher is not None:
            _tell(self.watcher, self.watcher.on_change)
        elif self._readers is not None:
            self._readers.wake()
        if self._core.queued and (flow := self._watched()) is not None:
            self._advise(flow.watch.queued(self._core.queued, trio.current_time()))

    def on_writable(self) -> None:
        if self._unsent:
            self._seal()
        is_paced = self._flow is not None and self._flow.check.rate is not None
        if self._writers is not None and (is_paced or not self._unsent):
            self._writers.wake()

    def on_message(self, command: int, body: bytes) -> None:
        try:
            if command == RelayCommand.CONNECTED:
                self.address = decode_connected(body).address
                self.circuit.watch.note_used()
                if self.circuit.refuses(self.address):
                    # As an exit would have answered that keeps to the rules.
                    self._end, self._refused = EndReason.EXITPOLICY, self.address
                    self.circuit.close_stream(self, self._core, encode_end(EndReason.MISC))
                else:
                    self._is_connected = True
                    if self.id is not None and self.circuit.journal.is_heard:
                        self.circuit.journal.tell(StreamSucceeded(self.id))
                self._wake()
            elif command == RelayCommand.END:
                end = decode_end(body)
                self._end, self._refused = end.reason, end.address
                self.circuit.forget_stream(self)
                self._core.owner = None  # nothing follows an END
                self._tell_end(end.reason.name, end.reason.name.lower())
                self._wake()
            elif command == RelayCommand.XOFF and (flow := self._watched()) is not None:
                decode_xoff(body)
                flow.note_sent(self._core.sent)
                flow.check.xoff()
                self._core.pause()
            elif command == RelayCommand.XON and (flow := self._watched()) is not None:
                flow.note_sent(self._core.sent)
                flow.xon(decode_xon(body))
                self._core.resume(flow.check.rate or 0)
                if self._writers is not None:
                    self._writers.wake()
                if self.watcher is not None:
                    _tell(self.watcher, self.watcher.on_xon)
            else:
                raise CircuitError(f"relay command {command} arrived for a stream that did not ask for it")
        except CircuitError as error:
            self.circuit.fail(error)

    def fail(self, error: TorkitError) -> None:
        """The circuit has ended with `error`; what was received before can still be read."""
        self._failure = error
        self._core.owner = None
        self._tell_end(str(error), code_of(error))
        self._wake()


def ended_by(
    circuit: StreamHost, reason: EndReason, *, address: IPAddress | None = None, is_internal: bool = False
) -> StreamBroken:
    """Returns the error for an END.

    `is_internal`: the exit found the target to be near itself, or near us.
    """
    if is_internal:
        message = f"{INTERNAL} ({reason.name})"
        broken = StreamBroken(message, reason=reason, address=address, hint=INTERNAL_HINT)
        broken.retry = Retry.NEVER
    else:
        message = f"{reason.sentence_of(circuit.far_end)} ({reason.name})"
        broken = StreamBroken(message, reason=reason, address=address)
    if circuit.path and not circuit.is_joined:
        broken.name(circuit.exit.nickname)
    return broken


def cut_off(circuit: StreamHost, failure: TorkitError | None) -> StreamBroken:
    """Returns a stream's end with its circuit. Whose fault that is, `failure` says if anybody knows."""
    to_whom = f" to {circuit.exit.nickname}" if circuit.path and not circuit.is_joined else ""
    broken = StreamBroken(f"the circuit{to_whom} failed: {failure}", reason=EndReason.DESTROY)
    broken.__cause__ = failure
    return broken


class Watcher(Protocol):
    """Told of a stream by calls, instead of tasks that wait. Its methods never wait."""

    def on_change(self) -> None:
        """It was connected or has ended, or bytes have arrived that the core does not write by itself."""

    def on_xon(self) -> None:
        """The peer takes data again, or at another rate."""

    def on_fault(self, error: InternalError) -> None:
        """Let go of the stream after a fault of ours in another method. Must not raise."""


def _tell(watcher: Watcher, what: Callable[[], None]) -> None:
    """Call one of its methods. A fault of ours there ends what it serves, and no other stream."""
    try:
        what()
    except Exception as error:
        fault = InternalError.ending("a connection", error)
        log_fault(fault)
        watcher.on_fault(fault)


class StreamFlow:
    """XON and XOFF of one stream: `watch` decides ours, `check` judges the peer's (proto/flow.py).

    At the rate that the peer's last XON asked for, nothing goes before `next_send_at`, and then at most
    what the rate allows in a second (as C tor).
    """

    def __init__(self, params: StreamParams, clock: ClockGuard, *, peer_is_onion_service: bool) -> None:
        self.watch = DrainWatch(params, clock)
        self.check = XoffCheck(params, peer_is_onion_service=peer_is_onion_service)
        self.next_send_at = 0.0
        self._sent = 0

    def note_sent(self, total: int) -> None:
        """Note how many bytes the core has sent in all, before a message is judged by that."""
        self.check.data_sent(total - self._sent)
        self._sent = total

    def pace(self, count: int, now: float) -> None:
        """Note `count` bytes sent at the rate."""
        if self.check.rate is not None:
            self.next_send_at = max(self.next_send_at, now) + count / self.check.rate

    def xon(self, kbps_ewma: int) -> None:
        """Take an XON: its rate counts from now on. Raises CircuitError."""
        self.check.xon(kbps_ewma)
        self.next_send_at = 0.0


class Waiters:
    """The tasks that wait for one direction of a stream.

    As a context it refuses a second task in that direction at once, as trio's streams must.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._is_held = False
        self._lot = trio.lowlevel.ParkingLot()

    async def park(self) -> None:
        await self._lot.park()

    def wake(self) -> None:
        self._lot.unpark_all()

    def __enter__(self) -> None:
        if self._is_held:
            raise trio.BusyResourceError(self._message)
        self._is_held = True

    def __exit__(self, *_: object) -> None:
        self._is_held = False
