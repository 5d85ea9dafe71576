"""Logs the requests that a proxy does not serve: a line for each, never with a destination."""

import logging

from torkit.errors import InternalError, Retry, TorkitError
from torkit.net.circuit.stream import Stream
from torkit.net.faults import log_fault

logger = logging.getLogger(__name__)


class Journal:
    """Logs for one proxy. The first misuse of each kind is a warning with a remedy, the rest is at INFO."""

    def __init__(self) -> None:
        self._warned_of: set[str] = set()  # hints, which are constants: each kind of misuse has its own

    def note_refusal(self, what: str, error: TorkitError) -> None:
        """Log that `what` was refused, and why.

        An error that will never pass and has a hint tells of misuse.
        """
        if isinstance(error, InternalError):
            log_fault(error)
            return
        level = logging.INFO
        if error.retry is Retry.NEVER and error.hint is not None and error.hint not in self._warned_of:
            self._warned_of.add(error.hint)
            level = logging.WARNING
        logger.log(level, "%s was refused: %s", what, error.with_hint)

    def note_connected(self, stream: Stream) -> None:
        """Log that a connection is served from now on."""
        if logger.isEnabledFor(logging.DEBUG):
            circuit = stream.circuit
            logger.debug("a connection begins at %s, on circuit %d", circuit.exit.nickname, circuit.id)

    def note_over(self, stream: Stream, failure: Exception | None) -> None:
        """Log how a served connection ended. It is no failure that the client has gone."""
        if isinstance(failure, TorkitError):
            self.note_cut(failure)
        elif logger.isEnabledFor(logging.DEBUG):
            circuit = stream.circuit
            logger.debug("a connection is over at %s, on circuit %d", circuit.exit.nickname, circuit.id)

    def note_cut(self, failure: TorkitError) -> None:
        """Log why a served connection did not end in good order."""
        logger.info("a stream failed: %s", failure)
