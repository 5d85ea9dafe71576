"""Every allocation of a transfer fails in turn: one circuit or channel ends, and no foreign byte is sent.

Then every allocation of a handshake. Both run in processes of their own (starved.py,
starved_handshakes.py), on an allocator that counts (failing_malloc.c).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fast.starved import build_allocator

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def allocator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_allocator(tmp_path_factory.mktemp("allocator"))


@pytest.mark.parametrize("how", ["once", "lasting"])
@pytest.mark.parametrize(
    ("hops", "kind", "step", "least"),
    [
        ("windows,windows,windows", "plain", 1, 70),
        ("congestion,congestion,cgo", "plain", 2, 20),
        ("windows,windows,windows", "onion", 2, 90),
        ("congestion,congestion,congestion", "linked", 1, 100),
    ],
)
def test_an_allocation_that_fails_ends_one_circuit_or_channel(
    allocator: Path, hops: str, kind: str, step: int, least: int, how: str
) -> None:
    told = run_starved(allocator, "fast.starved", hops, kind, "0", str(step), how)
    assert int(told) >= least  # so many allocations failed, each in a transfer of its own


def test_an_allocation_that_fails_in_a_handshake_is_told_as_that(allocator: Path) -> None:
    assert int(run_starved(allocator, "fast.starved_handshakes")) >= 200


def run_starved(allocator: Path, module: str, *args: str) -> str:
    """Run `module` on the allocator; what it prints."""
    command = [sys.executable, "-X", "faulthandler", "-m", module, str(allocator), *args]
    environment = os.environ | {
        "LD_PRELOAD": str(allocator),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(HERE.parent / "support"),
    }
    ended = subprocess.run(
        command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False
    )
    # Python writes there what a part of the core that cannot raise has failed to do.
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout
