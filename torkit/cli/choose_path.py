"""`torkit choose-path`: relays for a circuit, as JSON lines."""

import os
import stat
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli import (
    EntryNodes,
    ExcludeNodes,
    ExitNodes,
    Options,
    command_app,
    open_client,
    parse_path,
    restrictions,
    run,
)
from torkit.cli.progress import erase
from torkit.errors import UsageError

if TYPE_CHECKING:
    from torkit.client import Tor

app = command_app()


@app.command()
def choose_path(
    context: typer.Context,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="How many paths.")] = 1,
    exit_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="A port that the exit must allow.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Print these relays instead: a JSON line, or names with commas."),
    ] = None,
    entry_nodes: EntryNodes = None,
    exit_nodes: ExitNodes = None,
    exclude_nodes: ExcludeNodes = None,
) -> None:
    """Choose paths as the client would; a consensus on stdin is verified and used."""
    options: Options = context.obj
    wanted = restrictions(
        entry_nodes=entry_nodes, exit_nodes=exit_nodes, exclude_nodes=exclude_nodes, path=path
    )
    if path == "-":
        raise UsageError("choose-path reads a consensus from stdin, not a path")
    consensus = read_consensus(0)

    async def command() -> None:
        async with open_client(options, consensus=consensus, restrictions=wanted) as tor:
            await tor.wait_ready()
            erase()
            print_paths(tor, count=count, exit_port=exit_port, path=path)

    run(command, options)


def read_consensus(descriptor: int) -> bytes | None:
    """What is piped or redirected to `descriptor`; None if that is a terminal, a device, or empty."""
    from torkit.directory.consensus import MAX_CONSENSUS_LEN

    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return None
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        document = file.read(MAX_CONSENSUS_LEN + 1)
    if len(document) > MAX_CONSENSUS_LEN:
        raise UsageError(f"expected a consensus on stdin and saw more than {MAX_CONSENSUS_LEN} bytes")
    return document or None


def print_paths(tor: "Tor", *, count: int, exit_port: int | None, path: str | None) -> None:
    from torkit.path import Constraints, path_to_json

    for _ in range(count):
        relays = parse_path(tor, path) if path else tor.choose_path(Constraints(port=exit_port))
        sys.stdout.write(path_to_json(relays) + "\n")
