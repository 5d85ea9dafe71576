"""Two pipes in the places of stdin and stdout. No tests here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Ends:
    """The test writes `stdin` and reads `stdout`; the code under test has the other ends."""

    source: int
    stdin: int
    stdout: int
    sink: int


@contextmanager
def open_ends() -> Iterator[Ends]:
    ends = Ends(*os.pipe(), *os.pipe())
    yield ends
    for descriptor in (ends.stdin, ends.source, ends.stdout, ends.sink):
        with suppress(OSError):
            os.close(descriptor)
