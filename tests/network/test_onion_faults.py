"""Onion services of C tor's whose process is killed, on a network of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from network.private_network import RunningTestnet, running_testnet
from network.servers import PAGE, WebServer
from network.test_onion import wait_published
from network.torkit_process import Shell, make_shell, wait_until

from torkit.testnet import Options

pytestmark = pytest.mark.network

HOST = "middle3"  # the relay whose process has the service that is killed
REQUEST = b"GET /page HTTP/1.0\r\n\r\n"


@pytest.fixture
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hosted")
    directory.chmod(0o700)
    return directory


@pytest.fixture
def net(
    tmp_path_factory: pytest.TempPathFactory, hosted: Path, web_server: WebServer
) -> Iterator[RunningTestnet]:
    lines = [f"HiddenServiceDir {hosted}", f"HiddenServicePort 80 127.0.0.1:{web_server.port}"]
    options = Options(voting_interval=20, middles=4, torrc={HOST: lines})
    with running_testnet(tmp_path_factory.mktemp("faults"), options) as net:
        yield net


@pytest.fixture
def onion_shell(net: RunningTestnet, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return make_shell(net, tmp_path_factory.mktemp("onion-shell"))


@pytest.mark.timeout(300)
def test_a_service_that_was_killed_is_reached_when_it_is_back(
    net: RunningTestnet, onion_shell: Shell, hosted: Path
) -> None:
    address = (hosted / "hostname").read_text().strip()
    wait_published(onion_shell, address)
    line = f"torkit connect {address}:80"
    assert onion_shell.run(line, stdin=REQUEST, timeout=130).stdout.endswith(PAGE)
    net.kill_relay(HOST)
    waiting = onion_shell.start(line)
    net.start_relay(HOST)
    result = onion_shell.finish(waiting, line, stdin=REQUEST, timeout=140)
    if result.returncode != 0:
        # Its points refuse before it is back, which is told at once: only its old descriptor is there.
        assert b"onion service" in result.stderr
        wait_until(
            lambda: onion_shell.run(line, stdin=REQUEST, timeout=140).stdout.endswith(PAGE),
            150,
            "the service to be reached again",
        )
