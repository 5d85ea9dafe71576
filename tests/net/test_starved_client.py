"""A sample of a transfer's allocations fails, over real TLS: the client serves the next request all the same.

Every allocation in turn, without TLS, is tests/fast/test_allocations.py's.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fast.starved import build_allocator

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("how", ["once", "lasting"])
def test_a_client_serves_the_next_request_after_an_allocation_has_failed(tmp_path: Path, how: str) -> None:
    library = build_allocator(tmp_path)
    command = [sys.executable, "-X", "faulthandler", "-m", "net.starved_client", str(library), "0", "13", how]
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(TESTS / "support"),
    }
    ended = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 20  # so many allocations failed, each in a transfer of its own
