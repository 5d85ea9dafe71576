"""Differences between two consensuses. dir-spec, "Consensus diffs"; the script is one of ed's."""

import hashlib
from bisect import bisect_left
from collections import Counter
from itertools import pairwise

from torkit.testing.directory.consensus import signed_part


def consensus_diff(base: bytes, target: bytes) -> bytes:
    """What a cache sends to a client that has `base`, whose signatures go first as the format demands.

    Lines that stand once in each text are its fixed points, what lies between two of them is replaced
    where it differs: a few lines longer than the shortest diff, and linear.
    """
    old, new = base.split(b"\n")[:-1], target.split(b"\n")[:-1]
    signatures = next(i for i, line in enumerate(old) if line.startswith(b"directory-signature "))
    hashes = f"{base_digest(base)} {hashlib.sha3_256(target).hexdigest().upper()}"
    script = [f"network-status-diff-version 1\nhash {hashes}".encode()]
    if signatures + 1 < len(old):
        script.append(b"%d,$d" % (signatures + 1))
        old = old[:signatures]
    fixed = [(-1, -1), *_common_lines(old, new), (len(old), len(new))]
    for (i, j), (old_end, new_end) in reversed(list(pairwise(fixed))):
        start, new_start = i + 1, j + 1
        while start < old_end and new_start < new_end and old[start] == new[new_start]:
            start, new_start = start + 1, new_start + 1
        while start < old_end and new_start < new_end and old[old_end - 1] == new[new_end - 1]:
            old_end, new_end = old_end - 1, new_end - 1
        lines = b"%d" % (start + 1) if old_end == start + 1 else b"%d,%d" % (start + 1, old_end)
        if new_start == new_end:
            script += [lines + b"d"] if start < old_end else []
        else:
            command = lines + b"c" if start < old_end else b"%da" % start
            script += [command, *new[new_start:new_end], b"."]
    return b"\n".join(script) + b"\n"


def base_digest(consensus: bytes) -> str:
    """What a client says that it has, in X-Or-Diff-From-Consensus: SHA3-256 of the signed part, in hex."""
    return hashlib.sha3_256(signed_part(consensus)).hexdigest().upper()


_Chain = tuple[int, int, "_Chain | None"]


def _common_lines(old: list[bytes], new: list[bytes]) -> list[tuple[int, int]]:
    """Where lines that each text has once stand in both: as many of them as ascend in both."""
    alone = {line for line, n in Counter(old).items() if n == 1} & {
        line for line, n in Counter(new).items() if n == 1
    }
    places = {line: j for j, line in enumerate(new) if line in alone}
    # The longest ascending sequence: `ends[n]` is the least place at which one of n + 1 lines can end.
    ends: list[int] = []
    chains: list[_Chain] = []
    for i, line in enumerate(old):
        if line in alone:
            n = bisect_left(ends, places[line])
            ends[n : n + 1] = [places[line]]
            chains[n : n + 1] = [(i, places[line], chains[n - 1] if n else None)]
    pairs = []
    chain = chains[-1] if chains else None
    while chain:
        pairs.append(chain[:2])
        chain = chain[2]
    return pairs[::-1]
