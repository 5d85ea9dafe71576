"""One private network of real `tor` processes for the whole session, and servers to reach through it."""

from collections.abc import Iterator

import pytest
from network.private_network import RunningTestnet, running_testnet
from network.servers import BannerServer, EchoServer, SilentServer, SinkServer, WebServer


@pytest.fixture(scope="session")
def testnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTestnet]:
    with running_testnet(tmp_path_factory.mktemp("testnet")) as net:
        yield net


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


@pytest.fixture
def sink_server() -> Iterator[SinkServer]:
    with SinkServer() as server:
        yield server
