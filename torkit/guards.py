"""Which relay circuits begin at: a short list that is kept, since every new guard is a new risk.

Pure: the directory, the time and the failures to connect are arguments. Only the core of guard-spec is
here: a sampled list in order of preference, of which the first that is listed and reachable is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from torkit.directory.directory import Directory, Relay
from torkit.errors import NoGuard, NoPath
from torkit.path import Constraints, choose_guard

# Specification constant (guard-spec, "Parameters"): how many guards are primary.
PRIMARY_COUNT = 3

# Implementation limit, seconds: an unreachable guard is passed over this long, then tried before the others.
RETRY_AFTER = 30.0


class Guards:
    """`identities` (20 bytes each, best first) is the state to keep."""

    def __init__(self, identities: list[bytes]) -> None:
        self.identities = identities

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Guards:
        """From what `to_state` gave; entries that are none are left out."""
        kept = []
        for entry in state.get("guards", []) if isinstance(state.get("guards"), list) else []:
            try:
                identity = bytes.fromhex(entry["fingerprint"])
            except (KeyError, TypeError, ValueError):
                continue
            if len(identity) == 20 and identity not in kept:
                kept.append(identity)
        return cls(kept)

    def to_state(self) -> dict[str, Any]:
        return {"guards": [{"fingerprint": identity.hex().upper()} for identity in self.identities]}

    def choose(
        self,
        directory: Directory,
        constraints: Constraints,
        failed_at: Mapping[bytes, float],
        *,
        now: float,
        rng: Random,
    ) -> Relay:
        """The guard to use now. `failed_at` says when connecting to a relay last failed.

        May add to `identities`. Raises NoGuard where the directory has none that fits.
        """
        listed = [
            relay
            for relay in (directory.relay(identity) for identity in self.identities)
            if relay is not None and {"Running", "Valid"} <= relay.flags
        ][:PRIMARY_COUNT]
        for relay in listed:
            if now - failed_at.get(relay.identity, -RETRY_AFTER) >= RETRY_AFTER:
                return relay
        if len(listed) < PRIMARY_COUNT:
            try:
                fresh = choose_guard(directory, constraints, listed, rng)
            except NoPath as error:
                if not listed:
                    raise NoGuard(str(error)) from error
            else:
                self.identities.append(fresh.identity)
                return fresh
        # Every guard failed a moment ago: most likely it is our own network. The one tried longest ago.
        return min(listed, key=lambda relay: failed_at[relay.identity])
