"""Sizes that users name; `--max-memory`, of the commands that carry streams."""

import re
from typing import Annotated

import typer

from torkit.errors import UsageError

MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="What may wait in queues, as 256M or 1G; a quarter of the machine's memory if not said.",
    ),
]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str | None, option: str = "--max-memory") -> int | None:
    """Returns bytes; None where nothing is named. Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"{option}: {text!r} is no size", hint="write it like 256M or 1G")
    return int(match[1]) * _UNITS[match[2].upper()]
