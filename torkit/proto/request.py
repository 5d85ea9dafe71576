"""What a program asks the proxy for, whichever protocol it speaks."""

from collections.abc import Hashable
from enum import Enum
from typing import NamedTuple

from torkit.proto.destination import parse_address


class Command(Enum):
    CONNECT = "connect"
    RESOLVE = "resolve"
    RESOLVE_PTR = "resolve-ptr"


class Request(NamedTuple):
    """What one client wants.

    `host` is a name, or an address in its usual text without brackets. `isolation` is equal for requests
    that may share a circuit, and None without credentials. `kinds` is of a look-up: the kinds of answer that
    the client can be told (`ipv4`, `ipv6`, `hostname`), the preferred one first.
    """

    command: Command
    host: str
    port: int
    isolation: Hashable = None
    kinds: tuple[str, ...] = ()

    @property
    def is_address(self) -> bool:
        """Returns whether the client named its destination by address: it may have asked a local resolver."""
        return parse_address(self.host) is not None
