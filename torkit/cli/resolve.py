"""`torkit resolve`: names to addresses and back, looked up at an exit."""

import json
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.client_options import ClientSettings, client_settings, with_options
from torkit.cli.connect import too_late
from torkit.cli.failures import exit_status
from torkit.cli.options import Options, command_app, seconds
from torkit.cli.paths import read_path
from torkit.cli.running import run
from torkit.cli.teaching import LESSONS
from torkit.cli.via import Proxy, open_way, proxy_wanted
from torkit.cli.voice import say
from torkit.errors import TorkitError

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.directory.directory import Relay
    from torkit.net.circuits.request import Resolved

app = command_app()

MAX_AT_ONCE = 16  # look-ups under way


@app.command(help=LESSONS["resolve"].summary)
@with_options("proxy", proxy_wanted)
@with_options("settings", client_settings)
def resolve(
    context: typer.Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Host names, or addresses for their names.")
    ],
    path: Annotated[
        str | None, typer.Option(metavar="PATH", help="The relays: a JSON line, names with commas, or -.")
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            "-w",
            parser=seconds,
            metavar="S",
            show_default=False,
            help="Seconds for everything, from the start of the command.",
        ),
    ] = inf,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line for each name.")] = False,
    *,
    settings: ClientSettings,
    proxy: Proxy | None,
) -> None:
    options: Options = context.obj
    failures: list[TorkitError] = []

    async def command() -> None:
        import trio

        from torkit.proto.destination import check_destination

        async with open_way(options, settings, proxy) as tor:
            for name in names:
                check_destination(name, allow_internal=tor.network.testing)  # before a long start
            try:
                with trio.fail_after(wait):
                    await tor.wait_ready()
                    relays = None if path is None else await read_path(tor, path)
                    failures.extend(await resolve_all(tor, names, relays, as_json=as_json))
            except trio.TooSlowError:
                raise too_late(wait, tor.progress) from None

    run(command, options)
    if failures:
        raise typer.Exit(exit_status(failures[0]))


async def resolve_all(
    tor: "Tor", names: Sequence[str], path: "tuple[Relay, ...] | None", *, as_json: bool
) -> list[TorkitError]:
    """Look up every name, some at once, and print the answers in the order of `names`. Returns failures."""
    import trio

    found: dict[int, list[Resolved] | TorkitError] = {}
    has_found = [trio.Event() for _ in names]
    limit = trio.CapacityLimiter(MAX_AT_ONCE)
    failures = []

    async def look_up(number: int) -> None:
        async with limit:
            try:
                found[number] = await tor.resolve(names[number], path=path)
            except TorkitError as error:
                found[number] = error
        has_found[number].set()

    async with trio.open_nursery() as nursery:
        for number in range(len(names)):
            nursery.start_soon(look_up, number)
        for number, name in enumerate(names):
            await has_found[number].wait()
            result = found[number]
            show(name, result, as_json=as_json)
            if isinstance(result, TorkitError):
                failures.append(result)
    return failures


def show(name: str, result: "list[Resolved] | TorkitError", *, as_json: bool) -> None:
    """Print the answers for one name, a line each, or what was in the way."""
    if as_json:
        row: dict[str, object] = {"name": name}
        if isinstance(result, TorkitError):
            row["error"] = str(result)
        else:
            row["answers"] = [answer._asdict() for answer in result]
        print(json.dumps(row), flush=True)
    elif isinstance(result, TorkitError):
        say(f"{name}: {result}")
    else:
        for answer in result:
            print(f"{name}\t{answer.value}", flush=True)
