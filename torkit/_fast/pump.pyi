"""Moves bytes between relays' connections and the proxy's clients, without Python and without a task."""

from enum import Enum
from typing import Any, final

from typing_extensions import Buffer, disjoint_base

from torkit._fast.channel import Channel
from torkit._fast.events import Event
from torkit._fast.stream import Stream
from torkit._fast.tls import Tls
from torkit.errors import InternalError

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
    def is_blocked(self) -> bool: ...

@final
class Local(Source):
    @property
    def failure(self) -> OSError | None: ...
    def feed(self, stream: Stream | None, early: Buffer | None = None) -> None: ...
    def take_unsent(self) -> bytes: ...
    def resume(self) -> None: ...

@final
class Pump:
    @property
    def descriptor(self) -> int: ...
    def add_link(self, tls: Tls, channel: Channel, owner: Any) -> Link: ...
    def add_local(self, descriptor: int, owner: Any, is_pipe: bool = False) -> Local: ...
    def watch_reading(self, local: Local, is_wanted: bool) -> None: ...
    def watch_writing(self, local: Local, is_wanted: bool) -> None: ...
    def remove(self, source: Source) -> None: ...
    def owners(self) -> list[Any]: ...
    def forget(self, owner: Any) -> None: ...
    @property
    def ended_for_memory(self) -> int: ...
    def run(
        self, other: int, seconds: float, linger: float, turn: float
    ) -> list[tuple[Any, list[Event] | LocalEvent | InternalError]]: ...
