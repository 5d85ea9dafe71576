"""What a proxy says of requests that it does not serve: a line for each, never with a destination."""

import logging

from torkit.errors import InternalError, Retry, TorkitError
from torkit.net.circuit.stream import Stream
from torkit.net.link.pump import log_fault

logger = logging.getLogger(__name__)


class Journal:
    """Logs for one proxy. The first misuse of each kind is a warning with a remedy, the rest is at INFO."""

    def __init__(self) -> None:
        self._warned_of: set[str] = set()  # hints, which are constants: each kind of misuse has its own

    def note_refusal(self, what: str, error: TorkitError) -> None:
        """Say that `what` was refused, and why. What will never work and has a hint is misuse."""
        if isinstance(error, InternalError):
            log_fault(error)
            return
        level = logging.INFO
        if error.retry is Retry.NEVER and error.hint is not None and error.hint not in self._warned_of:
            self._warned_of.add(error.hint)
            level = logging.WARNING
        logger.log(level, "%s was refused: %s", what, error.with_hint)

    def note_connected(self, stream: Stream) -> None:
        """Say that a connection is served from now on."""
        circuit = stream.circuit
        logger.debug("a connection begins at %s, on circuit %d", circuit.exit.nickname, circuit.id)

    def note_over(self, stream: Stream, failure: Exception | None) -> None:
        """Say how a connection ended that was served. A client that has gone is none of its failures."""
        if isinstance(failure, TorkitError):
            self.note_cut(failure)
        else:
            circuit = stream.circuit
            logger.debug("a connection is over at %s, on circuit %d", circuit.exit.nickname, circuit.id)

    def note_cut(self, failure: TorkitError) -> None:
        """Say why a connection that was served ended otherwise than in good order."""
        logger.info("a stream failed: %s", failure)
