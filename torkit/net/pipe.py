"""A stream on file descriptors: what `torkit connect` does between stdin and stdout.

The descriptors may be pipes, files, sockets, terminals or devices, and they are shared with the shell and
with other programs. So they are read and written by blocking calls in threads, which works for all of
them, and their flags are never changed: a descriptor made non-blocking would be so for everybody. A
thread that waits in a system call cannot be stopped; it is left behind when the pipe ends, and dies with
the process. One that was about to make its call makes none.
"""

import errno
import os
import select
from collections.abc import Awaitable, Callable
from contextlib import closing
from math import inf
from threading import Lock
from typing import Any, TypeVar

import trio

from torkit.errors import TimedOut, TorkitError

T = TypeVar("T")

READ_SIZE = 65_536  # bytes; what a Linux pipe holds, and some 130 cells


async def pipe(
    stream: trio.abc.Stream,
    *,
    source: int = 0,
    sink: int = 1,
    eof_timeout: float = inf,
    idle_timeout: float = inf,
) -> bool:
    """Carry `source` to `stream` and `stream` to `sink` until the peer ends the stream: then True.

    Tor has no half-close: the end of `source` cannot be told to the peer without ending both directions.
    It is not told, and what the peer sends is still carried; `eof_timeout` seconds after the end of
    `source`, or after the peer's last byte since, this returns False. `idle_timeout` seconds without a
    byte in either direction raise TimedOut.

    Raises what `stream` raises when it ended otherwise than in good order, and OSError when `source` or
    `sink` fail; BrokenPipeError as soon as nobody reads `sink`, even if nothing is to be written.
    The caller closes `stream`.
    """
    at_eof = False

    def touch() -> None:
        idle.deadline = trio.current_time() + (min(idle_timeout, eof_timeout) if at_eof else idle_timeout)

    async def upload() -> None:
        nonlocal at_eof
        while data := await _in_thread(reader, os.read, READ_SIZE):
            touch()
            try:
                await stream.send_all(data)
            except (TorkitError, trio.BrokenResourceError):
                break  # the stream is over; how it ended, and what came before, is for `download` to tell
            touch()
        else:
            at_eof = True
            touch()
        await trio.sleep_forever()

    async def download() -> None:
        while data := await stream.receive_some():
            touch()
            await _write_all(writer, data)
            touch()

    async def watch_sink() -> None:
        if await _in_thread(writer, _wait_for_hangup):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        await trio.sleep_forever()

    with (
        closing(Descriptor(source)) as reader,
        closing(Descriptor(sink)) as writer,
        trio.CancelScope() as idle,
    ):
        touch()
        await race(upload, download, watch_sink)
    if idle.cancelled_caught and not (at_eof and eof_timeout <= idle_timeout):
        raise TimedOut(f"nothing was sent or received for {idle_timeout:g} s")
    return not idle.cancelled_caught


async def race(*functions: Callable[[], Awaitable[None]]) -> None:
    """Run all until the first one returns or raises, and do as it did; the others are cancelled."""
    outcomes: list[Exception | None] = []

    async def run(function: Callable[[], Awaitable[None]]) -> None:
        try:
            await function()
            outcomes.append(None)
        except Exception as error:
            outcomes.append(error)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for function in functions:
            nursery.start_soon(run, function)
    if outcomes[0] is not None:
        raise outcomes[0]


class Descriptor:
    """A duplicate for threads. It lasts until `close`, and until the last of them is through with it.

    A thread that is left behind may come to run only after the caller has closed the original, when its
    number may be another file's.
    """

    def __init__(self, original: int) -> None:
        self._number = os.dup(original)
        self._lock = Lock()
        self._users = 0
        self._is_closed = False

    def use(self, call: Callable[..., T], *arguments: Any) -> T:
        """Make a system call in this thread. Raises OSError, be it for one that was closed."""
        with self._lock:
            if self._is_closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        try:
            return call(self._number, *arguments)
        finally:
            with self._lock:
                self._users -= 1
                self._close_unused()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._close_unused()

    def _close_unused(self) -> None:
        if self._is_closed and not self._users:
            os.close(self._number)


async def _in_thread(descriptor: Descriptor, call: Callable[..., T], *arguments: Any) -> T:
    return await trio.to_thread.run_sync(descriptor.use, call, *arguments, abandon_on_cancel=True)


async def _write_all(descriptor: Descriptor, data: bytes | bytearray) -> None:
    remaining = memoryview(data)
    while remaining:
        written = await _in_thread(descriptor, os.write, remaining)
        remaining = remaining[written:]


def _wait_for_hangup(descriptor: int) -> bool:
    """Wait until nobody reads what is written to `descriptor`; False if that cannot be known of it."""
    poll = select.poll()
    poll.register(descriptor, 0)  # no event is asked for; errors and hang-ups are always reported
    [(_, event)] = poll.poll()
    return bool(event & (select.POLLERR | select.POLLHUP))
