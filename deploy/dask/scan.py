"""A campaign on Dask: shards on workers, lost ones again, one row for every relay in one file.

    python scan.py SCHEDULER CACHE ROWS SHARDS -- PROBE...

CACHE is a directory that `torkit cache export` has printed, and ROWS one for the shards' rows; workers find
both under these names. A shard whose worker is lost goes on elsewhere, with the rows that are there.
Needs torkit[dask].
"""

import sys
from pathlib import Path
from typing import Any

from distributed import Client, as_completed

from torkit.scan import GENTLE, Limits, run_shard

RETRIES = 3  # of a shard that has failed; that of a worker that is gone is begun again by Dask itself


def scan(
    client: Client, count: int, probe: list[str], *, rows: Path, limits: Limits = GENTLE, **settings: Any
) -> dict[str, dict[str, Any]]:
    """The row of each relay, by fingerprint. The limits are shared out: all shards together keep them.

    `settings` as of run_shard.
    """
    share = limits._replace(
        at_once=max(limits.at_once // count, 1),
        rate=limits.rate / count,
        per_relay=max(limits.per_relay // count, 1),
    )
    rows.mkdir(parents=True, exist_ok=True)
    shards = [
        client.submit(
            run_shard,
            *(index, count, probe),
            limits=share,
            resume=rows / f"{index}.jsonl",
            retries=RETRIES,
            pure=False,  # who asks again wants to know anew
            **settings,
        )
        for index in range(count)
    ]
    found: dict[str, dict[str, Any]] = {}
    for shard in as_completed(shards):
        found |= {row["fingerprint"]: row for row in shard.result()}
    return found


def main(scheduler: str, cache: str, rows: str, count: str, separator: str, *probe: str) -> None:
    with Client(scheduler) as client:
        found = scan(client, int(count), list(probe), rows=Path(rows), cache=cache)
    print(f"{len(found)} rows; torkit scan report {rows}/*.jsonl")


if __name__ == "__main__":
    main(*sys.argv[1:])
