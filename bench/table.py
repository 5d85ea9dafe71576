"""One line of the bench: a figure of ours, what it is held against, their ratio, and the bar."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass
class Line:
    """`ours` and `other` are in `unit`; `bar` is in terms of the ratio, or of `ours` where there is no other.

    `runs` are what the figures were made of, in the order in which they were measured.
    """

    what: str
    unit: str
    ours: float
    other: float | None = None
    other_is: str = ""  # whom or what `other` is
    ratio: float | None = None
    bar: float | None = None
    at_least: bool = False  # the bar is a floor; else a ceiling
    runs: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    is_done: bool = True  # whether our side did all the work; if not, no bar is met

    @property
    def is_met(self) -> bool | None:
        """None where nothing is asked."""
        if self.bar is None:
            return None
        if not self.is_done:
            return False
        value = self.ours if self.ratio is None else self.ratio
        return value >= self.bar if self.at_least else value <= self.bar

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_met": self.is_met}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Line":
        """From what `to_json` gave."""
        return cls(**{name: value for name, value in values.items() if name != "is_met"})


def compare(
    what: str,
    unit: str,
    ours: Sequence[float],
    other: Sequence[float],
    other_is: str,
    *,
    bar: float | None = None,
    at_least: bool = False,
    note: str = "",
) -> Line:
    """The medians of runs made in turns; the ratio is the median of the pairs' ratios, each of one moment."""
    return Line(
        what,
        unit,
        median(ours),
        median(other),
        other_is,
        ratio=median(a / b for a, b in zip(ours, other, strict=True)),
        bar=bar,
        at_least=at_least,
        runs={"ours": list(ours), "other": list(other)},
        note=note,
    )


def table(lines: Sequence[Line]) -> str:
    """The lines for a person, and for Markdown."""
    rows = [_row(line) for line in lines]
    head = ("what", "unit", "torkit", "beside it", "ratio", "bar", "")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    text = []
    for row in (head, rule, *rows):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        text.append(f"| {' | '.join(cells)} |")
    notes = [f"- {line.what}: {line.note}" for line in lines if line.note]
    return "\n".join([*text, *([""] if notes else []), *notes])


def _row(line: Line) -> tuple[str, ...]:
    other = "" if line.other is None else f"{_figure(line.other)} {line.other_is}"
    ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
    bar = "" if line.bar is None else f"{'>=' if line.at_least else '<='} {line.bar:g}"
    verdict = {None: "", True: "met", False: "MISSED"}[line.is_met]
    return line.what, line.unit, _figure(line.ours), other, ratio, bar, verdict


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
