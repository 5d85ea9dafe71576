"""Counter Galois Onion, a layer and an originated cell, each beside its floor in the same process.

    python -m pytest bench/bench_cgo.py --benchmark-enable --benchmark-group-by=param:portable

The floor is bare AES by libcrypto and bare POLYVAL over the same bytes (and, to originate, the keys'
expansion). One round is 1,000 cells: read microseconds as nanoseconds per cell.
"""

from collections.abc import Callable
from typing import Any

import pytest

CELLS, ROUNDS = 1000, 300


@pytest.fixture(scope="session")
def loops(build: Callable[[str], Any]) -> Any:
    return build("cgo_loops")


@pytest.mark.parametrize("portable", [False, True], ids=["native", "portable"])
@pytest.mark.parametrize("work", ["layer_floor", "forward", "backward", "originate_floor", "originate"])
def test_cells(benchmark: Any, loops: Any, work: str, portable: bool) -> None:
    benchmark.pedantic(getattr(loops.Loops(portable), work), args=(CELLS,), rounds=ROUNDS, warmup_rounds=5)
