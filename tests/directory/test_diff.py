"""Consensus diffs: what they make, and each way in which one is refused."""

import hashlib
import json
import tracemalloc
from base64 import b64decode
from contextlib import suppress
from pathlib import Path
from typing import Any

import network_docs as nd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit.directory.authorities import parse_certificates
from torkit.directory.compression import decompress
from torkit.directory.consensus import MAX_CONSENSUS_LEN, parse_consensus
from torkit.directory.diff import MAX_COMMANDS, apply_diff, is_diff, signed_digest
from torkit.directory.steps import complete
from torkit.directory.trust import verify
from torkit.errors import DocumentError
from torkit.testing.directory import consensus_diff, sign_consensus, signed_part
from torkit.testing.directory.authority import HOUR

VECTORS = json.loads((Path(__file__).parent / "vectors" / "consensus_diff.json").read_text())["records"]
AUTHORITIES = nd.authorities(3)


def an_hour_later(count: int, seed: int = 1) -> tuple[bytes, bytes]:
    """Two consensuses."""
    relays = nd.relays(count)
    later = nd.consensus(nd.an_hour_later(relays, seed), AUTHORITIES, valid_after=nd.NOW + HOUR // 2)
    return nd.consensus(relays, AUTHORITIES), later


def script(base: bytes, commands: bytes, target: bytes | None = None) -> bytes:
    """A diff of these commands that claims to make `target`."""
    digests = hashlib.sha3_256(signed_part(base)), hashlib.sha3_256(target or b"")
    return (
        b"network-status-diff-version 1\nhash %s\n"
        % b" ".join(digest.hexdigest().encode() for digest in digests)
        + commands
    )


BASE, TARGET = an_hour_later(40)
DIFF = consensus_diff(BASE, TARGET)
LINES = BASE.count(b"\n")
FIVE = b"1\n2\n3\n4\ndirectory-signature x\n"


@pytest.mark.parametrize("record", VECTORS, ids=lambda record: record["flavor"])
def test_what_tor_answers_applies(record: dict[str, Any]) -> None:
    base, target = record["base"].encode(), record["target"].encode()
    assert decompress(b64decode(record["deflate"]), "deflate", len(target)) == target
    assert set(record["diff"]) == {"identity", "gzip", "x-zstd", "x-tor-lzma"}
    for encoding, body in record["diff"].items():
        diff = decompress(b64decode(body), encoding, MAX_CONSENSUS_LEN)
        assert is_diff(diff)
        assert apply_diff(base, diff) == target
    assert parse_consensus(target).flavor == record["flavor"]


@pytest.mark.parametrize("count", [1, 2, 40, 500])
@pytest.mark.parametrize("seed", range(4))
def test_a_diff_makes_the_next_consensus(count: int, seed: int) -> None:
    base, target = an_hour_later(count, seed)
    diff = consensus_diff(base, target)
    assert is_diff(diff)
    assert not is_diff(target)
    assert apply_diff(base, diff) == target
    certificates = parse_certificates(b"".join(one.certificate() for one in AUTHORITIES))
    verify(
        parse_consensus(apply_diff(base, diff)),
        certificates,
        {one.v3ident: one.nickname for one in AUTHORITIES},
        nd.NOW + HOUR,
    )


@pytest.mark.parametrize(
    ("commands", "made"),
    [
        (b"", FIVE),
        (b"5c\nx\n.\n", b"1\n2\n3\n4\nx\n"),
        (b"4,$d\n", b"1\n2\n3\n"),
        (b"1,$d\n", b""),
        (b"3d\n1d\n", b"2\n4\ndirectory-signature x\n"),
        (b"2,4c\na\n\n..\n.\n", b"1\na\n\n..\ndirectory-signature x\n"),
        (b"5a\ny\n.\n5a\nx\n.\n5d\n0a\nfirst\n.\n", b"first\n1\n2\n3\n4\nx\ny\n"),
        (b"3c\nc\n.\n2a\na\n.\n2c\nb\n.\n", b"1\nb\na\nc\n4\ndirectory-signature x\n"),
    ],
)
def test_each_command_does_what_ed_does(commands: bytes, made: bytes) -> None:
    assert apply_diff(FIVE, script(FIVE, commands, made)) == made


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        (b"6d\n", "past the end"),
        (b"6a\nx\n.\n", "past the end"),
        (b"1,6d\n", "past the end"),
        (b"999999999d\n", "past the end"),
        (b"0d\n", "past the end"),
        (b"0c\nx\n.\n", "past the end"),
        (b"0,2d\n", "past the end"),
        (b"2d\n3d\n", "out of order"),
        (b"2d\n2d\n", "out of order"),
        (b"2,4d\n1,2c\nx\n.\n", "out of order"),
        (b"2d\n2a\nx\n.\n", "out of order"),
        (b"4d\n1,$d\n", "out of order"),
        (b"3,2d\n", "not a range"),
        (b"3,3d\n", "not a range"),
        (b"5,$d\n", "not a range"),
        (b"1,2a\nx\n.\n", "not a range"),
        (b"1,$c\nx\n.\n", "not a range"),
        (b"1a\n.\n", "empty"),
        (b"1c\n.\n", "empty"),
        (b"1c\nx\n", "no end"),
        (b"1c\nx\n..\n. \n", "no end"),
        (b"1c\n", "no end"),
        (b"\n", "not a command"),
        (b"d\n", "not a command"),
        (b"$d\n", "not a command"),
        (b"1\n", "not a command"),
        (b"1,d\n", "not a command"),
        (b" 1d\n", "not a command"),
        (b"1d \n", "not a command"),
        (b"1dd\n", "not a command"),
        (b"-1d\n", "not a command"),
        (b"+1d\n", "not a command"),
        (b"1i\nx\n.\n", "not a command"),
        (b"1s/1/2/\n", "not a command"),
        (b"w /tmp/x\n", "not a command"),
        (b"!true\n", "not a command"),
        (b"1234567890d\n", "not a command"),
        ("²d\n".encode(), "not a command"),
        (b"9" * 1_000_000 + b"d\n", "not a command"),
    ],
)
def test_what_is_no_edit_from_the_back_is_refused(commands: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason) as caught:
        apply_diff(FIVE, script(FIVE, commands))
    assert caught.value.line in (3, 4)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b"version 1", b"version 2", 1),
        (b"version 1", b"version 1 ", 1),
        (b"network-status-diff", b"network-status", 1),
        (b"\nhash ", b"\nsha3 ", 2),
        (b"\nhash ", b"\nhash 0", 2),
        (b"\nhash ", b"\nhash  ", 2),
        (DIFF.split()[3], DIFF.split()[3][:-2], 2),
        (DIFF.split()[4], DIFF.split()[4] + b" ", 2),
        (DIFF.split()[4], DIFF.split()[4] + b"00", 2),
        (DIFF.split()[4], b"x" * 64, 2),
        (DIFF.split()[3], b"0" * 64, 2),  # of another base
        (DIFF.split()[4], b"0" * 64, 2),  # with another result
    ],
)
def test_the_first_two_lines_must_be_right(old: bytes, new: bytes, line: int) -> None:
    assert old in DIFF
    with pytest.raises(DocumentError) as caught:
        apply_diff(BASE, DIFF.replace(old, new, 1))
    assert caught.value.line == line


def test_another_base_is_refused_and_other_signatures_do_not_matter() -> None:
    with pytest.raises(DocumentError, match="another consensus than ours"):
        apply_diff(TARGET, DIFF)
    unsigned = BASE[: BASE.index(b"directory-signature ")]
    resigned = sign_consensus(unsigned, AUTHORITIES[:1])
    assert complete(signed_digest(resigned)) == complete(signed_digest(BASE))
    assert apply_diff(resigned, DIFF) == TARGET
    with pytest.raises(DocumentError, match="lacks directory-signature"):
        apply_diff(unsigned, DIFF)


def test_every_truncation_is_refused() -> None:
    for length in range(len(DIFF)):
        with pytest.raises(DocumentError):
            apply_diff(BASE, DIFF[:length])


def test_a_diff_can_neither_be_nor_make_more_than_a_consensus() -> None:
    line = b"x" * 1023 + b"\n"
    block = b"4a\n" + line * (MAX_CONSENSUS_LEN >> 10) + b".\n"
    with pytest.raises(DocumentError, match=r"consensus diff of .* at most"):
        apply_diff(FIVE, script(FIVE, block))
    block = b"0a\n" + line * ((MAX_CONSENSUS_LEN >> 10) - 1) + b".\n"
    base = line * 2 + FIVE
    with pytest.raises(DocumentError, match="makes 167"):
        apply_diff(base, script(base, block))


def test_very_many_commands_are_refused_in_bounded_memory() -> None:
    diff = script(FIVE, b"0a\nx\n.\n" * 200_000)
    tracemalloc.start()
    try:
        with pytest.raises(DocumentError, match=f"{MAX_COMMANDS} commands"):
            apply_diff(FIVE, diff)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@settings(deadline=None)
@given(st.data())
def test_a_damaged_diff_makes_the_target_or_is_refused(data: st.DataObject) -> None:
    diff = bytearray(DIFF)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(diff)))
        diff[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from([b"", b"\n", b"1", b",", b"$", b"d", b"a", b"c", b".\n", b"\0", b"\xff"])
        )
    with suppress(DocumentError):
        assert apply_diff(BASE, bytes(diff)) == TARGET


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"1", b"2", b"5", b"$", b",", b"a", b"c", b"d", b"\n", b"\n.\n", b"x"])))
def test_any_commands_give_a_consensus_or_a_declared_error(parts: list[bytes]) -> None:
    with pytest.raises(DocumentError) as caught:  # no target is known: even what applies has another digest
        apply_diff(FIVE, script(FIVE, b"".join(parts) + b"\n"))
    assert caught.value.line is not None
