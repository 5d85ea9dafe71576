"""A shard, for programs and the engines that run them: the same everywhere, and nothing but rows back."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path

import trio

from torkit.config import Network, StrPath, chosen_network
from torkit.errors import TorkitError
from torkit.scan.campaign import GENTLE, Campaign, Limits, open_scan
from torkit.scan.outcome import Probe
from torkit.scan.plan import parse_position, places_in
from torkit.scan.probes import parse_probe
from torkit.scan.rows import Row, RowFile, RowWriter, left_of
from torkit.scan.unit import load


def run_shard(
    index: int,
    count: int,
    probe: Sequence[str] | Probe,
    *,
    cache: StrPath,
    network: Network | StrPath | None = None,
    position: str = "exit",
    seed: str = "",
    fingerprints: Collection[str] | None = None,
    limits: Limits = GENTLE,
    resume: StrPath | None = None,
) -> list[Row]:
    """Look at the relays of shard `index` of `count`; a row for each. docs/scan.md has the fields.

    `probe` is words as on the command line, as ("connect", "example.com:443"), or a torkit.scan.OnStream.
    `cache` is a directory that `torkit cache export` has printed. `network` as for torkit.open_tor. Of
    `fingerprints`, where given, only those relays. With `resume`, rows go to that file, too, and relays whose
    rows are there are not looked at: their rows are returned as they are.

    Blocks, in any thread that runs no trio. Raises UsageError for what can never work, DocumentError and
    NoDirectory for a cache that is damaged, or of another network or time, StorageError for a file.
    """
    if not isinstance(network, Network):
        network = chosen_network(network)
    parsed = parse_probe(probe, allow_internal=network.testing) if isinstance(probe, Sequence) else probe
    unit = load(Path(cache), network.voters, time.time())
    campaign = Campaign(unit, parsed, network, seed=seed, position=parse_position(position), limits=limits)
    chosen = places_in(unit.directory, campaign.position)
    if fingerprints is not None:
        wanted = {fingerprint.upper() for fingerprint in fingerprints}
        identities = unit.directory.consensus.relays.identities
        chosen = [place for place in chosen if identities[place].hex().upper() in wanted]
    places = campaign.plan.shard(chosen, index, count)
    rows: list[Row] = []
    if resume is None:
        _run(campaign, places, rows, None)
        return rows
    file = RowFile(Path(resume), campaign.head)
    try:
        rows += file.rows_of(unit.directory, places)
        _run(campaign, left_of(unit.directory, places, file.done), rows, RowWriter(file))
    finally:
        file.close()
    return rows


def _run(campaign: Campaign, places: list[int], rows: list[Row], writer: RowWriter | None) -> None:
    try:
        trio.run(_scan, campaign, places, rows, writer)
    except BaseExceptionGroup as group:  # every worker says why it has stopped, and one reason is enough
        error: BaseException | None = group.subgroup(TorkitError)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            raise
        raise error from group


async def _scan(campaign: Campaign, places: list[int], rows: list[Row], writer: RowWriter | None) -> None:
    def emit(row: Row) -> None:
        rows.append(row)
        if writer is not None:
            writer.emit(row)

    async with open_scan(campaign, emit) as scan:
        await scan.run(places, None if writer is None else writer.wait_room)
        if writer is not None:
            await writer.wait_room()
