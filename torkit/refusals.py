"""Which exits have refused what their policies allow, so that they are not asked again soon.

Pure, and bounded: what has long not been of use is forgotten first. path-spec, "Handling failure".
"""

from __future__ import annotations

from collections.abc import Hashable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

# Specification constants: what an exit may not connect to, nor any client wants from one. RFC 1122, 1918,
# 3927, 4193, 4291, 6598; as C tor's ClientDNSRejectInternalAddresses.
INTERNAL = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8"),
            *("169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
        ),
    )
)
INTERNAL6 = tuple(map(IPv6Network, ("::/127", "fc00::/7", "fe80::/10", "fec0::/10")))

# Implementation limits.
MAX_TARGETS = 1024  # hosts and ports about which something is remembered
MAX_EXITS = 32  # that are remembered for one of them


class Refusals:
    """Told with `note_*` by streams; all is forgotten with the next consensus."""

    def __init__(self) -> None:
        self._exits: frozenset[bytes] = frozenset()
        self._targets: dict[tuple[str, int | None], frozenset[bytes]] = {}
        self._consensus: Hashable = None

    @property
    def exits(self) -> frozenset[bytes]:
        """Identities of those that are taken for no exits at all."""
        return self._exits

    def exits_refusing(self, host: str, port: int | None) -> frozenset[bytes]:
        """Identities of those, and of those that have refused this target; None for a look-up."""
        return self._exits | self._targets.get((host.lower(), port), frozenset())

    def note_exit(self, identity: bytes) -> None:
        """It has refused without saying which address, or wants no streams now."""
        self._exits |= {identity}

    def note_target(self, identity: bytes, host: str, port: int | None) -> None:
        """It has refused an address of this host, or this port there."""
        target = host.lower(), port
        exits = self._targets.pop(target, frozenset())
        if len(exits) < MAX_EXITS:
            exits |= {identity}
        self._targets[target] = exits
        if len(self._targets) > MAX_TARGETS:
            del self._targets[next(iter(self._targets))]

    def forget_targets(self) -> None:
        """Let nothing that follows depend on where streams have gone."""
        self._targets.clear()

    def note_consensus(self, consensus: Hashable) -> None:
        """The consensus in use, by whatever tells it from others: a new one may know better."""
        if consensus != self._consensus:
            self._consensus = consensus
            self._exits = frozenset()
            self._targets.clear()


def is_internal(address: IPv4Address | IPv6Address) -> bool:
    """Whether no exit may connect there: private, of one machine or one link, or none at all."""
    if isinstance(address, IPv4Address):
        return any(address in network for network in INTERNAL)
    if address.ipv4_mapped is not None:
        return is_internal(address.ipv4_mapped)
    return any(address in network for network in INTERNAL6)
