"""What strangers' documents cost before they are refused: 19 KB on the wire, 50 ms at most.

Nothing is timed. Calls are counted, Python's and C's, of which each takes less than a microsecond as a rule.
"""

import hashlib
import sys
import zlib
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import network_docs as nd
import pytest

from torkit.directory.authorities import parse_certificates
from torkit.directory.compression import decompress
from torkit.directory.consensus import MAX_CONSENSUS_LEN, read_preamble
from torkit.directory.diff import apply_diff
from torkit.directory.microdesc import Microdescs
from torkit.directory.trust import verify
from torkit.errors import DocumentError, NoDirectory

WIRE_LEN = 20_000  # bytes
MAX_WORK = 150_000  # calls: some 50 ms

AUTHORITIES = nd.authorities(3)
CERTIFICATES = parse_certificates(b"".join(one.certificate() for one in AUTHORITIES))
TRUSTED = {one.v3ident: one.nickname for one in AUTHORITIES}
GOOD = nd.consensus(nd.relays(6), AUTHORITIES)
FIRST_ENTRY, FOOTER = GOOD.index(b"\nr ") + 1, GOOD.index(b"directory-footer\n")
SIGNATURES = GOOD.index(b"directory-signature ")
ENTRY = GOOD[FIRST_ENTRY : GOOD.index(b"\nr ", FIRST_ENTRY) + 1]


class TooMuchWork(BaseException):
    """Ends what would go on for seconds."""


def work(call: Callable[[], object]) -> int:
    """How many calls it takes to refuse."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1
            if count > MAX_WORK:
                raise TooMuchWork

    sys.setprofile(note)
    try:
        with suppress(TooMuchWork), pytest.raises((DocumentError, NoDirectory)):
            call()
    finally:
        sys.setprofile(None)
    return count


def many_entries() -> bytes:
    """Honest in form, each with an unknown line, which takes the slow road."""
    entries = []
    for number in range(4000):
        words = ENTRY.split(b" ")
        words[2] = b64encode(number.to_bytes(4, "big") + bytes(16)).rstrip(b"=")
        entries.append(b" ".join(words) + b"x\n")
    return GOOD[:FIRST_ENTRY] + b"".join(entries) + GOOD[FOOTER:]


def read_untrusted(text: bytes) -> None:
    """All that is done with a consensus before its signatures hold."""
    verify(read_preamble(text), CERTIFICATES, TRUSTED, nd.NOW)


def add_microdescs(text: bytes) -> None:
    Microdescs().add(text, frozenset(n.to_bytes(32, "big") for n in range(500)), nd.NOW)


def diff_of(commands: bytes) -> bytes:
    digest = hashlib.sha3_256(nd.signed_part(GOOD)).hexdigest().encode()
    return b"network-status-diff-version 1\nhash %s %s\n" % (digest, digest) + commands


CERTIFICATE = AUTHORITIES[0].certificate()
# By what is in it: an answer, and who reads it.
ANSWERS: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes]]] = {
    "entries of half a million lines": (
        read_untrusted,
        lambda: GOOD[:FIRST_ENTRY] + (ENTRY + b"z\n" * 500_000) * 14 + GOOD[FOOTER:],
    ),
    "entries on the slow road": (read_untrusted, many_entries),
    "a preamble of a million lines": (
        read_untrusted,
        lambda: GOOD[:FIRST_ENTRY] + b"z\n" * 1_000_000 + GOOD[FIRST_ENTRY:],
    ),
    "a preamble of as many lines as fit": (
        read_untrusted,
        lambda: GOOD[:FIRST_ENTRY] + b"z\n" * 30_000 + GOOD[FIRST_ENTRY:],
    ),
    "a million parameters": (
        read_untrusted,
        lambda: GOOD.replace(b"params ", b"params " + b"x=1 " * 1_000_000, 1),
    ),
    "a million lines of a footer": (
        read_untrusted,
        lambda: GOOD[:SIGNATURES] + b"z\n" * 1_000_000 + GOOD[SIGNATURES:],
    ),
    "a million lines among signatures": (read_untrusted, lambda: GOOD + b"z\n" * 1_000_000),
    "as many lines among signatures as fit": (read_untrusted, lambda: GOOD + b"z\n" * 30_000),
    "signatures": (read_untrusted, lambda: GOOD + GOOD[SIGNATURES:] * 3000),
    "microdescriptors": (add_microdescs, lambda: b"onion-key\n" * 1_000_000),
    "certificates": (parse_certificates, lambda: CERTIFICATE * 250),
    "beginnings of certificates": (parse_certificates, lambda: b"dir-key-certificate-version 3\n" * 8000),
    "a certificate of many lines": (
        parse_certificates,
        lambda: AUTHORITIES[0].certificate_body() + b"z\n" * 100_000,
    ),
    "commands of a diff": (
        lambda diff: apply_diff(GOOD, diff),
        lambda: diff_of(b"0a\nx\n.\n" * 300_000),
    ),
}


@pytest.mark.parametrize(("read", "make"), ANSWERS.values(), ids=ANSWERS)
def test_19_kilobytes_cost_little_before_they_are_refused(
    read: Callable[[bytes], object], make: Callable[[], bytes]
) -> None:
    wire = zlib.compress(make().replace(b"valid-after 2", b"valid-after 1", 1), 9)
    assert len(wire) <= WIRE_LEN
    assert work(lambda: read(decompress(wire, "deflate", MAX_CONSENSUS_LEN))) < MAX_WORK
