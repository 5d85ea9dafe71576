"""Paths that somebody names: by an option, or on stdin."""

import json
import re
from functools import cache
from typing import TYPE_CHECKING

from torkit.cli.voice import say
from torkit.errors import UsageError

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.directory.directory import Directory, Relay

# Implementation limit.
MIN_ANONYMOUS_LEN = 3  # relays of a path; over fewer, one relay knows both ends or whom to ask for the other


async def read_path(tor: "Tor", text: str) -> "tuple[Relay, ...]":
    """As `parse_path`; `-` stands for the first line of stdin. What follows it there is a stream's data."""
    line = await next_line(0) if text == "-" else text
    if line is None:
        raise UsageError("expected a path on stdin and saw nothing")
    return parse_path(tor, line)


def parse_path(tor: "Tor", text: str) -> "tuple[Relay, ...]":
    """Returns the relays that `--path` names: a JSON line, or fingerprints or nicknames with commas."""
    from torkit.paths.text import path_from_json

    if not text.lstrip().startswith("{"):
        _say_what_a_path_costs()
        text = json.dumps({"path": [{"fingerprint": _fingerprint(tor, name)} for name in text.split(",")]})
    path = path_from_json(text, tor.directory)
    if len(path) < MIN_ANONYMOUS_LEN:
        count = "one relay" if len(path) == 1 else f"{len(path)} relays"
        say(f"--path: no anonymity over {count}: who runs one of them sees both who asks and where it goes")
    return path


@cache
def _say_what_a_path_costs() -> None:
    """Once. A JSON line says nothing: `torkit choose-path` has drawn it as the client draws its own."""
    say("--path: relays that somebody named are not drawn by chance, and can be guessed from one another")


def _fingerprint(tor: "Tor", name: str) -> str:
    index = find_relay(tor.directory, name.strip())
    return tor.directory.consensus.relays.identities[index].hex().upper()


async def next_line(descriptor: int) -> str | None:
    """As `read_line`, in a thread: a task that waits for a line can still be cancelled."""
    from torkit.net.shortage import run_in_thread

    return await run_in_thread(read_line, descriptor, abandon_on_cancel=True)


def read_line(descriptor: int) -> str | None:
    """Read one line, byte by byte, and nothing after it.

    Returns it without its end; None at the end of file.
    """
    from torkit.net.descriptors import read_some
    from torkit.paths.text import MAX_PATH_LINE

    line = bytearray()
    while byte := read_some(descriptor, 1):
        if byte == b"\n":
            return line.decode(errors="replace")
        line += byte
        if len(line) > MAX_PATH_LINE:
            raise UsageError(f"expected a path on stdin and saw a line over {MAX_PATH_LINE} bytes")
    return line.decode(errors="replace") or None


def find_relay(directory: "Directory", name: str) -> int:
    """Returns the place of the one relay with this fingerprint or nickname. Raises UsageError."""
    indexes = directory.indexes_of(name)
    if not indexes:
        is_beginning = re.fullmatch(r"\$?[0-9A-Fa-f]{1,39}", name)
        hint = f"torkit relays --fingerprint {name} lists those that begin so" if is_beginning else None
        raise UsageError(f"no relay {name!r} in the consensus", hint=hint)
    if len(indexes) > 1:
        some = ", ".join(directory.consensus.relays.identities[index].hex().upper() for index in indexes[:3])
        raise UsageError(
            f"{len(indexes)} relays are called {name!r}",
            hint=f"name it by its fingerprint: {some}{', ...' if len(indexes) > 3 else ''}",
        )
    return indexes[0]
