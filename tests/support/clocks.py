"""Clocks for trio. No tests here."""

from math import inf

import trio


class HastyClock(trio.abc.Clock):
    """A millisecond passes whenever somebody looks at it, and trio looks all the time.

    For what goes wrong where a deadline passes between one look and the next.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        self._now += 0.001
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0 if deadline < inf else inf
