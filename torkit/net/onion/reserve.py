"""Stems that are built ahead: a request for an onion service waits for one hop, not for four.

Three are built from the start on, so that a guard cannot tell which clients use onion services (as C tor).
Each becomes a circuit for one purpose and one service, so that no two isolations share one.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from math import inf
from random import Random
from typing import NamedTuple

import trio

from torkit.directory.directory import Relay
from torkit.errors import TorkitError
from torkit.learnt.predicted_ports import PredictedPorts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.tunnel import Tunnel
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import Ahead
from torkit.net.circuits.spares import MAX_SPARES, SPARE_RETRY

# Implementation limits (as C tor). Circuits that somebody waits for are built first, between two stems.
RESERVE_COUNT = 3
PACE = 1.0  # seconds between two

_ONIONS = 0  # stands for onion services among the ports that are expected

logger = logging.getLogger(__name__)


class _Stem(NamedTuple):
    circuit: Circuit
    age: int  # of the pool, when it was begun
    expires_at: float


class Reserve:
    """Run `keep` in a task. It builds from the first `expect` on, until an hour after the last."""

    def __init__(
        self,
        circuits: Circuits,
        expected: PredictedPorts,
        may_go_on: Callable[[tuple[Relay, ...]], bool],
        rng: Random,
    ) -> None:
        """`may_go_on` says whether the directory still has the relays of a path; `expected` is ours alone."""
        self._circuits = circuits
        self._expected = expected
        self._may_go_on = may_go_on
        self._rng = rng
        self._stems: list[_Stem] = []  # oldest first
        self._is_short = trio.Event()

    def expect(self) -> None:
        """Keep stems ready from now on: an onion service was asked for, and others may follow."""
        self._expected.note(_ONIONS, now=trio.current_time(), rng=self._rng)
        self._is_short.set()

    def take(self, target: Relay | None) -> Circuit | None:
        """Returns a ready stem without `target` in it, which the caller closes; None if there is none."""
        self._drop_old()
        for stem in self._stems:
            if target is None or all(relay.identity != target.identity for relay in stem.circuit.path):
                self._stems.remove(stem)
                stem.circuit.on_end = None
                return stem.circuit
        return None

    async def keep(self) -> None:
        """Keep RESERVE_COUNT stems ready while requests are expected; never returns."""
        while True:
            self._is_short = trio.Event()
            self._drop_old()
            wait_until = min((stem.expires_at for stem in self._stems), default=inf)
            if self._is_one_missing():
                await trio.sleep(PACE if await self._build() else SPARE_RETRY)
                continue
            with trio.move_on_at(wait_until):
                await self._is_short.wait()

    def renew(self) -> None:
        """Replace all stems, for a new identity."""
        self._is_short.set()

    def close(self) -> None:
        for stem in self._stems:
            stem.circuit.close("the client ends")

    def _is_one_missing(self) -> bool:
        count = len(self._stems)
        is_expected = bool(self._expected.ports(trio.current_time()))
        return is_expected and count < RESERVE_COUNT and count + len(self._circuits.clean) < MAX_SPARES

    async def _build(self) -> bool:
        """Build a stem, unless somebody waits for a turn. Returns whether it was built."""
        age = self._circuits.age
        with suppress(TorkitError):  # a request that needs a circuit now tells the user why there is none
            if self._circuits.turns.has_room:
                circuit = await self._circuits.open(Ahead())
                circuit.on_end = self._note_end
                expires_at = trio.current_time() + self._circuits.idle_timeout(self._expected)
                self._stems.append(_Stem(circuit, age, expires_at))
                return True
        return False

    def _note_end(self, circuit: Tunnel) -> None:
        self._is_short.set()

    def _drop_old(self) -> None:
        """Close the stems that are too old to be used."""
        now = trio.current_time()
        for stem in self._stems:
            if stem.expires_at <= now:
                stem.circuit.close("nobody has come for it")
            elif stem.age != self._circuits.age:
                stem.circuit.close("all circuits are made anew")
            elif not self._may_go_on(stem.circuit.path):
                stem.circuit.close("the directory allows its path no more")
        self._stems = [stem for stem in self._stems if stem.circuit.error is None]
