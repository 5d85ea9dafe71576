"""Circuits for onion services: to relays that services have named, and to rendezvous points.

Each begins with a stem: guard, vanguards and a middle (torkit/paths/vanguards.py), built ahead (reserve.py)
or now. When a stem cannot be built, another is tried. So a failure behind a stem that was built just now is
the fault of the relay to be reached.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from math import inf

import trio

from torkit._fast.cells import RelayCommand
from torkit.directory.directory import Relay
from torkit.errors import CircuitError, Closed, Retry, TimedOut, TorkitError
from torkit.learnt.build_times import BuildTimes, Timeouts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import ForOnion, OnionDirectory, Rendezvous
from torkit.net.circuits.shelves import MAX_DIRTINESS
from torkit.net.onion.reserve import Reserve

# Implementation limits: stems tried for one circuit, and circuits tried to one relay. (A relay that has found
# another dead refuses for a minute to connect to it; by then other relays may have found it alive.)
STEM_ATTEMPTS = 3
TARGET_ATTEMPTS = 2

# Implementation limit: circuits that are kept only to be padded.
MAX_RELEASED = 256


class Stems:
    """Makes circuits, which the caller closes. A `crowd` takes turns with others (circuits/turns.py)."""

    def __init__(
        self,
        circuits: Circuits,
        build_times: BuildTimes,
        is_excluded: Callable[[bytes], bool],
        reserve: Reserve | None,
    ) -> None:
        """`is_excluded` tells, by identity, which relays no circuit may lead to by the user's wish. Without
        `reserve` no stems are built ahead."""
        self.reserve = reserve
        self._circuits = circuits
        self._build_times = build_times
        self._is_excluded = is_excluded
        self._released: dict[Circuit, float] = {}  # when each is closed; the earliest first
        self._is_due_earlier = trio.Event()

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts of a circuit of three hops."""
        return self._build_times.timeouts

    async def to_directory(self, target: Relay) -> Circuit:
        """Returns a circuit to a directory of onion services. Raises as `build` and `extend`."""
        if (ready := await self.extend_ready(target)) is not None:
            return ready
        return await self.reach(OnionDirectory(target), target, None)

    async def reach(
        self, purpose: ForOnion, target: Relay, crowd: Hashable, *, keeps_kh: bool = False
    ) -> Circuit:
        """Returns a circuit to `target`, by stems that are built now. Raises as `build` and `extend`."""
        for attempt in range(1, TARGET_ATTEMPTS + 1):
            circuit = await self.build(purpose, crowd)
            try:
                await self.extend(circuit, target, keeps_kh=keeps_kh)
            except Closed:
                if attempt == TARGET_ATTEMPTS:
                    raise
            else:
                return circuit
        raise AssertionError("unreachable")

    async def to_rendezvous_point(self, crowd: Hashable) -> Circuit:
        """Returns a circuit to a relay of our choice. Raises as `build`."""
        ready = None if self.reserve is None else self.reserve.take(None)
        return ready or await self.build(Rendezvous(), crowd)

    async def extend_ready(self, target: Relay) -> Circuit | None:
        """Returns a stem that was built ahead, with `target` added; None where there is none, or it fails.

        A failure is not raised: an older stem may be at fault, and not `target`.
        """
        if self.reserve is None or self._is_excluded(target.identity):
            return None
        stem = self.reserve.take(target)
        if stem is not None:
            with suppress(TorkitError):
                await self.extend(stem, target)
                return stem
        return None

    async def build(self, purpose: ForOnion, crowd: Hashable) -> Circuit:
        """Returns a new stem for this purpose.

        Raises NoPath, NoGuard, what ended the last of STEM_ATTEMPTS, CircuitError for an excluded target.
        """
        if purpose.target is not None and self._is_excluded(purpose.target.identity):
            raise CircuitError("the last relay would be one that the user excludes")
        for attempt in range(1, STEM_ATTEMPTS + 1):
            try:
                return await self._circuits.open(purpose, crowd)
            except TorkitError as error:
                if error.retry is not Retry.NOW or attempt == STEM_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def extend(self, stem: Circuit, target: Relay, *, keeps_kh: bool = False) -> None:
        """Add `target` to the stem, with the handshake of a middle relay; where that fails, close the stem.

        With `keeps_kh`, its KH is kept (Circuit.extend). After a failure, the next stem for this target ends
        at another relay. Raises TimedOut, or what made it fail.
        """
        length = len(stem.path)
        timeouts = self.timeouts
        seconds = timeouts.for_hops(length + 1).use - timeouts.for_hops(length).use
        last = stem.path[-1]
        try:
            with trio.fail_after(seconds):
                await stem.extend(target, is_last=False, keeps_kh=keeps_kh)
            if stem.error is not None:  # its end came in the same read as the handshake's answer
                raise stem.error
        except BaseException as error:
            stem.close("the last relay could not be added")
            if isinstance(error, Closed | trio.TooSlowError):
                self._circuits.note_failed_step(last, target)
            if isinstance(error, trio.TooSlowError):
                raise TimedOut(f"the last relay was not reached within {seconds:.1f} s") from None
            raise

    def let_go(self, circuit: Circuit, late: RelayCommand | None = None) -> None:
        """Close a circuit that has served; a padded one only after MAX_DIRTINESS. `late` may still come.

        A short life would tell what the circuit was for (as C tor).
        """
        if circuit.release(late):
            self._released[circuit] = trio.current_time() + MAX_DIRTINESS
            if len(self._released) > MAX_RELEASED:
                self._close_released(next(iter(self._released)))
            self._is_due_earlier.set()

    async def keep(self) -> None:
        """Close the circuits that were let go, each when it is due; never returns."""
        while True:
            self._is_due_earlier = trio.Event()
            with trio.move_on_at(next(iter(self._released.values()), inf)):
                await self._is_due_earlier.wait()
            for circuit, due_at in list(self._released.items()):
                if due_at <= trio.current_time() or circuit.error is not None:
                    self._close_released(circuit)

    def renew(self) -> None:
        """Close the circuits that were let go, for a new identity."""
        for circuit in list(self._released):
            self._close_released(circuit)

    def close(self) -> None:
        for circuit in self._released:
            circuit.close("the client ends")

    def _close_released(self, circuit: Circuit) -> None:
        circuit.close(f"it has served for {MAX_DIRTINESS:g} s")
        del self._released[circuit]
