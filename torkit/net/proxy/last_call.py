"""The end of a socket that listens: nobody new is connected, and whoever is already can still be accepted.

A close resets every connection that the kernel has made and nobody has accepted. Its client may have sent a
request by then, and not every client repeats one: HAProxy never repeats a CONNECT.
"""

import array
import socket
import struct
import sys

# Seconds for handshakes that have begun: their last segment is a round trip away.
HANDSHAKE_TIME = 0.25

SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>, of every architecture that has CPython's wheels

# <linux/filter.h>: code, two jumps, operand. The program sees a segment from its TCP header on.
_SEGMENTS_BUT_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of flags
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # then drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # else take it whole
    )
)


def refuse_newcomers(listener: socket.socket) -> float:
    """Have the kernel connect nobody new. Returns the seconds in which others may still come.

    A Unix socket refuses at once. Over TCP a newcomer's SYN is dropped, so that it asks again 1 s later; the
    socket should be closed by then. Other systems than Linux go on connecting, and are given no time.
    """
    if listener.family == socket.AF_UNIX:
        listener.shutdown(socket.SHUT_RD)
        return 0.0
    if not sys.platform.startswith("linux"):
        return 0.0
    program = array.array("B", _SEGMENTS_BUT_SYN)
    address, length = program.buffer_info()
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", length // 8, address))
    except OSError:  # a sandbox may forbid it
        return 0.0
    return HANDSHAKE_TIME
