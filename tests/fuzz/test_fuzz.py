"""Valid documents with changes: parsers accept or raise DocumentError, and what they accept is consistent.

So are stories of linked circuits, and of a channel: whatever relays and a user do, what comes of it is due.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from fuzz.channel import check_channel
from fuzz.channel_stories import random_story as random_channel_story
from fuzz.linked import check_story
from fuzz.linked_stories import random_story
from fuzz.targets import TARGETS, mutate, run
from hypothesis import given, settings
from hypothesis import strategies as st

RUNS = 400  # of the coverage-guided harness here; CONTRIBUTING.md says how to let it run for long


@pytest.mark.parametrize("name", TARGETS)
def test_the_valid_document_is_accepted(name: str) -> None:
    for valid in (TARGETS[name].valid, *TARGETS[name].others):
        assert run(TARGETS[name], valid)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_documents(name: str) -> None:
    @settings(deadline=None, max_examples=TARGETS[name].examples)
    @given(seed=st.integers(0, 2**32), changes=st.integers(1, 4))
    def change(seed: int, changes: int) -> None:
        rng = Random(seed)
        text = TARGETS[name].valid
        for _ in range(changes):
            text = mutate(text, rng)
        run(TARGETS[name], text)

    change()


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(name: str, data: bytes) -> None:
    run(TARGETS[name], data)


@pytest.mark.parametrize("seed", range(40))
def test_stories_of_linked_circuits_most_of_which_is_legal(seed: int) -> None:
    """Python's own random numbers: a seed that fails is the same story everywhere."""
    check_story(random_story(Random(seed), 60))


@pytest.mark.parametrize("seed", range(20))
def test_stories_of_a_channel_most_of_which_is_legal(seed: int) -> None:
    check_channel(random_channel_story(Random(seed), 60))


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
@pytest.mark.parametrize("name", ["microdesc", "server-descriptor"])
def test_the_coverage_guided_harness_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuzz", name, str(tmp_path), f"-runs={RUNS}", "-seed=1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Done {RUNS} runs" in done.stderr
    assert len(list(tmp_path.iterdir())) > 1  # it has found more code than the first document covers
