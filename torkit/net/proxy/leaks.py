"""Notices programs that may have asked a resolver outside Tor: they connect to addresses, not names."""

import logging

from torkit.errors import UsageError
from torkit.proto.request import Request

# Implementation limit: addresses from answers to look-ups. A program that connects to one has leaked no name.
MAX_TOLD = 1024

HINT = "if it looked the name up by itself, its resolver knows where it goes (use socks5h:// or SOCKS4a)"

logger = logging.getLogger(__name__)


class Leaks:
    """Watches for leaks at one proxy. With `names_only`, connections to addresses are refused.

    Programs that `can_ask_elsewhere` have resolvers outside Tor within their reach.
    """

    def __init__(self, *, names_only: bool, can_ask_elsewhere: bool = True) -> None:
        self._names_only = names_only
        self._can_ask_elsewhere = can_ask_elsewhere
        self._told: dict[str, None] = {}  # addresses from answers to look-ups, the oldest first
        self._has_warned = False

    def note_told(self, host: str) -> None:
        """Note that a look-up through Tor was answered with `host`."""
        self._told.pop(host, None)
        self._told[host] = None
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]

    def check(self, request: Request) -> None:
        """Raises UsageError for a request that may be a leak, where only names are served."""
        if self._names_only and request.is_connection and request.is_address:
            hint = HINT if self._can_ask_elsewhere else None
            raise UsageError("it asked for an address, and only names are served", hint=hint)

    def note(self, request: Request) -> None:
        """Warn, once, of a connection that may have been a leak, even after many connections by name.

        Call it only for reachable addresses: nobody has looked up an address of this machine's own network.
        """
        if self._has_warned or not self._can_ask_elsewhere:
            return
        if request.is_connection and request.is_address and request.host not in self._told:
            self._has_warned = True
            logger.warning("a program asked for an address, not a name; %s", HINT)
