"""The directory of a full-size network: to read it, to hold it, to bring it up to date, to choose from it.

    PYTHONPATH=tests/support python -m bench.bench_directory          a table; --json is for `make bench`

Times are CPU time of this process. The public network's consensus of 2022 is used where the project's shared
data are at hand, else its line is left out; the rest is on the synthetic network of
tests/support/network_docs.py.
"""

import gc
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, process_time, time

import network_docs as nd

from bench.processes import let_python_keep_bytecode
from bench.table import Line, table
from torkit.directory.authorities import parse_certificates
from torkit.directory.cache import Cache
from torkit.directory.consensus import parse_consensus, read_consensus
from torkit.directory.diff import apply_diff
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs, parse_microdesc
from torkit.directory.steps import complete
from torkit.directory.trust import verify
from torkit.paths.choose import choose_path
from torkit.paths.constraints import Constraints
from torkit.testing.directory import FakeAuthority, RelayDoc, consensus_diff, encode_microdescs
from torkit.testing.directory.authority import HOUR

DATA_2022 = Path(__file__).parents[2] / "shared" / "data" / "public-network-2022"
NOW_2022 = 1668853800  # 2022-11-19 10:30:00 UTC, within the consensus's hour
ROUNDS = 9
PATHS = 2000  # in one round


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call, with no garbage of earlier ones to collect in it."""
    gc.collect()
    start = process_time()
    work()
    return process_time() - start


def in_turns(ours: Callable[[], object], other: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Milliseconds of each, round by round, after one of each that does not count."""
    pairs = [(1e3 * seconds(ours), 1e3 * seconds(other)) for _ in range(ROUNDS + 1)][1:]
    return [a for a, _ in pairs], [b for _, b in pairs]


def line(
    what: str, ours: list[float], other: list[float], other_is: str, bar: float | None, note: str = ""
) -> Line:
    """Medians in milliseconds; the bar is one of time, not of the ratio."""
    runs = {"ours": ours, "other": other}
    return Line(what, "ms", median(ours), median(other), other_is, bar=bar, runs=runs, note=note)


def consensus_of_2022() -> Line:
    """Parse and verify, as a fetched consensus is; beside stem, which parses only."""
    from stem.descriptor import parse_file

    text = (DATA_2022 / "microdesc-consensus").read_bytes()
    keys = (DATA_2022 / "authority-certs").read_bytes().replace(b"\r\n", b"\n")
    certificates = parse_certificates(keys)
    trusted = {one.identity: one.identity.hex() for one in certificates}

    def ours() -> None:
        assert len(verify(parse_consensus(text), certificates, trusted, NOW_2022)) == 8

    def stem() -> None:
        kind = "network-status-microdesc-consensus-3 1.0"
        assert len(list(parse_file(io.BytesIO(text), kind, validate=False))) == 6088

    what = "consensus of 2022, 6,088 relays: parse, verify 8 signatures"
    return line(what, *in_turns(ours, stem), "stem, parse alone", 60.0)


def hour_later(text: bytes) -> bytes:
    """What the next hour brings, roughly: every other bandwidth measured anew, every hundredth relay gone."""
    rng = Random(1)
    head, *entries = text.split(b"\nr ")
    kept = [
        re.sub(rb"w Bandwidth=\d+", b"w Bandwidth=%d" % rng.randrange(20, 20_000), entry)
        if rng.random() < 0.5
        else entry
        for entry in entries[:-1]
        if rng.random() > 0.01
    ]
    return b"\nr ".join([head.replace(b"valid-after 20", b"valid-after 21"), *kept, entries[-1]])


def one_hour_diff(text: bytes) -> Line:
    """Beside the two digests that the format asks for: no client can be faster."""
    target = hour_later(text)
    diff = consensus_diff(text, target)

    def ours() -> None:
        assert apply_diff(text, diff) == target

    def digests() -> None:
        hashlib.sha3_256(text).digest()
        hashlib.sha3_256(target).digest()

    relays, commands = text.count(b"\nr "), len(re.findall(rb"(?m)^[0-9,$]+[acd]$", diff))
    note = f"{commands} commands, {len(diff)} bytes, made by the tests' generator, for {relays} relays"
    return line("consensus diff of one hour", *in_turns(ours, digests), "two SHA3-256", 30.0, note)


def microdescs(texts: bytes, wanted: set[bytes]) -> list[Line]:
    """Found, hashed and held under their digests, which is all until a relay is looked at; then each."""

    def ours() -> None:
        assert len(Microdescs().add(texts, wanted, nd.NOW)) == len(wanted)

    def digests() -> None:
        hashlib.sha256(texts).digest()

    held = Microdescs()
    held.add(texts, wanted, nd.NOW)
    each = [
        1e6 * seconds(lambda: [parse_microdesc(one) for one in held.values()]) / len(held) for _ in range(3)
    ]
    return [
        line("10,000 microdescriptors: find, hash, keep", *in_turns(ours, digests), "one SHA-256", 60.0),
        Line("a microdescriptor, when its relay is looked at", "us", median(each), runs={"ours": each}),
    ]


def paths(directory: Directory) -> list[Line]:
    """Guard, middle and exit for port 443, weighted by bandwidth, no two of a family or network."""
    rng, constraints = Random(1), Constraints(port=443)
    first = 1e3 * seconds(lambda: choose_path(directory, constraints, rng))

    def many() -> None:
        for _ in range(PATHS):
            choose_path(directory, constraints, rng)

    many()  # relays become objects when first chosen
    each = [1e6 * seconds(many) / PATHS for _ in range(ROUNDS)]
    return [
        Line("the first path of a new directory", "ms", first),
        Line("a weighted path of 3 hops", "us", median(each), bar=100.0, runs={"ours": each}),
    ]


def memory(cache: Path) -> Line:
    """What a cached directory adds to a process, from before it is read to after the first path."""
    script = "from bench.bench_directory import report_memory; report_memory()"
    command = [sys.executable, "-c", script, str(cache)]
    added = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)
    ]
    size = sum(path.stat().st_size for path in cache.iterdir()) / 2**20
    note = f"the texts alone are {size:.1f} MiB"
    return Line(
        "resident memory that 10,000 relays add",
        "MiB",
        median(added),
        size,
        "its files",
        bar=20.0,
        runs={"ours": added},
        note=note,
    )


def report_memory() -> None:
    """In a process of its own: print by how many MiB the directory in argv[1] makes it larger."""
    cache = Cache(Path(sys.argv[1]))
    parse_certificates(nd.authorities(1)[0].certificate())  # the libraries are not the directory's
    before = resident()
    consensus, held = cache.load_consensus(), cache.load_microdescs()
    assert consensus
    assert held
    directory = Directory(complete(read_consensus(consensus)), held)
    choose_path(directory, Constraints(port=443), Random(1))
    print(resident() - before)


def resident() -> float:
    """This process's resident memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def start(relays: Sequence[RelayDoc], authorities: Sequence[FakeAuthority]) -> Line:
    """From nothing to a chosen path, the last step before a circuit is built; beside the least start."""
    now = int(time())
    with tempfile.TemporaryDirectory(prefix="torkit-bench-") as scratch:
        cache, network = Cache(Path(scratch)), Path(scratch) / "network.toml"
        consensus = parse_consensus(nd.consensus(relays, authorities, valid_after=now - 60))
        cache.save_consensus(consensus)
        current = [replace(one, published=now - HOUR, expires=now + HOUR) for one in authorities]
        cache.save_certificates(parse_certificates(b"".join(one.certificate() for one in current)))
        held = Microdescs()
        held.add(encode_microdescs(relays), {digest for digest in consensus.relays.digests if digest}, now)
        cache.save_microdescs(held, now)
        lines = (
            f'"{one.nickname} orport=1 v3ident={one.v3ident.hex()} 127.0.0.1:1 {number:040X}"'
            for number, one in enumerate(authorities)
        )
        network.write_text(f"authorities = [{', '.join(lines)}]")
        torkit = [sys.executable, "-m", "torkit", "--network", str(network), "--data-dir", scratch]

        def run(*arguments: str) -> float:
            started = perf_counter()
            subprocess.run([*torkit, *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL)
            return perf_counter() - started

        pairs = [(run("choose-path"), run("--version")) for _ in range(ROUNDS + 1)][1:]
    ours, least = [a for a, _ in pairs], [b for _, b in pairs]
    what = "process start to a path, warm cache of 10,000 relays"
    runs = {"ours": ours, "other": least}
    return Line(what, "s", median(ours), median(least), "torkit --version", bar=0.5, runs=runs)


def measure() -> list[Line]:
    relays, authorities = nd.full_size(), nd.authorities(9)
    text, texts = nd.consensus(relays, authorities), encode_microdescs(relays)
    consensus = parse_consensus(text)
    lines = []
    if DATA_2022.is_dir():
        lines.append(consensus_of_2022())
        text_2022 = (DATA_2022 / "microdesc-consensus").read_bytes()
    certificates = parse_certificates(b"".join(one.certificate() for one in authorities))
    trusted = {one.v3ident: one.nickname for one in authorities}
    synthetic = [
        1e3 * seconds(lambda: verify(parse_consensus(text), certificates, trusted, nd.NOW))
        for _ in range(ROUNDS)
    ]
    lines.append(
        Line(
            "synthetic consensus, 10,000 relays: parse, verify 9 signatures",
            "ms",
            median(synthetic),
            runs={"ours": synthetic},
        )
    )
    lines.append(one_hour_diff(text_2022 if DATA_2022.is_dir() else text))
    lines += microdescs(texts, {digest for digest in consensus.relays.digests if digest})
    with tempfile.TemporaryDirectory(prefix="torkit-bench-") as scratch:
        cache = Cache(Path(scratch))
        cache.save_consensus(consensus)
        held = Microdescs()
        held.add(texts, {digest for digest in consensus.relays.digests if digest}, nd.NOW)
        cache.save_microdescs(held, nd.NOW)
        lines.append(memory(Path(scratch)))
        lines += paths(Directory(consensus, held))
    lines.append(start(relays, authorities))
    return lines


if __name__ == "__main__":
    let_python_keep_bytecode()
    measured = measure()
    print(json.dumps([vars(one) for one in measured]) if "--json" in sys.argv else table(measured))
