"""The search for a key whose address begins as somebody wishes, by one process for each processor.

Each key is tried from a seed of its own, 32 bytes of the system's randomness, as any new key is made: whoever
knows one key of a search learns nothing of another. The seed that fits comes back through a pipe, and no seed
is written to a file.
"""

import math
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from torkit.cli import progress
from torkit.cli.voice import say
from torkit.errors import NotPossible, UsageError
from torkit.hs.keys import KEY_LEN, SecretKey, public_key_of
from torkit.hs.prefix import Prefix

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

BATCH = 1024  # keys that a process tries between two words to its parent, some 30 ms
MEASURED_AFTER = 0.5  # seconds until the search's rate is known well enough for an estimate
MAX_TIME = 365 * 86400.0  # seconds: what is expected to take longer is refused
SHOWN_EVERY = 0.2  # seconds


def find_key(prefix: Prefix) -> SecretKey:
    """Returns a new key with this prefix; says how long that may take, and how far it has come.

    Raises UsageError where it would take longer than MAX_TIME, NotPossible where no process goes on.
    """
    from multiprocessing import get_context
    from multiprocessing.connection import wait

    from torkit._fast.keys import wipe

    fork = get_context("fork")
    processes = []
    pipes: list[Connection] = []
    try:
        # A child is forked with SIGINT held back, until it ignores it: ^C is for us, and we end the children.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in os.sched_getaffinity(0):
                ours, theirs = fork.Pipe(duplex=False)
                pipes.append(ours)
                with theirs:
                    process = fork.Process(target=_search, args=(prefix, os.getpid(), theirs), daemon=True)
                    process.start()
                processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        report = _Report(prefix, len(processes))
        while pipes:
            ready = wait(pipes, timeout=progress.TICK)
            for pipe in [one for one in pipes if one in ready]:
                try:
                    seed = pipe.recv_bytes()
                except EOFError:  # somebody has ended it
                    pipes.remove(pipe)
                    pipe.close()
                    continue
                if seed:
                    try:
                        return SecretKey.from_seed(seed)
                    finally:
                        wipe(seed)
                report.add(BATCH)
            report.show()
    finally:
        progress.erase()
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()
    raise NotPossible("the processes that searched have been ended")


def _search(prefix: Prefix, parent: int, pipe: "Connection") -> None:
    """Try keys, and tell of each BATCH by an empty message, until one fits or the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    urandom, fits = os.urandom, prefix.fits
    with suppress(BrokenPipeError):
        while os.getppid() == parent:
            for _ in range(BATCH):
                seed = urandom(KEY_LEN)
                if fits(public_key_of(seed)):
                    pipe.send_bytes(seed)
                    return
            pipe.send_bytes(b"")


class _Report:
    """Tells how long a search may take, once, and then how far it has come."""

    def __init__(self, prefix: Prefix, process_count: int) -> None:
        self._prefix = prefix
        self._process_count = process_count
        self._began = time.monotonic()
        self._tries = 0
        self._has_estimate = False
        self._shown_at = MEASURED_AFTER - SHOWN_EVERY  # seconds of work
        self._view = progress.Work()

    def add(self, count: int) -> None:
        self._tries += count

    def show(self) -> None:
        """Say what is due. Raises UsageError where it would take too long."""
        seconds = time.monotonic() - self._began
        if seconds < self._shown_at + SHOWN_EVERY or not self._tries:
            return
        self._shown_at = seconds
        rate = self._tries / seconds
        mean = self._prefix.mean_tries
        if not self._has_estimate:
            self._has_estimate = True
            self._say_estimate(mean, rate)
        ended = 1 - math.exp(-self._tries / mean)  # tries are independent of each other
        self._view.show(int(100 * ended), seconds, f"{self._tries:,} keys, {rate:,.0f} a second")

    def _say_estimate(self, mean: int, rate: float) -> None:
        text = self._prefix.text
        many = f"{rate:,.0f} keys a second on {self._process_count} processors"
        if mean / rate > MAX_TIME:
            raise UsageError(
                f"{text!r} takes one key in {mean:,}: {to_duration(mean / rate)} at {many}",
                hint="one character less takes a 32nd of that time",
            )
        say(f"{text!r} takes one key in {mean:,}: {to_duration(mean / rate)} on average, at {many}")


def to_duration(seconds: float) -> str:
    """Returns a time in words, as precise as an average is worth."""
    for name, length in (("year", 365 * 86400), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {name}s"
    return f"{seconds:.0f} s" if seconds >= 2 else f"{seconds:.1f} s"
