"""Circuits for onion services: to relays that others have named, and to rendezvous points.

Each begins with a stem, guard - vanguard - middle (torkit/paths/vanguards.py). Where one cannot be built,
another is tried; so what fails behind it is the fault of whoever was to be reached.
"""

from collections.abc import Callable, Hashable

import trio

from torkit.directory.directory import Relay
from torkit.errors import CircuitError, Retry, TimedOut, TorkitError
from torkit.learnt.build_times import HOPS, BuildTimes, Timeouts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import ForOnion, Introduction, OnionDirectory, Rendezvous

# Implementation limit: stems built for one circuit.
STEM_ATTEMPTS = 3


class Stems:
    """The caller closes what is made here. A `crowd` takes turns with others (circuits/turns.py)."""

    def __init__(
        self, circuits: Circuits, build_times: BuildTimes, is_excluded: Callable[[bytes], bool]
    ) -> None:
        """`is_excluded` says of which relays, by identity, the user wants no circuit to lead there."""
        self._circuits = circuits
        self._build_times = build_times
        self._is_excluded = is_excluded

    @property
    def timeouts(self) -> Timeouts:
        """Of a circuit of three hops."""
        return self._build_times.timeouts

    async def to_directory(self, target: Relay) -> Circuit:
        """A circuit to a directory of onion services. Raises as `to_introduction_point`."""
        return await self._extend(OnionDirectory(target), target, None)

    async def to_introduction_point(self, target: Relay, crowd: Hashable) -> Circuit:
        """A circuit to a relay that a service has named, which is asked for what middle relays are.

        Raises NoPath, NoGuard, TimedOut, what made the last hop fail, CircuitError for one that is excluded.
        """
        return await self._extend(Introduction(target), target, crowd)

    async def to_rendezvous_point(self, crowd: Hashable) -> Circuit:
        """A circuit to a relay of our choice. Raises as above."""
        return await self._build(Rendezvous(), crowd)

    async def _extend(self, purpose: ForOnion, target: Relay, crowd: Hashable) -> Circuit:
        if self._is_excluded(target.identity):
            raise CircuitError("the last relay would be one that the user excludes")
        circuit = await self._build(purpose, crowd)
        circuit.unnamed_hop = HOPS + 1  # it may tell which service is reached
        seconds = self.timeouts.for_hops(HOPS + 1).use - self.timeouts.use
        try:
            with trio.fail_after(seconds):
                await circuit.extend(target, is_last=False)
            if circuit.error is not None:  # it ended in the same read as its last handshake
                raise circuit.error
        except BaseException as error:
            circuit.close("the last relay could not be added")
            if isinstance(error, trio.TooSlowError):
                raise TimedOut(f"the last relay was not reached within {seconds:.1f} s") from None
            raise
        return circuit

    async def _build(self, purpose: ForOnion, crowd: Hashable) -> Circuit:
        for attempt in range(1, STEM_ATTEMPTS + 1):
            try:
                return await self._circuits.open(purpose, crowd)
            except TorkitError as error:
                if error.retry is not Retry.NOW or attempt == STEM_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")
