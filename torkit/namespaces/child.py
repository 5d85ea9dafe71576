"""The parent's side: a child in namespaces of its own, until it has become its program."""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torkit.errors import NotPossible
from torkit.namespaces.between import MAPPED, MAX_MESSAGE, RUN, UNSHARED, Sockets, receive_sockets


class CannotRun(Exception):
    """The command cannot be run; `status` is what a shell's would be."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Child:
    """Waits in its namespaces until `run` is called, and ends when the parent does before that."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection

    @classmethod
    def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> "Child":
        """Fork, before any thread has been started. Raises NotPossible."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            from torkit.namespaces.inside import become

            ours.close()
            become(command, environment, theirs)
        theirs.close()
        if ours.recv(MAX_MESSAGE, socket.MSG_PEEK) == UNSHARED:
            ours.recv(MAX_MESSAGE)
            _map_users(pid)
            ours.send(MAPPED)
        return cls(pid, ours)

    def take_sockets(self) -> Sockets:
        """Wait for the sockets; the caller closes them. Raises NotPossible, with a hint how to allow it."""
        answer = receive_sockets(self._connection)
        if isinstance(answer, Sockets):
            return answer
        raise _obstacle(answer)

    def run(self) -> None:
        """Let it become its command. Raises CannotRun, NotPossible."""
        with self._connection as connection:
            connection.send(RUN)
            message = connection.recv(MAX_MESSAGE)
        if not message:
            return  # closed as it became another program
        answer = json.loads(message)
        if "status" in answer:
            raise CannotRun(answer["error"], answer["status"])
        raise _obstacle(answer)

    def wait(self) -> None:
        """Wait for its end, which comes at once if it has not become its command."""
        self._connection.close()
        with suppress(ChildProcessError):  # it has ended before
            os.waitpid(self.pid, 0)


def _obstacle(answer: Mapping[str, Any]) -> NotPossible:
    return NotPossible(
        answer.get("error", "the child ended before it had a network"), hint=answer.get("hint")
    )


def _map_users(pid: int) -> None:
    """Give the child the users outside: all of them if we are root, else only ourselves.

    Raises NotPossible. user_namespaces(7), "User and group ID mappings".
    """
    folder = Path(f"/proc/{pid}")
    try:
        if os.geteuid() == 0:
            for kind in ("uid_map", "gid_map"):
                extents = [line.split() for line in Path(f"/proc/self/{kind}").read_text().splitlines()]
                text = "".join(f"{inside} {inside} {count}\n" for inside, _, count in extents)
                (folder / kind).write_text(text)
        else:
            (folder / "setgroups").write_text("deny")  # else nobody but root may write the next but one
            (folder / "uid_map").write_text(f"{os.geteuid()} {os.geteuid()} 1\n")
            (folder / "gid_map").write_text(f"{os.getegid()} {os.getegid()} 1\n")
    except OSError as error:
        raise NotPossible(
            f"the system does not let us map users: {error.strerror}",
            hint="if this is a container, its missing capabilities may forbid it",
        ) from error
