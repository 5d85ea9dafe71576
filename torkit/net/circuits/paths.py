"""Chooses the relays of our circuits: by purpose, beginning at a guard of ours, as the user restricts it.

How relays are drawn is torkit.paths.choose's and torkit.paths.vanguards's.
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
    """`refusals` know exits that are none now; `vanguards` stand on paths to relays that others name."""

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
        """Relays for a circuit that is built next, the last of them none of `excluded`, identities of exits.

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
        """Another path to an exit to which `others` go, by another guard and another middle.

        By identity only (proposal 329, and as C tor): families and networks count within a path. A guard that
        serves another leg keeps its place among those in use, so that no further one is drawn in for this.
        Raises as `choose`.
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
        """The choice of exactly these relays. Raises UsageError for none at all."""
        if not path:
            raise UsageError("a path needs at least one relay")
        return Choice(path, self._guards.attempt(path[0].identity), is_given=True)

    def may_go_on(self, path: Path) -> bool:
        """Returns whether a circuit through these may take new streams, by the directory in use."""
        directory = self._current.known
        return directory is None or may_go_on(directory, path)

    def choose_for(self, constraints: Constraints) -> Path:
        """Relays for `constraints` of the user's, for a circuit that somebody else builds.

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
        """A path by way of the vanguards. Whoever named `target` has no say in which guard it begins at."""
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
    """Asks for a guard while a path is chosen. If the rest of the path is not to be had, it is given up."""

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
        """The guard of the path that was chosen."""
        assert self._guard is not None
        return self._guard

    def give_up(self) -> None:
        """Nobody will hear of the guard, if one was picked."""
        if self._guard is not None:
            self._guard.given_up()
