"""`torkit scan`: a probe through every relay of a kind, and a row of JSON for each."""

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.cache import fetch_directory
from torkit.cli.client_options import with_options
from torkit.cli.options import Options, command_app, seconds
from torkit.cli.progress import draw, erase
from torkit.cli.running import protect_keys, run
from torkit.cli.scan_report import run_report
from torkit.cli.selection import Selection, relay_selection
from torkit.cli.socks import allow_descriptors
from torkit.cli.teaching import LESSONS
from torkit.cli.voice import say
from torkit.errors import UsageError

if TYPE_CHECKING:
    from torkit.config import Network
    from torkit.scan.campaign import Campaign, Scan
    from torkit.scan.rows import Row, RowFile
    from torkit.scan.unit import Unit

app = command_app()

# Implementation limits.
MAX_AT_ONCE = 1024
MIN_RATE = 0.001  # circuits a second
BAR_INTERVAL = 0.5  # seconds


@app.command(context_settings={"allow_interspersed_args": False}, help=LESSONS["scan"].summary)
@with_options("selection", relay_selection)
def scan(
    context: typer.Context,
    probe: Annotated[
        list[str],
        typer.Argument(
            metavar="-- PROBE...",
            help="connect HOST:PORT, tls HOST[:PORT], http [-H NAME]... URL, dns NAME, ping, or a command; "
            "and without --, report FILE...",
        ),
    ],
    position: Annotated[
        str, typer.Option(metavar="exit|guard|middle", help="As what relays are looked at, and which.")
    ] = "exit",
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Go by this directory, which torkit cache export has printed; only read."
        ),
    ] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="The I-th of N parts, from 0.")] = "0/1",
    seed: Annotated[
        str, typer.Option(metavar="TEXT", help="Another one gives other shards and other paths.")
    ] = "",
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add rows to this file, but of relays that have theirs there."),
    ] = None,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, max=MAX_AT_ONCE, metavar="N", help="Circuits at once.")
    ] = 16,
    rate: Annotated[float, typer.Option(metavar="R", help="Circuits a second.")] = 5.0,
    per_relay: Annotated[
        int,
        typer.Option(
            "--per-relay", min=1, max=MAX_AT_ONCE, metavar="N", help="Circuits at once through any relay."
        ),
    ] = 4,
    timeout: Annotated[
        float,
        typer.Option(parser=seconds, metavar="S", help="Seconds for the probe, once its circuit is there."),
    ] = 30.0,
    *,
    selection: Selection,
) -> None:
    if probe[0] == "report":
        run_report(context, probe[1:])
        return
    options: Options = context.obj
    index, count = parse_shard(shard)
    if not rate >= MIN_RATE:
        raise UsageError(f"--rate: {MIN_RATE:g} circuits a second are the least")
    from torkit.config import load_network
    from torkit.scan.campaign import Campaign, Limits
    from torkit.scan.plan import parse_position, places_in
    from torkit.scan.probes import parse_probe
    from torkit.scan.rows import RowFile, left_of

    network = load_network(options.network)
    campaign_position = parse_position(position)
    parsed = parse_probe(probe, allow_internal=network.testing)
    unit = take_unit(options, network, cache)
    campaign = Campaign(
        unit,
        parsed,
        network,
        seed=seed,
        position=campaign_position,
        limits=Limits(at_once, rate, per_relay, timeout),
    )
    wanted = {row.index for row in selection.rows(unit.directory, selection.countries())}
    chosen = [place for place in places_in(unit.directory, campaign_position) if place in wanted]
    places = campaign.plan.shard(chosen, index, count)
    if not places:
        say(f"nothing to look at: none of {len(chosen)} relays is in shard {index}/{count}")
    file = None if resume is None else RowFile(resume, campaign.head)
    try:
        if file is not None:
            there = len(places)
            places = left_of(unit.directory, places, file.done)
            if len(places) < there:
                say(f"{there - len(places)} of {there} relays have their rows in {resume}")
        protect_keys(options)
        allow_descriptors()
        if places:
            say(campaign.cost(len(places)))
        run(lambda: look_at(campaign, places, file), options)
    finally:
        if file is not None:
            file.close()


def parse_shard(text: str) -> tuple[int, int]:
    """The value of --shard. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None:
        raise UsageError(f"--shard: {text!r} is no shard", hint="write it like 0/8, the first of eight")
    return int(match[1]), int(match[2])


def take_unit(options: Options, network: "Network", cache: Path | None) -> "Unit":
    """The frozen directory: that of --cache, else the newest, which another process may not see again."""
    from torkit.scan.unit import freeze, load

    if cache is not None:
        return load(cache, network.voters, time.time())
    directory, _ = fetch_directory(options)
    return freeze(directory)


async def look_at(campaign: "Campaign", places: list[int], file: "RowFile | None") -> None:
    """Look at these relays; their rows go to `file`, or to stdout. Says at the end what came of it."""
    import trio

    from torkit.scan.campaign import open_scan
    from torkit.scan.rows import RowWriter, encode_row

    def print_row(row: "Row") -> None:
        erase()
        sys.stdout.write(encode_row(row).decode())
        sys.stdout.flush()

    writer = None if file is None else RowWriter(file)
    began = trio.current_time()

    async def show(scan: "Scan") -> None:
        while True:
            rows, summary = scan.summary.rows, scan.summary
            text = f"{rows} of {len(places)} relays, {summary.ok_count} ok"
            draw(100 * rows // max(len(places), 1), trio.current_time() - began, text)
            await trio.sleep(BAR_INTERVAL)

    async with open_scan(campaign, print_row if writer is None else writer.emit) as scan:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(show, scan)
                await scan.run(places, None if writer is None else writer.wait_room)
                if writer is not None:
                    await writer.wait_room()
                nursery.cancel_scope.cancel()
        finally:
            erase()
            say(str(scan.summary))
