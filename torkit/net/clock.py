"""Notices that this computer was suspended: its wall clock went on, and the clock of timeouts did not."""

import time

import trio

# Implementation limits, seconds.
CLOCK_CHECK = 60.0  # between looks at the wall clock
MIN_JUMP = 100.0  # a smaller jump is a clock being set, or a busy machine (as C tor)


class ClockWatch:
    """Asked now and then. A wall clock that somebody sets ahead looks the same, and does no harm."""

    def __init__(self) -> None:
        self._ahead = time.time() - trio.current_time()

    def has_jumped(self) -> bool:
        """Returns whether the wall clock has run ahead of the other one since the last call."""
        before, self._ahead = self._ahead, time.time() - trio.current_time()
        return self._ahead > before + MIN_JUMP
