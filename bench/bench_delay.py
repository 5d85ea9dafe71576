"""One stream over a long link: torkit with congestion control and with fixed windows, and C tor's client.

    python -m bench.bench_delay [--quick]

It runs in a network namespace of its own, whose loopback has the MTU of a real link and acknowledges at
once. Elsewhere loopback's segments of 64 KiB, Nagle's algorithm, which relays leave on, and delayed
acknowledgements add some 40 ms to a round trip at random: congestion control takes them for a queue.

The guard tells the network another address than it listens on, and there delay_proxy.py listens. So whoever
uses that guard, and nobody else, has a link with DELAY more in its round trip. torkit's runs use the library
in this process, on a channel and circuit of their own each; those with fixed windows pretend that the
consensus says cc_alg=0.
"""

import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic

import trio

from bench.load import BLOCK, NAME, Route, fetch, send
from bench.processes import json_on_ethernet, running, running_far_end, say, start_c_tor
from bench.table import Line, compare, table
from torkit.client import open_tor
from torkit.config import load_network
from torkit.directory.directory import Directory, Relay
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.stream import Stream
from torkit.net.link.channel import Channel
from torkit.testnet import Options, Testnet, run_testnet

MIB = 1 << 20
DELAY = 0.1  # seconds more for a round trip
GUARD, AUTHORITY, EXIT = "middle1", "auth1", "exit1"
ADVERTISED = "127.99.0.1"  # the guard's address for everybody else
RELAY_EARLY = 8
FIXED_WINDOWS = {"cc_alg": 0}
WINDOWS_LENGTH = 8 * MIB
QUICK = {"length": 12 * MIB, "rounds": 1}


def run(*, is_quick: bool) -> list[Line]:
    """The lines, measured in a namespace; none, and a word about it, where the system grants none."""
    options = ["--quick"] * is_quick
    lines = json_on_ethernet("bench_delay", *options, acknowledges_at_once=True)
    return [Line.from_json(line) for line in lines or []]


async def measure(*, length: int = 32 * MIB, rounds: int = 3) -> list[Line]:
    """Download and upload of `length` bytes, everything included from the first request on.

    Fixed windows, whose rate does not depend on the length, get WINDOWS_LENGTH.
    """
    torrc = {
        GUARD: ["/Address", f"Address {ADVERTISED}"],
        AUTHORITY: ["AuthDirTestReachability 0"],  # the proxy comes after the port is known
    }
    options = Options(authorities=1, exits=1, middles=2, torrc=torrc)
    say("a long link")
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-bench-")))
        net = await stack.enter_async_context(run_testnet(scratch / "network", options))
        await stack.enter_async_context(_delayed(net))
        port = await stack.enter_async_context(running_far_end())
        c_tor = await start_c_tor(net, scratch, [f"EntryNodes ${net.relay(GUARD).fingerprint}"])
        route = Route(c_tor.socks, port)
        network = load_network(net.network_file)
        (scratch / "torkit").mkdir(mode=0o700)
        tor = await stack.enter_async_context(
            open_tor(network=network, data_dir=scratch / "torkit", spare_circuits=0)
        )
        await tor.wait_ready()
        vegas = partial(_rate_of_torkit, tor.directory, tor.directory.consensus.params, port, length)
        windows = partial(_rate_of_torkit, tor.directory, FIXED_WINDOWS, port, WINDOWS_LENGTH)
        await fetch(route, 1)  # C tor builds its circuit; torkit's runs do not count theirs
        lines = []
        for way, ours, theirs in (
            ("downloaded", download, fetch),
            ("uploaded", upload, send),
        ):
            rates: dict[str, list[float]] = {"torkit": [], "windows": [], "C tor": []}
            for _ in range(rounds):
                rates["torkit"].append(await vegas(ours))
                rates["windows"].append(await windows(ours))
                rates["C tor"].append(await _rate(length, theirs, route, length))
            what = f"{1000 * DELAY:.0f} ms more of delay, one stream {way}"
            for other, who in (("windows", "fixed windows"), ("C tor", "C tor")):
                lines.append(compare(what, "MiB/s", rates["torkit"], rates[other], who))
        return lines


@asynccontextmanager
async def _delayed(net: Testnet) -> AsyncIterator[None]:
    """The proxy in front of the guard."""
    guard = net.relay(GUARD)
    there = [ADVERTISED, str(guard.or_port), guard.address, str(guard.or_port), str(DELAY / 2)]
    async with running([sys.executable, "-m", "bench.delay_proxy", *there]):
        yield


async def _rate_of_torkit(
    directory: Directory,
    params: Mapping[str, int],
    port: int,
    length: int,
    work: Callable[[Stream, int], Awaitable[None]],
) -> float:
    """On a fresh circuit through the guard. MiB/s."""
    guard, middle, last = (_relay(directory, name) for name in (GUARD, AUTHORITY, EXIT))
    rng = random.SystemRandom()
    assert guard.address == ADVERTISED
    channel = await Channel.connect(
        guard.address, guard.or_port, rsa=guard.identity, ed25519=guard.ed25519_identity, rng=rng
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run)
        circuit = channel.open_circuit(RELAY_EARLY, CircuitSettings(params))
        await circuit.create(guard)
        await circuit.extend(middle, is_last=False)
        await circuit.extend(last, is_last=True)
        stream = circuit.begin(NAME.decode(), port)
        await stream.wait_connected()
        rate = await _rate(length, work, stream, length)
        nursery.cancel_scope.cancel()
    return rate


def _relay(directory: Directory, nickname: str) -> Relay:
    [index] = directory.indexes_of(nickname)
    relay = directory.relay_at(index)
    assert relay is not None
    return relay


async def _rate(length: int, work: Callable[..., Awaitable[object]], *args: object) -> float:
    started = monotonic()
    await work(*args)
    return length / MIB / (monotonic() - started)


async def download(stream: Stream, length: int) -> None:
    await stream.send_all(b"get %d\n" % length)
    while length:
        length -= len(await stream.receive_some())


async def upload(stream: Stream, length: int) -> None:
    await stream.send_all(b"put %d\n" % length)
    while length:
        sent = min(length, len(BLOCK))
        await stream.send_all(BLOCK[:sent])
        length -= sent
    await stream.receive_some(1)


def main() -> None:
    is_quick = "--quick" in sys.argv
    if "--inside" in sys.argv:
        lines = trio.run(partial(measure, **(QUICK if is_quick else {})))
        print(json.dumps([line.to_json() for line in lines]))
    else:
        print(table(run(is_quick=is_quick)))


if __name__ == "__main__":
    main()
