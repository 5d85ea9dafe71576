"""A thousand identities at once, and ten thousand circuits: what a proxy of a crowd costs.

    python -m bench.bench_identities [--quick]

Each identity is a pair of SOCKS credentials, hence a circuit of its own; circuits are counted by what the
clients themselves say. C tor's client, with its defaults, gets the same requests.
"""

import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import trio

from bench.load import Route, fetch_many
from bench.processes import (
    Client,
    allow_many_files,
    let_python_keep_bytecode,
    running_far_end,
    running_torkit,
    say,
    start_c_tor,
)
from bench.table import Line, compare, table
from torkit.cli.monitoring import STATUS_SOCKET
from torkit.cli.status import ask
from torkit.testnet import Testnet, run_testnet

IDENTITIES = 1000  # at once
FEW, MANY = 100, 10_000  # circuits that are open while requests are counted
QUICK_MANY = 2000
IDLE, QUICK_IDLE = 60.0, 20.0  # seconds
AT_ONCE = 50  # requests under way, while they are counted or circuits are opened
ROUNDS = 5
REQUESTS = 2000  # in a round
DEADLINE = 300.0  # seconds for IDENTITIES
SETTLE = 2.0  # seconds before memory is looked at


async def ask_all(route: Route, isolations: Sequence[str], at_once: int) -> int:
    """A small answer for each of these; how many came."""
    return await fetch_many(route, 1, isolations, at_once=at_once, deadline=DEADLINE)


async def used_circuits_of_torkit(data_dir: Path) -> int:
    moment = await trio.to_thread.run_sync(ask, data_dir / STATUS_SOCKET)
    return sum(one["state"] == "dirty" for one in moment["circuits"])


async def used_circuits_of_c_tor(port: int) -> int:
    """Those with credentials. control-spec, "GETINFO"."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as control:
        await control.send_all(b'AUTHENTICATE ""\r\nGETINFO circuit-status\r\nQUIT\r\n')
        answer = b"".join([bytes(data) async for data in control])
    return sum(b" BUILT " in line and b"SOCKS_USERNAME" in line for line in answer.splitlines())


@asynccontextmanager
async def network(scratch: Path) -> AsyncIterator[tuple[Testnet, int]]:
    async with run_testnet(scratch / "net") as net, running_far_end() as port:
        yield net, port


async def measure_crowd(client: Client, route: Route) -> tuple[int, float, float]:
    """IDENTITIES at once: how many were answered, seconds, the most resident MiB meanwhile."""
    client.reset_peak()
    started = monotonic()
    answered = await ask_all(route, [f"crowd{number}" for number in range(IDENTITIES)], IDENTITIES)
    return answered, monotonic() - started, client.peak_memory()


async def measure_idle(net: Testnet, scratch: Path, seconds: float) -> Line:
    """Nobody asks for anything, with and without metrics, at once."""
    async with (
        running_torkit(net, made(scratch / "plain")) as plain,
        running_torkit(net, made(scratch / "told"), ["--metrics", "0"]) as told,
    ):
        await trio.sleep(SETTLE)
        before = [client.cpu() for client in (told, plain)]
        await trio.sleep(seconds)
        ours, theirs = (
            100 * (client.cpu() - cpu) / seconds for client, cpu in zip((told, plain), before, strict=True)
        )
    return Line("idle CPU with --metrics", "% of a core", ours, theirs, "without")


async def rate(route: Route, count: int) -> float:
    """Requests a second, each on one of the first `count` circuits."""
    isolations = [f"many{number * 7919 % count}" for number in range(REQUESTS)]
    started = monotonic()
    answered = await ask_all(route, isolations, AT_ONCE)
    return answered / (monotonic() - started)


async def measure(many: int, with_c_tor: bool) -> list[Line]:
    allow_many_files()
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-bench-")))
        say("a private network")
        net, port = await stack.enter_async_context(network(scratch))
        say("nobody asks")
        lines = [await measure_idle(net, scratch, QUICK_IDLE if many < MANY else IDLE)]

        say(f"{IDENTITIES} identities at once")
        async with running_torkit(net, scratch) as torkit:
            answered, wall, peak = await measure_crowd(torkit, Route(torkit.socks, port))
            circuits = await used_circuits_of_torkit(scratch / "torkit")
        say(f"{answered} answered on {circuits} circuits in {wall:.2f} s")
        what = f"{IDENTITIES} identities at once"
        lines.append(
            Line(
                f"{what}: answered, each on a circuit of its own",
                "%",
                100 * min(answered, circuits) / IDENTITIES,
                bar=100.0,
                at_least=True,
            )
        )
        lines.append(Line(f"{what}: resident, at most", "MiB", peak, bar=64.0))

        say(f"{FEW} and {many} circuits open")
        async with (
            running_torkit(net, made(scratch / "few")) as lean,
            running_torkit(net, made(scratch / "many")) as torkit,
        ):
            routes = Route(torkit.socks, port), Route(lean.socks, port)
            for route in routes:
                await ask_all(route, [f"many{number}" for number in range(FEW)], AT_ONCE)
            await trio.sleep(SETTLE)
            before, had = torkit.memory(), await used_circuits_of_torkit(scratch / "many" / "torkit")
            opened = await ask_all(routes[0], [f"many{number}" for number in range(FEW, many)], AT_ONCE)
            await trio.sleep(SETTLE)
            after, has = torkit.memory(), await used_circuits_of_torkit(scratch / "many" / "torkit")
            say(f"{opened} more answered, {has - had} circuits more, {after - before:.1f} MiB more")
            rates: tuple[list[float], list[float]] = [], []
            for _ in range(ROUNDS):
                for route, of_route, count in zip(routes, rates, (many, FEW), strict=True):
                    of_route.append(await rate(route, count))
        lines.append(
            compare(
                f"requests with {many} isolated circuits open",
                "1/s",
                *rates,
                f"{FEW} open",
                bar=0.8,
                at_least=True,
            )
        )
        lines.append(
            Line("memory of an isolated circuit", "KiB", 1024 * (after - before) / (has - had), bar=6.0)
        )

        if with_c_tor:
            say(f"{IDENTITIES} identities at once, C tor")
            control = await free_port()
            c_tor = await start_c_tor(net, scratch, [f"ControlPort {control}"])
            theirs_answered, theirs, _ = await measure_crowd(c_tor, Route(c_tor.socks, port))
            theirs_circuits = await used_circuits_of_c_tor(control)
            say(f"{theirs_answered} answered on {theirs_circuits} circuits in {theirs:.1f} s")
            line = Line(
                f"{what}: wall for each circuit",
                "ms",
                1000 * wall / circuits,
                1000 * theirs / max(theirs_circuits, 1),
                "C tor",
                bar=0.05,
                note=f"C tor answered {theirs_answered} on {theirs_circuits} circuits in {theirs:.0f} s",
            )
            line.ratio = line.ours / (line.other or 1)
            lines.insert(2, line)
        return lines


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def free_port() -> int:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port: int = listener.socket.getsockname()[1]
        return port


def main() -> None:
    is_quick = "--quick" in sys.argv
    let_python_keep_bytecode()
    lines = trio.run(measure, QUICK_MANY if is_quick else MANY, not is_quick)
    if "--json" in sys.argv:
        print(json.dumps([vars(line) for line in lines]))
    else:
        print(table(lines))


if __name__ == "__main__":
    main()
