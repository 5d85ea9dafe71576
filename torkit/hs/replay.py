"""What was seen before: introductions and cookies, so that nobody is answered twice."""


class ReplayCache:
    """Remembers the last `limit` values; 16 bytes of each, which an attacker cannot find twice."""

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
