"""Decides whose circuit is built next, and how long a request rests between builds that fail.

No more than MAX_PENDING circuits are under way at once. Where more are wanted, isolations take turns, so
that a crowd of requests in one isolation does not delay the first request of another.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Hashable
from random import Random

import trio

# Circuits to directories do not count: few are asked at once. (C tor's MaxClientCircuitsPending.)
MAX_PENDING = 32

# Implementation limits, seconds: how long a request rests after its first builds have failed, and after each
# further one. (C tor looks once a second.)
RESTS = (1.0, 1.0, 2.0, 2.0, 3.0)

logger = logging.getLogger(__name__)


def rest(number: int, rng: Random) -> float:
    """Returns the seconds of a rest, by how many the request had before.

    Random, lest a crowd comes back at once.
    """
    return RESTS[min(number, len(RESTS) - 1)] * (0.5 + rng.random())


class Turns:
    """Says when a circuit may be begun. `async with turns.take(isolation)` holds while it is under way."""

    def __init__(self) -> None:
        self._free_count = MAX_PENDING
        self._waiting: OrderedDict[Hashable, deque[trio.Event]] = OrderedDict()  # the next first

    @property
    def has_room(self) -> bool:
        """Returns whether a circuit may be begun without a wait. False while any request waits."""
        return self._free_count > 0

    def take(self, isolation: Hashable) -> "_Turn":
        """Wait for a turn, beside other isolations, and hold it."""
        return _Turn(self, isolation)

    async def wait(self, isolation: Hashable) -> None:
        """Wait for a turn, beside other isolations. Call `pass_on` when it has ended."""
        if self._free_count > 0:
            self._free_count -= 1
            return
        if not self._waiting:
            logger.info("%d circuits are being built: more wait for their turn", MAX_PENDING)
        turn = trio.Event()
        turns = self._waiting.setdefault(isolation, deque())
        turns.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.pass_on()
            else:
                turns.remove(turn)
                if not turns:
                    del self._waiting[isolation]
            raise

    def pass_on(self) -> None:
        """Give a turn that has ended to the next isolation, which then has its next one last."""
        if not self._waiting:
            self._free_count += 1
            return
        isolation, turns = self._waiting.popitem(last=False)
        turns.popleft().set()
        if turns:
            self._waiting[isolation] = turns


class _Turn:
    """Made by `Turns.take`."""

    def __init__(self, turns: Turns, isolation: Hashable) -> None:
        self._turns = turns
        self._isolation = isolation

    async def __aenter__(self) -> None:
        await self._turns.wait(self._isolation)

    async def __aexit__(self, *_: object) -> None:
        self._turns.pass_on()
