"""Decides which requests of a proxy may share a circuit: identities, by client, by time and by use."""

from collections.abc import Callable, Collection, Hashable, Mapping
from enum import Enum
from itertools import count
from math import inf
from typing import Any, NamedTuple

import trio

from torkit.proto.request import Request

# Implementation limit: identities of one listener that are counted. Beyond, the oldest begins anew.
MAX_IDENTITIES = 16_384


class Isolate(Enum):
    """What must be equal for two requests to share a circuit, in C tor's words for its SocksPort."""

    AUTH = "auth"  # the credentials
    CLIENT = "client"  # the client's address
    LISTENER = "listener"  # where the client has connected to
    DEST_ADDR = "dest-addr"
    DEST_PORT = "dest-port"
    STREAM = "stream"  # no two requests are equal: each has a circuit of its own


ISOLATION = frozenset({Isolate.AUTH, Isolate.CLIENT, Isolate.LISTENER})  # (the default of C tor's SocksPort)


class Rotate(NamedTuple):
    """When a new identity follows: `seconds` after the first request of one, or after `uses` connections.

    Connections that have begun go on as they are.
    """

    seconds: float = inf
    uses: float = inf


NEVER = Rotate()


class Isolation:
    """Tells which requests a listener, or a whole proxy, keeps apart."""

    def __init__(self, flags: Collection[Isolate], rotate: Rotate = NEVER) -> None:
        self._keys = [key for flag, key in _KEYS.items() if flag in flags]
        self._rotate = rotate
        self._identities: dict[Hashable, _Identity] = {}  # the newest of each key, the oldest first

    def key(self, origin: "Origin", request: Request) -> Hashable:
        """Returns a value that is equal for requests that may share a circuit.

        Unequal ones differ in `repr`, too.
        """
        key = tuple([key(origin, request) for key in self._keys])
        return key if self._rotate is NEVER else (*key, self._number(key, request))

    def _number(self, key: Hashable, request: Request) -> int:
        """Returns the number of the identity that is now the key's. No two identities have one number."""
        now = trio.current_time()
        identity = self._identities.get(key)
        if (
            identity is None
            or now - identity.began >= self._rotate.seconds
            or (request.is_connection and identity.uses >= self._rotate.uses)
        ):
            self._identities.pop(key, None)
            identity = self._identities[key] = _Identity(now)
            if len(self._identities) > MAX_IDENTITIES:
                del self._identities[next(iter(self._identities))]
        identity.uses += request.is_connection
        return identity.number


class _Identity:
    __slots__ = ("began", "number", "uses")

    def __init__(self, now: float) -> None:
        self.number = next(_numbers)
        self.began = now
        self.uses = 0


class Origin(NamedTuple):
    """The origin of a request."""

    client: str  # the client's address
    listener: Any  # the address that it has connected to
    isolation: Isolation  # what is kept apart there

    def key(self, request: Request) -> Hashable:
        """Returns a value that is equal for requests that may share a circuit."""
        return self.isolation.key(self, request)


_numbers = count(1)

_KEYS: Mapping[Isolate, Callable[[Origin, Request], Hashable]] = {
    Isolate.AUTH: lambda _, request: request.isolation,
    Isolate.CLIENT: lambda origin, _: origin.client,
    Isolate.LISTENER: lambda origin, _: origin.listener,
    Isolate.DEST_ADDR: lambda _, request: request.host.rstrip(".").lower(),
    Isolate.DEST_PORT: lambda _, request: request.port,
    Isolate.STREAM: lambda _, __: next(_numbers),
}
