"""Counter Galois Onion, a layer and an originated cell, each beside its floor in the same process.

    pytest bench/bench_cgo.py --benchmark-enable --benchmark-group-by=param:portable

The floor is bare AES by libcrypto and bare POLYVAL over the same bytes (and, to originate, the keys'
expansion). One round is 1,000 cells: read microseconds as nanoseconds per cell.
"""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FAST = HERE.parent / "torkit" / "_fast"
CELLS, ROUNDS = 1000, 300


@pytest.fixture(scope="session")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module cgo_loops.pyx, built for this run."""
    directory = tmp_path_factory.mktemp("cgo_loops")
    source = shutil.copy(HERE / "cgo_loops.pyx", directory)
    build = [sys.executable, "-m", "Cython.Build.Cythonize", "--inplace", "--quiet", "-3", str(source)]
    flags = os.environ | {"CFLAGS": f"-O2 -I{FAST}"}
    subprocess.run(build, check=True, cwd=HERE.parent, env=flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        return importlib.import_module("cgo_loops")


@pytest.mark.parametrize("portable", [False, True], ids=["native", "portable"])
@pytest.mark.parametrize("work", ["layer_floor", "forward", "backward", "originate_floor", "originate"])
def test_cells(benchmark: Any, loops: Any, work: str, portable: bool) -> None:
    benchmark.pedantic(getattr(loops.Loops(portable), work), args=(CELLS,), rounds=ROUNDS, warmup_rounds=5)
