"""Linked circuits: one tunnel whose messages come and go by several legs, in one order."""

from collections.abc import Sequence
from typing import final

from torkit._fast.circuit import Circuit
from torkit._fast.tunnel import Tunnel

@final
class Leg: ...

@final
class LinkedSet(Tunnel):
    @property
    def leg_count(self) -> int: ...
    @property
    def queued_bytes(self) -> int: ...
    def carried(self, circuit: Circuit) -> tuple[int, int, float]: ...
    def end(self) -> None: ...

def link(circuits: Sequence[Circuit], rtts: Sequence[float], fills: bool) -> LinkedSet: ...
