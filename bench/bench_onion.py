"""An onion service of C tor's, reached by torkit and by C tor's client, request by request in turns.

python -m bench.bench_onion [--quick] [--ethernet]

first           a client that has just started, and has not asked for an onion service before
cold            the client has taken a new identity: no descriptor, no circuit that was used
warm            the descriptor is there; each request has an isolation of its own, hence a new meeting
next            a further stream on a circuit that has joined, each on another of those

With --ethernet all of it is in a namespace whose loopback has an MTU of 1500: on plain loopback guards hold
small answers back for a delayed acknowledgement, on some circuits and not on others.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from bench.bench_network import SETTLE
from bench.load import FAILURES, Route, fetch, send
from bench.processes import (
    Client,
    allow_many_files,
    json_on_ethernet,
    running_far_end,
    running_torkit,
    say,
    start_c_tor,
)
from bench.table import Line, compare, table
from torkit.testnet import Testnet, run_testnet

MIB = 1 << 20
PORT = 80
READY = 90.0  # seconds for the service to be published
NEWNYM_REST = 11.0  # C tor takes a new identity once in ten seconds; either client builds stems meanwhile
AFTER_START = 8.0  # seconds: C tor's client builds one stem a second


@dataclass(frozen=True)
class Sizes:
    first: int = 4
    cold: int = 5
    warm: int = 25
    next: int = 40
    rounds: int = 4
    download: int = 8 * MIB
    upload: int = 5 * MIB


QUICK = Sizes(first=1, cold=2, warm=5, next=5, rounds=2, download=4 * MIB, upload=2 * MIB)


Work = Callable[[Route], Awaitable[object]]


async def start_service(net: Testnet, scratch: Path, port: int) -> bytes:
    """The address of a service of C tor's; it runs until the network ends."""
    directory = scratch / "service"
    directory.mkdir(mode=0o700)
    await net.start_client([f"HiddenServiceDir {directory}", f"HiddenServicePort {PORT} 127.0.0.1:{port}"])
    return (directory / "hostname").read_bytes().strip()


async def start_c_tor_with_control(net: Testnet, scratch: Path) -> tuple[Client, Path]:
    """C tor's client, and where it writes the address at which it is told of a new identity."""
    scratch.mkdir(exist_ok=True)
    control = scratch / "control"
    options = ["ControlPort 127.0.0.1:auto", f"ControlPortWriteToFile {control}"]
    return await start_c_tor(net, scratch, options), control


async def take_new_identity(control: Path) -> None:
    host, _, port = control.read_text().strip().removeprefix("PORT=").rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        for line in b"AUTHENTICATE\r\n", b"SIGNAL NEWNYM\r\n":
            await stream.send_all(line)
            answer = await stream.receive_some(1000)
            if not answer.startswith(b"250"):
                raise RuntimeError(f"C tor answered {answer!r}")


async def milliseconds(route: Route, isolation: str) -> float:
    """From the connect to the SOCKS port to the first byte that the service's server sends."""
    return 1000 * await fetch(route, 1, isolation)


async def in_turns(routes: Sequence[Route], isolations: Sequence[str]) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for isolation in isolations:
        for route, of_route in zip(routes, times, strict=True):
            of_route.append(await milliseconds(route, isolation))
    return times


async def costs(
    clients: Sequence[Client], routes: Sequence[Route], work: Work, rounds: int
) -> tuple[list[float], list[float]]:
    """CPU seconds of each client in each round."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for client, route, of_client in zip(clients, routes, spent, strict=True):
            before = client.cpu()
            await work(route)
            await trio.sleep(SETTLE)
            of_client.append(client.cpu() - before)
    return spent


async def until_published(routes: Sequence[Route]) -> None:
    with trio.fail_after(READY):
        for route in routes:
            while True:
                try:
                    await fetch(route, 1)
                except FAILURES:
                    await trio.sleep(1)
                else:
                    break


async def first_requests(net: Testnet, scratch: Path, address: bytes, count: int) -> Line:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(count):
        of_round = scratch / f"first{number}"
        of_round.mkdir()
        async with running_torkit(net, of_round) as torkit:
            c_tor = await start_c_tor(net, of_round)  # which runs on: idle, it takes next to nothing
            await trio.sleep(AFTER_START)
            for client, of_client in zip((torkit, c_tor), times, strict=True):
                of_client.append(await milliseconds(Route(client.socks, PORT, address), ""))
    return compare("onion service: first request of a client", "ms", *times, "C tor", bar=1.0)


async def measure(sizes: Sizes) -> list[Line]:
    allow_many_files()
    say("a network, an onion service, and both clients")
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-bench-")))
        net = await stack.enter_async_context(run_testnet(scratch / "network"))
        port = await stack.enter_async_context(running_far_end())
        address = await start_service(net, scratch, port)
        torkit = await stack.enter_async_context(running_torkit(net, scratch))
        c_tor, control = await start_c_tor_with_control(net, scratch / "c-tor")
        clients = (torkit, c_tor)
        routes = [Route(client.socks, PORT, address) for client in clients]
        await until_published(routes)

        lines = []

        def note(line: Line) -> None:
            lines.append(line)
            say(table([line]).splitlines()[2])

        say("cold")
        cold: tuple[list[float], list[float]] = ([], [])
        for number in range(sizes.cold):
            os.kill(torkit.pid, signal.SIGUSR1)
            await take_new_identity(control)
            await trio.sleep(NEWNYM_REST)
            for route, of_route in zip(routes, cold, strict=True):
                of_route.append(await milliseconds(route, f"cold{number}"))
        note(compare("onion service: first byte, cold", "ms", *cold, "C tor", bar=1.0))
        say("warm, and next")
        warm = await in_turns(routes, [f"warm{number}" for number in range(sizes.warm)])
        note(compare("onion service: first byte, warm", "ms", *warm, "C tor", bar=1.0))
        joined = await in_turns(routes, [f"warm{number % sizes.warm}" for number in range(sizes.next)])
        note(compare("onion service: first byte, next request", "ms", *joined, "C tor", bar=1.0))
        say("first requests of new clients")
        note(await first_requests(net, scratch, address, sizes.first))
        say("bulk")
        for way, length, transfer in (("down", sizes.download, fetch), ("up", sizes.upload, send)):
            work: Work = partial(transfer, length=length, isolation="warm0")
            spent = await costs(clients, routes, work, sizes.rounds)
            ours, theirs = ([seconds * (1 << 30) / length for seconds in one] for one in spent)
            what = f"onion service: CPU-seconds per GiB {way}loaded"
            note(compare(what, "s/GiB", ours, theirs, "C tor", bar=0.5))
    return lines


def main() -> None:
    is_quick = "--quick" in sys.argv
    if "--ethernet" in sys.argv:
        lines = json_on_ethernet("bench_onion", *["--quick"] * is_quick)
        print(table([Line.from_json(line) for line in lines or []]))
        return
    measured = trio.run(measure, QUICK if is_quick else Sizes())
    if "--inside" in sys.argv:
        print(json.dumps([line.to_json() for line in measured]))
    else:
        print(table(measured))


if __name__ == "__main__":
    main()
