"""Our keys for services that serve only clients they know: C tor's files, and what a program gives."""

import logging
from pathlib import Path

from torkit._fast.keys import X25519PrivateKey
from torkit.errors import StorageError, TorkitError
from torkit.files import read_file
from torkit.hs.client_auth import MAX_LINE_LEN, ClientKey, decode_client_key
from torkit.net.shortage import run_in_thread

SUFFIX = ".auth_private"

# Implementation limit: files that are read.
MAX_FILES = 1000

logger = logging.getLogger(__name__)


class ClientKeys:
    """Our keys, by the service's identity key. `directory` holds files of keys, and may be missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._given: dict[bytes, X25519PrivateKey] = {}

    def add(self, key: ClientKey) -> None:
        """Use `key` from now on, whatever files say."""
        self._given[key.identity] = X25519PrivateKey(key.secret)

    async def find(self, service: bytes) -> X25519PrivateKey | None:
        """Returns our key for a service, or None. Files are read at each call: a new one is used at once."""
        if service in self._given:
            return self._given[service]
        return await run_in_thread(self._read, service)

    def _read(self, service: bytes) -> X25519PrivateKey | None:
        try:
            files = sorted(path for path in self._directory.iterdir() if path.name.endswith(SUFFIX))
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s: %s", self._directory, error.strerror)
            return None
        for path in files[:MAX_FILES]:
            try:
                key = decode_client_key((read_file(path, MAX_LINE_LEN) or b"").decode("ascii"))
            except (OSError, UnicodeDecodeError, StorageError, TorkitError) as error:
                logger.warning("%s is passed over: %s", path, getattr(error, "strerror", None) or error)
                continue
            if key.identity == service:
                return X25519PrivateKey(key.secret)
        return None
