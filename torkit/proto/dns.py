"""The server's side of DNS, as far as programs on this machine ask for names: one question, one answer.

No name is looked up here. RFC 1035, sections 3.5 and 4; RFC 3596 for IPv6. The part of a query
after its question (EDNS) is not read: a program that uses EDNS has to understand an answer without it.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from torkit.errors import PeerError

# Specification constants, RFC 1035, section 4.1.

HEADER = struct.Struct(">HHHHHH")  # id, flags, questions, answers, authorities, additional records

IS_RESPONSE = 0x8000
OPCODE = 0x7800  # 0 is QUERY
RECURSION_DESIRED = 0x0100
RECURSION_AVAILABLE = 0x0080

INTERNET = 1  # QCLASS
QUESTION_NAME = b"\xc0\x0c"  # a pointer to offset 12, where the question's name begins

MAX_LABEL_LEN = 63  # bytes
MAX_NAME_LEN = 255  # bytes on the wire, with lengths and the root
MAX_ANSWER_LEN = 512  # bytes of a whole answer: section 4.2.1


class Type(IntEnum):
    """The kinds of questions that are answered here."""

    A = 1
    PTR = 12
    AAAA = 28


class Code(IntEnum):
    """RCODE: how an answer went."""

    NOERROR = 0
    SERVFAIL = 2  # nothing is known of the name now
    NXDOMAIN = 3  # there is no such name
    NOTIMP = 4  # this is not answered here


class Query(NamedTuple):
    """One question.

    `name` has no final dot; a byte that is in no host name became a mark that is in none either. `type` is
    None for a question that is not answered here. `question` is as it came, for the answer to repeat.
    """

    id: int
    name: str
    type: Type | None
    is_recursion_desired: bool
    question: bytes


def parse_query(packet: bytes) -> Query:
    """Read one query. Raises PeerError for anything else, which deserves no answer."""
    if len(packet) < HEADER.size:
        raise PeerError(f"a DNS query has at least {HEADER.size} bytes, not {len(packet)}")
    number, flags, questions, answers, authorities, _ = HEADER.unpack_from(packet)
    if flags & IS_RESPONSE:
        raise PeerError("expected a DNS query and saw a response")
    if (questions, answers, authorities) != (1, 0, 0):
        raise PeerError(f"a DNS query has one question, not {questions} and {answers + authorities} answers")
    name, end = _read_name(packet, HEADER.size)
    if len(packet) < end + 4:
        raise PeerError("a DNS question ends before its type and class")
    asked, asked_class = struct.unpack_from(">HH", packet, end)
    is_served = not flags & OPCODE and asked_class == INTERNET and asked in frozenset(Type)
    return Query(
        number,
        name,
        Type(asked) if is_served else None,
        bool(flags & RECURSION_DESIRED),
        packet[HEADER.size : end + 4],
    )


def _read_name(packet: bytes, at: int) -> tuple[str, int]:
    """Returns the name at `at`, and where it ends. No pointer is allowed: nothing stands before it."""
    labels: list[str] = []
    start = at
    while True:
        if at >= len(packet):
            raise PeerError("a DNS name has no end")
        length = packet[at]
        at += 1
        if length > MAX_LABEL_LEN:
            raise PeerError(f"a label of a question has at most {MAX_LABEL_LEN} bytes, not {length}")
        if at + length - start > MAX_NAME_LEN or at + length > len(packet):
            raise PeerError(f"a DNS name is cut off, or longer than {MAX_NAME_LEN} bytes")
        if length == 0:
            return ".".join(labels), at
        label = packet[at : at + length].replace(b".", b"\xff")
        labels.append(label.decode("ascii", "replace"))
        at += length


def encode_answer(
    query: Query,
    code: Code,
    found: Sequence[IPv4Address | IPv6Address | str] = (),
    *,
    ttl: int = 0,
) -> bytes:
    """Returns the answer to `query`. `ttl` is how long it may be remembered, in seconds.

    `found` are addresses or host names of the type asked for. Left out are those for which there is no room
    and names that DNS cannot write.
    """
    records = b""
    count = 0
    room = MAX_ANSWER_LEN - HEADER.size - len(query.question)
    for value in found:
        assert query.type is not None
        data = _encode_name(value) if isinstance(value, str) else value.packed
        if data is None:
            continue
        record = QUESTION_NAME + struct.pack(">HHIH", query.type, INTERNET, ttl, len(data)) + data
        if len(records) + len(record) <= room:
            records += record
            count += 1
    flags = IS_RESPONSE | RECURSION_AVAILABLE | code
    if query.is_recursion_desired:
        flags |= RECURSION_DESIRED
    return HEADER.pack(query.id, flags, 1, count, 0, 0) + query.question + records


def _encode_name(name: str) -> bytes | None:
    labels = name.rstrip(".").split(".")
    if not name.isascii() or not all(0 < len(label) <= MAX_LABEL_LEN for label in labels):
        return None
    encoded = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    return encoded if len(encoded) <= MAX_NAME_LEN else None


def address_of_reverse_name(name: str) -> IPv4Address | IPv6Address | None:
    """Returns the address that a name below in-addr.arpa or ip6.arpa stands for; None for any other name."""
    labels = name.lower().split(".")
    parts = labels[-3::-1]
    try:
        match labels[-2:]:
            case ["in-addr", "arpa"] if len(parts) == 4:
                return IPv4Address(".".join(parts))
            case ["ip6", "arpa"] if len(parts) == 32 and all(len(part) == 1 for part in parts):
                return IPv6Address(int("".join(parts), 16))
    except ValueError:
        pass
    return None
