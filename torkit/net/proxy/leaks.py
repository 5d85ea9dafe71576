"""Whether programs have asked a resolver outside Tor: who connects to an address may have looked it up."""

import logging

from torkit.errors import UsageError
from torkit.proto.request import Command, Request

# Implementation limit: addresses that look-ups have answered. Who connects to one has leaked no name.
MAX_TOLD = 1024

logger = logging.getLogger(__name__)


class Leaks:
    """Of one proxy. With `names_only`, connections to addresses are refused.

    Programs that `can_ask_elsewhere` have resolvers outside Tor within their reach.
    """

    def __init__(self, *, names_only: bool, can_ask_elsewhere: bool = True) -> None:
        self._names_only = names_only
        self._can_ask_elsewhere = can_ask_elsewhere
        self._told: dict[str, None] = {}  # addresses that look-ups have answered, the oldest first
        self._has_warned = False

    def note_told(self, host: str) -> None:
        """A look-up through Tor has answered with `host`."""
        self._told.pop(host, None)
        self._told[host] = None
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]

    def check(self, request: Request) -> None:
        """Warn of a request that may be a leak. Raises UsageError where only names are served."""
        is_address = request.command is Command.CONNECT and request.is_address
        if is_address and (self._names_only or request.host not in self._told):
            if self._can_ask_elsewhere:
                self._warn()
            if self._names_only:
                raise UsageError("a connection to an address, and only names are served")

    def _warn(self) -> None:
        """Once for this proxy, however many connections by name came before."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a program asked for an address, not a name%s; if it looked the name up by itself, "
                "its resolver knows where it goes (use socks5h:// or SOCKS4a)",
                ", and was refused" if self._names_only else "",
            )
