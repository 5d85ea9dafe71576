"""Proxies behind Debian's HAProxy, configured as in deploy/: identities, health, a restart, a kill.

The network is of scripted relays, served by the test's own process.
"""

import os
import re
import signal
import socket
import subprocess
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio
from haproxy import OWN_PORTS, configured, count_healthy
from network.servers import free_port
from network.torkit_process import Proxy, Shell, running_proxy, skip_without, wait_until
from served import serve_network
from served_shell import shell_on

from torkit.testing.relay import FakeStream

# HAProxy takes a process for dead whose answers are late; beside other tests they are.
pytestmark = [pytest.mark.network, pytest.mark.alone, skip_without("haproxy")]

HOST = "127.0.0.1"
PAGE = b"through one of two\n"
ANSWER = b"HTTP/1.0 200 Yes\r\nContent-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE)

DEADLINE = 60.0


class Farm:
    """Two proxies, of which each has a page of metrics, and HAProxy's ports before them."""

    def __init__(self, proxies: list[Proxy], pages: list[int], own: list[int]) -> None:
        self.proxies = proxies
        self.pages = pages
        self.http, self.socks, self.page = own

    def streams(self) -> list[int]:
        """How many streams each process was asked for."""
        found = []
        for page in self.pages:
            with urllib.request.urlopen(f"http://{HOST}:{page}/metrics") as answer:
                text = answer.read().decode()
            match = re.search(r"^torkit_streams_total (\d+)$", text, re.MULTILINE)
            assert match is not None
            found.append(int(match[1]))
        return found


def answer(stream: FakeStream, data: bytes) -> None:
    if stream.received.endswith(b"\r\n\r\n"):
        stream.write(ANSWER)
        stream.finish()


@contextmanager
def running_farm(shell: Shell, tmp_path: Path) -> Iterator[Farm]:
    pages = [free_port(), free_port()]
    with ExitStack() as stack:
        proxies = [
            stack.enter_context(
                running_proxy(
                    shell.with_data_dir(tmp_path / f"data{n}"),
                    tmp_path / f"proxy{n}",
                    options=[
                        *("--metrics", f"{HOST}:{page}", "--grace", "30"),
                        *("--shared-cache", str(tmp_path / "directory")),
                    ],
                )
            )
            for n, page in enumerate(pages)
        ]
        own = [free_port() for _ in OWN_PORTS]
        config = tmp_path / "haproxy.cfg"
        config.write_text(configured(own, [proxy.port for proxy in proxies], pages))
        haproxy = subprocess.Popen(
            ["haproxy", "-db", "-f", str(config)], env=shell.environment, stderr=subprocess.DEVNULL
        )
        stack.callback(haproxy.wait)
        stack.callback(haproxy.kill)
        farm = Farm(proxies, pages, own)
        wait_until(lambda: count_healthy(farm.page) == 2, DEADLINE, "both proxies to be healthy for HAProxy")
        yield farm


URL = "http://web.test/"


@pytest.mark.timeout(300)
async def test_identities_stay_on_their_process_and_a_killed_one_takes_its_own_streams(
    tmp_path: Path,
) -> None:
    await on_farm(see_identities_and_a_kill, tmp_path)


@pytest.mark.timeout(300)
async def test_a_restart_under_load_fails_nobody(tmp_path: Path) -> None:
    await on_farm(restart_under_load, tmp_path)


async def on_farm(use: Callable[[Farm, Shell], None], place: Path) -> None:
    def use_one(shell: Shell) -> None:
        with running_farm(shell, place) as farm:
            use(farm, shell)

    async with serve_network(guards=2, exits=2) as network:
        for name in ("exit0", "exit1"):
            network.relays[name].on_data = answer
        await trio.to_thread.run_sync(use_one, shell_on(network, place))
    kinds = [path.split("/")[2] for path in network.service.requests]
    assert kinds == ["status-vote", "keys", "micro"], "the directory was not fetched once for both"


def see_identities_and_a_kill(farm: Farm, shell: Shell) -> None:
    homes = see_identities_stay(farm, shell)
    streams = [open_stream(farm, n) for n in range(len(homes))]
    farm.proxies[0].kill()
    for n, (home, stream) in enumerate(zip(homes, streams, strict=True)):
        with stream:
            if home == 0:
                with suppress(ConnectionResetError):
                    assert stream.recv(1) == b""
            else:
                stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with stream.makefile("rb") as file:
                    assert file.read().endswith(PAGE)
        [result] = shell.run_at_once([curl(farm, n)])
        assert result.stdout == PAGE, result.stderr
    wait_until(lambda: count_healthy(farm.page) == 1, DEADLINE, "HAProxy to see that one is gone")


def see_identities_stay(farm: Farm, shell: Shell) -> list[int]:
    """Returns which process each identity is on."""
    homes = []
    for n in range(6):
        before = farm.streams()
        for result in shell.run_at_once([curl(farm, n)] * 2):
            assert result.stdout == PAGE, result.stderr
        asked = [after - was for after, was in zip(farm.streams(), before, strict=True)]
        assert sorted(asked) == [0, 2], "an identity was on two processes"
        homes.append(asked.index(2))
    assert set(homes) == {0, 1}, "all identities were on one process"
    [result] = shell.run_at_once([f"curl -sS --fail -x socks5h://{HOST}:{farm.socks} {URL}"])
    assert result.stdout == PAGE, result.stderr
    return homes


def restart_under_load(farm: Farm, shell: Shell) -> None:
    """One process ends, in order, while all identities go on asking."""
    lines = [f"for i in 1 2 3 4; do {curl(farm, n)}; done" for n in range(6)]
    begun = sum(farm.streams())
    started = [(shell.start(line), line) for line in lines]
    wait_until(lambda: sum(farm.streams()) > begun + 3, DEADLINE, "the load to begin")
    os.kill(farm.proxies[0].pid, signal.SIGTERM)
    for process, line in started:
        result = shell.finish(process, line, timeout=90)
        assert (result.returncode, result.stdout) == (0, PAGE * 4), result.stderr
    wait_until(lambda: count_healthy(farm.page) == 1, DEADLINE, "HAProxy to see that one is gone")


def curl(farm: Farm, identity: int) -> str:
    proxy = f"http://{credentials(identity)}@{HOST}:{farm.http}"
    return f"curl -sS --fail --max-time 60 --proxytunnel -x {proxy} {URL}"


def open_stream(farm: Farm, identity: int) -> socket.socket:
    """A connection to the web server, with nothing asked yet."""
    sock = socket.create_connection((HOST, farm.http), DEADLINE)
    who = b64encode(credentials(identity).encode()).decode()
    lines = ["CONNECT web.test:80 HTTP/1.1", "Host: web.test:80", f"Proxy-Authorization: Basic {who}"]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    granted = b""
    while not granted.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, granted
        granted += byte
    assert granted.startswith(b"HTTP/1.1 200 "), granted
    return sock


def credentials(identity: int) -> str:
    return f"shop{identity}:x"
