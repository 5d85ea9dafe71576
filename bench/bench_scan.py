"""A scan of every exit, beside C tor driven by stem: `python -m bench.bench_scan` makes these lines alone.

The peer is what exitmap does, without its process for each probe: one tor with streams left unattached, a
circuit built through the control port for each exit, a SOCKS connection attached to it. Both go by the same
paths, of one frozen directory, with AT_ONCE circuits at once, and have exits connect to one server. CPU time
is that of the scanning processes: torkit's one, and tor together with the Python that drives it.
"""

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import trio

from bench import exitmap
from bench.bench_identities import free_port
from bench.processes import (
    cpu_of,
    let_python_keep_bytecode,
    running_far_end,
    say,
    start_c_tor,
    torkit_command,
)
from bench.table import Line, compare, table
from torkit.cli.running import GC_THRESHOLD
from torkit.config import Network, load_network
from torkit.directory.directory import Relay
from torkit.directory.positions import Position
from torkit.scan.campaign import Campaign, Limits, open_scan
from torkit.scan.plan import places_in
from torkit.scan.probes import parse_probe
from torkit.scan.rows import Row
from torkit.scan.unit import load
from torkit.testnet import Options, run_testnet

SHAPE = Options(authorities=3, exits=24, middles=3)
RELAY_COUNT = SHAPE.authorities + SHAPE.exits + SHAPE.middles
AT_ONCE = 128
TIMES = 16  # that each exit is looked at in one round
TIMES_BY_EXITMAP = AT_ONCE // SHAPE.exits  # all at once
ROUNDS = 3
DEADLINE = 120.0  # seconds, of one round


# --- In the scanning processes ----------------------------------------------------------------------------


def campaign_of(unit: str, network: Network, port: int) -> tuple[Campaign, list[int]]:
    limits = Limits(at_once=AT_ONCE, rate=1e6, per_relay=AT_ONCE, timeout=30)
    probe = parse_probe(["connect", f"127.0.0.1:{port}"], allow_internal=True)
    campaign = Campaign(load(Path(unit), network.voters, time.time()), probe, network, limits=limits)
    return campaign, campaign.plan.shard(places_in(campaign.unit.directory, Position.EXIT)) * TIMES


def status_of(name: str) -> float:
    """MiB, of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


async def scan(*about: str) -> dict[str, float]:
    """torkit's: all that a shard does but the writing of rows; garbage is collected as by `torkit scan`."""
    unit, network_file, port = about
    campaign, places = campaign_of(unit, load_network(network_file), int(port))
    rows: list[Row] = []
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    start = time.process_time()
    began = time.monotonic()
    async with open_scan(campaign, rows.append) as running:
        await running.run(places)
    seconds = time.monotonic() - began
    return {
        "ok": sum(row["ok"] for row in rows),
        "count": len(places),
        "seconds": seconds,
        "cpu": time.process_time(),
        "start": start,
        "memory": status_of("VmHWM"),
    }


def drive(unit: str, network_file: str, port: str, control_port: str, socks_port: str) -> dict[str, float]:
    """C tor's, through stem: threads, since stem has nothing else."""
    import socket

    from stem.control import Controller, EventType

    campaign, places = campaign_of(unit, load_network(network_file), int(port))
    circuits: dict[str, SimpleQueue[str]] = {}
    streams: dict[int, str] = {}  # local port of a SOCKS connection, to its circuit
    ok = 0
    lock = threading.Lock()
    left = iter(enumerate(places))
    controller = Controller.from_port(port=int(control_port))
    controller.authenticate()
    controller.set_options({"__LeaveStreamsUnattached": "1", "MaxClientCircuitsPending": "1024"})
    states: SimpleQueue[Any] = SimpleQueue()

    def on_circuit(event: Any) -> None:
        if event.status in ("BUILT", "FAILED", "CLOSED"):
            with lock:
                circuits.setdefault(event.id, SimpleQueue()).put(event.status)

    def on_stream(event: Any) -> None:
        if event.status == "NEW" and event.purpose == "USER":
            states.put(event)

    def attach() -> None:
        while (event := states.get()) is not None:
            controller.attach_stream(event.id, streams[event.source_port])

    def work() -> None:
        nonlocal ok
        while True:
            with lock:
                found = next(left, None)
            if found is None:
                return
            _, place = found
            relay = campaign.unit.directory.relay_at(place)
            assert relay is not None
            is_ok = probe(campaign.plan.path(relay))
            with lock:
                ok += is_ok

    def probe(path: tuple[Relay, ...]) -> bool:
        try:
            circuit = controller.extend_circuit("0", [relay.fingerprint for relay in path])
            with lock:
                queue = circuits.setdefault(circuit, SimpleQueue())
            if queue.get(timeout=30) != "BUILT":
                return False
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                streams[sock.getsockname()[1]] = circuit
                sock.settimeout(30)
                sock.connect(("127.0.0.1", int(socks_port)))
                sock.sendall(b"\x04\x01" + int(port).to_bytes(2, "big") + bytes([127, 0, 0, 1, 0]))
                answer = sock.recv(8, socket.MSG_WAITALL)
            controller.close_circuit(circuit)
        except Exception:
            return False
        return answer[1:2] == b"\x5a"

    controller.add_event_listener(on_circuit, EventType.CIRC)
    controller.add_event_listener(on_stream, EventType.STREAM)
    threading.Thread(target=attach, daemon=True).start()
    began = time.monotonic()
    workers = [threading.Thread(target=work, daemon=True) for _ in range(AT_ONCE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE)
    seconds = time.monotonic() - began
    return {
        "ok": ok,
        "count": len(places),
        "seconds": seconds,
        "cpu": time.process_time(),
        "memory": status_of("VmHWM"),
    }


# --- The bench --------------------------------------------------------------------------------------------


async def child(*arguments: object) -> dict[str, float]:
    with trio.fail_after(2 * DEADLINE):
        ended = await trio.run_process(
            [sys.executable, "-m", "bench.bench_scan", "--child", *map(str, arguments)],
            capture_stdout=True,
        )
    found: dict[str, float] = json.loads(ended.stdout)
    return found


async def lines(rounds: int = ROUNDS) -> list[Line]:
    let_python_keep_bytecode()
    ours: list[dict[str, float]] = []
    by_stem: list[dict[str, float]] = []
    by_exitmap: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="torkit-bench-") as directory:
        scratch = Path(directory)
        async with run_testnet(options=SHAPE) as net, running_far_end() as port:
            command = [*torkit_command(net, scratch / "data"), "cache", "export", str(scratch / "units")]
            unit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            control = await free_port()
            c_tor = await start_c_tor(net, scratch, [f"ControlPort {control}"])
            if (program := exitmap.program()) is not None:
                await exitmap.prepare(net, scratch / "exitmap")
            for number in range(rounds):
                say(f"a scan of {SHAPE.exits} exits, {TIMES} times each, round {number + 1}")
                ours.append(await child("torkit", unit, net.network_file, port))
                before = cpu_of(c_tor.pid)
                their = await child("stem", unit, net.network_file, port, control, c_tor.socks[1])
                their["cpu"] += cpu_of(c_tor.pid) - before
                their["memory"] += c_tor.peak_memory()
                by_stem.append(their)
                if program is not None:
                    their = await exitmap.scan(program, scratch / "exitmap", port, TIMES_BY_EXITMAP)
                    by_exitmap.append({**their, "count": SHAPE.exits * TIMES_BY_EXITMAP})
    note = (
        f"{SHAPE.exits} exits of {RELAY_COUNT} relays, each {TIMES} times, "
        f"{AT_ONCE} circuits at once; ok: {_share(ours)} of ours, {_share(by_stem)} of theirs"
    )
    found = beside("start included", ours, by_stem, "C tor + stem", note)
    if by_exitmap:
        note = (
            f"exitmap looks {TIMES_BY_EXITMAP} times at each exit, all at once, by two hops; "
            f"ok: {_share(by_exitmap)}"
        )
        started = [{**one, "cpu": one["cpu"] - one["start"]} for one in ours]
        found += beside("without starts", started, by_exitmap, "exitmap", note)
    return found


def beside(
    what: str, ours: list[dict[str, float]], theirs: list[dict[str, float]], peer: str, note: str
) -> list[Line]:
    def each(found: list[dict[str, float]], name: str) -> list[float]:
        return [one[name] for one in found]

    def per_probe(found: list[dict[str, float]]) -> list[float]:
        return [1000 * one["cpu"] / max(one["ok"], 1) for one in found]

    def speed(found: list[dict[str, float]]) -> list[float]:
        return [max(one["ok"], 1) / one["seconds"] for one in found]

    cpu = compare(f"scan, CPU per probe, {what}", "ms", per_probe(ours), per_probe(theirs), peer, bar=0.1)
    cpu.note = note
    speeds = compare("scan, exits", "1/s", speed(ours), speed(theirs), peer)
    speeds.bar, speeds.ratio, speeds.at_least = 40.0, None, True
    memory = compare("scan, most memory", "MiB", each(ours, "memory"), each(theirs, "memory"), peer)
    memory.bar, memory.ratio = 64.0, None
    for line in (cpu, speeds, memory):
        line.is_done = all(one["ok"] == one["count"] for one in ours)
    return [cpu, speeds, memory]


def _share(found: list[dict[str, float]]) -> str:
    return f"{sum(one['ok'] for one in found):.0f}/{sum(one['count'] for one in found):.0f}"


def main() -> None:
    match sys.argv[1:]:
        case ["--child", "torkit", *arguments]:
            print(json.dumps(trio.run(scan, *arguments)))
        case ["--child", "stem", *arguments]:
            print(json.dumps(drive(*arguments)))
        case ["--json"]:
            print(json.dumps([line.__dict__ for line in trio.run(lines)]))
        case _:
            print(table(trio.run(lines)))


if __name__ == "__main__":
    main()
