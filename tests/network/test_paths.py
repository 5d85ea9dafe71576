"""Circuits on real relays: ready before somebody needs them, counted for their guard, probed."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio
from network.private_network import RunningTestnet
from network.servers import WebServer
from waiting import until

from torkit.client import open_tor
from torkit.config import load_network
from torkit.errors import EndReason, StreamClosed
from torkit.learnt.predicted_ports import FIRST_PORT
from torkit.net.circuits.purpose import ExitTo, Need

pytestmark = pytest.mark.network


def test_real_relays_carry_what_was_built_ahead_and_are_counted(
    testnet: RunningTestnet, web_server: WebServer, tmp_path: Path
) -> None:
    async def main() -> None:
        network = load_network(testnet.network_file)
        async with open_tor(
            network=network, data_dir=tmp_path, conflux=False
        ) as tor:  # linked ones do not count
            await tor.wait_ready()
            await until(lambda: tor._parts.circuits.take_ready(Need(ExitTo(FIRST_PORT), object())))
            await tor.connect("web.test", web_server.port)
            await until(lambda: tor._parts.circuits.take_ready(Need(ExitTo(web_server.port), object())))
            # An exit that is the guard gets another guard, which then counts.
            counts = [guard.path_bias for guard in tor._parts.guards.guards.sample]

            def all_that_began_are_complete() -> bool:
                attempts = sum(one.circ_attempts for one in counts)
                return attempts == sum(one.circ_successes for one in counts) >= 3

            await until(all_that_began_are_complete)
            assert sum(one.use_attempts for one in counts) == sum(one.used_well for one in counts) == 3

    trio.run(main)


def test_a_real_exit_refuses_the_probe_in_the_words_expected(testnet: RunningTestnet, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_tor(network=load_network(testnet.network_file), data_dir=tmp_path) as tor:
            await tor.wait_ready()
            circuit = await tor._parts.circuits.acquire(Need(ExitTo(80), "probe"))
            assert circuit.watch.needs_probe
            nonce = IPv4Address("0.1.2.3")
            with pytest.raises(StreamClosed) as caught:
                await circuit.begin_probe(nonce).wait_connected()
            assert (caught.value.reason, caught.value.address) == (EndReason.EXITPOLICY, nonce)

    trio.run(main)
