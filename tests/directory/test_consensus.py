"""The consensus: read strictly, believed only with enough signatures at the right time."""

import contextlib
import hashlib
import re
from dataclasses import replace

import network_docs as nd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit.directory.authorities import parse_certificates
from torkit.directory.consensus import MAX_CONSENSUS_LEN, MAX_SIGNATURES, parse_consensus, read_preamble
from torkit.directory.entries import MAX_RELAYS
from torkit.directory.trust import (
    EARLY_SKEW,
    REASONABLY_LIVE,
    Liveness,
    check_times,
    length_of,
    missing_certificates,
    verify,
)
from torkit.errors import DocumentError, NoDirectory
from torkit.params import PARAMETERS
from torkit.testing.directory import sign_consensus
from torkit.testing.directory.authority import HOUR, rsa_key
from torkit.testing.directory.consensus import WEIGHTS

AUTHORITIES = nd.authorities(5)
CERTIFICATES = tuple(parse_certificates(one.certificate())[0] for one in AUTHORITIES)
TRUSTED = {one.v3ident: one.nickname for one in AUTHORITIES}
RELAYS = nd.relays(12)
GOOD = nd.consensus(RELAYS, AUTHORITIES, params="a=1 bwweightscale=12000 circwindow=-5")
UNSIGNED = GOOD[: GOOD.index(b"directory-signature ")]
SMALL = nd.consensus(RELAYS[:2], AUTHORITIES[:1])
R_LINES = [line for line in GOOD.splitlines(keepends=True) if line.startswith(b"r ")]


def entry(number: int) -> bytes:
    """The whole entry of the number-th relay in the document."""
    start = GOOD.index(R_LINES[number])
    return GOOD[start : GOOD.index(R_LINES[number + 1])]


def time_line(keyword: bytes, instead: bytes = b"") -> bytes:
    """The line of a time, which may be said to be another's."""
    start = GOOD.index(keyword)
    line = GOOD[start : GOOD.index(b"\n", start)]
    return line.replace(keyword, instead) if instead else line


def resigned(old: bytes, new: bytes) -> bytes:
    """The good consensus with one change, signed again: the authorities' own mistake."""
    assert old in UNSIGNED
    return sign_consensus(UNSIGNED.replace(old, new, 1), AUTHORITIES)


def test_good_consensus_is_read() -> None:
    consensus = parse_consensus(GOOD)
    assert consensus.flavor == "microdesc"
    assert (consensus.valid_after, consensus.valid_until) == (nd.NOW - 1800, nd.NOW - 1800 + 3 * HOUR)
    assert consensus.fresh_until == nd.NOW + 1800
    assert consensus.method == 35
    assert consensus.params == {"a": 1, "bwweightscale": 12000, "circwindow": -5}
    assert consensus.bandwidth_weights == WEIGHTS
    assert consensus.shared_random_current == (3, bytes([1] * 32))
    assert consensus.required_client_protocols.supports("Link", 4)
    assert consensus.client_versions == ("0.4.9.11",)
    assert len(consensus.signatures) == 5
    assert len(consensus.relays) == 12


def test_parameters_have_defaults_and_ranges() -> None:
    consensus = parse_consensus(GOOD)
    assert consensus.param("bwweightscale") == 12000
    assert consensus.param("cbtquantile") == PARAMETERS["cbtquantile"].default
    assert consensus.param("circwindow") == PARAMETERS["circwindow"].low


def test_relays_are_as_written_in_order_of_identity() -> None:
    relays = parse_consensus(GOOD).relays
    docs = sorted(RELAYS, key=lambda doc: doc.identity)
    for index, (relay, doc) in enumerate(zip(relays, docs, strict=True)):
        assert (relay.nickname, relay.identity, relay.address) == (doc.nickname, doc.identity, doc.address)
        assert (relay.or_port, relay.bandwidth) == (9001, doc.bandwidth)
        assert relay.flags == set(doc.flags.split())
        assert relay.digest == hashlib.sha256(doc.microdesc()).digest()
        assert (relay.ipv6 is None) == (doc.ipv6 is None)
        assert relay.version == "Tor 0.4.9.11"
        assert relay.protocols.supports("Relay", 6)
        assert relays.index_of(doc.identity) == index
        assert relays.indexes_of_nickname(doc.nickname.upper()) == [index]
        assert (relays.identities[index], relays.digests[index]) == (relay.identity, relay.digest)
        assert (relays.flags[index], relays.bandwidths[index]) == (relay.flags, relay.bandwidth)
    assert relays.index_of(b"\0" * 20) is relays.index_of(b"\xff" * 20) is None
    assert relays.indexes_of_nickname("relay.*") == []
    assert relays[-1] == relays[11] == relays[10:][1]
    with pytest.raises(IndexError):
        relays[12]


def test_nicknames_are_looked_for_in_the_text_once() -> None:
    """Each path is held against all that the user has excluded: ten names took it a third of a second."""
    relays = parse_consensus(GOOD).relays
    relays.indexes_of_nickname(RELAYS[0].nickname)
    relays._text = b""
    for name in ("nobody", "ünicode", "\udcff", "\u212a"):
        assert relays.indexes_of_nickname(name) == []
    for doc in RELAYS:
        index = relays.index_of(doc.identity)
        assert relays.indexes_of_nickname(doc.nickname.swapcase()) == [index]


def test_a_relay_whose_line_has_more_spaces_is_found_by_its_nickname() -> None:
    """It was listed and not found."""
    text = GOOD.replace(R_LINES[3], R_LINES[3].replace(b"r ", b"r  ", 1))
    relays = parse_consensus(text).relays
    assert relays.indexes_of_nickname(R_LINES[3].split()[1].decode()) == [3]


def test_consensus_verifies_and_names_who_signed() -> None:
    assert verify(parse_consensus(GOOD), CERTIFICATES, TRUSTED, nd.NOW) == tuple(TRUSTED.values())


def test_ns_flavor_verifies_by_sha1() -> None:
    consensus = parse_consensus(nd.consensus(RELAYS, AUTHORITIES, flavor="ns"))
    assert len(verify(consensus, CERTIFICATES, TRUSTED, nd.NOW)) == 5
    assert len(consensus.relays.digests[0] or b"") == 20
    assert [one.digest for one in consensus.relays] == consensus.relays.digests
    wrong = parse_consensus(nd.consensus(RELAYS, AUTHORITIES, flavor="ns", algorithm="sha256"))
    with pytest.raises(NoDirectory, match="0 good signatures"):
        verify(wrong, CERTIFICATES, TRUSTED, nd.NOW)


def test_three_of_five_signatures_are_enough_and_two_are_not() -> None:
    three = parse_consensus(sign_consensus(UNSIGNED, AUTHORITIES[:3]))
    assert len(verify(three, CERTIFICATES, TRUSTED, nd.NOW)) == 3
    two = parse_consensus(sign_consensus(UNSIGNED, AUTHORITIES[:2]))
    with pytest.raises(NoDirectory, match=r"2 good signatures, 3 of 5 .*auth4: did not sign"):
        verify(two, CERTIFICATES, TRUSTED, nd.NOW)


def test_half_of_an_even_number_is_not_enough() -> None:
    four = dict(list(TRUSTED.items())[:4])
    two = parse_consensus(sign_consensus(UNSIGNED, AUTHORITIES[:2]))
    with pytest.raises(NoDirectory, match="2 good signatures, 3 of 4"):
        verify(two, CERTIFICATES, four, nd.NOW)


def test_an_authority_that_signs_twice_counts_once() -> None:
    second_key = replace(AUTHORITIES[0], signing_key=rsa_key(30))
    signers = [AUTHORITIES[0], AUTHORITIES[0], second_key, AUTHORITIES[1]]
    consensus = parse_consensus(sign_consensus(UNSIGNED, signers))
    certificates = (*CERTIFICATES, *parse_certificates(second_key.certificate()))
    with pytest.raises(NoDirectory, match="2 good signatures"):
        verify(consensus, certificates, TRUSTED, nd.NOW)


def test_unconfigured_authorities_do_not_count() -> None:
    strangers = [replace(AUTHORITIES[n], identity_key=rsa_key(40 + n)) for n in range(5)]
    consensus = parse_consensus(sign_consensus(UNSIGNED, strangers))
    certificates = tuple(parse_certificates(one.certificate())[0] for one in strangers)
    with pytest.raises(NoDirectory, match="0 good signatures"):
        verify(consensus, certificates, TRUSTED, nd.NOW)


def test_forged_signatures_do_not_count() -> None:
    forgers = [replace(one, signing_key=rsa_key(50)) for one in AUTHORITIES]
    text = sign_consensus(UNSIGNED, forgers)
    for forger, real in zip(forgers, AUTHORITIES, strict=True):
        text = text.replace(
            forger.v3ident.hex().upper().encode() + b" " + forger.signing_key_digest.hex().upper().encode(),
            forger.v3ident.hex().upper().encode() + b" " + real.signing_key_digest.hex().upper().encode(),
        )
    with pytest.raises(NoDirectory, match=r"0 good signatures.*auth0: bad signature"):
        verify(parse_consensus(text), CERTIFICATES, TRUSTED, nd.NOW)


def test_sha1_signatures_do_not_count_for_microdesc() -> None:
    consensus = parse_consensus(sign_consensus(UNSIGNED, AUTHORITIES, "sha1"))
    with pytest.raises(NoDirectory, match="0 good signatures"):
        verify(consensus, CERTIFICATES, TRUSTED, nd.NOW)


def test_signatures_of_unknown_algorithms_do_not_count() -> None:
    text = GOOD.replace(b"directory-signature sha256", b"directory-signature sha512")
    with pytest.raises(NoDirectory, match="0 good signatures"):
        verify(parse_consensus(text), CERTIFICATES, TRUSTED, nd.NOW)


def test_a_bad_signature_before_a_good_one_of_the_same_authority_does_no_harm() -> None:
    signed = UNSIGNED + b"directory-signature "
    bad = AUTHORITIES[0].signature(b"something else").encode()
    good = b"".join(one.signature(signed).encode() for one in AUTHORITIES[:3])
    for order in (bad + good, good + bad):
        assert len(verify(parse_consensus(UNSIGNED + order), CERTIFICATES, TRUSTED, nd.NOW)) == 3


def test_expired_certificates_do_not_count_and_are_missing() -> None:
    stale = replace(AUTHORITIES[0], expires=nd.NOW - 1)
    certificates = (*parse_certificates(stale.certificate()), *CERTIFICATES[3:])
    consensus = parse_consensus(GOOD)
    with pytest.raises(NoDirectory, match=r"2 good signatures.*auth0: certificate missing or expired"):
        verify(consensus, certificates, TRUSTED, nd.NOW)
    assert missing_certificates(consensus, certificates, TRUSTED, nd.NOW) == [
        (one.v3ident, one.signing_key_digest) for one in AUTHORITIES[:3]
    ]


def test_a_signed_document_changed_anywhere_is_refused() -> None:
    for at in range(0, GOOD.index(b"directory-signature ") + 20, 11):
        broken = bytearray(GOOD)
        broken[at] ^= 1
        with pytest.raises((DocumentError, NoDirectory)):
            verify(parse_consensus(bytes(broken)), CERTIFICATES, TRUSTED, nd.NOW)


def test_every_truncation_is_refused_or_short_of_signatures() -> None:
    trusted = {AUTHORITIES[0].v3ident: "auth0"}
    for end in range(len(SMALL)):
        with pytest.raises((DocumentError, NoDirectory)):
            verify(parse_consensus(SMALL[:end]), CERTIFICATES, trusted, nd.NOW)
    verify(parse_consensus(SMALL), CERTIFICATES, trusted, nd.NOW)


@pytest.mark.parametrize(("least", "tolerance"), [(Liveness.LIVE, 0), (Liveness.REASONABLE, REASONABLY_LIVE)])
def test_times_are_checked_to_the_second(least: Liveness, tolerance: int) -> None:
    consensus = parse_consensus(GOOD)
    earliest = consensus.valid_after - consensus.dist_seconds - EARLY_SKEW - tolerance
    latest = consensus.valid_until + tolerance
    check_times(consensus, earliest, least=least)
    check_times(consensus, latest, least=least)
    with pytest.raises(NoDirectory, match="from the future"):
        check_times(consensus, earliest - 1, least=least)
    with pytest.raises(NoDirectory, match="expired"):
        check_times(consensus, latest + 1, least=least)
    with pytest.raises(NoDirectory, match="2 days ago"):
        verify(consensus, CERTIFICATES, TRUSTED, consensus.valid_until + 48 * 3600)


def test_unusual_entries_are_read_by_the_slow_twin_alike() -> None:
    """Another order of lines, an unknown keyword and a missing `w` are the specification's good right."""
    plain = parse_consensus(GOOD)
    lines = entry(3).splitlines(keepends=True)
    shuffled = lines[0] + b"".join(reversed(lines[1:])) + b"future keyword\n"
    unusual = parse_consensus(resigned(entry(3), shuffled))
    assert list(unusual.relays) == list(plain.relays)
    assert unusual.relays.digests == plain.relays.digests
    assert unusual.relays.flags == plain.relays.flags
    assert unusual.relays.bandwidths == plain.relays.bandwidths
    weightless = parse_consensus(resigned(entry(3), b"".join(lines[:-1])))
    assert weightless.relays[3].bandwidth == weightless.relays.bandwidths[3] == 0


@pytest.mark.parametrize("flavor", ["microdesc", "ns"])
def test_every_entry_looks_alike_on_both_roads(flavor: str) -> None:
    usual = nd.consensus(RELAYS, AUTHORITIES, flavor=flavor)
    unusual = nd.consensus([replace(one, extra=["x"]) for one in RELAYS], AUTHORITIES, flavor=flavor)
    statuses = list(parse_consensus(usual).relays)
    assert statuses == list(parse_consensus(unusual).relays)
    assert {one.ipv6 is None for one in statuses} == {True, False}


def test_ns_flavor_has_exit_policies() -> None:
    text = nd.consensus(RELAYS, AUTHORITIES, flavor="ns")
    written = {one.nickname: one.policy or "reject 1-65535" for one in RELAYS}
    read = {one.nickname: str(one.policy) for one in parse_consensus(text).relays}
    assert read == written
    assert len(set(read.values())) > 1
    without = parse_consensus(text.replace(b"\np reject 1-65535\n", b"\n")).relays
    assert {one.nickname: str(one.policy) for one in without} == written
    assert {one.policy for one in parse_consensus(GOOD).relays} == {None}
    with pytest.raises(DocumentError, match="too few arguments for the ns flavor"):
        parse_consensus(text.replace(b" 9001 0\n", b" 9001\n", 1))
    for wrong in (b"p accept 0", b"p accept 443,80", b"p accept 1-65536", b"p allow 80"):
        with pytest.raises(DocumentError, match=r"line \d+: p: "):
            parse_consensus(text.replace(b"p reject 1-65535", wrong, 1))


def test_microdesc_digest_may_be_missing() -> None:
    lines = [line for line in entry(3).splitlines(keepends=True) if not line.startswith(b"m ")]
    relays = parse_consensus(resigned(entry(3), b"".join(lines))).relays
    assert relays.digests[3] is None
    assert relays[3].digest is None


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"network-status-version 3", b"network-status-version 4", "version 3 expected"),
        (b"3 microdesc", b"3 other", "flavor 'other'"),
        (b"vote-status consensus", b"vote-status vote", "a consensus expected, and this is a vote"),
        (b"vote-status consensus", b"vote-status opinion", "a consensus expected"),
        (b"voting-delay 300 300", b"voting-delay 300 3000000", "not from"),
        (b"voting-delay 300 300\n", b"", "lacks voting-delay"),
        (b"fresh-until 2", b"fresh-until 1", "do not ascend"),
        (b"valid-until 2", b"valid-until 1", "do not ascend"),
        (time_line(b"fresh-until"), time_line(b"valid-after", b"fresh-until"), "do not ascend"),
        (time_line(b"valid-until"), time_line(b"fresh-until", b"valid-until"), "do not ascend"),
        (b"params a=1", b"params a=1 a=1", "of its own"),
        (b"params a=1", b"params a=2147483648", "not from"),
        (b"params a=1", b"params a", "of its own"),
        (b"params a=1", b"params =1", "of its own"),
        (b"consensus-method 35", b"consensus-method 35 x", "1 arguments expected"),
        (b"shared-rand-current-value 3 ", b"shared-rand-current-value 3 AA", "base64"),
        (b"required-client-protocols Cons=2", b"required-client-protocols Cons=2,99", "not from"),
        (b"\ndirectory-footer\n", b"\n", "lacks directory-footer"),
        (b"\nbandwidth-weights Wbd", b"\nbandwidth-weights Wbd=1 Wbd", "of its own"),
        (R_LINES[3], R_LINES[3].replace(b" 9001 ", b" 0 "), "not from 1"),
        (R_LINES[3], R_LINES[3].replace(b" 9001 ", b" 65536 "), "not from 1"),
        (R_LINES[3], R_LINES[3].replace(b"r relay", b"r relay-"), "nickname"),
        (R_LINES[3], R_LINES[3].replace(b"r relay", b"r " + b"x" * 19), "nickname"),
        (R_LINES[3], R_LINES[3].replace(b" 9001 0\n", b"\n"), "arguments"),
        (R_LINES[3], R_LINES[3] + R_LINES[3], "entr|lacks s"),
        (entry(3), entry(3) + entry(3), "strictly ascending"),
        (entry(3), entry(3).replace(b"\ns ", b"\nx "), "lacks s"),
        (entry(3), entry(3).replace(b"\ns ", b"\ns Fast\ns "), "exactly once"),
        (entry(3), entry(3).replace(b"\nm ", b"\nm AA"), "base64"),
        (entry(3), entry(3).replace(b"Bandwidth=", b"Bandwidth=-"), "not from 0|integer"),
        (entry(3), entry(3).replace(b"w Bandwidth=", b"w Bandwidth=4294967296 x="), "Bandwidth|not from"),
        (entry(3), entry(3).replace(b"pr Cons=1-2", b"pr Cons=1-99"), "not from"),
        (entry(3), entry(3).replace(b"v Tor", b"v Tor" + b"x" * 10_000_000), "relay: an entry of"),
        (b"contact test", b"contact \0", "NUL"),
        (b"contact test", b"contact \xff", "UTF-8"),
        (b"contact test", b"contact " + b"x" * 10_000_000, "at most"),
    ],
)
def test_malformed_consensus_is_refused(old: bytes, new: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse_consensus(resigned(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (R_LINES[3], R_LINES[3].replace(b" 9001 ", b" 0 ")),
        (entry(3), entry(3).replace(b"pr Cons=1-2", b"pr Cons=1-99")),
        (entry(3), entry(3).replace(b"w Bandwidth=", b"w Bandwidth=999999")),
        (R_LINES[3], R_LINES[2].replace(b" 9001 ", b" 9002 ")),
    ],
)
def test_malformed_entry_is_refused_with_its_line(old: bytes, new: bytes) -> None:
    text = resigned(old, new)
    expected = next(line for line in new.splitlines() if line not in old.splitlines())
    with pytest.raises(DocumentError) as caught:
        parse_consensus(text)
    assert text.splitlines()[(caught.value.line or 0) - 1] == expected


def test_entries_out_of_order_are_refused() -> None:
    with pytest.raises(DocumentError, match="strictly ascending"):
        parse_consensus(resigned(entry(3) + entry(4), entry(4) + entry(3)))


def test_a_consensus_needs_no_relays_and_no_line_that_may_be_missing() -> None:
    relays = GOOD[GOOD.index(R_LINES[0]) : GOOD.index(b"directory-footer")]
    assert len(parse_consensus(resigned(relays, b"")).relays) == 0
    optional = re.compile(
        rb"^(client-versions|params|shared-rand|consensus-method|bandwidth-weights).*\n", re.MULTILINE
    )
    bare = parse_consensus(sign_consensus(optional.sub(b"", UNSIGNED), AUTHORITIES))
    assert (bare.client_versions, bare.params, bare.bandwidth_weights) == ((), {}, {})
    assert (bare.method, bare.shared_random_current) == (1, None)


def test_unknown_keywords_and_non_ascii_contacts_are_tolerated() -> None:
    text = resigned(
        b"contact test", "contact Zoë\nfuture x\n-----BEGIN X-----\nAA==\n-----END X-----".encode()
    )
    assert len(verify(parse_consensus(text), CERTIFICATES, TRUSTED, nd.NOW)) == 5


def test_sizes_are_bounded() -> None:
    start, end = GOOD.index(R_LINES[0]), GOOD.index(b"directory-footer")
    many = GOOD[:start] + b"r x\n" * (MAX_RELAYS + 1) + GOOD[end:]
    with pytest.raises(DocumentError, match="at most 50000 are read"):
        parse_consensus(many)
    long = GOOD[:end] + b"x" * MAX_CONSENSUS_LEN + b"\n" + GOOD[end:]
    with pytest.raises(DocumentError, match=r"consensus of .* bytes; at most"):
        read_preamble(long)
    signature = AUTHORITIES[0].signature(b"x").encode()
    parse_consensus(UNSIGNED + signature * MAX_SIGNATURES)
    with pytest.raises(DocumentError, match="signatures"):
        parse_consensus(UNSIGNED + signature * (MAX_SIGNATURES + 1))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100), st.integers(0, len(GOOD)), st.integers(0, 200))
def test_random_damage_raises_only_declared_errors(junk: bytes, at: int, cut: int) -> None:
    for text in (junk, GOOD[:at] + junk + GOOD[at + cut :]):
        with contextlib.suppress(DocumentError, NoDirectory):
            consensus = parse_consensus(text)
            list(consensus.relays)
            if text != GOOD:
                verify(consensus, CERTIFICATES, TRUSTED, nd.NOW)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(entry(3)) - 1), st.binary(min_size=1, max_size=3))
def test_whatever_parses_can_be_looked_at(at: int, junk: bytes) -> None:
    """The fast road accepts nothing that the rules table would refuse later."""
    damaged = entry(3)[:at] + junk + entry(3)[at + len(junk) :]
    with contextlib.suppress(DocumentError):
        relays = parse_consensus(GOOD.replace(entry(3), damaged)).relays
        looked_at = list(relays)
        assert [one.flags for one in looked_at] == relays.flags
        assert [one.bandwidth for one in looked_at] == list(relays.bandwidths)
        assert [one.digest for one in looked_at] == relays.digests
        assert [one.identity for one in looked_at] == relays.identities


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 seconds"),
        (1.9, "1 second"),
        (61, "1 minute 1 second"),
        (3600, "1 hour"),
        (3660, "1 hour 1 minute"),
        (86_400 + 59, "1 day"),
        (1470 * 86_400 + 14 * 3600, "1470 days 14 hours"),
    ],
)
def test_lengths_of_time_are_told_as_people_say_them(seconds: float, words: str) -> None:
    assert length_of(seconds) == words
