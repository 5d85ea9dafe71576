"""Writes down what this client has learnt, and reads what earlier starts have written."""

import logging
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Protocol

import trio

from torkit.directory.cache import Cache
from torkit.errors import DocumentError, OutOfResources, StorageError, TorkitError
from torkit.net.shortage import run_in_thread
from torkit.paths.constraints import Constraints
from torkit.paths.guards import Guards

SAVE_INTERVAL = 600.0  # seconds between writes of what changes all the time (as C tor)
SAVE_RETRY = 60.0  # implementation limit: seconds after a failed write, in which no change makes another

logger = logging.getLogger(__name__)


class Part(Protocol):
    """A part of the state file."""

    has_changed: bool  # since the last write

    def to_state(self) -> dict[str, Any]:
        """Returns JSON values, under names of its own."""


class StateFile:
    """The state of one data directory, which other processes may use, too."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._lock = trio.Lock()
        self._parts: list[Part] = []
        self._watched: list[Part] = []
        self._has_warned = False  # that the last write has failed
        self._is_waiting = False  # a change, for its turn to be written
        self._retry_at = -inf

    def add(self, part: Part, *, is_watched: bool) -> None:
        """Keep `part`.

        It is written when it has changed, if `is_watched`; else only where the file was lost.
        """
        self._parts.append(part)
        if is_watched:
            self._watched.append(part)

    async def agree(self, values: dict[str, Any]) -> dict[str, Any]:
        """Keep these JSON values where the file has none yet. Returns all values of the file then.

        Raises StorageError, OutOfResources.
        """
        async with self._lock:
            # abandon_on_cancel: another process may hold the file's lock for seconds.
            return await run_in_thread(self._cache.add_to_state, values, abandon_on_cancel=True)

    def save_soon(self, nursery: trio.Nursery) -> None:
        """Write a change down in a task, unless the next write will have it, or the last has just failed."""
        if not self._is_waiting and trio.current_time() >= self._retry_at:
            self._is_waiting = True
            nursery.start_soon(self._save_change)

    async def _save_change(self) -> None:
        async with self._lock:
            self._is_waiting = False
            if trio.current_time() >= self._retry_at:
                await self._save()

    async def save(self) -> None:
        """Write down the parts that have changed."""
        async with self._lock:
            await self._save()

    async def _save(self) -> None:
        changed = [part for part in self._watched if part.has_changed]
        if not changed:
            return
        try:
            if (aside := await self._write(changed)) is not None:
                logger.warning("the state could not be read any more, and is kept as %s", aside)
                await self._write(self._parts)
            self._has_warned = False
        except (StorageError, OutOfResources) as error:
            for part in changed:
                part.has_changed = True  # written with a later change, or in a while
            self._retry_at = trio.current_time() + SAVE_RETRY
            self.note_unkept(error)

    def note_unkept(self, error: TorkitError) -> None:
        """Log why nothing could be written, once until a write succeeds."""
        if not self._has_warned:
            logger.warning("the guards could not be kept: %s", error)
        self._has_warned = True

    async def _write(self, parts: list[Part]) -> Path | None:
        values: dict[str, Any] = {}
        for part in parts:
            part.has_changed = False
            values |= part.to_state()
        return await run_in_thread(self._cache.update_state, values)

    async def keep(self) -> None:
        """Save now and then; never returns."""
        while True:
            await trio.sleep(SAVE_INTERVAL)
            await self.save()


def load_state(
    cache: Cache, restrictions: Constraints, rng: Random, now: float
) -> tuple[dict[str, Any], Guards]:
    """Returns what earlier starts have kept. Unreadable parts are logged, and stay in a file beside it."""
    try:
        state = cache.load_state() or {}
    except StorageError as error:
        logger.warning("the guards of earlier starts cannot be read: %s", error)
        state = {}
    guards, complaints = Guards.from_state(state, now=now, rng=rng, restrictions=restrictions)
    for complaint in complaints:
        logger.warning("left out of the state that was kept: %s", complaint)
    if complaints:
        try:
            aside = cache.correct_state(state, guards.to_state())
        except (DocumentError, StorageError) as error:
            logger.warning("the state cannot be set aside: %s", error)
        else:
            if aside is None:  # another process has corrected it, or has added to it
                return load_state(cache, restrictions, rng, now)
            logger.warning("the state as it was is kept as %s", aside)
    return state, guards
