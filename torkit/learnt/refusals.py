"""Remembers which exits have refused what their policies allow, so that they are not asked again soon.

Pure, and bounded: the refusals that were of no use for longest are forgotten first. path-spec, "Handling
failure".

What the refusals of a target teach stays within the isolation that met them: else the exits that one identity
avoids would tell what another has asked for. Relays that let nothing out are known to all isolations (as in
C tor).
"""

from __future__ import annotations

from collections.abc import Hashable

# Implementation limits.
MAX_TARGETS = 1024  # hosts and ports about which something is remembered
MAX_EXITS = 32  # that are remembered for one of them


class Refusals:
    """Streams tell it of refusals with `note_*`. The next consensus makes it forget all of them."""

    def __init__(self) -> None:
        self._exits: frozenset[bytes] = frozenset()
        self._targets: dict[tuple[Hashable, str, int | None], frozenset[bytes]] = {}
        self._consensus: Hashable = None

    @property
    def exits(self) -> frozenset[bytes]:
        """Returns the identities of relays that are taken for no exits at all."""
        return self._exits

    def exits_refusing(self, isolation: Hashable, host: str, port: int | None) -> frozenset[bytes]:
        """Returns these identities, and those of exits that have refused this target to this isolation.

        `port` is None for a look-up.
        """
        if not self._targets:
            return self._exits
        return self._exits | self._targets.get((isolation, host.lower(), port), frozenset())

    def note_exit(self, identity: bytes) -> None:
        """Note that an exit has refused without naming an address, or wants no streams now."""
        self._exits |= {identity}

    def note_target(self, identity: bytes, isolation: Hashable, host: str, port: int | None) -> None:
        """Note that an exit has refused this host, or this port of it, to a stream of this isolation."""
        target = isolation, host.lower(), port
        exits = self._targets.pop(target, frozenset())
        if len(exits) < MAX_EXITS:
            exits |= {identity}
        self._targets[target] = exits
        if len(self._targets) > MAX_TARGETS:
            del self._targets[next(iter(self._targets))]

    def forget_targets(self) -> None:
        """Forget where streams have gone, so that nothing that follows depends on it."""
        self._targets.clear()

    def note_consensus(self, consensus: Hashable) -> None:
        """Note which consensus is in use. A new one may know better: all refusals are forgotten."""
        if consensus != self._consensus:
            self._consensus = consensus
            self._exits = frozenset()
            self._targets.clear()
