"""What a service manager is told, and the unit that asks for it."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing
from fake_tor import FakeTor, as_tor

from torkit.cli.listen import Place, listening
from torkit.cli.notify import Manager
from torkit.cli.socks import serve
from torkit.net.proxy import ISOLATION

ROOT = Path(__file__).parents[2]
UNITS = (ROOT / "contrib" / "torkit.service", ROOT / "contrib" / "torkit@.service")


@pytest.fixture(params=["path", "abstract"])
def manager_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """What NOTIFY_SOCKET is, and what it names."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@torkit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0") if name.startswith("@") else name)
        sock.setblocking(False)
        yield name, sock


def told(sock: socket.socket) -> list[str]:
    """All that has been told, a line each."""
    lines: list[str] = []
    while True:
        try:
            lines += sock.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines


def test_a_name_is_told_byte_for_byte(manager_socket: tuple[str, socket.socket]) -> None:
    """It was a fault of ours where a Unix socket's name is no UTF-8, once the proxy was ready."""
    name, sock = manager_socket
    Manager({"NOTIFY_SOCKET": name}).tell("STATUS=ready on unix:" + os.fsdecode(b"/run/s\xff"))
    assert sock.recv(100) == b"STATUS=ready on unix:/run/s\xff"


async def test_a_start_its_readiness_and_its_end_are_told(
    manager_socket: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, sock = manager_socket
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with listening(Place("proxy", "127.0.0.1", 0)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(
                    serve,
                    as_tor(FakeTor()),
                    [(Place("proxy", "127.0.0.1"), listener)],
                    path=None,
                    isolation=ISOLATION,
                    ready_file=None,
                    grace=30,
                )
            )
            await trio.testing.wait_all_tasks_blocked()
            port = listener.getsockname()[1]
            assert told(sock) == [
                *("STATUS=0%: starting", "STATUS=100%: done"),
                *("READY=1", f"STATUS=ready on 127.0.0.1:{port}"),
            ]
            signal.raise_signal(signal.SIGTERM)
    assert told(sock) == ["STOPPING=1"]


async def test_the_watchdog_hears_of_us_twice_as_often_as_it_wants_to(
    manager_socket: tuple[str, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    name, sock = manager_socket
    manager = Manager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())})
    is_ending = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.keep_told, is_ending)
        await trio.sleep(95)
        assert told(sock) == ["WATCHDOG=1"] * 4
        is_ending.set()
    assert told(sock) == ["STOPPING=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "often"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
    ],
)
def test_who_is_not_meant_by_the_watchdog_is_silent(environment: dict[str, str]) -> None:
    assert Manager(environment).watchdog == inf


@pytest.mark.parametrize("name", ["vsock:2:1234", "relative/path"])
def test_a_manager_that_cannot_be_told_is_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    Manager({"NOTIFY_SOCKET": name}).tell("READY=1")
    assert "told nothing" in caplog.text


def test_a_manager_that_is_gone_or_does_not_read_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    manager = Manager({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    manager.tell("READY=1")
    assert "is not told READY=1: No such file" in caplog.text
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        for _ in range(10_000):
            manager.tell("WATCHDOG=1")
            if "temporarily" in caplog.text:
                break
        else:
            pytest.fail("the socket takes everything")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not installed: systemd-analyze")
@pytest.mark.parametrize("template", UNITS, ids=lambda unit: unit.name)
def test_the_units_are_ones_that_systemd_reads_and_finds_hardened(template: Path, tmp_path: Path) -> None:
    unit = tmp_path / template.name.replace("@.", "@1.")
    unit.write_text(template.read_text().replace("/usr/local/bin/torkit", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0
    assert unit.name not in verified.stderr
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(unit)],  # of 100
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout[-1000:]
