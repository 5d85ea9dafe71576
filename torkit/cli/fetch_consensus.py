"""`torkit fetch-consensus`: the verified network status."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.documents import At, Certs, Flavor, From, Source, read_directory, status_fields
from torkit.cli.files import write_file
from torkit.cli.options import Options, command_app
from torkit.errors import UsageError

if TYPE_CHECKING:
    from torkit.directory.consensus import Consensus

app = command_app()


@app.command()
def fetch_consensus(
    context: typer.Context,
    flavor: Flavor = None,
    where: From = None,
    certs: Certs = None,
    at: At = None,
    diff_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask for what has changed since this consensus, and apply it."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")
    ] = Path("-"),
    raw: Annotated[bool, typer.Option("--raw", help="The document itself also on a terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each relay.")] = False,
) -> None:
    """Print the list of relays, its signatures and times checked.

    On a terminal that is a summary; --raw is the document itself.
    """
    if raw and as_json:
        raise UsageError("--raw and --json are two forms of one output")
    options: Options = context.obj
    source = Source(where, flavor, certs, at, diff_from)
    consensus = read_directory(options, source, microdescs=False).consensus
    to_stdout = output == Path("-")
    if as_json:
        data = relays_to_json(consensus)
    elif to_stdout and sys.stdout.isatty() and not raw:
        data = to_text(consensus).encode()
    else:
        data = consensus.text
    if to_stdout:
        sys.stdout.buffer.write(data)
    else:
        write_file(output, data)


def relays_to_json(consensus: "Consensus") -> bytes:
    """Returns one line for each relay, in the order of the consensus."""
    lines = (json.dumps(status_fields(relay)) for relay in consensus.relays)
    return "".join(f"{line}\n" for line in lines).encode()


def to_text(consensus: "Consensus") -> str:
    """Returns a few lines for people."""
    from torkit.directory.netdoc import encode_time

    flags = consensus.relays.flags
    counts = ", ".join(f"{sum(flag in one for one in flags)} {flag}" for flag in ("Guard", "Exit", "V2Dir"))
    return (
        f"flavor       {consensus.flavor}, method {consensus.method}\n"
        f"valid after  {encode_time(consensus.valid_after)} UTC\n"
        f"fresh until  {encode_time(consensus.fresh_until)} UTC\n"
        f"valid until  {encode_time(consensus.valid_until)} UTC\n"
        f"relays       {len(flags)}: {counts}\n"
    )
