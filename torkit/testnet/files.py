"""The directory of a network: its owner, and files that appear only when complete."""

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torkit.errors import StorageError, TimedOut
from torkit.files import open_own, replace_file

POLL_INTERVAL = 0.1  # seconds between two looks at what tor has done
STOP_DEADLINE = 20.0  # seconds for an owner to end its network, or for killed processes to be gone


def owner(directory: Path) -> int | None:
    """Returns the process id of the owner of the network in `directory`, or None if nobody owns it."""
    try:
        with open(open_own(directory / "lock")) as lock:  # its process is about to be sent signals
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the test network's lock: {error}") from error
    return None


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file that appears only when complete."""
    try:
        replace_file(path, os.fsencode("".join(f"{line}\n" for line in lines)), mode=0o666)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


async def log_has(log: Path, text: str) -> bool:
    with suppress(FileNotFoundError):
        return text in log.read_text(errors="replace")
    return False


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimedOut(f"waited {seconds:.0f} s for {what}")
        time.sleep(POLL_INTERVAL)
