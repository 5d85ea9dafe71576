"""Says lines on stderr. Every line begins with `torkit:`, even a library's."""

import sys
import warnings
from typing import TYPE_CHECKING

from torkit.cli import progress

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def say(message: str) -> None:
    """Say one thing to the person at the terminal; a message of more lines as so many lines."""
    from torkit.net.descriptors import stderr

    progress.erase()
    for line in message.splitlines():
        stderr.say(f"torkit: {printable(line)}")


def speak_for_python() -> None:
    """From now on, say in this voice what Python or a library warns of, and what Python cannot raise."""
    warnings.showwarning = _say_warning
    sys.unraisablehook = _say_unraisable


def speak_for_loggers(verbosity: int) -> None:
    """From now on, say what is logged: warnings; what torkit does with 1, and in detail with 2."""
    import logging

    class Voice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING or record.name.startswith("torkit."):
                say(self.format(record))

    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logging.basicConfig(handlers=[Voice()], format="%(message)s", level=level)


def printable(line: str) -> str:
    """Without what moves a terminal's cursor or colours it: a peer or a file may have written this."""
    return "".join(char if char.isprintable() else "?" for char in line)


def _say_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    say(" ".join(str(message).split()))


def _say_unraisable(unraisable: "UnraisableHookArgs") -> None:
    """Without the exception's text, which may name a destination."""
    name = unraisable.exc_type.__name__
    say(f"{unraisable.err_msg or 'an exception was ignored'} ({name})")
