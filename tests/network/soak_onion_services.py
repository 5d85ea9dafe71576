"""torkit's onion services for longer than a test of `make test` may take; each on a network of its own."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from network.private_network import RunningTestnet, running_testnet
from network.servers import WebServer
from network.soaking import (
    MANY,
    PUBLISHED_WITHIN,
    Client,
    Visitor,
    at,
    c_tor_client,
    c_tor_service,
    describe,
    torkit_client,
    torkit_service,
    wait_points,
)
from network.test_onion import wait_published
from network.torkit_process import Shell, make_shell, wait_until

from torkit.hs.calendar import Calendar, length_when_testing
from torkit.testnet import Options

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

SHORTEST_INTERVAL = 10  # seconds between consensuses; a period is four minutes then
TURNS = 2
MIN_VISITS = 30  # of each client, so that none has stood still


class Ground:
    """A network with a key for a service of torkit's, and a client of either program."""

    def __init__(self, net: RunningTestnet, shell: Shell, key: Path, clients: list[Client]) -> None:
        self.net = net
        self.shell = shell
        self.key = key
        self.address = (key / "hostname").read_text().strip()
        self.clients = clients


@contextmanager
def a_ground(directory: Path, *, interval: int = 1800, middles: int = 6) -> Iterator[Ground]:
    with ExitStack() as stack:
        options = Options(voting_interval=interval, middles=middles)
        net = stack.enter_context(running_testnet(directory / "net", options))
        shell = make_shell(net, directory)
        assert shell.run(f"torkit onion new {directory}/key").returncode == 0
        clients = [
            stack.enter_context(torkit_client(shell, directory / "proxy")),
            c_tor_client(net, shell, directory / "c-tor"),
        ]
        yield Ground(net, shell, directory / "key", clients)


def test_no_request_fails_while_two_periods_turn(tmp_path: Path, web_server: WebServer) -> None:
    """Of torkit's client, to services of both programs. Clients take new identities all the time, and so
    fetch descriptors.

    C tor's client is only looked at: what it asked for in the old period it decrypts as one of the new, and
    fails, at C tor's own service, too.
    """
    with a_ground(tmp_path, interval=SHORTEST_INTERVAL) as ground, ExitStack() as stack:
        stack.enter_context(c_tor_service(ground.net, tmp_path / "theirs", web_server.port))
        theirs = (tmp_path / "theirs" / "hostname").read_text().strip()
        stack.enter_context(torkit_service(ground.shell, ground.key, web_server.port))
        wait_published(ground.shell, theirs)
        of_torkit, of_c_tor = ground.clients
        visitors = {
            "torkit's client, C tor's service": Visitor(of_torkit, theirs),
            "torkit's client, torkit's service": Visitor(of_torkit, ground.address),
            "C tor's client, torkit's service": Visitor(of_c_tor, ground.address),
            "C tor's client, C tor's service": Visitor(of_c_tor, theirs),
        }
        with ExitStack() as visits:
            for visitor in visitors.values():
                visits.enter_context(visitor)
            periods = {_period()}
            while len(periods) < 1 + TURNS:
                time.sleep(1)
                periods.add(_period())
            time.sleep(4 * SHORTEST_INTERVAL)  # by then every client has a consensus of the last period
        for what, visitor in visitors.items():
            print(f"{what}: {visitor}")
            assert len(visitor.visits) > MIN_VISITS
        ours = [visitor for what, visitor in visitors.items() if what.startswith("torkit's client")]
        assert all(visit.is_served for visitor in ours for visit in visitor.visits)


def _period() -> int:
    length = length_when_testing(SHORTEST_INTERVAL)
    return Calendar(int(time.time()), SHORTEST_INTERVAL, length).period.number


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


def test_a_service_moves_between_the_programs_while_clients_go_on(
    tmp_path: Path, web_server: WebServer
) -> None:
    """Each is ended before the other begins, with the same directory."""
    with a_ground(tmp_path) as ground, ExitStack() as stack:
        known: set[object] = {None}
        visitors: list[Visitor] = []
        with c_tor_service(ground.net, ground.key, web_server.port) as process:
            _wait_published_anew(ground, known)
            visitors += [stack.enter_context(Visitor(client, ground.address)) for client in ground.clients]
            _check_served_from_now_on(visitors)
            process.terminate()
            assert process.wait(20) == 0
        with torkit_service(ground.shell, ground.key, web_server.port) as process:
            _wait_published_anew(ground, known)
            _check_served_from_now_on(visitors)
            process.terminate()
            assert process.wait(20) == 0
        with c_tor_service(ground.net, ground.key, web_server.port):
            _wait_published_anew(ground, known)
            _check_served_from_now_on(visitors)


def _wait_published_anew(ground: Ground, known: set[object]) -> None:
    """Until a descriptor is signed by a key that was not known before: each start of a service makes one."""

    def is_anew() -> bool:
        key = describe(ground.shell, ground.address).get("signing_key")
        is_new = key not in known
        known.add(key)
        return is_new

    wait_until(is_anew, PUBLISHED_WITHIN, "another descriptor")


def _check_served_from_now_on(visitors: Sequence[Visitor]) -> None:
    """torkit's client at its first try; C tor's some day: it waits minutes for a service that was there."""
    now = time.time()
    for visitor in visitors:
        visitor.wait_served(3, now, 400)
        print(f"since {at(now)}: {visitor}")
    assert all(visit.is_served for visit in visitors[0].since(now))
