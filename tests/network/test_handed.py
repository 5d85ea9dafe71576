"""A proxy that is started by a service manager with its first client: `--listen systemd`."""

import os
import socket
import subprocess
import sys

import pytest
from network.servers import HOST, PAGE, WebServer
from network.torkit_process import Shell

pytestmark = pytest.mark.network

STARTER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="browser")
os.execv(sys.executable, [sys.executable, "-m", "torkit", "socks", "--listen", "systemd:browser"])
"""


def test_the_client_that_came_first_is_served(shell: Shell, web_server: WebServer) -> None:
    with socket.create_server((HOST, 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.settimeout(60)
        port = web_server.port.to_bytes(2, "big")
        client.sendall(b"\x04\x01" + port + b"\0\0\0\1\0web.test\0" + b"GET /page HTTP/1.0\r\n\r\n")
        with subprocess.Popen(
            [sys.executable, "-c", STARTER, str(server.fileno())],
            pass_fds=[server.fileno()],
            env={**os.environ, **shell.environment},
            stderr=subprocess.PIPE,
        ) as process:
            received = b""
            while data := client.recv(1 << 16):
                received += data
            process.terminate()
            _, said = process.communicate(timeout=30)
    assert received.startswith(b"\x00\x5a")
    assert received.endswith(PAGE)
    assert (process.returncode, b"Traceback" in said) == (0, False), said
