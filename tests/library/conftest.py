"""For the whole session: a scripted network, and servers behind its exits. No name is resolved here."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from doors import RunningNetwork, running_network
from network.servers import EchoServer, SilentServer, SinkServer, WebServer

from torkit import blocking

LOOK_UPS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "getfqdn")


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    with (
        running_network(tmp_path_factory.mktemp("network")) as running,
        WebServer() as web,
        EchoServer() as echo,
        SilentServer() as silent,
    ):
        running.servers |= {"web.test": web.port, "echo.test": echo.port, "silent.test": silent.port}
        yield running


@pytest.fixture(scope="session")
def tor(network: RunningNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[blocking.Tor]:
    with blocking.open_tor(network=network.file, data_dir=tmp_path_factory.mktemp("data")) as tor:
        tor.wait_ready(30)
        yield tor


@pytest.fixture
def sink(network: RunningNetwork) -> Iterator[SinkServer]:
    with SinkServer() as server:
        network.servers["sink.test"] = server.port
        yield server


@pytest.fixture(autouse=True)
def names_asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Names that this process asked a resolver for: each fails, and the test with it."""
    asked: list[object] = []

    def watched(name: str) -> Any:
        real = getattr(socket, name)

        def look_up(host: Any = None, *args: Any, **settings: Any) -> Any:
            address = host[0] if isinstance(host, tuple) else host
            try:
                ip_address(address)
            except ValueError:
                asked.append((name, host))
                raise socket.gaierror(socket.EAI_FAIL, "no name may be resolved here") from None
            return real(host, *args, **settings)

        return look_up

    for name in LOOK_UPS:
        monkeypatch.setattr(socket, name, watched(name))
    yield asked
    assert asked == []


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """For a client of the test's own."""
    return tmp_path / "data"
