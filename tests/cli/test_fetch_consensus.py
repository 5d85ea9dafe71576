"""`torkit fetch-consensus`: relays as JSON lines."""

import json

from fake_tor import FakeTor

from torkit.cli.fetch_consensus import relays_to_json


async def test_each_relay_is_one_line_in_the_order_of_the_consensus() -> None:
    consensus = FakeTor().directory.consensus
    lines = [json.loads(line) for line in relays_to_json(consensus).splitlines()]
    assert [line["fingerprint"] for line in lines] == [
        relay.identity.hex().upper() for relay in consensus.relays
    ]
    first = consensus.relays[0]
    assert lines[0] == {
        "nickname": first.nickname,
        "fingerprint": first.identity.hex().upper(),
        "address": first.address,
        "or_port": first.or_port,
        "flags": sorted(first.flags),
        "bandwidth": first.bandwidth,
    }
