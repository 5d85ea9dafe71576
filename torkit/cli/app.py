"""The program: global options, and the commands, each imported when it is the one that runs."""

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from torkit.cli.failures import OK, cause_of, report
from torkit.cli.options import Options, command_app
from torkit.cli.standard import deliver_output, drop_unwritten_output, open_standard_descriptors
from torkit.cli.teaching import LESSONS, epilog, overview
from torkit.cli.voice import speak_for_python
from torkit.errors import TorkitError


class _Commands(TyperGroup):
    """The commands, each imported when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(LESSONS)  # type: ignore[assignment]  # their names, for near misses

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # Typer exports no such type
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            # Typer's parser leaves some of its errors without the command that they are of.
            if getattr(error, "ctx", self) is None and ctx.invoked_subcommand in LESSONS:
                command = self.get_command(ctx, ctx.invoked_subcommand)
                error.ctx = typer.Context(command, parent=ctx, info_name=ctx.invoked_subcommand)  # type: ignore[attr-defined]  # Typer exports no such type
            raise

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # Typer exports no such type
        return list(LESSONS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]  # Typer exports no such type
        if cmd_name not in LESSONS:
            return None
        command = typer.main.get_command(import_module(f"torkit.cli.{cmd_name.replace('-', '_')}").app)
        command.epilog = epilog(cmd_name)
        return command

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write(overview())

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Nothing more: `overview` has said it, before the options."""


app = command_app(cls=_Commands, no_args_is_help=True)


def print_version() -> None:
    from importlib.metadata import version

    print(f"torkit {version('torkit')}")


def _show_version(wanted: bool) -> None:
    if wanted:
        print_version()
        raise typer.Exit


@app.callback()
def torkit(
    context: typer.Context,
    network: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="TORKIT_NETWORK", help="The network file; else the public network."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="TORKIT_DATA_DIR", help="Where cache and state are kept."),
    ] = None,
    cgo: Annotated[
        str,
        typer.Option(
            metavar="exit|all|off",
            help="Which hops are asked for Counter Galois Onion; exit is what C tor's clients do.",
        ),
    ] = "exit",
    verbosity: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Say on stderr what happens; twice, in detail."),
    ] = 0,
    allow_debugging: Annotated[
        bool,
        typer.Option("--allow-debugging", help="Let debuggers attach and cores be left."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A Tor client for shells: a SOCKS proxy, a pipe, and the steps between them."""
    context.obj = Options(network, data_dir, cgo, verbosity, allow_debugging)


def main() -> NoReturn:
    """The `torkit` program."""
    try:
        open_standard_descriptors()
    except OSError as error:  # there is no null device
        sys.exit(report(error))
    speak_for_python()
    sys.exit(run_command_line(sys.argv[1:]))


def run_command_line(arguments: list[str]) -> int:
    """Run one command line; returns its exit status."""
    try:
        try:
            command = typer.main.get_command(app)
            with command.make_context("torkit", arguments) as context:
                command.invoke(context)
        except typer.Exit as error:
            if error.exit_code != OK:
                raise
        sys.stdout.flush()
        deliver_output()
    except BaseException as error:
        drop_unwritten_output()
        cause = cause_of(error)
        if isinstance(cause, TorkitError):  # a signal does not wait, and output that has failed need not
            with suppress(OSError):
                deliver_output()
        return report(cause)
    return OK
