"""Whether this computer was suspended: its wall clock goes on then, and the clock of timeouts does not."""

import time

import trio

# Implementation limits, seconds.
CLOCK_CHECK = 60.0  # between looks at the wall clock
MIN_JUMP = 100.0  # a smaller one is a clock being set, or a machine that was busy; as C tor


class ClockWatch:
    """Asked now and then; a wall clock that somebody sets ahead looks the same, and does no harm."""

    def __init__(self) -> None:
        self._ahead = time.time() - trio.current_time()

    def has_jumped(self) -> bool:
        """Returns whether the wall clock has run ahead of the other since this was asked last."""
        before, self._ahead = self._ahead, time.time() - trio.current_time()
        return self._ahead > before + MIN_JUMP
