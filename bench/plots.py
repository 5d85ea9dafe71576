"""The two plots: throughput and memory over the number of streams."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import ScalarFormatter

Point = tuple[str, int, float]  # client, streams at once, value

TITLES = {
    "MiB/s": ("throughput.png", "Throughput of downloads", "MiB/s, median"),
    "MiB": ("memory.png", "Memory of the client process", "peak resident MiB"),
}


def draw(curves: Mapping[str, Sequence[Point]], directory: Path) -> None:
    mpl.use("Agg")
    for kind, (name, title, unit) in TITLES.items():
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        clients = dict.fromkeys(client for client, _, _ in curves[kind])
        for client, marker in zip(clients, "os", strict=True):
            points = sorted((streams, value) for who, streams, value in curves[kind] if who == client)
            axes.plot(*zip(*points, strict=True), marker=marker, label=client)
        axes.set(xscale="log", xlabel="streams at once", ylabel=unit, title=title)
        axes.set_xticks(sorted({streams for _, streams, _ in curves[kind]}))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(directory / name, dpi=120)
        plt.close(figure)
