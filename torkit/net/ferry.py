"""Carries bytes between a stream and a descriptor of this machine, without Python while all goes well.

The core writes bytes that arrive, and seals bytes that it reads (_fast/pump). A ferry tells the core when to
go on, and tells its maker of the end. Sockets and pipes end in their own ways: proxy/carrier.py, pipe.py,
door.py.
"""

from collections.abc import Callable
from typing import ClassVar

from torkit._fast.sources import Local, LocalEvent
from torkit.errors import InternalError
from torkit.net.circuit.stream import Stream
from torkit.net.link.pump import Pump


class Ferry:
    """`sink` watches the descriptor that takes arriving bytes; `fileno` returns its number, -1 when closed.

    `source`, which may be the sink, is read for the stream; None where somebody else sends. `end` is called
    once: with None where the peer ended in good order, with a TorkitError where it did not, with an OSError
    where a descriptor failed.
    """

    # Whether the stream's end counts only when `sink` has taken all bytes before it.
    waits_for_sink: ClassVar[bool]

    def __init__(
        self,
        pump: Pump,
        stream: Stream,
        fileno: Callable[[], int],
        sink: Local,
        source: Local | None,
        end: Callable[[Exception | None], None],
    ) -> None:
        self._pump = pump
        self._stream = stream
        self._fileno = fileno
        self._sink = sink
        self._source = source
        self._end: Callable[[Exception | None], None] | None = end  # None once called

    @property
    def _is_over(self) -> bool:
        return self._end is None

    def start(self, early: bytes = b"") -> None:
        """Carry, `early` first to the stream."""
        self._stream.watcher = self
        if self._source is not None:
            self._stream.be_fed(self._source, early)
        self.on_change()

    def on_change(self) -> None:
        """Go on: bytes have come that the core did not write, the sink takes more, or the stream is over."""
        if self._is_over:
            return
        try:
            is_pushed = self._stream.push(self._fileno())
        except OSError as error:
            self._finish(error)
        else:
            self._pump.watch_writing(self._sink, not is_pushed)
            if self._stream.has_ended and (is_pushed or not self.waits_for_sink):
                self._finish(self._stream.failure)

    def on_xon(self) -> None:
        """Go on reading: the peer takes data again, or at another rate."""
        if self._source is not None:
            self._source.resume()

    def on_fault(self, error: InternalError) -> None:
        self._finish(error)

    def _finish(self, failure: Exception | None) -> None:
        if self._end is not None:
            end, self._end = self._end, None  # it may be the ferry's own, which would wait to be garbage
            self._stream.watcher = None
            end(failure)


class SocketFerry(Ferry):
    """A ferry of a program's socket, which is sink and source.

    A program that has ended its own direction still reads, until it closes the socket: `look` finds that out.
    """

    def __init__(
        self,
        pump: Pump,
        stream: Stream,
        fileno: Callable[[], int],
        local: Local,
        end: Callable[[Exception | None], None],
    ) -> None:
        super().__init__(pump, stream, fileno, local, local, end)
        self._has_ended = False  # whether the program has ended its direction

    def on_local(self, event: LocalEvent) -> None:
        """Act on an event of the socket. The core reports an end after it has read everything before it."""
        if event is LocalEvent.WRITABLE:
            self.on_change()
        elif event is LocalEvent.ENDED:
            self._has_ended = True
            self.look()
        else:
            self._finish(self._sink.failure or ConnectionResetError())

    def look(self) -> None:
        """Finish if the program has closed its socket. Called now and then: an idle socket tells nothing."""
        raise NotImplementedError
