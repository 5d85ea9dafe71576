"""Microdescriptors: named by their digest, read when looked at, kept while listed."""

import contextlib
import hashlib
from typing import Any

import network_docs as nd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit.directory.microdesc import (
    KEEP_UNLISTED,
    MAX_MICRODESC_LEN,
    REJECT_ALL,
    Microdescs,
    decode_policy,
    exit_policies,
    parse_microdesc,
    split_microdescs,
)
from torkit.errors import DocumentError
from torkit.testing.directory import RelayDoc, encode_microdescs
from torkit.testing.directory.authority import rsa_der, rsa_key
from torkit.testing.encoding import bare64

DOC = RelayDoc(
    "one",
    b"\1" * 20,
    "1.2.3.4",
    onion_key=rsa_der(rsa_key(0)),
    policy="accept 80,443,6660-6669",
    policy6="reject 25",
    family="$" + "AB" * 20 + "=name Nick $short",
    family_ids="ed25519:abc ed25519:def",
)
GOOD = DOC.microdesc()
DOCS = nd.relays(9)


def test_microdesc_is_read() -> None:
    microdesc = parse_microdesc(GOOD)
    assert microdesc.ntor_onion_key == DOC.ntor_onion_key
    assert microdesc.ed25519_identity == DOC.ed25519_identity
    assert microdesc.family == {"$" + "AB" * 20, "nick", "$SHORT"}
    assert microdesc.family_ids == {"ed25519:abc", "ed25519:def"}
    assert str(microdesc.policy) == DOC.policy
    assert str(microdesc.policy6) == DOC.policy6
    assert exit_policies(GOOD) == (microdesc.policy, microdesc.policy6)


def test_least_microdesc_rejects_all() -> None:
    least = parse_microdesc(b"onion-key\nntor-onion-key " + bare64(b"\1" * 32).encode() + b"\n")
    assert least.ed25519_identity is None
    assert least.policy == least.policy6 == REJECT_ALL
    assert exit_policies(GOOD[:20]) == (REJECT_ALL, REJECT_ALL)


def test_old_addresses_and_protocols_are_read() -> None:
    microdesc = parse_microdesc(GOOD + b"a 9.9.9.9:1\na [2001:db8::1]:9001\npr Link=4\n")
    assert microdesc.ipv6 == ("2001:db8::1", 9001)
    assert microdesc.protocols is not None
    assert microdesc.protocols.supports("Link", 4)


def test_concatenation_is_split_to_exact_texts() -> None:
    text = encode_microdescs(DOCS) + GOOD
    texts = [doc.microdesc() for doc in DOCS] + [GOOD]
    assert [(digest, body) for digest, body, _ in split_microdescs(text)] == [
        (hashlib.sha256(one).digest(), one) for one in texts
    ]
    assert list(split_microdescs(b"")) == []


def test_annotations_are_not_hashed() -> None:
    note = b"@last-listed 2022-11-19 10:11:43\n@other x\n"
    found = list(split_microdescs(note + GOOD + GOOD + note + GOOD))
    assert [body for _, body, _ in found] == [GOOD] * 3
    assert [annotation.strip() for _, _, annotation in found] == [note.strip(), b"", note.strip()]
    assert [body for _, body, _ in split_microdescs(GOOD + note)] == [GOOD]


@pytest.mark.parametrize(
    "text",
    [b"junk\n" + GOOD, GOOD[:-1], b"\n", b"@note\n", b"onion-keys\n", GOOD + b"\0\n", b"x" * 10_000_000],
)
def test_concatenations_that_are_none(text: Any) -> None:
    with pytest.raises(DocumentError):
        list(split_microdescs(text))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"ntor-onion-key ", b"ntor-onion-key AA", "base64"),
        (b"ntor-onion-key ", b"other ", "lacks ntor-onion-key"),
        (b"id ed25519 ", b"id ed25519 AA", "base64"),
        (b"id ed25519 ", b"id ed25519 " + bare64(b"\3" * 32).encode() + b"\nid ed25519 ", "second"),
        (b"p accept 80", b"p accept 0,80", "not from 1"),
        (b"p accept 80", b"p permit 80", "accept or reject"),
        (b"p accept 80", b"p accept 80\np accept 80", "at most once"),
        (b"p accept 80", b"p accept 500,80", "not from 501"),
        (b"p6 reject 25", b"p6 reject 65536", "not from"),
        (b"p6 reject 25", b"p6 reject", "2 arguments"),
        (b"onion-key\n", b"onion-key extra\n", "0 arguments"),
        (b"-----END RSA", b"-----END DSA", "malformed"),
    ],
)
def test_malformed_microdescs_are_refused(old: bytes, new: bytes, reason: str) -> None:
    assert old in GOOD
    with pytest.raises(DocumentError, match=reason):
        parse_microdesc(GOOD.replace(old, new, 1))


def test_every_truncation_raises_only_document_errors_and_changes_the_digest() -> None:
    for end in range(len(GOOD)):
        with contextlib.suppress(DocumentError):
            parse_microdesc(GOOD[:end])
        with contextlib.suppress(DocumentError):
            assert hashlib.sha256(GOOD).digest() not in [one[0] for one in split_microdescs(GOOD[:end])]


def test_size_is_bounded() -> None:
    with pytest.raises(DocumentError, match="at most"):
        parse_microdesc(GOOD + b"x" * MAX_MICRODESC_LEN + b"\n")


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_random_damage_raises_only_document_errors(junk: bytes, at: int) -> None:
    for text in (junk, GOOD[:at] + junk + GOOD[at:]):
        with contextlib.suppress(DocumentError):
            list(split_microdescs(text))
        with contextlib.suppress(DocumentError):
            parse_microdesc(text)
        with contextlib.suppress(DocumentError):
            exit_policies(text)


def test_policy_at_the_edges_of_its_ranges() -> None:
    accept, reject = decode_policy("accept 1-2,80,65535"), decode_policy("reject 1-2,80,65535")
    accepted = [port for port in (1, 2, 3, 79, 80, 81, 65534, 65535) if accept.accepts(port)]
    assert accepted == [1, 2, 80, 65535]
    assert [port for port in (1, 2, 3, 79, 80, 81, 65534, 65535) if reject.accepts(port)] == [
        3,
        79,
        81,
        65534,
    ]
    assert not decode_policy("accept 80,443").accepts(79)
    assert decode_policy("reject 80,443").accepts(79)
    assert decode_policy("reject 1-65535").rejects_all
    assert not decode_policy("reject 25").rejects_all
    assert not decode_policy("accept 1-65535").rejects_all


@pytest.mark.parametrize("kind", ["accept", "reject"])
@pytest.mark.parametrize(
    "ports", ["0", "0-1", "0-65535", "1-0", "80,0", "80,79", "80,80", "1-", "-1", "65536"]
)
def test_no_policy_speaks_of_port_0_or_goes_back(kind: str, ports: str) -> None:
    """tor#41292."""
    with pytest.raises(ValueError, match=r"."):
        decode_policy(f"{kind} {ports}")


# What is kept.


def test_only_wanted_microdescs_are_taken() -> None:
    wanted = {hashlib.sha256(doc.microdesc()).digest() for doc in DOCS[:3]}
    kept = Microdescs()
    assert kept.add(encode_microdescs([DOCS[5], *DOCS[:2]]), wanted, nd.NOW) < wanted
    assert kept.add(encode_microdescs(DOCS[:3]), wanted, nd.NOW) == wanted
    assert set(kept) == wanted
    with pytest.raises(DocumentError, match="more than the 3 microdescriptors"):
        kept.add(encode_microdescs(DOCS[:4]), wanted, nd.NOW)
    assert kept[hashlib.sha256(DOCS[0].microdesc()).digest()] == DOCS[0].microdesc()


def test_what_is_kept_survives_encoding_and_expires_after_a_week() -> None:
    digests = [hashlib.sha256(doc.microdesc()).digest() for doc in DOCS]
    kept = Microdescs()
    kept.add(encode_microdescs(DOCS), set(digests), nd.NOW)
    kept.mark_listed([*digests[:4], b"absent"], nd.NOW + 10)
    again = Microdescs.decode(kept.encode())
    assert dict(again) == dict(kept)
    assert again.encode() == kept.encode()
    again.expire(nd.NOW + KEEP_UNLISTED)
    assert len(again) == 9
    again.expire(nd.NOW + KEEP_UNLISTED + 1)
    assert set(again) == set(digests[:4])
    assert b"absent" not in kept
    kept.expire(nd.NOW + KEEP_UNLISTED + 11)
    assert len(kept) == 0


def test_merging_keeps_both_and_the_later_time() -> None:
    one, other = Microdescs(), Microdescs()
    digests = {hashlib.sha256(doc.microdesc()).digest() for doc in DOCS}
    one.add(encode_microdescs(DOCS[:5]), digests, nd.NOW)
    other.add(encode_microdescs(DOCS[4:]), digests, nd.NOW + 20)
    one.merge(other)
    assert set(one) == digests
    one.expire(nd.NOW + KEEP_UNLISTED + 20)
    assert len(one) == 5


def test_malformed_annotations_count_as_long_ago() -> None:
    kept = Microdescs.decode(b"@last-listed 2022-99-19 10:11:43\n" + GOOD + b"@x\n" + DOCS[0].microdesc())
    assert len(kept) == 2
    kept.expire(nd.NOW)
    assert len(kept) == 0


def test_only_lines_at_the_end_are_annotations_of_what_follows() -> None:
    """A line with @ amid a text once ended it there, but not where annotations followed."""
    odd = b"onion-key\nx\n@y\nz\n"
    for text in (odd, odd + b"@a\n@b\n" + odd, odd + b"@a\n"):
        assert {exact for _, exact, _ in split_microdescs(text)} == {odd}
        assert dict(Microdescs.decode(text)) == {hashlib.sha256(odd).digest(): odd}
    assert [exact for _, exact, _ in split_microdescs(b"@a\nonion-key\n@b\nonion-key\n")] == [
        b"onion-key\n"
    ] * 2
    assert [annotation for _, _, annotation in split_microdescs(odd + b"@a\n@b\n" + odd)][1] == b"@a\n@b\n"
