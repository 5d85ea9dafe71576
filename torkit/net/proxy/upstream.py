"""A proxy's view of its client of Tor: streams and look-ups (client.py at the top)."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torkit.net.circuit.stream import Stream

if TYPE_CHECKING:
    from torkit.net.via import ViaStream


class Requested(Protocol):
    """One stream that is asked for. Both methods raise TorkitError."""

    def begin(self) -> Stream | None:
        """Make the first attempt. Returns a stream not answered yet, or None where no circuit is ready."""

    async def connect(self) -> "Stream | ViaStream":
        """Make further attempts, where the first failed or was not answered in time."""


class Ask(Protocol):
    """Makes a request; raises TorkitError for a host that no exit can reach."""

    def __call__(self, host: str, port: int, *, isolation: Hashable) -> Requested: ...


class Answer(Protocol):
    """One answer to a look-up."""

    @property
    def kind(self) -> str:
        """`ipv4`, `ipv6` or `hostname`."""

    @property
    def value(self) -> str: ...


class Resolve(Protocol):
    """Looks up a name, or the name of an address; raises TorkitError."""

    async def __call__(self, host: str, *, isolation: Hashable) -> Sequence[Answer]: ...


class Upstream(NamedTuple):
    """`request` is for streams, `resolve` for look-ups."""

    request: Ask
    resolve: Resolve
