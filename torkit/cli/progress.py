"""How a start's progress is shown, on stderr: a bar on a terminal; elsewhere lines, for programs of JSON.

A bar appears when a start takes a moment, and leaves nothing behind; it is not drawn while another job has
the terminal. Who writes to the terminal calls `erase` first.
"""

import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.net.progress import Progress

BAR_LEN = 20
SHOWN_AFTER = 0.5  # seconds; most warm starts take less, and a bar that flickers helps nobody
LINES_AFTER = 5.0  # seconds, of a command in a script: one that works says nothing, one that makes wait why

_bar = ""  # what is drawn of it


async def show(tor: "Tor", *, is_service: bool, as_json: bool) -> None:
    """Show the progress of `tor` until it is done. Without a bar, only a service tells it early."""
    import trio

    has_bar = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    as_json = as_json and not has_bar
    if not as_json:
        await trio.sleep(SHOWN_AFTER if has_bar or is_service else LINES_AFTER)
    said = ""
    async for progress in tor.progress_changes():
        line = to_json(progress) if as_json else to_line(progress)
        # Beside a bar: a service may stay blocked, and a bar has no room for a hint. Without one: that all is
        # done, the command's next words say to a person.
        is_news = is_service and progress.error is not None if has_bar else as_json or not progress.is_done
        if is_news and line != said:
            erase()
            _write(f"{line}\n")
            said = line
        if has_bar:
            _draw("" if progress.is_done else to_bar(progress, _columns()))


def to_json(progress: "Progress") -> str:
    """One line for programs."""
    error, microdescs = progress.error, progress.microdescs
    document = {
        "progress": progress.percent,
        "tag": progress.phase.tag,
        "summary": progress.summary,
        "microdescs": microdescs and {"held": microdescs[0], "listed": microdescs[1]},
        "blockage": error
        and {
            "kind": progress.blockage,
            "message": str(error),
            "hint": error.hint,
            "retry": error.retry.value,
        },
    }
    return json.dumps(document)


def to_line(progress: "Progress") -> str:
    """One line for people, and what they can do if something is in the way."""
    line = f"torkit: {progress.percent}% ({progress.phase.tag}) {progress.summary}"
    if progress.error is None:
        return line
    return "; ".join(filter(None, (line, str(progress.error), progress.error.hint)))


def to_bar(progress: "Progress", columns: int) -> str:
    """One line of a terminal."""
    done = BAR_LEN * progress.percent // 100
    text = progress.summary if progress.error is None else str(progress.error)
    return f"torkit: [{'#' * done}{'-' * (BAR_LEN - done)}] {progress.percent:3}%  {text}"[: columns - 1]


def erase() -> None:
    """Take away the bar, if it is drawn."""
    global _bar
    if _bar:
        _bar = ""
        _write("\r\x1b[K")


def _draw(bar: str) -> None:
    global _bar
    if bar != _bar and _is_in_foreground():
        erase()
        _bar = bar
        _write(bar)


def _is_in_foreground() -> bool:
    with suppress(OSError):
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    return False


def _columns() -> int:
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def _write(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
