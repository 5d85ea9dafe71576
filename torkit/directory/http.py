"""Answers of directory servers: HTTP/1.0 or 1.1, with a body in one of several encodings."""

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

from torkit.directory.compression import ACCEPT_ENCODING, decompress_in_steps
from torkit.directory.steps import Steps
from torkit.errors import DocumentError, NoDirectory, NothingNewer, NotServed

# Specification constants: RFC 1123, 5.2.14.

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Implementation limit.
HEAD_LEN_MAX = 16384  # bytes of status line and headers; real ones take 300

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([ -~]*))?")
_DATE = re.compile(rb"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT")
_OLD_NAMES = ("x-gzip",)  # that caches may give to what we asked for


class Answer(NamedTuple):
    """The body of an answer, and its Date header in seconds since the epoch where there is one."""

    body: bytes
    date: float | None


def decode_answer(answer: bytes, limit: int, encodings: Collection[str] = ACCEPT_ENCODING) -> Steps[Answer]:
    """An HTTP answer, its body decompressed, of at most `limit` bytes and in one of `encodings`.

    Raises NoDirectory for a status other than 200, of these NothingNewer for 304 and NotServed for 404;
    DocumentError for what is not HTTP, is truncated or decompresses to more.
    dir-spec, "Standards compliance".
    """
    head, blank, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(status_line)
    if not blank or status is None or len(head) > HEAD_LEN_MAX:
        raise DocumentError("a directory answer is not HTTP")
    if status[1] == b"304":
        raise NothingNewer("the directory has no newer consensus than ours")
    if status[1] != b"200":
        error = NotServed if status[1] == b"404" else NoDirectory
        raise error(_refusal(status[1].decode(), (status[2] or b"").decode()))
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
    }
    length = headers.get(b"content-length")
    if length is not None and length != b"%d" % len(body):
        raise DocumentError(f"a directory answer of {len(body)} bytes was announced as {length[:20]!r}")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding not in encodings and encoding not in _OLD_NAMES:
        raise DocumentError(f"a directory answer is encoded as {encoding[:20]!r}, which we did not ask for")
    content = yield from decompress_in_steps(body, encoding, limit)
    return Answer(content, _decode_date(headers.get(b"date", b"")))


def _refusal(status: str, reason: str) -> str:
    """Returns the error for a status other than 200. dir-spec, "HTTP status codes"."""
    meaning = {
        "404": "it does not have what was asked for",
        "503": "it is too busy, or has none yet",
    }.get(status)
    said = f"the directory answered {status} {reason}".rstrip()
    return f"{said}: {meaning}" if meaning else said


def encode_date(seconds: int) -> str:
    """RFC 1945, "Date/Time Formats", the first. By hand, since to import `email` takes 10 ms."""
    date = datetime.fromtimestamp(seconds, UTC)
    return f"{DAYS[date.weekday()]}, {date.day:02} {MONTHS[date.month - 1]} {date:%Y %H:%M:%S} GMT"


def _decode_date(value: bytes) -> float | None:
    """Returns seconds since the epoch; None for what `encode_date` would not write."""
    match = _DATE.fullmatch(value)
    if match is None:
        return None
    day, month, *others = (one.decode("ascii") for one in match.groups())
    year, hour, minute, second = map(int, others)
    try:
        date = datetime(year, MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC)
        return date.timestamp()
    except ValueError:
        return None
