"""Descriptors that a parent has given us. No trio here.

They may be non-blocking. That is a flag of the open file, which other processes share, so it stays.

They may be connections. A connection that is closed with unread input is reset, and a reset takes back bytes
that were not delivered. The kernel knows whether all were, and tells when it is asked.
"""

import fcntl
import os
import select
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EPIPE, ETIMEDOUT

# Implementation limits.
READ_SIZE = 65_536  # bytes: a Linux pipe holds so many, and some 130 cells
LOOK_INTERVAL = 0.05  # seconds between questions to the kernel; a delayed acknowledgement takes 40 ms

# Seconds after which a peer that takes no byte is given up: about as long as Linux tries to deliver bytes
# that a program has left behind. (C tor waits for 15 s, and then leaves the rest to the kernel.)
DELIVERY_TIMEOUT = 300.0

LINE_TIMEOUT = 5.0  # seconds that a line on stderr waits for room, where nothing else has to go on
PIECE_LEN = 1024  # characters, at most PIPE_BUF bytes, which a pipe takes whole or not at all


def read_some(descriptor: int, count: int) -> bytes:
    """Read up to `count` bytes, and wait for the first of them even if the descriptor is non-blocking.

    Raises OSError.
    """
    while True:
        try:
            return os.read(descriptor, count)
        except BlockingIOError:
            _wait_for(descriptor, select.POLLIN)


def write_some(descriptor: int, data: bytes | bytearray | memoryview) -> int:
    """Write some of `data`, not empty, and wait for room even if the descriptor is non-blocking.

    Returns how many bytes were written. Raises OSError.
    """
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            _wait_for(descriptor, select.POLLOUT)


def _wait_for(descriptor: int, event: int, timeout: float | None = None) -> bool:
    """Returns whether the event, or an error, has come within `timeout` seconds."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


class StandardError:
    """Writes lines to stderr. A reader that has stopped holds nobody up: lines without room are lost.

    The number of lost lines is written as soon as there is room again.
    """

    def __init__(self) -> None:
        self._timeout = LINE_TIMEOUT
        self._lost_count = 0
        self._is_cut = False  # the last thing written was the beginning of a line

    @contextmanager
    def never_waiting(self) -> Iterator[None]:
        """Inside the block no line waits for room."""
        self._timeout = 0.0
        try:
            yield
        finally:
            self._tell_lost()
            self._timeout = LINE_TIMEOUT

    def say(self, line: str) -> None:
        """Write a line, given without its newline."""
        self._tell_lost()
        if self._lost_count or not self._write(f"{line}\n", self._timeout):
            self._lost_count += 1

    def draw(self, text: str) -> None:
        """Write text that is no line, if there is room."""
        self._write(text, 0.0)

    def _tell_lost(self) -> None:
        if self._lost_count:
            count = "a line was" if self._lost_count == 1 else f"{self._lost_count} lines were"
            start = "\n" if self._is_cut else ""
            if self._write(f"{start}torkit: {count} lost here: nobody had read what was before\n", 0.0):
                self._lost_count = 0

    def _write(self, text: str, timeout: float) -> bool:
        """Returns whether there was room. Text that cannot be written for another reason is dropped."""
        for at in range(0, len(text), PIECE_LEN):
            if not _stderr_has_room(timeout):
                self._is_cut = self._is_cut or at > 0
                return False
            with suppress(OSError, ValueError, AttributeError):
                sys.stderr.write(text[at : at + PIECE_LEN])
                sys.stderr.flush()
        self._is_cut = False
        return True


stderr = StandardError()


def _stderr_has_room(timeout: float) -> bool:
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # no file of the system's
        return True
    return _wait_for(descriptor, select.POLLOUT, timeout)


def undelivered(descriptor: int) -> int:
    """Returns how many bytes, and the end of file, a socket's peer has not acknowledged; 0 if unknown."""
    import termios

    try:
        [count] = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))  # SIOCOUTQ
    except OSError:
        return 0
    return int(count)


def wait_until_delivered(descriptor: int) -> None:
    """Wait until the peer of a TCP connection has all written bytes. Does nothing for other descriptors.

    Blocks. Raises BrokenPipeError where the peer resets the connection first, TimeoutError where it takes no
    byte for DELIVERY_TIMEOUT.
    """
    if not _is_tcp(descriptor):
        return
    poll = select.poll()
    poll.register(descriptor, 0)  # no event is asked for; errors and hang-ups are always reported
    left, taken_at = -1, time.monotonic()
    while (now_left := undelivered(descriptor)) > 0:
        if poll.poll(0):
            raise BrokenPipeError(EPIPE, os.strerror(EPIPE))
        if now_left != left:
            left, taken_at = now_left, time.monotonic()
        elif time.monotonic() - taken_at >= DELIVERY_TIMEOUT:
            raise TimeoutError(ETIMEDOUT, os.strerror(ETIMEDOUT))
        time.sleep(LOOK_INTERVAL)


def _is_tcp(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        return connection.family != socket.AF_UNIX and connection.type == socket.SOCK_STREAM
