"""`torkit socks` as a service: how it ends."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from network.servers import HOST, EchoServer
from network.torkit_process import START_DEADLINE, STOP_DEADLINE, Proxy, Shell, open_through, wait_until

pytestmark = pytest.mark.network


def test_a_proxy_whose_parent_ends_serves_its_streams_to_the_end(
    shell: Shell, echo_server: EchoServer, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    line = (
        "torkit -v socks --exit-with-parent --grace 100 --listen 0"
        f" --ready-file {ready} 2>{tmp_path}/log & read line"
    )
    with shell.running(line) as parent:
        wait_until(ready.exists, START_DEADLINE, "the proxy to be ready")
        answer = json.loads(ready.read_text())
        proxy = Proxy(answer["socks"], answer["pid"], tmp_path / "log")
        with open_through(proxy, "web.test", echo_server.port) as client:
            os.kill(parent.pid, signal.SIGKILL)
            wait_until(lambda: not ready.exists(), STOP_DEADLINE, "the proxy to note that")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((HOST, proxy.port))
            client.sendall(b"still served")
            assert client.recv(100) == b"still served"
            assert _is_running(proxy.pid)
        wait_until(lambda: not _is_running(proxy.pid), STOP_DEADLINE, "the proxy to end")
    log = proxy.log.read_text()
    assert "the process that started this one has ended" in log
    assert "no client is accepted any more, 1 are served" in log


def _is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
