"""Runs long work step by step in trio's thread, so that other tasks and all streams have their turns.

Another thread would not do: it keeps the interpreter for 5 ms at a time, or as long as one call into C takes.
"""

from typing import TypeVar

import trio

from torkit.directory.steps import Steps

T = TypeVar("T")


async def in_steps(steps: Steps[T]) -> T:
    """Run all steps, with a checkpoint after each. Returns the result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
        await trio.lowlevel.checkpoint()
