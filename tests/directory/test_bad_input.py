"""What a hostile cache can send, to every parser: a DocumentError with its line, in bounded memory."""

import tracemalloc
from collections.abc import Callable

import network_docs as nd
import pytest

from torkit.directory.authorities import parse_certificates
from torkit.directory.consensus import MAX_CONSENSUS_LEN, parse_consensus
from torkit.directory.diff import apply_diff
from torkit.directory.extra_info import parse_extra_info
from torkit.directory.microdesc import MAX_MICRODESC_LEN, Microdescs, parse_microdesc, split_microdescs
from torkit.directory.server_descriptor import parse_server_descriptor
from torkit.errors import DocumentError
from torkit.testing.directory import consensus_diff, encode_microdescs
from torkit.testing.encoding import bare64

AUTHORITIES = nd.authorities(3)
RELAYS = nd.relays(6)
MICRODESC = nd.consensus(RELAYS, AUTHORITIES)
NS = nd.consensus(RELAYS, AUTHORITIES, flavor="ns")
ROUTER = nd.router(1)
MIB = 1 << 20

Parse = Callable[[bytes], object]
DOCUMENTS: dict[str, tuple[Parse, bytes]] = {
    "microdesc consensus": (parse_consensus, MICRODESC),
    "ns consensus": (parse_consensus, NS),
    "certificates": (parse_certificates, AUTHORITIES[0].certificate()),
    "microdescriptor": (parse_microdesc, RELAYS[0].microdesc()),
    "server descriptor": (parse_server_descriptor, ROUTER.descriptor()),
    "extra-info": (parse_extra_info, ROUTER.extra_info()),
    "diff": (
        lambda diff: apply_diff(MICRODESC, diff),
        consensus_diff(MICRODESC, nd.consensus(RELAYS[1:], AUTHORITIES)),
    ),
    "microdescriptors": (lambda text: list(split_microdescs(text)), encode_microdescs(RELAYS)),
}
each_parser = pytest.mark.parametrize(("parse", "good"), DOCUMENTS.values(), ids=DOCUMENTS)
# Microdescriptors one after another are only split and hashed: what is in each is read when it is looked at.
each_reader = pytest.mark.parametrize(
    ("parse", "good"), list(DOCUMENTS.values())[:-1], ids=list(DOCUMENTS)[:-1]
)


def refused(parse: Parse, text: bytes) -> DocumentError:
    """The error; parsing has taken no more memory than some multiple of the text."""
    tracemalloc.start()
    try:
        with pytest.raises(DocumentError) as caught:
            parse(text)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(text) + 4 * MIB
    finally:
        tracemalloc.stop()
    return caught.value


def insert_line(text: bytes, line: bytes) -> bytes:
    """The text with another second line."""
    at = text.index(b"\n") + 1
    return text[:at] + line + b"\n" + text[at:]


@each_parser
def test_the_good_one_is_read(parse: Parse, good: bytes) -> None:
    parse(good)


@each_parser
def test_a_nul_byte(parse: Parse, good: bytes) -> None:
    assert refused(parse, insert_line(good, b"x-new \0")).line == 2
    assert refused(parse, b"\0" + good).line == 1


@each_parser
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"])
def test_text_that_is_not_utf_8(parse: Parse, good: bytes, bad: bytes) -> None:
    assert refused(parse, insert_line(good, b"x-new " + bad)).line == 2


@each_reader
def test_a_line_of_10_megabytes(parse: Parse, good: bytes) -> None:
    error = refused(parse, insert_line(good, b"x-new " + b"x" * (10 * MIB)))
    assert error.line == 2 or "at most" in str(error)


@each_reader
def test_a_word_of_10_megabytes_where_a_keyword_should_be(parse: Parse, good: bytes) -> None:
    refused(parse, b"x" * (10 * MIB) + b"\n" + good)


@each_reader
def test_a_million_lines_that_are_unknown(parse: Parse, good: bytes) -> None:
    refused(parse, insert_line(good, b"\n".join([b"x-new 1"] * 1_000_000)))


@each_reader
def test_an_object_without_end(parse: Parse, good: bytes) -> None:
    refused(parse, insert_line(good, b"x-new\n-----BEGIN X-----\n" + (b"A" * 64 + b"\n") * 50_000))


@each_parser
def test_no_newline_at_the_end(parse: Parse, good: bytes) -> None:
    refused(parse, good[:-1])


@each_parser
def test_more_bytes_than_any_such_document_has(parse: Parse, good: bytes) -> None:
    line = b"x-new " + b"x" * 1000 + b"\n"
    refused(parse, good + line * (65 * MIB // len(line)))


@each_reader
def test_every_line_twice(parse: Parse, good: bytes) -> None:
    lines = good.splitlines(keepends=True)
    refused(parse, b"".join(line + line for line in lines))


@each_reader
def test_every_line_in_the_other_order(parse: Parse, good: bytes) -> None:
    refused(parse, b"".join(reversed(good.splitlines(keepends=True))))


# --- Of a consensus ------------------------------------------------------------------------------------

each_flavor = pytest.mark.parametrize("text", [MICRODESC, NS], ids=["microdesc", "ns"])


def entries(text: bytes) -> list[bytes]:
    first, *rest = text[: text.index(b"directory-footer\n")].split(b"\nr ")
    return [first + b"\n", *(b"r " + entry.rstrip(b"\n") + b"\n" for entry in rest)]


def with_entries(text: bytes, made: list[bytes]) -> bytes:
    return b"".join(made) + text[text.index(b"directory-footer\n") :]


@each_flavor
def test_a_million_r_lines(text: bytes) -> None:
    head, entry, *rest = entries(text)
    r_line = entry.split(b"\n")[0] + b"\n"
    count = min(1_000_000, (MAX_CONSENSUS_LEN - len(text)) // len(r_line))
    refused(parse_consensus, with_entries(text, [head, r_line * count, entry, *rest]))
    refused(parse_consensus, with_entries(text, [head, b"r \n" * 1_000_000, entry, *rest]))
    refused(
        parse_consensus, with_entries(text, [head, entry * (MAX_CONSENSUS_LEN // len(entry) - 10), *rest])
    )


@each_flavor
def test_entries_twice_or_out_of_order(text: bytes) -> None:
    head, *all_entries = entries(text)
    assert with_entries(text, [head, *all_entries]) == text
    for at in range(1, len(all_entries)):
        swapped = [*all_entries[: at - 1], all_entries[at], all_entries[at - 1], *all_entries[at + 1 :]]
        doubled = [*all_entries[:at], all_entries[at - 1], *all_entries[at:]]
        for wrong in (swapped, doubled):
            line = head.count(b"\n") + sum(one.count(b"\n") for one in wrong[:at]) + 1
            assert refused(parse_consensus, with_entries(text, [head, *wrong])).line == line


@each_flavor
@pytest.mark.parametrize("length", [0, 1, 19, 21, 31, 33, 1000])
def test_digests_of_unexpected_length(text: bytes, length: int) -> None:
    head, entry, *rest = entries(text)
    start = head.count(b"\n") + 1
    r_line, *others = entry.split(b"\n")
    fields = r_line.split(b" ")
    wrong = bare64(bytes(length)).encode()
    for at in (2, 3) if text is NS else (2,):
        broken = b" ".join([*fields[:at], wrong, *fields[at + 1 :]])
        made = with_entries(text, [head, b"\n".join([broken, *others]), *rest])
        assert refused(parse_consensus, made).line == start
    if text is MICRODESC:
        place = next(at for at, line in enumerate(others) if line.startswith(b"m "))
        others[place] = b"m " + wrong
        made = with_entries(text, [head, b"\n".join([r_line, *others]), *rest])
        assert refused(parse_consensus, made).line == start + 1 + place


@each_flavor
def test_very_many_flags_and_long_flags(text: bytes) -> None:
    head, entry, *rest = entries(text)
    for flags in (b"x " * 500_000, b"x" * 500_000):
        broken = entry.replace(b"\ns ", b"\ns " + flags + b" ", 1)
        refused(parse_consensus, with_entries(text, [head, broken, *rest]))


# --- Of policies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ports", ["0", "0-80", "80,0", "80-", "65536", "80-79", "80,80", "2,1", "1," * 5000])
def test_ports_of_a_summary(ports: str) -> None:
    relay = nd.relays(1)[0]
    relay.policy = f"accept {ports}"
    text = relay.microdesc()
    line = text[: text.index(b"\np ")].count(b"\n") + 2
    assert refused(parse_microdesc, text).line == line
    error = refused(parse_server_descriptor, ROUTER.descriptor(ipv6_policy=f"ipv6-policy accept {ports}\n"))
    assert error.line is not None
    text = nd.consensus([relay], AUTHORITIES, flavor="ns")
    line = text[: text.index(b"\np ")].count(b"\n") + 2
    assert refused(parse_consensus, text).line == line


# --- Of microdescriptors ------------------------------------------------------------------------------


def test_very_many_microdescriptors_that_nobody_asked_for() -> None:
    microdescs = Microdescs()
    text = b"onion-key\n" * 100_000
    tracemalloc.start()
    try:
        with pytest.raises(DocumentError, match="more than the 1 microdescriptors"):
            microdescs.add(text, {bytes(32)}, nd.NOW)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(text)
    finally:
        tracemalloc.stop()
    assert len(microdescs) == 0


def test_a_microdescriptor_that_is_all_family() -> None:
    relay = nd.relays(1)[0]
    relay.family = " ".join(["$" + "A" * 40] * (MAX_MICRODESC_LEN // 42 + 1))
    refused(parse_microdesc, relay.microdesc())
