"""Keeps the relays in the second place of onion circuits for days, and those in the third for hours.

An attacker can make a client build many onion circuits. If the relay behind the guard were drawn anew for
each, the attacker's own relay would soon stand there and see which guard is ours. vanguards-spec.

    lite    guard - second - middle - target              the target is named by others; it restricts nobody
            guard - second - rendezvous point             before it. We choose the rendezvous point ourselves
    full    guard - second - third - middle - target
            guard - second - third - rendezvous point

Lite sets live in memory only, and a new identity forgets them (as in C tor). The state file keeps full sets,
which outlive identities: an attacker that could have them drawn anew would find the guard.
"""

from collections.abc import Mapping
from contextlib import suppress
from math import inf
from random import Random
from typing import Any
from weakref import ref

from torkit.directory.directory import Directory, Relay, supports
from torkit.directory.netdoc import decode_fingerprint
from torkit.directory.trust import Liveness, liveness
from torkit.errors import DocumentError, NoPath
from torkit.params import Param
from torkit.paths.choose import PickGuard, draw_middle
from torkit.paths.constraints import Constraints, VanguardMode
from torkit.paths.guards import decode_date, encode_date

# Implementation limits: relays drawn until one can be a rendezvous point, as nearly all can; relays of a set
# that are read from the state file, more than any consensus may ask for.
MAX_DRAWS = 64
MAX_KEPT = 256

FLAGS = frozenset({"Fast", "Stable", "Running", "Valid"})


class Vanguards:
    """Driven by the directory and by time, which are arguments. `to_state` is what to keep."""

    def __init__(self, constraints: Constraints, rng: Random, mode: VanguardMode = VanguardMode.LITE) -> None:
        """`constraints` say which relays the user excludes."""
        self.mode = mode
        self.has_changed = False  # since the state was last kept
        self._constraints = constraints._replace(stable=True)
        self._rng = rng
        # By set and identity, in the order of drawing: when it has served its time.
        self._expires: dict[str, dict[bytes, float]] = {name: {} for name in mode.sets}
        # By set: the directory by which its relays were looked at last, and from when until when another look
        # by that directory would change nothing.
        self._settled: dict[str, tuple[ref[Directory], float, float]] = {}

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], constraints: Constraints, rng: Random, mode: VanguardMode
    ) -> "Vanguards":
        """Read what `to_state` gave. Entries that are none are left out, and drawn anew."""
        vanguards = cls(constraints, rng, mode)
        kept = state.get("vanguards")
        if mode is VanguardMode.FULL and isinstance(kept, dict):
            for name, expires in vanguards._expires.items():
                entries = kept.get(name)
                for identity, when in list(entries.items() if isinstance(entries, dict) else ())[:MAX_KEPT]:
                    with suppress(DocumentError, ValueError):
                        expires[decode_fingerprint(identity)] = decode_date(when)
        return vanguards

    def to_state(self) -> dict[str, Any]:
        """Returns JSON values: when each relay has served its time, by set and fingerprint.

        None for lite sets.
        """
        if self.mode is VanguardMode.LITE:
            return {}
        return {
            "vanguards": {
                name: {identity.hex().upper(): encode_date(at) for identity, at in expires.items()}
                for name, expires in self._expires.items()
            }
        }

    def choose(self, directory: Directory, *, unwanted: set[bytes], now: float, name: str = "l2") -> Relay:
        """Returns a relay of a set, none of `unwanted`. Raises NoPath where no relay is left to draw."""
        self._update(directory, name, now)
        candidates = [identity for identity in self._expires[name] if identity not in unwanted]
        while candidates:
            relay = directory.relay(candidates.pop(self._rng.randrange(len(candidates))))
            if relay is not None:
                return relay
        return draw_middle(directory, self._constraints, unwanted, self._rng)

    def forget(self) -> None:
        """For a new identity: draw new lite sets at the next choice."""
        if self.mode is VanguardMode.LITE:
            self._expires["l2"].clear()
            self._settled.clear()

    def _update(self, directory: Directory, name: str, now: float) -> None:
        """Drop relays that have served their time or lost their flags; draw new ones in their places.

        By a clock that the consensus calls untimely nobody has served their time: whoever sets it ahead would
        have new relays drawn.
        """
        if (settled := self._settled.get(name)) is not None:
            known, since, until = settled
            if known() is directory and since <= now < until:
                return
        relays, kept, param = directory.consensus.relays, self._expires[name], directory.consensus.param
        is_clock_right = liveness(directory.consensus, now) > Liveness.UNTIMELY
        latest = now + self._bounds(param, name)[1] if is_clock_right else inf
        is_kept = self.mode is VanguardMode.FULL
        for identity, expires in list(kept.items()):
            place = relays.index_of(identity)
            is_over = is_clock_right and expires <= now
            if is_over or place is None or not relays.flags[place] >= FLAGS:
                del kept[identity]
            elif expires > latest:  # drawn while the clock was ahead
                kept[identity] = latest
                self.has_changed = is_kept
        while len(kept) < param(f"guard-hs-{name}-number"):
            relay = draw_middle(directory, self._constraints, kept, self._rng)
            kept[relay.identity] = now + self._lifetime(param, name)
            self.has_changed = is_kept
        if is_clock_right:
            self._settled[name] = ref(directory), now, min(kept.values())
        else:
            self._settled.pop(name, None)

    def _lifetime(self, param: Param, name: str) -> float:
        """Returns seconds, the greater of two uniform draws, so that an attacker waits long."""
        bounds = self._bounds(param, name)
        return max(self._rng.uniform(*bounds), self._rng.uniform(*bounds))

    @staticmethod
    def _bounds(param: Param, name: str) -> tuple[int, int]:
        """Seconds that a relay of a set serves, at least and at most."""
        low = param(f"guard-hs-{name}-lifetime-min")
        return low, max(low, param(f"guard-hs-{name}-lifetime-max"))


def choose_stem(
    directory: Directory,
    target: bytes | None,
    vanguards: Vanguards,
    pick_guard: PickGuard,
    constraints: Constraints,
    rng: Random,
    now: float,
) -> tuple[Relay, ...]:
    """Returns the relays before a target that others have named, by its identity: guard, vanguards, middle.

    An attacker may choose the target. So the target does not restrict the guard: else tries would tell ours.
    Families and subnets do not count. Without a target the last is a rendezvous point. vanguards-spec,
    "Path construction". Raises NoPath, and as `pick_guard`.
    """
    path = [pick_guard(lambda relay: True)]
    unwanted = {path[0].identity} if target is None else {path[0].identity, target}
    for name in vanguards.mode.sets:
        path.append(vanguards.choose(directory, unwanted=unwanted, now=now, name=name))
        unwanted.add(path[-1].identity)
    for _ in range(MAX_DRAWS):
        last = draw_middle(directory, constraints, unwanted, rng)
        if target is not None or _can_be_rendezvous_point(last):
            return (*path, last)
    raise NoPath("no relay that was drawn can be a rendezvous point")


def _can_be_rendezvous_point(relay: Relay) -> bool:
    return "MiddleOnly" not in relay.flags and supports(relay, "HSRend", 2)
