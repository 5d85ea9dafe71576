"""Onion services: `torkit onion serve` beside a service of C tor's, both reached by one client of C tor's.

python -m bench.bench_serve [--quick] [--load | --starts]

CPU time and memory are those of the service's process. Clients are identities of the one client: every
isolation is met at a rendezvous of its own. A start has a warm cache and an address that nobody knows yet.
"""

import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic

import trio

from bench.bench_network import MIB, SETTLE, start_connect, torrc_of
from bench.bench_onion import PORT, until_published
from bench.load import Route, fetch, fetch_many, send
from bench.processes import (
    POLL_INTERVAL,
    TORKIT,
    Program,
    allow_many_files,
    let_python_keep_bytecode,
    running,
    running_far_end,
    say,
    start_c_tor,
    torkit_command,
)
from bench.table import Line, compare, table
from torkit.client import Tor, open_tor
from torkit.errors import TorkitError
from torkit.testnet import Testnet, run_testnet

CLIENTS = 100  # at once
DEADLINE = 120.0  # seconds for these, and for a service to be reached
IDLE = 20.0  # seconds of idleness before memory is looked at
AT_ONCE = 4  # rendezvous under way while they are counted
ONE_BURST = ["MaxClientCircuitsPending 1024"]  # the client is no part of what is measured
BYTES_BAR = 0.5
MEMORY_BAR = 20.0  # MiB beyond C tor's


@dataclass(frozen=True)
class Sizes:
    meetings: int = 24  # in a round
    rounds: int = 5
    crowds: int = 3
    starts: int = 7
    download: int = 20 * MIB
    upload: int = 12 * MIB


QUICK = Sizes(meetings=8, rounds=2, crowds=1, starts=2, download=8 * MIB, upload=4 * MIB)


@dataclass(frozen=True)
class Service(Program):
    """A service that is measured, and the way to it."""

    route: Route


Work = Callable[[Route], Awaitable[object]]


async def make_key(directory: Path) -> bytes:
    """A new service's files, which are the same for both programs; its address."""
    made = await trio.run_process([str(TORKIT), "onion", "new", str(directory)], capture_stdout=True)
    return made.stdout.strip()


def service_lines(key: Path, port: int) -> list[str]:
    """What a torrc says of a service."""
    return [f"HiddenServiceDir {key}", f"HiddenServicePort {PORT} 127.0.0.1:{port}"]


def serve_command(net: Testnet, scratch: Path, key: Path, port: int) -> list[str]:
    return [*torkit_command(net, scratch / "torkit"), "onion", "serve", "--key", str(key), f"{PORT}:{port}"]


# --- services that run ------------------------------------------------------------------------------------


async def in_turns(
    services: Sequence[Service], rounds: int, work: Callable[[Service, int], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    """What `work` gives for each service in each round."""
    figures: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for service, of_service in zip(services, figures, strict=True):
            of_service.append(await work(service, number))
    return figures


async def cost(service: Service, work: Work) -> float:
    """CPU seconds of the service."""
    await trio.sleep(SETTLE)
    before = service.cpu()
    await work(service.route)
    await trio.sleep(SETTLE)
    return service.cpu() - before


async def meetings(services: Sequence[Service], sizes: Sizes) -> Line:
    async def one(service: Service, number: int) -> float:
        met = 0

        async def meet(route: Route) -> None:
            nonlocal met
            isolations = [f"meet{number}.{one}" for one in range(sizes.meetings)]
            met = await fetch_many(route, 1, isolations, at_once=AT_ONCE, deadline=DEADLINE)

        spent = await cost(service, meet)
        if met < sizes.meetings:
            say(f"{service.name}'s service met {met} of {sizes.meetings}")
        return 1000 * spent / met

    times = await in_turns(services, sizes.rounds, one)
    return compare("a service: CPU for each rendezvous", "ms", *times, "C tor", bar=1.0)


async def bulk(services: Sequence[Service], sizes: Sizes) -> list[Line]:
    lines = []
    for way, length, transfer in (("down", sizes.download, fetch), ("up", sizes.upload, send)):
        carry: Work = partial(transfer, length=length, isolation="bulk")
        for service in services:
            await transfer(service.route, MIB, "bulk")  # meets

        async def one(service: Service, number: int, length: int = length, carry: Work = carry) -> float:
            return await cost(service, carry) * (1 << 30) / length

        times = await in_turns(services, sizes.rounds, one)
        what = f"a service: CPU-seconds per GiB {way}loaded"
        lines.append(compare(what, "s/GiB", *times, "C tor", bar=BYTES_BAR))
    return lines


async def crowds(services: Sequence[Service], sizes: Sizes) -> list[Line]:
    """CLIENTS at once: how many were served, how long that took, and what it cost."""
    served: Mapping[str, list[float]] = {service.name: [] for service in services}
    walls: Mapping[str, list[float]] = {service.name: [] for service in services}

    async def one(service: Service, number: int) -> float:
        service.reset_peak()
        isolations = [f"crowd{number}.{one}" for one in range(CLIENTS)]

        async def come(route: Route) -> None:
            started = monotonic()
            count = await fetch_many(route, 1, isolations, at_once=CLIENTS, deadline=DEADLINE)
            walls[service.name].append(monotonic() - started)
            served[service.name].append(count)

        return 1000 * await cost(service, come) / max(1, served[service.name][-1:][0])

    spent = await in_turns(services, sizes.crowds, one)
    ours, theirs = (service.name for service in services)
    return [
        Line(
            f"a service: of {CLIENTS} clients at once, served",
            "clients",
            min(served[ours]),
            min(served[theirs]),
            "C tor",
            bar=CLIENTS,
            at_least=True,
            runs={"ours": served[ours], "other": served[theirs]},
        ),
        compare(
            f"a service: {CLIENTS} clients at once, all served", "s", walls[ours], walls[theirs], "C tor"
        ),
        compare(f"a service: {CLIENTS} clients at once, CPU for each", "ms", *spent, "C tor"),
    ]


def memory(services: Sequence[Program], when: str) -> Line:
    ours, theirs = (service.memory() for service in services)
    return Line(
        f"a service: resident beyond C tor's, {when}",
        "MiB",
        ours - theirs,
        bar=MEMORY_BAR,
        note=f"{ours:.1f} beside {theirs:.1f} MiB",
    )


def note(lines: list[Line], *more: Line) -> None:
    for line in more:
        lines.append(line)
        say(table([line]).splitlines()[2])
        if line.note:
            say(line.note)


async def without_maps(net: Testnet, scratch: Path, port: int) -> Program:
    """A service of a C tor that has no GeoIP maps, which most of its memory is for."""
    pid_file = scratch / "without-maps.pid"
    await make_key(scratch / "plain")
    await net.start_client([f"PidFile {pid_file}", *service_lines(scratch / "plain", port)])
    return Program("C tor", int(pid_file.read_text()))


async def measure_load(net: Testnet, scratch: Path, port: int, sizes: Sizes) -> list[Line]:
    client = await start_c_tor(net, made(scratch / "client"), ONE_BURST)
    here = made(scratch / "services")
    addresses = [await make_key(here / name) for name in ("ours", "theirs")]
    routes = [Route(client.socks, PORT, address) for address in addresses]
    lines: list[Line] = []
    async with running(serve_command(net, here, here / "ours", port)) as (process, _):
        c_tor = await start_c_tor(net, here, service_lines(here / "theirs", port))
        services = [Service("torkit", process.pid, routes[0]), Service("C tor", c_tor.pid, routes[1])]
        plain = await without_maps(net, here, port)
        await until_published(routes)
        say("memory, idle")
        await trio.sleep(IDLE)
        note(lines, memory(services, "idle"), memory([services[0], plain], "idle, and it has no GeoIP maps"))
        say("rendezvous")
        note(lines, await meetings(services, sizes))
        say("bulk")
        note(lines, *await bulk(services, sizes))
        say(f"{CLIENTS} clients at once")
        note(lines, *await crowds(services, sizes))
        note(lines, memory(services, f"after {CLIENTS} clients"))
    return lines


# --- starts -----------------------------------------------------------------------------------------------


async def until_reached(tor: Tor, address: bytes) -> None:
    """Fetch a byte. The client asks the directories again and again, which may know nothing yet."""
    while True:
        tor._parts.onion_services().forget()  # else it asks each of them once in five seconds
        try:
            async with await tor.connect(address.decode(), PORT) as stream:
                await stream.send_all(b"get 1\n")
                if await stream.receive_some(1):
                    return
        except TorkitError:
            await trio.sleep(POLL_INTERVAL)


@asynccontextmanager
async def begun(command: Sequence[str]) -> AsyncIterator[None]:
    """A process, which ends with the block by SIGTERM, so that it keeps what it has learnt."""
    with tempfile.TemporaryFile() as output:
        process = await trio.lowlevel.open_process(command, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()


async def measure_starts(net: Testnet, scratch: Path, port: int, sizes: Sizes) -> list[Line]:
    say("starts with a warm cache")
    here = made(scratch / "starts")
    torrc = await kept_torrc(net, here)
    lines_before = torrc.read_text()
    connect = [*torkit_command(net, here / "torkit"), "connect", f"web.test:{port}"]
    await start_connect(connect)  # fills the cache
    times: tuple[list[float], list[float]] = ([], [])
    async with open_tor(network=net.network_file, data_dir=here / "asks") as tor:
        await tor.wait_ready()
        for number in range(sizes.starts):
            for name, of_program in zip(("ours", "theirs"), times, strict=True):
                key = here / f"{name}{number}"
                address = await make_key(key)
                command = serve_command(net, here, key, port)
                if name == "theirs":
                    torrc.write_text("\n".join([lines_before, *service_lines(key, port), ""]))
                    command = ["tor", "--defaults-torrc", "/dev/null", "-f", str(torrc)]
                started = monotonic()
                async with begun(command):
                    with trio.fail_after(DEADLINE):
                        await until_reached(tor, address)
                    of_program.append(monotonic() - started)
    return [compare("a service: process start to reachable", "seconds", *times, "C tor", bar=1.0)]


async def kept_torrc(net: Testnet, scratch: Path) -> Path:
    """The torrc of a C tor that has bootstrapped and ended: its DataDirectory is kept."""
    warm = await start_c_tor(net, scratch)
    torrc = torrc_of(net, warm)
    os.kill(warm.pid, signal.SIGTERM)
    await trio.to_thread.run_sync(os.waitid, os.P_PID, warm.pid, os.WEXITED | os.WNOWAIT)
    return torrc


# --- all of it ----------------------------------------------------------------------------------------------


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def measure(options: Sequence[str]) -> list[Line]:
    sizes = QUICK if "--quick" in options else Sizes()
    allow_many_files()
    let_python_keep_bytecode()
    say("a network")
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-bench-")))
        net = await stack.enter_async_context(run_testnet(scratch / "network"))
        port = await stack.enter_async_context(running_far_end())
        lines = []
        if "--starts" not in options:
            lines += await measure_load(net, scratch, port, sizes)
        if "--load" not in options:
            lines += await measure_starts(net, scratch, port, sizes)
        return lines


if __name__ == "__main__":
    print(table(trio.run(measure, sys.argv[1:])))
