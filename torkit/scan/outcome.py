"""What a probe is, and what comes of one."""

from typing import Any, NamedTuple, Protocol

from torkit.directory.directory import Relay
from torkit.scan.way import Way


class Outcome(NamedTuple):
    """What came of a probe: fields of its own, and where it failed a word for the reason and a sentence."""

    result: dict[str, Any]
    reason: str | None = None
    message: str | None = None


class Probe(Protocol):
    """`text` is what rows call it; `target` is where the exit must let a stream go, if anywhere."""

    @property
    def text(self) -> str: ...
    @property
    def target(self) -> tuple[str, int] | None: ...
    async def run(self, way: Way, relay: Relay) -> Outcome:
        """Do it, for this relay. Raises TorkitError where it fails."""
