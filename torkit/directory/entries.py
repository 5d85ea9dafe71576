"""The entries of a consensus, one for each relay: read in bulk, looked at lazily.

A relay that is never looked at never becomes an object: `Relays` keeps four columns, and `relays[i]` reads
one entry through the rules table. dir-spec, "Vote and consensus status document formats".
"""

import binascii
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache, cached_property, lru_cache
from operator import lt
from sys import intern
from typing import NamedTuple, overload

from torkit.directory.microdesc import REJECT_ALL, PortPolicy, decode_policy
from torkit.directory.netdoc import (
    DIGEST256_LEN,
    DIGEST_LEN,
    Count,
    Place,
    Protocols,
    Rule,
    decode_base64,
    decode_int,
    decode_ipv4,
    decode_ipv6_addr_port,
    decode_nickname,
    decode_protocols,
    decode_protocols_item,
    line_at,
    scan,
)
from torkit.directory.steps import Steps
from torkit.errors import DocumentError

# Specification constants.

MAX_BANDWIDTH = 2**32 - 1

# Implementation limits.

MAX_RELAYS = 50_000  # entries; five times the network
MAX_ENTRY_LEN = 1 << 14  # bytes; real ones take 400
STEP_LEN = 1 << 17  # bytes read in one step, some 400 entries: 2 ms
SLOW_STEP_LEN = 1 << 14  # bytes read in one step on the slow road: 3 ms

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
    """The differences between flavors. `entry` is a pattern for `_entry_pattern`."""

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
    """Matches the fields without a column in `Relays`, in a checked entry: usual order, single spaces."""
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


class Relays(Sequence[RouterStatus]):
    """The entries in ascending order of identity: columns at once, objects when looked at.

    `read_entries` has checked them where they stand in `text`.
    """

    def __init__(self, text: bytes, flavor: str, columns: "_Columns") -> None:
        self.identities = columns.identities
        self.digests = columns.digests
        self.flags = columns.flags
        self.bandwidths = columns.bandwidths
        self._text = text
        self._flavor = flavor
        self._offsets = columns.offsets

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
        offsets = self._offsets
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
        """Returns the place of the relay with this identity, 20 bytes."""
        identities = self.identities
        index = bisect_left(identities, identity)
        return index if index < len(identities) and identities[index] == identity else None

    def indexes_of_nickname(self, nickname: str) -> list[int]:
        """Returns the places of all relays so named, without regard to case: nicknames are not unique."""
        return self._indexes_by_nickname.get(nickname.encode("ascii", "replace").lower(), [])

    @cached_property
    def _indexes_by_nickname(self) -> dict[bytes, list[int]]:
        """In lower case. Each path is held against all names that the user has given."""
        indexes: dict[bytes, list[int]] = {}
        for index, offset in enumerate(self._offsets[:-1]):
            _, nickname, _ = self._text[offset : self._text.index(b"\n", offset)].split(None, 2)
            indexes.setdefault(nickname.lower(), []).append(index)
        return indexes


class _Columns(NamedTuple):
    identities: list[bytes]
    digests: list[bytes | None]
    flags: list[frozenset[str]]
    bandwidths: "array[int]"
    offsets: "array[int]"  # where each entry begins, and where the last one ends


def read_entries(text: bytes, flavor: str, start: int, end: int) -> Steps[Relays]:
    """Read the entries that stand in `text` from offset `start` to the footer at offset `end`.

    Every entry is checked now, so that looking at one later cannot fail. A single malformed entry
    voids the document. Raises DocumentError.
    """
    count = text.count(b"\nr ", start - 1, end)
    if count > MAX_RELAYS:
        raise DocumentError(f"consensus of {count} relays; at most {MAX_RELAYS} are read")
    _entry_pattern(flavor)  # compiled once: 3 ms
    yield
    columns = _Columns([], [], [], array("Q"), array("Q"))
    at, line = start, line_at(text, start)
    while at < end:
        following = text.find(b"\nr ", at + STEP_LEN, end) + 1 or end
        offsets = _entry_starts(text, at, following)
        if not _read_fast(columns, text, flavor, at, following, len(offsets)):
            yield from _read_slow(columns, text, flavor, offsets, following, line)
        columns.offsets.extend(offsets)
        line += text.count(b"\n", at, following)
        at = following
        yield
    columns.offsets.append(end)
    identities = columns.identities
    if not all(map(lt, identities, identities[1:])):
        wrong = next(i for i in range(1, count) if identities[i - 1] >= identities[i])
        raise DocumentError(
            "r: entries are not in strictly ascending order of identity",
            line=line_at(text, columns.offsets[wrong]),
        )
    return Relays(text, flavor, columns)


def _entry_starts(text: bytes, start: int, end: int) -> list[int]:
    """Returns where the `r` lines begin, of which the first is at offset `start`."""
    starts = []
    at = start
    while at:
        starts.append(at)
        at = text.find(b"\nr ", at, end) + 1
    return starts


def _read_fast(columns: _Columns, text: bytes, flavor: str, start: int, end: int, count: int) -> bool:
    """Fast road: all `count` entries must match the flavor's pattern. Returns whether they did.

    If not, nothing is added. Each match begins at an `r` line and ends at the next, so as many of them as
    there are `r` lines leave nothing unread. Flags, protocols and policies repeat: each different line is
    decoded once.
    """
    # The pattern looks ahead for the next entry or the footer, so let it see where that begins.
    rows = _entry_pattern(flavor).findall(text, start, end + len(b"directory-footer\n"))
    if len(rows) != count:
        return False
    identities, digests, flag_lines, protocol_lines, bandwidths, *policies = zip(*rows, strict=True)
    weights = array("Q", map(int, bandwidths))
    try:
        for protocols in set(protocol_lines):
            decode_protocols(protocols.decode("ascii"))
        for policy in {line for lines in policies for line in lines if line}:
            decode_policy(policy.decode("ascii"))
    except ValueError:
        return False  # the slow twin says where
    if max(weights) > MAX_BANDWIDTH:
        return False
    flags = {line: _flags(line.decode("ascii")) for line in set(flag_lines)}
    columns.identities.extend(_decode_digests(identities, DIGEST_LEN))
    columns.digests.extend(_decode_digests(digests, FLAVORS[flavor].digest_len))
    columns.flags.extend([flags[line] for line in flag_lines])
    columns.bandwidths.extend(weights)
    return True


@lru_cache(maxsize=1024)  # the real network's relays share some hundred different lines
def _flags(text: str) -> frozenset[str]:
    return frozenset(map(intern, text.split()))


def _decode_digests(encoded: Sequence[bytes], length: int) -> list[bytes]:
    """Unpadded base64 of `length` bytes each, decoded in one call: an A fills each one's last group."""
    packed = binascii.a2b_base64(b"A".join(encoded) + b"A")
    return [packed[at : at + length] for at in range(0, len(packed), length + 1)]


def _read_slow(
    columns: _Columns, text: bytes, flavor: str, offsets: list[int], end: int, line: int
) -> Steps[None]:
    """Slow twin: any order of lines, unknown keywords, missing `w`; and the errors with their lines."""
    step_end = offsets[0] + SLOW_STEP_LEN
    for at, following in zip(offsets, [*offsets[1:], end], strict=True):
        entry = text[at:following]
        status = _parse_entry(entry, flavor, line)
        line += entry.count(b"\n")
        columns.identities.append(status.identity)
        columns.digests.append(status.digest)
        columns.flags.append(status.flags)
        columns.bandwidths.append(status.bandwidth)
        if following > step_end:
            step_end = following + SLOW_STEP_LEN
            yield


def _parse_entry(entry: bytes, flavor: str, first_line: int) -> RouterStatus:
    if len(entry) > MAX_ENTRY_LEN:
        raise DocumentError(
            f"relay: an entry of {len(entry)} bytes; at most {MAX_ENTRY_LEN} are read", line=first_line
        )
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
        flags=_flags(" ".join(items.one("s").args)),
        version=" ".join(v.args) if v else None,
        protocols=decode_protocols_item(items.maybe("pr")),
        bandwidth=bandwidth,
        policy=p.decode(_decode_policy, " ".join(p.args), flavor) if p else _decode_policy(None, flavor),
    )


def _first_ipv6(addresses: Iterable[str]) -> tuple[str, int] | None:
    return next(filter(None, map(decode_ipv6_addr_port, addresses)), None)


def _decode_policy(text: str | None, flavor: str) -> PortPolicy | None:
    """Decode the `p` line, which only the ns flavor has. Raises ValueError."""
    if flavor != "ns":
        return None
    return decode_policy(text) if text else REJECT_ALL
