"""How a start's progress is shown, on stderr: a bar on a terminal; elsewhere lines, for programs of JSON.

A bar appears when a start takes a moment, and leaves nothing behind; it is not drawn while another job has
the terminal. Who writes to the terminal calls `erase` first. Time passes in a bar, and a line that stays true
is said again: a start that waits looks different from one that hangs.
"""

import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from torkit.cli.table import terminal_width

if TYPE_CHECKING:
    import trio

    from torkit.client import Tor
    from torkit.net.progress import Progress

BAR_LEN = 10
SHOWN_AFTER = 0.5  # seconds; most warm starts take less, and a bar that flickers helps nobody
LINES_AFTER = 5.0  # seconds, of a command in a script: one that works says nothing, one that makes wait why
TICK = 1.0  # seconds

# Seconds until a line that is still true is said again, at first; later a quarter of what has passed, so that
# a day of waiting fills no log.
REPEATED_AFTER = 10.0

_bar = ""  # what is drawn of it
_scope: "trio.CancelScope | None" = None  # of `show`, while it runs


async def show(tor: "Tor", *, is_service: bool, as_json: bool) -> None:
    """Show the progress of `tor` until it is done, or until `stop` is called.

    Without a bar, only a service tells it early.
    """
    import trio

    global _scope
    is_drawn = has_bar()
    as_json = as_json and not is_drawn
    view = _Bar(is_service) if is_drawn else _Lines(as_json)
    began = trio.current_time()
    progress: Progress | None = None

    async def tick() -> None:
        while True:
            await trio.sleep(TICK)
            if progress is not None:
                view.show(progress, trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        _scope = nursery.cancel_scope
        if not as_json:
            await trio.sleep(SHOWN_AFTER if is_drawn or is_service else LINES_AFTER)
        nursery.start_soon(tick)
        async for progress in tor.progress_changes():
            view.show(progress, trio.current_time() - began)
        nursery.cancel_scope.cancel()


class _Lines:
    """Every change once, and what stays true now and then. `show` may be called at any time."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._said = ""
        self._said_at = 0.0  # seconds of waiting

    def show(self, progress: "Progress", seconds: float) -> None:
        if progress.is_done and not self._as_json:  # as the command's next words say
            return
        line = to_json(progress) if self._as_json else to_line(progress)
        if line != self._said:
            _say(line)
        elif not self._as_json and is_due(self._said_at, seconds):
            _say(f"torkit: waiting for {int(seconds)} s: {line.removeprefix('torkit: ')}")
        else:
            return
        self._said, self._said_at = line, seconds


class _Bar:
    """A bar that is drawn anew each second; beside it, for a service, lines for what is in the way.

    A service may stay blocked, and a bar has no room for a hint.
    """

    def __init__(self, is_service: bool) -> None:
        self._is_service = is_service
        self._said = ""

    def show(self, progress: "Progress", seconds: float) -> None:
        if self._is_service and progress.error is not None and (line := to_line(progress)) != self._said:
            erase()
            _say(line)
            self._said = line
        _draw("" if progress.is_done else to_bar(progress, seconds, terminal_width(sys.stderr)))


class Work:
    """A command's own work: a bar on a terminal, and elsewhere a line now and then."""

    def __init__(self) -> None:
        self._said_at = 0.0  # seconds of work

    def show(self, percent: int, seconds: float, text: str) -> None:
        """Tell how far it has come. May be called at any time."""
        if has_bar():
            _draw(_line_of_bar(percent, seconds, text, terminal_width(sys.stderr)))
        elif is_due(self._said_at, seconds):
            _say(f"torkit: {percent}%, {int(seconds)} s: {text}")
            self._said_at = seconds


def is_due(said_at: float, seconds: float) -> bool:
    """Returns whether to say again what was said after `said_at` of by now `seconds`."""
    return seconds >= said_at + max(REPEATED_AFTER, seconds / 4)


def to_json(progress: "Progress") -> str:
    """Returns one line for programs."""
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
    """Returns one line for people, and what they can do if something is in the way."""
    line = f"torkit: {progress.percent}% ({progress.phase.tag}) {progress.summary}"
    if progress.error is None:
        return line
    return "; ".join(filter(None, (line, str(progress.error), progress.error.hint)))


def to_bar(progress: "Progress", seconds: float, columns: int) -> str:
    """Returns one line of a terminal; what is waited for has more right to its room than the bar."""
    text = progress.summary if progress.error is None else str(progress.error)
    return _line_of_bar(progress.percent, seconds, text, columns)


def _line_of_bar(percent: int, seconds: float, text: str, columns: int) -> str:
    done = BAR_LEN * percent // 100
    text = f"{percent:3}%  {int(seconds)} s  {text}"
    line = f"torkit: [{'#' * done}{'-' * (BAR_LEN - done)}] {text}"
    return (line if len(line) < columns else f"torkit: {text}")[: columns - 1]


def draw(percent: int, seconds: float, text: str) -> None:
    """Draw a bar of a command's own work, where there is a terminal."""
    if has_bar():
        _draw(_line_of_bar(percent, seconds, text, terminal_width(sys.stderr)))


def has_bar() -> bool:
    """Returns whether stderr is a terminal that can show a bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def erase() -> None:
    """Take away the bar, if it is drawn."""
    global _bar
    if _bar:
        from torkit.net.descriptors import stderr

        _bar = ""
        stderr.draw("\r\x1b[K")


def stop() -> None:
    """Show no more: the terminal is another program's from now on."""
    erase()
    if _scope is not None:
        _scope.cancel()


def _draw(bar: str) -> None:
    global _bar
    if bar != _bar and _is_in_foreground():
        from torkit.net.descriptors import stderr

        erase()
        _bar = bar
        stderr.draw(bar)


def _is_in_foreground() -> bool:
    with suppress(OSError):
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    return False


def _say(line: str) -> None:
    from torkit.net.descriptors import stderr

    stderr.say(line)
