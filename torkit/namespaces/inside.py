"""The child's side. It has the parent's memory as it was at the fork, and no thread of it."""

import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from torkit.namespaces.between import (
    MAPPED,
    MAX_MESSAGE,
    NOT_EXECUTABLE,
    NOT_FOUND,
    RUN,
    UNSHARED,
    Sockets,
    send,
    send_sockets,
)
from torkit.namespaces.calls import forbid_calls
from torkit.namespaces.files import bound_paths, cover_files
from torkit.namespaces.kernel import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    give_up_capabilities,
    unshare,
)
from torkit.namespaces.network import RedirectionError, make_network
from torkit.namespaces.obstacles import explain


def become(command: Sequence[str], environment: Mapping[str, str], parent: socket.socket) -> NoReturn:
    """Make the namespaces, hand their sockets to the parent, wait for its word, and become `command`."""
    try:
        _restore_signals()
        send_sockets(_prepare(environment, parent), parent)
        if parent.recv(MAX_MESSAGE) == RUN:
            with _step("give up capabilities"):
                give_up_capabilities()
                forbid_calls()
            _close_all_but(parent.fileno())
            _execute(command, environment, parent)
    except _Obstacle as error:
        with suppress(OSError):
            send(parent, error=str(error), hint=error.hint)
    finally:
        os._exit(NOT_EXECUTABLE)  # also where the parent is gone, or has changed its mind


class _Obstacle(Exception):
    def __init__(self, step: str, error: OSError | RedirectionError) -> None:
        message, self.hint = explain(step, error)
        super().__init__(message)


@contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RedirectionError) as error:
        raise _Obstacle(name, error) from error


def _prepare(environment: Mapping[str, str], parent: socket.socket) -> Sockets:
    """Raises _Obstacle, and OSError where the parent is gone."""
    bound = bound_paths()  # of the host
    with _step("make namespaces"):
        unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS)
    parent.send(UNSHARED)
    if parent.recv(MAX_MESSAGE) != MAPPED:
        raise BrokenPipeError
    with _step("make a network"):
        sockets = make_network()
    with _step("cover files"):
        cover_files(bound, environment)
    return sockets


def _execute(command: Sequence[str], environment: Mapping[str, str], parent: socket.socket) -> None:
    try:
        os.execvpe(command[0], list(command), dict(environment))  # noqa: S606  # the user's own
    except OSError as error:
        status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        send(parent, error=f"{command[0]}: {error.strerror}", status=status)


def _restore_signals() -> None:
    """As they were before Python changed them."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _close_all_but(kept: int) -> None:
    """Close descriptors that our parent has left open: one may be a connection to elsewhere."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            with suppress(OSError):
                os.close(int(name))
