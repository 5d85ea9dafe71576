"""How much of the network a scan uses at once: circuits a second, and circuits through any one relay."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from torkit.directory.directory import Relay


class Rate:
    """`await take()` returns `per_second` times a second, and never sooner after the last time."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._next_at = trio.current_time()

    async def take(self) -> None:
        at = max(self._next_at, trio.current_time())
        self._next_at = at + self._interval
        await trio.sleep_until(at)


class Load:
    """No relay carries more than `most` circuits at once, in whatever position."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: Counter[bytes] = Counter()
        self._waiting = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def hold(self, path: Sequence[Relay]) -> AsyncIterator[None]:
        """While a circuit goes through these. All have room at the same moment, so nobody waits for ever."""
        identities = [relay.identity for relay in path]
        while any(self._counts[identity] >= self._most for identity in identities):
            await self._waiting.park()
        self._counts.update(identities)
        try:
            yield
        finally:
            self._counts.subtract(identities)
            for identity in identities:
                if not self._counts[identity]:
                    del self._counts[identity]
            self._waiting.unpark_all()
