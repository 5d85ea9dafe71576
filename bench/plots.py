"""The plots: throughput and memory over the number of streams; what a soak of chaos did to a proxy.

python -m bench.plots FIGURES        chaos.png, of what tests/network/soak_chaos.py has written
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def draw_chaos(figures: Mapping[str, Any], directory: Path) -> None:
    """Memory, descriptors and answers over time, above the faults of the same moments."""
    mpl.use("Agg")
    times, memory, descriptors, _ = zip(*figures["samples"], strict=True)
    ends = [(began + seconds, bool(error)) for _, began, seconds, error, *_ in figures["outcomes"]]
    answers, refusals = ([at for at, is_error in ends if is_error is wanted] for wanted in (False, True))
    figure, rows = plt.subplots(4, sharex=True, figsize=(9, 7.5), layout="constrained")
    rows[0].plot(times, memory)
    rows[0].set(ylabel="resident MiB", title="torkit socks, 50 people, everything going wrong")
    rows[1].plot(times, descriptors)
    rows[1].set(ylabel="descriptors")
    bins = range(0, int(max(times)) + 10, 5)
    rows[2].hist([answers, refusals], bins, stacked=True, label=["right bytes", "clean errors"])
    rows[2].set(ylabel="requests in 5 s")
    rows[2].legend(loc="upper right")
    names = list(dict.fromkeys(name for name, _, _ in sorted(figures["faults"])))
    for name, began, ended in figures["faults"]:
        rows[3].barh(names.index(name), max(ended - began, 0.5), left=began, color="tab:red", alpha=0.6)
    rows[3].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    rows[3].set(xlabel="seconds", xlim=(0, max(times)))
    for row in rows[:3]:
        row.set_ylim(bottom=0)
        row.grid(alpha=0.3)
    figure.savefig(directory / "chaos.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    draw_chaos(json.loads(Path(sys.argv[1]).read_text()), Path(__file__).parent)
