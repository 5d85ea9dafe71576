"""A small hash table from 32-bit ids to Python objects, for look-ups once per cell."""

from typing import final

from typing_extensions import disjoint_base

@disjoint_base
class Entry:
    @property
    def id(self) -> int: ...

@final
class IdTable: ...
