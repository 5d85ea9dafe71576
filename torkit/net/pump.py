"""The pump of one trio run: moves bulk data while trio sleeps. What moves it is compiled (_fast/pump).

A task woken for every burst costs more than the burst's decryption. So trio is not asked: just before it
would wait for the system, the pump looks at its own sockets, and while data flows it waits in trio's place,
until something happens that is trio's: a socket of a task's, a deadline, another thread. Handlers run here,
between the steps of tasks, one after the other; they never wait.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import trio
from trio.lowlevel import RunVar

from torkit._fast.pump import Pump as CorePump

# Implementation limits, seconds. So long after the last byte the pump still waits in trio's place: a relay's
# bursts come every 10 ms, but for the pauses of congestion control. A deadline nearer than that is left to
# trio, and so is never missed.
LINGER = 0.1

# What trio has computed before the pump waited is out of date then, and has to be computed anew.
STALE = 0.002

logger = logging.getLogger(__name__)


class Owner(Protocol):
    """Whom the pump tells what happened on a socket (_fast/pump says what)."""

    def on_pump(self, what: Any) -> None: ...

    def on_fault(self) -> None:
        """`on_pump` has raised, which is a fault of ours: let go of the socket."""


class Pump(trio.abc.Instrument):
    """Of the trio run that `current` is called in."""

    def __init__(self) -> None:
        self._core = CorePump()
        self._token = trio.lowlevel.current_trio_token()
        self._inside = _inside_of_trio()
        self.add_link = self._core.add_link
        self.add_local = self._core.add_local
        self.watch_reading = self._core.watch_reading
        self.watch_writing = self._core.watch_writing
        self.remove = self._core.remove

    @staticmethod
    def current() -> "Pump":
        """Made at the first call, and gone with the run."""
        try:
            return _current.get()
        except LookupError:
            pump = Pump()
            _current.set(pump)
            trio.lowlevel.add_instrument(pump)
            trio.lowlevel.spawn_system_task(pump._watch)
            return pump

    async def _watch(self) -> None:
        """Have trio wake when there is something to do: `before_io_wait` follows."""
        while True:
            await trio.lowlevel.wait_readable(self._core.descriptor)

    def before_io_wait(self, timeout: float) -> None:
        """Called by trio when every task that could run has run."""
        started = time.monotonic()
        left = timeout
        other, has_runnable = self._inside
        while True:
            found = self._core.run(other if left > LINGER else -1, left, LINGER)
            for owner, what in found:
                try:
                    owner.on_pump(what)
                except Exception as error:
                    # It must not stop what else is carried. Its text may name a destination.
                    debugging = logger.isEnabledFor(logging.DEBUG)
                    name = type(error).__name__
                    logger.warning("a connection failed: internal %s", name, exc_info=debugging)
                    owner.on_fault()
            if timeout <= 0:
                return
            elapsed = time.monotonic() - started
            left = timeout - elapsed
            if not found or has_runnable() or left <= 0:
                break
        if found or elapsed > STALE:
            self._token.run_sync_soon(_do_nothing, idempotent=True)


_current: RunVar[Pump] = RunVar("torkit pump")


def _do_nothing() -> None:
    """For trio to look at its clock and its tasks."""


def _inside_of_trio() -> tuple[int, Callable[[], bool]]:
    """What tells that trio has something to do: a descriptor that is readable then; whether tasks can run.

    trio does not publish these. Where they are not found, or where another loop hosts trio (guest mode), the
    descriptor is -1: trio then waits by itself, and everything works, at trio's price.
    """
    from trio._core._run import GLOBAL_RUN_CONTEXT

    runner = GLOBAL_RUN_CONTEXT.runner
    try:
        is_guest, runq = runner.is_guest, runner.runq
        descriptor = -1 if is_guest else runner.io_manager._epoll.fileno()
    except AttributeError:
        return -1, lambda: True
    return descriptor, lambda: bool(runq)
