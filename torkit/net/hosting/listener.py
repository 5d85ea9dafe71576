"""Streams of an onion service's clients, for a program of ours: trio's listener."""

from __future__ import annotations

from collections import deque

import trio

from torkit.errors import EndReason
from torkit.net.circuit.stream import Stream

# Implementation limit: streams that wait to be accepted. Further ones are refused.
BACKLOG = 128


class Incoming(trio.abc.Listener[Stream]):
    """`take` is what an OnionService calls."""

    def __init__(self, ports: frozenset[int]) -> None:
        self._ports = ports
        self._waiting: deque[Stream] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._is_closed = False

    def take(self, stream: Stream, port: int) -> None:
        """Have a stream wait; or end it: DONE says that nothing is at this port, as C tor's services do."""
        if port not in self._ports or self._is_closed:
            stream.close(EndReason.DONE)
        elif len(self._waiting) == BACKLOG:
            stream.close(EndReason.RESOURCELIMIT)
        else:
            stream.port = port
            self._waiting.append(stream)
            self._changed.unpark()

    async def accept(self) -> Stream:
        """The next client's stream, which is told that it is connected; its `port` is what it asked for."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError("the onion service has ended")
            while self._waiting:
                stream = self._waiting.popleft()
                if stream.circuit.error is None:
                    stream.accept()
                    return stream
            await self._changed.park()

    async def aclose(self) -> None:
        """Accept no more; those that wait are refused."""
        self._is_closed = True
        while self._waiting:
            self._waiting.popleft().close(EndReason.DONE)
        self._changed.unpark_all()
        await trio.lowlevel.checkpoint()
