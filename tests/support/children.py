"""What a test does in a process of its own, which may die."""

import os
import traceback
import warnings
from collections.abc import Callable


def start_child(act: Callable[[], None]) -> int:
    """Do something in a process of its own; its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, idle here
        pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def wait_for(pid: int) -> int:
    """A child's exit status, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
