"""What is under way, for whoever shares it, and what has been fetched as a whole."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torkit.sizes import to_size

# Implementation limits.
MAX_NEWS = 10  # lines that wait to be said; of further ones only the number
MAX_PIECES = 1000  # pieces of one file, fetched apart, that are remembered


class Transfer:
    """One answer to a visitor, or one upload: `done` bytes of `total`, which is None where nobody knows."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self.done = 0

    def rename(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {to_size(self.total)}"
        return f"{self.name}: {to_size(self.done)}{of}"


class Transfers:
    """All of them. `news` are lines to say, oldest first; `silenced` is how many more there have been."""

    def __init__(self) -> None:
        self.active: list[Transfer] = []
        self.news: deque[str] = deque()
        self.silenced = 0

    @contextmanager
    def under_way(self, name: str, total: int | None) -> Iterator[Transfer]:
        """A transfer that lasts as long as the block, and is cut where an exception ends that."""
        transfer = Transfer(name, total)
        self.active.append(transfer)
        try:
            yield transfer
        except BaseException:
            self.tell(f"{transfer}, then cut")
            raise
        finally:
            self.active.remove(transfer)

    def tell(self, line: str) -> None:
        if len(self.news) < MAX_NEWS:
            self.news.append(line)
        else:
            self.silenced += 1


class Piece(NamedTuple):
    """Bytes of a file, from `start` up to, and without, `end`."""

    start: int
    end: int


class Pieces:
    """Which bytes of one file have been fetched."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []  # in order, apart from each other

    def add(self, start: int, end: int) -> None:
        """Note bytes from `start` up to `end`. Where too many pieces are apart, they are forgotten."""
        apart = []
        for piece in self._pieces:
            if piece.end < start or piece.start > end:
                apart.append(piece)
            else:
                start, end = min(start, piece.start), max(end, piece.end)
        if start < end and len(apart) < MAX_PIECES:
            self._pieces = sorted([*apart, Piece(start, end)])

    def is_whole(self, size: int) -> bool:
        return size == 0 or self._pieces == [(0, size)]
