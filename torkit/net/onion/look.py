"""Looks at an onion service as a client does: asks its directories, each by itself, and meets it once.

What a client keeps is left as it is, but for what every meeting leaves.
"""

from collections.abc import Callable
from typing import NamedTuple

import trio

from torkit.directory.directory import Relay
from torkit.errors import TorkitError, UsageError
from torkit.hs.address import parse_address
from torkit.hs.client_auth import ClientKey
from torkit.hs.descriptor import Descriptor
from torkit.net.circuits.request import STREAM_TIMEOUT
from torkit.net.onion.services import Key, OnionServices

# Implementation limit: directories asked at once.
MAX_AT_ONCE = 4


class Answer(NamedTuple):
    """What a directory of a service answered: a descriptor, or why there is none.

    Replicas count from 1; `seconds` are those of the circuit and of the answer.
    """

    replica: int
    relay: Relay
    seconds: float
    descriptor: Descriptor | None = None
    failure: TorkitError | None = None


class Met(NamedTuple):
    """A meeting that has joined: its seconds, and how many of these went into a proof of work."""

    seconds: float
    worked: float


class Look:
    """Made by `Tor.look_at_onion`, for one service."""

    def __init__(self, services: OnionServices, address: str, client_key: ClientKey | None) -> None:
        """`client_key` is used with this service from now on.

        Raises OnionServiceError (ADDRESS), UsageError for a key that is another service's.
        """
        self._services = services
        self._identity = parse_address(address)
        if client_key is not None:
            if client_key.identity != self._identity:
                raise UsageError("the client key is for another onion service")
            services.keys.add(client_key)

    async def ask_directories(self, note: Callable[[Answer], None]) -> list[Answer]:
        """Ask every directory that clients ask. Returns the answers; `note` is called with each as it comes.

        Raises NoDirectory.
        """
        answers: list[Answer] = []
        limit = trio.CapacityLimiter(MAX_AT_ONCE)
        descriptors = self._services.descriptors
        key = await self._services.keys.find(self._identity)
        directories = await descriptors.directories(self._identity)

        async def ask(replica: int, relay: Relay) -> None:
            async with limit:
                started = trio.current_time()
                descriptor: Descriptor | None = None
                failure: TorkitError | None = None
                try:
                    descriptor = await descriptors.ask(relay, self._identity, key)
                except TorkitError as error:
                    failure = error
            answers.append(Answer(replica, relay, trio.current_time() - started, descriptor, failure))
            note(answers[-1])

        async with trio.open_nursery() as nursery:
            for replica, relays in enumerate(directories, start=1):
                for relay in relays:
                    nursery.start_soon(ask, replica, relay)
        return answers

    async def meet(self) -> Met:
        """Meet the service on circuits of its own, and begin no stream. Raises as `Tor.connect`."""
        started = trio.current_time()
        key = Key(self._services.identity, object(), self._identity)
        circuit, worked = await self._services.acquire(key, started + STREAM_TIMEOUT)
        circuit.close()
        return Met(trio.current_time() - started, worked)
