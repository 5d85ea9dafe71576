"""What exitmap runs, as one of its modules: each exit connects to the bench's server, and that is all.

bench/exitmap.py puts it there. It imports the standard library alone, since each probe is a fork of exitmap.
"""

import os
import socket
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

STARTED, DONE, PORT, TIMES = (f"BENCH_EXITMAP_{name}" for name in ("STARTED", "DONE", "PORT", "TIMES"))


class Repeated(dict[str, Any]):
    """What exitmap looks up by exit; among the keys, which it goes through, each exit is several times."""

    def keys(self) -> Any:
        return list(self) * int(os.environ[TIMES])


def setup() -> None:
    """Called when tor has bootstrapped: notes what it all has cost, and has each exit probed TIMES times."""
    relayselector: Any = import_module("relayselector")  # exitmap's
    get_exits = relayselector.get_exits
    relayselector.get_exits = lambda *about, **more: Repeated(get_exits(*about, **more))
    times = os.times()
    spent = time.process_time() + times.children_user + times.children_system
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            spent += time.clock_gettime(~int(pid) << 3 | 2)  # clock_getcpuclockid's
    Path(os.environ[STARTED]).write_text(f"{spent} {time.monotonic()}")


def connect() -> None:
    with socket.create_connection(("127.0.0.1", int(os.environ[PORT]))):
        pass
    with open(os.environ[DONE], "a") as done:
        done.write(f"{time.monotonic()}\n")


def probe(
    exit_desc: object,
    run_python_over_tor: Callable[[Callable[[], None]], None],
    run_cmd_over_tor: object,
    **more: object,
) -> None:
    """In a process of its own, for a circuit that is built."""
    run_python_over_tor(connect)
