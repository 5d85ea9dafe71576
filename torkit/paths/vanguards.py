"""The relays in the second place of onion circuits, kept for days: vanguards-lite.

An attacker can make a client build many onion circuits. Were the relay behind the guard drawn anew for each,
one of the attacker's would soon stand there and see which guard is ours. The set lives in memory only, as in
C tor, and a new identity forgets it. vanguards-spec, "Vanguards-Lite".

    guard - second - middle - target          the target is named by others; it restricts nobody before it
    guard - second - rendezvous point         which we choose by ourselves
"""

from random import Random

from torkit.directory.directory import Directory, Relay, supports
from torkit.errors import NoPath
from torkit.params import Param
from torkit.paths.choose import PickGuard, draw_middle
from torkit.paths.constraints import Constraints

# Implementation limit: relays drawn until one can be a rendezvous point; nearly all can.
MAX_DRAWS = 64

FLAGS = frozenset({"Fast", "Stable", "Running", "Valid"})


class Vanguards:
    """Driven by the directory and by time, which are arguments."""

    def __init__(self, constraints: Constraints, rng: Random) -> None:
        """`constraints` say which relays the user excludes."""
        self._constraints = constraints._replace(stable=True)
        self._rng = rng
        self._expires: dict[bytes, float] = {}  # by identity, in the order of drawing

    def choose(self, directory: Directory, *, unwanted: set[bytes], now: float) -> Relay:
        """One of the set, none of `unwanted`. Raises NoPath where nobody is left to draw."""
        self._update(directory, now)
        for _ in range(len(self._expires)):
            candidates = [identity for identity in self._expires if identity not in unwanted]
            if not candidates:
                break
            relay = directory.relay(self._rng.choice(candidates))
            if relay is not None:
                return relay
        return draw_middle(directory, self._constraints, unwanted, self._rng)

    def forget(self) -> None:
        """Draw a new set at the next choice."""
        self._expires.clear()

    def _update(self, directory: Directory, now: float) -> None:
        """Drop relays that have served their time or lost their flags; draw new ones in their places."""
        relays = directory.consensus.relays
        for identity, expires in list(self._expires.items()):
            place = relays.index_of(identity)
            if expires <= now or place is None or not relays.flags[place] >= FLAGS:
                del self._expires[identity]
        param = directory.consensus.param
        while len(self._expires) < param("guard-hs-l2-number"):
            relay = draw_middle(directory, self._constraints, self._expires, self._rng)
            self._expires[relay.identity] = now + self._lifetime(param)

    def _lifetime(self, param: Param) -> float:
        """Seconds: the greater of two uniform draws, so that an attacker waits long."""
        low = param("guard-hs-l2-lifetime-min")
        high = max(low, param("guard-hs-l2-lifetime-max"))
        return max(self._rng.uniform(low, high), self._rng.uniform(low, high))


def choose_stem(
    directory: Directory,
    target: bytes | None,
    vanguards: Vanguards,
    pick_guard: PickGuard,
    constraints: Constraints,
    rng: Random,
    now: float,
) -> tuple[Relay, Relay, Relay]:
    """The relays before a target that others have named, by its identity: guard, second, middle.

    An attacker may choose the target, so it has no say in who is guard: else tries would tell which is ours.
    Families and subnets do not count. Without a target the third is a rendezvous point. vanguards-spec,
    "Path construction". Raises NoPath, and as `pick_guard`.
    """
    guard = pick_guard(lambda relay: True)
    unwanted = {guard.identity} if target is None else {guard.identity, target}
    second = vanguards.choose(directory, unwanted=unwanted, now=now)
    unwanted.add(second.identity)
    for _ in range(MAX_DRAWS):
        third = draw_middle(directory, constraints, unwanted, rng)
        if target is not None or _can_be_rendezvous_point(third):
            return guard, second, third
    raise NoPath("no relay that was drawn can be a rendezvous point")


def _can_be_rendezvous_point(relay: Relay) -> bool:
    return "MiddleOnly" not in relay.flags and supports(relay, "HSRend", 2)
