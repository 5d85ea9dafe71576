"""`--pow-max-effort`, of the commands that reach onion services."""

from typing import Annotated

import typer

from torkit.errors import UsageError

MaxEffort = Annotated[
    str | None,
    typer.Option(
        "--pow-max-effort",
        metavar="N",
        help="How much work an onion service may ask for; 10000 if not said, 0 for none.",
    ),
]

MAX_EFFORT_LEN = 10  # digits of what a service can ask for, 32 bits


def parse_effort(text: str | None) -> int | None:
    """None where nothing is named. Raises UsageError."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_EFFORT_LEN) or int(text) >> 32:
        raise UsageError(f"--pow-max-effort: {text!r} is no effort", hint="an effort is a number below 2^32")
    return int(text)
