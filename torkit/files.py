"""Makes, reads and replaces files where others may have planted links or pipes: follows none, waits for none.

The system's errors are raised as they are (OSError); a file that is not as it should be raises StorageError.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from errno import ENOTDIR
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from torkit.errors import StorageError


class FileIdentity(NamedTuple):
    """Tells one file from another that took its name."""

    device: int
    inode: int


def make_private_directory(path: Path) -> None:
    """Make the directory `path`, and missing ones above it, for its owner alone, or check an existing one.

    One that others may write to is closed to them. Raises StorageError for another user's, and for a shared
    one.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
    missing = takewhile(lambda parent: not parent.exists(), path.parents)
    for directory in reversed([path, *missing]):
        directory.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid():
            raise StorageError(
                f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}",
                hint="run torkit as its owner, or choose another directory with --data-dir",
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            if found.st_mode & stat.S_ISVTX:  # such as /tmp: others count on it
                raise StorageError(
                    f"{path} is shared, anybody may put files there", hint="name a directory inside it"
                )
            os.fchmod(handle, stat.S_IMODE(found.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    finally:
        os.close(handle)


def open_own(path: Path) -> int:
    """Returns a descriptor to read a regular file of ours. Neither follows a link nor waits for a pipe.

    Raises StorageError where it is another user's or no regular file, FileNotFoundError where there is none.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{path} is not a regular file")
        if found.st_uid != os.geteuid():
            raise StorageError(f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}")
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_file(path: Path, limit: int) -> bytes | None:
    """Returns at most one byte more than `limit`; None where there is no such file. Raises as `open_own`."""
    try:
        handle = open_own(path)
    except FileNotFoundError:
        return None
    with open(handle, "rb") as file:
        return file.read(limit + 1)


def replace_file(path: Path, data: bytes, *, mode: int, unfinished: Path | None = None) -> FileIdentity:
    """Put a new file in place of `path`, complete or not at all; a link there is replaced, not followed.

    `mode` is subject to the umask. It is written under the name `unfinished`, which must be in the same
    directory, or under one that nobody can guess.
    """
    if unfinished is None:
        unfinished = _unguessable(path)
    with _written(unfinished, data, mode) as identity:
        os.replace(unfinished, path)
    return identity


def make_file(path: Path, data: bytes, *, mode: int) -> None:
    """Put a file where nothing is, complete or not at all. `mode` is subject to the umask.

    Raises FileExistsError.
    """
    unfinished = _unguessable(path)
    with _written(unfinished, data, mode), ExitStack() as undo:
        os.link(unfinished, path, follow_symlinks=False)
        undo.callback(path.unlink)
        unfinished.unlink()
        undo.pop_all()


def sync_directory(path: Path) -> None:
    """Put its names on the disk: which files were made, renamed and removed."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unguessable(path: Path) -> Path:
    """A name beside `path` that nobody can have planted anything under."""
    return path.with_name(f".torkit-{os.urandom(16).hex()}")


@contextmanager
def _written(path: Path, data: bytes, mode: int) -> Iterator[FileIdentity]:
    """Make a file and put it on the disk; it is removed where that fails, or the block."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
            found = os.fstat(handle)
        yield FileIdentity(found.st_dev, found.st_ino)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def remove_file(path: Path, identity: FileIdentity) -> None:
    """Remove `path` if it is still the file of this identity."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if FileIdentity(found.st_dev, found.st_ino) == identity:
        path.unlink(missing_ok=True)


def is_replaceable(path: Path) -> bool:
    """Returns whether there is nothing, a regular file or a link to one; no device, pipe or directory."""
    return _own_descriptor(path) is None and (path.is_file() or not path.exists())


def write_output(path: Path, data: bytes) -> FileIdentity | None:
    """Write to a path that the user has named: a file by `replace_file`, a device or a pipe as it is.

    Returns which file was made, if one was. A pipe is waited for until somebody reads it.
    """
    if is_replaceable(path):
        return replace_file(path, data, mode=0o666)
    own = _own_descriptor(path)
    with open(os.open(path, os.O_WRONLY | os.O_NOCTTY) if own is None else os.dup(own), "wb") as file:
        file.write(data)
    return None


def _own_descriptor(path: Path) -> int | None:
    """Returns the descriptor of this process that a name like /dev/stdout or /dev/fd/3 stands for.

    Such a name may stand for a regular file, but must not be replaced.
    """
    names = [path]
    if path.is_symlink():
        names.append(path.parent / path.readlink())
    own = Path(f"/proc/{os.getpid()}/fd")
    return next(
        (int(name.name) for name in names if name.name.isdigit() and name.parent.resolve() == own), None
    )
