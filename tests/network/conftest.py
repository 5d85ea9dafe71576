"""For the whole session: a private network of real `tor` processes, a proxy on it, servers to reach."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from network.private_network import WATCHED, RunningTestnet, running_testnet
from network.servers import BannerServer, EchoServer, SilentServer, SinkServer, TlsServer, WebServer
from network.torkit_process import CarrierServer, Proxy, Shell, make_shell, running_proxy

from torkit.testnet import Options


@pytest.fixture(scope="session")
def watched_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the relay WATCHED notes what it does with its connections."""
    return tmp_path_factory.mktemp("watched") / "log"


@pytest.fixture(scope="session")
def testnet(tmp_path_factory: pytest.TempPathFactory, watched_log: Path) -> Iterator[RunningTestnet]:
    options = Options(torrc={WATCHED: [f"Log [or,net]info file {watched_log}"]})
    with running_testnet(tmp_path_factory.mktemp("testnet"), options) as net:
        yield net


@pytest.fixture(scope="session")
def shell(testnet: RunningTestnet, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return make_shell(testnet, tmp_path_factory.mktemp("shell"))


@pytest.fixture(scope="session")
def proxy(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running_proxy(shell, tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture(scope="session")
def carrier_server(testnet: RunningTestnet) -> Iterator[CarrierServer]:
    with CarrierServer(testnet) as server:
        yield server


@pytest.fixture(scope="session")
def web_server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture(scope="session")
def echo_server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture(scope="session")
def banner_server() -> Iterator[BannerServer]:
    with BannerServer() as server:
        yield server


@pytest.fixture(scope="session")
def silent_server() -> Iterator[SilentServer]:
    with SilentServer() as server:
        yield server


@pytest.fixture(scope="session")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    with TlsServer(tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture
def sink_server() -> Iterator[SinkServer]:
    with SinkServer() as server:
        yield server
