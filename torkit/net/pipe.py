"""Carries a stream on file descriptors: `torkit connect` between stdin and stdout.

The descriptors may be pipes, files, sockets, terminals or devices, and they are shared with the shell and
with other programs. So their flags are never changed: a non-blocking descriptor would be non-blocking for
everybody. There are two roads:

    slow    blocking calls in threads, which work for every kind
    fast    the core moves the bytes, and no task is woken (_fast/pump): of files, and of pipes and terminals,
            which Linux opens once more for us, non-blocking for nobody else

A thread that waits in a system call cannot be stopped. It is left behind when the pipe ends, and dies with
the process. A thread that was about to make its call makes none.
"""

import errno
import fcntl
import os
import select
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from math import inf
from threading import Lock
from typing import Any, TypeVar

import trio

from torkit._fast.sources import LocalEvent
from torkit.errors import TimedOut, TorkitError
from torkit.net.circuit.stream import Stream
from torkit.net.descriptors import READ_SIZE, read_some, write_some
from torkit.net.ferry import Ferry
from torkit.net.link.pump import Pump
from torkit.net.shortage import run_in_thread

T = TypeVar("T")

MIN_PAUSE = 0.01  # seconds between looks for bytes that have gone

# How long after the reader of `sink` has gone the end of `source` may follow: a parent that wants no more
# bytes closes both, in either order.
BOTH_ENDS = 0.5  # seconds


class ReaderGone(BrokenPipeError):
    """Nobody reads `sink` any more, and nothing was left to write."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, os.strerror(errno.EPIPE))


async def pipe(
    stream: trio.abc.Stream,
    *,
    source: int = 0,
    sink: int = 1,
    eof_timeout: float = inf,
    idle_timeout: float = inf,
) -> bool:
    """Carry `source` to `stream` and `stream` to `sink`. Returns True when the peer has ended the stream.

    Tor has no half-close: to tell the peer of the end of `source` would end both directions. So the peer is
    not told, and its bytes are still carried. This returns False `eof_timeout` seconds after the end of
    `source`, or after the peer's last byte since then. It also returns False where nobody reads `sink` any
    more, `source` has ended, and no byte is undelivered: the parent has closed both, and has all bytes. After
    `idle_timeout` seconds without a byte in either direction it raises TimedOut.

    Raises what `stream` raises when it did not end in good order, OSError when `source` or `sink` fail, and
    BrokenPipeError soon after the reader of `sink` has gone, even without a byte to write. The caller closes
    `stream`.
    """
    at_eof = False
    has_ended = trio.Event()  # `source`
    is_writing = is_given_up = False

    def touch() -> None:
        idle.deadline = trio.current_time() + (min(idle_timeout, eof_timeout) if at_eof else idle_timeout)

    async def upload() -> None:
        nonlocal at_eof
        data = b"" if road is None else await road.upload()
        while data or (data := await _in_thread(reader, read_some, READ_SIZE)):
            touch()
            try:
                await stream.send_all(data)
            except (TorkitError, trio.BrokenResourceError):
                break  # the stream is over; how it ended, and what came before, is for `download` to tell
            touch()
            data = b""
        else:
            at_eof = True
            has_ended.set()
            touch()
        await trio.sleep_forever()

    async def download() -> None:
        nonlocal is_writing
        while data := await stream.receive_some():
            touch()
            is_writing = True
            await _write_all(writer, data)
            is_writing = False
            touch()

    async def unless_both_are_closed(work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`. That nobody reads is no failure where `source` ends, too, and no byte is undelivered."""
        nonlocal is_given_up
        try:
            await work()
        except ReaderGone:
            with trio.move_on_after(BOTH_ENDS):
                await has_ended.wait()
            is_given_up = has_ended.is_set() and not is_writing and not getattr(stream, "queued", 0)
            if not is_given_up:
                raise

    async def watch_road(road: FastRoad) -> None:
        """Look now and then how many bytes went, so that timeouts are up to a tenth late."""
        pause = min(idle_timeout, eof_timeout or inf) / 10
        moved = road.moved
        while True:
            await trio.sleep(max(pause, MIN_PAUSE))
            if road.moved != moved:
                moved = road.moved
                touch()

    async def watch_slow_sink() -> None:
        if await _in_thread(writer, _wait_for_hangup):
            raise ReaderGone
        await trio.sleep_forever()

    with (
        closing(Descriptor(source)) as reader,
        closing(Descriptor(sink)) as writer,
        _fast_road(stream, source, sink) as road,
        trio.CancelScope() as idle,
    ):
        touch()
        if road is None:
            await race(upload, download, partial(unless_both_are_closed, watch_slow_sink))
        else:
            await race(upload, partial(unless_both_are_closed, road.download), partial(watch_road, road))
    if idle.cancelled_caught and not (at_eof and eof_timeout <= idle_timeout):
        raise TimedOut(f"nothing was sent or received for {idle_timeout:g} s")
    return not idle.cancelled_caught and not is_given_up


async def race(*functions: Callable[[], Awaitable[None]]) -> None:
    """Run all until the first one returns or raises, then return or raise as it did.

    The others are cancelled.
    """
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


class FastRoad(Ferry):
    """The core writes bytes of `stream` to `sink`, and seals bytes of `source`.

    Both descriptors are non-blocking, or files. `source` is None where the slow road uploads.
    """

    waits_for_sink = True

    def __init__(self, stream: Stream, source: int | None, sink: int) -> None:
        pump = Pump.current()
        writer = pump.add_local(sink, self)
        pump.watch_reading(writer, False)
        reader = None if source is None else pump.add_local(source, self, is_pipe=True)
        super().__init__(pump, stream, lambda: sink, writer, reader, self._note_end)
        self._failure: Exception | None = None
        self._has_ended = trio.Event()
        self._unsent = b""
        self._is_read = trio.Event()  # by the core, as far as it will be
        if source is None:
            self._is_read.set()
        self.start()

    @property
    def moved(self) -> int:
        """How many bytes have gone so far, in either direction."""
        return self._stream.sent + self._stream.received

    async def download(self) -> None:
        """Wait until the peer has ended in good order, and `sink` has all bytes. Raises as `pipe` does."""
        await self._has_ended.wait()
        if self._failure is not None:
            raise self._failure

    async def upload(self) -> bytes:
        """Wait until the core has read all it can. Returns bytes that were read and not sent."""
        await self._is_read.wait()
        return self._unsent

    def close(self) -> None:
        """Let go of the descriptors."""
        self._stream.watcher = None
        self._stream.hold()
        self._stop_reading()
        self._pump.remove(self._sink)

    def on_local(self, event: LocalEvent) -> None:
        """Handle what `source` or `sink` did."""
        if event is LocalEvent.BROKEN:
            left = self._stream.queued
            self._finish(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) if left else ReaderGone())
        elif event is LocalEvent.WRITABLE:
            self.on_change()
        else:
            self._stop_reading()  # the end, or a failure that the slow road will meet

    def _stop_reading(self) -> None:
        if self._source is not None:
            self._unsent = self._source.take_unsent()
            self._pump.remove(self._source)
            self._source = None
            self._is_read.set()

    def _note_end(self, failure: Exception | None) -> None:
        self._failure = failure
        self._has_ended.set()


@contextmanager
def _fast_road(stream: trio.abc.Stream, source: int, sink: int) -> Iterator[FastRoad | None]:
    """Gives the fast road of these descriptors, or None."""
    with ExitStack() as stack:

        def open_again(descriptor: int, access: int) -> int | None:
            own = _open_again(descriptor, access)
            if own is not None:
                stack.callback(os.close, own)
            return own

        if not isinstance(stream, Stream) or (own_sink := open_again(sink, os.O_WRONLY)) is None:
            yield None
        else:
            road = FastRoad(stream, open_again(source, os.O_RDONLY), own_sink)
            yield stack.enter_context(closing(road))


def _open_again(descriptor: int, access: int) -> int | None:
    """Returns a descriptor for the core alone, which changes nothing that others share; None without one.

    An end of a pipe, or a terminal to write to, is opened once more, non-blocking. Files and /dev/null, which
    let nobody wait, are duplicated. Named pipes are not: opened after their writer has gone, they would not
    tell of the end. Linux may refuse, as after a change of user or without /proc.
    """
    path = f"/proc/self/fd/{descriptor}"
    with suppress(OSError):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE not in (access, os.O_RDWR):
            return None
        status = os.fstat(descriptor)
        if os.readlink(path).startswith("pipe:") or (access == os.O_WRONLY and os.isatty(descriptor)):
            return os.open(path, access | os.O_NONBLOCK | os.O_NOCTTY)
        if stat.S_ISREG(status.st_mode) or os.path.samestat(status, os.stat(os.devnull)):
            return os.dup(descriptor)
    return None


class Descriptor:
    """A duplicate for threads. It lasts until `close`, and until the last thread has finished its call.

    A thread that is left behind may come to run only after the caller has closed the original, when its
    number may be another file's.
    """

    def __init__(self, original: int) -> None:
        self._number = os.dup(original)
        self._lock = Lock()
        self._users = 0
        self._is_closed = False

    def use(self, call: Callable[..., T], *arguments: Any) -> T:
        """Make a system call in this thread. Raises OSError, also where the descriptor was closed."""
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
    return await run_in_thread(descriptor.use, call, *arguments, abandon_on_cancel=True)


async def _write_all(descriptor: Descriptor, data: bytes | bytearray) -> None:
    remaining = memoryview(data)
    while remaining:
        written = await _in_thread(descriptor, write_some, remaining)
        remaining = remaining[written:]


def _wait_for_hangup(descriptor: int) -> bool:
    """Wait until nobody reads from `descriptor`'s other end. Returns False if that cannot be known."""
    poll = select.poll()
    poll.register(descriptor, 0)  # no event is asked for; errors and hang-ups are always reported
    [(_, event)] = poll.poll()
    return bool(event & (select.POLLERR | select.POLLHUP))
