"""A client in a thread of its own, under trio, for programs that run something else or nothing.

Its methods return a `concurrent.futures.Future`: torkit.blocking waits for it, torkit.aio awaits it.
"""

import os
import socket
import threading
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from torkit.client import Tor, open_tor
from torkit.errors import InternalError, TorkitError, UsageError
from torkit.net.circuits.request import Resolved
from torkit.net.door import Door
from torkit.net.parts import closed
from torkit.socket_errors import os_error

if TYPE_CHECKING:
    from torkit.net.hosting.serve import OnionListener

T = TypeVar("T")


class ClientThread:
    """Opened by `start`. The thread is a daemon, so the opener has to call `close` before Python ends."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._opened: Future[Tor] = Future()
        self._has_ended = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery
        self._door: Door

    def start(self, settings: dict[str, Any]) -> "Future[Tor]":
        """Open the client that these arguments of `open_tor` describe. The future raises as it does."""
        threading.Thread(target=self._run, args=(settings,), name="torkit", daemon=True).start()
        return self._opened

    def close(self, timeout: float | None = None) -> None:
        """Close the client, and wait until nothing of it is left: what waits for it fails, sockets are reset.

        Blocks, for `timeout` seconds at most. In a child of the process it does nothing.
        """
        if not self._is_here:
            return
        if self._opened.exception() is None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
        self._has_ended.wait(timeout)

    @property
    def _is_here(self) -> bool:
        """Returns whether this is the process that has the thread, and not a child of it."""
        return os.getpid() == self._owner

    def submit(self, function: Callable[..., Awaitable[T]], *args: Any) -> "Future[T]":
        """Have `function(*args)` run in the thread. Cancelling the future cancels it; a socket that nobody
        gets is closed.

        The future raises what it raises, a TorkitError as an OSError. Raises UsageError, as an OSError, where
        the client is closed, or another process's.
        """
        future: Future[T] = Future()
        if not self._is_here:
            raise os_error(
                UsageError("this client of torkit is that of the parent process: open another one")
            )
        try:
            self._token.run_sync_soon(self._begin, future, function, args)
        except trio.RunFinishedError:
            error = _closed()
            raise error from error.__cause__  # torkit's own, and not trio's
        return future

    def call(self, function: Callable[..., T], *args: Any) -> "Future[T]":
        """As `submit`, for functions that do not wait."""

        async def call() -> T:
            return function(*args)

        return self.submit(call)

    # --- what may be asked for --------------------------------------------------------------------

    async def connect(
        self, tor: Tor, host: str, port: int, isolation: Hashable, timeout: float | None
    ) -> socket.socket:
        with trio.fail_after(inf if timeout is None else timeout):
            await tor.wait_ready()
            stream = await tor.connect(host, port, isolation=isolation)
        return self._door.hand_out(stream)

    async def resolve(
        self, tor: Tor, host: str, isolation: Hashable, timeout: float | None
    ) -> list[Resolved]:
        with trio.fail_after(inf if timeout is None else timeout):
            await tor.wait_ready()
            return await tor.resolve(host, isolation=isolation)

    async def wait_ready(self, tor: Tor, timeout: float | None) -> None:
        with trio.fail_after(inf if timeout is None else timeout):
            await tor.wait_ready()

    async def accept(self, listener: "OnionListener", timeout: float | None) -> socket.socket:
        with trio.fail_after(inf if timeout is None else timeout):
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                raise UsageError("this onion service is closed") from None
        return self._door.hand_out(stream)

    async def wait_published(self, listener: "OnionListener", timeout: float | None) -> None:
        with trio.fail_after(inf if timeout is None else timeout):
            await listener.wait_published()

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self, settings: dict[str, Any]) -> None:
        try:
            trio.run(self._keep_open, settings)
        except BaseException as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            # Else it is a fault of ours, of which the log tells; who asks for more finds the client closed.
        finally:
            self._has_ended.set()

    async def _keep_open(self, settings: dict[str, Any]) -> None:
        async with open_tor(**settings) as tor, trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._door = Door()
            try:
                self._opened.set_result(tor)
                await self._door.run()
            finally:
                self._door.close()

    def _begin(
        self, future: "Future[T]", function: Callable[..., Awaitable[T]], args: tuple[Any, ...]
    ) -> None:
        try:
            self._nursery.start_soon(self._work, future, function, args)
        except RuntimeError:  # the nursery is closed
            _fail(future, _closed())

    async def _work(
        self, future: "Future[T]", function: Callable[..., Awaitable[T]], args: tuple[Any, ...]
    ) -> None:
        scope = trio.CancelScope()

        def cancel(cancelled: "Future[T]") -> None:
            if cancelled.cancelled():
                with suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(scope.cancel)

        future.add_done_callback(cancel)
        failure: BaseException = _closed()
        try:
            with scope:
                result = await function(*args)
                if future.set_running_or_notify_cancel():
                    future.set_result(result)
                else:
                    discard(result)
        except TorkitError as error:
            failure = os_error(error)
        except trio.TooSlowError:
            failure = TimeoutError("timed out")  # as sockets say it
        except OSError as error:
            failure = error
        except Exception as error:
            failure = os_error(InternalError.ending("a call", error))
        finally:
            _fail(future, failure)


class ServiceInThread:
    """An onion service of a client in a thread. `opened` gives its listener; `close` ends it."""

    def __init__(self, thread: ClientThread, tor: Tor, arguments: tuple[Any, ...]) -> None:
        """`arguments` are those of `Tor.serve_onion`."""
        self.opened: Future[OnionListener] = Future()
        self._thread = thread
        self._running = thread.submit(self._run, tor, arguments)
        self._running.add_done_callback(self._note_end)

    def accept(self, listener: "OnionListener", timeout: float | None) -> "Future[socket.socket]":
        """A socket for the next stream, TimeoutError after so many seconds."""
        return self._thread.submit(self._thread.accept, listener, timeout)

    def wait_published(self, listener: "OnionListener", timeout: float | None) -> "Future[None]":
        """Done once clients can find the service, TimeoutError after so many seconds."""
        return self._thread.submit(self._thread.wait_published, listener, timeout)

    def close(self) -> None:
        """Have it end: its clients are cut off."""
        self._running.cancel()

    async def _run(self, tor: Tor, arguments: tuple[Any, ...]) -> None:
        async with tor.serve_onion(*arguments) as listener:
            self.opened.set_result(listener)
            await trio.sleep_forever()

    def _note_end(self, running: "Future[None]") -> None:
        if not self.opened.done():
            error = _closed() if running.cancelled() else running.exception()
            self.opened.set_exception(error or _closed())


def discard(result: object) -> None:
    """Close a result that nobody gets."""
    if isinstance(result, socket.socket):
        result.close()


def _fail(future: "Future[T]", error: BaseException) -> None:
    """Raise `error` in the callers that still wait."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)


def _closed() -> OSError:
    return os_error(closed())
