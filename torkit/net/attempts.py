"""Attempts to have one stream, or one look-up, answered: on one circuit after another, as C tor makes them.

path-spec, "Handling failure".
"""

from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import TypeVar

import trio

from torkit.errors import Closed, EndReason, NoPath, PeerError, StreamClosed, TimedOut, TorkitError
from torkit.net.circuit import Circuit
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import LOOK_UP, ExitTo, Need, Path
from torkit.net.stream import Stream
from torkit.refusals import Refusals

# As C tor: seconds until the first attempt times out, the second, and each further one; and after which a
# stream gets no further one.
ATTEMPT_TIMEOUTS = (10.0, 10.0, 15.0)
STREAM_TIMEOUT = 120.0

# As C tor: how often one stream ends by one of _UNCERTAIN, or with its circuit, until that is the answer.
MAX_FAILURES = 3

# Implementation limit: exits by whose policy one stream is refused. C tor goes on for 120 s.
MAX_REFUSALS = 16

# Ends that another exit may not give, as C tor takes them. All others are the target's answer.
_UNCERTAIN = frozenset({EndReason.MISC, EndReason.NOROUTE, EndReason.RESOLVEFAILED})
_NO_EXIT = frozenset({EndReason.HIBERNATING, EndReason.RESOURCELIMIT})  # it wants no streams at all
_BROKEN_CIRCUIT = frozenset({EndReason.DESTROY, EndReason.TORPROTOCOL})

T = TypeVar("T")


class Attempts:
    """Those for one stream to `host` and `port`, or for one look-up, whose port is None."""

    def __init__(
        self,
        circuits: Circuits,
        refusals: Refusals,
        host: str,
        port: int | None,
        *,
        isolation: Hashable,
        path: Path | None,
        begun: Stream | None = None,
    ) -> None:
        """`begun` is a first attempt, which has failed or was not answered in time."""
        self._circuits = circuits
        self._refusals = refusals
        self._host = host
        self._port = port
        self._begun = begun
        self._need = Need(
            LOOK_UP if port is None else ExitTo(port, is_ipv6=":" in host),
            isolation,
            circuits.identity if begun is None else begun.identity,
            path,
        )
        self._give_up_at = trio.current_time() + STREAM_TIMEOUT
        self._exits: set[bytes] = set()  # that were tried
        self._failure: TorkitError | None = None  # the last
        self._failure_count = self._refusal_count = self._timeout_count = 0

    async def run(self, use: Callable[[Circuit], Awaitable[T]]) -> T:
        """Use a circuit, and where that fails for its or its exit's fault, another.

        Raises what `use` does where another try is of no use, TimedOut, NoPath, or what made circuits fail.
        """
        if self._begun is not None:
            if self._begun.failure is not None:
                self._note_failure(self._begun.circuit, self._begun.failure)
            else:
                self._begun.close()
                self._note_timeout(self._begun.circuit)
        while self._may_go_on and (circuit := await self._acquire()) is not None:
            try:
                with trio.move_on_after(self._timeout):
                    result = await use(circuit)
                    circuit.watch.note_used()
                    return result
                self._note_timeout(circuit)
            except (PeerError, Closed) as error:
                self._note_failure(circuit, error)
        raise self._failure or TimedOut("no exit has answered")

    @property
    def _may_go_on(self) -> bool:
        return (
            self._failure_count < MAX_FAILURES
            and self._refusal_count < MAX_REFUSALS
            and trio.current_time() < self._give_up_at
        )

    @property
    def _timeout(self) -> float:
        """Seconds that the next attempt gets."""
        return ATTEMPT_TIMEOUTS[min(self._timeout_count, len(ATTEMPT_TIMEOUTS) - 1)]

    async def _acquire(self) -> Circuit | None:
        """A circuit to an exit that was not tried; None where what failed before says more than why not."""
        refusing = self._refusals.exits_refusing(self._need.isolation, self._host, self._port) - self._exits
        try:
            try:
                return await self._acquire_without(self._exits | refusing)
            except NoPath:
                if not refusing:
                    raise
            return await self._acquire_without(self._exits)  # they may have changed their mind
        except NoPath:
            if not self._exits:
                raise
            return None

    async def _acquire_without(self, excluded: Collection[bytes]) -> Circuit | None:
        """A circuit to another exit than `excluded`; None when time is up."""
        try:
            return await self._circuits.acquire(self._need._replace(excluded=excluded), self._give_up_at)
        except TimedOut as error:
            if self._failure is None or _reason_of(self._failure) in _BROKEN_CIRCUIT:
                self._failure = error  # why there was no other circuit says more than how one ended
            return None

    def _note_timeout(self, circuit: Circuit) -> None:
        """Nobody has answered in time."""
        self._exits.add(circuit.path[-1].identity)
        self._timeout_count += 1
        circuit.watch.note_given_up()
        self._circuits.retire(circuit)

    def _note_failure(self, circuit: Circuit, error: TorkitError) -> None:
        """Learn from what was the end of an attempt. Raises it where another one is of no use."""
        exit_identity = circuit.path[-1].identity
        self._exits.add(exit_identity)
        self._failure = error
        reason = _reason_of(error)
        address = error.address if isinstance(error, StreamClosed) else None
        if reason in _BROKEN_CIRCUIT:
            self._failure_count += 1
            circuit.watch.note_broken()
            circuit.close()
            return
        if reason is not EndReason.INTERNAL:
            circuit.watch.note_used()
        if reason in _UNCERTAIN:
            self._failure_count += 1
            self._circuits.retire(circuit)
        elif reason is EndReason.EXITPOLICY and address is not None:
            if circuit.refuses(address):
                raise error  # so it is everywhere
            self._refusal_count += 1
            self._refusals.note_target(exit_identity, self._need.isolation, self._host, self._port)
        elif reason is EndReason.EXITPOLICY or reason in _NO_EXIT:
            self._refusal_count += 1
            self._refusals.note_exit(exit_identity)
            self._circuits.retire_exit(exit_identity)
        else:
            raise error  # the target's answer
        circuit.watch.note_given_up()
        if self._refusal_count and self._need.path is not None:
            raise error


def _reason_of(failure: TorkitError) -> EndReason:
    """Why an attempt failed: what is not a stream's end was its circuit's."""
    return failure.reason if isinstance(failure, StreamClosed) else EndReason.DESTROY
