"""What a proxy asks of the client that it belongs to: streams and look-ups (client.py at the top)."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torkit.net.circuit.stream import Stream

if TYPE_CHECKING:
    from torkit.net.via import ViaStream


class Requested(Protocol):
    """One stream that somebody asks for. Both raise TorkitError."""

    def begin(self) -> Stream | None:
        """Make the first attempt at once: a stream not answered yet, or None where no circuit is ready."""

    async def connect(self) -> "Stream | ViaStream":
        """Make the attempts that are left, where the first failed or was not answered in time."""


class Ask(Protocol):
    """Says what is wanted; raises TorkitError for what nobody can reach."""

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
