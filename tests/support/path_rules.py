"""What must not be in a path: a second opinion, from what a directory says and without torkit.paths.

path-spec, "Path selection and constraints".
"""

from collections.abc import Collection, Iterable
from ipaddress import ip_network
from itertools import combinations

from frequencies import conflicts

from torkit.directory.directory import Directory, Relay

USABLE = {"Fast", "Running", "Valid"}
GUARD = {"Guard", "Stable", "V2Dir"}


def broken_rules(
    directory: Directory,
    paths: Iterable[tuple[Relay, ...]],
    *,
    port: int,
    guards: Collection[bytes] | None = None,
) -> list[str]:
    """What is wrong with paths to `port`. Where `guards` are given, theirs must be among these."""
    apart = conflicts(directory)
    broken = []

    def check(path: tuple[Relay, ...], rule: str, *, is_kept: bool) -> None:
        if not is_kept:
            broken.append(f"{rule}: {' '.join(map(str, path))}")

    for path in paths:
        guard, _, exit_ = path
        check(path, "relays can be used", is_kept=all(one.flags >= USABLE for one in path))
        check(path, "the first is a guard", is_kept=guard.flags >= GUARD)
        check(path, "the guard is ours", is_kept=guards is None or guard.identity in guards)
        check(path, "the exit is not bad", is_kept="BadExit" not in exit_.flags)
        check(path, "the exit accepts the port", is_kept=exit_.policy.accepts(port))
        check(path, "no end is MiddleOnly", is_kept="MiddleOnly" not in guard.flags | exit_.flags)
        for one, other in combinations(path, 2):
            check(path, "relays, families, subnets", is_kept=other.identity not in apart[one.identity])
            check(path, "subnets", is_kept=_networks(one).isdisjoint(_networks(other)))
    return broken


def _networks(relay: Relay) -> set[object]:
    """The /16 of its IPv4 address and the /32 of its IPv6 address."""
    networks: set[object] = {ip_network(f"{relay.address}/16", strict=False)}
    if relay.ipv6 is not None:
        networks.add(ip_network(f"{relay.ipv6[0]}/32", strict=False))
    return networks
