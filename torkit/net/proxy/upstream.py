"""What a proxy asks of the client that it belongs to: streams and look-ups (client.py at the top)."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from torkit.net.stream import Stream


class Begin(Protocol):
    """Begins a stream for one request on a circuit that is ready; None where none is. Raises TorkitError."""

    def __call__(self, host: str, port: int, *, isolation: Hashable) -> Stream | None: ...


class Connect(Protocol):
    """Opens a stream for one request, however long it takes; raises TorkitError.

    `begun` is a first attempt, which has failed or was not answered in time.
    """

    async def __call__(
        self, host: str, port: int, *, isolation: Hashable, begun: Stream | None = None
    ) -> Stream: ...


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
    begin: Begin
    connect: Connect
    resolve: Resolve
