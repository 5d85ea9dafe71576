"""Files that users name, to be read or written."""

from pathlib import Path
from typing import TYPE_CHECKING

from torkit.errors import StorageError, UsageError

if TYPE_CHECKING:
    from torkit.files import FileIdentity


def read_file(path: Path, limit: int) -> bytes:
    """Returns the bytes of a file, `-` being stdin.

    Raises UsageError for what cannot be read or is over `limit`.
    """
    try:
        data = _read_stdin(limit + 1) if path == Path("-") else _read(path, limit + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise UsageError(f"{path}: more than {limit} bytes")
    return data


def _read(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def _read_stdin(count: int) -> bytes:
    """Up to `count` bytes of stdin, in pieces: it may be non-blocking."""
    from torkit.net.descriptors import READ_SIZE, read_some

    data = bytearray()
    while len(data) < count and (piece := read_some(0, min(count - len(data), READ_SIZE))):
        data += piece
    return bytes(data)


def write_file(path: Path, data: bytes) -> "FileIdentity | None":
    """`torkit.files.write_output`, with the system's errors as StorageError."""
    from torkit.files import write_output

    try:
        return write_output(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
