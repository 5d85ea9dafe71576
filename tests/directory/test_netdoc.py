"""The scanner: items, objects, rules, and the values of arguments."""

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.directory.netdoc import (
    MAX_NICKNAME_LEN,
    MAX_OBJECT_LEN,
    MAX_SCAN_LEN,
    MAX_SCAN_LINES,
    Count,
    Place,
    Rule,
    check_text,
    decode_base64,
    decode_fingerprint,
    decode_int,
    decode_ipv4,
    decode_ipv6_addr_port,
    decode_nickname,
    decode_protocols,
    decode_time,
    encode_time,
    line_at,
    scan,
)
from torkit.errors import DocumentError

RULES = {
    "start": Rule(Count.ONCE, args=1, place=Place.START),
    "some": Rule(Count.AT_LEAST_ONCE),
    "maybe": Rule(Count.AT_MOST_ONCE, args=2, no_extra=True),
    "key": Rule(Count.ANY, objects=("RSA PUBLIC KEY",)),
    "soft": Rule(Count.ANY, objects=("THING",), object_optional=True),
    "end": Rule(Count.ONCE, place=Place.END),
}
GOOD = (
    b"start 3\nsome a b\n\nsome\t c\nmaybe 1 2\nkey\n-----BEGIN RSA PUBLIC KEY-----\nAAEC\nAwQ=\n"
    b"-----END RSA PUBLIC KEY-----\nunknown x\n-----BEGIN X Y-----\nAA==\n-----END X Y-----\nsoft\nend\n"
)


def test_scan_finds_items_with_arguments_objects_lines_and_ends() -> None:
    items = scan(GOOD, RULES, what="thing", first_line=10)
    assert items.one("start").args == ["3"]
    assert [item.args for item in items.all("some")] == [["a", "b"], ["c"]]
    assert items.all("key")[0].object == bytes([0, 1, 2, 3, 4])
    assert items.all("key")[0].line == 15
    assert GOOD[: items.all("key")[0].end].endswith(b"\nkey\n")
    assert GOOD[: items.one("end").end] == GOOD
    assert items.maybe("none") is None
    assert items.all("soft")[0].object == b""


def test_an_object_may_lack_its_equals_signs() -> None:
    """As the specification has it of certificates, though tor writes them."""
    items = scan(GOOD.replace(b"AwQ=", b"AwQ"), RULES, what="thing")
    assert items.all("key")[0].object == bytes([0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"start 3\n", b"", "must start with start"),
        (b"start 3\n", b"unknown 3\n", "must start with start"),
        (b"start 3\n", b"start\n", "1 arguments expected"),
        (b"start 3\n", b"start 3\nstart 3\n", "exactly once"),
        (b"maybe 1 2\n", b"maybe 1 2\nmaybe 1 2\n", "at most once"),
        (b"maybe 1 2\n", b"maybe 1 2 3\n", "2 arguments expected, 3 seen"),
        (b"some a b\n\nsome\t c\n", b"", "lacks some"),
        (b"end\n", b"", "lacks end"),
        (b"end\n", b"end\nsome\n", "must end with end"),
        (b"-----END RSA PUBLIC KEY-----\n", b"", "malformed or oversized object"),
        (b"AwQ=", b"Aw=Q", "not base64"),
        (b"AwQ=", b"AwQBA", "not base64"),
        (b"AwQ=", b"A=wQ", "not base64"),
        (b"key\n-----BEGIN RSA PUBLIC KEY-----", b"key\n-----BEGIN DSA-----", "object"),
        (b"key\n", b"", "object RSA PUBLIC KEY that it may not have"),
        (b"some a b\n", b"-some\n", "no keyword"),
        (b"some a b\n", b" some\n", "no keyword"),
        (b"some a b\n", b"so\xc3\xa9me\n", "no keyword"),
        (b"soft\n", b"soft\n-----BEGIN-----\n", "malformed BEGIN line"),
        (b"soft\n", b"soft\n-----BEGIN THING-----\n" + b"A" * 65 + b"\n-----END THING-----\n", "oversized"),
        (b"AAEC\n", (b"A" * 64 + b"\n") * (MAX_OBJECT_LEN // 64 + 1), "oversized"),
    ],
)
def test_scan_refuses_what_breaks_a_rule(old: bytes, new: bytes, reason: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(DocumentError, match=reason) as caught:
        scan(text, RULES, what="thing")
    assert caught.value.line is not None


def test_scan_bounds_lines_and_texts() -> None:
    for length, is_read in ((MAX_SCAN_LEN, True), (MAX_SCAN_LEN + 1, False)):
        text = b"start " + b"x" * (length - 16) + b"\nsome\nend\n"
        assert len(text) == length
        with nullcontext() if is_read else pytest.raises(DocumentError, match="bytes; at most"):
            assert scan(text, RULES, what="thing")
    for count, is_read in ((MAX_SCAN_LINES, True), (MAX_SCAN_LINES + 1, False)):
        text = b"start x\nsome\n" + b"x\n" * (count - 3) + b"end\n"
        with nullcontext() if is_read else pytest.raises(DocumentError, match="lines; at most"):
            assert scan(text, RULES, what="thing")
    with pytest.raises(DocumentError, match="empty"):
        scan(b"\n\n", RULES, what="thing")


def test_check_text_names_the_line() -> None:
    check_text("é\n".encode(), 3, "thing")
    for text, line in ((b"a\nb\0\n", 2), (b"a\nb\n\xff\n", 3)):
        with pytest.raises(DocumentError) as caught:
            check_text(text, 100, "thing")
        assert caught.value.line == line
    with pytest.raises(DocumentError, match="newline"):
        check_text(b"a", 100, "thing")
    with pytest.raises(DocumentError, match="at most 2"):
        check_text(b"aa\n", 2, "thing")
    assert [line_at(b"a\nb\n", at) for at in range(4)] == [1, 1, 2, 2]


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_document_errors(text: Any) -> None:
    try:
        check_text(text, 1000, "thing")
        scan(text, RULES, what="thing")
    except DocumentError:
        pass


@given(st.integers(0, 4_000_000_000))
def test_times_round_trip(seconds: int) -> None:
    text = encode_time(seconds)
    assert decode_time(*text.split()) == seconds
    assert datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() == seconds


@pytest.mark.parametrize(
    "text",
    ["2022-13-01 00:00:00", "2022-02-30 00:00:00", "2022-01-01 24:00:00", "x y", "٢022-01-01 00:00:00"],
)
def test_times_that_are_none(text: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of any words: Item.decode has better ones
        decode_time(*text.split())


def test_values_at_their_edges() -> None:
    assert decode_int("-5", -5, 5) == -5
    for bad in ("", "-", "+1", "1_0", " 1", "6", "٣", "99999999999"):
        with pytest.raises(ValueError):  # noqa: PT011  # of any words: Item.decode has better ones
            decode_int(bad, -5, 5)
    assert decode_base64("AAEC", 3) == decode_base64("AAEC", 3) == bytes([0, 1, 2])
    assert decode_base64("AA", 1) == decode_base64("AA==", 1) == b"\0"
    for bad in ("AAE", "AAECAw==", "A A=", "AA\n=", "é", "A" * 1000):
        with pytest.raises(ValueError, match="base64"):
            decode_base64(bad, 3)
    assert decode_fingerprint("aB" * 20) == b"\xab" * 20
    for bad in ("ab" * 19, "ab" * 21, "zz" * 20, "a " * 20):
        with pytest.raises(ValueError, match="fingerprint"):
            decode_fingerprint(bad)
    longest = "a9" * 9 + "Z"
    assert len(longest) == MAX_NICKNAME_LEN
    assert decode_nickname(longest) == longest
    for bad in ("", longest + "a", "a-b", "é", "٣"):
        with pytest.raises(ValueError, match="nickname"):
            decode_nickname(bad)
    assert decode_ipv4("255.0.9.10") == "255.0.9.10"
    for bad in ("256.0.0.1", "1.2.3", "1.2.3.4.", "1.2.3.4.5", "01.2.3.4", "1.2.3.4\n", ""):
        with pytest.raises(ValueError, match="IPv4"):
            decode_ipv4(bad)
    assert decode_ipv6_addr_port("[2001:DB8:0::1]:9001") == ("2001:db8::1", 9001)
    for bad in ("1.2.3.4:5", "[::1]:0", "[::1]:65536", "[::g]:1", "[fe80::1%eth0]:1", "[1.2.3.4]:5"):
        assert decode_ipv6_addr_port(bad) is None


def test_protocols_are_flags_not_a_ladder() -> None:
    protocols = decode_protocols("Link=1-3,5 Relay=4 Empty=")
    assert str(protocols) == "Link=1-3,5 Relay=4 Empty="
    assert [n for n in range(-1, 70) if protocols.supports("Link", n)] == [1, 2, 3, 5]
    assert not protocols.supports("Relay", 3)
    assert not protocols.supports("None", 0)
    assert decode_protocols("Link=3-4").missing_from(protocols) == ["Link=4"]
    assert decode_protocols("Link=1,2") == decode_protocols("Link=1-2") != decode_protocols("Link=1")


@pytest.mark.parametrize(
    "text",
    [
        "Link",
        "=1",
        "Link=1 Link=2",
        "Link=64",
        "Link=0-4294967295",
        "Link=3-1",
        "Link=1,",
        "Lünk=1",
        "x" * 101 + "=1",
        "Link=-1",
    ],
)
def test_protocols_that_are_none(text: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of any words: Item.decode has better ones
        decode_protocols(text)
