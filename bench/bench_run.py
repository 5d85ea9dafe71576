"""`torkit run`: what its doors cost beside the SOCKS port, and how long it takes to start.

    python -m bench.bench_run [--quick]

One `torkit run` has all the doors, so one process on one circuit is measured, door by door in turns.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic

import trio

from bench.bench_network import MIB, SETTLE, start_connect
from bench.processes import ROOT, cpu_of, running_far_end, say, torkit_command
from bench.table import Line, compare, table
from torkit.testnet import run_testnet

DOORS = {"CONNECT": 1.05, "transparent": 1.1}  # bars, of the SOCKS port's CPU
LENGTHS = {"get": 20 * MIB, "put": 12 * MIB}
WAYS = {"get": "downloaded", "put": "uploaded"}
ROUNDS = 9
STARTS = 15
START_BAR = 0.2  # seconds beyond `torkit connect`


async def doors(run: Sequence[str], port: int, rounds: int) -> list[Line]:
    command = [*run, sys.executable, "-m", "bench.inside", str(port)]
    lines = []
    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
        process: trio.Process = await nursery.start(start)
        for verb, length in LENGTHS.items():
            costs: dict[str, list[float]] = {door: [] for door in ("SOCKS", *DOORS)}
            await _carry(process, "SOCKS", verb, MIB)
            for _ in range(rounds):
                for door, of_door in costs.items():
                    of_door.append(await _carry(process, door, verb, length) * (1 << 30) / length)
            for door, bar in DOORS.items():
                what = f"{door}: CPU-seconds per GiB {WAYS[verb]}"
                lines.append(compare(what, "s/GiB", costs[door], costs["SOCKS"], "SOCKS", bar=bar))
        nursery.cancel_scope.cancel()
    return lines


async def _carry(process: trio.Process, door: str, verb: str, length: int) -> float:
    """CPU seconds of `torkit run` for one stream."""
    assert process.stdin is not None
    assert process.stdout is not None
    await trio.sleep(SETTLE)
    before = cpu_of(process.pid)
    await process.stdin.send_all(f"{door} {verb} {length}\n".encode())
    if not await process.stdout.receive_some():
        raise RuntimeError("the program ended early")
    await trio.sleep(SETTLE)
    return cpu_of(process.pid) - before


async def starts(torkit: Sequence[str], port: int, count: int) -> Line:
    """`torkit run -- true` from start to end, beside `torkit connect` to its first byte, in turns."""
    connect = [*torkit, "connect", f"web.test:{port}"]
    ours, theirs = [], []
    for _ in range(count):
        started = monotonic()
        await trio.run_process([*torkit, "run", "--", "true"])
        ours.append(monotonic() - started)
        theirs.append(await start_connect(connect))
    beyond = [a - b for a, b in zip(ours, theirs, strict=True)]
    return Line(
        "torkit run -- true, beyond torkit connect's first byte",
        "seconds",
        median(beyond),
        bar=START_BAR,
        runs={"ours": ours, "other": theirs},
        note=f"{median(ours):.3f} s beside {median(theirs):.3f} s",
    )


async def measure(*, is_quick: bool) -> list[Line]:
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-bench-")))
        say("a network, and torkit run on it")
        net = await stack.enter_async_context(run_testnet(scratch / "network"))
        port = await stack.enter_async_context(running_far_end())
        torkit = torkit_command(net, scratch / "torkit")
        await trio.run_process([*torkit, "run", "--", "true"])  # fills the cache
        lines = await doors([*torkit, "run", "--"], port, 2 if is_quick else ROUNDS)
        say("its start")
        return [*lines, await starts(torkit, port, 3 if is_quick else STARTS)]


if __name__ == "__main__":
    print(table(trio.run(partial(measure, is_quick="--quick" in sys.argv))))
