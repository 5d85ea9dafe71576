"""The whole table: `python -m bench`, or `make bench`. Writes results.json and the plots beside this file.

`--quick` takes small sizes and keeps the files as they are: for a look while something is being changed.
"""

import json
import os
import platform
import ssl
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import trio

from bench import bench_delay, bench_doors, bench_network, bench_pow
from bench.plots import draw
from bench.processes import GEOIP_MAPS, let_python_keep_bytecode, say
from bench.table import Line, compare, table

HERE = Path(__file__).parent
FLOOR = "libcrypto"
BEGIN, END = "<!-- made by `make bench` -->\n", "<!-- end -->"
LAYERS = {
    "tor1": "tor1 on all hops",
    "cgo-exit": "CGO at the exit",
    "cgo-all": "CGO on all hops",
    "onion": "tor1 to an onion service",
}


def run_pytest_benchmarks() -> dict[str, dict[str, Any]]:
    """The in-process benches, in a process of their own; by name, as pytest-benchmark writes them."""
    with tempfile.TemporaryDirectory(prefix="torkit-bench-") as scratch:
        output = Path(scratch) / "benchmarks.json"
        files = [str(HERE / "bench_core.py"), str(HERE / "bench_cgo.py")]
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "--benchmark-enable",
            "--benchmark-timer=time.process_time",
        ]
        command = [sys.executable, "-m", "pytest", *options, f"--benchmark-json={output}", *files]
        result = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(result.stdout + result.stderr)
        return {benchmark["name"]: benchmark for benchmark in json.loads(output.read_text())["benchmarks"]}


def lines_of(module: str) -> list[Line]:
    """Run a bench in a process of its own, so that memory and times are of a fresh heap."""
    command = [sys.executable, "-m", f"bench.{module}", "--json"]
    environment = os.environ | {"PYTHONPATH": "tests/support"}
    result = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(result.stdout + result.stderr)
    return [Line(**line) for line in json.loads(result.stdout)]


def core_lines(benchmarks: dict[str, dict[str, Any]]) -> list[Line]:
    lines = []
    for way in "inbound", "outbound":
        for layers, described in LAYERS.items():
            benchmark = benchmarks[f"test_{way}[{layers}]"]
            extra = benchmark["extra_info"]
            ours = [1e9 * seconds / extra["cells"] for seconds in benchmark["stats"]["data"]]
            floor = [1e9 * seconds for seconds in extra["floor"]]
            lines.append(compare(f"_fast {way}, {described}", "ns/cell", ours, floor, FLOOR, bar=1.3))
    # A round of bench_cgo is 1,000 cells.
    nanoseconds = {name: 1e6 * benchmark["stats"]["median"] for name, benchmark in benchmarks.items()}
    for work, floor_name, what, bar in (
        ("backward", "layer_floor", "CGO, one layer", 250.0),
        ("originate", "originate_floor", "CGO, originate", 500.0),
    ):
        ours_ns, floor_ns = (nanoseconds[f"test_cells[{name}-native]"] for name in (work, floor_name))
        lines.append(Line(what, "ns/cell", ours_ns, floor_ns, "AES + POLYVAL", bar=bar))
    return lines


def versions() -> dict[str, str]:
    tor = subprocess.run(["tor", "--version"], capture_output=True, text=True, check=True).stdout
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout
    maps = [str(path) for path in GEOIP_MAPS.values() if path.exists()]
    return {
        "torkit": commit.strip(),
        "tor": tor.splitlines()[0].removesuffix("."),
        "country maps of C tor": " ".join(maps) or "none",
        "openssl": ssl.OPENSSL_VERSION,
        "python": f"{platform.python_version()}{', of the system' if sys.base_prefix == '/usr' else ''}",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {platform.platform()}",
    }


def with_latest_run(readme: str, report: str) -> str:
    """The README with another report between its two marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{report}\n{end}{after}"


def main() -> None:
    is_quick = "--quick" in sys.argv
    let_python_keep_bytecode()
    started = monotonic()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    load = os.getloadavg()[0]
    say("the compiled core")
    lines = core_lines(run_pytest_benchmarks())
    say("the directory of a full-size network")
    lines += lines_of("bench_directory")
    say("what keeps a stream waiting")
    lines += lines_of("bench_turns")
    say("proof of work")
    lines += bench_pow.lines()
    sizes = bench_network.QUICK if is_quick else bench_network.Sizes()
    network_lines, curves = trio.run(bench_network.measure, sizes)
    doors = bench_doors.run(is_quick=is_quick)
    on_ethernet = bench_network.on_ethernet(is_quick=is_quick)
    lines = [*network_lines, *on_ethernet, *doors, *lines, *bench_delay.run(is_quick=is_quick)]
    about = {"date": date, "seconds": round(monotonic() - started), "load_before": load, **versions()}
    report = "\n".join([table(lines), "", *(f"- {key}: {value}" for key, value in about.items())])
    print(report)
    if not is_quick:
        (HERE / "README.md").write_text(with_latest_run((HERE / "README.md").read_text(), report))
        results = {**about, "lines": [line.to_json() for line in lines], "curves": curves}
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        draw(curves, HERE)


if __name__ == "__main__":
    main()
