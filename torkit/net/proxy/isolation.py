"""Which requests of a proxy's clients may share a circuit."""

from collections.abc import Callable, Collection, Hashable, Mapping
from enum import Enum
from itertools import count
from typing import Any, NamedTuple

from torkit.proto.request import Request


class Isolate(Enum):
    """What must be equal for two requests to share a circuit, in C tor's words for its SocksPort."""

    AUTH = "auth"  # the credentials
    CLIENT = "client"  # the client's address
    LISTENER = "listener"  # where the client has connected to
    DEST_ADDR = "dest-addr"
    DEST_PORT = "dest-port"
    STREAM = "stream"  # nothing is: every request has a circuit of its own


ISOLATION = frozenset({Isolate.AUTH, Isolate.CLIENT, Isolate.LISTENER})  # as C tor's SocksPort by default


class Origin(NamedTuple):
    """Where a request comes from."""

    client: str  # the client's address
    listener: Any  # the address that it has connected to


class Isolation:
    """What a proxy keeps apart."""

    def __init__(self, flags: Collection[Isolate]) -> None:
        self._keys = [key for flag, key in _KEYS.items() if flag in flags]

    def key(self, origin: Origin, request: Request) -> Hashable:
        """Returns what is equal for requests that may share a circuit; `repr` tells unequal ones apart."""
        return tuple([key(origin, request) for key in self._keys])


_numbers = count(1)

_KEYS: Mapping[Isolate, Callable[[Origin, Request], Hashable]] = {
    Isolate.AUTH: lambda _, request: request.isolation,
    Isolate.CLIENT: lambda origin, _: origin.client,
    Isolate.LISTENER: lambda origin, _: origin.listener,
    Isolate.DEST_ADDR: lambda _, request: request.host.rstrip(".").lower(),
    Isolate.DEST_PORT: lambda _, request: request.port,
    Isolate.STREAM: lambda _, __: next(_numbers),
}
