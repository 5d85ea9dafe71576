"""How a service ends: in order, so that connections may come to their end; or with its parent."""

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from torkit.cli.options import seconds
from torkit.cli.voice import say

if TYPE_CHECKING:
    import trio

# Seconds. Half of what container engines wait between SIGTERM and SIGKILL. (C tor's clients end at once.)
GRACE = 5.0

PARENT_CHECK = 1.0  # seconds between two looks whether our parent is still the same

# The kernel's fixed number of the process namespace that its own init is in (<linux/proc_ns.h>).
INITIAL_PID_NAMESPACE = 0xEFFFFFFC

Grace = Annotated[
    float,
    typer.Option(
        "--grace",
        metavar="SECONDS",
        parser=seconds,
        help="How long connections may go on after SIGTERM; 0 ends them at once.",
    ),
]
ExitWithParent = Annotated[
    bool,
    typer.Option("--exit-with-parent", help="End as with SIGTERM once the parent process ends."),
]


async def drain_on_sigterm(is_ending: "trio.Event", grace: float, scope: "trio.CancelScope") -> None:
    """Set `is_ending` on SIGTERM, and cancel `scope` after `grace` seconds, or on another SIGTERM."""
    import trio

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        await anext(signals)
        is_ending.set()
        with trio.move_on_after(grace) as waiting:
            await anext(signals)
    if waiting.cancelled_caught:
        say(f"connections that still went on after {grace:g} s were ended")
    scope.cancel()


async def end_with_parent(parent: int) -> NoReturn:
    """Send SIGTERM to this process once `parent` is not its parent any more, or never was."""
    import trio

    while os.getppid() == parent and not is_orphan(parent):
        await trio.sleep(PARENT_CHECK)
    say("the process that started this one has ended")
    signal.raise_signal(signal.SIGTERM)
    await trio.sleep_forever()


def is_orphan(parent: int) -> bool:
    """Returns whether the parent that a process finds when it starts has only inherited it.

    In a container, process 1 is a program as any other, and takes all others with it.
    """
    if parent != 1:
        return False
    with suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE
    return True
