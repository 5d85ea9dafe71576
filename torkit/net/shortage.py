"""What this machine may run out of: descriptors, memory, threads. No relay is to blame for that."""

import os
from collections.abc import Callable
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC
from typing import Any, TypeVar

import trio

from torkit.errors import OutOfResources

# What the system says where it is short of descriptors, memory, or room to watch descriptors (epoll: ENOSPC).
OUT_OF_RESOURCES = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC})

T = TypeVar("T")


def check_resources(error: OSError) -> None:
    """Raise OutOfResources where `error`, of a connection that is made, says so."""
    if error.errno in OUT_OF_RESOURCES:
        raise out_of_resources(error) from error


def out_of_resources(error: OSError) -> OutOfResources:
    """Returns what to raise where a connection cannot be made because of `error`."""
    return OutOfResources(f"this machine can open no connection: {os.strerror(error.errno or 0)}")


async def run_in_thread(
    function: Callable[..., T],
    *args: Any,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """As trio.to_thread.run_sync. Raises OutOfResources where no thread can be started."""
    has_begun = False

    def begin() -> T:
        nonlocal has_begun
        has_begun = True
        return function(*args)

    try:
        return await trio.to_thread.run_sync(begin, abandon_on_cancel=abandon_on_cancel, limiter=limiter)
    except RuntimeError as error:
        if has_begun:
            raise
        raise OutOfResources("this machine can start no thread") from error
