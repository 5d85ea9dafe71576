"""Rows: what a scan tells of each relay, one JSON object a line, and files of them. Fields: docs/scan.md.

A file that is resumed gets new rows at its end. A line that was cut off, by a kill or a full disk, is taken
away first: it was under way.
"""

import fcntl
import json
import logging
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

import trio

from torkit.directory.directory import Directory
from torkit.errors import DocumentError, StorageError, UsageError

VERSION = 1  # of the fields; raised where one changes its meaning or goes

Row = dict[str, Any]

# What has to be the same in all rows of one campaign.
CAMPAIGN = ("version", "digest", "seed", "position", "probe")

# Implementation limits.
MAX_LINE_LEN = 1 << 20  # bytes
FULL = frozenset({ENOSPC, EDQUOT})  # of errno: what passes once somebody has made room

FULL_TIMEOUT = 60.0  # seconds that a full disk is waited for
FULL_RETRY = 1.0

_READ_SIZE = 1 << 16

logger = logging.getLogger(__name__)


def encode_row(row: Row) -> bytes:
    """One line. What no encoding can say, such as half a surrogate pair, is escaped."""
    return json.dumps(row).encode() + b"\n"


def check_campaign(row: Row, campaign: Mapping[str, Any], where: str) -> None:
    """Raises UsageError where `row` is of another campaign; `where` says which file and line."""
    for name in CAMPAIGN:
        if row.get(name) != campaign[name]:
            hint = None
            if name == "digest":
                hint = "one directory for all: torkit cache export DIR, and --cache with what it prints"
            raise UsageError(
                f"{where}: a row of another campaign: {name} {row.get(name)!r}, not {campaign[name]!r}",
                hint=hint,
            )


def read_rows(path: Path) -> Iterator[tuple[Row, str]]:
    """Each row of a file, and where it stands. A last line without an end is left out: it was cut off.

    Raises UsageError for a file that cannot be read, DocumentError for a line that is no row.
    """
    try:
        with path.open("rb") as file:
            yield from _decode(file, path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def _decode(file: Any, path: Path) -> Iterator[tuple[Row, str]]:
    number = 0
    while line := file.readline(MAX_LINE_LEN + 1):
        number += 1
        where = f"{path}, line {number}"
        if not line.endswith(b"\n"):
            if len(line) <= MAX_LINE_LEN:
                return
            raise DocumentError(f"{where}: more than {MAX_LINE_LEN} bytes")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("fingerprint"), str):
            raise DocumentError(f"{where}: no row of a scan")
        yield row, where


def left_of(directory: Directory, places: Iterable[int], done: Collection[str]) -> list[int]:
    """Those of `places` in the consensus whose relays' fingerprints are not `done`."""
    identities = directory.consensus.relays.identities
    return [place for place in places if identities[place].hex().upper() not in done]


class RowFile:
    """The file of `--resume`. `done` has the fingerprints of the relays whose rows are there."""

    def __init__(self, path: Path, campaign: Mapping[str, Any]) -> None:
        """Open it, or make it. Raises UsageError, DocumentError, StorageError."""
        self.done: set[str] = set()
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from error
        try:
            self._open(campaign)
        except OSError as error:
            os.close(self._file)
            raise StorageError(f"{path}: {error.strerror or error}") from error
        except BaseException:
            os.close(self._file)
            raise

    def _open(self, campaign: Mapping[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{self.path}: another scan is writing it") from None
        for row, where in read_rows(self.path):
            check_campaign(row, campaign, where)
            self.done.add(row["fingerprint"])
        self._end = _end_of_lines(self._file)
        os.ftruncate(self._file, self._end)

    def rows_of(self, directory: Directory, places: Iterable[int]) -> list[Row]:
        """The rows that were there when it was opened, of the relays at these places in the consensus."""
        identities = directory.consensus.relays.identities
        wanted = {identities[place].hex().upper() for place in places} & self.done
        return [row for row, _ in read_rows(self.path) if row["fingerprint"] in wanted]

    def write(self, line: bytes) -> None:
        """Add a line, whole or not at all. Raises OSError."""
        try:
            written = os.pwrite(self._file, line, self._end)
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def close(self) -> None:
        """Raises StorageError where what was written did not get to the disk, as network file systems say."""
        try:
            os.close(self._file)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror or error}") from error


def _end_of_lines(file: int) -> int:
    """Where the last whole line ends."""
    at = os.fstat(file).st_size
    while at > 0:
        start = max(at - _READ_SIZE, 0)
        newline = os.pread(file, at - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        at = start
    return 0


class RowWriter:
    """Writes rows to a file. Where the disk is full it keeps them; no new relay is looked at meanwhile."""

    def __init__(self, file: RowFile) -> None:
        self._file = file
        self._kept: deque[bytes] = deque()
        self._has_warned = False  # of the shortage that there is now

    def emit(self, row: Row) -> None:
        """Raises StorageError for what will not pass."""
        self._kept.append(encode_row(row))
        self._flush()

    async def wait_room(self) -> None:
        """Until nothing is kept. Raises StorageError where that takes longer than FULL_TIMEOUT."""
        give_up_at = trio.current_time() + FULL_TIMEOUT
        while self._kept:
            if trio.current_time() >= give_up_at:
                raise StorageError(
                    f"{self._file.path}: no room for {len(self._kept)} rows",
                    hint="their relays are looked at again by the same command",
                )
            await trio.sleep(FULL_RETRY)
            self._flush()

    def _flush(self) -> None:
        while self._kept:
            try:
                self._file.write(self._kept[0])
            except OSError as error:
                if error.errno not in FULL:
                    raise StorageError(f"{self._file.path}: {error.strerror}") from error
                if not self._has_warned:
                    what = (self._file.path, error.strerror, FULL_TIMEOUT)
                    logger.warning("%s: %s; the scan waits for room, %g s at most", *what)
                self._has_warned = True
                return
            self._kept.popleft()
        self._has_warned = False
