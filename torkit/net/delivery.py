"""Whether what was written to a socket has arrived: the kernel knows, and tells when it is asked.

A connection that is closed while input waits in it is reset, and a reset takes back what was not delivered.
"""

import fcntl
import os
import select
import socket
import stat
import struct
import termios
import time
from errno import EPIPE, ETIMEDOUT

# Implementation limits.
LOOK_INTERVAL = 0.05  # seconds between questions to the kernel; a delayed acknowledgement takes 40 ms

# Seconds without a byte taken after which a peer is given up; about as long as Linux by itself tries to
# deliver what a program has left behind. (C tor waits for 15 s, and then leaves the rest to the kernel.)
DELIVERY_TIMEOUT = 300.0


def undelivered(descriptor: int) -> int:
    """Bytes written to a socket that its peer has not acknowledged, and the end of file; 0 if unknown."""
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
