"""The purpose of a path, the user's wishes for it, and the relays that a name means."""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from torkit.directory.directory import Directory, fingerprint_in
from torkit.directory.geoip import UNKNOWN

# Specification constants.

# The ports of path-spec, and 6523 (which C tor's list has besides).
LONG_LIVED_PORTS = frozenset({21, 22, 706, 1863, 5050, 5190, 5222, 5223, 6523, 6667, 6697, 8300})


class VanguardMode(Enum):
    """How many places of a circuit for onion services are guarded."""

    LITE = "lite"
    FULL = "full"

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets, as in the consensus's parameters, from the guard on."""
        return ("l2", "l3") if self is VanguardMode.FULL else ("l2",)


class Constraints(NamedTuple):
    """The purpose of a path, and the user's wishes for it.

    The exit has to let streams go to `port`, at IPv6 addresses if `ipv6`; None asks for any exit that accepts
    something, as RESOLVE needs. Ports in LONG_LIVED_PORTS ask for Stable relays, as does
    `stable`. With `links` the exit must be able to link circuits. `guard`, `middle` and `exit` each name one
    relay, by fingerprint or nickname, which then need not have the flags of its position. Where `entries` is
    not empty, the guard has to be one of them; so has the exit with `exits`. `exclude` names relays to use
    nowhere, `avoid` relays not to use behind the guard: no guard is changed for a failure behind it. In these
    four, `{de}` names all relays in a country, and `{??}` all relays whose country is unknown; to exclude a
    country excludes these, too.
    """

    port: int | None = None
    ipv6: bool = False
    stable: bool = False
    links: bool = False
    guard: str | None = None
    middle: str | None = None
    exit: str | None = None
    entries: frozenset[str] = frozenset()
    exits: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    avoid: frozenset[str] = frozenset()
    distinct_subnets: bool = True

    @property
    def needs_stable(self) -> bool:
        """Returns whether every relay of the path should have the Stable flag."""
        return self.stable or self.port in LONG_LIVED_PORTS


def places_of(directory: Directory, names: Iterable[str]) -> set[int]:
    """Returns the places in the consensus of all relays with these names: fingerprint, nickname, `{country}`.

    Raises UsageError for a country where the directory has no map of countries.
    """
    places: set[int] = set()
    for name in names:
        country = country_in(name)
        places.update(directory.indexes_of(name) if country is None else directory.indexes_in(country))
    return places


def excluded_places(directory: Directory, constraints: Constraints) -> set[int]:
    """Returns the places of the relays that are not to be used. Raises as `places_of` does.

    Who excludes a country also excludes relays whose country is unknown. (As C tor by default:
    GeoIPExcludeUnknown.)
    """
    names = constraints.exclude
    return places_of(directory, names | {f"{{{UNKNOWN}}}"} if any(map(country_in, names)) else names)


def is_excluded(constraints: Constraints, identity: bytes, nickname: str, country: str | None) -> bool:
    """As `excluded_places`, of one relay that is known without a directory."""
    countries = {code.lower() for name in constraints.exclude if (code := country_in(name)) is not None}
    if countries and (country or UNKNOWN) in countries | {UNKNOWN}:
        return True
    names = {fingerprint_in(name).lower() for name in constraints.exclude}
    return not names.isdisjoint((identity.hex(), nickname.lower()))


def country_in(name: str) -> str | None:
    """Returns the code in `{de}`; None for a name that is no country's."""
    return name[1:-1] if name.startswith("{") and name.endswith("}") else None
