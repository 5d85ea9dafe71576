"""Proof of work: our solver of Equi-X beside C tor's, challenge by challenge in turns.

    TOR_SOURCE=/path/to/tor-0.4.9.11 .venv/bin/python -m bench.bench_pow

TOR_SOURCE is C tor's unpacked source; its solver is built for this run. Without it, ours is measured alone.
"""

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

from bench.table import Line, compare, table
from torkit._fast.equix import SOLUTION_LEN, Solver

ROUNDS = {"compiled": 300, "interpreted": 15}
BARS = {"compiled": 1.3, "interpreted": None}

# Of C tor's equix.h.
CTX_SOLVE, CTX_MUST_COMPILE = 1, 2
MAX_SOLUTIONS = 8

Solve = Callable[[bytes], object]


class SolutionsOfTor(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_uint),
        ("flags", ctypes.c_int),
        ("solutions", ctypes.c_uint8 * (MAX_SOLUTIONS * SOLUTION_LEN)),
    )


def build_equix_of_tor(source: Path, directory: Path) -> ctypes.CDLL:
    equix = source / "src" / "ext" / "equix"
    headers = [f"-I{equix / folder}" for folder in ("include", "src", "hashx/include", "hashx/src")]
    files = [file for folder in ("src", "hashx/src") for file in (equix / folder).glob("*.c")]
    defines = ["-DHASHX_SIZE=8", "-DHASHX_STATIC", "-DEQUIX_SHARED"]
    library = directory / "equix.so"
    subprocess.run(["cc", "-O2", "-fPIC", "-shared", *defines, *headers, "-o", library, *files], check=True)
    return ctypes.CDLL(str(library))


def solver_of_tor(library: ctypes.CDLL, how: str) -> Solve:
    library.equix_alloc.restype = ctypes.c_void_p
    flags = CTX_SOLVE | (CTX_MUST_COMPILE if how == "compiled" else 0)
    context = ctypes.c_void_p(library.equix_alloc(flags))
    found = SolutionsOfTor()

    def solve(challenge: bytes) -> object:
        return library.equix_solve(context, challenge, ctypes.c_size_t(len(challenge)), ctypes.byref(found))

    return solve


def milliseconds(solve: Solve, challenge: bytes) -> float:
    started = process_time()
    solve(challenge)
    return 1e3 * (process_time() - started)


def lines() -> list[Line]:
    source = os.environ.get("TOR_SOURCE")
    with tempfile.TemporaryDirectory(prefix="torkit-bench-") as scratch:
        library = build_equix_of_tor(Path(source), Path(scratch)) if source else None
    return [line(how, library) for how in ROUNDS]


def line(how: str, library: ctypes.CDLL | None) -> Line:
    what = f"proof of work, one challenge solved, {how}"
    solve = Solver(portable=how == "interpreted").solve
    solve_as_tor = solver_of_tor(library, how) if library else None
    ours, theirs = [], []
    for number in range(ROUNDS[how]):
        challenge = b"challenge %d" % number
        ours.append(milliseconds(solve, challenge))
        if solve_as_tor:
            theirs.append(milliseconds(solve_as_tor, challenge))
    if theirs:
        return compare(what, "ms of CPU", ours, theirs, "C tor", bar=BARS[how])
    return Line(what, "ms of CPU", median(ours), runs={"ours": ours})


if __name__ == "__main__":
    print(table(lines()))
