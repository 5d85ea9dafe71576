"""Limits the clients of a proxy: decides who leaves when there is no room for another."""

from collections.abc import Callable
from typing import NoReturn, Protocol

import trio

from torkit.net.proxy.deadlines import Deadlines

# How long a client may take to say what it wants (as C tor's SocksTimeout).
HANDSHAKE_TIMEOUT = 120.0  # seconds

# Each has one descriptor; half of the usual soft limit of 1,024 is left for relays and files.
MAX_CLIENTS = 512


class Member(Protocol):
    """One client, as it is counted."""

    def give_up_handshake(self) -> None:
        """Refuse a client that has taken too long to say what it wants."""

    def give_up_attempt(self) -> None:
        """Give up the first attempt, which has taken too long."""

    def look(self) -> None:
        """Close if the client has gone. An idle socket reports nothing, so we ask."""

    def close(self) -> None:
        """Let go of everything, once."""


class Limits:
    """The clients of one proxy, at most `max_clients`.

    A new client takes the place of the one that has kept silent for longest. `on_room` is told when that
    becomes impossible, since all clients have said what they want, and when it is possible again.
    """

    def __init__(self, max_clients: int, on_room: Callable[[bool], None]) -> None:
        self._max_clients = max_clients
        self._on_room = on_room
        self._clients: dict[Member, None] = {}
        self._silent = Deadlines(HANDSHAKE_TIMEOUT, _give_up)
        self._is_empty = trio.Event()

    @property
    def clients(self) -> list[Member]:
        return list(self._clients)

    @property
    def has_room(self) -> bool:
        """Returns whether a client may be accepted, if need be in the place of a silent one."""
        return len(self._clients) < self._max_clients or self._silent.oldest is not None

    def add(self, client: Member) -> None:
        if len(self._clients) >= self._max_clients and (oldest := self._silent.oldest) is not None:
            oldest.close()
        self._clients[client] = None
        self._silent.add(client)
        if not self.has_room:
            self._on_room(False)

    def note_request(self, client: Member) -> None:
        """Note that a client has said what it wants, or will not."""
        if self._silent.discard(client) and not self.has_room:
            self._on_room(False)

    def remove(self, client: Member) -> None:
        self.note_request(client)
        was_full = len(self._clients) >= self._max_clients
        self._clients.pop(client, None)
        if not self._clients:
            self._is_empty.set()
        if was_full and self._silent.oldest is None:  # there was no room
            self._on_room(self.has_room)

    def hurry(self, seconds: float) -> None:
        """Give clients no more than that to say what they want, from now on."""
        self._silent.hurry(seconds)

    async def wait_empty(self) -> None:
        """Wait until the last client has left."""
        while self._clients:
            self._is_empty = trio.Event()
            await self._is_empty.wait()

    async def run(self) -> NoReturn:
        await self._silent.run()


def _give_up(client: Member) -> None:
    client.give_up_handshake()
