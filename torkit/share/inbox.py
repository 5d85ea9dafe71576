"""Where uploads go: a directory in which a file appears only when it is whole, and nothing is overwritten.

Until then it has a name that nobody can guess, and is removed where its upload ends before. What is left of a
process that was killed, the next one removes.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torkit.errors import StorageError

# Implementation limits.
MAX_NAME_LEN = 200  # bytes of a visitor's name for a file; file systems take 255
MAX_SAME_NAMES = 1000  # files of one name
MIN_FILE_SIZE = 4096  # bytes that a file counts as at least: it takes a block, and a place in the directory
FREE_KEPT = 256 << 20  # bytes of the disk that are left for others

UNNAMED = "unnamed"
UNFINISHED = ".torkit-upload-"  # begins the name of a file that has not come as a whole


class InboxFull(Exception):
    """The inbox takes no more; the message says why, for people."""


class Inbox:
    """Takes `max_bytes` in all while it exists."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Raises StorageError where nothing can be written to `directory` in this way."""
        self.max_bytes = max_bytes
        self.taken = 0  # bytes
        try:
            self._handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"{directory}: {error.strerror}") from error
        try:
            self._clear()
            self._try_out()
        except OSError as error:
            self.close()
            raise StorageError(f"{directory}: {error.strerror}: uploads cannot be stored there") from error

    def close(self) -> None:
        os.close(self._handle)

    @property
    def left(self) -> int:
        """How many bytes may still come."""
        found = os.fstatvfs(self._handle)
        return max(0, min(self.max_bytes - self.taken, found.f_bavail * found.f_frsize - FREE_KEPT))

    def take(self, count: int) -> None:
        """Note that `count` bytes more are stored. Raises InboxFull."""
        if count > self.left:
            raise InboxFull("there is no room for so much")
        self.taken += count

    def begin(self, name: str) -> "Arrival":
        """Begin a file, which is to have a visitor's `name`. Raises InboxFull, OSError."""
        return Arrival(self, self._handle, to_file_name(name))

    def _clear(self) -> None:
        """Remove what nobody will finish. While another process has this inbox open, its files come on."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another has it, or the file system has no locks
            pass
        else:
            for name in os.listdir(self._handle):
                if name.startswith(UNFINISHED):
                    os.unlink(name, dir_fd=self._handle)
        with suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def _try_out(self) -> None:
        """As Arrival does it: some file systems have no links."""
        names = [_unguessable() for _ in range(2)]
        try:
            os.close(_make(names[0], self._handle))
            _link(names[0], names[1], self._handle)
        finally:
            for name in names:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._handle)


class Arrival:
    """One file that comes. It ends by `finish` or by `discard`."""

    def __init__(self, inbox: Inbox, directory: int, name: str) -> None:
        self._inbox = inbox
        self._directory = directory
        self.name = name
        self.size = 0
        self._counted = 0
        self._count(MIN_FILE_SIZE)
        self._unfinished = _unguessable()
        self._handle: int | None = None
        try:
            self._handle = _make(self._unfinished, directory)
        finally:
            if self._handle is None:
                self._forget()

    def write(self, data: bytes) -> None:
        """Raises InboxFull, OSError."""
        assert self._handle is not None
        self._count(max(self.size + len(data), MIN_FILE_SIZE) - self._counted)
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]
        self.size += len(data)

    def finish(self) -> str:
        """Give it its name, or one like that if there is such a file. Returns which. Raises OSError."""
        assert self._handle is not None
        os.fsync(self._handle)
        for name in _like(self.name):
            with suppress(FileExistsError):
                _link(self._unfinished, name, self._directory)
                self._remove()
                os.fsync(self._directory)
                return name
        raise FileExistsError(17, f"there are {MAX_SAME_NAMES} files of one name")

    def discard(self) -> None:
        """Remove what has come. Does nothing after `finish`."""
        if self._handle is not None:
            self._remove()
            self._forget()

    def _remove(self) -> None:
        """Close it, and take away the name that it had while it came."""
        assert self._handle is not None
        handle, self._handle = self._handle, None  # closed, whatever `close` says
        try:
            os.close(handle)
        finally:
            os.unlink(self._unfinished, dir_fd=self._directory)

    def _count(self, count: int) -> None:
        if count > 0:
            self._inbox.take(count)
            self._counted += count

    def _forget(self) -> None:
        self._inbox.taken -= self._counted
        self._counted = 0


def _unguessable() -> str:
    return f"{UNFINISHED}{os.urandom(16).hex()}"


def _make(name: str, directory: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=directory)


def _link(there: str, name: str, directory: int) -> None:
    """Give a file another name, which must be free."""
    os.link(there, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)


def to_file_name(name: str) -> str:
    """Returns a visitor's name for a file without what paths, shells and eyes take for something else."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(char if char.isprintable() else "_" for char in name).strip()
    if name[:1] in (".", "-", "~"):
        name = "_" + name[1:]
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > 16:
        stem, dot, suffix = name, "", ""
    room = MAX_NAME_LEN - len((dot + suffix).encode("utf-8", "replace"))
    stem = stem.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
    return stem + dot + suffix or UNNAMED


def _like(name: str) -> Iterator[str]:
    """The name itself, then with a number in front of its last suffix."""
    yield name
    stem, dot, suffix = name.rpartition(".")
    if not stem:
        stem, dot, suffix = name, "", ""
    for number in range(1, MAX_SAME_NAMES):
        yield f"{stem}({number}){dot}{suffix}"
