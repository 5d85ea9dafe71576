"""Tells the service manager how a service is: the protocol of sd_notify(3), without its library."""

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

logger = logging.getLogger(__name__)


class Manager:
    """The service manager that `environment` names, if it names any: NOTIFY_SOCKET, WATCHDOG_USEC.

    `watchdog` is how often it wants to hear of us, in seconds; infinite where it does not.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address: str | bytes | None = None
        self._held: socket.socket | None = None
        self.watchdog = inf
        name = environment.get("NOTIFY_SOCKET", "")
        if name.startswith("/"):
            self._address = name
        elif name.startswith("@"):  # an abstract name
            self._address = b"\0" + os.fsencode(name[1:])
        elif name:
            logger.warning("NOTIFY_SOCKET is no Unix socket: the service manager is told nothing")
        if self._address is not None and environment.get("WATCHDOG_PID", str(os.getpid())) == str(
            os.getpid()
        ):
            with suppress(ValueError):
                self.watchdog = int(environment.get("WATCHDOG_USEC", "")) / 1e6 or inf

    def hold(self) -> None:
        """Open the socket now, and keep it: a sandbox opens none later."""
        if self._address is None:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.connect(self._address)
        except OSError as error:
            sock.close()
            logger.warning("the service manager is told nothing: %s", error.strerror or error)
            self._address = None
            return
        sock.setblocking(False)
        self._held = sock

    def tell(self, *assignments: str) -> None:
        """Tell it these, such as `READY=1`. Never waits; what it does not take is lost."""
        if self._address is None:
            return
        message = os.fsencode("\n".join(assignments))
        try:
            if self._held is not None:
                self._held.send(message)
                return
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message, self._address)
        except OSError as error:
            logger.info("the service manager is not told %s: %s", assignments[0], error.strerror or error)

    async def keep_told(self, is_ending: "trio.Event") -> None:
        """Tell it in time that we are alive, and then that we end."""
        import trio

        try:
            while not is_ending.is_set():
                if self.watchdog != inf:
                    self.tell("WATCHDOG=1")
                with trio.move_on_after(self.watchdog / 2):
                    await is_ending.wait()
        finally:
            self.tell("STOPPING=1")
