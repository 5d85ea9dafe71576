"""What is shared: one file, or a directory with all that is below it.

Everything is opened from the root downwards, one name after the other, and no link is followed: no path leads
outside, whatever others do to the directories meanwhile. What is neither a file nor a directory is not there.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from torkit.errors import StorageError

# Implementation limit: names in one directory. One that has more is an error, since a page of a part of them
# would look like all.
MAX_ENTRIES = 10_000


def not_there() -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


class Entry(NamedTuple):
    """What a directory has: a file of `size` bytes, or, where that is None, a directory."""

    name: str
    size: int | None
    is_readable: bool = True


class Found(NamedTuple):
    """A file or directory that is open, with what the system says of it. Whoever has it closes `handle`."""

    handle: int
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class Summary(NamedTuple):
    """How much is shared. `hidden` are names that begin with a dot, which `ls` does not show."""

    files: int
    directories: int
    size: int  # bytes
    hidden: int


class Tree:
    """`name` is that of the file or directory. Names of paths are as the system has them (os.fsdecode)."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError where `path`, after links, is neither a file nor a directory."""
        try:
            path = path.resolve(strict=True)
            mode = path.stat().st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise StorageError(f"{path} is neither a file nor a directory")
            self.name = path.name or "files"
            self.is_directory = stat.S_ISDIR(mode)
            place = path if self.is_directory else path.parent
            self._root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._root)

    def open(self, path: Sequence[str]) -> Found:
        """Open what is at `path`, names from the root downwards. Raises OSError."""
        if not self.is_directory and list(path) not in ([], [self.name]):
            raise not_there()
        if not path:
            if not self.is_directory:
                raise not_there()
            path = ["."]
        elif any(name in ("", ".", "..") or "/" in name or "\0" in name for name in path):
            raise not_there()
        above = self._root
        try:
            for name in path[:-1]:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(name, flags, dir_fd=above)
                self._close(above)
                above = below
            return _open_last(above, path[-1])
        finally:
            self._close(above)

    def _close(self, handle: int) -> None:
        if handle != self._root:
            os.close(handle)

    def entries(self, path: Sequence[str]) -> list[Entry]:
        """What the directory at `path` has, directories first. Raises OSError."""
        if not path and not self.is_directory:
            found = self.open([self.name])
            os.close(found.handle)
            return [Entry(self.name, found.status.st_size)]
        found = self.open(path)
        try:
            if not found.is_directory:
                raise not_there()
            with os.scandir(found.handle) as names:
                some = list(islice(names, MAX_ENTRIES + 1))
                if len(some) > MAX_ENTRIES:
                    raise OSError(errno.EFBIG, f"more than {MAX_ENTRIES} names in a directory")
                entries = [entry for one in some if (entry := _entry(one, found.handle))]
        finally:
            os.close(found.handle)
        return sorted(entries, key=lambda entry: (entry.size is not None, entry.name))

    def walk(self, path: Sequence[str] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
        """Each file at and below the directory `path`, with its size. Raises OSError."""
        waiting = [tuple(path)]
        while waiting:
            here = waiting.pop()
            for entry in self.entries(here):
                if entry.size is None:
                    waiting.append((*here, entry.name))
                else:
                    yield (*here, entry.name), entry.size

    def summarize(self) -> Summary:
        """Count everything. Raises StorageError where something cannot be read."""
        files = directories = size = hidden = 0
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            here = waiting.pop()
            try:
                entries = self.entries(here)
            except OSError as error:
                raise StorageError(f"{'/'.join((self.name, *here))}: {error.strerror}") from error
            for entry in entries:
                if not entry.is_readable:
                    name = "/".join((self.name, *here, entry.name))
                    raise StorageError(f"{name}: {os.strerror(errno.EACCES)}")
                hidden += entry.name.startswith(".")
                if entry.size is None:
                    directories += 1
                    waiting.append((*here, entry.name))
                else:
                    files += 1
                    size += entry.size
        return Summary(files, directories, size, hidden)


def _open_last(above: int, name: str) -> Found:
    """Looks before it opens: that alone makes some devices do things. A pipe is not waited for."""
    mode = os.stat(name, dir_fd=above, follow_symlinks=False).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise not_there()
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    handle = os.open(name, flags, dir_fd=above)
    found = Found(handle, os.fstat(handle))
    if not (stat.S_ISREG(found.status.st_mode) or found.is_directory):
        os.close(handle)
        raise not_there()
    return found


def _entry(one: "os.DirEntry[str]", directory: int) -> Entry | None:
    """None for what is neither a file nor a directory, and for what has gone."""
    with suppress(OSError):
        status = one.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
            size = None if stat.S_ISDIR(status.st_mode) else status.st_size
            return Entry(one.name, size, os.access(one.name, os.R_OK, dir_fd=directory, effective_ids=True))
    return None
