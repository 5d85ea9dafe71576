"""torkit's client and an onion service of C tor's for longer than a test of `make test` may take."""

from pathlib import Path

import pytest
from network.private_network import running_testnet
from network.servers import WebServer
from network.soaking import (
    c_tor_service,
    points_of,
    torkit_client,
)
from network.test_onion import wait_published
from network.torkit_process import make_shell

from torkit.testnet import Options

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]


def test_a_service_that_its_points_know_no_more_is_told(tmp_path: Path, web_server: WebServer) -> None:
    """F2. Its process is killed, and theirs start anew: idle relays keep back what would tell them."""
    with (
        running_testnet(tmp_path / "net", Options(middles=14)) as net,
        c_tor_service(net, tmp_path / "service", web_server.port) as service,
    ):
        address = (tmp_path / "service" / "hostname").read_text().strip()
        shell = make_shell(net, tmp_path)
        wait_published(shell, address)
        with torkit_client(shell, tmp_path / "proxy") as client:
            assert client.visit(address).is_served
            points = points_of(net, shell, address)
            service.kill()
            for point in points:
                net.kill_relay(point)
                net.start_relay(point)
            visit = client.visit(address)
            print(f"told after {visit.seconds:.1f} s: {visit.said}")
            assert visit.reply == 0xF2
