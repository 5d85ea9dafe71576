"""What documents cost: strangers' 19 KB before they are refused, 50 ms at most; and a step of full-size ones.

Nothing is timed. Calls are counted, Python's and C's, of which each takes less than a microsecond as a rule.
"""

import hashlib
import lzma
import sys
import zlib
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from random import Random
from types import FrameType
from typing import Any

import network_docs as nd
import pytest

from torkit.directory.authorities import parse_certificates
from torkit.directory.compression import decompress
from torkit.directory.consensus import (
    MAX_CONSENSUS_LEN,
    Preamble,
    parse_consensus,
    read_consensus,
    read_preamble,
)
from torkit.directory.diff import apply_diff, apply_in_steps
from torkit.directory.directory import Directory
from torkit.directory.http import decode_answer
from torkit.directory.microdesc import Microdescs
from torkit.directory.steps import Steps, complete
from torkit.directory.trust import verify, verify_in_steps
from torkit.errors import DocumentError, NoDirectory
from torkit.paths import choose
from torkit.paths.choose import prepare
from torkit.paths.constraints import Constraints
from torkit.testing.directory import consensus_diff, encode_microdescs, signed_part
from torkit.testing.directory.authority import HOUR

WIRE_LEN = 20_000  # bytes
MAX_WORK = 150_000  # calls: some 50 ms

AUTHORITIES = nd.authorities(3)
CERTIFICATES = parse_certificates(b"".join(one.certificate() for one in AUTHORITIES))
TRUSTED = {one.v3ident: one.nickname for one in AUTHORITIES}
GOOD = nd.consensus(nd.relays(6), AUTHORITIES)
FIRST_ENTRY, FOOTER = GOOD.index(b"\nr ") + 1, GOOD.index(b"directory-footer\n")
SIGNATURES = GOOD.index(b"directory-signature ")
ENTRY = GOOD[FIRST_ENTRY : GOOD.index(b"\nr ", FIRST_ENTRY) + 1]


MAX_STEP_WORK = 25_000  # calls between which nobody else has a turn: some 8 ms


class TooMuchWork(BaseException):
    """Ends what would go on for seconds."""


def work(call: Callable[[], object]) -> int:
    """How many calls it takes, up to MAX_WORK."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1
            if count > MAX_WORK:
                raise TooMuchWork

    sys.setprofile(note)
    try:
        with suppress(TooMuchWork):
            call()
    finally:
        sys.setprofile(None)
    return count


def refuse(call: Callable[[], object]) -> None:
    with pytest.raises((DocumentError, NoDirectory)):
        call()


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
    digest = hashlib.sha3_256(signed_part(GOOD)).hexdigest().encode()
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
    "annotations of a microdescriptor": (add_microdescs, lambda: b"onion-key\n" + b"@\n" * 2_500_000),
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
    assert work(lambda: refuse(lambda: read(decompress(wire, "deflate", MAX_CONSENSUS_LEN)))) < MAX_WORK


# --- Full size, in steps ------------------------------------------------------------------------------

RELAYS = nd.full_size()


@cache
def full_size() -> bytes:
    return nd.consensus(RELAYS, AUTHORITIES)


@cache
def full_directory() -> Directory:
    consensus = parse_consensus(full_size())
    microdescs = Microdescs()
    microdescs.add(
        encode_microdescs(RELAYS), {digest for digest in consensus.relays.digests if digest}, nd.NOW
    )
    return Directory(consensus, microdescs)


def on_the_slow_road() -> Preamble:
    return read_preamble(full_size().replace(b"\nw Bandwidth", b"\nunknown\nw Bandwidth"))


def answer_in(encoding: str, body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Encoding: %s\r\n\r\n" % encoding.encode() + body


def next_hour() -> tuple[bytes, bytes]:
    target = nd.consensus(nd.an_hour_later(RELAYS), AUTHORITIES, valid_after=nd.NOW + HOUR // 2)
    return full_size(), consensus_diff(full_size(), target)


STEPS: dict[str, Callable[[], Steps[Any]]] = {
    "deflate": lambda: decode_answer(answer_in("deflate", zlib.compress(full_size())), MAX_CONSENSUS_LEN),
    "lzma": lambda: decode_answer(
        answer_in("x-tor-lzma", lzma.compress(full_size(), lzma.FORMAT_ALONE)), MAX_CONSENSUS_LEN
    ),
    "signatures": lambda: verify_in_steps(read_preamble(full_size()), CERTIFICATES, TRUSTED, nd.NOW),
    "entries": lambda: read_consensus(read_preamble(full_size())),
    "entries on the slow road": lambda: read_consensus(on_the_slow_road()),
    "a diff": lambda: apply_in_steps(*next_hour()),
    "fetched microdescriptors": lambda: Microdescs().add_in_steps(
        encode_microdescs(RELAYS), frozenset(filter(None, full_directory().consensus.relays.digests)), nd.NOW
    ),
    "kept microdescriptors": lambda: Microdescs.decode_in_steps(encode_microdescs(RELAYS)),
    "exit policies, and whether it is enough": lambda: full_directory().renewed().is_usable_in_steps(),
    "what paths are drawn from": lambda: prepare(full_directory()),
}


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_no_step_of_a_full_size_directory_is_long(make: Callable[[], Steps[Any]]) -> None:
    steps = make()
    each = []
    has_ended = False

    def go_on() -> None:
        nonlocal has_ended
        try:
            next(steps)
        except StopIteration:
            has_ended = True

    while not has_ended:
        each.append(work(go_on))
    assert max(each) < MAX_STEP_WORK
    assert len(each) > 1


def test_no_exit_is_asked_again_whether_it_can_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask all took 22 ms at once, at the first look after each new consensus."""
    asked: list[int] = []

    def can_link(directory: Directory, place: int) -> bool:
        asked.append(place)
        return place % 2 == 0

    monkeypatch.setattr(choose, "can_link", can_link)
    directory = full_directory().renewed()
    complete(prepare(directory))
    assert sorted(asked) == directory.exits
    assert choose.linking_share(directory) > 0
    legs = Constraints(port=443, stable=True, links=True)
    assert all(choose.choose_path(directory, legs, Random(seed)) for seed in range(10))
    assert len(asked) == len(directory.exits)
