"""The layer of relay encryption that we share with one hop."""

from enum import IntEnum
from typing import Self, final

from typing_extensions import Buffer

__pyx_capi__: dict[str, object]  # the functions of onion.pxd

class LayerKind(IntEnum):
    TOR1 = 1
    CGO = 2
    TOR1_ONION = 3

TOR1_DIGEST_LEN: int
TOR1_KEY_LEN: int
TOR1_KEYS_LEN: int
CGO_KEYS_LEN: int
TOR1_ONION_DIGEST_LEN: int
TOR1_ONION_KEY_LEN: int
TOR1_ONION_KEYS_LEN: int

@final
class Layer:
    def __new__(cls, kind: LayerKind, keys: Buffer) -> Self: ...
