"""The data directory: what a second start needs no network for. The only module here that keeps files.

A file is replaced whole: written under another name, synced, renamed, the directory synced. So a reader
sees an old one or a new one, whenever a process dies or the power fails. Only who holds the lock writes,
so one name serves for what is unfinished, and what a dead process left there goes with the next save.
What cannot be read as what it should be is dropped and fetched again.
Nothing here is trusted: consensus signatures and digests are checked after loading as after fetching.
"""

import fcntl
import json
import os
import select
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EDQUOT, EINVAL, ENOLCK, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EROFS
from pathlib import Path
from typing import Any, TypeVar

from torkit.directory.authorities import MAX_CERTIFICATES_LEN, AuthorityCertificate, parse_certificates
from torkit.directory.consensus import MAX_CONSENSUS_LEN, Preamble, read_preamble
from torkit.directory.microdesc import MAX_MICRODESCS_LEN, Microdescs
from torkit.directory.steps import Steps
from torkit.errors import DocumentError, StorageError
from torkit.files import read_file, replace_file, sync_directory

CONSENSUS = "consensus-microdesc"
CERTIFICATES = "certificates"
MICRODESCS = "microdescs"
STATE = "state.json"
LOCK = "lock"
UNFINISHED = "unfinished"

# Implementation limits.

MAX_STATE_LEN = 1 << 20  # bytes; a guard list takes a few thousand
MAX_SET_ASIDE = 8  # damaged states kept; of more, the first ones and the last
LOCK_TIMEOUT = 10  # seconds; holders write some 10 MB at most
LOCK_POLL = 0.05  # seconds between looks at a lock that another process holds

# The errors of flock on a file system without locks, as some network file systems and containers have.
NO_LOCKS = frozenset({EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP})

_T = TypeVar("_T")

# Of each file of documents its inode, its length and when it was written; None where there is none.
Version = tuple[tuple[int, int, int] | None, ...]


class Cache:
    """One data directory, which must exist. Other processes may use it at the same time.

    Loads return None for what is not there and, but for the state, for what is damaged. Every method raises
    StorageError for a directory that cannot be read or written; whether that is fatal is for the caller.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self._directory

    @property
    def is_writable(self) -> bool:
        """Returns whether this process may replace files in it, as far as the system tells."""
        return os.access(self._directory, os.W_OK)

    def version(self) -> Version:
        """Returns what is another after any document was replaced."""
        return tuple(map(self._file_version, (CERTIFICATES, MICRODESCS, CONSENSUS)))

    def _file_version(self, name: str) -> tuple[int, int, int] | None:
        path = self._directory / name
        with _storage_errors(path), suppress(FileNotFoundError):
            found = path.stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
        return None

    def load_consensus(self) -> Preamble | None:
        """Returns the consensus last kept, unverified."""
        return self._load(CONSENSUS, MAX_CONSENSUS_LEN, read_preamble)

    def save_consensus(self, consensus: Preamble) -> None:
        """Keep a verified consensus."""
        self._save(CONSENSUS, consensus.text)

    def load_certificates(self) -> tuple[AuthorityCertificate, ...] | None:
        """Returns the authority certificates last kept, current or not."""
        return self._load(CERTIFICATES, MAX_CERTIFICATES_LEN, parse_certificates)

    def save_certificates(self, certificates: Iterable[AuthorityCertificate]) -> None:
        """Keep these certificates and no others."""
        self._save(CERTIFICATES, b"".join(certificate.text for certificate in certificates))

    def load_microdescs(self) -> Microdescs | None:
        """Returns the microdescriptors last kept.

        One damaged in the file comes under a digest nobody lists.
        """
        return self._load(
            MICRODESCS, MAX_MICRODESCS_LEN, lambda text: _give_way(Microdescs.decode_in_steps(text))
        )

    def read_microdescs(self) -> bytes | None:
        """Returns the text that `load_microdescs` decodes."""
        return self._read(MICRODESCS, MAX_MICRODESCS_LEN)

    def save_microdescs(self, microdescs: Microdescs, now: float) -> None:
        """Keep these and what another process has kept meanwhile, except what has expired."""
        with self._locked():
            kept = Microdescs()
            kept.merge(microdescs)
            if (others := self.load_microdescs()) is not None:
                kept.merge(others)
            kept.expire(now)
            self._replace(MICRODESCS, _give_way(kept.encode_in_steps()))

    def load_state(self) -> dict[str, Any] | None:
        """Returns all that `update_state` was given.

        A file that cannot be read is set aside, since nobody could give it to us again; StorageError says so.
        """
        try:
            return self._read_state()
        except (DocumentError, StorageError):
            with self._locked():
                try:
                    return self._read_state()  # another process may have set it aside, and kept a good one
                except (DocumentError, StorageError) as error:
                    aside = self._set_aside(self._directory / STATE)
                    raise StorageError(f"{error}; it is kept as {aside}") from error

    def correct_state(self, seen: dict[str, Any], values: dict[str, Any]) -> Path | None:
        """Keep these JSON values in place of those that `load_state` has returned, and these beside.

        Returns where the file is now that was read; None, and nothing is done, where it is not as `seen` any
        more, but another process's.
        """
        with self._locked():
            if _encode_state(self._read_state() or {}) != _encode_state(seen):  # no NaN is equal to itself
                return None
            aside = self._set_aside(self._directory / STATE)
            self._replace(STATE, _encode_state(seen | values))
        return aside

    def update_state(self, values: dict[str, Any]) -> Path | None:
        """Keep these JSON values, and values under other names, which may be another process's.

        Returns where a file that cannot be read was set aside; then there is nothing but `values`.
        """
        with self._locked():
            state, aside = self._state_for_change()
            self._replace(STATE, _encode_state(state | values))
        return aside

    def add_to_state(self, values: dict[str, Any]) -> dict[str, Any]:
        """Keep these JSON values where the file has none yet. Returns all values of the file then.

        So processes that start at the same time agree: the first one's values are everybody's.
        """
        with self._locked():
            state, _ = self._state_for_change()
            state |= {name: value for name, value in values.items() if not state.get(name)}
            self._replace(STATE, _encode_state(state))
        return state

    def _state_for_change(self) -> tuple[dict[str, Any], Path | None]:
        """Only under the lock: the state, and where one that cannot be read was set aside."""
        try:
            return self._read_state() or {}, None
        except DocumentError:
            return {}, self._set_aside(self._directory / STATE)

    def _read_state(self) -> dict[str, Any] | None:
        text = self._read(STATE, MAX_STATE_LEN)
        return None if text is None else _decode_state(text)

    def _load(self, name: str, limit: int, parse: Callable[[bytes], _T]) -> _T | None:
        text = self._read(name, limit)
        if text is None:
            return None
        try:
            return parse(text)
        except DocumentError:
            # Left where it is: another process may have just replaced it, and so will we.
            return None

    def _set_aside(self, path: Path) -> Path:
        names = [path.with_name(f"{path.name}.damaged-{n}") for n in range(1, MAX_SET_ASIDE + 1)]
        with _storage_errors(path):
            return path.rename(next((name for name in names if not name.exists()), names[-1]))

    def _read(self, name: str, limit: int) -> bytes | None:
        """At most one byte more than `limit`; None where there is no such file."""
        path = self._directory / name
        with _storage_errors(path):
            return read_file(path, limit)

    def _save(self, name: str, text: bytes) -> None:
        with self._locked():
            self._replace(name, text)

    def _replace(self, name: str, text: bytes) -> None:
        """Only under the lock."""
        path, unfinished = self._directory / name, self._directory / UNFINISHED
        with _storage_errors(path):
            unfinished.unlink(missing_ok=True)
            replace_file(path, text, mode=0o600, unfinished=unfinished)
            sync_directory(self._directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._directory / LOCK
        with _storage_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            with _storage_errors(path):
                if not _take_lock(handle):
                    raise StorageError(
                        f"{path} was held by another process for {LOCK_TIMEOUT} seconds",
                        hint="see which other torkit uses this data directory,"
                        " or choose another with --data-dir",
                    )
            yield
        finally:
            with _storage_errors(path):
                os.close(handle)  # which gives the lock back


def _give_way(steps: Steps[_T]) -> _T:
    """Run all steps in a thread, and let another have the interpreter after each, not only every 5 ms."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: _T = stop.value
            return result
        select.select([], [], [], 0)


def _take_lock(handle: int) -> bool:
    """Wait for the lock on an open file, LOCK_TIMEOUT at most. Returns whether it may be written now.

    Where the file system has no locks, it may, with a warning: guards that are lost with every start are
    worse than two processes that overwrite each other's.
    """
    for _ in range(round(LOCK_TIMEOUT / LOCK_POLL) + 1):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            select.select([], [], [], LOCK_POLL)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                "the data directory's file system has no locks: torkits that run at the same time may"
                " overwrite what the others keep there",
                stacklevel=1,
            )
            return True
        else:
            return True
    return False


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Translate the operating system's errors."""
    try:
        yield
    except OSError as error:
        hints = dict.fromkeys((ENOSPC, EDQUOT), "free some space, or choose another place with --data-dir")
        hints |= dict.fromkeys((EACCES, EPERM, EROFS), "make it writable, or choose another with --data-dir")
        raise StorageError(f"{path}: {error.strerror or error}", hint=hints.get(error.errno or 0)) from error


def _encode_state(state: dict[str, Any]) -> bytes:
    return json.dumps(state, indent=1, sort_keys=True).encode() + b"\n"


def _decode_state(text: bytes) -> dict[str, Any]:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"state is not JSON: {error}") from None
    if len(text) > MAX_STATE_LEN or not isinstance(state, dict):
        raise DocumentError("state is not a JSON object of reasonable size")
    return state
