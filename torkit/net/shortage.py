"""Shortages of this machine: descriptors, memory, threads. No relay is to blame for them."""

import os
from collections.abc import Callable
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC
from typing import Any, TypeVar

import trio

from torkit.errors import OutOfResources

# The system's errors for too few descriptors, too little memory, and no room to watch descriptors (ENOSPC).
OUT_OF_RESOURCES = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC})

T = TypeVar("T")


def check_resources(error: OSError) -> None:
    """Raise OutOfResources where `error`, from making a connection, tells of a shortage."""
    if error.errno in OUT_OF_RESOURCES:
        raise out_of_resources(error) from error


def out_of_resources(error: OSError) -> OutOfResources:
    """Returns the exception to raise where `error` prevents a connection."""
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
