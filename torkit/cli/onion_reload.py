"""Services that a file names, while the file changes: SIGHUP has it read again."""

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from torkit.cli.onion_services import Service, read_services
from torkit.cli.voice import say
from torkit.errors import TorkitError
from torkit.net.shortage import run_in_thread

# Seconds from the end of services until others begin. A descriptor is counted by the second in which it was
# made (hs/revision.py), and directories refuse another of the same service and second.
REST = 1.0


class _Running(NamedTuple):
    service: Service
    scope: trio.CancelScope
    is_over: trio.Event

    async def run(self, serve_one: Callable[[Service], Awaitable[None]]) -> None:
        try:
            with self.scope:
                await serve_one(self.service)
        finally:
            self.is_over.set()


class Reload:
    """`run` it in a task; `note_hangup` is what a SIGHUP calls."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._had_terminal = _has_terminal()
        self._is_due = trio.Event()
        self._running: dict[str, _Running] = {}  # by name

    def note_hangup(self) -> bool:
        """Have the file read again. Returns False where our terminal has gone, which ends every command."""
        if self._had_terminal and not _has_terminal():
            return False
        self._is_due.set()
        return True

    async def run(self, wanted: Sequence[Service], serve_one: Callable[[Service], Awaitable[None]]) -> None:
        """Run these, and from then on what the file names when it is read again; never returns.

        `serve_one` runs a service until it is cancelled. Where the file cannot be used, all go on.
        """
        async with trio.open_nursery() as nursery:
            self._begin(wanted, serve_one, nursery)
            while True:
                await self._is_due.wait()
                self._is_due = trio.Event()  # from here on, a SIGHUP has it read once more
                try:
                    wanted = await run_in_thread(read_services, self._file, abandon_on_cancel=True)
                except TorkitError as error:
                    say(f"{error}; the services go on as they were")
                    continue
                ended = await self._end_others(wanted)
                begun = self._begin(wanted, serve_one, nursery)
                say(f"{self._file} was read again; ended: {_listed(ended)}; begun: {_listed(begun)}")

    async def _end_others(self, wanted: Sequence[Service]) -> list[str]:
        """End what is described otherwise now, or not at all. Returns the names."""
        described = {service.name: _description(service) for service in wanted}
        ending = [
            name for name, one in self._running.items() if described.get(name) != _description(one.service)
        ]
        for name in ending:
            self._running[name].scope.cancel()
        for name in ending:  # before another begins, which may have its key
            await self._running.pop(name).is_over.wait()
        if ending:
            await trio.sleep(REST)
        return ending

    def _begin(
        self,
        wanted: Sequence[Service],
        serve_one: Callable[[Service], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> list[str]:
        """Begin what does not run yet. Returns the names."""
        beginning = [service for service in wanted if service.name not in self._running]
        for service in beginning:
            running = self._running[service.name] = _Running(service, trio.CancelScope(), trio.Event())
            nursery.start_soon(running.run, serve_one)
        return [service.name for service in beginning]


def _description(service: Service) -> tuple[object, ...]:
    """What a file says of a service: keys are read anew each time, and equal where their public half is."""
    return service.targets, service.key and service.key.public, service.wishes


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _has_terminal() -> bool:
    """Returns whether a terminal controls us, and still exists."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
