"""`torkit testnet`: a private network of real `tor` processes on loopback."""

import os
from pathlib import Path
from typing import Annotated

import trio
import typer

from torkit import testnet
from torkit.cli.failures import FAILED, OK
from torkit.cli.options import command_app
from torkit.cli.teaching import LESSONS
from torkit.cli.voice import say
from torkit.config import user_state_dir
from torkit.errors import StorageError

app = command_app(no_args_is_help=True, help=LESSONS["testnet"].summary)

Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="Where the network lives.",
        show_default="torkit/testnet in $XDG_RUNTIME_DIR or the state directory",
    ),
]


@app.command()
def up(directory: Directory = None) -> None:
    """Start a network that stays until `down`.

    Prints the path of its network file.
    """
    network_file = testnet.up(_directory(directory))
    say(f"hint: export TORKIT_NETWORK={network_file}")
    print(network_file)


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def run(command: Annotated[list[str], typer.Argument(metavar="-- CMD [ARGS]...")]) -> None:
    """Run CMD on a network of its own.

    CMD finds it in TORKIT_NETWORK, and its status is ours.
    """
    raise typer.Exit(testnet.run_command(command))


@app.command()
def verify(directory: Directory = None) -> None:
    """Check the running network, with traffic through it."""
    net = testnet.Testnet.attach(_directory(directory))
    checks = trio.run(testnet.verify, net)
    for check in checks:
        print(f"{'ok' if check.passed else 'failed'}  {check.name}: {check.detail}")
    raise typer.Exit(OK if all(check.passed for check in checks) else FAILED)


@app.command()
def down(directory: Directory = None) -> None:
    """Stop the network and remove its files."""
    testnet.down(_directory(directory))


def _directory(directory: Path | None) -> Path:
    """Returns `directory`, or a place of this user's: no name in /tmp that others may guess."""
    if directory is not None:
        return directory
    if (runtime := Path(os.environ.get("XDG_RUNTIME_DIR", ""))).is_absolute():
        return runtime / "torkit" / "testnet"
    try:
        return user_state_dir() / "testnet"
    except StorageError as error:
        error.hint = "name a place for the network: --dir DIR"
        raise
