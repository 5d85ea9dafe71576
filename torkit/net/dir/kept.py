"""The documents that are kept in files, which other processes read, and replace with newer ones."""

import logging
from collections.abc import Callable
from typing import NamedTuple

from torkit.directory.authorities import AuthorityCertificate
from torkit.directory.cache import Cache, Version
from torkit.directory.consensus import Preamble
from torkit.errors import OutOfResources, StorageError
from torkit.net.progress import Tracker
from torkit.net.shortage import run_in_thread

logger = logging.getLogger(__name__)


class Documents(NamedTuple):
    """What was read, nothing of it verified. `microdescs` are the text that Microdescs decodes."""

    certificates: tuple[AuthorityCertificate, ...]
    microdescs: bytes | None
    consensus: Preamble | None


class KeptDocuments:
    """One cache, read and written in threads: the disk may be slow. To do without it is a warning, no error.

    One that `is_shared` may be somebody else's to write: then nothing is kept, without a warning.
    """

    def __init__(self, cache: Cache, progress: Tracker, *, is_shared: bool = False) -> None:
        self._cache = cache
        self._progress = progress
        self._is_shared = is_shared
        self._seen: Version | None = None  # what was read last, or written by us; None is to be read

    @property
    def is_ours(self) -> bool:
        """Returns whether we are to fetch what others then read; else somebody else does."""
        return not self._is_shared or self._cache.is_writable

    async def has_news(self) -> bool:
        """Returns whether a document was replaced since `read`, and not by `save`."""
        try:
            return self._seen is None or await run_in_thread(self._cache.version) != self._seen
        except (StorageError, OutOfResources):
            return False

    async def read(self) -> Documents:
        """Returns all that is kept."""
        self._seen = ()
        try:
            self._seen = await run_in_thread(self._cache.version)
            return await run_in_thread(self._read)
        except (StorageError, OutOfResources) as error:
            self._do_without("the cache is not used", error)
            return Documents((), None, None)

    def read_again(self) -> None:
        """Let `has_news` say so, whether or not anything is replaced."""
        self._seen = None

    async def save(self, save: Callable[..., None], *args: object) -> None:
        """Keep something by this method of the cache."""
        if not self.is_ours:
            return
        try:
            await run_in_thread(save, *args)
            self._seen = await run_in_thread(self._cache.version)
        except (StorageError, OutOfResources) as error:
            self._do_without("the cache could not be written", error)

    def _read(self) -> Documents:
        return Documents(
            self._cache.load_certificates() or (), self._cache.read_microdescs(), self._cache.load_consensus()
        )

    def _do_without(self, what: str, error: StorageError | OutOfResources) -> None:
        logger.warning("%s: %s", what, "; ".join(filter(None, (str(error), error.hint))))
        self._progress.block(error)
