"""Tor for programs without an event loop: a client in a thread, and real sockets out of it.

    from torkit.blocking import open_tor

    with open_tor() as tor:
        with tor.connect("example.com", 80) as sock:
            sock.sendall(b"GET / HTTP/1.0\\r\\nHost: example.com\\r\\n\\r\\n")

A socket is one end of a pair whose other end the compiled core carries: no Python runs for its bytes. It is a
`socket.socket` of the family AF_UNIX, which ssl, http.client, smtplib, paramiko, urllib3 and select take.
Errors are OSErrors with torkit's own as `__cause__`. Any thread may call; a child after a fork is told that
it may not.
"""

import atexit
import socket
from collections.abc import Hashable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from torkit.client import Tor as TrioTor
from torkit.errors import UsageError
from torkit.in_thread import ClientThread, ServiceInThread, discard
from torkit.net.circuits.request import Resolved
from torkit.net.progress import Progress

if TYPE_CHECKING:
    from torkit.net.hosting.serve import OnionListener, Ports

T = TypeVar("T")

_DEFAULT_TIMEOUT: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]  # what libraries pass on

CLOSE_TIMEOUT = 5.0  # seconds that Python's own end waits for a client that nobody has closed


class Tor:
    """A client in a thread of its own; made by `open_tor`, closed by `close` or the end of a `with` block."""

    def __init__(self, thread: ClientThread, tor: TrioTor) -> None:
        self._thread = thread
        self._tor = tor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the client, and wait until it is: 2 s at most, where relays take nothing any more.

        Open sockets read what has arrived, then a reset. What was sent last may be lost on its way, for
        relays drop what they hold of a circuit: wait for an answer first. Calls that wait in other threads
        raise. A second time, and in a child process, it does nothing.
        """
        self._thread.close()
        atexit.unregister(self._thread.close)

    def isolated(self) -> "Tor":
        """Returns the same client, for requests that share no circuit with another object's."""
        return Tor(self._thread, self._tor.isolated())

    @property
    def progress(self) -> Progress:
        """How far the start has come: phase, percentage, and what is in the way if anything is."""
        return self._tor.progress

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until circuits can be built. `connect` does so by itself.

        Raises TimeoutError after `timeout` seconds, and OSError for what made the start fail.
        """
        _result(self._thread.submit(self._thread.wait_ready, self._tor, timeout))

    def connect(
        self,
        host: str,
        port: int,
        *,
        isolation: Hashable = None,
        timeout: float | None = _DEFAULT_TIMEOUT,
    ) -> socket.socket:
        """Returns a connected socket to `host`, a name or address. The exit looks it up, never this machine.

        Connections share circuits only where `isolation` is equal, any value. `timeout` is in seconds, by
        default `socket.getdefaulttimeout()`; it holds for this call, and then for each call of the socket.
        Without one, what is tried takes 120 s at most once the client is ready. Raises OSError:
        ConnectionRefusedError, socket.gaierror where the exit finds no such name, TimeoutError, or another
        one whose `__cause__` says more (torkit.errors).

        Tor has no half-close: `shutdown(SHUT_WR)` tells the peer nothing.
        """
        if timeout is _DEFAULT_TIMEOUT:
            timeout = socket.getdefaulttimeout()
        sock = _result(self._thread.submit(self._thread.connect, self._tor, host, port, isolation, timeout))
        sock.settimeout(timeout)
        return sock

    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | None = _DEFAULT_TIMEOUT,
        source_address: tuple[str, int] | None = None,
        *,
        all_errors: bool = False,
        isolation: Hashable = None,
    ) -> socket.socket:
        """As `socket.create_connection`, in whose place libraries can be given it; `connect` says the rest.

        Raises UsageError for a `source_address`: an exit uses its own. `all_errors` changes nothing: there is
        one error.
        """
        if source_address is not None:
            raise UsageError("a connection through Tor has no source address of ours")
        host, port = address
        return self.connect(host, port, isolation=isolation, timeout=timeout)

    def resolve(
        self, host: str, *, isolation: Hashable = None, timeout: float | None = None
    ) -> list[Resolved]:
        """Returns the addresses of a name, or for an address its names, as an exit sees them.

        Raises as `connect`.
        """
        return _result(self._thread.submit(self._thread.resolve, self._tor, host, isolation, timeout))

    def serve_onion(self, ports: "Ports", *arguments: Any) -> "OnionService":
        """An onion service, run until it is closed; `torkit.Tor.serve_onion` says which arguments there are.

        Waits until there is a directory. Raises OSError.
        """
        service = ServiceInThread(self._thread, self._tor, (ports, *arguments))
        try:
            return OnionService(service, service.opened.result())
        except BaseException:
            service.close()
            raise

    def new_identity(self) -> None:
        """From now on, connections use circuits that none of before has used; those go on as they are."""
        _result(self._thread.call(self._tor.new_identity))


class OnionService:
    """An onion service of a client; made by `Tor.serve_onion`. Use it in a `with` block, or close it."""

    def __init__(self, service: ServiceInThread, listener: "OnionListener") -> None:
        self.address = listener.address
        self._service = service
        self._listener = listener

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def wait_published(self, timeout: float | None = None) -> None:
        """Wait until clients can find it. Raises TimeoutError after `timeout` seconds."""
        _result(self._service.wait_published(self._listener, timeout))

    def accept(self, timeout: float | None = None) -> socket.socket:
        """A socket for the next client's stream. Raises TimeoutError after `timeout` seconds."""
        return _result(self._service.accept(self._listener, timeout))

    def close(self) -> None:
        """End it: clients that are connected are cut off."""
        self._service.close()


def open_tor(**settings: Any) -> Tor:
    """Returns a client in a thread of its own. Arguments and exceptions are those of `torkit.open_tor`.

    Close it, or use it in a `with` block. At Python's end, what is still open is closed.
    """
    thread = ClientThread()
    tor = Tor(thread, thread.start(settings).result())
    atexit.register(thread.close, CLOSE_TIMEOUT)
    return tor


def _result(future: "Future[T]") -> T:
    """Wait for it. Whoever is interrupted meanwhile, as by Ctrl-C, leaves nothing behind."""
    try:
        return future.result()
    except BaseException:
        if not future.cancel() and not future.cancelled() and future.exception() is None:
            discard(future.result())
        raise
