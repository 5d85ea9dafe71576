"""Carries bytes both ways between a client's socket and its stream.

This needs no Python: the core writes what arrives, and seals what the client sends (_fast/pump).
What is decided here is how ends are carried over, since TCP ends each direction by itself and Tor ends whole
streams:

    the client ends its direction   nothing is told to the peer; what the peer sends is still carried
    the client is gone              the stream ends (sockdiag.py tells the two apart)
    the peer ends, or Tor fails     the client gets what has arrived; how it learns of the end: farewell.py
"""

import socket
from collections.abc import Callable
from typing import Protocol

from torkit._fast.sources import Local, LocalEvent
from torkit.errors import InternalError
from torkit.net.circuit.stream import Stream
from torkit.net.link.pump import Pump
from torkit.net.proxy.sockdiag import SockDiag

READ_SIZE = 65_536  # bytes; large enough that one read feeds some 130 cells

# A client that closed its socket and one that only ended its direction look alike until the kernel asks.
KEEPALIVE_IDLE = 30  # seconds until it asks
KEEPALIVE_INTERVAL = 15  # seconds between questions, and between our looks at the answer


class Home(Protocol):
    """What a carrier needs of its proxy."""

    pump: Pump
    kernel: SockDiag


class Carrier:
    """Told by the pump what the socket does, and by the stream what came of it.

    `end` is called once: with None where the peer ended in good order, with a TorkitError where it did not,
    with an OSError where the client's socket failed. The stream may still hold bytes for the client.
    """

    def __init__(
        self,
        home: Home,
        sock: socket.socket,
        source: Local,
        stream: Stream,
        end: Callable[[Exception | None], None],
    ) -> None:
        self._home = home
        self._socket = sock
        self._source = source
        self._stream = stream
        self._end = end
        self._has_ended = False  # the client, its direction
        self._is_over = False

    def start(self, early: bytes) -> None:
        """Carry, `early` first to the stream."""
        self._source.owner = self._stream.watcher = self
        self._stream.be_fed(self._source, early)
        self.on_change()

    # --- from the stream --------------------------------------------------------------------------

    def on_change(self) -> None:
        """Bytes have come that the core did not write by itself, or the stream has ended."""
        if self._is_over:
            return
        try:
            is_pushed = self._stream.push(self._socket.fileno())
        except OSError as error:
            self._finish(error)
        else:
            self._home.pump.watch_writing(self._source, not is_pushed)
            if self._stream.has_ended:
                self._finish(self._stream.failure)

    def on_xon(self) -> None:
        """The peer takes data again, or at another rate."""
        self._source.resume()

    # --- from the pump ----------------------------------------------------------------------------

    def on_local(self, event: LocalEvent) -> None:
        """What the client's socket did."""
        if event is LocalEvent.WRITABLE:
            self.on_change()
        elif event is LocalEvent.ENDED:
            self._has_ended = True
            self.look()
        else:
            self._finish(self._source.failure or ConnectionResetError())

    def on_fault(self, error: InternalError) -> None:
        self._finish(error)

    # --- the end ----------------------------------------------------------------------------------

    def look(self) -> None:
        """Close if the client has gone. An idle socket tells nothing by itself.

        A client that only ended its direction answers the kernel's keepalive questions; one that closed
        its socket does not, or answers with a reset.
        """
        if self._is_over:
            return
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or (self._has_ended and self._home.kernel.is_closed_by_program(self._socket)):
            self._finish(ConnectionResetError())

    def _finish(self, failure: Exception | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._stream.watcher = None
            self._end(failure)
