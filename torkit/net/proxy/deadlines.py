"""Deadlines of clients that all get the same time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NoReturn, TypeVar

import trio

from torkit.errors import TimedOut

T = TypeVar("T")


class Deadlines(Generic[T]):
    """The clients that have `timeout` seconds for one step, in the order of their deadlines."""

    def __init__(self, timeout: float, expire: Callable[[T], None]) -> None:
        self._timeout = timeout
        self._expire = expire
        self._waiting: dict[T, float] = {}
        self._is_needed = trio.Event()
        self._is_hurried = trio.Event()

    def add(self, one: T) -> None:
        if not self._waiting:
            self._is_needed.set()
        self._waiting[one] = trio.current_time() + self._timeout

    def discard(self, one: T) -> bool:
        """Take away somebody's deadline. Returns whether there was one."""
        return self._waiting.pop(one, None) is not None

    def hurry(self, timeout: float) -> None:
        """Give everybody, from now on, no more than `timeout` seconds."""
        self._timeout = timeout
        at = trio.current_time() + timeout
        for one, was in self._waiting.items():
            self._waiting[one] = min(was, at)
        self._is_hurried.set()
        self._is_hurried = trio.Event()

    @property
    def oldest(self) -> T | None:
        return next(iter(self._waiting), None)

    async def run(self) -> NoReturn:
        while True:
            await self._is_needed.wait()
            self._is_needed = trio.Event()
            while self._waiting:
                one, at = next(iter(self._waiting.items()))
                if at <= trio.current_time():
                    del self._waiting[one]
                    self._expire(one)
                else:
                    with trio.move_on_at(at):
                        await self._is_hurried.wait()


@contextmanager
def deadline(seconds: float, purpose: str) -> Iterator[None]:
    """Raises TimedOut where `purpose` takes longer than that."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise TimedOut(f"{purpose} took longer than {seconds:g} s") from None
