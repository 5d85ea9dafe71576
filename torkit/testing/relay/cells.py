"""Cells as the relay writes and reads them. tor-spec, "Cells" and "Relay cells"."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from torkit._fast.cells import Command

# Constants of the specification, stated here again on purpose: the fake is the second opinion.
CELL_BODY_LEN = 509  # tor-spec, "Cell Packet format"
RELAY_HEADER_LEN = 11  # tor-spec, "Relay cells"
RELAY_BODY_LEN = CELL_BODY_LEN - RELAY_HEADER_LEN
CIRCWINDOW_START, CIRCWINDOW_INCREMENT = 1000, 100  # tor-spec, "Circuit-level flow control"
STREAMWINDOW_START, STREAMWINDOW_INCREMENT = 500, 50  # tor-spec, "Stream-level flow control"
MAX_RELAY_EARLY = 8  # tor-spec, "Handling relay_early cells"
PADDING_LINK = 5  # the first link protocol with padding

NTOR, NTOR_V3 = 2, 3  # handshake types of CREATE2
CC_REQUEST, CC_RESPONSE, SUBPROTO_REQUEST = 1, 2, 3  # ntor-v3 extension types
RELAY_CRYPT_CGO = b"\x02\x06"  # a subprotocol request for Relay=6

PROTOCOL, CONNECTFAILED, OR_IDENTITY = 1, 6, 7  # reasons in DESTROY
DONE, EXITPOLICY, NOTDIRECTORY = 6, 4, 14  # reasons in END

SENDME_V1 = 1

# Relay-cell format v1, proposals 340 and 359: the commands that carry a stream id, and the others.
STREAM_COMMANDS = frozenset({1, 2, 3, 4, 11, 12, 13, 43, 44})
OTHER_COMMANDS = frozenset({5, 6, 7, 8, 9, 10, 14, 15, *range(19, 23), *range(32, 43)})

# What a relay lists in its "pr" line.
FULL = "Cons=2 DirCache=2 FlowCtrl=1-2 Link=4-5 Microdesc=2 Relay=2-6"
WITHOUT_NTOR_V3 = "Cons=2 DirCache=2 FlowCtrl=1-2 Link=4-5 Microdesc=2 Relay=2-3"
WITHOUT_CONGESTION_CONTROL = "Cons=2 DirCache=2 FlowCtrl=1 Link=4-5 Microdesc=2 Relay=2-6"
WITHOUT_CGO = "Cons=2 DirCache=2 FlowCtrl=1-2 Link=4-5 Microdesc=2 Relay=2-4"


def ignore(*_: object) -> None:
    """The handler that does nothing: silence."""


class HandshakeRefusedError(Exception):
    """What the client sent in CREATE_FAST, CREATE2 or EXTEND2 is not a handshake with this relay."""


def encode_cell(circ_id: int, command: int, body: bytes = b"") -> bytes:
    """One cell of link protocol 4 or later; a fixed-length body is padded with zeros."""
    head = struct.pack(">IB", circ_id, command)
    if command == Command.VERSIONS or command >= 128:
        return head + struct.pack(">H", len(body)) + body
    return head + body.ljust(CELL_BODY_LEN, b"\0")


def encode_versions(versions: Iterable[int]) -> bytes:
    """The first cell of a link, with its 2-byte circuit id."""
    body = b"".join(struct.pack(">H", version) for version in versions)
    return struct.pack(">HBH", 0, Command.VERSIONS, len(body)) + body


@dataclass(frozen=True)
class RelayCell:
    """The decoded body of a RELAY or RELAY_EARLY cell that a hop recognized, and what fills it up."""

    command: int
    stream_id: int
    body: bytes
    early: bool = False
    padding: bytes = field(default=b"", compare=False, repr=False)
