"""The joined view: relays, look-ups, weights, and when it is enough to build circuits."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import network_docs as nd
import pytest

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, supports
from torkit.directory.microdesc import split_microdescs
from torkit.directory.positions import Position
from torkit.testing.directory import RelayDoc, encode_microdescs


def make(docs: Iterable[RelayDoc], held: Iterable[RelayDoc] | None = None, **options: Any) -> Directory:
    """A directory of these relays that holds the microdescriptors of `held`, or of all."""
    texts = {
        digest: text
        for digest, text, _ in split_microdescs(encode_microdescs(docs if held is None else held))
    }
    return Directory(parse_consensus(nd.consensus(docs, nd.authorities(1), **options)), texts)


DOCS = nd.relays(12)


def test_relay_joins_consensus_and_microdesc() -> None:
    doc = replace(DOCS[0], policy6="accept 443", family="$" + "AB" * 20)
    relay = make([doc, *DOCS[1:]]).relay(doc.identity)
    assert relay is not None
    assert (relay.nickname, relay.identity, relay.fingerprint) == ("relay0", doc.identity, doc.fingerprint)
    assert (relay.ntor_onion_key, relay.ed25519_identity) == (doc.ntor_onion_key, doc.ed25519_identity)
    assert (relay.address, relay.or_port, relay.ipv6) == (doc.address, 9001, ("2001::1", 9001))
    assert relay.policy.accepts(443)
    assert relay.policy6.accepts(443)
    assert relay.family == {"$" + "AB" * 20}
    assert relay.networks == {bytes([11, 0]), bytes([0x20, 1, 0, 0])}
    assert supports(relay, "Relay", 4)
    assert not supports(relay, "Relay", 7)
    assert str(relay) == f"${doc.fingerprint}~relay0"


def test_relays_are_found_by_fingerprint_and_nickname() -> None:
    directory = make([*DOCS, replace(DOCS[0], identity=b"\xff" * 20)])
    index = directory.consensus.relays.index_of(DOCS[3].identity)
    for name in (
        DOCS[3].fingerprint,
        f"${DOCS[3].fingerprint.lower()}",
        f"${DOCS[3].fingerprint}~x",
        "RELAY3",
    ):
        assert directory.indexes_of(name) == [index]
    assert len(directory.indexes_of("relay0")) == 2
    for name in ("", "relay", "nobody", "0" * 40, "z" * 40, "$relay é"):
        assert directory.indexes_of(name) == []
    assert directory.relay(bytes(20)) is None


def test_ed25519_identity_without_consensus_is_not_used() -> None:
    doc = replace(DOCS[0], flags=DOCS[0].flags.replace("Running", "NoEdConsensus Running"))
    relay = make([doc]).relay(doc.identity)
    assert relay is not None
    assert relay.ed25519_identity is None


def test_missing_and_unreadable_microdescs() -> None:
    broken = replace(DOCS[1], policy="permit 80")
    directory = make([DOCS[0], broken, *DOCS[2:]], held=[broken, *DOCS[3:]])
    assert set(directory.missing) == {hashlib.sha256(doc.microdesc()).digest() for doc in (DOCS[0], DOCS[2])}
    assert directory.relay(DOCS[0].identity) is None
    assert directory.relay(broken.identity) is None
    assert directory.relay(DOCS[3].identity) is not None


def relay_with(flags: str, bandwidth: int = 100, **options: Any) -> RelayDoc:
    identity = hashlib.sha1(f"{flags}{options}".encode()).digest()
    return RelayDoc("x", identity, "1.2.3.4", flags=flags, bandwidth=bandwidth, **options)


@pytest.mark.parametrize(
    ("flags", "guard", "middle", "exit_"),
    [
        ("Fast", "Wgm", "Wmm", "Wem"),
        ("Fast Guard", "Wgg", "Wmg", "Weg"),
        ("Exit Fast", None, "Wme", "Wee"),
        ("Exit Fast Guard", "Wgd", "Wmd", "Wed"),
        ("BadExit Exit Fast Guard", "Wgg", "Wmg", "Weg"),
    ],
)
def test_each_class_of_relay_has_its_weight_in_each_position(
    flags: str, guard: str | None, middle: str, exit_: str
) -> None:
    names = [f"W{p}{k}" for p in "gme" for k in "gmed" if p + k != "ge"]
    weights = {name: 100 * n for n, name in enumerate(names, 1)}
    weights |= {"Wgb": 500, "Wmb": 500, "Web": 500, "Wdb": 500}
    for suffix, factor in (("", 1.0), (" V2Dir", 0.5)):
        directory = make([relay_with(flags + suffix)], weights=weights, params="bwweightscale=1000")
        for position, name in zip(Position, (guard, middle, exit_), strict=True):
            expected = weights[name] * 100 / 1000 * factor if name else 0
            assert list(directory.weights(position)) == [pytest.approx(expected)]


def test_probabilities_are_shares_of_the_weight_of_what_fits_a_position() -> None:
    guard, exit_ = "Fast Guard Running Stable V2Dir Valid", "Exit Fast Running Valid"
    kinds = [
        (guard, 100),
        (guard, 300),
        (exit_, 500),
        (f"{exit_} BadExit", 700),
        (f"Exit {guard} MiddleOnly", 900),
        ("Running Valid", 1100),
    ]
    docs = [
        replace(relay_with(flags, bandwidth), identity=bytes([number]) * 20)
        for number, (flags, bandwidth) in enumerate(kinds)
    ]
    directory = make(docs, weights=EVEN)
    shares = {
        position: [round(directory.probability(position, index), 6) for index in range(len(docs))]
        for position in Position
    }
    assert shares[Position.GUARD] == [0.25, 0.75, 0, 0, 0, 0]
    assert shares[Position.MIDDLE] == [0.04, 0.12, 0.2, 0.28, 0.36, 0]
    assert shares[Position.EXIT] == [0, 0, 1, 0, 0, 0]
    unmeasured = make([replace(one, bandwidth=0) for one in docs])
    assert unmeasured.probability(Position.GUARD, 1) == 0.5


def test_missing_weights_leave_bandwidth_alone() -> None:
    directory = make([relay_with("Exit Fast Guard", bandwidth=7)], weights={"Wgd": 0})
    assert list(directory.weights(Position.GUARD)) == [7.0]


EVEN = dict.fromkeys(
    ("Wgg", "Wgm", "Wgd", "Wmg", "Wmm", "Wme", "Wmd", "Weg", "Wem", "Wee", "Wed", "Wgb", "Wmb", "Web", "Wdb"),
    10000,
)


def test_usable_fraction_is_the_product_over_positions() -> None:
    guards = [relay_with("Fast Guard Running Valid", n) for n in (300, 100)]
    exits = [relay_with("Exit Fast Running Valid", n, policy="accept 80") for n in (150, 50)]
    middles = [relay_with("Fast Running Valid", n) for n in (200, 200)]
    docs = [*guards, *exits, *middles]
    for n, doc in enumerate(docs):
        doc.identity = bytes([n]) * 20
        doc.ntor_onion_key = bytes([n]) * 32
    assert make(docs, weights=EVEN).usable_fraction() == 1.0
    assert make(docs, held=[], weights=EVEN).usable_fraction() == 0.0
    some = make(docs, held=[guards[0], exits[0], *middles], weights=EVEN)
    assert some.usable_fraction() == pytest.approx(300 / 400 * 850 / 1000 * 150 / 200)


def test_enough_is_what_the_consensus_says_within_its_range() -> None:
    docs = [
        RelayDoc(
            f"r{n}",
            bytes([n]) * 20,
            f"{n}.1.1.1",
            flags="Fast Guard Running Valid",
            ntor_onion_key=bytes([n]) * 32,
        )
        for n in range(1, 11)
    ]

    def held_nine(params: str = "") -> Directory:
        return make(docs, held=docs[:9], weights=EVEN, params=params)

    assert held_nine().usable_fraction() == pytest.approx(0.9**3)  # no exits: the middle counts again
    assert held_nine().is_usable()
    assert not held_nine("min_paths_for_circs_pct=80").is_usable()
    assert make(docs, weights=EVEN, params="min_paths_for_circs_pct=101").is_usable()
    assert not make(docs, held=docs[:4], weights=EVEN, params="min_paths_for_circs_pct=0").is_usable()


def test_unmeasured_network_counts_relays() -> None:
    docs = nd.relays(12)
    for doc in docs:
        doc.bandwidth = 0
    assert make(docs).usable_fraction() == 1.0
    assert 0 < make(docs, held=docs[:6]).usable_fraction() < 1
