"""Extra-info documents: a relay's statistics, apart from its server descriptor, which names their digest.

dir-spec, "Extra-info document format".
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torkit.directory.netdoc import (
    Count,
    Item,
    Place,
    Rule,
    check_text,
    decode_fingerprint,
    decode_int,
    decode_nickname,
    decode_time,
    scan,
    without_annotations,
)
from torkit.directory.server_descriptor import (
    ServerDescriptor,
    check_ed25519_signature,
    check_rsa_signature,
    split_documents,
)

# Implementation limits.

MAX_EXTRA_INFO_LEN = 1 << 16  # bytes; authorities take 50,000
MAX_INTERVALS = 4096  # in one history; relays keep five days of a quarter of an hour each, 480

HISTORIES = (
    *("read-history", "write-history", "ipv6-read-history", "ipv6-write-history"),
    *("dirreq-read-history", "dirreq-write-history"),
)
RULES = {
    "extra-info": Rule(Count.ONCE, args=2, place=Place.START),
    "identity-ed25519": Rule(Count.ONCE, no_extra=True, objects=("ED25519 CERT",)),
    "published": Rule(Count.ONCE, args=2),
    **{keyword: Rule(Count.AT_MOST_ONCE, args=4) for keyword in HISTORIES},
    "transport": Rule(Count.ANY, args=1),
    "router-sig-ed25519": Rule(Count.ONCE, args=1),
    "router-signature": Rule(Count.ONCE, no_extra=True, objects=("SIGNATURE",), place=Place.END),
}

_START = re.compile(rb"^extra-info ", re.MULTILINE)
_INTERVAL = re.compile(r"\(([0-9]{1,9}) s\)")


class History(NamedTuple):
    """Bytes per interval, oldest first. `end` is the last one's, in seconds since the epoch."""

    end: int
    interval: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExtraInfo:
    """An extra-info document whose Ed25519 signature holds; `check_extra_info` says whose it is.

    `identity` is 20 bytes, `ed25519_identity` 32. `digest` and `digest256`, 20 and 32 bytes, are those
    by which the server descriptor names it: SHA-1 of what is signed, SHA-256 of everything. `histories`
    by keyword; other statistics stay in `text`.
    """

    nickname: str
    identity: bytes
    ed25519_identity: bytes
    digest: bytes
    digest256: bytes
    published: int
    histories: dict[str, History]
    text: bytes = field(repr=False)


def split_extra_infos(text: bytes) -> Iterator[bytes]:
    """Each document of a concatenation, without annotations; contents are not looked at.

    Raises DocumentError.
    """
    return split_documents(text, _START, "extra-info documents")


def parse_extra_info(text: bytes) -> ExtraInfo:
    """Read one extra-info document and check its Ed25519 signature. Raises DocumentError.

    Lines before it that begin with @ are passed over.
    """
    text = without_annotations(text)
    check_text(text, MAX_EXTRA_INFO_LEN, "extra-info")
    items = scan(text, RULES, what="extra-info")
    start, published = items.one("extra-info"), items.one("published")
    cert = check_ed25519_signature(items, text, "extra-info")
    found = ((keyword, items.maybe(keyword)) for keyword in HISTORIES)
    return ExtraInfo(
        nickname=start.decode(decode_nickname, start.args[0]),
        identity=start.decode(decode_fingerprint, start.args[1]),
        ed25519_identity=cert.signing_key or b"",
        digest=hashlib.sha1(text[: items.one("router-signature").end]).digest(),
        digest256=hashlib.sha256(text).digest(),
        published=published.decode(decode_time, *published.args[:2]),
        histories={keyword: _decode_history(item) for keyword, item in found if item},
        text=text,
    )


def check_extra_info(extra_info: ExtraInfo, descriptor: ServerDescriptor) -> None:
    """Check that this is the document `descriptor` names, signed by the same keys. Raises DocumentError."""
    items = scan(extra_info.text, RULES, what="extra-info")
    if extra_info.digest != descriptor.extra_info_digest:
        raise items.one("extra-info").fail("not the document that the server descriptor names")
    if descriptor.extra_info_digest256 not in (None, extra_info.digest256):
        raise items.one("extra-info").fail("not the text that the server descriptor names")
    named = (extra_info.identity, extra_info.ed25519_identity, extra_info.published)
    if named != (descriptor.identity, descriptor.ed25519_identity, descriptor.published):
        raise items.one("extra-info").fail("another relay or time than the server descriptor has")
    check_rsa_signature(items, extra_info.text, descriptor.identity_key)


def _decode_history(item: Item) -> History:
    """`YYYY-MM-DD HH:MM:SS (900 s) 1,2,3`; a history of nothing ends after the interval."""
    date, clock, *interval = item.args[:4]
    match = _INTERVAL.fullmatch(" ".join(interval))
    if match is None:
        raise item.fail("an interval (NSEC s) expected")
    numbers = item.args[4].split(",", MAX_INTERVALS) if len(item.args) > 4 else []
    if len(numbers) > MAX_INTERVALS:
        raise item.fail(f"more than {MAX_INTERVALS} intervals")
    return History(
        item.decode(decode_time, date, clock),
        int(match[1]),
        tuple(item.decode(decode_int, number, 0, 2**63 - 1) for number in numbers),
    )
