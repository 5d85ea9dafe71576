"""Which exits have refused what their policies allow, so that they are not asked again soon.

Pure, and bounded: what has long not been of use is forgotten first. path-spec, "Handling failure".

What the refusals of a target teach stays within the isolation that met them: else the exits that one identity
avoids would tell what another has asked for. That an exit is none is known to all, as in C tor.
"""

from __future__ import annotations

from collections.abc import Hashable

# Implementation limits.
MAX_TARGETS = 1024  # hosts and ports about which something is remembered
MAX_EXITS = 32  # that are remembered for one of them


class Refusals:
    """Told with `note_*` by streams; all is forgotten with the next consensus."""

    def __init__(self) -> None:
        self._exits: frozenset[bytes] = frozenset()
        self._targets: dict[tuple[Hashable, str, int | None], frozenset[bytes]] = {}
        self._consensus: Hashable = None

    @property
    def exits(self) -> frozenset[bytes]:
        """Identities of those that are taken for no exits at all."""
        return self._exits

    def exits_refusing(self, isolation: Hashable, host: str, port: int | None) -> frozenset[bytes]:
        """Identities of those, and of those that have refused this target to this isolation.

        `port` is None for a look-up.
        """
        return self._exits | self._targets.get((isolation, host.lower(), port), frozenset())

    def note_exit(self, identity: bytes) -> None:
        """It has refused without saying which address, or wants no streams now."""
        self._exits |= {identity}

    def note_target(self, identity: bytes, isolation: Hashable, host: str, port: int | None) -> None:
        """It has refused an address of this host, or this port there, to a stream of this isolation."""
        target = isolation, host.lower(), port
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
