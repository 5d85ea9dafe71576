"""A scan of a network of scripted relays, and what its rows say."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from served import ServedNetwork, serve_network

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs
from torkit.directory.positions import Position
from torkit.scan.campaign import Campaign, Limits, open_scan
from torkit.scan.outcome import Probe
from torkit.scan.plan import places_in
from torkit.scan.probes import parse_probe
from torkit.scan.rows import Row
from torkit.scan.unit import Unit, freeze

FAST = Limits(at_once=8, rate=1000, per_relay=8, timeout=5)


def unit_of(network: ServedNetwork) -> Unit:
    """The frozen directory of a served network."""
    texts = Microdescs.decode(b"".join(network.service.microdescs.values()))
    return freeze(Directory(parse_consensus(network.service.consensus), texts))


@asynccontextmanager
async def scanned_network(exits: int = 2) -> AsyncIterator[ServedNetwork]:
    async with serve_network(guards=2, exits=exits) as network:
        yield network


async def scan(
    network: ServedNetwork,
    probe: Sequence[str] | Probe,
    *,
    limits: Limits = FAST,
    position: Position = Position.EXIT,
    **settings: Any,
) -> dict[str, Row]:
    """The row of each relay that has the flag of `position`, by nickname."""
    parsed = parse_probe(probe, allow_internal=True) if isinstance(probe, Sequence) else probe
    campaign = Campaign(
        unit_of(network), parsed, network.config, limits=limits, position=position, **settings
    )
    rows: list[Row] = []
    async with open_scan(campaign, rows.append) as running:
        await running.run(campaign.plan.shard(places_in(campaign.unit.directory, position)))
    assert len({row["fingerprint"] for row in rows}) == len(rows)
    return {row["nickname"]: row for row in rows}
