"""Tables and lists for people, as wide as their terminal."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TextIO

FINGERPRINT = "fingerprint"  # a column whose first digits say enough
GAP = "  "


class Table:
    """Columns of these `widths` in characters, by name, for a terminal `room` characters wide.

    Where a row has no room, fingerprints lose their last digits; what is still too long is cut at the end.
    """

    def __init__(self, widths: Mapping[str, int], room: int) -> None:
        self._widths = dict(widths)
        self._room = room
        if not self.has_room and FINGERPRINT in widths:
            self._widths[FINGERPRINT] = len(FINGERPRINT)

    @property
    def has_room(self) -> bool:
        """Returns whether nothing is cut but fingerprints, and fields longer than their column."""
        return sum(self._widths.values()) + len(GAP) * (len(self._widths) - 1) <= self._room

    @property
    def header(self) -> str:
        return self.row(self._widths)

    def row(self, fields: Iterable[str]) -> str:
        """Returns one line, without its end, from a field for each column."""
        return GAP.join(
            (field[:width] if name == FINGERPRINT else field).ljust(width)
            for (name, width), field in zip(self._widths.items(), fields, strict=True)
        ).rstrip()[: self._room]


def labelled(label: str, text: str, room: float) -> str:
    """Returns `text` behind `label`; what has no room on that line goes on below, where `text` began."""
    if len(label) + len(text) <= room:
        return label + text
    from textwrap import wrap

    lines = wrap(text, max(int(room) - len(label), 1), break_on_hyphens=False)
    return label + f"\n{' ' * len(label)}".join(lines)


def terminal_width(file: TextIO) -> int:
    """Characters in a line of the terminal that `file` is; 80 if it does not say."""
    with suppress(OSError):
        return os.get_terminal_size(file.fileno()).columns or 80
    return 80
