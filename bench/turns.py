"""How long the relays' sockets wait for their next turn, and how long one call of the core takes."""

import os
import time
from contextlib import suppress
from typing import Any

import trio

from torkit.net.link.pump import Pump

SCHEDULED = "/proc/thread-self/schedstat"  # nanoseconds that a thread ran, and that it waited for a processor


class Turns(trio.abc.Instrument):
    """Watches the pump of the run that it is made in (torkit/net/link/pump.py).

    Three figures in seconds, each the longest since the last `take`. `turn`: from when the core has returned,
    or trio's sleep ended, to when the core is called again, less what the thread waited for a processor,
    where the kernel tells. `turn_cpu`: this thread's CPU meanwhile. `call`: its CPU in one call of the core.
    """

    def __init__(self) -> None:
        pump = Pump.current()
        self._core = pump._core
        pump._core = self  # type: ignore[assignment]  # in the core's place
        self._scheduled = -1
        with suppress(OSError):
            self._scheduled = os.open(SCHEDULED, os.O_RDONLY)
        self.turn = self.turn_cpu = self.call = 0.0
        self._begin()
        trio.lowlevel.add_instrument(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def _begin(self) -> None:
        self._cpu = time.thread_time()
        self._now = self._clock()

    def _clock(self) -> float:
        """Seconds that stand still while this thread waits for a processor."""
        if self._scheduled < 0:
            return time.monotonic()
        return time.monotonic() - 1e-9 * int(os.pread(self._scheduled, 64, 0).split()[1])

    def run(self, *arguments: Any) -> Any:
        began = time.thread_time()
        self.turn = max(self.turn, self._clock() - self._now)
        self.turn_cpu = max(self.turn_cpu, began - self._cpu)
        try:
            return self._core.run(*arguments)
        finally:
            self.call = max(self.call, time.thread_time() - began)
            self._begin()

    def after_io_wait(self, timeout: float) -> None:
        self._begin()

    def take(self) -> dict[str, float]:
        """The longest of each so far. From now on they are counted anew."""
        taken = {"turn": self.turn, "turn_cpu": self.turn_cpu, "call": self.call}
        self.turn = self.turn_cpu = self.call = 0.0
        return taken
