"""Builds circuits ahead: for the ports that are expected, and to learn how long a build takes.

path-spec, "Clients build circuits preemptively" and "How much data to record".
"""

import logging
from contextlib import suppress
from math import inf

import trio

from torkit.errors import NoDirectory, NoPath, TorkitError
from torkit.learnt.build_times import BuildTimes
from torkit.learnt.predicted_ports import FIRST_PORT
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import LOOK_UP, ExitTo
from torkit.net.circuits.sets import Sets
from torkit.net.current import Current
from torkit.net.progress import diagnose

# Specification constant (path-spec, "Clients build circuits preemptively"): clean circuits for every port
# that is expected; one may serve many. One failure then costs no waiting.
SPARE_COUNT = 2

# Implementation limits.
MAX_SPARES = 14  # clean circuits at which no more are built ahead (as C tor; path-spec says 12)
EXPIRY_CHECK = 30.0  # seconds between looks for circuits that have served (as C tor)
ROUNDS_BEFORE_WARNING = 2  # failed rounds, each of some attempts
SPARE_RETRY = 5.0  # seconds before building ahead is tried again after a failure

logger = logging.getLogger(__name__)


class Spares:
    """Run `keep` in a task; `learn` in another where build times are of use."""

    def __init__(
        self, circuits: Circuits, build_times: BuildTimes, current: Current, sets: Sets | None
    ) -> None:
        """`sets` is None where no circuits are to be linked."""
        self._circuits = circuits
        self._sets = sets
        self._build_times = build_times
        self._current = current
        self._progress = current.journal.progress
        self._failed_rounds = 0
        self._worn_look_at = -inf

    async def keep(self, count: int = SPARE_COUNT) -> None:
        """Keep `count` clean circuits ready for each port that is expected; never returns.

        Closes circuits that have served, and circuits that nobody used in time. Begins none while requests
        wait for their turns. If builds go on failing it logs why, and when that has passed: after the start
        nobody else does.
        """
        circuits = self._circuits
        if count:
            circuits.expect(FIRST_PORT, trio.current_time())
        while True:
            circuits.is_short = trio.Event()
            self._close_those_that_served()
            wait_until = self._worn_look_at
            if count and self._sets is not None:
                wait_until = min(wait_until, self._sets.keep())
            port = self._uncovered_port(count)
            if port is not None:
                if circuits.turns.has_room and await self._try_build(port):
                    continue
                wait_until = min(wait_until, trio.current_time() + SPARE_RETRY)
            with trio.move_on_at(wait_until):
                await circuits.is_short.wait()

    def _close_those_that_served(self) -> None:
        self._circuits.close_idle()
        if trio.current_time() >= self._worn_look_at:
            self._circuits.close_worn()
            self._worn_look_at = trio.current_time() + EXPIRY_CHECK

    def _uncovered_port(self, count: int) -> int | None:
        """Returns an expected port for which fewer than `count` circuits are ready, or None."""
        now = trio.current_time()
        spares = [entry for entry in self._circuits.clean if entry.circuit.error is None]
        if sum(not entry.is_linked for entry in spares) >= MAX_SPARES:
            return None
        for port in self._circuits.predicted.ports(now):
            purpose = ExitTo(port)
            # Each leg of a set counts (as C tor), so that few others are built beside it.
            fitting = [entry for entry in spares if purpose.may_join(entry.purpose, entry.exit)]
            if sum(len(entry.circuit.paths) for entry in fitting) < count:
                return port
        return None

    async def _try_build(self, port: int) -> bool:
        """Build a circuit for `port`. Returns whether that went well."""
        try:
            await self._build(port)
        except TorkitError as error:  # a request that needs a circuit now is told why there is none
            if not isinstance(error, NoDirectory):  # the keeper of the directory says why there is none
                self._note_failure(diagnose([error]))
            return False
        if self._failed_rounds >= ROUNDS_BEFORE_WARNING:
            logger.warning("circuits can be built again")
        self._failed_rounds = 0
        return True

    async def _build(self, port: int) -> None:
        try:
            await self._circuits.build_any(ExitTo(port))
        except NoPath:
            await self._circuits.build_any(LOOK_UP)  # perhaps the port is not at fault (as C tor)
            self._circuits.predicted.forget(port)

    def _note_failure(self, failure: TorkitError) -> None:
        self._progress.block(failure)
        self._failed_rounds += self._progress.now.is_done
        if self._failed_rounds == ROUNDS_BEFORE_WARNING:
            reason = "; ".join(filter(None, (str(failure), failure.hint)))
            logger.warning("no circuit can be built: %s", reason)

    async def learn(self) -> None:
        """Build circuits to learn from as long as too few have been; never returns.

        They are built not too often, and only while few unused ones are at hand.
        """
        param = self._current.param
        while True:
            await trio.sleep(param("cbttestfreq"))
            has_room = len(self._circuits.clean) < param("cbtmaxopencircs")
            if self._build_times.is_learning and has_room and self._circuits.turns.has_room:
                with suppress(TorkitError):
                    async with self._circuits.turns.take(None):
                        await self._circuits.build(LOOK_UP)
