"""What keeps a stream waiting: documents of full size, and relays that flood.

Each figure is of a client in a process of its own, which has the processor as long as it wants: nothing
else runs but what it is measured against. `python -m bench.bench_turns` makes these lines alone.
"""

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import trio

from bench.processes import let_python_keep_bytecode
from bench.table import Line, table
from bench.turns import Turns
from torkit import open_tor
from torkit.cli.running import GC_THRESHOLD, START_TIME
from torkit.config import Authority, Fallback, Network
from torkit.errors import TorkitError
from torkit.net.circuit.stream import Stream
from torkit.net.link.channel import Channel
from torkit.proto.padding import Padding

ROUNDS = 5
DEADLINE = 120.0  # seconds
CROWD_LEN = 8  # relays that flood at the same time
FLOOD_TIME = 3.0  # seconds, at most

Found = dict[str, dict[str, float]]


# --- In the client's process ------------------------------------------------------------------------------


def network_of(about: dict[str, Any]) -> Network:
    voters = tuple(
        Authority(nickname, "127.0.0.1", 9, None, bytes([n]) * 20, v3ident=bytes.fromhex(v3ident), ipv6=None)
        for n, (v3ident, nickname) in enumerate(about["authorities"].items())
    )
    host, port, identity = about["fallback"]
    return Network(voters, (Fallback(host, port, bytes.fromhex(identity), None),), True, False)


async def renew(about: dict[str, Any], directory: str) -> Found:
    """Start with what the cache holds, and go on until all that is new has come, a stream flowing."""
    received = 0

    async def flow(stream: Stream) -> None:
        nonlocal received
        while data := await stream.receive_some():
            received += len(data)

    found = {}
    turns = Turns()
    network = network_of(about)
    async with open_tor(network=network, data_dir=Path(directory), padding=Padding.OFF) as tor:
        await tor.wait_ready()
        found["cache"] = turns.take()
        keeper = tor._parts.keeper
        old = keeper.directory
        assert old is not None
        stream = await tor.connect("web.test", 80)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow, stream)
            while (new := keeper.directory) is None or new.consensus is old.consensus or new.missing:
                await trio.sleep(0.05)
            await tor.connect("web.test", 443)
            await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
    found["network"] = turns.take()
    assert received
    return found


async def meet_floods(about: dict[str, Any]) -> Found:
    """Connect to each relay that floods, and to several of the last kind at once."""
    found = {}
    rng = Random()

    async def meet(port: int) -> None:
        rsa, ed25519 = bytes.fromhex(about["rsa"]), bytes.fromhex(about["ed25519"])
        with trio.move_on_after(FLOOD_TIME):
            try:
                channel = await Channel.connect("127.0.0.1", port, rsa=rsa, ed25519=ed25519, rng=rng)
                await channel.run()
            except TorkitError:
                pass  # it is closed for what it does

    turns = Turns()
    for name, port in about["ports"].items():
        turns.take()
        await meet(port)
        found[name] = turns.take()
    async with trio.open_nursery() as nursery:
        for _ in range(CROWD_LEN):
            nursery.start_soon(meet, port)
    found[f"{CROWD_LEN} relays at once, {name}"] = turns.take()
    return found


def run_client(client: Callable[..., Awaitable[Found]], about: str, *arguments: str) -> None:
    """Collect garbage as a command does (cli/), and print what was found."""

    async def run() -> Found:
        async def collect_garbage() -> None:
            await trio.sleep(START_TIME)
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            gc.enable()

        gc.disable()
        trio.lowlevel.spawn_system_task(collect_garbage)
        with trio.fail_after(DEADLINE):
            return await client(json.loads(about), *arguments)

    print(json.dumps(trio.run(run)))


CLIENTS: dict[str, Callable[..., Awaitable[Found]]] = {"--renew": renew, "--floods": meet_floods}


# --- The rounds -------------------------------------------------------------------------------------------


def round_of(client: str, far: list[str], *arguments: str) -> Found:
    """One client against one far side."""
    far_side = subprocess.Popen(
        [sys.executable, "-m", *far], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert far_side.stdout is not None
        about = far_side.stdout.readline().decode()
        command = [sys.executable, "-m", "bench.bench_turns", client, about, *arguments]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found: Found = json.loads(result.stdout)
        return found
    finally:
        far_side.kill()
        far_side.communicate()


def lines_of(what: str, rounds: list[dict[str, float]], bars: dict[str, float]) -> list[Line]:
    """The medians over the rounds of each round's longest, in ms."""
    kinds = {
        "turn": "longest wait for a turn",
        "call": "longest call of the core, CPU",
    }
    lines = []
    for kind, name in kinds.items():
        runs = [1e3 * one[kind] for one in rounds]
        line = Line(f"{what}: {name}", "ms", median(runs), runs={"ours": runs}, bar=bars.get(kind))
        lines.append(line)
    return lines


def measure(rounds: int = ROUNDS) -> list[Line]:
    lines = []
    for mode, described in (
        ("--whole", "consensus and microdescriptors"),
        ("--diff", "diff and microdescriptors"),
    ):
        found = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="torkit-bench-") as scratch:
                found.append(round_of("--renew", ["bench.far_network", scratch, mode], scratch))
        if mode == "--whole":
            lines += lines_of("10,000 relays from the cache", [one["cache"] for one in found], {"turn": 10})
        lines += lines_of(f"10,000 relays, {described}", [one["network"] for one in found], {"turn": 10})
    floods = [round_of("--floods", ["bench.far_floods"]) for _ in range(rounds)]
    for name in floods[0]:
        lines += lines_of(name, [one[name] for one in floods], {"turn": 50, "call": 20})
    return lines


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CLIENTS:
        run_client(CLIENTS[sys.argv[1]], *sys.argv[2:])
    else:
        let_python_keep_bytecode()
        measured = measure()
        print(json.dumps([vars(one) for one in measured]) if "--json" in sys.argv else table(measured))
