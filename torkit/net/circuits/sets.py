"""Builds sets of linked circuits, and keeps some ready. None is built for a request that waits (as C tor).

Two legs go to one exit, by different guards and different middles. Both are begun at once. A leg that fails
is begun anew, a few times for one set: with more tries, a relay that fails legs could choose our relays
(proposal 329, 4.2.2).
"""

import logging
import os
from math import inf

import trio

from torkit.directory.directory import Relay
from torkit.errors import NotPossible, TimedOut, TorkitError
from torkit.learnt.path_bias import UNWATCHED
from torkit.net.circuit.linked import LegLinked, LinkedCircuit, link_leg
from torkit.net.circuits.build import Builder, Choice
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import ExitByLegs
from torkit.net.current import Current
from torkit.paths.choose import linking_share
from torkit.proto.conflux import NONCE_LEN, prebuilt_count

LEGS = 2

# Implementation limits, seconds before sets are built again: after one failed, and where no path fits.
SET_RETRY = 5.0
PATH_RETRY = 60.0

logger = logging.getLogger(__name__)


class Sets:
    """`keep` begins the sets that are missing. They are built in `nursery`."""

    def __init__(self, circuits: Circuits, builder: Builder, current: Current, nursery: trio.Nursery) -> None:
        self._circuits = circuits
        self._builder = builder
        self._current = current
        self._nursery = nursery
        self._under_way = 0
        self._rests_until = -inf

    def keep(self) -> float:
        """Begin as many sets as are missing, at once. Returns when to look again, on trio's clock.

        Sets are built only while some port is expected: else an idle client would build them for ever
        (tor#40981).
        """
        now = trio.current_time()
        ports = self._circuits.predicted.ports(now)
        directory = self._current.known
        if not ports or directory is None:
            return inf
        if now < self._rests_until:
            return self._rests_until
        if not self._circuits.turns.has_room:
            return now + SET_RETRY
        ready = self._under_way + sum(entry.is_linked for entry in self._circuits.clean)
        wanted = prebuilt_count(self._current.param, linking_share(directory)) - ready
        room = self._current.param("cfx_max_linked_set") - self._under_way - self._circuits.linked_count
        for _ in range(min(wanted, room)):
            self._under_way += 1
            self._nursery.start_soon(self._build, ExitByLegs(ports[0]))
        return inf

    async def _build(self, purpose: ExitByLegs) -> None:
        try:
            self._circuits.put_up(await self.build(purpose), purpose)
        except TorkitError as error:
            logger.info("no circuits were linked: %s", error)
            rest = PATH_RETRY if isinstance(error, NotPossible) else SET_RETRY
            self._rests_until = trio.current_time() + rest
        finally:
            self._under_way -= 1
            self._circuits.is_short.set()

    async def build(self, purpose: ExitByLegs) -> LinkedCircuit:
        """Build and link two circuits to one exit.

        Raises what ended the last attempt at a leg; NotPossible where the consensus switches sets off.
        """
        if not self._current.param("cfx_enabled"):
            raise NotPossible("the consensus allows no linked circuits")
        set_ = _Set(self._builder, purpose, LEGS + self._current.param("cfx_max_unlinked_leg_retry"))
        choices = [set_.choose(number) for number in range(LEGS)]  # before anything is sent
        try:
            async with trio.open_nursery() as nursery:
                for number, choice in enumerate(choices):
                    nursery.start_soon(self._link, set_, number, choice, nursery.cancel_scope)
            return set_.finish(self._current)
        except BaseException:
            set_.close()
            raise

    async def _link(self, set_: "_Set", number: int, choice: Choice, others: trio.CancelScope) -> None:
        """Make one leg ready, by as many attempts as its set has left. If none helps, end the other leg."""
        while True:
            try:
                async with self._circuits.turns.take(None):
                    set_.legs[number] = await self._link_once(choice, set_)
            except TorkitError as failure:
                logger.info("a leg was not linked: %s", failure)
                del set_.paths[number]
                try:
                    choice = set_.choose(number, failure)
                except TorkitError as error:
                    set_.failure = error
                    others.cancel()
                    return
            else:
                return

    async def _link_once(self, choice: Choice, set_: "_Set") -> LegLinked:
        circuit = await self._builder.build(choice, set_.purpose)
        timeout = self._builder.build_times.timeouts.use
        try:
            with trio.fail_after(timeout):
                return await link_leg(circuit, set_.nonce)
        except trio.TooSlowError:
            circuit.close("its exit did not link it in time")
            raise TimedOut(f"an exit did not link a circuit within {timeout:.1f} s") from None
        except BaseException:
            circuit.close("it was not linked")
            raise


class _Set:
    """Legs that are being linked. The first path decides on the exit. Attempts count when they begin."""

    def __init__(self, builder: Builder, purpose: ExitByLegs, launches: int) -> None:
        self.purpose = purpose
        self.nonce = os.urandom(NONCE_LEN)
        self.legs: dict[int, LegLinked] = {}
        self.paths: dict[int, Choice] = {}
        self.failure: TorkitError | None = None
        self.launches_left = launches
        self._builder = builder
        self._exit: Relay | None = None

    def choose(self, number: int, failure: TorkitError | None = None) -> Choice:
        """Returns a path for the leg of this number. Raises NoPath, and `failure` after the last attempt."""
        if failure is not None and (self.launches_left == 0 or isinstance(failure, NotPossible)):
            raise failure.anew()
        self.launches_left -= 1
        if self._exit is None:
            choice = self._builder.choose(self.purpose)
            self._exit = choice.path[-1]
        else:
            others = [one.path for one in self.paths.values()]
            choice = self._builder.choose_leg(self.purpose, self._exit, others)
        choice.guard.watch = UNWATCHED  # an exit must not be able to make guards look bad (as C tor)
        self.paths[number] = choice
        return choice

    def finish(self, current: Current) -> LinkedCircuit:
        """Returns the set. Raises what ended one of its legs."""
        if self.failure is not None:
            raise self.failure.anew()
        legs = list(self.legs.values())  # as they were linked, the last one last
        for leg in legs:
            if leg.circuit.error is not None:
                raise leg.circuit.error
        return LinkedCircuit(legs, current.circuit_settings())

    def close(self) -> None:
        """Close the legs at hand: the set has failed."""
        for leg in self.legs.values():
            leg.circuit.close("its set could not be linked")
