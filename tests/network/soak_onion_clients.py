"""torkit's client and onion services of C tor's for longer than a test of `make test` may take.

Each on a network of its own.
"""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from network.private_network import RunningTestnet, running_testnet
from network.servers import WebServer
from network.soaking import (
    MANY,
    Client,
    c_tor_service,
    describe,
    points_of,
    torkit_client,
    wait_points,
)
from network.test_onion import wait_published
from network.torkit_process import Shell, make_shell, skip_without

from torkit.hs.address import encode_address
from torkit.testnet import Options

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

AUTHORITIES = "auth1,auth2,auth3"


class Home(NamedTuple):
    """A network with a service of C tor's (`service` is its process), which torkit's client has met."""

    net: RunningTestnet
    shell: Shell
    client: Client
    address: str
    service: subprocess.Popen[bytes]

    def visit(self, what: str) -> int | None:
        """Returns the SOCKS reply where the service was not met."""
        visit = self.client.visit(self.address)
        print(f"{what}: {visit.seconds:.1f} s {visit.said}".strip())
        return None if visit.is_served else visit.reply or 1


@contextmanager
def a_home(directory: Path, web_server: WebServer, torrc: Sequence[str] = ()) -> Iterator[Home]:
    """`torrc` is more of the service's."""
    with (
        running_testnet(directory / "net", Options(middles=MANY)) as net,
        c_tor_service(net, directory / "service", web_server.port, *torrc) as service,
    ):
        address = (directory / "service" / "hostname").read_text().strip()
        shell = make_shell(net, directory)
        wait_published(shell, address)
        with torkit_client(shell, directory / "proxy") as client:
            home = Home(net, shell, client, address, service)
            assert home.visit("the first time") is None
            yield home


def test_every_introduction_point_of_c_tors_is_killed_in_turn(tmp_path: Path, web_server: WebServer) -> None:
    """They stay dead, also as vanguards and directories of our client, and are listed on.

    The service's own vanguards are authorities, which are no points: it makes no more than 28 circuits to
    points in five minutes, and counts those that were not built.
    """
    torrc = [f"{option} {AUTHORITIES}" for option in ("EntryNodes", "HSLayer2Nodes")]
    with a_home(tmp_path, web_server, torrc=torrc) as home:
        points = wait_points(home.net, home.shell, home.address, [])
        for number, point in enumerate(points, 1):
            home.net.kill_relay(point)
            assert home.visit(f"{point} is dead") is None
            if number < len(points):
                wait_points(home.net, home.shell, home.address, points[:number])


def test_a_service_that_its_points_know_no_more_is_told(tmp_path: Path, web_server: WebServer) -> None:
    """F2. Its process is killed, and theirs start anew: idle relays keep back what would tell them."""
    with a_home(tmp_path, web_server) as home:
        points = points_of(home.net, home.shell, home.address)
        home.service.kill()
        for point in points:
            home.net.kill_relay(point)
            home.net.start_relay(point)
        assert home.visit("killed") == 0xF2


def test_a_service_that_does_not_come_is_told(tmp_path: Path, web_server: WebServer) -> None:
    """F3. Its process stands still, which its points do not know."""
    with a_home(tmp_path, web_server) as home:
        home.service.send_signal(signal.SIGSTOP)
        assert home.visit("stopped") == 0xF3
        home.service.send_signal(signal.SIGCONT)
        assert home.visit("going on") is None


# --- OnionBalance -------------------------------------------------------------------------------------


@skip_without("onionbalance")
def test_a_service_behind_onionbalance_is_reached(tmp_path: Path, web_server: WebServer) -> None:
    """Its descriptor is signed by a front end, and its points belong to two others.

    OnionBalance knows periods of a day only, which a private network has where it votes once an hour.
    """
    key = Ed25519PrivateKey.generate()
    front = encode_address(key.public_key().public_bytes_raw())
    (tmp_path / "front.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with (
        running_testnet(tmp_path / "net", Options(voting_interval=3600, middles=12)) as net,
        ExitStack() as stack,
    ):
        shell = make_shell(net, tmp_path)
        backends = []
        for number in (1, 2):
            directory = tmp_path / f"backend{number}"
            directory.mkdir(mode=0o700)
            (directory / "ob_config").write_text(f"MasterOnionAddress {front}\n")
            torrc = "HiddenServiceOnionBalanceInstance 1"
            stack.enter_context(c_tor_service(net, directory, web_server.port, torrc))
            backends.append((directory / "hostname").read_text().strip())
        control = tmp_path / "control"
        net.start_client("ControlPort 127.0.0.1:auto", f"ControlPortWriteToFile {control}")
        instances = "".join(f"  - address: {backend}\n" for backend in backends)
        (tmp_path / "config.yaml").write_text(f"services:\n- instances:\n{instances}  key: front.key\n")
        line = (
            f"exec onionbalance -v debug -p {control.read_text().strip().rpartition(':')[2]}"
            f" -c {tmp_path}/config.yaml >{tmp_path}/onionbalance.log 2>&1"
        )
        with shell.running(line), torkit_client(shell, tmp_path / "proxy") as client:
            wait_published(shell, front)
            points = _auth_keys(shell, front)
            print(len(points), "introduction points")
            assert points
            assert points <= _auth_keys(shell, backends[0]) | _auth_keys(shell, backends[1])
            for _ in range(5):
                visit = client.visit(front)
                print(f"{visit.seconds:.1f} s {visit.said}")
                assert visit.is_served


def _auth_keys(shell: Shell, address: str) -> set[str]:
    points = describe(shell, address)["introduction_points"]
    assert isinstance(points, list)
    return {point["auth_key"] for point in points}
