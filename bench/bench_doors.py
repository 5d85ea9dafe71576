"""The doors of the library beside the SOCKS port of `torkit socks`, on one private network.

    python -m bench.bench_doors [--quick]

The client behind the doors is a thread of this process; what its bytes cost is that thread's CPU time. The
requests are httpx's under asyncio, each by a client of its own with an identity of its own, all at once;
through SOCKS the same, by user names. Both build a circuit for each. An import of torkit is what it adds to a
process of Python that does nothing, in turns. Of transfers, who goes first changes from round to round.
"""

import asyncio
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic

import httpx
import trio

from bench.far_end import HOST
from bench.load import BLOCK, NAME, Route, fetch, send
from bench.processes import (
    allow_many_files,
    let_python_keep_bytecode,
    running,
    running_far_end,
    running_torkit,
    say,
)
from bench.table import Line, compare, table
from torkit import aio, blocking
from torkit.httpx import AsyncTransport
from torkit.testnet import run_testnet

GIB = 1 << 30
DOWNLOAD, UPLOAD = 20 << 20, 12 << 20  # bytes of a run
HOSTNAME = NAME.decode()
REQUESTS = 200
BULK_SHARE = 3  # transfers are quick, and vary: so many rounds of them for one of requests
IMPORTS = 15
SETTLE = 0.2  # seconds after a run: what a client does last counts as well

buffer = bytearray(1 << 18)


def _download(tor: blocking.Tor, port: int, length: int, isolation: str) -> None:
    with tor.connect(HOSTNAME, port, isolation=isolation, timeout=60) as sock:
        sock.sendall(b"get %d\n" % length)
        while length:
            length -= sock.recv_into(buffer, min(length, len(buffer)))


def _upload(tor: blocking.Tor, port: int, length: int, isolation: str) -> None:
    with tor.connect(HOSTNAME, port, isolation=isolation, timeout=60) as sock:
        sock.sendall(b"put %d\n" % length)
        while length:
            sent = min(length, len(BLOCK))
            sock.sendall(BLOCK[:sent])
            length -= sent
        sock.recv_into(buffer, 1)


async def bulk(network: Path, scratch: Path, rounds: int) -> list[Line]:
    """CPU seconds per GiB of the client, through a pair of sockets and through the SOCKS port."""
    lines = []
    async with AsyncExitStack() as stack:
        net = await stack.enter_async_context(run_testnet(network))
        port = await stack.enter_async_context(running_far_end())
        socks = await stack.enter_async_context(running_torkit(net, scratch))
        route = Route(socks.socks, port)
        tor = await trio.to_thread.run_sync(
            lambda: blocking.open_tor(network=net.network_file, data_dir=scratch / "door")
        )
        stack.callback(tor.close)

        def cpu_of_thread() -> float:
            return tor._thread.call(time.thread_time).result()

        async def through_door(work: Callable[..., None], length: int, name: str) -> float:
            before = cpu_of_thread()
            await trio.to_thread.run_sync(work, tor, port, length, name)
            await trio.sleep(SETTLE)
            return (cpu_of_thread() - before) * GIB / length

        async def through_socks(work: Callable[..., Awaitable[object]], length: int, name: str) -> float:
            before = socks.cpu()
            await work(route, length, name)
            await trio.sleep(SETTLE)
            return (socks.cpu() - before) * GIB / length

        for what, length, by_socket, by_route in (
            ("downloaded", DOWNLOAD, _download, fetch),
            ("uploaded", UPLOAD, _upload, send),
        ):
            ours: list[float] = []
            theirs: list[float] = []
            turns = [(ours, partial(through_door, by_socket)), (theirs, partial(through_socks, by_route))]
            for number in range(BULK_SHARE * rounds):
                name = f"{what}{number}"  # a circuit that is built and warm
                await trio.to_thread.run_sync(_download, tor, port, 1, name)
                await fetch(route, 1, name)
                for costs, through in turns:
                    costs.append(await through(length, name))
                turns.reverse()
            title = f"CPU-seconds per GiB {what}, a pair of sockets"
            lines.append(compare(title, "s/GiB", ours, theirs, "SOCKS port", bar=1.05))
        lines.append(await requests_at_once(net.network_file, scratch, socks.socks, rounds))
    return lines


async def requests_at_once(network_file: Path, scratch: Path, socks: tuple[str, int], rounds: int) -> Line:
    """Seconds until REQUESTS identities have had an answer, through torkit.httpx and through SOCKS."""
    (scratch / "www").mkdir()
    (scratch / "www" / "page").write_bytes(b"a page\n")
    quiet = ["sh", "-c", 'exec "$@" 2>/dev/null', "sh"]  # it prints a line for each request
    served = ["--bind", HOST, "--directory", str(scratch / "www"), "0"]
    command = [*quiet, sys.executable, "-u", "-m", "http.server", *served]
    async with running(command) as (_, said):
        url = f"http://{HOSTNAME}:{said.split()[5]}/page"

        async def measure() -> tuple[list[float], list[float]]:
            context = ssl.create_default_context()
            ours: list[float] = []
            theirs: list[float] = []
            async with aio.open_tor(network=network_file, data_dir=scratch / "httpx") as tor:
                await tor.wait_ready()

                async def get(client: httpx.AsyncClient) -> None:
                    async with client:
                        (await client.get(url)).raise_for_status()

                def through_door(one: str) -> httpx.AsyncClient:
                    transport = AsyncTransport(tor, isolation=one, verify=context)
                    return httpx.AsyncClient(transport=transport, timeout=120)

                def through_socks(one: str) -> httpx.AsyncClient:
                    proxy = f"socks5://{one}:x@{socks[0]}:{socks[1]}"
                    return httpx.AsyncClient(proxy=proxy, verify=context, timeout=120)

                for number in range(rounds):
                    for walls, make in (ours, through_door), (theirs, through_socks):
                        clients = [make(f"{number}.{one}") for one in range(REQUESTS)]
                        started = monotonic()
                        await asyncio.gather(*map(get, clients))
                        walls.append(monotonic() - started)
            return ours, theirs

        ours, theirs = await trio.to_thread.run_sync(lambda: asyncio.run(measure()))
    what = f"{REQUESTS} requests at once, each its identity, torkit.httpx"
    return compare(what, "s", ours, theirs, "SOCKS port", bar=1.5)


def import_of_torkit() -> Line:
    walls: dict[str, list[float]] = {"pass": [], "import torkit": []}
    for _ in range(IMPORTS):
        for program, of_program in walls.items():
            started = monotonic()
            subprocess.run([sys.executable, "-c", program], check=True)
            of_program.append(1000 * (monotonic() - started))
    bare, imported = walls["pass"], walls["import torkit"]
    added = [with_it - without for with_it, without in zip(imported, bare, strict=True)]
    return Line("import torkit", "ms", median(added), median(bare), "Python's start", bar=30.0)


def run(*, is_quick: bool) -> list[Line]:
    allow_many_files()
    let_python_keep_bytecode()
    say("the library's doors")
    with tempfile.TemporaryDirectory(prefix="torkit-bench-") as directory:
        scratch = Path(directory)
        lines = trio.run(bulk, scratch / "network", scratch, 2 if is_quick else 5)
    return [*lines, import_of_torkit()]


if __name__ == "__main__":
    print(table(run(is_quick="--quick" in sys.argv)))
