"""Chooses the relays of our circuits, by purpose, within the user's restrictions, from a guard on.

torkit.paths.choose and torkit.paths.vanguards draw the relays.
"""

import time
from collections.abc import Callable, Collection
from random import Random

from torkit.directory.directory import Relay
from torkit.errors import NoPath, UsageError
from torkit.learnt.refusals import Refusals
from torkit.net.circuits.build import Choice
from torkit.net.circuits.guards import GuardKeeper, GuardOfOurs
from torkit.net.circuits.purpose import ExitByLegs, ForOnion, Path, Shared
from torkit.net.current import Current
from torkit.paths.choose import choose_path, may_go_on
from torkit.paths.constraints import Constraints
from torkit.paths.vanguards import Vanguards, choose_stem


class Paths:
    """`refusals` knows exits that let nothing out now; paths to relays that others name go by `vanguards`."""

    def __init__(
        self,
        current: Current,
        guards: GuardKeeper,
        refusals: Refusals,
        vanguards: Vanguards,
        restrictions: Constraints,
        rng: Random,
    ) -> None:
        self._current = current
        self._guards = guards
        self._refusals = refusals
        self._vanguards = vanguards
        self._restrictions = restrictions
        self._rng = rng

    def choose(self, purpose: Shared | ForOnion, excluded: Collection[bytes] = ()) -> Choice:
        """Returns relays for the next circuit, the last of them none of `excluded`, identities of exits.

        Raises NoPath, NoGuard, NoDirectory.
        """
        if isinstance(purpose, ForOnion):
            return self._choose_stem(purpose.target)
        avoided = frozenset(excluded) | self._refusals.exits
        try:
            return self._choose_exit(purpose, avoided)
        except NoPath:
            if avoided <= frozenset(excluded):
                raise
            return self._choose_exit(purpose, excluded)  # nobody else is left

    def choose_leg(self, purpose: ExitByLegs, exit_relay: Relay, others: Collection[Path]) -> Choice:
        """Returns another path to the exit of `others`, by another guard and another middle.

        Legs differ by identity only: families and networks count within a path (proposal 329; as C tor). A
        guard that serves another leg keeps its place among the guards in use, so that this leg draws in no
        further guard. Raises as `choose`.
        """
        names = frozenset(path[1].fingerprint for path in others)
        guards = frozenset(path[0].identity for path in others)
        constraints = purpose.constraints(names)._replace(exit=exit_relay.fingerprint)
        with _Picker(self._guards, guards) as picker:
            path = self._choose(constraints, picker)
        guard = picker.picked
        guard.others = path[1:]
        return Choice(path, guard)

    def given(self, path: Path) -> Choice:
        """Returns the choice of exactly these relays. Raises UsageError for an empty path."""
        if not path:
            raise UsageError("a path needs at least one relay")
        return Choice(path, self._guards.attempt(path[0].identity), is_given=True)

    def may_go_on(self, path: Path) -> bool:
        """Returns whether a circuit through these relays may take new streams, by the directory in use."""
        directory = self._current.known
        return directory is None or may_go_on(directory, path)

    def choose_for(self, constraints: Constraints) -> Path:
        """Returns relays for the user's `constraints`, for a circuit that somebody else builds.

        Raises as torkit.paths.choose does.
        """
        with _Picker(self._guards) as picker:
            path = self._choose(constraints, picker)
        picker.give_up()
        return path

    def _choose_exit(self, purpose: Shared, avoided: Collection[bytes]) -> Choice:
        names = frozenset(identity.hex().upper() for identity in avoided)
        with _Picker(self._guards) as picker:
            path = self._choose(purpose.constraints(names), picker)
        guard = picker.picked
        guard.others = path[1:]
        return Choice(path, guard)

    def _choose_stem(self, target: Relay | None) -> Choice:
        """Returns a path by way of the vanguards.

        `target`, which others have named, does not restrict the guard.
        """
        with _Picker(self._guards) as picker:
            path = choose_stem(
                self._current.directory,
                None if target is None else target.identity,
                self._vanguards,
                picker,
                self._restrictions,
                self._rng,
                now=time.time(),
            )
        if self._vanguards.has_changed:  # after a crash others would be drawn, and more relays know of us
            self._guards.keep_soon()
        return Choice(path, picker.picked)

    def _choose(self, constraints: Constraints, picker: "_Picker") -> Path:
        constraints = constraints._replace(
            entries=constraints.entries or self._restrictions.entries,
            exits=constraints.exits or self._restrictions.exits,
            exclude=constraints.exclude | self._restrictions.exclude,
            distinct_subnets=self._restrictions.distinct_subnets,
        )
        return choose_path(self._current.directory, constraints, self._rng, picker)


class _Picker:
    """Asks for a guard while a path is chosen, and gives it up where the rest of the path cannot be had."""

    def __init__(self, guards: GuardKeeper, unwanted: Collection[bytes] = ()) -> None:
        """`unwanted` are identities."""
        self._guards = guards
        self._unwanted = unwanted
        self._guard: GuardOfOurs | None = None

    def __call__(self, fits: Callable[[Relay], bool]) -> Relay:
        self._guard = self._guards.pick(lambda one: one.identity not in self._unwanted and fits(one))
        return self._guard.relay

    def __enter__(self) -> "_Picker":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not None:
            self.give_up()

    @property
    def picked(self) -> GuardOfOurs:
        """Returns the handle of the guard, now that the path was chosen."""
        assert self._guard is not None
        return self._guard

    def give_up(self) -> None:
        """Give up the guard, if one was picked."""
        if self._guard is not None:
            self._guard.given_up()
