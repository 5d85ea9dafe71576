"""Two pipes in the places of stdin and stdout. No tests here."""

import fcntl
import os
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Ends:
    """The test writes `stdin` and reads `stdout`; the code under test has the other ends."""

    source: int
    stdin: int
    stdout: int
    sink: int

    def __post_init__(self) -> None:
        self._open = {self.source, self.stdin, self.stdout, self.sink}

    def close(self, descriptor: int) -> None:
        """Once: a moment later its number may be another file's, as of a thread that is left behind."""
        self._open.remove(descriptor)
        os.close(descriptor)

    def close_all(self) -> None:
        for descriptor in list(self._open):
            self.close(descriptor)


@contextmanager
def open_ends() -> Iterator[Ends]:
    ends = Ends(*os.pipe(), *os.pipe())
    try:
        yield ends
    finally:
        ends.close_all()


def waiting_in(descriptor: int) -> int:
    """How many bytes a pipe holds."""
    [count] = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(count)
