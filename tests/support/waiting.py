"""How tests wait: each look has a deadline, and none is timed."""

import time
from collections.abc import Callable

import trio


async def until(condition: Callable[[], object], *, seconds: float = 120, step: float = 0.01) -> None:
    """Look every `step` seconds of trio's clock, which may be a mock, until `condition` holds.

    Raises `trio.TooSlowError` after `seconds`.
    """
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(step)


async def until_by_the_wall(condition: Callable[[], object]) -> None:
    """The same by the clock on the wall, for tests whose mock clock stands still."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await trio.to_thread.run_sync(time.sleep, 0.01)


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """The same without trio."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
