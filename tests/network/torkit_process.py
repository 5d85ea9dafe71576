"""Programs as a person runs them: shell lines with `torkit` on the path, `torkit socks` in the background.

Also a server that knows which relay's process has reached it.
"""

import http.server
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from network.private_network import RunningTestnet
from network.servers import HOST, TargetServer, blocks

from torkit.testnet import Relay

Result = subprocess.CompletedProcess[bytes]

POLL_INTERVAL = 0.05  # seconds
START_DEADLINE = 60.0  # seconds, for a bootstrap on a busy machine
STOP_DEADLINE = 20.0


def wait_until(
    condition: Callable[[], object], seconds: float, what: str, *, every: float = POLL_INTERVAL
) -> None:
    """Poll `condition`; fails the test if it is not true in time. What starts a program asks more seldom."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for {what}")
        time.sleep(every)


def missing(*programs: str) -> list[str]:
    """Those of `programs` that this machine does not have."""
    places = f"{os.environ.get('PATH', '')}:/usr/sbin".split(":")
    return [name for name in programs if not any(os.access(f"{place}/{name}", os.X_OK) for place in places)]


def skip_without(*programs: str) -> pytest.MarkDecorator:
    """For tests of what not every machine has."""
    lacking = missing(*programs)
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {' '.join(lacking)}")


@dataclass(frozen=True)
class Shell:
    """Somebody's shell: `torkit` is this tree's, `network_file` and `data_dir` are in the environment."""

    network_file: Path
    data_dir: Path
    programs: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}:/usr/sbin",
            "TORKIT_NETWORK": str(self.network_file),
            "TORKIT_DATA_DIR": str(self.data_dir),
        }

    def with_data_dir(self, data_dir: Path) -> "Shell":
        return replace(self, data_dir=data_dir)

    def start(self, line: str) -> subprocess.Popen[bytes]:
        """Start a line with pipes at its three ends, in a process group of its own."""
        return subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", line],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            process_group=0,
        )

    def run(self, line: str, *, stdin: bytes = b"", timeout: float = 40.0) -> Result:
        """Run a line to its end; its status is that of the last program of the pipe that failed.

        Fails the test if the line takes longer than `timeout` seconds, or if Python's traceback shows up.
        """
        return self.finish(self.start(line), line, stdin=stdin, timeout=timeout)

    def finish(
        self, process: subprocess.Popen[bytes], line: str, *, stdin: bytes = b"", timeout: float = 40.0
    ) -> Result:
        """Wait for what `start` started."""
        try:
            stdout, stderr = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            stdout, stderr = process.communicate()
            pytest.fail(f"{line!r} had not ended after {timeout:g} s: {stdout[-500:]!r} {stderr[-500:]!r}")
        assert b"Traceback" not in stderr, stderr.decode()
        return Result(line, process.returncode, stdout, stderr)

    @contextmanager
    def running(self, line: str) -> Iterator[subprocess.Popen[bytes]]:
        """A line that is started here, and ended with the block if it has not by itself."""
        with self.start(line) as process:
            try:
                yield process
            finally:
                _kill(process)

    def run_at_once(self, lines: Sequence[str], *, timeout: float = 90.0) -> list[Result]:
        """Run lines beside each other; their results in the same order."""
        started = [(self.start(line), line) for line in lines]
        return [self.finish(process, line, timeout=timeout) for process, line in started]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a line with all its programs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def make_shell(net: RunningTestnet, directory: Path) -> Shell:
    """A shell on `net` that keeps its files in `directory`."""
    programs = directory / "bin"
    programs.mkdir()
    torkit = programs / "torkit"
    # Without a network's name it would go to the public one: a program may have dropped our environment.
    torkit.write_text(f'#!/bin/sh\n: "${{TORKIT_NETWORK:?}}"\nexec "{sys.executable}" -m torkit "$@"\n')
    torkit.chmod(0o755)
    return Shell(net.network_file, directory / "data", programs)


@dataclass(frozen=True)
class Proxy:
    """A running `torkit socks`. `address` is what curl takes; `log` is its stderr."""

    address: str
    pid: int
    log: Path
    ended_by: list[int] = field(default_factory=list)  # signals that a test has sent, but for SIGTERM

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.ended_by.append(signal.SIGKILL)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def memory(self) -> int:
        """What it holds in memory, in bytes."""
        found = re.search(
            r"^VmRSS:\s+([0-9]+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE
        )
        assert found is not None
        return int(found[1]) << 10

    def curl(self, credentials: str = "") -> str:
        """The beginning of a line; requests of equal `credentials`, `user:password`, share circuits."""
        who = f"{credentials}@" if credentials else ""
        return f"curl -sS --fail --max-time 170 -x socks5h://{who}{self.address}"


@contextmanager
def running_proxy(
    shell: Shell, directory: Path, global_options: Sequence[str] = (), options: Sequence[str] = ()
) -> Iterator[Proxy]:
    """Run `torkit socks`; at the end SIGTERM must end it in order, without a traceback until then."""
    directory.mkdir(exist_ok=True, parents=True)
    ready_file, log = directory / "ready.json", directory / "stderr"
    arguments = ["socks", "--listen", f"{HOST}:0", "--ready-file", str(ready_file)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "torkit", *global_options, *arguments, *options],
            env=shell.environment,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        wait_until(
            lambda: ready_file.exists() or process.poll() is not None, START_DEADLINE, "the proxy to be ready"
        )
        assert process.poll() is None, log.read_text()
        ready = json.loads(ready_file.read_text())
        assert ready["pid"] == process.pid
        proxy = Proxy(ready["socks"], process.pid, log)
        yield proxy
        process.terminate()
        assert process.wait(STOP_DEADLINE) == -sum(proxy.ended_by)
        assert not re.search("Traceback|internal", log.read_text()), log.read_text()
    finally:
        process.kill()
        process.wait()


def open_through(proxy: Proxy, host: str, port: int, *, receive_buffer: int | None = None) -> socket.socket:
    """A connection to `host`:`port` by SOCKS4a, which is one write and eight bytes of answer."""
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(START_DEADLINE)
    client.connect((HOST, proxy.port))
    client.sendall(b"\x04\x01" + port.to_bytes(2, "big") + b"\0\0\0\1\0" + host.encode() + b"\0")
    reply = client.recv(8, socket.MSG_WAITALL)
    assert reply[:2] == b"\x00\x5a", reply
    return client


def relay_at(relays: Sequence[Relay], port: int, peer_port: int) -> Relay:
    """The relay whose process holds the connection from `port` to `peer_port` on 127.0.0.1."""
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == f"0100007F:{port:04X}" and fields[2] == f"0100007F:{peer_port:04X}":
            inode = fields[9]
    assert inode is not None, "the connection is gone"
    for relay in relays:
        for descriptor in Path(f"/proc/{relay.pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except FileNotFoundError:  # closed meanwhile
                continue
            if target == f"socket:[{inode}]":
                return relay
    raise AssertionError("the connection belongs to no relay")


class CarrierServer(TargetServer):
    """GET /carrier returns the nickname of the relay that has connected; GET /endless goes on for ever.

    The relay's nickname is also put into `carriers`, when the first of the endless bytes have gone.
    """

    LENGTH = 1 << 40  # bytes that /endless announces

    def __init__(self, net: RunningTestnet) -> None:
        super().__init__()
        self.net = net
        self.carriers: queue.SimpleQueue[str] = queue.SimpleQueue()

    class handler(http.server.BaseHTTPRequestHandler):
        server: "CarrierServer"

        def do_GET(self) -> None:
            carrier = relay_at(self.server.net.exits, self.client_address[1], self.server.port).nickname
            self.send_response(200)
            if self.path == "/endless":
                self.send_header("Content-Length", str(self.server.LENGTH))
                self.end_headers()
                for number, block in enumerate(blocks(self.server.LENGTH)):
                    self.wfile.write(block)
                    if number == 0:
                        self.server.carriers.put(carrier)
            else:
                self.end_headers()
                self.wfile.write(carrier.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass


def confirmed_guards(shell: Shell) -> list[str]:
    """Fingerprints of the state's guards that have carried traffic, in the order of sampling."""
    return [guard["fingerprint"] for guard in _guards(shell) if "confirmed_on" in guard]


def primary_guards(shell: Shell) -> list[str]:
    """Fingerprints of the state's primary guards, best first: the next command begins at the first.

    Confirmed guards are primary before others, but all three stand in the order of sampling: one may be the
    best though it has never carried traffic, since paths ended there or it was down.
    """
    guards = _guards(shell)
    primary = sorted(guards, key=lambda guard: "confirmed_on" not in guard)[:3]
    return [guard["fingerprint"] for guard in guards if guard in primary]


def _guards(shell: Shell) -> list[dict[str, str]]:
    guards: list[dict[str, str]] = json.loads((shell.data_dir / "state.json").read_text())["guards"]
    return guards


def let_retries_be_due(shell: Shell) -> None:
    """Make the state tell that every guard which is down was last tried a day ago."""
    path = shell.data_dir / "state.json"
    state = json.loads(path.read_text())
    for guard in state["guards"]:
        if "last_tried" in guard:
            guard["last_tried"] = guard["failing_since"] = "2026-01-01T00:00:00"
    path.write_text(json.dumps(state))
