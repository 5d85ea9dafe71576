"""Runs long work step by step in trio's thread, so that other tasks and all streams have their turns.

Another thread would not do: it keeps the interpreter for 5 ms at a time, or as long as one call into C takes.
"""

from typing import TypeVar

import trio
from trio.lowlevel import RunVar

from torkit.directory.steps import Steps

T = TypeVar("T")

# Taken for each step: the steps of several documents in one turn would else make it a long one.
_turn: RunVar[trio.Lock] = RunVar("torkit step")


async def in_steps(steps: Steps[T]) -> T:
    """Run all steps, at most one of anybody's in each turn of the loop. Returns the result."""
    try:
        turn = _turn.get()
    except LookupError:
        turn = trio.Lock()
        _turn.set(turn)
    while True:
        async with turn:
            try:
                next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result
