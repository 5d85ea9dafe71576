"""One circuit: opens arriving relay cells down to its streams, seals departing ones through its hops."""

from typing import final

from torkit._fast.onion import Layer
from torkit._fast.tunnel import Tunnel

CIRCUIT_WINDOW_START: int
CIRCUIT_WINDOW_INCREMENT: int

@final
class Hop: ...

@final
class Circuit(Tunnel):
    @property
    def hop_count(self) -> int: ...
    def add_hop(
        self, layer: Layer, window: int = 1000, increment: int = 100, has_congestion_control: bool = False
    ) -> None: ...
    def set_window(self, hop: int, window: int) -> None: ...
    def let_in(self, hop: int) -> None: ...
    def acknowledged(self, hop: int) -> int: ...
    def end(self) -> None: ...
