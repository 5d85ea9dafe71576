"""Which relays are a shard's, in which order, and by which paths: from the frozen directory and a seed alone.

Every process that is told the same comes to the same. A scan looks at relays and hides nobody, so its paths
do not begin at the user's guards: FIRST_HOPS relays are drawn for the campaign, and see where it comes from.
"""

from collections.abc import Collection, Iterable
from hashlib import sha256
from random import Random

from torkit.directory.directory import Directory, Relay
from torkit.directory.positions import Position, flags_refusal
from torkit.errors import NoPath, UsageError
from torkit.paths.choose import choose_path
from torkit.paths.constraints import Constraints
from torkit.scan.unit import Unit

Path = tuple[Relay, ...]

# Implementation limit: relays at which the paths of a campaign begin, unless it looks at guards. Few enough
# to leave most relays in the dark about who scans, enough for one that is down to matter little.
FIRST_HOPS = 16

_POSITIONS = {position.name.lower(): position for position in Position}


class Plan:
    """`seed` is any text; `port` is where exits must let streams go, to IPv6 addresses if `is_ipv6`."""

    def __init__(
        self,
        unit: Unit,
        *,
        seed: str = "",
        position: Position = Position.EXIT,
        port: int | None = None,
        is_ipv6: bool = False,
        distinct_subnets: bool = True,
    ) -> None:
        self.directory = unit.directory
        self.position = position
        self._salt = f"{unit.digest} {seed}"
        self._seed = seed
        self._port = port
        self._is_ipv6 = is_ipv6
        self._distinct_subnets = distinct_subnets
        self._first_hops = frozenset[str]() if position is Position.GUARD else self._draw_first_hops()

    def shard(self, places: Iterable[int], index: int = 0, count: int = 1) -> list[int]:
        """Those of `places` in the consensus that are this shard's, in the order in which to look at them.

        A relay stays in its shard from one consensus to the next. Raises UsageError for a shard that is none.
        """
        if count < 1 or not 0 <= index < count:
            last = f"the last of {count} is {count - 1}/{count}" if count > 0 else "there is none of none"
            raise UsageError(f"there is no shard {index}/{count}", hint=f"shards count from 0: {last}")
        keyed = ((self._key(place), place) for place in places)
        return [place for key, place in sorted(keyed) if key % count == index]

    @property
    def first_hops(self) -> int:
        """How many relays see where the campaign comes from; 0 where each relay that is looked at does."""
        return len(self._first_hops)

    def path(self, relay: Relay, attempt: int = 0, avoid: Collection[Relay] = ()) -> Path:
        """Three relays, with `relay` in its position; `avoid` are those of earlier attempts.

        Raises NoPath.
        """
        seed = sha256(f"{self._salt} {relay.fingerprint} {attempt}".encode()).digest()
        rng = Random(int.from_bytes(seed))  # noqa: S311  # nobody shall be surprised
        avoided = frozenset(one.fingerprint for one in avoid) - {relay.fingerprint}
        wanted = Constraints(
            port=self._port,
            ipv6=self._is_ipv6,
            entries=self._first_hops,
            exclude=avoided,
            distinct_subnets=self._distinct_subnets,
        )
        match self.position:
            case Position.GUARD:
                wanted = wanted._replace(guard=relay.fingerprint)
            case Position.MIDDLE:
                wanted = wanted._replace(middle=relay.fingerprint)
            case Position.EXIT:
                wanted = wanted._replace(exit=relay.fingerprint)
        # Last, what a small network leaves: any first relay, and one that has failed once.
        for loosened in (wanted, wanted._replace(entries=frozenset()), wanted._replace(exclude=frozenset())):
            try:
                return choose_path(self.directory, loosened, rng)
            except NoPath as error:
                failure = error
        raise failure

    def _key(self, place: int) -> int:
        identity = self.directory.consensus.relays.identities[place]
        return int.from_bytes(sha256(self._seed.encode() + b" " + identity).digest())

    def _draw_first_hops(self) -> frozenset[str]:
        """Of the guards, by weight: those whose numbers, raised to the inverse of the weight, are highest."""
        directory = self.directory
        relays, weights = directory.consensus.relays, directory.weights(Position.GUARD)
        rng = Random(int.from_bytes(sha256(self._salt.encode()).digest()))  # noqa: S311  # as above
        drawn = []
        for place, flags in enumerate(relays.flags):
            number = rng.random()
            if directory.held[place] and flags_refusal(flags, Position.GUARD) is None:
                drawn.append((number ** (1 / max(weights[place], 1.0)), place))
        return frozenset(relays.identities[place].hex().upper() for _, place in sorted(drawn)[-FIRST_HOPS:])


def parse_position(text: str) -> Position:
    """The position so called. Raises UsageError."""
    if text not in _POSITIONS:
        raise UsageError(f"a position is {', '.join(_POSITIONS)}, not {text!r}")
    return _POSITIONS[text]


def places_in(directory: Directory, position: Position) -> list[int]:
    """The relays that a scan of this position is about: exits, guards, or all."""
    flags = directory.consensus.relays.flags
    if position is Position.MIDDLE:
        return list(range(len(directory)))
    flag = "Exit" if position is Position.EXIT else "Guard"
    return [place for place, one in enumerate(flags) if flag in one]
