"""Runs long work step by step in trio's thread, so that other tasks and all streams have their turns.

Another thread would not help: it keeps the interpreter for 5 ms at a time, or for as long as one call into C.
"""

from typing import TypeVar

import trio
from trio.lowlevel import RunVar

from torkit.directory.steps import Steps

T = TypeVar("T")

# Taken for each step: else the steps of several documents would make one turn long.
_turn: RunVar[trio.Lock] = RunVar("torkit step")


async def in_steps(steps: Steps[T]) -> T:
    """Run all steps, at most one step of all documents in each turn of the loop. Returns the result."""
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
