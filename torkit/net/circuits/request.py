"""One stream, or one look-up, tried on one circuit after another (as C tor does it).

path-spec, "Handling failure".
"""

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import trio

from torkit.errors import (
    Closed,
    EndReason,
    NoPath,
    PeerError,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
    code_of,
)
from torkit.events import StreamAttached, StreamEnded, StreamFailed, StreamNew, StreamSucceeded
from torkit.learnt.refusals import Refusals
from torkit.net.circuit.stream import Stream, ended_by
from torkit.net.circuit.tunnel import Tunnel
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import LOOK_UP, ExitTo, Need, Path
from torkit.proto.destination import check_destination, parse_address
from torkit.proto.messages import ResolvedError

logger = logging.getLogger(__name__)

# Seconds until the first attempt times out, the second, and each further one; and seconds after which a
# stream gets no further attempt. (As C tor.)
ATTEMPT_TIMEOUTS = (10.0, 10.0, 15.0)
STREAM_TIMEOUT = 120.0

# How often an attempt ends by one of _UNCERTAIN, or with its circuit, before that is the answer (as C tor).
MAX_FAILURES = 3

# Implementation limit: how many exits may refuse one stream by policy. (C tor goes on for 120 s.)
MAX_REFUSALS = 16

SETTLE_TIMEOUT = 60.0  # seconds; a full congestion window at 8 KB/s

# Reasons of END after which another exit is tried (as C tor does). All others are the target's answer.
_UNCERTAIN = frozenset({EndReason.MISC, EndReason.NOROUTE, EndReason.RESOLVEFAILED})
_NO_EXIT = frozenset({EndReason.HIBERNATING, EndReason.RESOURCELIMIT})  # it wants no streams at all
BROKEN_CIRCUIT = frozenset({EndReason.DESTROY, EndReason.TORPROTOCOL})

T = TypeVar("T")


class Resolved(NamedTuple):
    """One answer to a look-up; `ttl` in seconds."""

    kind: Literal["ipv4", "ipv6", "hostname"]
    value: str
    ttl: int


class Request:
    """Knows who wants a stream or a look-up, where to, and what was tried. Serves for one of them only."""

    def __init__(
        self,
        circuits: Circuits,
        refusals: Refusals,
        host: str,
        port: int | None,
        *,
        isolation: Hashable = None,
        path: Path | None = None,
        allow_internal: bool = False,
    ) -> None:
        """For a stream to `port` of `host`, or without a port for a look-up of `host`, a name or an address.

        With `allow_internal`, private addresses are like all others, as in networks for tests. Raises
        UsageError for what no exit can reach, NoPath where the exit of `path` does not allow it.
        """
        self._host = check_destination(host, allow_internal=allow_internal)
        self._port = port
        purpose = LOOK_UP if port is None else ExitTo(port, is_ipv6=":" in self._host)
        if path:
            purpose.check(path[-1])
        self._need = Need(purpose, isolation, circuits.identity, path)
        self._circuits = circuits
        self._refusals = refusals
        self._journal = circuits.journal
        self.id = self._journal.next_stream()
        if self._journal.is_heard:
            self._journal.tell(StreamNew(self.id))
        self._begun: tuple[Stream, Tunnel] | None = None
        self._tried: frozenset[bytes] = frozenset()  # exits; another circuit to one of them may do
        self._refused: frozenset[bytes] = frozenset()  # exits that do not want this stream
        self._failure: TorkitError | None = None  # the last
        self._failure_count = self._refusal_count = self._timeout_count = 0

    def begin(self) -> Stream | None:
        """Make the first attempt at once. Returns a stream not answered yet, or None without a ready circuit.

        If it fails, or is not answered within the first of ATTEMPT_TIMEOUTS, `connect` goes on.
        """
        port = self._stream_port
        refusing = self._refusing
        need = self._need._replace(avoided=refusing) if refusing else self._need
        circuit = self._circuits.take_ready(need)
        if circuit is None:
            return None
        stream = circuit.begin(self._host, port, self.id)
        self._begun = stream, circuit
        return stream

    async def connect(self) -> Stream:
        """Make the attempts that are left. Returns a stream that was answered.

        Raises StreamClosed with the exit's reason, TimedOut, NoPath, or what made circuits fail.
        """
        port = self._stream_port
        with self._ending():
            if self._begun is not None:
                stream, circuit = self._begun
                if stream.failure is None:
                    stream.close()
                    self._note_timeout(circuit)
                elif not self._note_failure(circuit, stream.failure):
                    assert self._failure is not None
                    raise self._failure
            return await self._try_on(partial(self._open, port))

    async def resolve(self) -> list[Resolved]:
        """Returns the addresses of a name, or the names of an address. Raises as `connect`."""
        with self._ending():
            found, circuit = await self._try_on(self._look_up)
            if not found:
                raise ended_by(circuit, EndReason.RESOLVEFAILED)
        if self._journal.is_heard:
            self._journal.tell(StreamSucceeded(self.id))
            self._journal.tell(StreamEnded(self.id, EndReason.DONE.name, "done"))
        return found

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Tell events how the request ends, and forget the last failure.

        Its traceback holds the request: both would stay until Python looks for garbage.
        """
        try:
            with self._journal.telling_end(self.id):
                yield
        finally:
            self._failure = None

    # --- one attempt ------------------------------------------------------------------------------

    @property
    def _stream_port(self) -> int:
        if self._port is None:
            raise UsageError("a look-up has no stream")
        return self._port

    async def _open(self, port: int, circuit: Tunnel) -> Stream:
        stream = circuit.begin(self._host, port, self.id)
        try:
            await stream.wait_connected()
        except BaseException:
            stream.close()
            raise
        return stream

    async def _look_up(self, circuit: Tunnel) -> tuple[list[Resolved], Tunnel]:
        """Ask an exit.

        Internal addresses are left out of its answer: they would lead into another network.
        """
        if self._journal.is_heard:
            self._journal.tell(StreamAttached(self.id, circuit.id))
        found = []
        answers = await circuit.resolve(parse_address(self._host) or self._host)
        for answer in answers:
            if isinstance(answer.value, str):
                found.append(Resolved("hostname", answer.value, answer.ttl))
            elif not isinstance(answer.value, ResolvedError) and not circuit.refuses(answer.value):
                kind: Literal["ipv4", "ipv6"] = "ipv4" if answer.value.version == 4 else "ipv6"
                found.append(Resolved(kind, str(answer.value), answer.ttl))
        if not found and all(answer.value is not ResolvedError.NONTRANSIENT for answer in answers):
            raise ended_by(circuit, EndReason.RESOLVEFAILED)
        return found, circuit

    # --- one after another ------------------------------------------------------------------------

    async def _try_on(self, attempt: Callable[[Tunnel], Awaitable[T]]) -> T:
        """Try on one circuit, and on another where the circuit or its exit is at fault.

        Raises what ends an attempt where another one is of no use, TimedOut, NoPath, or what made circuits
        fail.
        """
        give_up_at = trio.current_time() + STREAM_TIMEOUT
        while self._may_go_on(give_up_at) and (circuit := await self._acquire(give_up_at)) is not None:
            try:
                with trio.move_on_after(self._timeout):
                    result = await attempt(circuit)
                    circuit.watch.note_used()
                    return result
                self._note_timeout(circuit)
            except (PeerError, Closed) as error:
                if self._port is None and self._journal.is_heard:  # a stream tells it itself
                    self._journal.tell(StreamFailed(self.id, str(error), code_of(error)))
                if not self._note_failure(circuit, error):
                    raise
        assert self._failure is not None
        raise self._failure

    def _may_go_on(self, give_up_at: float) -> bool:
        return (
            self._failure_count < MAX_FAILURES
            and self._refusal_count < MAX_REFUSALS
            and trio.current_time() < give_up_at
        )

    @property
    def _timeout(self) -> float:
        """Returns the seconds for the next attempt."""
        return ATTEMPT_TIMEOUTS[min(self._timeout_count, len(ATTEMPT_TIMEOUTS) - 1)]

    @property
    def _refusing(self) -> frozenset[bytes]:
        """Returns exits that have refused this target lately."""
        return self._refusals.exits_refusing(self._need.isolation, self._host, self._port)

    async def _acquire(self, give_up_at: float) -> Tunnel | None:
        """Returns a circuit, if possible to an exit not tried yet; None if an earlier failure says more."""
        need = self._need._replace(excluded=self._refused, avoided=self._refusing | self._tried)
        try:
            return await self._circuits.acquire(need, give_up_at)
        except NoPath:
            if not self._refused:
                raise
            return None
        except TimedOut as error:
            if self._failure is None or _reason_of(self._failure) in BROKEN_CIRCUIT:
                self._failure = error  # why there was no other circuit says more than how one ended
            return None

    # --- what came of it --------------------------------------------------------------------------

    def _note_timeout(self, circuit: Tunnel) -> None:
        """Note that the exit has not answered in time."""
        self._tried |= {circuit.exit.identity}
        silent = _silent(circuit, self._timeout)
        logger.debug("stream %d, tried on circuit %d: %s", self.id, circuit.id, silent)
        self._failure = self._failure or silent
        self._timeout_count += 1
        circuit.watch.note_given_up()
        self._circuits.retire(circuit, "its exit was silent")

    def _note_failure(self, circuit: Tunnel, error: TorkitError) -> bool:
        """Learn from the failure of an attempt. Returns whether another attempt is of use.

        It does not raise the error: the traceback would hold this call, which holds the error (`_ending`).
        """
        logger.debug("stream %d, tried on circuit %d: %s", self.id, circuit.id, error)
        exit_identity = circuit.exit.identity
        self._tried |= {exit_identity}
        self._failure = error
        reason, purpose, is_named = _reason_of(error), self._need.purpose, self._need.path is not None
        address = error.address if isinstance(error, StreamClosed) else None
        if reason in BROKEN_CIRCUIT:
            self._failure_count += 1
            circuit.watch.note_broken()
            circuit.close("its exit broke a stream")
            return True
        if reason is not EndReason.INTERNAL:
            circuit.watch.note_used()
        if reason in _UNCERTAIN:
            self._failure_count += 1
            self._circuits.retire(circuit, "its exit failed a stream")
        elif reason is EndReason.EXITPOLICY and is_named and not purpose.may_join(purpose, circuit.exit):
            return False  # the exit's policy had said so
        elif reason is EndReason.EXITPOLICY and address is not None:
            if circuit.refuses(address):
                return False  # so it is everywhere
            self._refused |= {exit_identity}
            self._refusal_count += 1
            self._refusals.note_target(exit_identity, self._need.isolation, self._host, self._port)
        elif reason is EndReason.EXITPOLICY or reason in _NO_EXIT:
            self._refused |= {exit_identity}
            self._refusal_count += 1
            self._refusals.note_exit(exit_identity)
            self._circuits.retire_exit(exit_identity, "its exit refuses streams")
        else:
            return False  # the target's answer
        circuit.watch.note_given_up()
        return not (self._refusal_count and is_named)


def _silent(circuit: Tunnel, seconds: float) -> TimedOut:
    error = TimedOut(f"the exit has not answered within {seconds:g} s")
    error.name(circuit.exit.nickname)
    return error


def _reason_of(failure: TorkitError) -> EndReason:
    """Returns why an attempt failed: the end of its stream, or else of its circuit."""
    return failure.reason if isinstance(failure, StreamClosed) else EndReason.DESTROY


async def settle(stream: Stream) -> None:
    """End `stream`, and wait until the exit, or the onion service, has all that was sent on it.

    Raises TimedOut, or what ended the circuit first.
    """
    stream.close()
    try:
        with trio.fail_after(SETTLE_TIMEOUT):
            await stream.circuit.settle()
    except trio.TooSlowError:
        whom = stream.circuit.far_end
        raise TimedOut(f"{whom} did not take what was sent within {SETTLE_TIMEOUT:g} s") from None
