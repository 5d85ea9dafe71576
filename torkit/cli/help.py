"""`torkit help`: the manual page of a command, or a list of them all."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from torkit.cli.options import command_app
from torkit.cli.teaching import LESSONS

app = command_app()


@app.command(help=LESSONS["help"].summary)
def help(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]", show_default=False, help="Which one.")
    ] = None,
) -> None:
    from torkit.cli.manual import as_text, find_page

    page = find_page(command[0]) if command and command[0] in LESSONS else None
    if page is None:
        program = context.find_root().command
        with program.make_context("torkit", [*(command or ()), "--help"]) as inner:
            program.invoke(inner)
    elif not (sys.stdout.isatty() and show_by_man(page)):
        print(as_text(page.read_text("utf-8")), end="")


def show_by_man(page: Path) -> bool:
    """Let man show a page, and its pager wait for keys. Returns whether there is a man that could."""
    signal.signal(signal.SIGINT, lambda *_: None)  # it is the pager's
    return shutil.which("man") is not None and subprocess.run(["man", page], check=False).returncode == 0
