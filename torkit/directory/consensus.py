"""The network-status consensus: signatures before relays, and these in steps.

`read_preamble` reads what stands around the relays, which costs little whoever has written it. trust.py knows
whom to believe and what time it is. Only what holds there is worth `read_consensus`, which reads all.
dir-spec, "Vote and consensus status document formats".
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

from torkit.directory.entries import FLAVORS, Relays, read_entries
from torkit.directory.netdoc import (
    Count,
    Item,
    Items,
    Place,
    Protocols,
    Rule,
    check_size,
    check_text,
    decode_base64,
    decode_fingerprint,
    decode_int,
    decode_key_values,
    decode_protocols_item,
    decode_time,
    line_at,
    scan,
    scan_part,
)
from torkit.directory.steps import Steps, complete
from torkit.errors import DocumentError
from torkit.params import parameter

# Specification constants.

NETWORK_STATUS_VERSION = "3"
SHARED_RANDOM_LEN = 32

# Implementation limits.

MAX_CONSENSUS_LEN = 16 << 20  # bytes; 10,000 relays take about 3.5 million
MAX_SIGNATURES = 64  # entries; an RSA check costs 30 us and a hostile cache can add as many as it likes
MAX_VOTING_DELAY = 3600  # seconds; the real network's is 300, and it widens the time we accept

HEADER_RULES = {
    "network-status-version": Rule(Count.ONCE, args=1, place=Place.START),
    "vote-status": Rule(Count.ONCE, args=1),
    "consensus-method": Rule(Count.AT_MOST_ONCE, args=1, no_extra=True),
    "valid-after": Rule(Count.ONCE, args=2),
    "fresh-until": Rule(Count.ONCE, args=2),
    "valid-until": Rule(Count.ONCE, args=2),
    "voting-delay": Rule(Count.ONCE, args=2),
    "client-versions": Rule(Count.AT_MOST_ONCE),
    "server-versions": Rule(Count.AT_MOST_ONCE),
    "known-flags": Rule(Count.ONCE),
    "recommended-client-protocols": Rule(Count.AT_MOST_ONCE),
    "recommended-relay-protocols": Rule(Count.AT_MOST_ONCE),
    "required-client-protocols": Rule(Count.AT_MOST_ONCE),
    "required-relay-protocols": Rule(Count.AT_MOST_ONCE),
    "params": Rule(Count.AT_MOST_ONCE),
    "shared-rand-previous-value": Rule(Count.AT_MOST_ONCE, args=2, no_extra=True),
    "shared-rand-current-value": Rule(Count.AT_MOST_ONCE, args=2, no_extra=True),
    "dir-source": Rule(Count.AT_LEAST_ONCE, args=6),
    "contact": Rule(Count.AT_LEAST_ONCE),
    "vote-digest": Rule(Count.AT_LEAST_ONCE, args=1),
}
FOOTER_RULES = {
    "directory-footer": Rule(Count.ONCE, no_extra=True, place=Place.START),
    "bandwidth-weights": Rule(Count.AT_MOST_ONCE),
}
SIGNATURE_RULES = {
    "directory-signature": Rule(Count.AT_LEAST_ONCE, args=2, objects=("SIGNATURE",), place=Place.START),
}

# The signed part ends with this.
SIGNED_END = b"\ndirectory-signature "


class Signature(NamedTuple):
    """One directory-signature: which key is said to have signed, and its RSA signature."""

    algorithm: str
    identity: bytes
    signing_key_digest: bytes
    signature: bytes


class SharedRandom(NamedTuple):
    """A shared random value, 32 bytes, and how many authorities revealed for it."""

    reveals: int
    value: bytes


class Preamble(NamedTuple):
    """The part of a consensus that is read before its signatures hold: all but its relays and the footer.

    `verify` says whether it is true. Times are seconds since the epoch. `params` are as written: read
    parameters through `param`. `first_entry` and `footer` are offsets in `text`, `signed_len` is a length.
    """

    text: bytes
    flavor: str
    method: int
    valid_after: int
    fresh_until: int
    valid_until: int
    dist_seconds: int
    client_versions: tuple[str, ...]
    known_flags: frozenset[str]
    required_client_protocols: Protocols
    recommended_client_protocols: Protocols
    params: Mapping[str, int]
    shared_random_previous: SharedRandom | None
    shared_random_current: SharedRandom | None
    signatures: tuple[Signature, ...]
    signed_len: int
    first_entry: int
    footer: int

    def param(self, name: str) -> int:
        """Returns the value of one of `torkit.params.PARAMETERS`."""
        return parameter(self.params, name)


class Consensus(Preamble):
    """A consensus that has been read in full. `bandwidth_weights` are as written."""

    relays: Relays
    bandwidth_weights: Mapping[str, int]

    def __new__(cls, preamble: Preamble, relays: Relays, bandwidth_weights: Mapping[str, int]) -> Self:
        self = super().__new__(cls, *preamble)
        self.relays = relays
        self.bandwidth_weights = bandwidth_weights
        return self


def parse_consensus(text: bytes) -> Consensus:
    """Read all of a consensus, with any signatures: for texts of our own making. Raises DocumentError."""
    return complete(read_consensus(read_preamble(text)))


def read_preamble(text: bytes) -> Preamble:
    """Read what a consensus of the microdesc or ns flavor says before its relays, and its signatures.

    The work is that of a few searches through `text` and of two scans, whoever has written it.
    Raises DocumentError.
    """
    # The most telling check comes first: another kind of document fails every one.
    if not text.startswith(b"network-status-version "):
        raise DocumentError("consensus must start with network-status-version", line=1)
    check_size(text, MAX_CONSENSUS_LEN, "consensus")
    footer = text.find(b"\ndirectory-footer\n") + 1
    if not footer:
        raise DocumentError("consensus lacks directory-footer", line=line_at(text, len(text) - 1))
    first_entry = text.find(b"\nr ", 0, footer) + 1 or footer
    signed_len = text.find(SIGNED_END, footer) + len(SIGNED_END)
    signatures_start = signed_len - len(SIGNED_END) + 1
    if signatures_start < footer:
        raise DocumentError("consensus lacks directory-signature", line=line_at(text, len(text) - 1))

    if (vote := text.find(b"\nvote-status vote\n", 0, first_entry) + 1) > 0:
        raise DocumentError("vote-status: a consensus expected, and this is a vote", line=line_at(text, vote))
    header = scan_part(text, 0, first_entry, HEADER_RULES, what="preamble")
    flavor = _decode_flavor(header)
    valid_after = _decode_time_item(header.one("valid-after"))
    fresh_until = _decode_time_item(header.one("fresh-until"))
    valid_until = _decode_time_item(header.one("valid-until"))
    if not valid_after < fresh_until < valid_until:
        raise header.one("valid-until").fail("valid-after, fresh-until and valid-until do not ascend")
    delay = header.one("voting-delay")
    method = header.maybe("consensus-method")
    versions = header.maybe("client-versions")
    params = header.maybe("params")
    return Preamble(
        text=text,
        flavor=flavor,
        method=method.decode(decode_int, method.args[0], 1, 2**31 - 1) if method else 1,
        valid_after=valid_after,
        fresh_until=fresh_until,
        valid_until=valid_until,
        dist_seconds=delay.decode(decode_int, delay.args[1], 0, MAX_VOTING_DELAY),
        client_versions=tuple(versions.args[0].split(",")) if versions and versions.args else (),
        known_flags=frozenset(header.one("known-flags").args),
        required_client_protocols=decode_protocols_item(header.maybe("required-client-protocols")),
        recommended_client_protocols=decode_protocols_item(header.maybe("recommended-client-protocols")),
        params=decode_key_values(params) if params else {},
        shared_random_previous=_decode_shared_random(header.maybe("shared-rand-previous-value")),
        shared_random_current=_decode_shared_random(header.maybe("shared-rand-current-value")),
        signatures=_decode_signatures(text, signatures_start),
        signed_len=signed_len,
        first_entry=first_entry,
        footer=footer,
    )


def read_consensus(preamble: Preamble) -> Steps[Consensus]:
    """Read the relays and the footer of a consensus whose signatures hold. Raises DocumentError."""
    text, footer = preamble.text, preamble.footer
    check_text(text, MAX_CONSENSUS_LEN, "consensus")
    yield
    relays = yield from read_entries(text, preamble.flavor, preamble.first_entry, footer)
    signatures_start = preamble.signed_len - len(SIGNED_END) + 1
    items = scan(text[footer:signatures_start], FOOTER_RULES, what="footer", first_line=line_at(text, footer))
    weights = items.maybe("bandwidth-weights")
    return Consensus(preamble, relays, decode_key_values(weights) if weights else {})


# Items of the header and of the signatures.


def _decode_flavor(header: Items) -> str:
    version, status = header.one("network-status-version"), header.one("vote-status")
    if version.args[0] != NETWORK_STATUS_VERSION:
        raise version.fail(f"version {NETWORK_STATUS_VERSION} expected")
    flavor = version.args[1] if len(version.args) > 1 else "ns"
    if flavor not in FLAVORS:
        raise version.fail(f"flavor {flavor[:40]!r} is not one of {', '.join(FLAVORS)}")
    if status.args[0] != "consensus":
        raise status.fail("a consensus expected")
    return flavor


def _decode_time_item(item: Item) -> int:
    return item.decode(decode_time, *item.args[:2])


def _decode_shared_random(item: Item | None) -> SharedRandom | None:
    if item is None:
        return None
    reveals, value = item.args
    return SharedRandom(
        item.decode(decode_int, reveals, 0, 2**31 - 1), item.decode(decode_base64, value, SHARED_RANDOM_LEN)
    )


def _decode_signatures(text: bytes, start: int) -> tuple[Signature, ...]:
    """Decode the signatures. No signature covers them.

    Unknown algorithms are kept, and never count.
    """
    if text.count(b"\ndirectory-signature ", start - 1) > MAX_SIGNATURES:
        raise DocumentError(f"consensus with more than {MAX_SIGNATURES} signatures")
    items = scan_part(text, start, len(text), SIGNATURE_RULES, what="signatures")
    signatures = []
    for item in items.all("directory-signature"):
        algorithm, identity, key = item.args[:3] if len(item.args) > 2 else ("sha1", *item.args)
        digests = item.decode(decode_fingerprint, identity), item.decode(decode_fingerprint, key)
        signatures.append(Signature(algorithm, *digests, item.object))
    return tuple(signatures)
