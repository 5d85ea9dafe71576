"""Takes from this process what a proxy does not need once it listens. Linux only.

    landlock.py  files: which it may still read, and write
    calls.py     system calls: which it may still make

Nothing of it can be taken back. There is no weaker form: where the kernel lacks any of it, `close` raises.
"""

import errno
import os
import resource
from collections.abc import Iterable
from pathlib import Path

from torkit.errors import NotPossible
from torkit.namespaces.kernel import filter_calls, forbid_new_privileges
from torkit.sandbox import landlock
from torkit.sandbox.calls import Machine, judge, machine

_IN_A_CONTAINER = "if this is a container or a service, its own filter of system calls may forbid it"


def can_be_closed() -> bool:
    """Returns whether this kernel and machine have what `close` needs."""
    try:
        _check()
    except NotPossible:
        return False
    return True


def close(*, readable: Iterable[Path], changeable: Iterable[Path]) -> None:
    """Close the sandbox: only these files, or what is in these directories, can be opened from now on.

    The process must not have started a thread: another one would stay outside. Raises NotPossible; some of it
    may be in force then.
    """
    kind = _check()
    try:
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise NotPossible(f"{threads - 1} other threads of this process would be outside of the sandbox")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
        forbid_new_privileges()
        landlock.restrict(readable, changeable)
        filter_calls([*judge(kind, os.getpid())])
    except OSError as error:
        raise NotPossible(
            f"the system does not let us close the sandbox: {error.strerror}", hint=_IN_A_CONTAINER
        ) from error


def _check() -> Machine:
    """Returns what is known of this machine. Raises NotPossible where that, or Landlock, is not enough."""
    system, _, _, _, name = os.uname()
    kind = machine(name)
    if system != "Linux" or kind is None:
        raise NotPossible(f"there is no sandbox for {system} on {name}")
    try:
        number = landlock.version()
    except OSError as error:
        hints = {
            errno.EOPNOTSUPP: "as root: add landlock to the kernel's parameter lsm=",
            errno.ENOSYS: "it needs Linux 6.2 or newer; a container's filter of system calls may hide it",
        }
        raise NotPossible(
            f"there is no sandbox without Landlock: {error.strerror}",
            hint=hints.get(error.errno or 0, _IN_A_CONTAINER),
        ) from error
    if number < landlock.LEAST:
        raise NotPossible(
            f"the kernel's Landlock has version {number}, the sandbox needs {landlock.LEAST}",
            hint="Linux 6.2 and newer have it",
        )
    return kind
