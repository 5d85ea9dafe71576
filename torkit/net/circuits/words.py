"""Logs a line for each circuit: its relays, its purpose, how it did. Never the targets of its streams.

The last relay of a circuit for onion services is not named: the service has chosen it, so it may betray which
service that is.
"""

import logging
from collections.abc import Sequence

from torkit.errors import TorkitError
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.purpose import ForOnion, Shared
from torkit.net.contact import Contact, name_of

logger = logging.getLogger(__name__)


def names_of(path: Sequence[Contact], purpose: Shared | ForOnion) -> list[str]:
    """Returns the names of a circuit's relays for messages."""
    names = [name_of(relay) for relay in path]
    return names if isinstance(purpose, Shared) else [*names[:-1], "the last relay"]


def note_built(circuit: Circuit, purpose: Shared | ForOnion, seconds: float) -> None:
    """Log that a circuit was built. The circuit itself logs its end."""
    circuit.is_told = True
    if not logger.isEnabledFor(logging.INFO):
        return
    names = ", ".join(names_of(circuit.path, purpose))
    logger.info("circuit %d for %s was built in %.2f s: %s", circuit.id, purpose.words, seconds, names)


def note_failed(purpose: Shared | ForOnion, error: TorkitError, seconds: float) -> None:
    """Log that a circuit was not built. `error` names the relay."""
    logger.info("a circuit for %s failed after %.2f s: %s", purpose.words, seconds, error)
