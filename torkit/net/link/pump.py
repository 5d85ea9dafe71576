"""The pump of one trio run: moves bulk data while trio sleeps. The compiled part is _fast/pump.

To wake a task for every burst costs more than to decrypt the burst. So trio is left out: just before it would
wait for the system, the pump looks at its own sockets. While data flows, the pump waits in trio's place,
until trio has something to do: a task's socket, a deadline, another thread. Handlers run here, between the
steps of tasks, one after the other. They never wait.

trio drops an instrument that raises, and everything would stand still without a word. So the pump raises
nothing: an exception ends the owner that it belongs to. An exception that belongs to nobody fails every
owner, and `wait_fault` raises it.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import NamedTuple, NoReturn, Protocol

import trio
from trio.lowlevel import RunVar

from torkit._fast import memory
from torkit._fast.channel import Channel
from torkit._fast.events import Event
from torkit._fast.pump import Pump as CorePump
from torkit._fast.sources import Link, Local, LocalEvent
from torkit._fast.tls import Tls
from torkit.errors import InternalError
from torkit.net.faults import log_fault

# Implementation limits, seconds. LINGER: how long after the last byte the pump still waits in trio's place. A
# relay's bursts come every 10 ms, but for the pauses of congestion control. A nearer deadline is left to
# trio, and so is never missed.
LINGER = 0.1

# After so long, or twice that, trio's sockets, deadlines and signals have their turn, however much there is
# to move.
TURN = 0.015

# How often in a row the core may lack the memory even to tell what has ended for lack of memory.
MAX_FAILED_TURNS = 100

# A step of a task, or a handler, that takes so long is logged: everything else has waited for it.
STALL = 0.5

# The least time between two warnings that the memory limit was passed.
MEMORY_WARNING = 60.0

# After the pump has waited, the timeout that trio computed before is out of date: trio computes it anew.
STALE = 0.002

logger = logging.getLogger(__name__)


class Owner(Protocol):
    """The pump tells an owner what happened on its socket."""

    def on_fault(self, error: InternalError) -> None:
        """Let go of the socket after a fault of ours, in a handler or in the core. Must not raise."""


class LinkOwner(Owner, Protocol):
    """Owns a connection to a relay."""

    def on_events(self, events: list[Event]) -> None:
        """Handle what the relay has sent, except data that sinks have taken."""


class LocalOwner(Owner, Protocol):
    """Owns a socket of this machine, a pipe or a file."""

    def on_local(self, event: LocalEvent) -> None:
        """Handle what happened on the source, except bytes that the core has moved."""


class Pump(trio.abc.Instrument):
    """Moves bytes for the trio run that `current` is called in."""

    def __init__(self) -> None:
        self._core = CorePump()
        self._inside = _inside_of_trio()
        self._error: InternalError | None = None  # nothing moves any more
        self._has_failed = trio.Event()
        self._stalls = Stalls(time.monotonic())
        self._failed_turns = 0  # in a row, for lack of memory
        self._told_of_memory = 0  # circuits and links that were ended for holding most
        self._told_of_memory_at = -inf
        self.watch_reading = self._core.watch_reading
        self.watch_writing = self._core.watch_writing
        self.remove = self._core.remove

    @staticmethod
    def current() -> "Pump":
        """Returns the pump of this trio run; the first call makes it."""
        try:
            return _current.get()
        except LookupError:
            pump = Pump()
            _current.set(pump)
            trio.lowlevel.add_instrument(pump)
            trio.lowlevel.spawn_system_task(pump._watch)
            return pump

    def add_link(self, tls: Tls, channel: Channel, owner: LinkOwner) -> Link:
        """As the core's. Raises InternalError where the pump has failed."""
        self._check()
        return self._core.add_link(tls, channel, owner)

    def add_local(self, descriptor: int, owner: LocalOwner | None, is_pipe: bool = False) -> Local:
        """As the core's. Raises InternalError where the pump has failed."""
        self._check()
        return self._core.add_local(descriptor, owner, is_pipe)

    async def wait_fault(self) -> NoReturn:
        """Wait until an exception that belongs to nobody has failed the pump. Raises InternalError."""
        await self._has_failed.wait()
        assert self._error is not None
        raise self._error

    def _check(self) -> None:
        if self._error is not None:
            raise InternalError(str(self._error)) from self._error

    async def _watch(self) -> None:
        """Have trio wake when there is something to do: `before_io_wait` follows."""
        while self._error is None:
            await trio.lowlevel.wait_readable(self._core.descriptor)

    @property
    def stalled_seconds(self) -> float:
        """Returns the seconds of all stalls so far."""
        return self._stalls.total

    def excuse(self, began: float, stalled_seconds: float) -> bool:
        """Returns whether it is our fault that an answer awaited since `began` is late.

        `began` is time.monotonic's, `stalled_seconds` the value at that time.
        """
        return self._stalls.excuse(began, stalled_seconds, time.monotonic())

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._stalls.begin(task, time.monotonic())

    def before_io_wait(self, timeout: float) -> None:
        """Called by trio when every task that could run has run."""
        now = time.monotonic()
        self._stalls.begin(None, now)
        if self._error is None:
            try:
                self._turn(timeout)
            except BaseException as error:
                self._fail(error)
        self._stalls.sleep(time.monotonic(), now + timeout)

    def after_io_wait(self, timeout: float) -> None:
        self._stalls.wake(time.monotonic())

    def _turn(self, timeout: float) -> None:
        started = time.monotonic()
        left = timeout
        other, has_runnable, wake_trio = self._inside
        while True:
            try:
                found = self._core.run(other if left > LINGER else -1, left, LINGER, TURN)
                self._failed_turns = 0
            except MemoryError:
                self._failed_turns += 1
                if self._failed_turns > MAX_FAILED_TURNS:
                    raise
                wake_trio()  # nothing is lost: another turn, soon
                return
            self._stalls.wake(time.monotonic(), started + timeout)
            if self._core.ended_for_memory != self._told_of_memory:
                self._tell_of_memory()
            stalls = self._stalls
            for owner, what in found:
                now = time.monotonic()  # as `Stalls.begin`, without a call for each event
                if now - stalls.since > STALL:
                    stalls.note(now)
                stalls.who, stalls.since = owner, now
                if isinstance(what, InternalError):
                    self._end(owner, what)
                    continue
                try:
                    if isinstance(what, LocalEvent):
                        owner.on_local(what)
                    else:
                        owner.on_events(what)
                except Exception as error:
                    self._end(owner, InternalError.ending("a connection", error))
            elapsed = time.monotonic() - started
            self._stalls.begin(None, started + elapsed)
            if timeout <= 0:
                return
            left = timeout - elapsed
            if not found or has_runnable() or left <= 0 or elapsed >= TURN:
                break
        if found or elapsed > STALE:
            wake_trio()

    def _tell_of_memory(self) -> None:
        """Warn, at most once in MEMORY_WARNING, that the greatest holders of memory were ended."""
        now = time.monotonic()
        if now - self._told_of_memory_at < MEMORY_WARNING:
            return
        count = self._core.ended_for_memory - self._told_of_memory
        self._told_of_memory, self._told_of_memory_at = self._core.ended_for_memory, now
        what = "the circuit or connection" if count == 1 else f"{count} circuits or connections"
        logger.warning("more than %d MiB waited: ended %s that held most", memory.limit() >> 20, what)

    def _end(self, owner: Owner, error: InternalError) -> None:
        """Fail one owner. The others go on, even if this one raises."""
        log_fault(error)
        try:
            owner.on_fault(error)
        except Exception as second:
            log_fault(InternalError.ending("a connection without a word to its users", second))
            self._core.forget(owner)

    def _fail(self, cause: BaseException) -> None:
        """Fail every owner: it is unknown whose fault `cause` was, and what is left half done."""
        self._error = InternalError.ending("every connection", cause)
        self._has_failed.set()
        for owner in self._core.owners():
            self._end(owner, self._error)
        self._inside.wake_trio()


class Stalls:
    """Knows which task or owner runs, and logs one that kept all others waiting for longer than STALL.

    Times are time.monotonic's. A machine or process that was stopped while it slept is no task's stall. A
    relay whose time was up meanwhile is not to blame either: `excuse` tells.
    """

    def __init__(self, now: float) -> None:
        self.total = 0.0  # seconds of all stalls so far
        self._last = -inf  # when the last one ended
        self.who: object = None
        self.since = now
        self._wakes_at = inf

    def begin(self, who: object, now: float) -> None:
        """A task or an owner runs from now on; None stands for trio and the pump themselves."""
        if now - self.since > STALL:
            self.note(now)
        self.who, self.since = who, now

    def sleep(self, now: float, wakes_at: float) -> None:
        """Note that nothing runs until `wakes_at` at the latest."""
        self.begin(None, now)
        self._wakes_at = wakes_at

    def wake(self, now: float, wakes_at: float | None = None) -> None:
        """Note that the system lets us run again."""
        if now - self.since > STALL:
            late = now - max(self._wakes_at if wakes_at is None else wakes_at, self.since)
            if late > STALL:
                self._count(now, late)
        self.who, self.since = None, now

    def excuse(self, began: float, total: float, now: float) -> bool:
        """Returns whether a peer that was waited for since `began` had no fair time to answer.

        It had none if the loop ran for less than half of that time, or has hardly run again. If any stall
        were an excuse, a dead relay would be asked for ever on a busy machine. `total` is the value at
        `began`.
        """
        return now - self._last < STALL or 2 * (self.total - total) > now - began

    def _count(self, now: float, seconds: float) -> None:
        self._last = now
        self.total += seconds

    def note(self, now: float) -> None:
        """Log that `who` has run for longer than STALL, until `now`."""
        seconds, who = now - self.since, self.who
        self._count(now, seconds)
        name = who.name if isinstance(who, trio.lowlevel.Task) else type(who).__qualname__
        where = "the pump" if who is None else name
        logger.warning("everything stood still for %.1f s in %s", seconds, where)


_current: RunVar[Pump] = RunVar("torkit pump")


class _Inside(NamedTuple):
    """What the pump needs of trio's loop, and trio does not publish.

    `descriptor` is readable when trio has something to do; `has_runnable` tells whether tasks can run;
    `wake_trio` keeps trio from sleeping, or from sleeping on.
    """

    descriptor: int
    has_runnable: Callable[[], bool]
    wake_trio: Callable[[], None]


def _inside_of_trio() -> _Inside:
    """Returns what trio has of it.

    Where something is missing, or where another loop hosts trio (guest mode), the descriptor is -1: trio then
    waits by itself, and everything works, at trio's price. To wake trio as other threads do, by its queue of
    calls, takes a step of a task more.
    """
    from trio._core._run import GLOBAL_RUN_CONTEXT

    runner = GLOBAL_RUN_CONTEXT.runner
    token = trio.lowlevel.current_trio_token()
    try:
        is_guest, runq = runner.is_guest, runner.runq
        descriptor = -1 if is_guest else runner.io_manager._epoll.fileno()
        wake_trio = runner.io_manager.force_wakeup
    except AttributeError:
        return _Inside(-1, lambda: True, partial(token.run_sync_soon, _do_nothing, idempotent=True))
    return _Inside(descriptor, lambda: bool(runq), wake_trio)


def _do_nothing() -> None:
    """Do nothing, so that trio looks at its clock and its tasks."""
