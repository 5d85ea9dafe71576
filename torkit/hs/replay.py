"""Remembers introductions and cookies, so that none is answered twice."""


class ReplayCache:
    """Remembers 16 bytes of each of the last `limit` values. An attacker cannot find two with the same."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def is_new(self, value: bytes) -> bool:
        """Note `value`, which is random or a MAC. Returns whether it has not been seen."""
        key = value[:16]
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > self._limit:
            del self._seen[next(iter(self._seen))]
        return True
