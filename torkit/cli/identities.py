"""What keeps streams of a proxy's clients apart: `--isolate`, `--rotate`, and the same behind `--listen`."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.voice import say
from torkit.errors import UsageError

if TYPE_CHECKING:
    from torkit.net.proxy import Isolate, Rotate

# Implementation limits.
MIN_SECONDS = 10  # of one identity; with less, circuits are built without a pause
MAX_NUMBER_LEN = 6  # digits

UNITS = {"s": 1, "m": 60, "h": 3600}
HOW_TO_ROTATE = "write it like 10m, 90s or 20uses"

IsolateOption = Annotated[
    str | None,
    typer.Option(
        "--isolate",
        metavar="WHAT,...",
        help="What keeps streams apart: auth, client, listener (these by default), dest-addr, "
        "dest-port, stream.",
    ),
]
RotateOption = Annotated[
    str | None,
    typer.Option(
        "--rotate",
        metavar="10m|20uses",
        help="Give each identity new circuits after that time, or after so many connections.",
    ),
]


def parse_isolation(text: str | None, separator: str = ",") -> "frozenset[Isolate]":
    """Returns what `--isolate` names, or the default. Raises UsageError."""
    from torkit.net.proxy import ISOLATION, Isolate

    if text is None:
        return ISOLATION
    names = {name.strip() for name in text.split(separator)} - {""}
    known = {flag.value: flag for flag in Isolate}
    if unknown := sorted(names - known.keys()):
        raise UsageError(f"--isolate: {unknown[0]!r} is none of {', '.join(known)}")
    isolation = frozenset(known[name] for name in names)
    missing = [flag.value for flag in Isolate if flag in ISOLATION - isolation]
    if missing and Isolate.STREAM not in isolation:
        say(f"--isolate without {', '.join(missing)}: who sees one stream may know whose others are")
    return isolation


def parse_rotate(text: str | None) -> "Rotate":
    """Returns what `--rotate` asks for; by default identities stay. Raises UsageError."""
    from torkit.net.proxy import NEVER, Rotate

    if text is None:
        return NEVER
    match = re.fullmatch(rf"([0-9]{{1,{MAX_NUMBER_LEN}}})(s|m|h|uses?)", text.strip())
    if match is None:
        raise UsageError(f"--rotate: {text!r} is neither a time nor a number of uses", hint=HOW_TO_ROTATE)
    number, unit = int(match[1]), match[2]
    if unit in UNITS:
        if number * UNITS[unit] < MIN_SECONDS:
            raise UsageError(f"--rotate: an identity lasts {MIN_SECONDS} s at least", hint=HOW_TO_ROTATE)
        return Rotate(seconds=number * UNITS[unit])
    if number == 0:
        raise UsageError("--rotate: an identity has one use at least", hint=HOW_TO_ROTATE)
    return Rotate(uses=number)


def check_identities(isolate: "frozenset[Isolate]", rotate: "Rotate") -> None:
    """Raises UsageError for what excludes itself."""
    from torkit.net.proxy import NEVER, Isolate

    if rotate is not NEVER and Isolate.STREAM in isolate:
        raise UsageError("--rotate has no use beside --isolate stream: no identity is used twice")
