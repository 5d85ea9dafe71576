"""Descriptors that a parent has given us. No trio here.

They may be non-blocking: a flag of the open file, which is shared with whoever has set it, and stays.

They may be connections. One that is closed while input waits in it is reset, and a reset takes back what was
not delivered; the kernel knows what was, and tells when it is asked.
"""

import fcntl
import os
import select
import socket
import stat
import struct
import time
from errno import EPIPE, ETIMEDOUT

# Implementation limits.
READ_SIZE = 65_536  # bytes; what a Linux pipe holds, and some 130 cells
LOOK_INTERVAL = 0.05  # seconds between questions to the kernel; a delayed acknowledgement takes 40 ms

# Seconds without a byte taken after which a peer is given up; about as long as Linux by itself tries to
# deliver what a program has left behind. (C tor waits for 15 s, and then leaves the rest to the kernel.)
DELIVERY_TIMEOUT = 300.0


def read_some(descriptor: int, count: int) -> bytes:
    """Read up to `count` bytes; wait for the first of them, be the descriptor non-blocking or not.

    Raises OSError.
    """
    while True:
        try:
            return os.read(descriptor, count)
        except BlockingIOError:
            _wait_for(descriptor, select.POLLIN)


def write_some(descriptor: int, data: bytes | bytearray | memoryview) -> int:
    """Write some of `data`, not empty; wait until there is room, be the descriptor non-blocking or not.

    Returns how many bytes. Raises OSError.
    """
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            _wait_for(descriptor, select.POLLOUT)


def _wait_for(descriptor: int, event: int) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    poll.poll()


def undelivered(descriptor: int) -> int:
    """Bytes written to a socket that its peer has not acknowledged, and the end of file; 0 if unknown."""
    import termios

    try:
        [count] = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))  # SIOCOUTQ
    except OSError:
        return 0
    return int(count)


def wait_until_delivered(descriptor: int) -> None:
    """Wait until the peer of a TCP connection has all that was written; for what is none, do nothing.

    Blocks. Raises BrokenPipeError where the peer resets the connection first, TimeoutError where it takes
    nothing for DELIVERY_TIMEOUT.
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
