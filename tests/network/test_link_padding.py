"""Padding between torkit and a real relay, in both directions, and none where it was told to stop."""

import os
import re
import signal
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from network.private_network import WATCHED, RunningTestnet
from waiting import until

from torkit.client import open_tor
from torkit.config import load_network
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.build import build_circuit
from torkit.net.link.channel import Channel
from torkit.net.link.channels import Channels
from torkit.params import default_param
from torkit.proto.padding import Padding

pytestmark = pytest.mark.network

# Seconds in which a relay pads for sure: its longest silence, and how seldom it looks.
LONGEST_SILENCE = default_param("nf_ito_high") / 1000 + 1.5
DEADLINE = 20.0  # seconds

# What a relay notes of a C tor 0.4.9 client with ReducedConnectionPadding 1 or ConnectionPadding 0.
STOP = "Negotiated padding=0, lo=1500, hi=1500 "

NEVER = {"nf_ito_low": 60_000, "nf_ito_high": 60_000}
EVERY_SECOND = dict.fromkeys(("nf_ito_low", "nf_ito_high", "nf_ito_low_reduced", "nf_ito_high_reduced"), 1000)


async def test_relay_and_client_pad_each_other_and_heed_a_stop(
    testnet: RunningTestnet, watched_log: Path, tmp_path: Path
) -> None:
    pid = testnet.relay(WATCHED).pid
    assert pid is not None

    def count(line: str) -> int:
        return len(re.findall(line, watched_log.read_text()))

    async def padding_received() -> int:
        """PADDING cells that the relay has had from all that are connected to it."""
        before = count("Cells processed")
        os.kill(pid, signal.SIGUSR1)
        await until(lambda: count(r"Cells processed: \d+ padding\n(.*\n)*? +\d+ destroy") > before)
        return int(re.findall(r"Cells processed: (\d+) padding", watched_log.read_text())[-1])

    network = load_network(testnet.network_file)
    async with (
        open_tor(network=network, data_dir=tmp_path, spare_circuits=0) as tor,
        trio.open_nursery() as nursery,
    ):
        await tor.wait_ready()
        path = tuple(
            relay
            for name in (WATCHED, "middle1", "exit1")  # relays pad once a circuit goes on from them
            if (relay := tor.directory.relay_at(tor.directory.indexes_of(name)[0])) is not None
        )
        stops = count(STOP)
        received = await padding_received()

        kinds = [(Padding.AUTO, NEVER), (Padding.REDUCED, EVERY_SECOND), (Padding.OFF, EVERY_SECOND)]
        channels: list[Channel] = []
        for padding, params in kinds:
            one = Channels(nursery, Random(), padding=padding, params=partial(dict, params))
            await build_circuit(one, path, CircuitSettings(), Random())
            channels.append(await one.get(path[0]))
        silent, _, off = channels
        before = [silent.active_at, off.active_at]
        await until(lambda: silent.active_at != before[0])  # neither of the two sends anything by itself
        await trio.sleep_until(before[1] + LONGEST_SILENCE)
        assert off.active_at == before[1]
        assert count(STOP) - stops == 2
        # One a second from us, and a few of other tests' clients.
        assert await padding_received() - received >= LONGEST_SILENCE - 3
        assert [channel.error for channel in channels] == [None] * 3
        nursery.cancel_scope.cancel()
