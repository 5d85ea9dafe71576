"""`torkit socks` beside C tor's client on one private network, in turns.

    python -m bench.bench_network [--quick] [--ethernet]

Both clients and all relays are real processes on this machine; only the client processes are measured.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import monotonic

import trio

from bench.load import (
    FAILURES,
    Route,
    Stream,
    download_all,
    fetch,
    fetch_many,
    open_stream,
    send,
    streams_held,
)
from bench.processes import (
    Client,
    allow_many_files,
    cpu_of,
    json_on_ethernet,
    running_far_end,
    running_torkit,
    say,
    start_c_tor,
    torkit_command,
)
from bench.table import Line, compare, table
from torkit.testnet import Testnet, run_testnet

MIB = 1 << 20
STREAM_LEN = 64 << 10  # bytes of each of many streams
SETTLE = 0.2  # seconds after a run: what a client does last counts as well
# Whether a circuit's guard waits 40 ms for an acknowledgement is luck, and lasts as long as the circuit.
FIRST_BYTE_CIRCUITS = 32
ONE_LEGGED = "C tor, ConfluxEnabled 0"
NC = "nc.openbsd"
POLL_INTERVAL = 0.005  # seconds between looks for a port that starts to listen


@dataclass(frozen=True)
class Sizes:
    rounds: int = 5
    download: int = 20 * MIB
    upload: int = 12 * MIB
    first_bytes: int = 4  # on each of FIRST_BYTE_CIRCUITS
    idle: float = 20.0
    starts: int = 5
    growth: int = 8 * MIB
    growth_rounds: int = 5
    # streams at once: rounds, seconds that one round may take
    crowds: tuple[tuple[int, int, float], ...] = ((200, 5, 60.0), (1000, 3, 60.0), (4000, 1, 90.0))


QUICK = Sizes(
    rounds=2,
    download=8 * MIB,
    upload=4 * MIB,
    first_bytes=1,
    idle=3.0,
    starts=2,
    growth=4 * MIB,
    growth_rounds=1,
    crowds=((200, 1, 60.0), (1000, 1, 60.0)),
)

ON_ETHERNET = Sizes(first_bytes=2, crowds=((200, 3, 60.0), (1000, 1, 60.0)))
QUICK_ON_ETHERNET = replace(QUICK, crowds=())

Work = Callable[[Route, str], Awaitable[int | None]]  # on the circuit of an isolation
Transfer = Callable[[trio.Process, int], Awaitable[None]]  # so many bytes through a program's pipes


@dataclass(frozen=True)
class Run:
    """One run through one client."""

    cpu: float  # seconds
    wall: float  # seconds
    peak: float  # MiB resident
    result: int | None


class Bench:
    """Both clients on one network."""

    def __init__(self, torkit: Client, c_tor: Client, one_legged: Client, port: int, sizes: Sizes) -> None:
        """`one_legged` is another C tor, which does without Conflux."""
        self.clients = (torkit, c_tor)
        self.one_legged = one_legged
        self.torkit, self.c_tor = torkit, c_tor
        self.routes = {client: Route(client.socks, port) for client in (*self.clients, one_legged)}
        self.sizes = sizes
        self.curves: dict[str, list[tuple[str, int, float]]] = {"MiB/s": [], "MiB": []}

    async def run(self, client: Client, work: Work, isolation: str) -> Run:
        """One run on a circuit that is built and warm."""
        await fetch(self.routes[client], 1, isolation)
        await trio.sleep(SETTLE)
        client.reset_peak()
        cpu, started = client.cpu(), monotonic()
        result = await work(self.routes[client], isolation)
        wall = monotonic() - started
        await trio.sleep(SETTLE)
        return Run(client.cpu() - cpu, wall, client.peak_memory(), result)

    async def turns(self, rounds: int, work: Work, *clients: Client) -> list[list[Run]]:
        """torkit, C tor, torkit, ...: what each client's runs took. Every round is on other circuits."""
        runs: list[list[Run]] = [[] for _ in clients]
        for number in range(rounds):
            for client, of_client in zip(clients, runs, strict=True):
                of_client.append(await self.run(client, work, f"circuit{number}"))
        return runs

    def note_point(self, streams: int, length: int, ours: Sequence[Run], theirs: Sequence[Run]) -> None:
        """For the plots. `length`, in bytes, is that of one stream; a run's result, how many had it all."""
        for client, runs in zip(self.clients, (ours, theirs), strict=True):
            whole = [streams if run.result is None else run.result for run in runs]
            rate = median(count * length / MIB / run.wall for count, run in zip(whole, runs, strict=True))
            self.curves["MiB/s"].append((client.name, streams, rate))
            self.curves["MiB"].append((client.name, streams, max(run.peak for run in runs)))

    # --- the lines, in the order of the table -----------------------------------------------------

    async def idle(self) -> list[Line]:
        """Nobody asks for anything: memory and CPU."""
        before = [client.cpu() for client in self.clients]
        await trio.sleep(self.sizes.idle)
        ours, theirs = (
            100 * (client.cpu() - cpu) / self.sizes.idle
            for client, cpu in zip(self.clients, before, strict=True)
        )
        memory = self.memory("idle", bar=0.75)
        cpu = Line("idle CPU", "% of a core", ours, theirs, "C tor", bar=0.3)
        return [memory, cpu]

    def memory(self, when: str, *, bar: float) -> Line:
        ours, theirs = (client.memory() for client in self.clients)
        return compare(f"memory, {when}", "MiB", [ours], [theirs], "C tor", bar=bar)

    async def bulk(self) -> list[Line]:
        async def download(route: Route, isolation: str) -> None:
            await fetch(route, self.sizes.download, isolation)

        async def upload(route: Route, isolation: str) -> None:
            await send(route, self.sizes.upload, isolation)

        async def eight(route: Route, isolation: str) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(fetch, route, self.sizes.download // 8, isolation)

        rounds = self.sizes.rounds
        length = self.sizes.download
        ours, theirs, alone = await self.turns(rounds, download, *self.clients, self.one_legged)
        self.note_point(1, length, ours, theirs)
        costs = [_cpu_line("CPU-seconds per GiB downloaded", length, ours, theirs, bar=0.42)]
        what = "throughput, one stream downloaded"
        rates = [
            _rate_line(what, length, ours, theirs),
            _rate_line(what, length, ours, alone, ONE_LEGGED, bar=None),
        ]
        length = self.sizes.upload
        ours, theirs = await self.turns(rounds, upload, *self.clients)
        costs.append(_cpu_line("CPU-seconds per GiB uploaded", length, ours, theirs, bar=0.42))
        rates.append(_rate_line("throughput, one stream uploaded", length, ours, theirs))
        length = self.sizes.download
        ours, theirs = await self.turns(rounds, eight, *self.clients)
        self.note_point(8, length // 8, ours, theirs)
        rates.append(_rate_line("throughput, eight streams downloaded", length, ours, theirs))
        return costs + rates

    async def first_byte(self) -> list[Line]:
        """Request by request in turns, on circuits that are warm."""
        times: dict[Client, list[float]] = {client: [] for client in (*self.clients, self.one_legged)}
        isolations = [f"circuit{number}" for number in range(FIRST_BYTE_CIRCUITS)]
        for client in times:
            for isolation in isolations:
                await fetch(self.routes[client], 1, isolation)
        for _ in range(self.sizes.first_bytes):
            for isolation in isolations:
                for client in times:
                    times[client].append(1000 * await fetch(self.routes[client], 1, isolation))
        ours, theirs = times[self.torkit], times[self.c_tor]
        lines = []
        for what, of in (("median", median), ("95th percentile", lambda t: quantiles(t, n=20)[-1])):
            line = Line(f"time to first byte, {what}", "ms", of(ours), of(theirs), "C tor", bar=0.8)
            line.ratio = line.ours / of(theirs)
            lines.append(line)
        lines[0].runs = {"ours": ours, "other": theirs}
        alone = median(times[self.one_legged])
        return [*lines, Line(lines[0].what, "ms", lines[0].ours, alone, ONE_LEGGED)]

    async def crowd(self, count: int, rounds: int, deadline: float) -> list[Line]:
        async def work(route: Route, isolation: str) -> int:
            return await fetch_many(route, STREAM_LEN, [isolation] * count, at_once=count, deadline=deadline)

        ours, theirs = await self.turns(rounds, work, *self.clients)
        self.note_point(count, STREAM_LEN, ours, theirs)
        done, theirs_done = (100 * min(run.result or 0 for run in runs) / count for runs in (ours, theirs))
        # A stream that failed has cost something too, and brought nothing.
        mine, other = ([1000 * run.cpu / max(run.result or 0, 1) for run in runs] for runs in (ours, theirs))
        what = f"{count} streams at once"
        cpu = compare(f"{what}: CPU", "ms/stream", mine, other, "C tor", bar=0.7)
        cpu.is_done = done == 100
        if theirs_done < 100:  # what it spent on streams that failed is nothing to be held against
            cpu = Line(
                cpu.what, cpu.unit, cpu.ours, runs=cpu.runs, note="not all of C tor's streams succeeded"
            )
        succeeded = Line(f"{what}: succeeded", "%", done, theirs_done, "C tor", bar=100.0, at_least=True)
        mine, other = ([run.wall for run in runs] for runs in (ours, theirs))
        walls = compare(f"{what}: wall", "seconds", mine, other, "C tor", bar=1.0)
        walls.is_done = done == 100
        lines = [succeeded, cpu, walls]
        if count == 1000:
            lines.append(self.memory("after 1000 streams", bar=0.85))
        return lines

    async def growth(self) -> list[Line]:
        """torkit alone: does a byte cost more where more is open? Only the transfers are counted."""
        length = self.sizes.growth
        shapes: dict[str, Callable[[str], list[str]]] = {  # the isolations of one round's streams
            "1 stream": lambda circuit: [circuit],
            "10 streams": lambda circuit: [circuit] * 10,
            "100 streams": lambda circuit: [circuit] * 100,
            "10 circuits": lambda circuit: [f"{circuit}-{number}" for number in range(10)],
            "50 circuits": lambda circuit: [f"{circuit}-{number}" for number in range(50)],
        }
        costs: dict[str, list[float]] = {shape: [] for shape in shapes}
        for number in range(self.sizes.growth_rounds):
            for shape, isolations_of in shapes.items():
                isolations = isolations_of(f"circuit{number}")
                each = length // len(isolations)
                async with streams_held(self.routes[self.torkit], isolations) as streams:
                    work = partial(_download_on, streams, each)
                    run = await self.run(self.torkit, work, isolations[0])
                costs[shape].append(run.cpu * (1 << 30) / (each * len(streams)))
        base = costs.pop("1 stream")
        return [
            compare(
                f"growth: CPU-seconds per GiB, {shape}", "s/GiB", cost, base, "1 stream, 1 circuit", bar=1.15
            )
            for shape, cost in costs.items()
        ]


async def _download_on(streams: Sequence[Stream], each: int, *_: object) -> None:
    await download_all(streams, each)


def _cpu_line(what: str, length: int, ours: Sequence[Run], theirs: Sequence[Run], *, bar: float) -> Line:
    mine, other = ([run.cpu * (1 << 30) / length for run in runs] for runs in (ours, theirs))
    return compare(what, "s/GiB", mine, other, "C tor", bar=bar)


def _rate_line(
    what: str,
    length: int,
    ours: Sequence[Run],
    theirs: Sequence[Run],
    other: str = "C tor",
    *,
    bar: float | None = 1.0,
) -> Line:
    mine, others = ([length / MIB / run.wall for run in runs] for runs in (ours, theirs))
    return compare(what, "MiB/s", mine, others, other, bar=bar, at_least=True)


# --- `torkit connect` -----------------------------------------------------------------------------------


async def pipes(bench: Bench, net: Testnet, scratch: Path) -> list[Line]:
    """Between a pipe and a stream, beside C tor and nc counted together. None where there is no nc."""
    if shutil.which(NC) is None:
        return []
    port = bench.routes[bench.c_tor].port
    connect = [*torkit_command(net, scratch / "pipes"), "connect", f"web.test:{port}"]
    host, socks = bench.c_tor.socks
    nc = [NC, "-X", "5", "-x", f"{host}:{socks}", "web.test", str(port)]
    lines = []
    for transfer, length, way in (
        (_download_by, bench.sizes.download, "downloaded"),
        (_upload_by, bench.sizes.upload, "uploaded"),
    ):
        costs: tuple[list[float], list[float]] = ([], [])
        for _ in range(bench.sizes.rounds):
            costs[0].append(await _piped(connect, transfer, length, lambda: 0.0) * (1 << 30) / length)
            costs[1].append(await _piped(nc, transfer, length, bench.c_tor.cpu) * (1 << 30) / length)
        lines.append(compare(f"torkit connect: CPU-seconds per GiB {way}", "s/GiB", *costs, "C tor and nc"))
    return lines


async def _piped(
    command: Sequence[str], transfer: Transfer, length: int, other_cpu: Callable[[], float]
) -> float:
    """CPU seconds that a program takes for one transfer, with those of another that it uses."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
        process: trio.Process = await nursery.start(start)
        await _download_by(process, 1)
        await trio.sleep(SETTLE)
        before = cpu_of(process.pid) + other_cpu()
        await transfer(process, length)
        await trio.sleep(SETTLE)
        taken = cpu_of(process.pid) + other_cpu() - before
        nursery.cancel_scope.cancel()
    return taken


async def _download_by(process: trio.Process, length: int) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(b"get %d\n" % length)
    await _receive(process, length)


async def _upload_by(process: trio.Process, length: int) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(b"put %d\n" % length)
    await process.stdin.send_all(bytes(length))
    await _receive(process, 1)


async def _receive(process: trio.Process, length: int) -> None:
    assert process.stdout is not None
    while length:
        if not (data := await process.stdout.receive_some(min(length, MIB))):
            raise RuntimeError("the program ended early")
        length -= len(data)


# --- starting cold, with a warm cache -------------------------------------------------------------------


async def starts(bench: Bench, net: Testnet, scratch: Path) -> list[Line]:
    """From the start of the process to the first byte, in turns."""
    say("start with a warm cache")
    port = bench.routes[bench.c_tor].port
    (scratch / "starts").mkdir()
    warm = await start_c_tor(net, scratch / "starts")
    torrc = torrc_of(net, warm)
    os.kill(warm.pid, signal.SIGTERM)  # it keeps its state
    await trio.to_thread.run_sync(os.waitid, os.P_PID, warm.pid, os.WEXITED | os.WNOWAIT)
    connect = [*torkit_command(net, scratch / "starts/torkit"), "connect", f"web.test:{port}"]
    await start_connect(connect)  # fills the cache
    ours, theirs = [], []
    for _ in range(bench.sizes.starts):
        ours.append(await start_connect(connect))
        theirs.append(await _start_c_tor(torrc, Route(warm.socks, port)))
    return [compare("process start to first byte, warm cache", "seconds", ours, theirs, "C tor", bar=0.62)]


def torrc_of(net: Testnet, client: Client) -> Path:
    port_line = f"SocksPort {client.socks[0]}:{client.socks[1]}\n"
    [found] = [path for path in net.directory.glob("tor/client-*/torrc") if port_line in path.read_text()]
    return found


async def start_connect(command: Sequence[str]) -> float:
    started = monotonic()
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
        process: trio.Process = await nursery.start(start)
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(b"get 1\n")
        if not await process.stdout.receive_some(1):
            raise RuntimeError("torkit connect ended without a byte")
        taken = monotonic() - started
        nursery.cancel_scope.cancel()
    return taken


async def _start_c_tor(torrc: Path, route: Route) -> float:
    started = monotonic()
    async with trio.open_nursery() as nursery:
        command = ["tor", "--defaults-torrc", "/dev/null", "-f", str(torrc)]
        start = partial(trio.run_process, command, stdout=subprocess.DEVNULL, check=False)
        await nursery.start(start)
        while True:
            try:
                async with await open_stream(route) as stream:
                    await stream.download(1)
            except FAILURES:
                await trio.sleep(POLL_INTERVAL)
                continue
            break
        taken = monotonic() - started
        nursery.cancel_scope.cancel()
    return taken


# --- all of it ------------------------------------------------------------------------------------------


Curves = dict[str, list[tuple[str, int, float]]]  # (client, streams, value) of each curve


@asynccontextmanager
async def _both_clients(sizes: Sizes) -> AsyncIterator[tuple[Bench, Testnet, Path]]:
    """On a network of their own; with a directory for what is written."""
    say("a network, and both clients on it")
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-bench-")))
        net = await stack.enter_async_context(run_testnet(scratch / "network"))
        port = await stack.enter_async_context(running_far_end())
        torkit = await stack.enter_async_context(running_torkit(net, scratch))
        c_tor = await start_c_tor(net, scratch)
        (scratch / "one_legged").mkdir()
        one_legged = await start_c_tor(net, scratch / "one_legged", ["ConfluxEnabled 0"])
        yield Bench(torkit, c_tor, one_legged, port, sizes), net, scratch


async def measure(sizes: Sizes) -> tuple[list[Line], Curves]:
    """The lines, and what the plots show."""
    allow_many_files()
    async with _both_clients(sizes) as (bench, net, scratch):
        say("idle")
        idle = await bench.idle()
        lines = [*await _transfers(bench), *idle]  # idle had to come first
        say("torkit connect")
        lines += await pipes(bench, net, scratch)
        say("growth")
        lines += await bench.growth()
        lines += await starts(bench, net, scratch)
    return lines, bench.curves


async def _measure_inside(sizes: Sizes) -> list[Line]:
    """What depends on how loopback cuts and acknowledges, in the namespace that `on_ethernet` made."""
    allow_many_files()
    async with _both_clients(sizes) as (bench, net, scratch):
        lines = [*await _transfers(bench), *await starts(bench, net, scratch)]
    for line in lines:
        line.what += ", Ethernet"
    return lines


async def _transfers(bench: Bench) -> list[Line]:
    for route in bench.routes.values():  # whatever is made for a first stream
        await fetch(route, MIB)
    say("bulk and first bytes")
    lines = [*await bench.bulk(), *await bench.first_byte()]
    for count, rounds, deadline in bench.sizes.crowds:
        say(f"{count} streams at once")
        lines += await bench.crowd(count, rounds, deadline)
    return lines


def on_ethernet(*, is_quick: bool) -> list[Line]:
    """The lines on a link with Ethernet's MTU; none where the system grants no namespace."""
    lines = json_on_ethernet("bench_network", *["--quick"] * is_quick)
    return [Line.from_json(line) for line in lines or []]


def main() -> None:
    is_quick = "--quick" in sys.argv
    if "--inside" in sys.argv:
        inside = trio.run(_measure_inside, QUICK_ON_ETHERNET if is_quick else ON_ETHERNET)
        print(json.dumps([line.to_json() for line in inside]))
    elif "--ethernet" in sys.argv:
        print(table(on_ethernet(is_quick=is_quick)))
    else:
        lines, _ = trio.run(measure, QUICK if is_quick else Sizes())
        print(table(lines))


if __name__ == "__main__":
    main()
