"""`torkit build-circuit`: circuits built, timed and closed."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torkit.cli.client_options import ClientSettings
from torkit.cli.countries import GeoIP
from torkit.cli.options import EntryNodes, ExcludeNodes, ExitNodes, Options, command_app, restrictions
from torkit.cli.paths import next_line, parse_path
from torkit.cli.progress import erase
from torkit.cli.running import open_client, run
from torkit.cli.table import Table, terminal_width
from torkit.errors import UsageError
from torkit.targets import format_address

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.net.circuit.circuit import Circuit

app = command_app()

WIDTHS = {"hop": 3, "relay": 19, "address": 21, "keys": 7, "cells": 5, "flow": 5, "    time": 8}


@app.command()
def build_circuit(
    context: typer.Context,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many circuits, one after another: 1, or the lines of stdin."
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The relays: a JSON line, names with commas, or - for lines of stdin."
        ),
    ] = None,
    is_linked: Annotated[
        bool,
        typer.Option("--linked", help="Two circuits to one exit, linked as for downloads (Conflux)."),
    ] = False,
    entry_nodes: EntryNodes = None,
    exit_nodes: ExitNodes = None,
    exclude_nodes: ExcludeNodes = None,
    geoip: GeoIP = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines also on a terminal.")] = False,
) -> None:
    """Build circuits, and print how long each step took."""
    options: Options = context.obj
    wanted = restrictions(
        entry_nodes=entry_nodes, exit_nodes=exit_nodes, exclude_nodes=exclude_nodes, path=path
    )
    if is_linked and path is not None:
        raise UsageError(
            "circuits through a given path are never linked", hint="leave out --path or --linked"
        )
    for_people = sys.stdout.isatty() and not as_json

    async def command() -> None:
        async with open_client(options, as_json=as_json, settings=ClientSettings(wanted, geoip)) as tor:
            await tor.wait_ready()
            if is_linked:
                await build_linked(tor, count=count or 1, for_people=for_people)
            else:
                await build(tor, count=count, path=path, for_people=for_people)

    run(command, options)


async def build(tor: "Tor", *, count: int | None, path: str | None, for_people: bool) -> None:
    """Build `count` circuits, one after another; where `path` is `-`, each line of stdin is one's path."""
    table = Table(WIDTHS, terminal_width(sys.stdout)) if for_people else None
    if count is None and path != "-":
        count = 1
    number = 0
    while count is None or number < count:
        line = await next_line(0) if path == "-" else path
        if path == "-" and line is None:
            return
        circuit = await tor.build_circuit(None if line is None else parse_path(tor, line))
        erase()
        if table is None:
            print(to_json(circuit), flush=True)
        else:
            print("" if number else table.header)  # an empty line between two circuits
            print("\n".join(map(table.row, to_fields(circuit))), flush=True)
        circuit.close()
        number += 1


async def build_linked(tor: "Tor", *, count: int, for_people: bool) -> None:
    """Build `count` sets of linked circuits, one after another."""
    table = Table(WIDTHS, terminal_width(sys.stdout)) if for_people else None
    for number in range(count):
        pair = await tor.build_linked_circuit()
        erase()
        delays = [leg.rtt for leg in pair.carried()]
        if table is None:
            legs = [to_document(leg) | {"rtt": rtt} for leg, rtt in zip(pair.legs, delays, strict=True)]
            print(json.dumps({"legs": legs}), flush=True)
        else:
            print("" if number else table.header)
            for leg, rtt in zip(pair.legs, delays, strict=True):
                print("\n".join(map(table.row, to_fields(leg))))
                print(table.row(["", "linked", "", "", "", "", in_milliseconds(rtt)]), flush=True)
        pair.close()


def to_json(circuit: "Circuit") -> str:
    """Returns one line, which `--path` takes; each hop says how it was made."""
    return json.dumps(to_document(circuit))


def to_document(circuit: "Circuit") -> dict[str, Any]:
    from torkit.paths.text import path_to_json

    document: dict[str, Any] = json.loads(path_to_json(circuit.path))
    for relay, hop in zip(document["path"], circuit.hops, strict=True):
        relay |= hop._asdict()
    return document


def to_fields(circuit: "Circuit") -> Iterator[list[str]]:
    """One row of a table for each hop."""
    for number, (relay, hop) in enumerate(zip(circuit.path, circuit.hops, strict=True), 1):
        address = format_address(relay.address, relay.or_port)
        how = [hop.handshake, hop.layer, hop.flow_control, in_milliseconds(hop.seconds)]
        yield [str(number), relay.nickname, address, *how]


def in_milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:5.1f} ms"
