"""Counts what happens to circuits and streams, from the events of torkit.events."""

from collections import Counter

import trio

from torkit.events import (
    CLOSED_HERE,
    CircuitBuilt,
    CircuitEnded,
    CircuitLaunched,
    Event,
    StreamEnded,
    StreamFailed,
    StreamNew,
    StreamSucceeded,
)

GIVEN_UP = "given_up"  # the reason of a circuit that we gave up
UNKNOWN = "UNKNOWN"  # the purpose of a circuit that was launched before the count began


class Tally:
    """Counts from its making on. `note` gets every event.

    Purposes are control-spec's, reasons are the codes of events: a few words each, so these counters have an
    end. `last_success` is when a circuit was built or a stream was answered, on trio's clock.
    """

    def __init__(self) -> None:
        self.launched: Counter[str] = Counter()  # circuits, by purpose
        self.built: Counter[str] = Counter()
        self.not_built: Counter[str] = Counter()  # by reason
        self.ended: Counter[str] = Counter()  # that were built
        self.streams = 0  # asked for, look-ups included
        self.attempts_failed: Counter[str] = Counter()
        self.streams_failed: Counter[str] = Counter()  # streams and look-ups for which every attempt failed
        self.last_success: float | None = None
        self._building: dict[int, str] = {}  # purposes, by circuit
        self._answered: set[int] = set()

    def note(self, event: Event) -> None:
        match event:
            case StreamNew():
                self.streams += 1
            case StreamSucceeded():
                self._answered.add(event.stream)
                self.last_success = trio.current_time()
            case StreamEnded():
                if event.stream in self._answered:
                    self._answered.discard(event.stream)
                else:
                    self.streams_failed[event.code] += 1
            case StreamFailed():
                self.attempts_failed[event.code] += 1
            case CircuitLaunched():
                self.launched[event.purpose] += 1
                self._building[event.circuit] = event.purpose
            case CircuitBuilt():
                self.built[self._building.pop(event.circuit, UNKNOWN)] += 1
                self.last_success = trio.current_time()
            case CircuitEnded():
                if self._building.pop(event.circuit, None) is None:
                    self.ended[event.code] += 1
                else:
                    self.not_built[GIVEN_UP if event.code == CLOSED_HERE else event.code] += 1
