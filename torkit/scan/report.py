"""What the rows of a campaign say together: how many relays are well, why others are not, the times."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torkit.errors import UsageError
from torkit.scan.rows import CAMPAIGN, Row, check_campaign, read_rows

# The times of rows that are told of, and what they are of.
TIMES = {"build_seconds": "circuit", "probe_seconds": "probe"}
MAX_NUMBER = 1 << 63  # implementation limit: JSON's numbers have none
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class Report(NamedTuple):
    """`reasons` by step and reason; `times` sorted, in seconds, of rows that are ok, by names of TIMES."""

    campaign: dict[str, Any]
    row_count: int
    ok_count: int
    reasons: Counter[tuple[str, str]]
    times: dict[str, list[float]]
    circuits: int
    sent: int
    received: int

    def lines(self) -> Iterable[str]:
        """A table for people."""
        yield "  ".join(f"{name} {self.campaign[name]}" for name in CAMPAIGN if self.campaign[name] != "")
        yield ""
        yield f"{self.row_count:8}  relays"
        yield f"{self.ok_count:8}  ok  ({100 * self.ok_count / self.row_count:.1f}%)"
        for (step, reason), count in self.reasons.most_common():
            yield f"{count:8}  {step}: {reason}"
        yield ""
        yield "seconds   " + "".join(f"{_name(share):>9}" for share in SHARES)
        for name, label in TIMES.items():
            if times := self.times[name]:
                yield f"{label:<10}" + "".join(f"{at_share(times, share):9.3f}" for share in SHARES)
        yield ""
        yield f"{self.circuits} circuits, {self.sent} bytes sent, {self.received} received"


def read_report(paths: Sequence[Path]) -> Report:
    """From files of rows, all of one campaign. Where a relay has several rows, the one begun last counts.

    Raises UsageError for none at all and for rows of two campaigns, DocumentError for what is no row.
    """
    rows: dict[str, Row] = {}
    campaign: dict[str, Any] | None = None
    for path in paths:
        for row, where in read_rows(path):
            if campaign is None:
                campaign = {name: row.get(name) for name in CAMPAIGN}
            check_campaign(row, campaign, where)
            other = rows.get(row["fingerprint"])
            if other is None or str(row.get("began")) >= str(other.get("began")):
                rows[row["fingerprint"]] = row
    if campaign is None:
        raise UsageError(f"no row in {', '.join(map(str, paths))}")
    well = [row for row in rows.values() if row.get("ok") is True]
    failed = (row for row in rows.values() if row.get("ok") is not True)
    return Report(
        campaign,
        len(rows),
        len(well),
        Counter((str(row.get("step")), str(row.get("reason"))) for row in failed),
        {name: sorted(_number(row.get(name)) for row in well) for name in TIMES},
        *(
            int(sum(_number(row.get(name)) for row in rows.values()))
            for name in ("attempts", "sent", "received")
        ),
    )


def at_share(values: Sequence[float], share: float) -> float:
    """The value that this share of sorted `values` does not exceed."""
    return values[min(int(share * len(values)), len(values) - 1)]


def _name(share: float) -> str:
    return {0.0: "least", 0.5: "median", 1.0: "most"}.get(share, f"{100 * share:g}%")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < MAX_NUMBER else 0.0
