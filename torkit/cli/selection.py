"""Which relays of a consensus a command is about: the options that say so, and what they mean."""

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from torkit.cli.countries import Countries, GeoIP
from torkit.cli.paths import find_relay
from torkit.errors import NoDirectory, UsageError

if TYPE_CHECKING:
    from torkit.directory.directory import Directory, Relay
    from torkit.directory.entries import RouterStatus
    from torkit.directory.microdesc import PortPolicy

Many = list[str] | None


class Row:
    """One relay of the listing; what is not asked is not looked up.

    What only a microdescriptor tells is None where there is none at hand.
    """

    def __init__(self, directory: "Directory", index: int, countries: Countries) -> None:
        self._directory = directory
        self._countries = countries
        self.index = index

    @property
    def identity(self) -> bytes:
        return self._directory.consensus.relays.identities[self.index]

    @property
    def flags(self) -> frozenset[str]:
        return self._directory.consensus.relays.flags[self.index]

    @property
    def bandwidth(self) -> int:
        return self._directory.consensus.relays.bandwidths[self.index]

    @cached_property
    def status(self) -> "RouterStatus":
        return self._directory.consensus.relays[self.index]

    @cached_property
    def country(self) -> str | None:
        return self._countries.of(self.status.address)

    @cached_property
    def relay(self) -> "Relay | None":
        return self._directory.relay_at(self.index)

    @cached_property
    def policies(self) -> "tuple[PortPolicy | None, PortPolicy | None]":
        """The exit policies for IPv4 and IPv6; the ns flavor has the first of them."""
        if self._directory.has_microdesc(self.index):
            return self._directory.exit_policies_at(self.index)
        return self.status.policy, None


Filter = Callable[[Row], bool]


class Selection(NamedTuple):
    """The user's choice of relays; `codes` are countries, `asked` names the columns that the choice needs."""

    flag: list[str]
    codes: set[str]
    exit_port: int | None
    exit_port6: int | None
    nickname: str | None
    fingerprint: list[str]
    family: str | None
    min_bandwidth: int | None
    max_bandwidth: int | None
    protocol: list[str]
    geoip: Path | None

    @property
    def asked(self) -> set[str]:
        wanted = {
            "exit_policy": self.exit_port,
            "exit_policy6": self.exit_port6,
            "family": self.family,
            "country": self.codes,
        }
        return {name for name, value in wanted.items() if value}

    def countries(self) -> Countries:
        """Returns a look-up of countries. It raises nothing before it is asked."""
        return Countries(self.geoip)

    def rows(self, directory: "Directory", countries: Countries) -> Iterator[Row]:
        """The relays that fit, in the order of the consensus. Raises UsageError, NoDirectory."""
        filters = self._filters(directory)
        everyone = (Row(directory, index, countries) for index in range(len(directory)))
        return (row for row in everyone if all(test(row) for test in filters))

    def _filters(self, directory: "Directory") -> list[Filter]:
        """What costs least comes first."""
        least, most, nickname = self.min_bandwidth, self.max_bandwidth, self.nickname
        port, port6 = self.exit_port, self.exit_port6
        filters: list[Filter] = []
        if self.flag:
            filters.append(has_flags(directory, self.flag))
        if least is not None:
            filters.append(lambda row: row.bandwidth >= least)
        if most is not None:
            filters.append(lambda row: row.bandwidth <= most)
        if self.fingerprint:
            filters.append(begins_with(self.fingerprint))
        if self.family:
            filters.append(is_in_family(directory, self.family))
        if nickname:
            filters.append(lambda row: fnmatchcase(row.status.nickname.lower(), nickname.lower()))
        if self.protocol:
            filters.append(speaks(self.protocol))
        if port:
            filters.append(lambda row: bool(row.policies[0] and row.policies[0].accepts(port)))
        if port6:
            filters.append(lambda row: bool(row.policies[1] and row.policies[1].accepts(port6)))
        if self.codes:
            filters.append(lambda row: row.country in self.codes)
        return filters


def relay_selection(
    flag: Annotated[Many, typer.Option(metavar="FLAG", help="With this flag; repeatable.")] = None,
    country: Annotated[
        Many,
        typer.Option(metavar="CC", help="In this country, like us, ?? being unknown; repeatable: in any."),
    ] = None,
    exit_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, metavar="PORT", help="With an exit policy that allows it."),
    ] = None,
    exit_port6: Annotated[
        int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="The same at IPv6 addresses.")
    ] = None,
    nickname: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="So named; * and ? as in a shell, in either case.")
    ] = None,
    fingerprint: Annotated[
        Many, typer.Option(metavar="HEX", help="With a fingerprint that begins so; repeatable: any of these.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="RELAY", help="This relay, by fingerprint or name, and its family.")
    ] = None,
    min_bandwidth: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of at least this consensus weight.")
    ] = None,
    max_bandwidth: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of at most this consensus weight.")
    ] = None,
    protocol: Annotated[
        Many, typer.Option(metavar="NAME=VERSION", help="With this subprotocol, like Relay=5; repeatable.")
    ] = None,
    geoip: GeoIP = None,
) -> Selection:
    """Raises UsageError."""
    return Selection(
        flag or [],
        country_codes(country or ()),
        exit_port,
        exit_port6,
        nickname,
        fingerprint or [],
        family,
        min_bandwidth,
        max_bandwidth,
        protocol or [],
        geoip,
    )


def has_flags(directory: "Directory", names: list[str]) -> Filter:
    """Returns relays with all of these flags, in either case.

    Raises UsageError for one that the consensus lacks.
    """
    known = {flag.lower(): flag for flag in directory.consensus.known_flags}
    for name in names:
        if name.lower() not in known:
            raise UsageError(f"no flag {name!r}", hint=f"there are {', '.join(sorted(known.values()))}")
    wanted = {known[name.lower()] for name in names}
    return lambda row: wanted <= row.flags


def begins_with(prefixes: list[str]) -> Filter:
    """Returns relays with one of these beginnings of fingerprints."""
    beginnings = tuple(prefix.removeprefix("$").upper() for prefix in prefixes)
    for beginning in beginnings:
        if not re.fullmatch("[0-9A-F]{1,40}", beginning):
            raise UsageError(f"{beginning!r} does not begin a fingerprint, which has 40 hexadecimal digits")
    return lambda row: row.identity.hex().upper().startswith(beginnings)


def is_in_family(directory: "Directory", name: str) -> Filter:
    """Returns a relay and those of its family.

    Raises UsageError, and NoDirectory if the family is not known.
    """
    from torkit.paths.choose import family_of

    relay = directory.relay_at(find_relay(directory, name))
    if relay is None:
        raise NoDirectory(f"the family of {name} is not known: its microdescriptor is not at hand")
    members = {one.identity for one in (relay, *family_of(directory, relay))}
    return lambda row: row.identity in members


def speaks(texts: list[str]) -> Filter:
    """Returns relays that list all of these subprotocol versions. Raises UsageError."""
    from torkit.directory.netdoc import decode_protocols

    try:
        wanted = [decode_protocols(text) for text in texts]
    except ValueError as error:
        raise UsageError(f"--protocol takes a name and versions, like Relay=5: {error}") from None
    return lambda row: not any(one.missing_from(row.status.protocols) for one in wanted)


def country_codes(texts: Iterable[str]) -> set[str]:
    """Returns the codes of countries that are written like us, US or {us}. Raises UsageError."""
    codes = {text.removeprefix("{").removesuffix("}").lower() for text in texts}
    for code in codes:
        if not re.fullmatch(r"[0-9a-z]{2}|\?\?", code):
            raise UsageError(f"{code!r} is not a country code", hint="codes have two letters; ?? is unknown")
    return codes
