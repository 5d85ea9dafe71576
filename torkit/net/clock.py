"""Notices that this computer was suspended: its wall clock went on, and the clock of timeouts did not.

Also that somebody has set the wall clock, ahead or back. What a relay's clock has shown is kept against one
that nobody sets and that goes on in a suspend.
"""

import time

import trio

# Implementation limits, seconds.
CLOCK_CHECK = 60.0  # between looks at the wall clock
MIN_JUMP = 100.0  # a smaller jump is a clock being set, or a busy machine (as C tor)

# The seconds since the machine has started, suspends included; without them where there is no such clock.
SINCE_START = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def wall_ahead() -> float:
    """Returns how far the wall clock is ahead of SINCE_START. It changes only where the wall clock is set."""
    return time.time() - time.clock_gettime(SINCE_START)


def set_since(before: float) -> int:
    """Returns by how many seconds the wall clock was set ahead since `wall_ahead` gave `before`."""
    return round(wall_ahead() - before)


class ClockWatch:
    """Asked now and then. A wall clock that somebody sets ahead looks like a suspend, and does no harm."""

    def __init__(self) -> None:
        self._ahead = time.time() - trio.current_time()

    def jump(self, now: float) -> float:
        """Returns by how many seconds the wall clock has run ahead of trio's, `now`, since the last call.

        Less than 0 where it was set back; 0 for less than MIN_JUMP.
        """
        before, self._ahead = self._ahead, time.time() - now
        jump = self._ahead - before
        return jump if abs(jump) > MIN_JUMP else 0.0
