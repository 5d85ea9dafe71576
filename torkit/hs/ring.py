"""The ring of hidden service directories: which relays hold the descriptor of which service.

rend-spec-v3, "Where to publish a hidden service descriptor".
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from typing import Generic, TypeVar

from torkit.hs.calendar import TimePeriod

Node = TypeVar("Node")


def service_index(blinded: bytes, replica: int, period: TimePeriod) -> bytes:
    """Returns the place of a replica of a descriptor, 32 bytes. Replicas count from 1."""
    numbers = b"".join(number.to_bytes(8, "big") for number in (replica, period.length, period.number))
    return hashlib.sha3_256(b"store-at-idx" + blinded + numbers).digest()


def relay_index(ed25519: bytes, shared_random: bytes, period: TimePeriod) -> bytes:
    """Returns the place of the relay with this Ed25519 identity, 32 bytes."""
    numbers = period.number.to_bytes(8, "big") + period.length.to_bytes(8, "big")
    return hashlib.sha3_256(b"node-idx" + ed25519 + shared_random + numbers).digest()


class Ring(Generic[Node]):
    """The ring of one period and shared random value. A node is the caller's value for a relay."""

    def __init__(
        self, relays: Iterable[tuple[bytes, Node]], *, shared_random: bytes, period: TimePeriod
    ) -> None:
        """`relays` are pairs of an Ed25519 identity and a node."""
        placed = [(relay_index(ed25519, shared_random, period), node) for ed25519, node in relays]
        placed.sort(key=lambda pair: pair[0])
        self._indexes = [index for index, _ in placed]
        self._nodes = [node for _, node in placed]
        self._period = period

    def responsible(self, blinded: bytes, *, replicas: int, spread: int) -> list[Node]:
        """Returns the directories of all replicas: `spread` for each, from its index upwards, none twice."""
        chosen = self.by_replica(blinded, replicas=replicas, spread=spread)
        return [node for nodes in chosen for node in nodes]

    def by_replica(self, blinded: bytes, *, replicas: int, spread: int) -> list[list[Node]]:
        """Returns the same, a list for each replica."""
        taken: set[int] = set()
        chosen: list[list[Node]] = []
        for replica in range(1, replicas + 1):
            first = bisect_left(self._indexes, service_index(blinded, replica, self._period))
            nodes: list[Node] = []
            for step in range(len(self._nodes)):
                place = (first + step) % len(self._nodes)
                if len(nodes) == spread:
                    break
                if place not in taken:
                    taken.add(place)
                    nodes.append(self._nodes[place])
            chosen.append(nodes)
        return chosen
