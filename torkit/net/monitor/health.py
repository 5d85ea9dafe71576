"""Tells whether circuits work: one was built or has carried data lately, or is built now as a test."""

from collections.abc import Awaitable, Callable
from math import inf

import trio

from torkit._fast.stream import carried
from torkit.errors import TorkitError
from torkit.net.circuit.circuit import Circuit
from torkit.net.monitor.tally import Tally

# Implementation limits, seconds.
LATELY = 60.0  # how long a sign of life holds; an idle client builds no circuit of its own for hours
PROBE_TIMEOUT = 10.0  # until a circuit that is built to find out counts as failed


class Health:
    """Frequent questions cost an idle client one circuit in LATELY, and a failing one a build at a time."""

    def __init__(self, tally: Tally, build: Callable[[], Awaitable[Circuit]]) -> None:
        self._tally = tally
        self._build = build
        self._received = carried()[0]
        self._carried_at = -inf  # when there was seen to be more
        self._probing = trio.Lock()

    def has_lived(self) -> bool:
        """Returns whether a circuit was built, a stream answered, or data received, in LATELY."""
        now = trio.current_time()
        received, before = carried()[0], self._received
        if received != before:
            self._received, self._carried_at = received, now
        last = max(self._carried_at, -inf if self._tally.last_success is None else self._tally.last_success)
        return now - last < LATELY

    async def is_healthy(self) -> bool:
        """Returns the same, and where nothing has happened, whether a circuit can be built now."""
        async with self._probing:
            if self.has_lived():
                return True
            with trio.move_on_after(PROBE_TIMEOUT):
                try:
                    (await self._build()).close("it was built to see whether that works")
                except TorkitError:
                    return False
                return True
        return False
