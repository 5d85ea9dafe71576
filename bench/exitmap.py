"""A scan by exitmap, where that program is on PATH: one tor, and a process for each circuit that is built.

exitmap runs as it is, but for a probe of ours among its modules (exitmap_probe.py) and a `tor` first on PATH
that knows the private network. It asks for all circuits at once, one for each exit; the probe makes several
of that. Its paths have two hops, of which the first is any relay.
"""

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import trio

from bench import exitmap_probe
from bench.processes import POLL_INTERVAL, READY_DEADLINE
from torkit.testnet import Testnet
from torkit.testnet.torrc import dir_authority

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
SAMPLE_INTERVAL = 0.2  # seconds
DEADLINE = 90.0  # seconds, of one scan
RUN = """
import sys
sys.path[:0] = [{source!r}]
import modules
modules.__path__.append({probe!r})
import exitmap
sys.exit(exitmap.main())
"""


def program() -> Path | None:
    """None where it is not at hand, or stem and PySocks are not, which it imports."""
    found = shutil.which("exitmap")
    return Path(found).resolve() if found and find_spec("stem") and find_spec("socks") else None


async def prepare(net: Testnet, scratch: Path) -> None:
    """Lay a `tor` for exitmap in `scratch`, and a data directory with all that it reads there.

    exitmap reads `cached-descriptors` alone. What tor fetches stands in `cached-descriptors.new` at first;
    it puts the two together when it starts again.
    """
    tor = shutil.which("tor")
    assert tor is not None
    lines = ["TestingTorNetwork 1", "GeoIPFile /dev/null", "GeoIPv6File /dev/null"]
    lines += [f"DirAuthority {dir_authority(authority)}" for authority in net.authorities]
    programs, data = scratch / "programs", scratch / "data"
    programs.mkdir(parents=True)
    data.mkdir(mode=0o700)
    (scratch / "defaults").write_text("\n".join(lines) + "\n")
    (programs / "tor").write_text(f'#!/bin/sh\nexec {tor} --defaults-torrc {scratch}/defaults "$@"\n')
    (programs / "tor").chmod(0o755)
    options = ["-f", "/dev/null", "--ignore-missing-torrc", "--DataDirectory", str(data), "--quiet"]
    command = [str(programs / "tor"), *options, "--UseMicroDescriptors", "0", "--SocksPort", "auto"]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(trio.run_process, command)
        with trio.fail_after(READY_DEADLINE):
            while _descriptors_in(data) < len(net.relays):
                await trio.sleep(POLL_INTERVAL)
        process.send_signal(signal.SIGINT)


def _descriptors_in(data: Path) -> int:
    texts = [path.read_text(errors="replace") for path in data.glob("cached-descriptors*")]
    return len({name for text in texts for name in re.findall(r"^fingerprint (.*)$", text, re.MULTILINE)})


async def scan(found: Path, scratch: Path, port: int, times: int) -> dict[str, float]:
    """A scan by exitmap, `times` times each exit; `seconds` and `cpu` are from when tor had bootstrapped."""
    about = [str(found), str(scratch), str(port), str(times)]
    ended = await trio.run_process([sys.executable, "-m", "bench.exitmap", *about], capture_stdout=True)
    result: dict[str, float] = json.loads(ended.stdout)
    return result


# --- In a process whose children are exitmap's, all of them -----------------------------------------------


def children_of(pid: int) -> Iterator[int]:
    """All that live, of all generations."""
    try:
        found = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has ended
        return
    for child in found:
        yield child
        yield from children_of(child)


def memory_of(pids: Iterator[int]) -> float:
    """MiB, resident; a page that several of them share is divided among them."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        total += sum(map(int, re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)))
    return total / 1024


def run(found: str, scratch: str, port: str, times: str) -> dict[str, float]:
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    started, done = Path(scratch, "started"), Path(scratch, "done")
    started.unlink(missing_ok=True)
    done.write_text("")
    # A tor that has a consensus connects to nobody here, since exitmap switches off circuits ahead of need;
    # exitmap would wait in vain for it to come further.
    Path(scratch, "data/cached-consensus").unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PATH": f"{scratch}/programs:{os.environ['PATH']}",
        exitmap_probe.STARTED: str(started),
        exitmap_probe.DONE: str(done),
        exitmap_probe.PORT: port,
        exitmap_probe.TIMES: times,
    }
    source, probe = Path(found).parent.parent / "src", Path(exitmap_probe.__file__)
    code = RUN.format(source=str(source), probe=str(probe.parent))
    options = ["--build-delay", "0", "--tor-dir", f"{scratch}/data", "--verbosity", "error"]
    command = [sys.executable, "-c", code, *options, probe.stem]
    most = 0.0
    has_ended = threading.Event()

    def look() -> None:
        nonlocal most
        while not has_ended.wait(SAMPLE_INTERVAL):
            most = max(most, memory_of(children_of(os.getpid())))

    looks = threading.Thread(target=look)
    looks.start()
    try:
        with suppress(subprocess.TimeoutExpired):  # a probe that got no answer: what came counts
            subprocess.run(
                command, env=environment, stdout=sys.stderr, cwd=scratch, timeout=DEADLINE, check=True
            )
    finally:
        has_ended.set()
        looks.join()
        for pid in list(children_of(os.getpid())):  # tor, its manager and probes may have outlived it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
    spent, began = map(float, started.read_text().split())
    moments = [float(line) for line in done.read_text().split()]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "ok": len(moments),
        "seconds": max(moments, default=began + DEADLINE) - began,
        "cpu": used.ru_utime + used.ru_stime - spent,
        "memory": most,
    }


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))
