"""Sets how many bytes may wait in the queues of this process: _fast/memory keeps the account.

In a process that is ours alone it keeps ballast, too, for the moment when the system has no memory left
(_fast/ballast), and has what bursts have freed go back to the system.
"""

import os
from contextlib import suppress
from pathlib import Path

from torkit._fast import ballast, memory
from torkit.errors import UsageError

# Implementation limits, bytes. The default is a quarter of the memory of the machine, or of its control
# group, from LEAST to MOST. (C tor's MaxMemInQueues is 0.4 of the memory, for relays too.)
SHARE = 4
LEAST = 64 << 20
MOST = 2 << 30

# Implementation limit, bytes: with less, one stream has no full speed beside a directory answer.
FLOOR = 16 << 20

# Implementation limit, bytes: what some hundred clients that have been accepted take until they are served,
# with two threads that are started meanwhile.
BALLAST = 32 << 20

GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def limit_memory(count: int | None = None) -> None:
    """Set how many bytes may wait, for all clients of this process. Raises UsageError below FLOOR."""
    if count is not None and count < FLOOR:
        raise UsageError(f"{FLOOR >> 20} MiB of memory are the least that works")
    memory.set_limit(default_limit() if count is None else count)


def default_limit(group_limit: Path = GROUP_LIMIT) -> int:
    """Returns the limit where the user names none."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such group, or "max"
        size = min(size, int(group_limit.read_text()))
    return min(max(size // SHARE, LEAST), MOST)


def own_process() -> None:
    """Keep ballast, through which Python's allocators then ask for memory; give back what bursts have freed.

    For the rest of this process, so not for a library: `torkit socks` and the like own their process.
    """
    ballast.keep(BALLAST)
    memory.own_process()
