"""A disk that is full or broken, or a process that dies, at one of the calls by which torkit saves things."""

import fcntl
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

CALLS = ("open", "write", "pwrite", "fsync", "rename", "replace", "link", "unlink", "mkdir")
_OPEN, _CLOSE = open, os.close


class FailingDisk:
    """Its call number `at`, counted from 0, raises OSError `code`, and where it `stays` so each later one.

    Where `code` is None, it kills this process.
    """

    def __init__(self, at: int, code: int | None, *, stays: bool = False) -> None:
        self.calls: list[str] = []
        self._at = at
        self._code = code
        self._stays = stays

    @property
    def has_failed(self) -> bool:
        return len(self.calls) > self._at

    def note(self, name: str) -> None:
        """Note a call. Raises OSError."""
        self.calls.append(name)
        number = len(self.calls) - 1
        if number == self._at or (self._stays and number > self._at):
            if self._code is None:
                signal.raise_signal(signal.SIGKILL)
                raise AssertionError("killed")
            raise OSError(self._code, os.strerror(self._code))

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.note(name)
            return call(*args, **kwargs)

        return noted

    def close(self, handle: int) -> None:
        """The handle is closed even where that fails, which it does where there was something to write."""
        may_fail = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        _CLOSE(handle)
        if may_fail:
            self.note("close")

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """As the built-in, whose files write and close past the functions of os."""
        if mode != "wb":
            return _OPEN(file, mode, *args, **kwargs)
        if not isinstance(file, int):
            self.note("open")
        return io.BufferedWriter(_FailingFile(file, self))


class _FailingFile(io.FileIO):
    def __init__(self, file: int | Path, disk: FailingDisk) -> None:
        self._disk = disk
        super().__init__(file, "wb")

    def write(self, data: Any) -> int:
        try:
            self._disk.note("write")
        except OSError:
            super().write(memoryview(data)[: len(data) // 2])  # so much fitted
            raise
        return super().write(data)

    def close(self) -> None:
        was_closed = self.closed
        super().close()
        if not was_closed:
            self._disk.note("close")


@contextmanager
def failing_disk(at: int, code: int | None, *, stays: bool = False) -> Iterator[FailingDisk]:
    """For what this process does to files within the block."""
    disk = FailingDisk(at, code, stays=stays)
    calls: dict[str, Any] = {name: disk.wrap(name, getattr(os, name)) for name in CALLS}
    with (
        mock.patch.multiple(os, **calls | {"close": disk.close}),
        mock.patch("builtins.open", disk.open),
        mock.patch("io.open", disk.open),
    ):
        yield disk
