"""`torkit cache`: the directory as one unit that many processes can read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.options import Options, command_app
from torkit.cli.progress import erase
from torkit.cli.running import open_client, run
from torkit.cli.teaching import LESSONS
from torkit.cli.voice import say
from torkit.errors import NoDirectory

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.directory.directory import Directory

app = command_app(no_args_is_help=True, help=LESSONS["cache"].summary)

# Seconds. A document that no directory serves in this time cannot be had now.
COMPLETE_TIMEOUT = 60.0
COMPLETE_CHECK = 0.1


@app.callback()
def cache() -> None:
    """Has commands of its own, of which there may be more one day."""


@app.command()
def export(
    context: typer.Context,
    place: Annotated[Path, typer.Argument(metavar="DIR", help="Where units go, each under its digest.")],
) -> None:
    """Write consensus, certificates and microdescriptors as one unit.

    Prints its directory, which --cache takes. It has no guards and no state.
    """
    from torkit.directory.cache import Cache
    from torkit.scan.unit import export as export_unit

    options: Options = context.obj
    directory, data_dir = fetch_directory(options)
    certificates = Cache(data_dir).load_certificates()
    if not certificates:
        raise NoDirectory("the data directory has no certificates to export", hint="is it writable?")
    print(export_unit(directory, b"".join(one.text for one in certificates), place))


def fetch_directory(options: Options) -> "tuple[Directory, Path]":
    """Returns the newest directory that cache and network have, and where it is kept."""
    found: list[tuple[Directory, Path]] = []

    async def command() -> None:
        async with open_client(options) as tor:
            await tor.wait_ready()
            await wait_complete(tor)
            found.append((tor.directory, tor.data_dir))

    run(command, options)
    [(directory, data_dir)] = found
    if directory.missing:
        say(f"{len(directory.missing)} of {len(directory)} relays have no microdescriptor in it")
    return directory, data_dir


async def wait_complete(tor: "Tor") -> None:
    """Until every relay's microdescriptor has come, or COMPLETE_TIMEOUT is over."""
    import trio

    with trio.move_on_after(COMPLETE_TIMEOUT):
        while tor.directory.missing:
            await trio.sleep(COMPLETE_CHECK)
    erase()
