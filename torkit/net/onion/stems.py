"""Circuits for onion services: to relays that others have named, and to rendezvous points.

Each begins with a stem, guard, vanguards and a middle (torkit/paths/vanguards.py), built ahead (reserve.py)
or now. Where one cannot be built, another is tried; so what fails behind one that has just been built is the
fault of whoever was to be reached.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress

import trio

from torkit._fast.cells import RelayCommand
from torkit.directory.directory import Relay
from torkit.errors import CircuitError, Closed, Retry, TimedOut, TorkitError
from torkit.learnt.build_times import BuildTimes, Timeouts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import ForOnion, OnionDirectory, Rendezvous
from torkit.net.onion.reserve import Reserve

# Implementation limits: stems built for one circuit, and circuits tried to one directory: a relay refuses for
# a minute to connect to one that it has found dead, while others have long found it alive again.
STEM_ATTEMPTS = 3
TARGET_ATTEMPTS = 2

# Implementation limits: circuits that are kept only to be padded, and for how many seconds, as C tor.
MAX_RELEASED = 64
MAX_PADDED = 3600.0


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
        self._released: dict[Circuit, float] = {}  # oldest first: since when, on trio's clock

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts of a circuit of three hops."""
        return self._build_times.timeouts

    async def to_directory(self, target: Relay) -> Circuit:
        """A circuit to a directory of onion services. Raises as `build` and `extend`."""
        if (ready := await self.extend_ready(target)) is not None:
            return ready
        for attempt in range(1, TARGET_ATTEMPTS + 1):
            circuit = await self.build(OnionDirectory(target), None)
            try:
                await self.extend(circuit, target)
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

    async def extend(self, stem: Circuit, target: Relay) -> None:
        """Add a relay that others have named, which is asked for what middle relays are; or close the stem.

        Raises TimedOut, or what made it fail. The next stem for this target then has another last relay.
        """
        length = len(stem.path)
        timeouts = self.timeouts
        seconds = timeouts.for_hops(length + 1).use - timeouts.for_hops(length).use
        last = stem.path[-1]
        try:
            with trio.fail_after(seconds):
                await stem.extend(target, is_last=False)
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
        """Close a circuit that has served, once it is not padded any more. `late` may still come on it."""
        circuit.release(late)
        self._released[circuit] = now = trio.current_time()
        for one, since in list(self._released.items()):
            if now - since >= MAX_PADDED or len(self._released) > MAX_RELEASED:
                one.close()
            if one.error is not None:
                del self._released[one]

    def close(self) -> None:
        if self.reserve is not None:
            self.reserve.close()
        for circuit in self._released:
            circuit.close("the client ends")
