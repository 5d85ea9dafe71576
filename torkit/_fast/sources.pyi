"""The sockets that the pump watches, what each holds, and which holds most where memory runs short."""

from enum import Enum
from typing import Any, final

from typing_extensions import Buffer, disjoint_base

from torkit._fast.stream import Stream

__pyx_capi__: dict[str, object]  # the functions of sources.pxd

class LocalEvent(Enum):
    READABLE = 1
    WRITABLE = 2
    ENDED = 3
    FAILED = 4
    BROKEN = 5

@disjoint_base
class Source:
    owner: Any
    @property
    def is_watched(self) -> bool: ...

@final
class Link(Source):
    tell_when_sent: bool
    @property
    def is_congested(self) -> bool: ...

@final
class Local(Source):
    @property
    def failure(self) -> OSError | None: ...
    def feed(self, stream: Stream | None, early: Buffer | None = None) -> None: ...
    def take_unsent(self) -> bytes: ...
    def resume(self) -> None: ...
