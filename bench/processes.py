"""The measured processes, and what the kernel counts of them."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from bench.far_end import HOST
from torkit.testnet import Testnet

ROOT = Path(__file__).parent.parent
TORKIT = Path(sys.executable).parent / "torkit"
POLL_INTERVAL = 0.02  # seconds
READY_DEADLINE = 60.0
GEOIP_MAPS = {  # tor's defaults, from Debian's tor-geoipdb
    "GeoIPFile": Path("/usr/share/tor/geoip"),
    "GeoIPv6File": Path("/usr/share/tor/geoip6"),
}
CPUCLOCK_SCHED = 2  # <linux/posix-timers.h>: the scheduler's count, in nanoseconds


# The kernel's loopback has segments of 64 KiB and acknowledges late; this one is a real link's.
ETHERNET = """
ip link set lo up mtu 1500
ip route replace local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1{}
exec "$@"
"""


def json_on_ethernet(module: str, *options: str, acknowledges_at_once: bool = False) -> Any:
    """What a bench prints as JSON in a network namespace whose loopback has the MTU of a real link.

    None, and a word about it, where the system grants no namespace.
    """
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = ETHERNET.format(" quickack 1" * acknowledges_at_once)
    inside = [sys.executable, "-m", f"bench.{module}", "--inside", *options]
    command = ["unshare", "--net", *rights, "sh", "-ec", script, "sh", *inside]
    process = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT)
    if process.returncode != 0:
        say(f"{module} could not be measured on a link with Ethernet's MTU: it needs a network namespace")
        return None
    return json.loads(process.stdout)


@dataclass(frozen=True)
class Program:
    """A process that is measured: torkit, or C tor."""

    name: str
    pid: int

    def cpu(self) -> float:
        """CPU seconds of all its threads, also of those that have ended."""
        return cpu_of(self.pid)

    def memory(self) -> float:
        """Resident MiB."""
        return self._memory("VmRSS")

    def peak_memory(self) -> float:
        """The most resident MiB since `reset_peak`."""
        return self._memory("VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _memory(self, name: str) -> float:
        found = re.search(
            rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE
        )
        assert found is not None
        return int(found[1]) / 1024


@dataclass(frozen=True)
class Client(Program):
    """A SOCKS proxy that is measured: torkit, or C tor's client."""

    socks: tuple[str, int]


def cpu_of(pid: int) -> float:
    """CPU seconds of a process."""
    # What clock_getcpuclockid gives: the sum of /proc/PID/task/*/schedstat, and of threads gone.
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


def say(what: str) -> None:
    """What is measured from now on, for whoever waits."""
    print(f"bench: {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def let_python_keep_bytecode() -> None:
    """Let measured programs start as installed ones do, also where .pyc files are not to be written."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def allow_many_files() -> None:
    """Let this process and those it starts open as many files as the system lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@asynccontextmanager
async def running(command: Sequence[str]) -> AsyncIterator[tuple[trio.Process, str]]:
    """A process and the first line it prints; it ends with the block."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, stdout=subprocess.PIPE, cwd=ROOT, check=False)
        process: trio.Process = await nursery.start(start)
        assert process.stdout is not None
        line = b""
        with trio.fail_after(READY_DEADLINE):
            while not line.endswith(b"\n"):
                if not (more := await process.stdout.receive_some()):
                    raise RuntimeError(f"{command} ended without a word")
                line += more
        try:
            yield process, line.decode().strip()
        finally:
            nursery.cancel_scope.cancel()  # run_process ends the process


@asynccontextmanager
async def running_far_end() -> AsyncIterator[int]:
    """The server (far_end.py); its port."""
    async with running([sys.executable, "-m", "bench.far_end"]) as (_, port):
        yield int(port)


def torkit_command(net: Testnet, data_dir: Path) -> list[str]:
    return [str(TORKIT), "--network", str(net.network_file), "--data-dir", str(data_dir)]


@asynccontextmanager
async def running_torkit(net: Testnet, scratch: Path, options: Sequence[str] = ()) -> AsyncIterator[Client]:
    """`torkit socks`, ready."""
    ready_file = scratch / "ready"
    command = [*torkit_command(net, scratch / "torkit"), "socks", "--listen", f"{HOST}:0"]
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, [*command, "--ready-file", str(ready_file), *options], check=False)
        process: trio.Process = await nursery.start(start)
        with trio.fail_after(READY_DEADLINE):
            while not ready_file.exists():
                await trio.sleep(POLL_INTERVAL)
        address = json.loads(ready_file.read_text())["socks"]
        try:
            yield Client("torkit", process.pid, (HOST, int(address.rpartition(":")[2])))
        finally:
            process.terminate()
            await process.wait()


async def start_c_tor(net: Testnet, scratch: Path, torrc: Sequence[str] = ()) -> Client:
    """C tor's client, bootstrapped; it ends with the network."""
    pid_file = scratch / "c-tor.pid"
    # The test network's own tors go without; a client of everyday reads them.
    maps = [f"{option} {path}" for option, path in GEOIP_MAPS.items() if path.exists()]
    socks = await net.start_client([f"PidFile {pid_file}", *maps, *torrc])
    return Client("C tor", int(pid_file.read_text()), socks)
