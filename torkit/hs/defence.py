"""Proof of work, the service's side: the puzzle, the check of proofs, and the order in which clients are met.

    Puzzle     makes seeds, and suggests an effort, which follows the load
    Waiting    clients to be met: by effort, with equal effort in the order in which they came

A client without a proof comes last, and is still met while there is room. Time is an argument, in seconds;
Unix time where it is published. Proposal 327. (Numbers as in C tor. The client's side: hs/pow.py.)
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush, nsmallest
from random import Random
from typing import Generic, NamedTuple, TypeVar

from torkit.errors import CircuitError
from torkit.hs.descriptor import ProofOfWork
from torkit.hs.keys import KEY_LEN
from torkit.hs.pow import SEED_HEAD_LEN, Proof, is_valid
from torkit.hs.replay import ReplayCache

# (As C tor.)
MIN_SEED_TIME, MAX_SEED_TIME = 105 * 60, 120 * 60  # a seed is published for a random time between these
UPDATE_INTERVAL = 300  # seconds between two suggestions of an effort
MIN_CHANGE = 0.15  # a smaller change of the effort, as a fraction, is not published

# Implementation limits: waiting clients, and proofs remembered for one seed.
MAX_WAITING = 4096
MAX_PROOFS = 65_536

Item = TypeVar("Item")


class _Seed(NamedTuple):
    value: bytes
    expires: int
    seen: ReplayCache


class Puzzle:
    """The puzzle of one service: all its periods share seeds and effort."""

    def __init__(self, now: float, randomness: Callable[[int], bytes], rng: Random) -> None:
        """`randomness(n)` returns n random bytes that nobody may guess."""
        self._randomness = randomness
        self._rng = rng
        self._seeds = [self._make_seed(now, b"")]  # the newest first
        self._suggested = 0
        self._published = 0
        self._updated_at = now
        self._handled = 0  # clients since that look, as all below
        self._total_effort = 0
        self._greatest_dropped = 0
        self._had_queue = False

    @property
    def suggested(self) -> int:
        """The effort that the newest descriptors ask for."""
        return self._published

    @property
    def asked(self) -> ProofOfWork:
        """The parameters for a descriptor."""
        return ProofOfWork(self._seeds[0].value, self._published, self._seeds[0].expires)

    def check(self, proof: Proof, blinded: bytes) -> int:
        """Returns the effort that a client has proved to the service with this blinded key.

        Raises CircuitError for an invalid or repeated proof.
        """
        for seed in self._seeds:
            if proof.seed_head == seed.value[:SEED_HEAD_LEN]:
                if not is_valid(proof, blinded=blinded, seed=seed.value):
                    raise CircuitError("INTRODUCE2 has a proof of work that is none")
                if not seed.seen.is_new(proof.nonce):
                    raise CircuitError("INTRODUCE2 has a proof of work that was used before")
                return proof.effort
        raise CircuitError("INTRODUCE2 has a proof of work for another seed than ours")

    # --- the load ---------------------------------------------------------------------------------

    def note_met(self, effort: int, *, others_wait: bool, next_effort: int) -> None:
        """Note that a client is about to be met. If others wait, the first of them has `next_effort`."""
        self._handled += 1
        self._total_effort += effort
        self._had_queue |= others_wait and next_effort >= self._suggested

    def note_dropped(self, effort: int) -> None:
        """Note that a client will not be met, since too many wait or it waited for too long."""
        self._greatest_dropped = max(self._greatest_dropped, effort)
        self._had_queue = True

    def update(self, now: float, *, waiting: int) -> bool:
        """Renew seed and effort where it is time. Returns whether new descriptors have to be published."""
        is_changed = False
        if now >= self._seeds[0].expires:
            self._seeds = [self._make_seed(now, self._seeds[0].value), self._seeds[0]]
            is_changed = True
        if now - self._updated_at >= UPDATE_INTERVAL:
            self._updated_at = now
            self._follow_load(waiting)
            low, high = sorted((self._suggested, self._published))
            if high - low > MIN_CHANGE * self._published:
                is_changed = True
        if is_changed:
            self._published = self._suggested
        return is_changed

    def _follow_load(self, waiting: int) -> None:
        if self._greatest_dropped > self._suggested or (self._had_queue and waiting):
            mean = self._total_effort // self._handled if self._handled else 0
            self._suggested = max(self._suggested + 1, mean)
        elif not self._had_queue:
            self._suggested = 2 * self._suggested // 3
        self._handled = self._total_effort = self._greatest_dropped = 0
        self._had_queue = False

    def _make_seed(self, now: float, before: bytes) -> _Seed:
        """Returns a seed whose head differs from that of `before`: a proof names its seed by the head."""
        while True:
            value = self._randomness(KEY_LEN)
            if value[:SEED_HEAD_LEN] != before[:SEED_HEAD_LEN]:
                expires = int(now) + self._rng.randint(MIN_SEED_TIME, MAX_SEED_TIME)
                return _Seed(value, expires, ReplayCache(MAX_PROOFS))


class _Entry(NamedTuple, Generic[Item]):
    """The least entry is served first."""

    rank: int  # the effort, negative
    number: int
    came_at: float
    item: Item


class Waiting(Generic[Item]):
    """A queue of at most `limit` clients. When it is full, the half with the least effort is dropped."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._limit = limit
        self._entries: list[_Entry[Item]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def next_effort(self) -> int:
        """The effort of the first in the queue; 0 where nobody waits."""
        return -self._entries[0].rank if self._entries else 0

    def add(self, effort: int, came_at: float, item: Item) -> list[int]:
        """Add a client. Returns the efforts of the clients that were dropped, since too many waited."""
        self._number += 1
        heappush(self._entries, _Entry(-effort, self._number, came_at, item))
        if len(self._entries) <= self._limit:
            return []
        kept = nsmallest(self._limit // 2, self._entries)
        last = kept[-1]
        dropped = [-entry.rank for entry in self._entries if entry[:2] > last[:2]]
        self._entries = kept
        heapify(self._entries)
        return dropped

    def take(self) -> tuple[int, float, Item]:
        """Remove the first client. Returns its effort, when it came, and its item."""
        entry = heappop(self._entries)
        return -entry.rank, entry.came_at, entry.item
