"""A service under load: what proofs of work it takes, how its effort follows, who is met first."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.errors import CircuitError
from torkit.hs.defence import MAX_SEED_TIME, MIN_SEED_TIME, UPDATE_INTERVAL, Puzzle, Waiting
from torkit.hs.pow import Proof, Search

BLINDED = b"b" * 32
NOW = 1_795_914_520.0


def a_puzzle(seed: int = 1) -> Puzzle:
    return Puzzle(NOW, Random(seed).randbytes, Random(seed))


def solve(puzzle: Puzzle, effort: int, nonce: bytes = bytes(16)) -> Proof:
    """What an honest client shows."""
    proof = Search(puzzle.asked, blinded=BLINDED, effort=effort, nonce=nonce).run()
    assert proof is not None
    return proof


def test_a_proof_counts_once_and_for_one_service() -> None:
    puzzle = a_puzzle()
    proof = solve(puzzle, 3)
    with pytest.raises(CircuitError, match="that is none"):
        puzzle.check(proof, b"o" * 32)
    with pytest.raises(CircuitError, match="that is none"):
        puzzle.check(proof._replace(effort=1 << 31), BLINDED)
    with pytest.raises(CircuitError, match="another seed"):
        puzzle.check(proof._replace(seed_head=b"none"), BLINDED)
    assert puzzle.check(proof, BLINDED) == 3
    with pytest.raises(CircuitError, match="used before"):
        puzzle.check(proof, BLINDED)


def test_a_seed_serves_until_the_one_after_its_successor() -> None:
    puzzle = a_puzzle()
    first = puzzle.asked
    assert NOW + MIN_SEED_TIME <= first.expires <= NOW + MAX_SEED_TIME
    proof = solve(puzzle, 1)
    assert not puzzle.update(first.expires - 1, waiting=0)
    assert puzzle.update(first.expires, waiting=0)
    second = puzzle.asked
    assert second.seed[:4] != first.seed[:4]
    assert puzzle.check(proof, BLINDED) == 1
    with pytest.raises(CircuitError, match="used before"):
        puzzle.check(proof, BLINDED)
    assert puzzle.update(second.expires, waiting=0)
    with pytest.raises(CircuitError, match="another seed"):
        puzzle.check(proof, BLINDED)


def test_the_effort_rises_while_too_many_come_and_falls_again() -> None:
    puzzle, now = a_puzzle(), NOW
    assert puzzle.suggested == 0
    for _ in range(3):
        puzzle.note_dropped(10)
        puzzle.note_met(20, others_wait=True, next_effort=10)
        now += UPDATE_INTERVAL
        puzzle.update(now, waiting=5)
    assert puzzle.suggested >= 20
    falling = [puzzle.suggested]
    while falling[-1]:
        now += UPDATE_INTERVAL
        puzzle.update(now, waiting=0)
        falling.append(puzzle.suggested)
    assert falling == sorted(falling, reverse=True)
    assert len(falling) < 20


def test_a_queue_without_anybody_met_is_no_division_by_nothing() -> None:
    """TROVE-2026-020."""
    puzzle = a_puzzle()
    puzzle.note_dropped(5)
    assert puzzle.update(NOW + UPDATE_INTERVAL, waiting=9)
    assert puzzle.suggested == 1


@pytest.mark.parametrize(
    ("dropped", "others_wait", "next_effort", "waiting", "effort"),
    [
        (None, True, 100, 1, 101),  # who has worked enough had to wait, and somebody waits still
        (None, True, 100, 0, 100),  # had to wait, and was met
        (None, True, 99, 1, 66),  # those who wait have worked too little
        (None, False, 100, 1, 66),  # nobody had to wait
        (101, False, 0, 0, 101),  # who worked more than is asked for was not met
        (100, False, 0, 0, 100),
    ],
)
def test_what_counts_as_a_load(
    dropped: int | None, others_wait: bool, next_effort: int, waiting: int, effort: int
) -> None:
    puzzle = a_puzzle()
    puzzle._suggested = 100
    puzzle.note_met(0, others_wait=others_wait, next_effort=next_effort)
    if dropped is not None:
        puzzle.note_dropped(dropped)
    puzzle.update(NOW + UPDATE_INTERVAL, waiting=waiting)
    assert puzzle._suggested == effort


def test_a_small_change_is_not_worth_a_new_descriptor() -> None:
    puzzle, now = a_puzzle(), NOW
    for effort in (100, 110):
        puzzle.note_dropped(1000)
        puzzle.note_met(effort, others_wait=True, next_effort=1000)
        now += UPDATE_INTERVAL
        is_changed = puzzle.update(now, waiting=1)
        assert is_changed == (effort == 100)
    assert puzzle.suggested == 100


@given(st.lists(st.integers(0, 10_000), max_size=200))
def test_those_who_worked_most_are_served_first_and_equals_in_order(efforts: list[int]) -> None:
    queue: Waiting[int] = Waiting(limit=1000)
    for number, effort in enumerate(efforts):
        assert queue.add(effort, float(number), number) == []
    served = [queue.take() for _ in range(len(queue))]
    assert [(-effort, item) for effort, _, item in served] == sorted(
        (-effort, number) for number, effort in enumerate(efforts)
    )


@given(st.lists(st.integers(0, 100), min_size=50, max_size=300))
def test_a_flood_drops_those_who_worked_least(efforts: list[int]) -> None:
    queue: Waiting[int] = Waiting(limit=40)
    dropped: list[int] = []
    for number, effort in enumerate(efforts):
        dropped += queue.add(effort, 0.0, number)
        assert len(queue) <= 40
    assert len(dropped) + len(queue) == len(efforts)
    assert queue.next_effort == max(-entry.rank for entry in [*queue._entries])
    assert queue.next_effort >= max(dropped, default=0) or queue.next_effort == max(efforts)
