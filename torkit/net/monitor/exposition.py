"""Metrics as Prometheus text: https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4."""

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version

from torkit._fast.memory import held
from torkit.net.monitor.status import Status
from torkit.net.monitor.tally import Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Values = Mapping[tuple[str, str] | None, float]  # by label, or one without


def exposition(status: Status, tally: Tally) -> bytes:
    """Returns all metrics. They name no destination and no relay: another machine may read them.

    Every value of a label is one of a few words of ours.
    """
    states = Counter("building" if one.state == "building" else "open" for one in status.circuits)
    guards = Counter(one.reachable for one in status.guards)
    lines = [
        *_metric("info", "gauge", "The version that runs.", {("version", version("torkit")): 1}),
        *_metric(
            "bootstrap_ratio",
            "gauge",
            "How far the start has come, from 0 to 1.",
            {None: status.progress.percent / 100},
        ),
        *_metric(
            "consensus_valid_until_seconds",
            "gauge",
            "When the consensus in use ends, since the epoch; 0 without one.",
            {None: status.valid_until or 0},
        ),
        *_metric(
            "guards",
            "gauge",
            "Primary guards, by whether they are reachable.",
            {("reachable", state): guards[state] for state in ("yes", "no", "maybe")},
        ),
        *_metric("connections", "gauge", "Connections to relays.", {None: status.connections}),
        *_metric(
            "circuits",
            "gauge",
            "Circuits.",
            {("state", state): states[state] for state in ("building", "open")},
        ),
        *_metric("circuits_launched_total", "counter", "Circuits begun.", _by("purpose", tally.launched)),
        *_metric("circuits_built_total", "counter", "Circuits built.", _by("purpose", tally.built)),
        *_metric(
            "circuits_failed_total",
            "counter",
            "Circuits that ended before they were built.",
            _by("reason", tally.not_built),
        ),
        *_metric(
            "circuits_ended_total",
            "counter",
            "Circuits that ended after they were built.",
            _by("reason", tally.ended),
        ),
        *_metric("streams", "gauge", "Streams open or being opened.", {None: status.streams}),
        *_metric("streams_total", "counter", "Streams and look-ups asked for.", {None: tally.streams}),
        *_metric(
            "streams_failed_total",
            "counter",
            "Streams and look-ups that no attempt has brought about.",
            _by("reason", tally.streams_failed),
        ),
        *_metric(
            "stream_attempts_failed_total",
            "counter",
            "Attempts of streams and look-ups that failed.",
            _by("reason", tally.attempts_failed),
        ),
        *_metric(
            "stream_bytes_total",
            "counter",
            "Bytes that streams have carried.",
            {("direction", "received"): status.received, ("direction", "sent"): status.sent},
        ),
        *_metric("queued_bytes", "gauge", "Bytes that wait in queues.", {None: held()}),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _by(label: str, counts: Counter[str]) -> Values:
    return {(label, word): count for word, count in sorted(counts.items())}


def _metric(name: str, kind: str, explanation: str, values: Values) -> list[str]:
    name = f"torkit_{name}"
    lines = [f"# HELP {name} {explanation}", f"# TYPE {name} {kind}"]
    for label, value in values.items():
        labels = "" if label is None else f'{{{label[0]}="{label[1]}"}}'
        lines.append(f"{name}{labels} {value:g}" if isinstance(value, float) else f"{name}{labels} {value}")
    return lines
