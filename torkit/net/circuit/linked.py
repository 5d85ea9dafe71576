"""Two circuits to one exit that carry the streams of one tunnel. Proposal 329.

Order, and the choice of a leg for each message, are the core's (_fast/conflux). Here is the handshake by
which an exit links circuits, and how a set ends: with any of its legs, unless that one has carried nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from torkit._fast.cells import RelayCommand
from torkit._fast.conflux import LinkedSet, link
from torkit.errors import CircuitClosed, CircuitError, TorkitError
from torkit.events import CircuitsLinked, LegCarried, SetEnded
from torkit.net.circuit.tunnel import Tunnel
from torkit.params import parameter
from torkit.proto.conflux import Wish, encode_link, judge_linked

if TYPE_CHECKING:
    from torkit._fast.stream import Stream as CoreStream
    from torkit.directory.directory import Relay
    from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings

LINKED = "CONFLUX_LINKED"  # the purpose of sets in events, as C tor's controllers know it

logger = logging.getLogger(__name__)


class LegLinked(NamedTuple):
    """An exit has agreed to a leg; `rtt`, in seconds, is what that took, `wish` what it asks of us."""

    circuit: Circuit
    rtt: float
    wish: Wish


async def link_leg(circuit: Circuit, nonce: bytes) -> LegLinked:
    """Ask the last hop to take a circuit for a leg of the set of this nonce. Raises what ended the circuit.

    Deadlines are the caller's. An answer that is not to the question ends the circuit.
    """
    began = trio.current_time()
    body = await circuit.ask(RelayCommand.CONFLUX_LINK, encode_link(nonce), RelayCommand.CONFLUX_LINKED)
    try:
        wish = judge_linked(body, nonce)
    except CircuitError as error:
        circuit.fail(error)
        raise
    if circuit.error is not None:  # it ended in the same read as the answer
        raise circuit.error
    circuit.tell(RelayCommand.CONFLUX_LINKED_ACK, b"")
    return LegLinked(circuit, trio.current_time() - began, wish)


class LinkedCircuit(Tunnel):
    """Made of legs that were linked. It owns them: they end with it, and it with them."""

    sends_early = False  # (as C tor)

    def __init__(self, legs: Sequence[LegLinked], settings: CircuitSettings) -> None:
        circuits = [leg.circuit for leg in legs]
        # The wish of the leg that was linked last is the one that counts (as C tor).
        core = link(
            [one.core for one in circuits],
            [leg.rtt for leg in legs],
            legs[-1].wish.fills,
            parameter(settings.params, "cfx_max_oooq_bytes"),
        )
        super().__init__(core, settings, LINKED)
        self._core: LinkedSet = core
        core.owner = self
        self.legs = tuple(circuits)
        self.path = self.legs[0].path
        for circuit in circuits:
            circuit.linked = self
            circuit.on_end = self._on_leg_end
        numbers = tuple(one.id for one in circuits)
        logger.info("circuit %d is made of circuits %s, linked", self.id, " and ".join(map(str, numbers)))
        if self.journal.is_heard:
            self.journal.tell(CircuitsLinked(self.id, numbers, tuple(leg.rtt for leg in legs)))

    def __repr__(self) -> str:
        state = "open" if self.error is None else f"ended: {self.error}"
        legs = ", ".join(f"{one.circuit} carried {one.sent} + {one.received}" for one in self.carried())
        return f"<LinkedCircuit {self.id} of {legs or 'no legs'}, {self.stream_count} streams, {state}>"

    def carried(self) -> tuple[LegCarried, ...]:
        """Returns what each leg has carried that was not lost alone."""
        return tuple(LegCarried(one.id, *self._core.carried(one.core)) for one in self.legs)

    @property
    def paths(self) -> tuple[tuple[Relay, ...], ...]:
        return tuple(one.path for one in self.legs)

    @property
    def _hop(self) -> int:
        return self.legs[0].core.hop_count - 1

    @property
    def _has_xoff(self) -> bool:
        return True

    def _note_streams(self) -> None:
        for leg in self.legs:
            leg._note_streams()

    def bytes_under_way(self, core: CoreStream) -> int:
        return self._core.queued_bytes + sum(leg.bytes_under_way(core) for leg in self.legs)

    def _on_leg_end(self, leg: Tunnel) -> None:
        assert leg.error is not None
        if self._core.has_ended:
            self.fail(leg.error)
        else:  # it had carried nothing
            self.legs = tuple(one for one in self.legs if one is not leg)
            self.path = self.legs[0].path

    def close(self, why: str = "nobody needs it any more") -> None:
        self._end(CircuitClosed(f"the circuit was closed here: {why}"), why)

    def fail(self, error: TorkitError) -> None:
        self._end(error, "another leg of its set has ended")

    def _end(self, error: TorkitError, why: str) -> None:
        if self._error is not None:
            return
        self._error = error.anew()  # the other may be raised
        if self.journal.is_heard:
            self.journal.tell(SetEnded(self.id, str(error), self.carried()))
        self._core.end()
        for leg in self.legs:
            leg.close(why)
            leg.linked = None
        self._core.owner = None
        self._fail_streams(error)
