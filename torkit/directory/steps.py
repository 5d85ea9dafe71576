"""Long work in steps of a few milliseconds, between which other tasks may run.

A function that works in steps is a generator: each `yield` ends a step, `return` brings the result.
"""

import hashlib
from collections.abc import Generator
from typing import TypeVar

# Implementation limits.

DIGEST_STEP = 1 << 19  # bytes; SHA3-256, the slowest here, takes some 2 ms for them

T = TypeVar("T")
Steps = Generator[None, None, T]


def complete(steps: Steps[T]) -> T:
    """Run all steps at once. Returns the result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


def digest(algorithm: str, data: bytes | memoryview) -> Steps[bytes]:
    """The digest of `data` by one of hashlib's algorithms."""
    hashed = hashlib.new(algorithm)
    view = memoryview(data)
    for at in range(0, len(view), DIGEST_STEP):
        hashed.update(view[at : at + DIGEST_STEP])
        yield
    return hashed.digest()
