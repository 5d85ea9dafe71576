"""`torkit choose-path`: relays for a circuit, as JSON lines."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.client_options import ClientSettings
from torkit.cli.countries import GeoIP
from torkit.cli.documents import read_archived
from torkit.cli.options import EntryNodes, ExcludeNodes, ExitNodes, Options, command_app, restrictions
from torkit.cli.paths import parse_path
from torkit.cli.progress import erase
from torkit.cli.running import open_client, run
from torkit.cli.table import FINGERPRINT, Table, terminal_width
from torkit.errors import UsageError
from torkit.targets import format_address

if TYPE_CHECKING:
    from torkit.client import Tor

app = command_app()

WIDTHS = {"hop": 3, "relay": 19, "address": 21, FINGERPRINT: 40}


@app.command()
def choose_path(
    context: typer.Context,
    stdin: Annotated[
        str | None, typer.Argument(metavar="[-]", show_default=False, help="The same as --from -.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="How many paths.")] = 1,
    exit_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="A port that the exit must allow.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Print these relays instead: a JSON line, or names with commas."),
    ] = None,
    where: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Verify and use the consensus in this file, - being stdin; else the client's own.",
        ),
    ] = None,
    entry_nodes: EntryNodes = None,
    exit_nodes: ExitNodes = None,
    exclude_nodes: ExcludeNodes = None,
    geoip: GeoIP = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines also on a terminal.")] = False,
) -> None:
    """Choose paths as the client would, and print their relays."""
    options: Options = context.obj
    wanted = restrictions(
        entry_nodes=entry_nodes, exit_nodes=exit_nodes, exclude_nodes=exclude_nodes, path=path
    )
    if path == "-":
        raise UsageError("choose-path reads a consensus from stdin, not a path")
    if stdin not in (None, "-") or (stdin and where):
        raise UsageError("the only argument is -, for a consensus on stdin", hint="a file is --from FILE")
    consensus = read_consensus(Path("-") if stdin else where)
    for_people = sys.stdout.isatty() and not as_json

    async def command() -> None:
        async with open_client(options, consensus=consensus, settings=ClientSettings(wanted, geoip)) as tor:
            await tor.wait_ready()
            erase()
            print_paths(tor, count=count, exit_port=exit_port, path=path, for_people=for_people)

    run(command, options)


def read_consensus(path: Path | None) -> bytes | None:
    """Returns the document in this file, `-` being stdin; None where none is named. Raises UsageError."""
    from torkit.directory.consensus import MAX_CONSENSUS_LEN

    return None if path is None else read_archived(path, MAX_CONSENSUS_LEN)


def print_paths(
    tor: "Tor", *, count: int, exit_port: int | None, path: str | None, for_people: bool = False
) -> None:
    """Print each path as one JSON line; for people, as a row for each relay, under a header."""
    from torkit.paths.choose import check_exit
    from torkit.paths.constraints import Constraints
    from torkit.paths.text import path_to_json

    table = Table(WIDTHS, terminal_width(sys.stdout)) if for_people else None
    for number in range(count):
        if path is None:
            relays = tor.choose_path(Constraints(port=exit_port))
        else:
            relays = parse_path(tor, path)
            if exit_port is not None:
                check_exit(relays[-1], exit_port)
        if table is None:
            sys.stdout.write(path_to_json(relays) + "\n")
            continue
        print("" if number else table.header)  # an empty line between two paths
        for hop, relay in enumerate(relays, 1):
            where = format_address(relay.address, relay.or_port)
            print(table.row([str(hop), relay.nickname, where, relay.fingerprint]))
