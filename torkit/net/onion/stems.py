"""Circuits for onion services: to relays that others have named, and to rendezvous points.

Each begins with a stem, guard, vanguards and a middle (torkit/paths/vanguards.py), built ahead (reserve.py)
or now. Where one cannot be built, another is tried; so what fails behind one that has just been built is the
fault of whoever was to be reached.
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

# Implementation limits: stems built for one circuit, and circuits tried to one directory: a relay refuses for
# a minute to connect to one that it has found dead, while others have long found it alive again.
STEM_ATTEMPTS = 3
TARGET_ATTEMPTS = 2

# Implementation limit: circuits that are kept only to be padded.
MAX_RELEASED = 256


class Stems:
    """The caller closes what is made here. A `crowd` takes turns with others (circuits/turns.py)."""

    def __init__(
        self,
        circuits: Circuits,
        build_times: BuildTimes,
        is_excluded: Callable[[bytes], bool],
        reserve: Reserve | None,
    ) -> None:
        """`is_excluded` says of which relays, by identity, the user wants no circuit to lead there. Without
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
        """A circuit to a directory of onion services. Raises as `build` and `extend`."""
        if (ready := await self.extend_ready(target)) is not None:
            return ready
        return await self.reach(OnionDirectory(target), target, None)

    async def reach(
        self, purpose: ForOnion, target: Relay, crowd: Hashable, *, keeps_kh: bool = False
    ) -> Circuit:
        """A circuit to `target`, by stems of its own. Raises as `build` and `extend`."""
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
        """A circuit to a relay of our choice. Raises as `build`."""
        ready = None if self.reserve is None else self.reserve.take(None)
        return ready or await self.build(Rendezvous(), crowd)

    async def extend_ready(self, target: Relay) -> Circuit | None:
        """A stem that was built ahead, with `target` added; None where there is none.

        Also where that fails: a stem is not as new as one that is built now, so it may be its fault.
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
        """A stem for this purpose, or one that needs no more.

        Raises NoPath, NoGuard, what ended the last of STEM_ATTEMPTS, CircuitError for a target that is
        excluded.
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
        """Add a relay that others have named, which is asked for what middle relays are; or close the stem.

        With `keeps_kh`, its KH is kept (Circuit.extend). The next stem for this target has another last one.
        Raises TimedOut, or what made it fail.
        """
        length = len(stem.path)
        timeouts = self.timeouts
        seconds = timeouts.for_hops(length + 1).use - timeouts.for_hops(length).use
        last = stem.path[-1]
        try:
            with trio.fail_after(seconds):
                await stem.extend(target, is_last=False, keeps_kh=keeps_kh)
            if stem.error is not None:  # it ended in the same read as its last handshake
                raise stem.error
        except BaseException as error:
            stem.close("the last relay could not be added")
            if isinstance(error, Closed | trio.TooSlowError):
                self._circuits.note_failed_step(last, target)
            if isinstance(error, trio.TooSlowError):
                raise TimedOut(f"the last relay was not reached within {seconds:.1f} s") from None
            raise

    def let_go(self, circuit: Circuit, late: RelayCommand | None = None) -> None:
        """Close a circuit that has served; one that is still padded as late as any other. `late` may come.

        As C tor: else its short life would tell what it was for.
        """
        if circuit.release(late):
            self._released[circuit] = trio.current_time() + MAX_DIRTINESS
            if len(self._released) > MAX_RELEASED:
                self._close_released(next(iter(self._released)))
            self._is_due_earlier.set()

    async def keep(self) -> None:
        """Close what was let go when it is due; never returns."""
        while True:
            self._is_due_earlier = trio.Event()
            with trio.move_on_at(next(iter(self._released.values()), inf)):
                await self._is_due_earlier.wait()
            for circuit, due_at in list(self._released.items()):
                if due_at <= trio.current_time() or circuit.error is not None:
                    self._close_released(circuit)

    def renew(self) -> None:
        """For a new identity: keep nothing of the old one's."""
        for circuit in list(self._released):
            self._close_released(circuit)

    def close(self) -> None:
        for circuit in self._released:
            circuit.close("the client ends")

    def _close_released(self, circuit: Circuit) -> None:
        circuit.close(f"it has served for {MAX_DIRTINESS:g} s")
        del self._released[circuit]
