"""All that is shared, as one zip file that is made while it is sent. Nothing is stored or compressed."""

import os
import zipfile
from collections.abc import AsyncGenerator

from torkit.net.shortage import run_in_thread
from torkit.share.tree import Tree

CHUNK_LEN = 1 << 16  # bytes read at once
ZIP64_FROM = 0xFFFF_FFFF - 1  # bytes: what a member of the older format cannot have
FILE_MODE = 0o100644 << 16  # of every member, as zip's external attributes have it


class _Sink:
    """What zipfile writes to. It cannot be sought in, and so zipfile never goes back."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._waiting.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        data = b"".join(self._waiting)
        self._waiting.clear()
        return data


async def zip_of(tree: Tree) -> AsyncGenerator[bytes]:
    """A zip file of the whole tree, in pieces. Its members have neither times nor modes of ours.

    Raises OSError where something cannot be read, or ends before its size.
    """
    sink = _Sink()
    archive = zipfile.ZipFile(sink, "w")  # type: ignore[call-overload]  # write and flush are all that is used
    for path, _ in await run_in_thread(lambda: list(tree.walk())):
        found = await run_in_thread(tree.open, path)
        try:
            size = found.status.st_size
            info = zipfile.ZipInfo(
                "/".join(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            )
            info.external_attr = FILE_MODE
            with archive.open(info, "w", force_zip64=size >= ZIP64_FROM) as member:
                left = size
                while left:
                    data = await run_in_thread(os.read, found.handle, min(left, CHUNK_LEN))
                    if not data:
                        raise OSError(5, "a file has become shorter while it was read")
                    left -= len(data)
                    member.write(data)
                    yield sink.take()
        finally:
            os.close(found.handle)
        yield sink.take()
    archive.close()
    yield sink.take()
