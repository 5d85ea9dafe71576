"""For the soak of chaos: something between a proxy and its relays that slows links and cuts them.

A relay tells the network the address of such a line instead of its own; whoever uses that relay goes through.
"""

import os
import re
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from random import Random

import trio

from torkit.testnet import Relay

READ_SIZE = 64 << 10
MOST_BYTES = 300_000  # that a cut link carries until then
HANDSHAKE = 6000  # bytes of a new link, about


class Link:
    """One connection; it is cut when `left` more bytes have gone, of both directions."""

    def __init__(
        self, ends: tuple[trio.SocketStream, trio.SocketStream], left: float, *, by_reset: bool
    ) -> None:
        self.left = left
        self.by_reset = by_reset
        self._ends = ends

    async def carry(self, line: "Line", source: trio.SocketStream, sink: trio.SocketStream) -> None:
        while data := await source.receive_some(READ_SIZE):
            if line.delay:
                await trio.sleep(line.delay)
            self.left -= len(data)
            if self.left <= 0:
                await sink.send_all(data[: int(self.left) or len(data)])
                self._cut()
                raise trio.BrokenResourceError
            await sink.send_all(data)
        await sink.send_eof()

    def _cut(self) -> None:
        if self.by_reset:
            for end in self._ends:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Line:
    """In front of one relay. `delay`, seconds, is for each piece of at most READ_SIZE."""

    def __init__(self, address: str, rng: Random) -> None:
        self.address = address
        self.delay = 0.0
        self.proxy: int | None = None  # its process
        self.links: dict[Link, None] = {}  # of the proxy, in order
        self.cuts = 0
        self._next_left = inf
        self._rng = rng

    async def run(self, relay: Relay, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(relay.or_port, host=self.address, backlog=512)
        task_status.started()
        await trio.serve_listeners(partial(self._serve, relay), listeners)

    def cut(self) -> None:
        """Cut a link of the proxy's after some bytes; where it has none, the next one in its handshake."""
        if not self.links:
            self._next_left = self._rng.randrange(1, HANDSHAKE)
            return
        link = self._rng.choice(list(self.links))
        link.left = self._rng.randrange(1, MOST_BYTES)

    async def _serve(self, relay: Relay, client: trio.SocketStream) -> None:
        try:
            is_ours = self.proxy is not None and has_port(self.proxy, client.socket.getpeername()[1])
            async with client, await trio.open_tcp_stream(relay.address, relay.or_port) as server:
                left = inf
                if is_ours:
                    left, self._next_left = self._next_left, inf
                link = Link((client, server), left, by_reset=self._rng.random() < 0.5)
                if is_ours:
                    self.links[link] = None
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(link.carry, self, client, server)
                        nursery.start_soon(link.carry, self, server, client)
                finally:
                    self.links.pop(link, None)
                    self.cuts += link.left <= 0
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # an end that is gone ends the link


def lines_for(nicknames: Sequence[str], seed: int) -> dict[str, Line]:
    """A line for each relay, each in a /16 of its own."""
    return {
        nickname: Line(f"127.{100 + number}.0.1", Random(f"{seed} {nickname}"))
        for number, nickname in enumerate(nicknames)
    }


def has_port(pid: int, port: int) -> bool:
    """Whether a process has a connection from this port; relays, too, connect from 127.0.0.1."""
    row = re.compile(rf"^ *\d+: \w+:{port:04X} \S+ 01 (?:\S+ +){{5}}(\d+) ", re.MULTILINE)
    inodes = row.findall(Path("/proc/net/tcp").read_text())
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}") in {f"socket:[{inode}]" for inode in inodes}:
                    return True
    return False
