"""`torkit relays`: the relays of a consensus, filtered, sorted, and printed in columns."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from torkit.cli.countries import Countries, GeoIP
from torkit.cli.documents import At, Certs, Flavor, From, Source, read_directory
from torkit.cli.options import command_app
from torkit.cli.paths import find_relay
from torkit.cli.table import Table, terminal_width
from torkit.cli.targets import format_address
from torkit.cli.voice import say
from torkit.errors import NoDirectory, UsageError

if TYPE_CHECKING:
    from torkit.directory.directory import Directory, Relay
    from torkit.directory.entries import RouterStatus
    from torkit.directory.microdesc import PortPolicy

app = command_app()


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


class Column(NamedTuple):
    """`value` is what JSON shows, `width` what terminals give it, `order` what sorts it if not the value."""

    width: int
    value: Callable[[Row], Any]
    order: Callable[[Row], Any] | None = None


COLUMNS = {
    "fingerprint": Column(40, lambda row: row.identity.hex().upper()),
    "nickname": Column(19, lambda row: row.status.nickname, lambda row: row.status.nickname.lower()),
    "address": Column(
        15, lambda row: row.status.address, lambda row: tuple(map(int, row.status.address.split(".")))
    ),
    "or_port": Column(7, lambda row: row.status.or_port),
    "ipv6": Column(47, lambda row: row.status.ipv6 and format_address(*row.status.ipv6)),
    "country": Column(7, lambda row: row.country),
    "bandwidth": Column(9, lambda row: row.bandwidth),
    "flags": Column(48, lambda row: sorted(row.flags)),
    "version": Column(16, lambda row: row.status.version),
    "protocols": Column(100, lambda row: str(row.status.protocols)),
    "exit_policy": Column(30, lambda row: row.policies[0] and str(row.policies[0])),
    "exit_policy6": Column(30, lambda row: row.policies[1] and str(row.policies[1])),
    "family": Column(40, lambda row: row.relay and sorted(row.relay.family)),
    "family_ids": Column(40, lambda row: row.relay and sorted(row.relay.family_ids)),
}
DEFAULT_COLUMNS = ("fingerprint", "nickname", "address", "or_port", "bandwidth", "flags")
NARROW_COLUMNS = ("fingerprint", "nickname", "bandwidth", "flags")  # where a terminal has no room for those
OF_MICRODESCS = {"exit_policy", "exit_policy6", "family", "family_ids"}

Filter = Callable[[Row], bool]

Many = list[str] | None


@app.command()
def relays(
    context: typer.Context,
    stdin: Annotated[
        str | None, typer.Argument(metavar="[-]", show_default=False, help="The same as --from -.")
    ] = None,
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
    columns: Annotated[
        str | None, typer.Option(metavar="LIST", show_default=False, help=f"Of {', '.join(COLUMNS)}.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="By this column; else by fingerprint.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The last first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines with the same columns.")] = False,
    where: From = None,
    flavor: Flavor = None,
    certs: Certs = None,
    at: At = None,
    geoip: GeoIP = None,
) -> None:
    """List relays, filtered, sorted and in columns.

    In a pipe there are tabs between the columns; a terminal gets what fits into its lines.
    """
    if stdin not in (None, "-") or (stdin and where):
        raise UsageError("the only argument is -, for a consensus on stdin", hint="a file is --from FILE")
    for_people = sys.stdout.isatty() and not as_json
    if columns is not None:
        chosen = (*dict.fromkeys(columns.split(",")),)
    elif for_people and not table_of(DEFAULT_COLUMNS).has_room:
        chosen = NARROW_COLUMNS
    else:
        chosen = DEFAULT_COLUMNS
    asked = {*chosen, *([sort] if sort else ())}
    for name in asked - COLUMNS.keys():
        raise UsageError(f"no column {name!r}", hint=f"there are {', '.join(COLUMNS)}")
    if exit_port:
        asked.add("exit_policy")
    if exit_port6:
        asked.add("exit_policy6")
    if family:
        asked.add("family")
    if country:
        asked.add("country")

    source = Source(stdin or where, flavor, certs, at)
    directory = read_directory(context.obj, source, microdescs=bool(asked & OF_MICRODESCS))
    _say_what_is_missing(directory, asked & OF_MICRODESCS)
    countries = Countries(geoip)
    codes = country_codes(country or ())
    if "country" in asked:
        countries.require(codes)
    # What costs least comes first.
    filters: list[Filter] = []
    if flag:
        filters.append(has_flags(directory, flag))
    if min_bandwidth is not None:
        filters.append(lambda row: row.bandwidth >= min_bandwidth)
    if max_bandwidth is not None:
        filters.append(lambda row: row.bandwidth <= max_bandwidth)
    if fingerprint:
        filters.append(begins_with(fingerprint))
    if family:
        filters.append(is_in_family(directory, family))
    if nickname:
        filters.append(lambda row: fnmatchcase(row.status.nickname.lower(), nickname.lower()))
    if protocol:
        filters.append(speaks(protocol))
    if exit_port:
        filters.append(lambda row: bool(row.policies[0] and row.policies[0].accepts(exit_port)))
    if exit_port6:
        filters.append(lambda row: bool(row.policies[1] and row.policies[1].accepts(exit_port6)))
    if country:
        filters.append(lambda row: row.country in codes)

    everyone = (Row(directory, index, countries) for index in range(len(directory)))
    rows: Iterable[Row] = (row for row in everyone if all(test(row) for test in filters))
    if sort or reverse:
        rows = sort_rows(rows, sort or "fingerprint", reverse=reverse)
    print_rows(rows, chosen, as_json=as_json, for_people=for_people)


def _say_what_is_missing(directory: "Directory", asked: set[str]) -> None:
    """What needs a microdescriptor is not known of a relay without one: nobody shall take that for a no."""
    if directory.consensus.flavor == "ns":
        asked = asked - {"exit_policy"}
    if asked and directory.missing:
        say(
            f"{len(directory.missing)} of {len(directory)} relays have no microdescriptor at hand:"
            f" their {', '.join(sorted(asked))} {'is' if len(asked) == 1 else 'are'} not known"
        )


def has_flags(directory: "Directory", names: list[str]) -> Filter:
    """Relays with all of these flags, in either case. Raises UsageError for one that the consensus lacks."""
    known = {flag.lower(): flag for flag in directory.consensus.known_flags}
    for name in names:
        if name.lower() not in known:
            raise UsageError(f"no flag {name!r}", hint=f"there are {', '.join(sorted(known.values()))}")
    wanted = {known[name.lower()] for name in names}
    return lambda row: wanted <= row.flags


def begins_with(prefixes: list[str]) -> Filter:
    """Relays with one of these beginnings of fingerprints."""
    beginnings = tuple(prefix.removeprefix("$").upper() for prefix in prefixes)
    for beginning in beginnings:
        if not re.fullmatch("[0-9A-F]{1,40}", beginning):
            raise UsageError(f"{beginning!r} does not begin a fingerprint, which has 40 hexadecimal digits")
    return lambda row: row.identity.hex().upper().startswith(beginnings)


def is_in_family(directory: "Directory", name: str) -> Filter:
    """A relay and those of its family. Raises UsageError, and NoDirectory if the family is not known."""
    from torkit.paths.choose import family_of

    relay = directory.relay_at(find_relay(directory, name))
    if relay is None:
        raise NoDirectory(f"the family of {name} is not known: its microdescriptor is not at hand")
    members = {one.identity for one in (relay, *family_of(directory, relay))}
    return lambda row: row.identity in members


def speaks(texts: list[str]) -> Filter:
    """Relays that list all of these subprotocol versions. Raises UsageError."""
    from torkit.directory.netdoc import decode_protocols

    try:
        wanted = [decode_protocols(text) for text in texts]
    except ValueError as error:
        raise UsageError(f"--protocol takes a name and versions, like Relay=5: {error}") from None
    return lambda row: not any(one.missing_from(row.status.protocols) for one in wanted)


def country_codes(texts: Iterable[str]) -> set[str]:
    """The codes of countries that are written like us, US or {us}. Raises UsageError."""
    codes = {text.removeprefix("{").removesuffix("}").lower() for text in texts}
    for code in codes:
        if not re.fullmatch(r"[0-9a-z]{2}|\?\?", code):
            raise UsageError(f"{code!r} is not a country code", hint="codes have two letters; ?? is unknown")
    return codes


def sort_rows(rows: Iterable[Row], name: str, *, reverse: bool) -> list[Row]:
    """By a column; what is not known comes last, or first if `reverse`."""
    column = COLUMNS[name]
    key = column.order or column.value

    def order(row: Row) -> tuple[bool, Any]:
        value = key(row)
        return value is None, value

    return sorted(rows, key=order, reverse=reverse)


def print_rows(rows: Iterable[Row], names: Sequence[str], *, as_json: bool, for_people: bool) -> None:
    """One line each as they come; for people, aligned under a line of names."""
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps({name: COLUMNS[name].value(row) for name in names}) + "\n")
        return
    texts = ([to_text(COLUMNS[name].value(row)) for name in names] for row in rows)
    if for_people:
        table = table_of(names)
        print(table.header)
        for fields in texts:
            print(table.row(fields))
    else:
        for fields in texts:
            sys.stdout.write("\t".join(fields) + "\n")


def table_of(names: Sequence[str]) -> Table:
    """These columns, as the terminal has room for them."""
    widths = {name: max(len(name), COLUMNS[name].width) for name in names}
    return Table(widths, terminal_width(sys.stdout))


def to_text(value: Any) -> str:
    """A field of a line: never empty, so that every line has as many."""
    if isinstance(value, list):
        value = ",".join(value)
    return "-" if value in (None, "") else str(value)
