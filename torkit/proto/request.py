"""What a program asks the proxy for, whichever protocol it speaks."""

from collections.abc import Hashable
from enum import Enum
from typing import Any, NamedTuple

from torkit.proto.destination import parse_address


class Command(Enum):
    CONNECT = "connect"
    FORWARD = "forward"  # as CONNECT, but of a connection only a request and its answer are wanted
    RESOLVE = "resolve"
    RESOLVE_PTR = "resolve-ptr"


class Request(NamedTuple):
    """What one client wants.

    `host` is a name, or an address in its usual text without brackets. `isolation` is equal for requests
    that may share a circuit, and None without credentials. `kinds` is of a look-up: the kinds of answer that
    the client can be told (`ipv4`, `ipv6`, `hostname`), the preferred one first. `forwarded` is of FORWARD:
    a weak reference to the torkit.proto.http.Http that has read the head of what goes on.
    """

    command: Command
    host: str
    port: int
    isolation: Hashable = None
    kinds: tuple[str, ...] = ()
    forwarded: Any = None

    @property
    def is_connection(self) -> bool:
        """Returns whether it is for a stream, not for a look-up."""
        return self.command in (Command.CONNECT, Command.FORWARD)

    @property
    def is_address(self) -> bool:
        """Returns whether the client named its destination by address: it may have asked a local resolver."""
        return parse_address(self.host) is not None
