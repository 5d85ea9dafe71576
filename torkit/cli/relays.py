"""`torkit relays`: the relays of a consensus, filtered, sorted, and printed in columns."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from torkit.cli.client_options import with_options
from torkit.cli.documents import At, Certs, Flavor, From, Source, read_directory
from torkit.cli.options import command_app
from torkit.cli.selection import Row, Selection, relay_selection
from torkit.cli.table import Table, terminal_width
from torkit.cli.voice import say
from torkit.errors import UsageError
from torkit.targets import format_address

if TYPE_CHECKING:
    from torkit.directory.directory import Directory

app = command_app()


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


@app.command()
@with_options("selection", relay_selection)
def relays(
    context: typer.Context,
    stdin: Annotated[
        str | None, typer.Argument(metavar="[-]", show_default=False, help="The same as --from -.")
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
    *,
    selection: Selection,
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
    asked |= selection.asked

    countries = selection.countries()
    if "country" in asked:
        countries.require(selection.codes)
    source = Source(stdin or where, flavor, certs, at)
    directory = read_directory(context.obj, source, microdescs=bool(asked & OF_MICRODESCS))
    _say_what_is_missing(directory, asked & OF_MICRODESCS)
    rows: Iterable[Row] = selection.rows(directory, countries)
    if sort or reverse:
        rows = sort_rows(rows, sort or "fingerprint", reverse=reverse)
    print_rows(rows, chosen, as_json=as_json, for_people=for_people)


def _say_what_is_missing(directory: "Directory", asked: set[str]) -> None:
    """Say which columns are unknown of relays without a microdescriptor: nobody shall take that for a no."""
    if directory.consensus.flavor == "ns":
        asked = asked - {"exit_policy"}
    if asked and directory.missing:
        say(
            f"{len(directory.missing)} of {len(directory)} relays have no microdescriptor at hand:"
            f" their {', '.join(sorted(asked))} {'is' if len(asked) == 1 else 'are'} not known"
        )


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
    """Returns a field of a line: never empty, so that every line has as many."""
    if isinstance(value, list):
        value = ",".join(value)
    return "-" if value in (None, "") else str(value)
