"""For the soaks of onion services: services of both programs, and clients that ask them for a page."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from network.private_network import RunningTestnet
from network.servers import HOST, PAGE
from network.torkit_process import START_DEADLINE, Shell, running_proxy, wait_until

from torkit.testnet.files import write_lines
from torkit.testnet.processes import tor_command
from torkit.testnet.torrc import common_torrc

PAUSE = 1.0  # seconds between two requests of a visitor
RENEWED_EVERY = 5  # requests, after which a visitor's client takes a new identity
MAX_VISIT = 170.0  # seconds that a request may take: torkit gives up after 120, C tor's clients, too
MANY = 14  # middle relays: three can die and hardly anybody's vanguards are all among them
PUBLISHED_WITHIN = 330.0  # seconds: C tor's services make no circuit to a point for 300 when they had made 28


class Visit(NamedTuple):
    """A request. `began` is Unix time; `said` is what curl said where the page did not come."""

    began: float
    seconds: float
    said: str

    @property
    def is_served(self) -> bool:
        return not self.said

    @property
    def reply(self) -> int | None:
        """The SOCKS reply that has refused it."""
        found = re.search(r"\((\d+)\)\s*$", self.said)
        return int(found[1]) if found else None


def at(when: float) -> str:
    """Unix time as a clock shows it."""
    return time.strftime("%T", time.localtime(when))


class Client:
    """Whatever listens for SOCKS at `socks`; `renew` gives it a new identity."""

    def __init__(self, name: str, shell: Shell, socks: str, renew: Callable[[], None], log: Path) -> None:
        self.name = name
        self.renew = renew
        self.log = log
        self._shell = shell
        self._socks = socks
        self._count = 0

    def visit(self, address: str) -> Visit:
        """Ask a service for its page, on a circuit that no other request has."""
        self._count += 1
        proxy = f"socks5h://visit{self._count}:x@{self._socks}"
        line = f"curl -sS --fail --max-time {MAX_VISIT:.0f} -x {proxy} http://{address}/page"
        began, began_at = time.time(), time.monotonic()
        result = self._shell.run(line, timeout=MAX_VISIT + 20)
        said = "" if result.stdout == PAGE else result.stderr.decode() or f"{result.stdout!r} came"
        return Visit(began, time.monotonic() - began_at, said)


@contextmanager
def torkit_client(shell: Shell, directory: Path, *options: str) -> Iterator[Client]:
    with running_proxy(shell, directory, ["-v"], options) as proxy:
        yield Client(
            "torkit's client", shell, proxy.address, lambda: os.kill(proxy.pid, signal.SIGUSR1), proxy.log
        )


def c_tor_client(net: RunningTestnet, shell: Shell, directory: Path) -> Client:
    directory.mkdir()
    control, log = directory / "control", directory / "log"
    host, port = net.start_client(
        "ControlPort 127.0.0.1:auto", f"ControlPortWriteToFile {control}", f"Log info file {log}"
    )
    where = int(control.read_text().rpartition(":")[2])

    def renew() -> None:
        with socket.create_connection((HOST, where)) as connection:
            connection.sendall(b"AUTHENTICATE\r\nSIGNAL NEWNYM\r\nQUIT\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"250 OK\r\n250 OK\r\n"), answer

    return Client("C tor's client", shell, f"{host}:{port}", renew, log)


class Visitor:
    """Has a client visit a service, in a thread, until the block ends."""

    def __init__(self, client: Client, address: str) -> None:
        self.client = client
        self.visits: list[Visit] = []
        self._address = address
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name=client.name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def __str__(self) -> str:
        visits = list(self.visits)
        served = [visit.seconds for visit in visits if visit.is_served]
        failed = [
            f"{at(visit.began)} failed after {visit.seconds:.1f} s: {visit.said}"
            for visit in visits
            if not visit.is_served
        ]
        slowest = max(served, default=0.0)
        lines = [f"{self.client.name}: {len(served)} served, the slowest after {slowest:.1f} s", *failed]
        return "\n    ".join(map(str.strip, lines))

    def since(self, began: float) -> list[Visit]:
        """Returns the requests that began at this Unix time or later, and have ended."""
        return [visit for visit in list(self.visits) if visit.began >= began]

    def wait_served(self, count: int, began: float, seconds: float) -> None:
        """Until so many requests that began then or later were served."""
        wait_until(
            lambda: sum(visit.is_served for visit in self.since(began)) >= count,
            seconds,
            f"{self.client.name} to be served",
        )

    def _go_on(self) -> None:
        while not self._ending.wait(PAUSE):
            if len(self.visits) % RENEWED_EVERY == 0:
                self.client.renew()
            self.visits.append(self.client.visit(self._address))


# --- services -----------------------------------------------------------------------------------------


@contextmanager
def c_tor_service(
    net: RunningTestnet, directory: Path, port: int, *torrc: str
) -> Iterator[subprocess.Popen[bytes]]:
    """C tor's service with the key in `directory`, or with a new one. It is not published yet.

    Its process is ours, since a network fails when one of its own ends.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    home = directory.with_suffix(".tor")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700)
    lines = [
        *common_torrc(home, [relay for relay in net.relays if relay.is_authority], "info"),
        "SocksPort 0",
        "PathsNeededToBuildCircuits 0.67",
        f"HiddenServiceDir {directory}",
        f"HiddenServicePort 80 {HOST}:{port}",
        *torrc,
    ]
    write_lines(home / "torrc", lines)
    with (home / "output").open("wb") as output:
        process = subprocess.Popen(
            tor_command(home), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until((directory / "hostname").exists, START_DEADLINE, "C tor to make the service's key")
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def torkit_service(shell: Shell, directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """torkit's service with the key in `directory`, published."""
    log, data_dir = directory.with_suffix(".log"), directory.with_suffix(".data")
    line = f"exec torkit -v onion serve --key {directory} 80:127.0.0.1:{port} 2>>{log}"
    with shell.with_data_dir(data_dir).running(line) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().endswith(b".onion"), log.read_text()
        yield process
    assert "Traceback" not in log.read_text()


def describe(shell: Shell, address: str) -> dict[str, object]:
    """What the service's descriptor says; nothing where none was fetched."""
    result = shell.run(f"torkit onion descriptor {address}", timeout=150)
    return json.loads(result.stdout) if result.returncode == 0 else {}


def points_of(net: RunningTestnet, shell: Shell, address: str) -> list[str]:
    """The nicknames of the service's introduction points."""
    points = describe(shell, address).get("introduction_points", [])
    assert isinstance(points, list)
    names = {relay.fingerprint.lower(): relay.nickname for relay in net.relays}
    return [
        names[next(one["value"] for one in point["link_specifiers"] if one["type"] == 2)] for point in points
    ]


def wait_points(net: RunningTestnet, shell: Shell, address: str, unwanted: list[str]) -> list[str]:
    """Until a descriptor names three introduction points, none of them `unwanted`; returns them."""
    points: list[str] = []

    def are_named() -> bool:
        nonlocal points
        points = points_of(net, shell, address)
        return len(points) >= 3 and not set(points) & set(unwanted)

    wait_until(are_named, PUBLISHED_WITHIN, f"three introduction points without {unwanted}")
    return points
