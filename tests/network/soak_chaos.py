"""Fifty people at once through one `torkit socks` while everything around it goes wrong.

Relays are killed, stopped, slowed and restarted, links to guards are cut, the clock jumps, the consensus
turns over, the disk fills, memory is short. Which, when and for how long follows from a seed: it is printed.
"""

import json
import mmap
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import trio
from network.chaos_account import TELLING, Killed, ask_proxy, find_untold
from network.chaos_links import Line, lines_for
from network.chaos_people import KINDS, Crowd, FarEnd, Outcome, Unanswered, Wrong, request

from torkit.testnet import Options, Testnet, run_testnet

SECONDS = float(
    os.environ.get("TORKIT_SOAK_SECONDS", "480")
)  # of chaos; a start, a warm-up and an end beside it
SEED = int(os.environ.get("TORKIT_SOAK_SEED") or time.time())
WARM_UP = 30.0  # seconds of the same people without a fault
PEOPLE = 50
VOTING_INTERVAL = 20  # seconds
START_DEADLINE = 60.0
BACK_DEADLINE = 120.0  # seconds after the last fault, for a first request to be answered: the keeper's looks
REST_DEADLINE = (
    240.0  # for descriptors and memory to return: links that nobody uses are closed after 3 minutes
)
MORE_MEMORY = 32.0  # MiB over the warm-up: room that its greatest crowds have broken up stays with Python
FIRST = next(iter(KINDS))  # a small page
EXITS, MIDDLES = 5, 6
DISK_SIZE = 8 << 20
COLUMNS = "right bytes | clean errors | neither | relays did not tell | slowest right, s"

pytestmark = [pytest.mark.network, pytest.mark.timeout(SECONDS + 700)]

# time.time() is all that torkit asks for the time of day.
PROGRAM = f"""
import mmap, os, signal, struct, sys, time
with open(os.environ["CHAOS_CLOCK"], "rb") as file:
    ahead = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
real = time.time
time.time = lambda: real() + struct.unpack("d", ahead[:8])[0]
sys.argv[0] = "torkit"
{TELLING}
from torkit.cli.app import main
main()
"""


class Sample(NamedTuple):
    """The proxy's process at one moment."""

    at: float  # seconds since the start
    memory: float  # resident MiB
    descriptors: int
    done: int  # requests so far


class Fault(NamedTuple):
    """What went wrong from when to when, in seconds since the start."""

    name: str
    began: float
    ended: float


@dataclass
class Chaos:
    """The proxy and what stands around it."""

    net: Testnet
    lines: dict[str, Line]
    proxy: subprocess.Popen[bytes]
    port: int
    directory: Path
    is_disk: bool  # whether it is a small file system of its own
    clock: mmap.mmap
    began: float = 0.0
    is_short: bool = False  # of memory
    away: set[str] = field(default_factory=set)  # relays that a fault has
    killed: list[Killed] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def now(self) -> float:
        return trio.current_time() - self.began

    def take_relay(self, rng: Random) -> str:
        return rng.choice(sorted(self.lines.keys() - self.away))

    def look(self, done: int) -> Sample:
        status = Path(f"/proc/{self.proxy.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None, status
        descriptors = len(os.listdir(f"/proc/{self.proxy.pid}/fd"))
        return Sample(round(self.now, 2), round(int(found[1]) / 1024, 2), descriptors, done)

    async def explain(self, port: int, wrong: Wrong) -> str:
        """Keep what explains a request that went wrong. Returns why the proxy could not know, or ""."""
        at = trio.current_time() - self.began
        while self.is_short:
            await trio.sleep(0.1)
        account = await ask_proxy(self.proxy.pid, self.directory, port)
        place = self.directory / f"wrong-{port}.json"
        place.write_text(json.dumps(account, indent=1))
        untold = find_untold(account["client"], self.killed) if isinstance(wrong, Unanswered) else ""
        print(f"{at:.1f} s, port {port}: {wrong}; {untold or account['client']}; all is in {place.name}")
        return untold


# --- faults -------------------------------------------------------------------------------------------

GoWrong = Callable[[Chaos, Random], Awaitable[None]]


async def relay_killed(chaos: Chaos, rng: Random) -> None:
    who = chaos.take_relay(rng)
    chaos.away.add(who)
    await chaos.net.kill_relay(who)
    chaos.killed.append(Killed(who, trio.current_time()))
    await trio.sleep(rng.uniform(2, 10))
    await chaos.net.start_relay(who)
    await trio.sleep(2)  # a relay takes a moment to start
    chaos.away.discard(who)


async def relay_stopped(chaos: Chaos, rng: Random) -> None:
    who = chaos.take_relay(rng)
    chaos.away.add(who)
    pid = chaos.net.relay(who).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await trio.sleep(rng.uniform(1, 15))
    os.kill(pid, signal.SIGCONT)
    chaos.away.discard(who)


async def relay_slowed(chaos: Chaos, rng: Random) -> None:
    line = chaos.lines[chaos.take_relay(rng)]
    line.delay = rng.uniform(0.05, 0.5)
    await trio.sleep(rng.uniform(5, 20))
    line.delay = 0


async def guard_link_cut(chaos: Chaos, rng: Random) -> None:
    in_use = [line for line in chaos.lines.values() if line.links]
    rng.choice(in_use or list(chaos.lines.values())).cut()


async def clock_jumps(chaos: Chaos, rng: Random) -> None:
    jump = rng.choice([90, 600, 3 * 3600, 20 * 3600, 30 * 3600, 20 * 86400]) * rng.choice([-1, 1])
    chaos.clock[:8] = struct.pack("d", jump)
    await trio.sleep(rng.uniform(5, 30))
    chaos.clock[:8] = struct.pack("d", 0)


async def disk_full(chaos: Chaos, rng: Random) -> None:
    big = chaos.directory / "disk" / "everything"
    with big.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    await trio.sleep(rng.uniform(5, 30))
    big.unlink()


async def memory_short(chaos: Chaos, rng: Random) -> None:
    """The process gets no page more than it has, or few."""
    pid = chaos.proxy.pid
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    chaos.is_short = True
    resource.prlimit(pid, resource.RLIMIT_AS, (size + rng.choice([0, 256 << 10, 2 << 20]), before[1]))
    await trio.sleep(rng.uniform(1, 8))
    resource.prlimit(pid, resource.RLIMIT_AS, before)
    chaos.is_short = False


FAULTS: dict[GoWrong, tuple[float, float]] = {  # seconds from the end of one to the next, least and most
    relay_killed: (4, 12),
    relay_stopped: (3, 10),
    relay_slowed: (3, 10),
    guard_link_cut: (1, 6),
    clock_jumps: (10, 40),
    disk_full: (10, 30),
    memory_short: (10, 40),
}


async def disturb(chaos: Chaos, what: GoWrong, rng: Random, until: float) -> None:
    """One kind of fault after the other. All is well again when this returns."""
    pauses = FAULTS[what]
    await trio.sleep(rng.uniform(0, pauses[1]))
    while chaos.now < until:
        began = chaos.now
        await what(chaos, rng)
        chaos.faults.append(Fault(what.__name__, round(began, 2), round(chaos.now, 2)))
        await trio.sleep(rng.uniform(*pauses))


# --- the proxy ----------------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A small file system of its own at `place`. Whether the system has granted one."""
    place.mkdir(mode=0o700)
    options = f"size={DISK_SIZE},mode=0700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=False)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", place], check=True)


@asynccontextmanager
async def running_chaos(directory: Path) -> AsyncIterator[Chaos]:
    """The network, its lines and the proxy."""
    names = [f"exit{n}" for n in range(1, EXITS + 1)] + [f"middle{n}" for n in range(1, MIDDLES + 1)]
    lines = lines_for(names, SEED)
    torrc = {name: ["/Address", f"Address {line.address}"] for name, line in lines.items()}
    torrc |= {f"auth{n}": ["AuthDirTestReachability 0"] for n in (1, 2, 3)}  # the lines come later
    options = Options(exits=EXITS, middles=MIDDLES, voting_interval=VOTING_INTERVAL, torrc=torrc)
    async with run_testnet(directory / "network", options) as net, trio.open_nursery() as nursery:
        for name, line in lines.items():
            await nursery.start(line.run, net.relay(name))
        with small_disk(directory / "disk") as is_disk, (directory / "clock").open("w+b") as file:
            file.write(bytes(8))
            file.flush()
            clock = mmap.mmap(file.fileno(), 8)
            with running_proxy(directory, net.network_file) as proxy:
                for line in lines.values():
                    line.proxy = proxy.pid
                port = await wait_ready(directory, proxy)
                yield Chaos(net, lines, proxy, port, directory, is_disk, clock)
        nursery.cancel_scope.cancel()


@contextmanager
def running_proxy(directory: Path, network: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ["-v", "socks", "--listen", "127.0.0.1:0", "--ready-file", str(directory / "ready.json")]
    environment = {
        "TORKIT_NETWORK": str(network),
        "TORKIT_DATA_DIR": str(directory / "disk"),
        "CHAOS_CLOCK": str(directory / "clock"),
        "CHAOS_ACCOUNT": str(directory / "account.json"),
        "TORKIT_TRACE": "1",
    }
    with (directory / "stderr").open("wb") as stderr:
        proxy = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *options],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | environment,
        )
    try:
        yield proxy
    finally:
        proxy.kill()
        proxy.wait()


async def wait_ready(directory: Path, proxy: subprocess.Popen[bytes]) -> int:
    """Returns the proxy's port."""
    ready = directory / "ready.json"
    with trio.fail_after(START_DEADLINE):
        while not ready.exists() or not ready.read_bytes().endswith(b"\n"):
            assert proxy.poll() is None, (directory / "stderr").read_text()
            await trio.sleep(0.05)
    return int(json.loads(ready.read_text())["socks"].rpartition(":")[2])


async def watch(chaos: Chaos, crowd: Crowd) -> None:
    while True:
        assert chaos.proxy.poll() is None, f"the proxy ended: {chaos.proxy.returncode}"
        chaos.samples.append(chaos.look(len(crowd.outcomes)))
        await trio.sleep(1)


# --- the soak -----------------------------------------------------------------------------------------


async def test_every_request_ends_well_or_cleanly_whatever_goes_wrong(tmp_path: Path) -> None:
    print(f"seed {SEED}, {SECONDS:.0f} s; the log and the figures are in {tmp_path}")
    rng = Random(SEED)
    far = FarEnd()
    async with running_chaos(tmp_path) as chaos, trio.open_nursery() as nursery:
        await nursery.start(far.run)
        chaos.began = trio.current_time()
        crowd = Crowd(PEOPLE, chaos.port, far.port, SEED, chaos.explain)
        nursery.start_soon(watch, chaos, crowd)
        try:
            async with trio.open_nursery() as people:
                people.start_soon(crowd.run)
                await trio.sleep(WARM_UP)
                warm = chaos.look(len(crowd.outcomes))
                async with trio.open_nursery() as faults:
                    for what in FAULTS:
                        if what is disk_full and not chaos.is_disk:
                            print("the disk is left alone: only root may mount a small one")
                            continue
                        faults.start_soon(disturb, chaos, what, Random(rng.random()), WARM_UP + SECONDS)
                crowd.is_over.set()
                seconds = await wait_answered(chaos, far.port)
                print(f"all is well again after {chaos.now:.0f} s, and a page came {seconds:.1f} s later")
            rest = await wait_at_rest(chaos, crowd, warm)
        finally:
            log = (tmp_path / "stderr").read_text()
            keep(tmp_path / "chaos.json", chaos, crowd)
            print(by_kind(crowd.outcomes), by_fault(chaos, crowd.outcomes), sep="\n\n")
            print(f"links of the proxy that were cut: {sum(line.cuts for line in chaos.lines.values())}")
        print(f"after the warm-up: {warm}\nat the end:        {rest}")
        nursery.cancel_scope.cancel()
    assert not far.faults, far.faults
    assert not [one for one in crowd.outcomes if one.wrong]
    assert rest.descriptors <= warm.descriptors
    assert rest.memory <= warm.memory + MORE_MEMORY
    assert not re.search("Traceback|internal error", log)


async def wait_answered(chaos: Chaos, port: int) -> float:
    """Until a fresh request is answered. Returns after how many seconds."""
    began = trio.current_time()
    for number in count():
        outcome = await request(FIRST, Random(number), chaos.port, port, f"last-{number}", chaos.explain)
        if outcome.is_right:
            return trio.current_time() - began
        assert trio.current_time() - began < BACK_DEADLINE, outcome
        await trio.sleep(0.5)
    raise AssertionError("unreachable")


async def wait_at_rest(chaos: Chaos, crowd: Crowd, warm: Sample) -> Sample:
    """Until there are no more descriptors than with everybody after the warm-up, or too late."""
    with trio.move_on_after(REST_DEADLINE):
        while chaos.look(len(crowd.outcomes)).descriptors > warm.descriptors:
            await trio.sleep(1)
    return chaos.look(len(crowd.outcomes))


def keep(path: Path, chaos: Chaos, crowd: Crowd) -> None:
    """What bench/plots.py draws."""
    outcomes = [one._replace(began=round(one.began - chaos.began, 2)) for one in crowd.outcomes]
    figures = {"seed": SEED, "faults": chaos.faults, "samples": chaos.samples, "outcomes": outcomes}
    path.write_text(json.dumps(figures))


def by_kind(outcomes: Sequence[Outcome]) -> str:
    """The table of what people asked for."""
    rows = [_row(kind, [one for one in outcomes if one.kind == kind]) for kind in KINDS]
    errors = ", ".join(
        f"{error}: {number}" for error, number in Counter(one.error for one in outcomes).items() if error
    )
    wrong = [
        f"{one.kind} after {one.seconds:.1f} s: {one.wrong or one.untold}"
        for one in outcomes
        if one.wrong or one.untold
    ]
    head = f"| | {COLUMNS} |\n|---|{5 * '---|'}"
    return "\n".join([head, *rows, _row("all", outcomes), f"\nclean errors: {errors}", *wrong])


def by_fault(chaos: Chaos, outcomes: Sequence[Outcome]) -> str:
    """The table of what was under way while something was wrong."""
    rows = []
    for name in dict.fromkeys(what.__name__ for what in FAULTS):
        spans = [
            (one.began + chaos.began, one.ended + chaos.began) for one in chaos.faults if one.name == name
        ]
        under_way = [
            one
            for one in outcomes
            if any(one.began <= ended and began <= one.began + one.seconds for began, ended in spans)
        ]
        rows.append(_row(f"{name.replace('_', ' ')} | {len(spans)}", under_way))
    head = f"| while | times | {COLUMNS} |\n|---|{6 * '---|'}"
    return "\n".join([head, *rows])


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    right = [one.seconds for one in outcomes if one.is_right]
    clean, wrong = sum(bool(one.error) for one in outcomes), sum(bool(one.wrong) for one in outcomes)
    untold = sum(bool(one.untold) for one in outcomes)
    return f"| {name} | {len(right)} | {clean} | {wrong} | {untold} | {max(right, default=0):.1f} |"
