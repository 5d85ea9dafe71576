"""Streams as sockets, for programs without trio: a program is handed one end of a pair of sockets.

    program's end == our end -- Passage -- stream          no Python runs for a byte

Bytes that the program has sent before it closes its end still go out. Bytes that have arrived wait in its
end. Behind them it reads an end of file, or a reset where the stream was cut: no cut looks like an end.
"""

import os
import socket
from contextlib import suppress
from typing import Any, NoReturn
from weakref import WeakSet

import trio

from torkit.errors import InternalError
from torkit.net.circuit.stream import Stream
from torkit.net.descriptors import READ_SIZE
from torkit.net.ferry import SocketFerry
from torkit.net.link.pump import Pump
from torkit.net.proxy.carrier import KEEPALIVE_INTERVAL
from torkit.net.proxy.sockdiag import SockDiag

# Bytes that we ask the kernel to hold in each direction: Linux's default, of which it grants twice as many to
# whoever asks. A program that shares our interpreter reads late. Bursts of a relay filled the default now and
# then, and Python had to run for what was left: 8 to 10 % of a download's CPU. A program that sends
# waits for room less often, and both threads less often for the interpreter's lock.
SEND_BUFFER = 212_992

_doors: WeakSet["Door"] = WeakSet()


class Socket(socket.socket):
    """A program's end: a socket of the family AF_UNIX in the place of a TCP socket."""

    def setsockopt(self, level: int, *args: Any) -> None:
        """As every socket's. Options of TCP are accepted, and ignored: no delay is here to switch off."""
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *args)


class Door:
    """Has the pairs of one client. It belongs to one trio run, as its pump does."""

    def __init__(self) -> None:
        self.pump = Pump.current()
        self.kernel = SockDiag()
        self.passages: set[Passage] = set()
        _doors.add(self)

    def hand_out(self, stream: Stream) -> Socket:
        """Returns a connected, blocking socket, whose bytes are those of `stream` from now on.

        Raises OSError where the system has no descriptor left, and then ends the stream.
        """
        try:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            for end in ours, theirs:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        except OSError:
            stream.close()
            raise
        passage = Passage(self, ours, theirs, stream)
        self.passages.add(passage)
        passage.start()
        return Socket(fileno=theirs.detach())

    async def run(self) -> NoReturn:
        """Look now and then for programs that ended their direction first, and then closed their end."""
        while True:
            await trio.sleep(KEEPALIVE_INTERVAL)
            for passage in list(self.passages):
                passage.look()

    def close(self) -> None:
        """Cut off every stream that is open."""
        for passage in list(self.passages):
            passage.cut()

    def forget(self) -> None:
        """Close our ends in a child of this process: else no program would see the parent's close."""
        for passage in self.passages:
            passage.sock.close()


class Passage(SocketFerry):
    """Owns our end of one pair, and its stream."""

    waits_for_sink = True

    def __init__(self, door: Door, ours: socket.socket, theirs: socket.socket, stream: Stream) -> None:
        self.sock = ours
        self._door = door
        self._number = theirs.fileno()
        self._theirs = _identity(self._number)
        self._local = door.pump.add_local(ours.fileno(), self, is_pipe=True)
        super().__init__(door.pump, stream, ours.fileno, self._local, self._close)

    def look(self) -> None:
        """Close if the program has closed its end. One that has only ended its direction still reads."""
        if self._has_ended and self._door.kernel.is_closed_by_program(self.sock):
            self._finish(ConnectionResetError())

    def cut(self) -> None:
        """End the stream; the program reads what was written, then a reset."""
        self._finish(InternalError("the client was closed"))

    def _close(self, failure: Exception | None) -> None:
        """Close both. The program reads what was written, then the end of file or the reset."""
        self._door.passages.discard(self)
        self._door.pump.remove(self._local)
        if self._has_ended and isinstance(failure, OSError):  # the program has sent all, and closed its end
            self._stream.finish()
        else:
            self._stream.close()
        if failure is None:
            self._end_in_order()
        elif not isinstance(failure, OSError):
            self._reset()
        self.sock.close()

    def _end_in_order(self) -> None:
        """Read what the program has sent too late: Linux makes a reset of a close with unread bytes."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
            while self.sock.recv(READ_SIZE):
                pass

    def _reset(self) -> None:
        """Have the program read a reset behind what was written.

        Linux resets one end when the other is closed with unread bytes. So we send our end a byte from the
        program's: by its number, if that is still the same socket. Where the program has closed the socket,
        given it away or ended its direction, it reads an end of file.
        """
        with suppress(OSError):
            number = os.dup(self._number)
            if _identity(number) != self._theirs:
                os.close(number)
                return
            with socket.socket(fileno=number) as theirs:
                theirs.send(b"\0", socket.MSG_DONTWAIT)


def _identity(descriptor: int) -> tuple[int, int]:
    """Returns what tells an open socket from all others."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _in_child() -> None:
    for door in _doors:
        door.forget()


os.register_at_fork(after_in_child=_in_child)
