"""Campaigns: a probe through every relay of a kind, in shards that any engine can run. docs/scan.md

unit.py       the frozen directory that all shards go by, and its digest
plan.py       which relays are a shard's, and by which paths: from that directory and a seed alone
campaign.py   looks at relays, gently (limits.py), and makes a row of each
outcome.py    what a probe is; probes.py has those built in, command.py runs any other
way.py        the one circuit that a probe gets
rows.py       rows, and files of them that are resumed
run.py        a shard, for programs
report.py     tables and plots of rows
"""

TYPE_CHECKING = False  # as the type checker knows it
if TYPE_CHECKING:
    from torkit.scan.campaign import GENTLE, Limits
    from torkit.scan.probes import OnStream
    from torkit.scan.run import run_shard

__all__ = ["GENTLE", "Limits", "OnStream", "run_shard"]

_HOMES = {
    "GENTLE": "torkit.scan.campaign",
    "Limits": "torkit.scan.campaign",
    "OnStream": "torkit.scan.probes",
    "run_shard": "torkit.scan.run",
}


def __getattr__(name: str) -> object:
    """Import on first use: whoever exports a directory needs none of this."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'torkit.scan' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
