"""Keeps the guards: gives one out with each path, hears what came of it, writes it down.

The builder of a circuit holds a GuardTry of its first relay. torkit.paths.guards chooses guards and knows
what an outcome means; torkit.learnt.path_bias judges whether a guard fails too many circuits.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import trio

from torkit.directory.directory import Directory, Relay
from torkit.errors import CircuitClosed, NoDirectory, NoGuard, OutOfResources, StorageError
from torkit.events import GuardChanged
from torkit.learnt.path_bias import UNWATCHED, Counts, PathBias, Report, Watch
from torkit.net.contact import Contact, DirectoryServer
from torkit.net.current import Current
from torkit.net.state import StateFile
from torkit.paths.choose import goes_with
from torkit.paths.constraints import Constraints, places_of
from torkit.paths.guards import Guards, Verdict

# Implementation limit: seconds between looks at whether a better guard has answered.
GUARD_CHECK = 0.25

logger = logging.getLogger(__name__)


class GuardTry:
    """Told once what came of a circuit that begins at a relay.

    This class does nothing: it stands for no guard.
    """

    watch: Watch = UNWATCHED  # counts what becomes of the circuit

    def reached(self) -> None:
        """Note that the first hop was made, or that the relay refused."""

    def failed(self) -> None:
        """Note that the relay could not be reached, or did not answer."""

    def given_up(self) -> None:
        """Note that the outcome will stay unknown. To drop this object says the same."""

    async def wait_usable(self) -> None:
        """Wait until no better guard may still answer. Raises CircuitClosed if one is worth a try first."""


UNTOLD = GuardTry()


class GuardKeeper:
    """The guards of one client. Callers tell `note_directory` of each directory that is used.

    Guards that a first start has drawn serve nobody before `has_agreed`: they are written down first, or
    replaced by the guards of another process that was earlier.
    """

    def __init__(
        self,
        guards: Guards,
        current: Current,
        state: StateFile,
        nursery: trio.Nursery,
        rng: Random,
        restrictions: Constraints,
        *,
        keeps_counts: bool,
    ) -> None:
        """With `keeps_counts` the counts of path bias are written down; one circuit is not worth that."""
        self.path_bias = PathBias(self._counts_of, current.param, self._note_path_bias)
        self.has_agreed = trio.Event()
        if any(guards.to_state().values()):
            self.has_agreed.set()
        self.guards = guards
        self._current = current
        self._state = state
        self._nursery = nursery
        self._rng = rng
        self._restrictions = restrictions
        self._keeps_counts = keeps_counts
        self._agreeing = trio.Lock()
        self._has_warned = False
        state.add(self, is_watched=True)

    # --- circuits ---------------------------------------------------------------------------------

    def pick(self, fits: Callable[[Relay], bool]) -> "GuardOfOurs":
        """Returns a guard that `fits`, for the next circuit. Raises NoGuard, NoPath, NoDirectory."""
        if not self.has_agreed.is_set():
            raise NoGuard(
                "the guards just drawn have not been kept yet", hint="wait until the client is ready"
            )
        try:
            relay = self.guards.choose(self._current.directory, fits, now=time.time(), rng=self._rng)
        except NoDirectory:
            self._current.hurry()
            raise
        finally:
            self._keep()
        return GuardOfOurs(self, relay)

    def attempt(self, identity: bytes) -> GuardTry:
        """Returns the handle of a first hop that somebody else chose; it may be a guard of ours."""
        return _Told(self, identity)

    def note_reached(self, identity: bytes) -> None:
        self._change(identity, "UP", partial(self.guards.note_reached, identity, now=time.time()))

    def note_failed(self, identity: bytes) -> None:
        self._change(identity, "DOWN", partial(self.guards.note_failed, identity, now=time.time()))

    def note_given_up(self, identity: bytes) -> None:
        self.guards.note_given_up(identity)

    def judge(self, identity: bytes, others: Sequence[Relay]) -> Verdict:
        """Decide whether traffic may go by this guard and through `others`."""
        directory = self._current.directory
        fits = partial(goes_with, directory, self._restrictions, others)
        return self.guards.judge(directory, identity, fits, now=time.time())

    def confirm(self, identity: bytes) -> None:
        """Note that a circuit which begins at this guard is given out."""
        self._change(identity, "GOOD", partial(self.guards.confirm, identity, now=time.time(), rng=self._rng))
        self._keep()

    def _change(self, identity: bytes, status: str, change: Callable[[], object]) -> None:
        """Have `change` change a guard; an event tells of its new state."""
        journal = self._current.journal
        guard = self.guards.find(identity) if journal.is_heard else None
        before = guard and (guard.reachability, guard.confirmed_on)
        change()
        if guard is not None and before != (guard.reachability, guard.confirmed_on):
            journal.tell(GuardChanged(f"${identity.hex().upper()}", status))

    def _counts_of(self, identity: bytes) -> Counts | None:
        return self.guards.path_bias_of(identity)

    def _note_path_bias(self, report: Report) -> None:
        level = logging.WARNING if report.is_warning else logging.INFO
        logger.log(level, "guard %s %s", report.guard.hex().upper(), report.message)
        if report.is_dropped:
            self.guards.note_dropped()

    # --- the directory ----------------------------------------------------------------------------

    def lacking(self, directory: Directory) -> list[str]:
        """Returns the nicknames of guards without whose microdescriptors no circuit is built."""
        try:
            return self.guards.lacking(directory, now=time.time(), rng=self._rng)
        finally:
            self._keep()

    def contacts(self, directory: Directory | None) -> list[Contact]:
        """Returns the guards to ask for documents, in random order; none before `has_agreed`."""
        if directory is None or not self.has_agreed.is_set():
            return []
        try:
            chosen = self.guards.choose_for_directory(directory, now=time.time(), rng=self._rng)
        finally:
            self._keep()
        return [contact for identity in chosen if (contact := _directory_contact(directory, identity))]

    def note_directory(self, directory: Directory) -> None:
        if not self.has_agreed.is_set():
            self._nursery.start_soon(self.agree, directory)

    def warn_of_restrictions(self) -> None:
        """Warn once: of names that mean no relay, and of so few guards that they tell a user from others."""
        if self._has_warned:
            return
        self._has_warned = True
        directory, restrictions = self._current.directory, self._restrictions
        for name in sorted(restrictions.entries | restrictions.exits | restrictions.exclude):
            if not places_of(directory, [name]):
                hint = f"; the country is {{{name}}}" if len(name) == 2 else ""
                logger.warning("no relay %s in the directory%s", name, hint)
        self.guards.update(directory, now=time.time(), rng=self._rng)
        if self.guards.is_extremely_restricted:
            logger.warning("hardly any guard is allowed: this client is easy to tell from others")

    # --- what is kept -----------------------------------------------------------------------------

    async def agree(self, directory: Directory) -> None:
        """Write down the guards of a first start.

        Where another process has done so meanwhile, use its guards.
        """
        async with self._agreeing:
            if self.has_agreed.is_set():
                return
            self.guards.update(directory, now=time.time(), rng=self._rng)
            drawn = self.guards.to_state()
            kept = drawn
            if any(drawn.values()):
                try:
                    kept = await self._state.agree(drawn)
                except (StorageError, OutOfResources) as error:
                    self._state.note_unkept(error)
            if any(kept[name] != guards for name, guards in drawn.items()):
                self.guards, _ = Guards.from_state(
                    kept, now=time.time(), rng=self._rng, restrictions=self._restrictions
                )
            self.has_agreed.set()

    @property
    def has_changed(self) -> bool:
        """Returns whether the guards have changed since they were written down."""
        if not self.has_agreed.is_set():
            return False
        return self.guards.has_changed or (self._keeps_counts and self.path_bias.has_changed)

    @has_changed.setter
    def has_changed(self, value: bool) -> None:
        self.guards.has_changed = self.path_bias.has_changed = value

    def to_state(self) -> dict[str, Any]:
        """Returns JSON values, under the names of torkit.paths.guards."""
        return self.guards.to_state()

    def keep_soon(self) -> None:
        """Write the state down in a task, unless the guards may yet be others."""
        if self.has_agreed.is_set():
            self._state.save_soon(self._nursery)

    def _keep(self) -> None:
        if self.guards.has_changed:
            self.keep_soon()


def _directory_contact(directory: Directory, identity: bytes) -> Contact | None:
    """Returns a relay to ask for documents, even without its microdescriptor; None if it serves none."""
    place = directory.consensus.relays.index_of(identity)
    if place is None:
        return None
    status = directory.consensus.relays[place]
    if "V2Dir" not in status.flags:
        return None
    known = DirectoryServer(identity, status.address, status.or_port, status.ipv6)
    return directory.relay_at(place) or known


class _Told(GuardTry):
    """The GuardTry of a guard: tells the keeper, once."""

    def __init__(self, keeper: GuardKeeper, identity: bytes) -> None:
        self._keeper = keeper
        self._identity = identity
        self._is_told = False

    def reached(self) -> None:
        self._tell(self._keeper.note_reached)

    def failed(self) -> None:
        self._tell(self._keeper.note_failed)

    def given_up(self) -> None:
        self._tell(self._keeper.note_given_up)

    def _tell(self, note: Callable[[bytes], None]) -> None:
        if not self._is_told:
            self._is_told = True
            note(self._identity)

    def __del__(self) -> None:
        self.given_up()


class GuardOfOurs(_Told):
    """A guard picked for a circuit. `others` are the relays behind it, where they restrict who it is."""

    def __init__(self, keeper: GuardKeeper, relay: Relay) -> None:
        super().__init__(keeper, relay.identity)
        self.relay = relay
        self.others: Sequence[Relay] = ()
        self.watch = keeper.path_bias.watch(relay.identity)

    async def wait_usable(self) -> None:
        while (verdict := self._keeper.judge(self._identity, self.others)) is Verdict.UNDECIDED:
            await trio.sleep(GUARD_CHECK)
        if verdict is Verdict.BETTER_FIRST:
            raise CircuitClosed("a better guard may be reachable again")
        self._keeper.confirm(self._identity)
