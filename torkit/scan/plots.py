"""Plots of a report, as PNG. The only module that needs matplotlib, an extra of this package."""

import os
from pathlib import Path
from typing import Any

from torkit.errors import NotPossible, StorageError
from torkit.scan.report import TIMES, Report

LATENCY, REASONS = "latency.png", "reasons.png"

# One hue for all that is measured, another beside it; text in ink.
COLORS = ("#2a6f97", "#c8553d")
INK = "#333333"


def plot(report: Report, directory: Path) -> list[Path]:
    """Write LATENCY, and REASONS if any relay failed, into `directory`. Returns their places.

    Raises NotPossible without matplotlib, StorageError where nothing can be written.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        hint = "pip install 'torkit[plots]'"
        raise NotPossible("plots are drawn by matplotlib, which is not installed", hint=hint) from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = [_latency(pyplot, report, directory / LATENCY)]
        if report.reasons:
            written.append(_reasons(pyplot, report, directory / REASONS))
    except OSError as error:
        raise StorageError(f"{directory}: {os.strerror(error.errno or 0)}") from error
    return written


def _latency(pyplot: Any, report: Report, path: Path) -> Path:
    """Which share of the relays that are ok took how long at most."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (name, label), color in zip(TIMES.items(), COLORS, strict=True):
        times = report.times[name]
        if times:
            shares = [100 * (number + 1) / len(times) for number in range(len(times))]
            axes.step(times, shares, where="post", label=label, color=color, linewidth=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds")
    axes.set_ylabel("% of relays that are ok")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False)
    return _save(pyplot, figure, axes, report, path)


def _reasons(pyplot: Any, report: Report, path: Path) -> Path:
    """How many relays failed, by step and reason."""
    common = report.reasons.most_common()[::-1]
    figure, axes = pyplot.subplots(figsize=(7, 1.5 + 0.35 * len(common)), layout="constrained")
    labels = [f"{step}: {reason}" for (step, reason), _ in common]
    bars = axes.barh(labels, [count for _, count in common], color=COLORS[1], height=0.6)
    axes.bar_label(bars, padding=3, color=INK)
    axes.set_xlabel(f"relays, of {report.row_count}")
    return _save(pyplot, figure, axes, report, path)


def _save(pyplot: Any, figure: Any, axes: Any, report: Report, path: Path) -> Path:
    axes.set_title(
        f"{report.campaign['probe']}: {report.ok_count} of {report.row_count} ok",
        loc="left",
        color=INK,
        wrap=True,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
