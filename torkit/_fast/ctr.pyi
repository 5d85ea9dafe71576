"""The key stream of tor1 layers, as tests see it."""

from typing import Self, final

from typing_extensions import Buffer

__pyx_capi__: dict[str, object]  # the kernels of ctr.pxd

@final
class CtrStream:
    def __new__(cls, key: Buffer, *, portable: bool = False) -> Self: ...
    def xor(self, data: Buffer) -> None: ...
