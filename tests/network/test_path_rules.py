"""Paths that a client chooses by the consensus of real authorities, whose relays have a /16 each."""

import json
from pathlib import Path

import pytest
from network.private_network import RunningTestnet
from path_rules import broken_rules

from torkit.client import open_tor
from torkit.config import load_network
from torkit.paths.constraints import Constraints

pytestmark = pytest.mark.network

PORT = 443
PRIMARY_GUARDS = 3


async def test_ten_thousand_chosen_paths_break_no_rule(testnet: RunningTestnet, tmp_path: Path) -> None:
    async with open_tor(network=load_network(testnet.network_file), data_dir=tmp_path) as tor:
        await tor.wait_ready()
        directory = tor.directory
        paths = [tor.choose_path(Constraints(port=PORT)) for _ in range(10_000)]
    kept = json.loads((tmp_path / "state.json").read_text())["guards"][:PRIMARY_GUARDS]
    guards = [bytes.fromhex(guard["fingerprint"]) for guard in kept]
    assert broken_rules(directory, paths, port=PORT, guards=guards) == []
    assert {exit_.nickname for _, _, exit_ in paths} == {relay.nickname for relay in testnet.exits}
