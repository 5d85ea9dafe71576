"""Carries bytes both ways between a client's socket and its stream (net/ferry.py).

The carrier decides how an end is passed on, since TCP ends each direction by itself and Tor ends whole
streams:

    the client ends its direction   nothing is told to the peer; what the peer sends is still carried
    the client is gone              the stream ends (sockdiag.py tells the two apart)
    the peer ends, or Tor fails     the client gets what has arrived; how it learns of the end: farewell.py
"""

import socket
from collections.abc import Callable
from typing import Protocol

from torkit._fast.sources import Local
from torkit.net.circuit.stream import Stream
from torkit.net.ferry import SocketFerry
from torkit.net.link.pump import Pump
from torkit.net.proxy.sockdiag import SockDiag

# A closed socket and one that only ended its direction look alike until the kernel asks the client.
KEEPALIVE_IDLE = 30  # seconds until it asks
KEEPALIVE_INTERVAL = 15  # seconds between questions, and between our looks at the answer


class Home(Protocol):
    """A carrier's view of its proxy."""

    pump: Pump
    kernel: SockDiag


class Carrier(SocketFerry):
    """The pump tells it what the socket does. At its end the stream may still hold bytes for the client."""

    waits_for_sink = False  # farewell.py delivers what is left

    def __init__(
        self,
        home: Home,
        sock: socket.socket,
        source: Local,
        stream: Stream,
        end: Callable[[Exception | None], None],
    ) -> None:
        super().__init__(home.pump, stream, sock.fileno, source, end)
        self._socket = sock
        self._kernel = home.kernel
        source.owner = self

    def look(self) -> None:
        """Close if the client has gone. An idle socket tells nothing by itself.

        A client that only ended its direction answers the kernel's keepalive questions; one that closed
        its socket does not, or answers with a reset.
        """
        if self._is_over:
            return
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or (self._has_ended and self._kernel.is_closed_by_program(self._socket)):
            self._finish(ConnectionResetError())
