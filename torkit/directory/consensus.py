"""The network-status consensus: read in bulk, checked against the configured authorities, looked at lazily.

`parse_consensus` knows only the text, `verify` only whom to believe and what time it is. A relay that
is never looked at never becomes an object: `Consensus` keeps five columns, and `relays[i]` reads one
entry through the rules table. dir-spec, "Vote and consensus status document formats".
"""

import binascii
import hashlib
import re
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from operator import lt
from sys import intern
from typing import NamedTuple, overload

from torkit.directory.authorities import AuthorityCertificate, check_signature
from torkit.directory.microdesc import REJECT_ALL, PortPolicy, decode_policy
from torkit.directory.netdoc import (
    DIGEST256_LEN,
    DIGEST_LEN,
    Count,
    Item,
    Items,
    Place,
    Protocols,
    Rule,
    check_text,
    decode_base64,
    decode_fingerprint,
    decode_int,
    decode_ipv4,
    decode_ipv6_addr_port,
    decode_key_values,
    decode_nickname,
    decode_protocols,
    decode_time,
    encode_time,
    line_at,
    scan,
)
from torkit.errors import DocumentError, NoDirectory

# Specification constants.

REASONABLY_LIVE = 24 * 3600  # seconds past valid-until; dir-spec, "Downloading network-status documents"
NETWORK_STATUS_VERSION = "3"
MAX_BANDWIDTH = 2**32 - 1
SHARED_RANDOM_LEN = 32

# Implementation limits.

MAX_CONSENSUS_LEN = 16 << 20  # bytes; 10,000 relays take about 3.5 million
MAX_RELAYS = 50_000  # entries; five times the network
MAX_SIGNATURES = 64  # entries; an RSA check costs 30 us and a hostile cache can add as many as it likes
MAX_VOTING_DELAY = 3600  # seconds; the real network's is 300, and it widens the time we accept
EARLY_SKEW = 60  # seconds our clock may be behind, as C tor allows before it warns

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
ENTRY_RULES = {
    "r": Rule(Count.ONCE, args=7, place=Place.START),
    "a": Rule(Count.ANY, args=1),
    "m": Rule(Count.AT_MOST_ONCE, args=1),
    "s": Rule(Count.ONCE),
    "v": Rule(Count.AT_MOST_ONCE),
    "pr": Rule(Count.AT_MOST_ONCE),
    "w": Rule(Count.AT_MOST_ONCE),
    "p": Rule(Count.AT_MOST_ONCE, args=2),
}
FOOTER_RULES = {
    "directory-footer": Rule(Count.ONCE, no_extra=True, place=Place.START),
    "bandwidth-weights": Rule(Count.AT_MOST_ONCE),
}
SIGNATURE_RULES = {
    "directory-signature": Rule(Count.AT_LEAST_ONCE, args=2, objects=("SIGNATURE",), place=Place.START),
}

_ENTRY_START = re.compile(rb"^r ", re.MULTILINE)
_OCTET = rb"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_PORT = rb"(?:6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[1-5]\d{4}|[1-9]\d{0,3})"
_LAST = rb"[AEIMQUYcgkosw048]"  # 20 and 32 bytes leave two bits of the last character zero
_IDENTITY = rb"([A-Za-z0-9+/]{26}" + _LAST + rb")"
_R_REST = (
    rb" [12]\d{3}-\d\d-\d\d \d\d:\d\d:\d\d " + rb"\.".join([_OCTET] * 4) + rb" " + _PORT + rb" \d{1,5}\n"
)
_R_LINE = rb"^r [A-Za-z0-9]{1,19} " + _IDENTITY
_A_LINES = rb"(?:a [!-~]{1,64}+\n){0,8}+"
_S_TO_W = (
    rb"s((?: [!-~]{1,64}+){0,64}+)\n(?:v [!-~][ -~]{0,256}+\n)?+(?:pr ([!-~][ -~]{0,2048}+)\n)?+"
    rb"w Bandwidth=(\d{1,10})(?: Unmeasured=1)?+\n"
)
_NEXT = rb"(?=r |directory-footer\n)"


class _Flavor(NamedTuple):
    """What differs between flavors. `entry` is a pattern for `_entry_pattern`."""

    algorithm: str  # of the signatures that count
    digest_len: int
    entry: bytes
    words_before_address: int  # in an `r` line, the nickname not counted


FLAVORS = {
    "microdesc": _Flavor(
        "sha256",
        DIGEST256_LEN,
        _R_LINE + _R_REST + _A_LINES + rb"m ([A-Za-z0-9+/]{42}" + _LAST + rb")\n" + _S_TO_W + _NEXT,
        3,
    ),
    "ns": _Flavor(
        "sha1",
        DIGEST_LEN,
        _R_LINE
        + rb" "
        + _IDENTITY
        + _R_REST
        + _A_LINES
        + _S_TO_W
        + rb"(?:p ((?:accept|reject) [0-9,-]{1,1000}+)\n)?+"
        + _NEXT,
        4,
    ),
}


# Compiled when first used: few starts meet both flavors, and one takes a millisecond.


@cache
def _entry_pattern(flavor: str) -> re.Pattern[bytes]:
    """Matches only entries that the table accepts: a fast road."""
    return re.compile(FLAVORS[flavor].entry, re.MULTILINE)


@cache
def _status_pattern(flavor: str) -> re.Pattern[bytes]:
    """What `Relays` keeps no column of, in an entry that has been checked: the usual order, single spaces."""
    return re.compile(
        rb"r ([!-~]+)(?: [!-~]+){%d} ([0-9.]+) (\d+) \d+\n((?:a [!-~]+\n)*)(?:m [!-~]+\n)?s[ -~]*\n"
        rb"(?:v ([!-~]+(?: [!-~]+)*)\n)?(?:pr ([ -~]+)\n)?w [ -~]+\n(?:p ([a-z]+ [0-9,-]+)\n)?"
        % FLAVORS[flavor].words_before_address
    )


class RouterStatus(NamedTuple):
    """One relay as the consensus lists it.

    `identity` is 20 bytes; `digest` names its microdescriptor, 32 bytes (ns flavor: its server
    descriptor, 20), or is None; `bandwidth` is the consensus weight, 0 where there is no `w` line;
    `version` is the whole `v` line; `ipv6` an address and port; `policy` the exit policy summary of the
    ns flavor, None in others.
    """

    nickname: str
    identity: bytes
    digest: bytes | None
    address: str
    or_port: int
    ipv6: tuple[str, int] | None
    flags: frozenset[str]
    version: str | None
    protocols: Protocols
    bandwidth: int
    policy: PortPolicy | None


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


class Relays(Sequence[RouterStatus]):
    """The entries in ascending order of identity: columns at once, objects when looked at."""

    def __init__(self, text: bytes, flavor: str, columns: "_Columns", start: int) -> None:
        self.identities = columns.identities
        self.digests = columns.digests
        self.flags = columns.flags
        self.bandwidths = columns.bandwidths
        self._text = text
        self._flavor = flavor
        self._start = start
        self._offsets: array[int] | None = None

    def __len__(self) -> int:
        return len(self.identities)

    @overload
    def __getitem__(self, index: int) -> RouterStatus: ...
    @overload
    def __getitem__(self, index: slice) -> list[RouterStatus]: ...
    def __getitem__(self, index: int | slice) -> RouterStatus | list[RouterStatus]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        offsets = self._entry_offsets()
        entry = self._text[offsets[index] : offsets[index + 1]]
        match = _status_pattern(self._flavor).fullmatch(entry)
        return self._status(index, match) if match else _parse_entry(entry, self._flavor, 1)

    def _status(self, index: int, match: re.Match[bytes]) -> RouterStatus:
        """Fast road: `_parse_entry` is the slow twin."""
        nickname, address, or_port, a_lines, version, protocols, policy = match.groups()
        return RouterStatus(
            nickname=nickname.decode("ascii"),
            identity=self.identities[index],
            digest=self.digests[index],
            address=address.decode("ascii"),
            or_port=int(or_port),
            ipv6=_first_ipv6(line[2:] for line in a_lines.decode("ascii").splitlines()),
            flags=self.flags[index],
            version=version.decode("ascii") if version else None,
            protocols=decode_protocols(protocols.decode("ascii") if protocols else ""),
            bandwidth=self.bandwidths[index],
            policy=_decode_policy(policy.decode("ascii") if policy else None, self._flavor),
        )

    def index_of(self, identity: bytes) -> int | None:
        """The place of the relay with this identity, 20 bytes."""
        index = bisect_left(self.identities, identity)
        return index if index < len(self) and self.identities[index] == identity else None

    def indexes_of_nickname(self, nickname: str) -> list[int]:
        """The places of all relays so named, without regard to case: nicknames are not unique."""
        if not (nickname.isascii() and nickname.isalnum()):
            return []
        pattern = re.compile(rb"^r +" + nickname.encode("ascii") + rb" ", re.MULTILINE | re.IGNORECASE)
        offsets = self._entry_offsets()
        starts = (match.start() for match in pattern.finditer(self._text, self._start, offsets[-1]))
        return [bisect_left(offsets, start) for start in starts]

    def _entry_offsets(self) -> "array[int]":
        if self._offsets is None:
            end = _footer_start(self._text)
            starts = (
                match.start() for match in re.compile(rb"^r ", re.M).finditer(self._text, self._start, end)
            )
            self._offsets = array("Q", [*starts, end])
        return self._offsets


class Consensus(NamedTuple):
    """A parsed consensus; nothing says that it is true until `verify` has passed.

    Times are seconds since the epoch. `params` and `bandwidth_weights` are as written: read
    parameters through `param`.
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
    relays: Relays
    bandwidth_weights: Mapping[str, int]
    signatures: tuple[Signature, ...]
    signed_len: int

    def param(self, name: str, default: int, low: int, high: int) -> int:
        """A consensus parameter, `default` where it is absent, brought into its range. param-spec."""
        return min(max(self.params.get(name, default), low), high)


class _Columns(NamedTuple):
    identities: list[bytes]
    digests: list[bytes | None]
    flags: list[frozenset[str]]
    bandwidths: "array[int]"


def parse_consensus(text: bytes) -> Consensus:
    """Read a consensus of the microdesc or ns flavor.

    Every entry is checked now, so that looking at one later cannot fail. A single malformed entry
    voids the document. Raises DocumentError.
    """
    check_text(text, MAX_CONSENSUS_LEN, "consensus")
    footer_start = _footer_start(text)
    first_entry = text.find(b"\nr ", 0, footer_start) + 1 or footer_start
    signed_len = text.find(b"\ndirectory-signature ", footer_start) + len(b"\ndirectory-signature ")
    signatures_start = signed_len - len(b"directory-signature ")
    if signatures_start < footer_start:
        raise DocumentError("consensus lacks directory-signature", line=line_at(text, len(text) - 1))

    header = scan(text[:first_entry], HEADER_RULES, what="consensus")
    flavor = _decode_flavor(header)
    valid_after = _decode_time_item(header.one("valid-after"))
    fresh_until = _decode_time_item(header.one("fresh-until"))
    valid_until = _decode_time_item(header.one("valid-until"))
    if not valid_after < fresh_until < valid_until:
        raise header.one("valid-until").fail("valid-after, fresh-until and valid-until do not ascend")
    delay = header.one("voting-delay")
    method = header.maybe("consensus-method")
    versions = header.maybe("client-versions")

    footer_line = line_at(text, footer_start)
    footer = scan(text[footer_start:signatures_start], FOOTER_RULES, what="footer", first_line=footer_line)
    weights = footer.maybe("bandwidth-weights")
    params = header.maybe("params")
    return Consensus(
        text=text,
        flavor=flavor,
        method=method.decode(decode_int, method.args[0], 1, 2**31 - 1) if method else 1,
        valid_after=valid_after,
        fresh_until=fresh_until,
        valid_until=valid_until,
        dist_seconds=delay.decode(decode_int, delay.args[1], 0, MAX_VOTING_DELAY),
        client_versions=tuple(versions.args[0].split(",")) if versions and versions.args else (),
        known_flags=frozenset(header.one("known-flags").args),
        required_client_protocols=_decode_protocols(header.maybe("required-client-protocols")),
        recommended_client_protocols=_decode_protocols(header.maybe("recommended-client-protocols")),
        params=decode_key_values(params) if params else {},
        shared_random_previous=_decode_shared_random(header.maybe("shared-rand-previous-value")),
        shared_random_current=_decode_shared_random(header.maybe("shared-rand-current-value")),
        relays=Relays(text, flavor, _columns(text, flavor, first_entry, footer_start), first_entry),
        bandwidth_weights=decode_key_values(weights) if weights else {},
        signatures=_decode_signatures(text, signatures_start),
        signed_len=signed_len,
    )


def check_times(consensus: Consensus, now: float, *, tolerance: float = 0) -> None:
    """Refuse a consensus that is not live at `now`, give or take `tolerance` seconds.

    With no tolerance it must be "live": what a fetch must bring and what `fetch-consensus` prints.
    With REASONABLY_LIVE, what clients go on using when no newer one can be had, as C tor does; longer
    never. Before valid-after it is accepted DistSeconds early, when authorities hand it to caches, and
    EARLY_SKEW more for our clock. Raises NoDirectory.
    """
    early = consensus.valid_after - consensus.dist_seconds - EARLY_SKEW - now
    if early > tolerance:
        raise NoDirectory(
            f"consensus is from the future: valid after {encode_time(consensus.valid_after)} UTC,"
            f" {_duration(consensus.valid_after - now)} from now",
            hint="check this computer's clock and time zone",
        )
    late = now - consensus.valid_until
    if late > tolerance:
        raise NoDirectory(
            f"consensus has expired: valid until {encode_time(consensus.valid_until)} UTC,"
            f" {_duration(late)} ago",
            hint="check this computer's clock, or fetch a newer consensus",
        )


def verify(
    consensus: Consensus,
    certificates: Iterable[AuthorityCertificate],
    authorities: Mapping[bytes, str],
    now: float,
    *,
    tolerance: float = 0,
) -> tuple[str, ...]:
    """Check the times, then that more than half of `authorities` have signed; name those that have.

    `authorities` maps each configured v3 identity, 20 bytes, to its nickname; each counts once,
    however often it signs. A signature counts if made with the flavor's digest by a key whose
    certificate is at hand and current at `now`. `tolerance` as in `check_times`. Raises NoDirectory.
    """
    check_times(consensus, now, tolerance=tolerance)
    current = _current_by_key(certificates, now)
    signed = memoryview(consensus.text)[: consensus.signed_len]
    digest = hashlib.new(FLAVORS[consensus.flavor].algorithm, signed).digest()
    outcomes: dict[bytes, str] = dict.fromkeys(authorities, "did not sign")
    for signature in _countable(consensus, authorities):
        if outcomes[signature.identity] == "good":
            continue
        certificate = current.get((signature.identity, signature.signing_key_digest))
        if certificate is None:
            outcomes[signature.identity] = "certificate missing or expired"
        elif check_signature(certificate.signing_key, signature.signature, digest):
            outcomes[signature.identity] = "good"
        else:
            outcomes[signature.identity] = "bad signature"
    good = tuple(authorities[identity] for identity, outcome in outcomes.items() if outcome == "good")
    needed = len(authorities) // 2 + 1
    if len(good) < needed:
        rest = (f"{authorities[who]}: {outcome}" for who, outcome in outcomes.items() if outcome != "good")
        raise NoDirectory(
            f"consensus has {len(good)} good signatures, {needed} of {len(authorities)} authorities needed"
            f" ({', '.join(rest)})"
        )
    return good


def missing_certificates(
    consensus: Consensus,
    certificates: Iterable[AuthorityCertificate],
    authorities: Collection[bytes],
    now: float,
) -> list[tuple[bytes, bytes]]:
    """What to fetch before `verify` can count all signatures: (identity, signing key digest) pairs."""
    current = _current_by_key(certificates, now)
    wanted = (
        (signature.identity, signature.signing_key_digest) for signature in _countable(consensus, authorities)
    )
    return [pair for pair in dict.fromkeys(wanted) if pair not in current]


def _current_by_key(
    certificates: Iterable[AuthorityCertificate], now: float
) -> dict[tuple[bytes, bytes], AuthorityCertificate]:
    return {(cert.identity, cert.signing_key_digest): cert for cert in certificates if cert.is_current(now)}


def _countable(consensus: Consensus, authorities: Collection[bytes]) -> list[Signature]:
    algorithm = FLAVORS[consensus.flavor].algorithm
    return [s for s in consensus.signatures if s.algorithm == algorithm and s.identity in authorities]


def _footer_start(text: bytes) -> int:
    start = text.find(b"\ndirectory-footer\n") + 1
    if not start:
        raise DocumentError("consensus lacks directory-footer", line=line_at(text, len(text) - 1))
    return start


# The entries.


def _entry_starts(text: bytes, start: int, end: int) -> list[int]:
    return [match.start() for match in _ENTRY_START.finditer(text, start, end)]


def _columns(text: bytes, flavor: str, start: int, end: int) -> _Columns:
    count = text.count(b"\nr ", start - 1, end)
    if count > MAX_RELAYS:
        raise DocumentError(f"consensus of {count} relays; at most {MAX_RELAYS} are read")
    # The pattern looks ahead for the next entry or the footer, so let it see where the footer begins.
    rows = _entry_pattern(flavor).findall(text, start, end + len(b"directory-footer\n"))
    columns = _columns_fast(rows, flavor) if len(rows) == count and count else None
    if columns is None:
        columns = _columns_slow(text, flavor, start, end)
    identities = columns.identities
    if not all(map(lt, identities, identities[1:])):
        at = next(i for i in range(1, count) if identities[i - 1] >= identities[i])
        raise DocumentError(
            "r: entries are not in strictly ascending order of identity",
            line=line_at(text, _entry_starts(text, start, end)[at]),
        )
    return columns


def _columns_fast(rows: list[tuple[bytes, ...]], flavor: str) -> _Columns | None:
    """Fast road: each entry matched the flavor's pattern, and as many matched as there are `r` lines.

    Each match begins at an `r` line and ends at the next, so together they leave nothing unread.
    Flags, protocols and policies repeat: each different line is decoded once. None where a value is out
    of range: the slow twin says where.
    """
    identities, digests, flag_lines, protocol_lines, bandwidths, *policies = zip(*rows, strict=True)
    weights = array("Q", map(int, bandwidths))
    try:
        for protocols in set(protocol_lines):
            decode_protocols(protocols.decode("ascii"))
        for policy in {line for lines in policies for line in lines if line}:
            decode_policy(policy.decode("ascii"))
    except ValueError:
        return None
    if max(weights) > MAX_BANDWIDTH:
        return None
    flags = {line: frozenset(map(intern, line.decode("ascii").split())) for line in set(flag_lines)}
    return _Columns(
        _decode_digests(identities, DIGEST_LEN),
        list(_decode_digests(digests, FLAVORS[flavor].digest_len)),
        [flags[line] for line in flag_lines],
        weights,
    )


def _decode_digests(encoded: Sequence[bytes], length: int) -> list[bytes]:
    """Unpadded base64 of `length` bytes each, decoded in one call: an A fills each one's last group."""
    packed = binascii.a2b_base64(b"A".join(encoded) + b"A")
    return [packed[at : at + length] for at in range(0, len(packed), length + 1)]


def _columns_slow(text: bytes, flavor: str, start: int, end: int) -> _Columns:
    """Slow twin: any order of lines, unknown keywords, missing `w`; and the errors with their lines."""
    columns = _Columns([], [], [], array("Q"))
    flag_sets: dict[frozenset[str], frozenset[str]] = {}
    line = line_at(text, start)
    offsets = _entry_starts(text, start, end)
    for at, following in zip(offsets, [*offsets[1:], end], strict=False):
        entry = text[at:following]
        status = _parse_entry(entry, flavor, line)
        line += entry.count(b"\n")
        columns.identities.append(status.identity)
        columns.digests.append(status.digest)
        columns.flags.append(flag_sets.setdefault(status.flags, status.flags))
        columns.bandwidths.append(status.bandwidth)
    return columns


def _parse_entry(entry: bytes, flavor: str, first_line: int) -> RouterStatus:
    items = scan(entry, ENTRY_RULES, what="relay", first_line=first_line)
    r, m, w, v, p = items.one("r"), *map(items.maybe, ("m", "w", "v", "p"))
    nickname, identity, *rest = r.args
    digest = None
    if flavor == "ns":
        digest = r.decode(decode_base64, rest.pop(0), DIGEST_LEN)
    elif m is not None:
        digest = m.decode(decode_base64, m.args[0], DIGEST256_LEN)
    if len(rest) < 5:  # publication date and time, which mean nothing any more; address, two ports
        raise r.fail(f"too few arguments for the {flavor} flavor")
    bandwidth = 0
    if w is not None:
        for arg in w.args:
            if arg.startswith("Bandwidth="):
                bandwidth = w.decode(decode_int, arg.removeprefix("Bandwidth="), 0, MAX_BANDWIDTH)
    return RouterStatus(
        nickname=r.decode(decode_nickname, nickname),
        identity=r.decode(decode_base64, identity, DIGEST_LEN),
        digest=digest,
        address=r.decode(decode_ipv4, rest[2]),
        or_port=r.decode(decode_int, rest[3], 1, 65535),
        ipv6=_first_ipv6(a.args[0] for a in items.all("a")),
        flags=frozenset(map(intern, items.one("s").args)),
        version=" ".join(v.args) if v else None,
        protocols=_decode_protocols(items.maybe("pr")),
        bandwidth=bandwidth,
        policy=p.decode(_decode_policy, " ".join(p.args), flavor) if p else _decode_policy(None, flavor),
    )


def _first_ipv6(addresses: Iterable[str]) -> tuple[str, int] | None:
    return next(filter(None, map(decode_ipv6_addr_port, addresses)), None)


def _decode_policy(text: str | None, flavor: str) -> PortPolicy | None:
    """The `p` line, which only the ns flavor has. Raises ValueError."""
    if flavor != "ns":
        return None
    return decode_policy(text) if text else REJECT_ALL


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


def _decode_protocols(item: Item | None) -> Protocols:
    return item.decode(decode_protocols, " ".join(item.args)) if item else decode_protocols("")


def _decode_shared_random(item: Item | None) -> SharedRandom | None:
    if item is None:
        return None
    reveals, value = item.args
    return SharedRandom(
        item.decode(decode_int, reveals, 0, 2**31 - 1), item.decode(decode_base64, value, SHARED_RANDOM_LEN)
    )


def _decode_signatures(text: bytes, start: int) -> tuple[Signature, ...]:
    """The signatures, of which nothing is signed itself. Unknown algorithms are kept, and never count."""
    if text.count(b"\ndirectory-signature ", start - 1) > MAX_SIGNATURES:
        raise DocumentError(f"consensus with more than {MAX_SIGNATURES} signatures")
    items = scan(text[start:], SIGNATURE_RULES, what="signatures", first_line=line_at(text, start))
    signatures = []
    for item in items.all("directory-signature"):
        algorithm, identity, key = item.args[:3] if len(item.args) > 2 else ("sha1", *item.args)
        digests = item.decode(decode_fingerprint, identity), item.decode(decode_fingerprint, key)
        signatures.append(Signature(algorithm, *digests, item.object))
    return tuple(signatures)


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} days {hours} hours"
    return f"{hours} hours {minutes % 60} minutes" if minutes else f"{int(seconds)} seconds"
