"""`torkit help`: the help of a command, or of them all."""

from typing import Annotated

import typer

from torkit.cli.options import command_app

app = command_app()


@app.command()
def help(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]", show_default=False, help="Which one.")
    ] = None,
) -> None:
    """Explain a command, or list them all."""
    program = context.find_root().command
    with program.make_context("torkit", [*(command or ()), "--help"]) as inner:
        program.invoke(inner)
