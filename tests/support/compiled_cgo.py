"""Counter Galois Onion by the compiled core, with the faces of the reference and of a scripted relay's layer.

test_cgo.py holds the core against the reference; the stories of the fuzzer use the core, which is quicker.
No tests here.
"""

from collections.abc import Callable
from typing import Any

from torkit._fast.cgo import CgoLayer as CompiledLayer
from torkit.testing.relay.layers import CgoLayer


class Compiled:
    """Two layers of the core, one a direction, with the face of reference.CgoLayer."""

    def __init__(self, keys: bytes, *, relay: bool, portable: bool = False) -> None:
        self.forward = CompiledLayer(keys[:80], relay=relay, portable=portable)
        self.backward = CompiledLayer(keys[80:], relay=relay, portable=portable)

    def client_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]:
        return moved(self.forward.client_originate, command, body)

    def client_forward(self, command: int, body: bytes) -> bytes:
        return moved(self.forward.client_forward, command, body)[0]

    def client_backward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        return moved(self.backward.client_backward, command, body)

    def relay_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]:
        return moved(self.backward.relay_originate, command, body)

    def relay_forward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        return moved(self.forward.relay_forward, command, body)

    def relay_backward(self, command: int, body: bytes) -> bytes:
        return moved(self.backward.relay_backward, command, body)[0]


def moved(move: Callable[[int, bytearray], Any], command: int, body: bytes) -> tuple[bytes, Any]:
    buffer = bytearray(body)
    tag = move(command, buffer)
    return bytes(buffer), tag


class QuickCgoLayer(CgoLayer):
    """A scripted relay's layer."""

    def __init__(self, key_material: bytes) -> None:
        self._layer = Compiled(key_material, relay=True)
