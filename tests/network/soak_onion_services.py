"""torkit's onion services for longer than a test of `make test` may take; each on a network of its own."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from network.private_network import RunningTestnet, running_testnet
from network.servers import WebServer
from network.soaking import (
    Client,
    Visitor,
    at,
    c_tor_client,
    torkit_client,
    torkit_service,
    wait_points,
)
from network.torkit_process import Shell, make_shell

from torkit.testnet import Options

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

MANY = 14  # middle relays: three can die and hardly anybody's vanguards are all among them


class Ground:
    """A network with a key for a service of torkit's, and a client of either program."""

    def __init__(self, net: RunningTestnet, shell: Shell, key: Path, clients: list[Client]) -> None:
        self.net = net
        self.shell = shell
        self.key = key
        self.address = (key / "hostname").read_text().strip()
        self.clients = clients


@contextmanager
def a_ground(directory: Path, *, middles: int = 6) -> Iterator[Ground]:
    with ExitStack() as stack:
        net = stack.enter_context(running_testnet(directory / "net", Options(middles=middles)))
        shell = make_shell(net, directory)
        assert shell.run(f"torkit onion new {directory}/key").returncode == 0
        clients = [
            stack.enter_context(torkit_client(shell, directory / "proxy")),
            c_tor_client(net, shell, directory / "c-tor"),
        ]
        yield Ground(net, shell, directory / "key", clients)


def test_every_introduction_point_of_ours_is_killed_in_turn(tmp_path: Path, web_server: WebServer) -> None:
    """They stay dead, also as guards, vanguards and directories of anybody, and are listed on."""
    with (
        a_ground(tmp_path, middles=MANY) as ground,
        torkit_service(ground.shell, ground.key, web_server.port),
    ):
        for client in ground.clients:
            assert client.visit(ground.address).is_served
        points = wait_points(ground.net, ground.shell, ground.address, [])
        for number, point in enumerate(points, 1):
            ground.net.kill_relay(point)
            killed_at = time.monotonic()
            for client in ground.clients:
                visit = client.visit(ground.address)
                print(f"{point} is dead, {client.name}: {visit.seconds:.1f} s {visit.said}")
                assert visit.is_served
            wait_points(ground.net, ground.shell, ground.address, points[:number])
            print(f"{point} was replaced after {time.monotonic() - killed_at:.1f} s")


def test_a_service_that_is_killed_and_back_is_met_by_clients_that_go_on(
    tmp_path: Path, web_server: WebServer
) -> None:
    with a_ground(tmp_path) as ground, ExitStack() as stack:
        with torkit_service(ground.shell, ground.key, web_server.port) as process:
            visitors = [stack.enter_context(Visitor(client, ground.address)) for client in ground.clients]
            for visitor in visitors:
                visitor.wait_served(5, 0.0, 120)
            process.kill()
            process.wait()
        with torkit_service(ground.shell, ground.key, web_server.port):
            _check_served_from_now_on(visitors)


def _check_served_from_now_on(visitors: Sequence[Visitor]) -> None:
    """torkit's client at its first try; C tor's some day: it waits minutes for a service that was there."""
    now = time.time()
    for visitor in visitors:
        visitor.wait_served(3, now, 400)
        print(f"since {at(now)}: {visitor}")
    assert all(visit.is_served for visit in visitors[0].since(now))
