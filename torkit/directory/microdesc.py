"""Microdescriptors: found and hashed in bulk, parsed one by one when a relay is looked at.

What names a microdescriptor is the SHA-256 of its exact text, so a text that is held under its digest
is what the authorities signed, and only then worth parsing. dir-spec, "Computing microdescriptors".
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from sys import intern
from typing import NamedTuple

from torkit.directory.netdoc import (
    Count,
    Item,
    Place,
    Protocols,
    Rule,
    check_characters,
    check_size,
    check_text,
    decode_base64,
    decode_int,
    decode_ipv6_addr_port,
    decode_protocols,
    decode_time,
    encode_time,
    line_at,
    scan,
)
from torkit.directory.steps import Steps, complete
from torkit.errors import DocumentError

# Specification constants.

KEY_LEN = 32
KEEP_UNLISTED = 7 * 24 * 3600  # seconds; dir-spec, "Downloading server descriptors or microdescriptors"

# Implementation limits.

MAX_MICRODESC_LEN = 1 << 16  # bytes; the largest of 2022 take some 12,000, nearly all of it family
MAX_MICRODESCS_LEN = 64 << 20  # bytes in one concatenation; 10,000 of today take about 8 million
MAX_ANNOTATIONS = 16  # lines before one text; ours and C tor's are one
STEP_LEN = 1 << 18  # bytes found and hashed in one step, some 300 texts: 1 ms

RULES = {
    "onion-key": Rule(
        Count.ONCE, no_extra=True, objects=("RSA PUBLIC KEY",), object_optional=True, place=Place.START
    ),
    "ntor-onion-key": Rule(Count.ONCE, args=1),
    "a": Rule(Count.ANY, args=1),
    "family": Rule(Count.AT_MOST_ONCE),
    "family-ids": Rule(Count.AT_MOST_ONCE),
    "p": Rule(Count.AT_MOST_ONCE, args=2),
    "p6": Rule(Count.AT_MOST_ONCE, args=2),
    "pr": Rule(Count.AT_MOST_ONCE),
    "id": Rule(Count.ANY, args=2),
}

_START = b"onion-key\n"
_LAST_LISTED = re.compile(rb"@last-listed ([0-9-]{10}) ([0-9:]{8})")


class PortPolicy(NamedTuple):
    """An exit policy summary: the ports reachable at "most addresses". dir-spec, "Encoding port lists".

    `ranges` ascend and do not overlap.
    """

    is_accept: bool
    ranges: tuple[tuple[int, int], ...]

    def accepts(self, port: int) -> bool:
        """Returns whether a stream to this port, 1 to 65535, may be tried here."""
        index = bisect_right(self.ranges, (port, 65536)) - 1
        return (index >= 0 and port <= self.ranges[index][1]) is self.is_accept

    @property
    def rejects_all(self) -> bool:
        """Returns whether no port is accepted."""
        return not self.is_accept and self.ranges == ((1, 65535),)

    def __str__(self) -> str:
        ports = (str(low) if low == high else f"{low}-{high}" for low, high in self.ranges)
        return f"{'accept' if self.is_accept else 'reject'} {','.join(ports)}"


REJECT_ALL = PortPolicy(False, ((1, 65535),))  # what a missing line means


class Microdesc(NamedTuple):
    """The fields of a microdescriptor.

    Keys are 32 bytes. `family` holds `$` and 40 uppercase digits, or a nickname in lower case;
    `family_ids` opaque strings. `protocols` is None where the consensus alone lists them.
    """

    ntor_onion_key: bytes
    ed25519_identity: bytes | None
    family: frozenset[str]
    family_ids: frozenset[str]
    policy: PortPolicy
    policy6: PortPolicy
    ipv6: tuple[str, int] | None
    protocols: Protocols | None


class Microdescs(Mapping[bytes, bytes]):
    """Exact texts by digest, with the time a consensus last listed each: what the cache keeps.

    Changed by `add`, `mark_listed` and `expire`; parses nothing.
    """

    def __init__(self) -> None:
        self._texts: dict[bytes, bytes] = {}
        self._last_listed: dict[bytes, int] = {}

    def __getitem__(self, digest: bytes) -> bytes:
        return self._texts[digest]

    def __contains__(self, digest: object) -> bool:
        return digest in self._texts

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: bytes, wanted: Collection[bytes], now: float) -> set[bytes]:
        """As `add_in_steps`, at once."""
        return complete(self.add_in_steps(text, wanted, now))

    def add_in_steps(self, text: bytes, wanted: Collection[bytes], now: float) -> Steps[set[bytes]]:
        """Take from a fetched concatenation what was asked for; the digests that came.

        The rest is dropped: "client MUST discard any [...] that it did not request". No more texts are looked
        at than were asked for. Raises DocumentError.
        """
        found = {}
        step = 0
        for count, (digest, body, _) in enumerate(split_microdescs(text), 1):
            if count > len(wanted):
                raise DocumentError(f"more than the {len(wanted)} microdescriptors that were asked for")
            if digest in wanted:
                found[digest] = body
            step += len(body)
            if step > STEP_LEN:
                step = 0
                yield
        self._texts.update(found)
        self.mark_listed(found, now)
        return set(found)

    def merge(self, other: "Microdescs") -> None:
        """Take over what another process has kept, and the later of each time."""
        self._texts = other._texts | self._texts
        for digest, listed in other._last_listed.items():
            if listed > self._last_listed.get(digest, -1):
                self._last_listed[digest] = listed

    def mark_listed(self, digests: Iterable[bytes | None], now: float) -> None:
        """Note that the consensus of `now` lists these, as far as they are held."""
        self._last_listed.update(dict.fromkeys([d for d in digests if d and d in self._texts], int(now)))

    def expire(self, now: float) -> None:
        """Forget what no consensus has listed for a week."""
        for digest in [d for d, listed in self._last_listed.items() if listed < now - KEEP_UNLISTED]:
            del self._texts[digest], self._last_listed[digest]

    def encode(self) -> bytes:
        """As `encode_in_steps`, at once."""
        return complete(self.encode_in_steps())

    def encode_in_steps(self) -> Steps[bytes]:
        """Returns all texts, one after the other, each under a `@last-listed` line (as C tor keeps them)."""
        lines = {
            at: b"@last-listed %s\n" % encode_time(at).encode() for at in set(self._last_listed.values())
        }
        pieces: list[bytes] = []
        step = 0
        for digest, text in self._texts.items():
            pieces += (lines[self._last_listed[digest]], text)
            step += len(text)
            if step > STEP_LEN:
                step = 0
                yield
        return b"".join(pieces)

    @classmethod
    def decode(cls, text: bytes) -> "Microdescs":
        """As `decode_in_steps`, at once."""
        return complete(cls.decode_in_steps(text))

    @classmethod
    def decode_in_steps(cls, text: bytes) -> "Steps[Microdescs]":
        """Read what `encode` wrote.

        A text without annotation counts as never listed. Raises DocumentError.
        """
        self = cls()
        times: dict[bytes, int] = {}
        step = 0
        for digest, body, annotation in split_microdescs(text):
            if annotation not in times:
                times[annotation] = _decode_last_listed(annotation)
            self._texts[digest] = body
            self._last_listed[digest] = times[annotation]
            step += len(body)
            if step > STEP_LEN:
                step = 0
                yield
        return self


def split_microdescs(text: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Each microdescriptor of a concatenation: SHA-256 digest, exact text, annotation lines before it.

    A text begins at a line `onion-key` and ends before the next one or its annotations. Contents are
    not looked at. Raises DocumentError.
    """
    if not text:
        return
    check_size(text, MAX_MICRODESCS_LEN, "microdescriptors")
    checked = 0
    at = 0 if text.startswith(_START) else text.find(b"\n" + _START) + 1
    if not text.startswith((_START, b"@")) or not text.startswith(_START, at):
        raise DocumentError("microdescriptors must start with onion-key", line=1)
    annotation = text[:at]
    while at < len(text):
        following = text.find(b"\n" + _START, at + len(_START) - 1) + 1 or len(text)
        end = following
        annotations = 0
        while (line := text.rfind(b"\n", at, end - 1) + 1) and text.startswith(b"@", line):
            end = line
            annotations += 1
            if annotations > MAX_ANNOTATIONS:
                raise DocumentError(f"more than {MAX_ANNOTATIONS} annotations", line=line_at(text, line))
        if following > checked:
            start, checked = checked, text.find(b"\n", following - 1 + STEP_LEN) + 1 or len(text)
            check_characters(text, start, checked, "microdescriptors")
        # Sliced one by one, so that no other copy of everything leaves holes in the memory between these.
        exact = text[at:end]
        yield hashlib.sha256(exact).digest(), exact, annotation
        annotation = text[end:following]
        at = following


def parse_microdesc(text: bytes) -> Microdesc:
    """Read one microdescriptor whose digest a verified consensus lists. Raises DocumentError."""
    check_text(text, MAX_MICRODESC_LEN, "microdescriptor")
    items = scan(text, RULES, what="microdescriptor")
    ntor = items.one("ntor-onion-key")
    ipv6 = (decode_ipv6_addr_port(item.args[0]) for item in items.all("a"))
    protocols = items.maybe("pr")
    family, family_ids = items.maybe("family"), items.maybe("family-ids")
    return Microdesc(
        ntor_onion_key=ntor.decode(decode_base64, ntor.args[0], KEY_LEN),
        ed25519_identity=_decode_ed25519(items.all("id")),
        family=decode_family(" ".join(family.args)) if family else frozenset(),
        family_ids=frozenset(map(intern, family_ids.args)) if family_ids else frozenset(),
        policy=_decode_policy_item(items.maybe("p")),
        policy6=_decode_policy_item(items.maybe("p6")),
        ipv6=next((one for one in ipv6 if one), None),
        protocols=protocols.decode(decode_protocols, " ".join(protocols.args)) if protocols else None,
    )


def exit_policies(text: bytes) -> tuple[PortPolicy, PortPolicy]:
    """Returns the IPv4 and IPv6 policy summaries alone: the fast road for choosing among all exits.

    Its slow twin is `parse_microdesc`, which also sees what is wrong elsewhere. Raises DocumentError.
    """
    return _policy_line(text, b"\np "), _policy_line(text, b"\np6 ")


def _policy_line(text: bytes, start: bytes) -> PortPolicy:
    at = text.find(start)
    if at < 0:
        return REJECT_ALL
    at += len(start)
    try:
        return decode_policy(text[at : text.find(b"\n", at)].decode("utf-8"))
    except ValueError as error:
        raise DocumentError(f"{start.decode().strip()}: {error}") from None


@lru_cache(maxsize=4096)  # some 1,500 exits of the real network share a few hundred summaries
def decode_policy(text: str) -> PortPolicy:
    """`accept 80,443` or `reject 1-1024`: ports from 1, ascending. Raises ValueError."""
    kind, space, port_list = text.partition(" ")
    if kind not in ("accept", "reject") or not space:
        raise ValueError("accept or reject and a list of ports expected")
    ranges: list[tuple[int, int]] = []
    for entry in port_list.split(","):
        first, dash, last = entry.partition("-")
        low = decode_int(first, ranges[-1][1] + 1 if ranges else 1, 65535)
        ranges.append((low, decode_int(last, low, 65535) if dash else low))
    return PortPolicy(kind == "accept", tuple(ranges))


def _decode_policy_item(item: Item | None) -> PortPolicy:
    return item.decode(decode_policy, " ".join(item.args)) if item else REJECT_ALL


@lru_cache(maxsize=1024)  # the members of one family list the same line
def decode_family(text: str) -> frozenset[str]:
    """Returns a family's members. Entries of unknown form stay as they are and match nobody."""
    return frozenset(
        entry.partition("=")[0].partition("~")[0].upper() if entry.startswith("$") else entry.lower()
        for entry in text.split()
    )


def _decode_ed25519(items: list[Item]) -> bytes | None:
    keys = [item for item in items if item.args[0] == "ed25519"]
    if len(keys) > 1:
        raise keys[1].fail("a second ed25519 identity")
    return keys[0].decode(decode_base64, keys[0].args[1], KEY_LEN) if keys else None


def _decode_last_listed(annotation: bytes) -> int:
    match = _LAST_LISTED.search(annotation)
    if match is None:
        return 0
    try:
        return decode_time(match[1].decode(), match[2].decode())
    except ValueError:
        return 0
