"""`torkit scan report`: what the rows of a campaign say together."""

from pathlib import Path
from typing import Annotated

import typer

from torkit.cli.options import command_app

app = command_app()


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Rows of one campaign.")],
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw latency.png and reasons.png there.")
    ] = None,
) -> None:
    """Print how many relays are well, why others are not, and how long things took."""
    from torkit.scan.report import read_report

    read = read_report(files)
    print("\n".join(read.lines()))
    if png is not None:
        from torkit.scan.plots import plot

        for path in plot(read, png):
            print(path)


def run_report(context: typer.Context, arguments: list[str]) -> None:
    """Run it: `torkit scan` is a command with a probe behind it, and no group of commands."""
    command = typer.main.get_command(app)
    with command.make_context("report", arguments, parent=context) as inner:
        command.invoke(inner)
