"""The document meta-format: keyword lines, objects, and the rules table each document is held to.

Bytes in, `Item`s out; every fault of a document is a DocumentError with its line. No document is
known here by name: the tables stand with the documents. dir-spec, "Document meta-format".
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Any, NamedTuple, TypeVar

from torkit.errors import DocumentError

# Specification constants.

DIGEST_LEN = 20  # SHA-1: relay and authority fingerprints
DIGEST256_LEN = 32  # SHA-256: microdescriptors
MAX_NICKNAME_LEN = 19
MAX_PROTOCOL_VERSION = 63  # tor-spec, "Subprotocol versioning"

# Implementation limits.

# The scanner makes objects per line, some 5 ms for so many, and what it reads may be from anybody.
# Authorities take no descriptor of over 20,000 bytes (2,000 lines), and no extra-info of over 50,000.
MAX_SCAN_LEN = 1 << 16  # bytes
MAX_SCAN_LINES = 4096
MAX_OBJECT_LEN = 1 << 14  # bytes of base64; an RSA key or signature of 4096 bits has about 800
MAX_PROTOCOL_NAME_LEN = 100  # characters

_T = TypeVar("_T")
_ANNOTATIONS = re.compile(rb"\A(?:@[^\n]*\n)+")
_KEYWORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*+(?=[ \t]|\Z)")
_ARGUMENT = re.compile(r"[^ \t]+")
_BEGIN = re.compile(rb"-----BEGIN ([A-Za-z0-9 -]{1,64})-----")
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/=]{1,64}")
_TIME = re.compile(r"([12]\d{3})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)", re.ASCII)
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!\Z)|\Z)){4}")
_ADDR_PORT_6 = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\]:([0-9]{1,5})")


class Count(Enum):
    """How often an item may stand in a document, in the words of dir-spec."""

    ONCE = "exactly once"
    AT_MOST_ONCE = "at most once"
    AT_LEAST_ONCE = "once or more"
    ANY = "any number"


class Place(Enum):
    """Where an item must stand."""

    START = "at start"
    END = "at end"


class Rule(NamedTuple):
    """The rules for one keyword.

    `args` is the least number of arguments, and the greatest too where `no_extra`. `objects` are the
    labels its object may carry; empty means that it has none.
    """

    how_often: Count
    args: int = 0
    no_extra: bool = False
    objects: tuple[str, ...] = ()
    object_optional: bool = False
    place: Place | None = None


class Item(NamedTuple):
    """One keyword line and its object. `line` counts from 1; `end` is the offset after the keyword line."""

    keyword: str
    args: list[str]
    object: bytes
    line: int
    end: int

    def fail(self, reason: str) -> DocumentError:
        """Returns the error to raise for this item."""
        return DocumentError(f"{self.keyword}: {reason}", line=self.line)

    def decode(self, decoder: Callable[..., _T], *args: Any) -> _T:
        """Returns what `decoder` makes of `args`. Its ValueError becomes this item's DocumentError."""
        try:
            return decoder(*args)
        except ValueError as error:
            raise self.fail(str(error)) from None


class Items:
    """The items that `scan` found: known keywords only, each as often as its rule allows."""

    def __init__(self, found: dict[str, list[Item]]) -> None:
        self._found = found

    def one(self, keyword: str) -> Item:
        """Returns the item of a keyword whose rule is ONCE."""
        return self._found[keyword][0]

    def maybe(self, keyword: str) -> Item | None:
        """Returns the item of a keyword whose rule is AT_MOST_ONCE."""
        items = self._found.get(keyword)
        return items[0] if items else None

    def all(self, keyword: str) -> list[Item]:
        """Returns every item of a keyword, in document order."""
        return self._found.get(keyword, [])


def check_size(text: bytes, limit: int, what: str) -> None:
    """Refuse a text over `limit` bytes, cut off, or with other ends of lines. Raises DocumentError."""
    if len(text) > limit:
        raise DocumentError(f"{what} of {len(text)} bytes; at most {limit} are read")
    if text[: text.find(b"\n") + 1].endswith(b"\r\n"):
        raise DocumentError(
            f"{what} has lines that end in CR LF, which is not the text that was signed", line=1
        )
    if not text.endswith(b"\n"):
        raise DocumentError(f"{what} does not end with a newline")


def without_annotations(text: bytes) -> bytes:
    """Returns a document without the lines before it that begin with @, as archives and caches have them.

    They are outside of what is signed: `@type network-status-consensus-3 1.0`.
    """
    return _ANNOTATIONS.sub(b"", text, count=1)


def check_text(text: bytes, limit: int, what: str) -> None:
    """As `check_size`; and refuse what holds a NUL byte or is not UTF-8.

    Fast on ASCII text of any size. Raises DocumentError.
    """
    check_size(text, limit, what)
    check_characters(text, 0, len(text), what)


def check_characters(text: bytes, start: int, end: int, what: str) -> None:
    """Refuse lines, from offset `start` to `end`, with a NUL byte or not in UTF-8. Raises DocumentError."""
    part = text[start:end]
    if (nul := part.find(b"\0")) >= 0:
        raise DocumentError(f"{what} holds a NUL byte", line=line_at(text, start + nul))
    if not part.isascii():
        try:
            part.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DocumentError(f"{what} is not UTF-8", line=line_at(text, start + error.start)) from None


def line_at(text: bytes, offset: int) -> int:
    """Returns the number of the line that holds `offset`, from 1."""
    return text.count(b"\n", 0, offset) + 1


def scan(
    text: bytes,
    rules: Mapping[str, Rule],
    *,
    what: str,
    first_line: int = 1,
    max_object_len: int = MAX_OBJECT_LEN,
) -> Items:
    """Read every item of `text`, which has passed `check_text`, and hold it to `rules`.

    Unknown keywords are ignored with their objects, as the specification demands. `first_line` is
    the number of the first line, for messages; `max_object_len` bounds an object, in bytes of base64.
    Raises DocumentError.
    """
    found: dict[str, list[Item]] = {}
    last = None
    for item in _items(text, rules, what, first_line, max_object_len):
        rule = rules.get(item.keyword)
        if last is None and (rule is None or rule.place is not Place.START):
            for keyword, other in rules.items():
                if other.place is Place.START:
                    raise item.fail(f"{what} must start with {keyword}")
        last = item
        if rule is None:
            continue
        same = found.setdefault(item.keyword, [])
        if same and rule.how_often in (Count.ONCE, Count.AT_MOST_ONCE):
            raise item.fail(f"again, but it stands {rule.how_often.value}")
        if len(item.args) < rule.args or (rule.no_extra and len(item.args) > rule.args):
            raise item.fail(f"{rule.args} arguments expected, {len(item.args)} seen")
        same.append(item)
    if last is None:
        raise DocumentError(f"{what} is empty", line=first_line)
    for keyword, rule in rules.items():
        if keyword not in found and rule.how_often in (Count.ONCE, Count.AT_LEAST_ONCE):
            raise DocumentError(f"{what} lacks {keyword}", line=last.line)
        if rule.place is Place.END and last.keyword != keyword:
            raise last.fail(f"{what} must end with {keyword}")
    return Items(found)


def scan_part(text: bytes, start: int, end: int, rules: Mapping[str, Rule], *, what: str) -> Items:
    """As `scan`, of the part of `text` from offset `start` to `end`, of which nothing is known yet."""
    first_line = line_at(text, start)
    _check_scan_len(end - start, what, first_line)
    check_characters(text, start, end, what)
    return scan(text[start:end], rules, what=what, first_line=first_line)


def _check_scan_len(length: int, what: str, first_line: int) -> None:
    if length > MAX_SCAN_LEN:
        raise DocumentError(f"{what} of {length} bytes; at most {MAX_SCAN_LEN} are read", line=first_line)


def _items(
    text: bytes, rules: Mapping[str, Rule], what: str, first_line: int, max_object_len: int
) -> Iterator[Item]:
    _check_scan_len(len(text), what, first_line)
    lines = text.split(b"\n")
    lines.pop()  # what follows the last newline: nothing
    if len(lines) > MAX_SCAN_LINES:
        raise DocumentError(
            f"{what} of {len(lines)} lines; at most {MAX_SCAN_LINES} are read", line=first_line
        )
    end = index = 0
    while index < len(lines):
        line = lines[index]
        number = first_line + index
        end += len(line) + 1
        index += 1
        if not line:
            continue
        match = _KEYWORD.match(line)
        if match is None:
            raise DocumentError(f"{what}: no keyword at the start of the line", line=number)
        keyword = match[0].decode("ascii")
        keyword_end = end
        body, label = b"", None
        if index < len(lines) and lines[index].startswith(b"-----BEGIN"):
            label, body, index = _object(lines, index, number, max_object_len)
            end = keyword_end + sum(len(part) + 1 for part in lines[number - first_line + 1 : index])
        rule = rules.get(keyword)
        if rule is None:
            yield Item(keyword, [], b"", number, keyword_end)
            continue
        args = _ARGUMENT.findall(line[match.end() :].decode("utf-8"))
        item = Item(keyword, args, b"", number, keyword_end)
        if label is None:
            if rule.objects and not rule.object_optional:
                raise item.fail(f"an object {rule.objects[0]} expected")
            yield item
            continue
        if label not in rule.objects:
            raise item.fail(f"an object {label} that it may not have")
        try:
            yield item._replace(object=binascii.a2b_base64(body + b"=" * (-len(body) % 4), strict_mode=True))
        except binascii.Error:
            raise item.fail("an object that is not base64") from None


def _object(lines: list[bytes], index: int, number: int, max_len: int) -> tuple[str, bytes, int]:
    """Returns the object that begins on lines[index]: label, base64 text, index of the line after it."""
    begin = _BEGIN.fullmatch(lines[index])
    if begin is None:
        raise DocumentError("malformed BEGIN line", line=number + 1)
    end_line = b"-----END " + begin[1] + b"-----"
    size = 0
    for at in range(index + 1, len(lines)):
        line = lines[at]
        if line == end_line:
            return begin[1].decode("ascii"), b"".join(lines[index + 1 : at]), at + 1
        size += len(line)
        if not _BASE64_LINE.fullmatch(line) or size > max_len:
            raise DocumentError("malformed or oversized object", line=number + 1 + at - index)
    raise DocumentError("an object without an END line", line=number + 1)


# Values of arguments. Each raises ValueError with a reason; `Item.decode` gives it a line.


def decode_time(date: str, clock: str) -> int:
    """`YYYY-MM-DD HH:MM:SS` in UTC, as seconds since the epoch."""
    match = _TIME.fullmatch(f"{date} {clock}")
    if match is None:
        raise ValueError("a time YYYY-MM-DD HH:MM:SS expected")
    year, month, day, hour, minute, second = map(int, match.groups())
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())


def encode_time(seconds: float) -> str:
    """Returns seconds since the epoch as `YYYY-MM-DD HH:MM:SS` in UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S")


def decode_int(text: str, low: int, high: int) -> int:
    """Returns a decimal integer from `low` to `high`."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        raise ValueError("a decimal integer expected")
    if not low <= (value := int(text)) <= high:
        raise ValueError(f"{value} is not from {low} to {high}")
    return value


def decode_base64(text: str, length: int) -> bytes:
    """`length` bytes from base64, with or without the trailing equals signs."""
    if len(text) > 4 * (length // 3 + 1):
        raise ValueError(f"base64 of {length} bytes expected")
    bare = text.rstrip("=")
    try:
        value = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except ValueError:
        raise ValueError(f"base64 of {length} bytes expected") from None
    if len(value) != length:
        raise ValueError(f"base64 of {length} bytes expected, {len(value)} seen")
    return value


def decode_fingerprint(text: str) -> bytes:
    """20 bytes from 40 hexadecimal digits."""
    if len(text) != 2 * DIGEST_LEN or not re.fullmatch(r"[0-9A-Fa-f]+", text):
        raise ValueError("a fingerprint of 40 hexadecimal digits expected")
    return bytes.fromhex(text)


def decode_nickname(text: str) -> str:
    """Returns a relay's nickname: 1 to 19 letters and digits."""
    if not (text.isascii() and text.isalnum() and len(text) <= MAX_NICKNAME_LEN):
        raise ValueError(f"a nickname of 1 to {MAX_NICKNAME_LEN} letters and digits expected")
    return text


def decode_ipv4(text: str) -> str:
    """Returns a dotted quad."""
    if not _IPV4.fullmatch(text):
        raise ValueError("an IPv4 address expected")
    return text


def decode_ipv6_addr_port(text: str) -> tuple[str, int] | None:
    """`[address]:port`, the address in canonical form; None for anything else, which "should be ignored"."""
    match = _ADDR_PORT_6.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65536:
        return None
    try:
        return str(IPv6Address(match[1])), int(match[2])
    except AddressValueError:
        return None


def decode_key_values(item: Item, low: int = -(2**31), high: int = 2**31 - 1) -> dict[str, int]:
    """`Keyword=Int32` arguments, each keyword once. Raises DocumentError."""
    values: dict[str, int] = {}
    for arg in item.args:
        key, equals, number = arg.partition("=")
        if not equals or not key or key in values:
            raise item.fail(f"{arg[:40]!r} is not a keyword=integer of its own")
        try:
            values[key] = decode_int(number, low, high)
        except ValueError as error:
            raise item.fail(f"{key[:40]}: {error}") from None
    return values


class Protocols:
    """A relay's or the network's subprotocol versions. tor-spec, "Subprotocol versioning"."""

    __slots__ = ("_versions",)

    def __init__(self, versions: dict[str, int]) -> None:
        self._versions = versions  # bit n of a name's mask: version n

    def supports(self, name: str, version: int) -> bool:
        """Returns whether exactly this version is listed: a later one does not imply it."""
        return 0 <= version <= MAX_PROTOCOL_VERSION and bool(self._versions.get(name, 0) >> version & 1)

    def missing_from(self, supported: "Protocols") -> list[str]:
        """Returns the versions listed here and not there, as `Name=version`."""
        return [
            f"{name}={version}"
            for name, mask in self._versions.items()
            for version in range(MAX_PROTOCOL_VERSION + 1)
            if mask >> version & 1 and not supported.supports(name, version)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Protocols) and self._versions == other._versions

    def __repr__(self) -> str:
        return f"<Protocols {self}>"

    def __str__(self) -> str:
        return " ".join(f"{name}={_ranges(mask)}" for name, mask in self._versions.items())


@lru_cache(maxsize=512)  # the real network's relays share some ten different lists
def decode_protocols(text: str) -> Protocols:
    """`Name=1-2,4 Other=3`. Raises ValueError."""
    versions: dict[str, int] = {}
    for entry in text.split():
        name, equals, ranges = entry.partition("=")
        if not equals or not name.replace("-", "a").isalnum() or not name.isascii():
            raise ValueError("a list of Name=versions expected")
        if len(name) > MAX_PROTOCOL_NAME_LEN or name in versions:
            raise ValueError(f"protocol {name[:40]} twice, or its name too long")
        mask = 0
        for one in ranges.split(",") if ranges else ():
            first, dash, last = one.partition("-")
            low = decode_int(first, 0, MAX_PROTOCOL_VERSION)
            high = decode_int(last, low, MAX_PROTOCOL_VERSION) if dash else low
            mask |= (2 << high) - (1 << low)
        versions[name] = mask
    return Protocols(versions)


def decode_protocols_item(item: Item | None) -> Protocols:
    """Returns the protocols that an item lists; none where there is no item. Raises DocumentError."""
    return item.decode(decode_protocols, " ".join(item.args)) if item else decode_protocols("")


def _ranges(mask: int) -> str:
    parts = []
    version = 0
    while mask >> version:
        if mask >> version & 1:
            first = version
            while mask >> (version + 1) & 1:
                version += 1
            parts.append(str(first) if first == version else f"{first}-{version}")
        version += 1
    return ",".join(parts)
