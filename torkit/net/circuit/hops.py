"""Adds hops to a circuit, each as soon as the one before it is there.

The handler of an answer sends the next handshake. No task is woken between two hops: that took a turn of
trio's loop for each, and 14 to 28 % of a circuit's CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from torkit._fast.cells import Command, RelayCommand
from torkit.errors import CircuitClosed, TorkitError

if TYPE_CHECKING:
    from torkit.directory.directory import Relay


class HopCircuit(Protocol):
    """A circuit, as far as adding hops to it needs to know it."""

    path: tuple[Relay, ...]

    def begin_hop(
        self,
        relay: Relay | None,
        then: Callable[[Exception | None], None],
        *,
        is_last: bool,
        keeps_kh: bool,
    ) -> None: ...
    def give_up_hop(self) -> None: ...


class Hops:
    """Adds these relays behind the hops that a circuit has; begins at once. `has_ended` is set at the end."""

    def __init__(
        self,
        circuit: HopCircuit,
        relays: Sequence[Relay | None],
        *,
        ends_at_exit: bool,
        keeps_kh: bool = False,
        on_hop: Callable[[int], None] | None = None,
    ) -> None:
        """A relay that is None gets CREATE_FAST. With `ends_at_exit` the last one gets the handshake of
        exits, every other that of middle relays. With `keeps_kh` the circuit keeps KH of the last. `on_hop`
        is called with the number of hops added so far, before the next one is begun; what it raises ends the
        work.
        """
        self.has_ended = trio.Event()
        self.count = 0  # hops that were added
        self._circuit = circuit
        self._relays = relays
        self._ends_at_exit = ends_at_exit
        self._keeps_kh = keeps_kh
        self._on_hop = on_hop
        self._failure: Exception | None = None
        self._begin_next()

    async def wait(self) -> None:
        """Wait until all hops are there. Raises what kept one from it."""
        try:
            await self.has_ended.wait()
        finally:
            if not self.has_ended.is_set():
                self._circuit.give_up_hop()
        self.check()

    def check(self) -> None:
        """Raise what kept a hop from being added, now that the work has ended."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            try:
                raise failure
            finally:
                del failure  # else its traceback would hold this call, which holds it

    def _begin_next(self) -> None:
        try:
            is_last = self.count + 1 == len(self._relays)
            self._circuit.begin_hop(
                self._relays[self.count],
                self._note,
                is_last=is_last and self._ends_at_exit,
                keeps_kh=is_last and self._keeps_kh,
            )
        except Exception as error:
            self._note(error)

    def _note(self, failure: Exception | None) -> None:
        """A hop was added, or could not be."""
        if failure is not None:
            if isinstance(failure, CircuitClosed) and failure.hop is None:
                failure.hop = len(self._circuit.path) + 1  # the one that could not be added
            self._end(failure)
            return
        self.count += 1
        try:
            if self._on_hop is not None:
                self._on_hop(self.count)
        except Exception as error:
            self._end(error)
            return
        if self.count < len(self._relays):
            self._begin_next()
        else:
            self._end(None)

    def _end(self, failure: Exception | None) -> None:
        self._failure = failure
        self._on_hop = None  # else whoever made it would wait, with it, for a collection of garbage
        self.has_ended.set()


class Handshake(Protocol):
    """Our half of a handshake."""

    def wipe(self) -> None: ...


class HopAnswer:
    """The answer to our half of a handshake: `finish` takes its body at once, `then` is told how that went.

    The secrets of our half are overwritten in any case.
    """

    def __init__(
        self,
        command: Command | RelayCommand,
        handshake: Handshake,
        finish: Callable[[bytes], None],
        then: Callable[[Exception | None], None],
    ) -> None:
        self.command = command
        self._handshake = handshake
        self._finish = finish
        self._then = then

    def on_body(self, body: bytes) -> None:
        try:
            try:
                self._finish(body)
            finally:
                self._handshake.wipe()
        except Exception as error:
            self._then(error)
        else:
            self._then(None)

    def on_end(self, error: TorkitError) -> None:
        """The circuit has ended instead."""
        self._handshake.wipe()
        self._then(error)

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self._handshake.wipe()
