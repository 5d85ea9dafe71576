"""Which country an address is in, by the text files that C tor reads; Debian has them in tor-geoipdb.

`FIRST,LAST,CC` on each line, in ascending order: numbers for IPv4, addresses for IPv6; lines that begin
with `#` are comments. A file has some 300,000 lines, and a command asks it for some thousand addresses at
most: it is searched by bisection as the text it is, and only the lines met on the way are read.
"""

import re
from ipaddress import IPv4Address, IPv6Address

from torkit.errors import DocumentError

UNKNOWN = "??"  # C tor's country code for an address in no range

# Implementation limits.

MAX_GEOIP_LEN = 64 << 20  # bytes; the IPv6 file of 2026 takes 16 million
MAX_LINE_LEN = 200  # bytes; two IPv6 addresses and a country take 83 at most

_COMMENTS = rb"(?:#[^\n]*+(?:\n|\Z)|\r?\n)*+"
_LINE = rb"([0-9A-Fa-f:.]{1,45}),([0-9A-Fa-f:.]{1,45}),([0-9A-Za-z?]{2})\r?"


def country_of(text: bytes, address: IPv4Address | IPv6Address) -> str:
    """Returns the country code in lower case, or UNKNOWN; `text` is the file for this version of IP.

    Raises DocumentError for a line on the way that is malformed, out of order or overlaps another.
    """
    if len(text) > MAX_GEOIP_LEN:
        raise DocumentError(f"geoip file of {len(text)} bytes; at most {MAX_GEOIP_LEN} are read")
    wanted = int(address)
    country = UNKNOWN
    previous_last, next_first = -1, 1 << address.max_prefixlen
    low, high = 0, len(text)  # the line looked for, the last whose FIRST is not above, begins in between
    while low < high:
        start = max(text.rfind(b"\n", low, (low + high) // 2) + 1, low)
        skipped = re.compile(_COMMENTS).match(text, start, high)
        at = skipped.end() if skipped else start
        if at == high:
            high = start
            continue
        newline = text.find(b"\n", at, high)
        end = newline if newline >= 0 else high
        first, last, code = _decode_line(text, at, end, type(address))
        if not previous_last < first <= last < next_first:
            raise _fail(text, at, "ranges must ascend and not overlap")
        if first <= wanted:
            country = code if wanted <= last else UNKNOWN
            previous_last, low = last, min(end + 1, high)
        else:
            next_first, high = first, start
    return country


def has_country(text: bytes, country: str) -> bool:
    """Returns whether the file has a range in the country with this code."""
    pattern = rb",%b\r?$" % re.escape(country.encode("ascii", "replace"))
    return re.search(pattern, text, re.MULTILINE | re.IGNORECASE) is not None


def _decode_line(
    text: bytes, start: int, end: int, decode: type[IPv4Address] | type[IPv6Address]
) -> tuple[int, int, str]:
    match = re.compile(_LINE).fullmatch(text, start, end) if end - start <= MAX_LINE_LEN else None
    if match is None:
        raise _fail(text, start, "FIRST,LAST,CC expected")
    try:
        if decode is IPv4Address:
            first, last = int(match[1]), int(match[2])
        else:
            first, last = int(decode(match[1].decode())), int(decode(match[2].decode()))
    except ValueError as error:
        raise _fail(text, start, f"not a range of addresses: {error}") from None
    return first, last, match[3].decode().lower()


def _fail(text: bytes, at: int, reason: str) -> DocumentError:
    return DocumentError(f"geoip: {reason}", line=text.count(b"\n", 0, at) + 1)
