"""`torkit socks` as a service: what it tells of itself, and how it ends."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from network.private_network import RunningTestnet
from network.servers import HOST, EchoServer, WebServer
from network.torkit_process import (
    START_DEADLINE,
    STOP_DEADLINE,
    Proxy,
    Shell,
    make_shell,
    open_through,
    running_proxy,
    wait_until,
)

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def shell(testnet: RunningTestnet, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """One with a data directory of its own: of several proxies in one, the first answers `torkit status`."""
    return make_shell(testnet, tmp_path_factory.mktemp("service-shell"))


@pytest.fixture(scope="module")
def service(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """A proxy that tells of itself, and its ready line."""
    directory = tmp_path_factory.mktemp("service")
    with running_proxy(shell, directory, options=["--metrics", "0"]) as proxy:
        yield proxy, json.loads((directory / "ready.json").read_text())


def test_metrics_and_health(
    shell: Shell, service: tuple[Proxy, dict[str, str]], web_server: WebServer
) -> None:
    proxy, ready = service
    assert shell.run(f"{proxy.curl()} http://web.test:{web_server.port}/page").returncode == 0
    assert shell.run(f"{proxy.curl()} http://no-such-name.invalid/").returncode == 97
    assert shell.run(f"curl -sf http://{ready['metrics']}/healthz").stdout == b"circuits work\n"
    text = shell.run(f"curl -sf http://{ready['metrics']}/metrics").stdout.decode()
    assert "torkit_bootstrap_ratio 1" in text
    assert 'torkit_circuits_built_total{purpose="GENERAL"}' in text
    assert "\ntorkit_streams_total 2\n" in text
    assert 'torkit_streams_failed_total{reason="resolvefailed"} 1' in text
    assert "test" not in text
    assert "invalid" not in text


def test_status_of_a_running_proxy(
    shell: Shell, service: tuple[Proxy, dict[str, str]], echo_server: EchoServer
) -> None:
    proxy, _ = service
    with open_through(proxy, "web.test", echo_server.port):
        moment = json.loads(shell.run("torkit status --json").stdout)
        assert moment["streams"] == 1
        [busy] = [one for one in moment["circuits"] if one["streams"]]
        assert busy["purpose"] in ("GENERAL", "CONFLUX_LINKED")
        assert (busy["state"], len(busy["path"])) == ("dirty", 3)
        lines = shell.run("torkit status").stdout.decode().splitlines()
        assert lines[0] == "start     100%, done"
        assert any(line.endswith(", ".join(busy["path"])) for line in lines)
    watched = shell.run("torkit status --watch | head -n 2").stdout.splitlines()
    assert [json.loads(line)["progress"] for line in watched] == [100, 100]


def test_a_proxy_whose_parent_ends_serves_its_streams_to_the_end(
    shell: Shell, echo_server: EchoServer, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(f"\0torkit-test-{os.getpid()}")
    manager.setblocking(False)
    told: list[str] = []

    def hear() -> None:  # now and then: the kernel keeps ten messages, and the proxy does not wait
        told.extend(line for message in _received(manager) for line in message.decode().splitlines())

    def is_ready() -> bool:
        hear()
        return ready.exists()

    line = (
        f"NOTIFY_SOCKET=@torkit-test-{os.getpid()} torkit -v socks --exit-with-parent --grace 100 --listen 0"
        f" --ready-file {ready} 2>{tmp_path}/log & read line"
    )
    with shell.running(line) as parent:
        wait_until(is_ready, START_DEADLINE, "the proxy to be ready")
        answer = json.loads(ready.read_text())
        proxy = Proxy(answer["socks"], answer["pid"], tmp_path / "log")
        with open_through(proxy, "web.test", echo_server.port) as client:
            os.kill(parent.pid, signal.SIGKILL)
            wait_until(lambda: not ready.exists(), STOP_DEADLINE, "the proxy to note that")
            ends = "no client is accepted any more, 1 are served"  # until then some may still come
            wait_until(lambda: ends in proxy.log.read_text(), STOP_DEADLINE, "the port to be closed")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((HOST, proxy.port))
            client.sendall(b"still served")
            assert client.recv(100) == b"still served"
            assert _is_running(proxy.pid)
        wait_until(lambda: not _is_running(proxy.pid), STOP_DEADLINE, "the proxy to end")
    with manager:
        hear()
    assert told[-1] == "STOPPING=1"
    assert "READY=1" in told
    assert told.index("STATUS=100%: done") < told.index("READY=1")
    assert "the process that started this one has ended" in proxy.log.read_text()


def _received(sock: socket.socket) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        while True:
            yield sock.recv(4096)


def _is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
