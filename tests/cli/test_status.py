"""`torkit status`: what it asks of a proxy, and what people and programs get."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from fake_tor import FakeTor, as_tor

from torkit.cli.monitoring import STATUS_SOCKET, serve_status, status_listener
from torkit.cli.status import ask, to_age, to_lines
from torkit.errors import NotPossible, PeerError
from torkit.net.monitor.status import CircuitStatus, GuardStatus, Status
from torkit.net.progress import Phase, Progress
from torkit.sizes import to_size

PATH = ("guard1", "middle2", "exit1")
STATUS = Status(
    Progress(Phase.DONE, 100),
    relays=9,
    valid_until=1_800_000_000,
    connections=2,
    circuits=(
        CircuitStatus(1, "GENERAL", "clean", 75.0, PATH, 0),
        CircuitStatus(2, "HS_CLIENT_INTRO", "building", 0.5, ("guard1", "unnamed"), 0),
        CircuitStatus(3, "GENERAL", "dirty", 4000.0, PATH, 2),
    ),
    guards=(GuardStatus("guard1", "AB" * 20, "yes", True), GuardStatus("", "CD" * 20, "maybe", False)),
    received=5 << 20,
    sent=2000,
)


def test_people_get_a_few_lines_and_the_busiest_circuits_first() -> None:
    before = STATUS._replace(received=1 << 20)
    lines = to_lines(STATUS.to_json(), 100, before.to_json(), 2.0)
    assert lines == [
        "start     100%, done",
        "network   9 relays until 08:00:00 UTC, 2 connections",
        f"guards    guard1 reachable, {'CD' * 20} not tried",
        "streams   2; received 5.0 MiB (2.0 MiB/s), sent 2.0 KiB (0 B/s)",
        "circuits  3: 1 building, 1 clean, 1 dirty",
        "",
        "ID      PURPOSE          STATE     AGE      STREAMS  PATH",
        "3       GENERAL          dirty     1h 6m    2        guard1, middle2, exit1",
        "2       HS_CLIENT_INTRO  building  0s       0        guard1, unnamed",
        "1       GENERAL          clean     1m       0        guard1, middle2, exit1",
    ]
    assert all(len(line) <= 40 for line in to_lines(STATUS.to_json(), 40))


def test_a_start_without_anything_is_told() -> None:
    lines = to_lines(Status(Progress(), 0, None, 0, (), (), 0, 0).to_json(), 80)
    assert lines[:2] == ["start     0%, starting", "network   0 relays, 0 connections"]
    assert lines[-1] == "circuits  0"


def test_sizes_and_ages_are_short() -> None:
    assert [to_size(count) for count in (0, 999, 1000, 1 << 20, 1 << 30, 1 << 40)] == [
        *("0 B", "999 B", "1.0 KiB", "1.0 MiB", "1.0 GiB", "1024.0 GiB"),
    ]
    assert [to_age(seconds) for seconds in (59.4, 60, 3599, 3600)] == ["59s", "1m", "59m", "1h 0m"]


# --- the socket -----------------------------------------------------------------------------------------


class ToldTor(FakeTor):
    """With a data directory and something to tell."""

    data_dir = Path()

    def status(self) -> Status:
        return STATUS


def told_tor(data_dir: Path) -> Any:
    tor = ToldTor()
    tor.data_dir = data_dir
    return as_tor(tor)


async def serve_status_of(tor: Any) -> None:
    with status_listener(tor.data_dir) as sock:
        if sock is not None:
            await serve_status(tor, sock)


async def test_a_proxy_answers_its_owner_and_its_socket_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / STATUS_SOCKET
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_status_of, told_tor(tmp_path))
        await trio.testing.wait_all_tasks_blocked()
        assert path.stat().st_mode & 0o777 == 0o600
        moment = await trio.to_thread.run_sync(ask, path)
        assert moment == json.loads(json.dumps(STATUS.to_json()))
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_what_a_killed_proxy_has_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / STATUS_SOCKET
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(NotPossible, match="no proxy answers"):
        ask(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_status_of, told_tor(tmp_path))
        await trio.testing.wait_all_tasks_blocked()
        assert (await trio.to_thread.run_sync(ask, path))["relays"] == 9
        nursery.cancel_scope.cancel()


async def test_a_second_proxy_leaves_the_socket_to_the_first_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_status_of, told_tor(tmp_path))
        await trio.testing.wait_all_tasks_blocked()
        await serve_status_of(told_tor(tmp_path))
        assert "torkit status cannot ask this proxy: cannot listen on unix:" in caplog.text
        assert (await trio.to_thread.run_sync(ask, tmp_path / STATUS_SOCKET))["relays"] == 9
        nursery.cancel_scope.cancel()


async def test_a_directory_whose_name_is_too_long_for_a_socket_ends_no_proxy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    await serve_status_of(told_tor(directory))
    assert "too long" in caplog.text
    with pytest.raises(NotPossible, match="too long"):
        ask(directory / STATUS_SOCKET)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n{", b"x"]
)
async def test_what_is_no_proxy_is_said_to_be_none(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "other"
    with trio.socket.socket(socket.AF_UNIX) as server:
        await server.bind(str(path))
        server.listen()

        async def serve() -> None:
            client, _ = await server.accept()
            await client.recv(100)
            await client.send(answer)
            client.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(PeerError, match="no proxy of this version"):
                await trio.to_thread.run_sync(ask, path)


# --- the terminal ---------------------------------------------------------------------------------------


class Terminal:
    """What `torkit status --watch` is run in."""

    def __init__(self, process: subprocess.Popen[bytes], near: int) -> None:
        self.process = process
        self.near = near
        self.shown = b""

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + 30
        while text not in self.shown:
            assert select.select([self.near], [], [], deadline - time.monotonic())[0], self.shown
            self.shown += os.read(self.near, 1 << 16)

    def wait_end(self) -> int:
        """Its status, once all that it wrote was read."""
        try:
            while data := os.read(self.near, 1 << 16):
                self.shown += data
        except OSError:  # how Linux says that nobody has the other end any more
            pass
        return self.process.wait(30)


def start(script: str, **settings: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"], **settings
    )


@contextmanager
def watching(data_dir: Path, *, has_keys: bool = True) -> Iterator[Terminal]:
    near, far = pty.openpty()
    os.set_inheritable(far, True)
    script = (
        "from pathlib import Path; import torkit.cli.status as status; status.INTERVAL = 0.1\n"
        "from torkit.cli.failures import report\n"
        f"try: status.watch_on_terminal(Path({str(data_dir / STATUS_SOCKET)!r}))\n"
        "except BaseException as error: sys.exit(report(error))\n"
    )
    set_size(near, 24, 80)
    process = start(script, stdin=far if has_keys else subprocess.DEVNULL, stdout=far, stderr=far)
    os.close(far)
    try:
        yield Terminal(process, near)
    finally:
        process.kill()
        process.wait()
        os.close(near)


def set_size(terminal: int, lines: int, columns: int) -> None:
    termios.tcsetwinsize(terminal, (lines, columns))


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """That of a proxy which answers, in another process, so that this one may wait."""
    script = (
        "import trio; from pathlib import Path; from cli.test_status import serve_status_of, told_tor\n"
        f"trio.run(serve_status_of, told_tor(Path({str(tmp_path)!r})))\n"
    )
    with start(script) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / STATUS_SOCKET).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        try:
            yield tmp_path
        finally:
            process.kill()


def test_the_whole_terminal_is_drawn_anew_until_q(data_dir: Path) -> None:
    with watching(data_dir) as terminal:
        terminal.wait_for(b"circuits  3")
        terminal.wait_for(b"/s)")  # the second time, with rates
        assert terminal.shown.startswith(b"\x1b[?1049h")
        set_size(terminal.near, 3, 20)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.wait_for(b"network   9 relays u\x1b[K")
        os.write(terminal.near, b"x")
        os.write(terminal.near, b"q")
        assert terminal.wait_end() == 0
        assert terminal.shown.endswith(b"\x1b[?25h\x1b[?1049l")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(data_dir: Path, number: int) -> None:
    with watching(data_dir) as terminal:
        terminal.wait_for(b"circuits  3")
        os.kill(terminal.process.pid, number)
        assert terminal.wait_end() == 128 + number
        assert terminal.shown.endswith(b"\x1b[?25h\x1b[?1049l")


def test_without_a_keyboard_it_is_drawn_until_a_signal(data_dir: Path) -> None:
    """It was a fault of ours: /dev/null has no settings of a terminal, and always something to read."""
    with watching(data_dir, has_keys=False) as terminal:
        terminal.wait_for(b"/s)")
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.wait_end() == 128 + signal.SIGTERM
        assert terminal.shown.endswith(b"\x1b[?25h\x1b[?1049l")


def test_where_no_proxy_is_the_terminal_is_not_taken(tmp_path: Path) -> None:
    with watching(tmp_path) as terminal:
        assert terminal.wait_end() == 1
        assert b"no proxy answers" in terminal.shown
        assert b"\x1b" not in terminal.shown
