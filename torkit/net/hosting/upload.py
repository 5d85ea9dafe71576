"""A descriptor, given to every directory that is responsible for it."""

import logging
from collections.abc import Callable, Sequence

import trio

from torkit.directory.directory import Relay
from torkit.errors import TimedOut, TorkitError
from torkit.net.circuits.purpose import ServiceDirectory
from torkit.net.dir.fetch import publish_onion_descriptor
from torkit.net.onion.stems import Stems

# Implementation limits: directories asked at once; seconds until an answer; and before one that has failed is
# tried again. C tor tries once, and again after an hour or two.
MAX_UPLOADS = 4
UPLOAD_TIMEOUT = 60.0
RESTS = (2.0, 10.0, 30.0)

logger = logging.getLogger(__name__)


class Upload:
    """`run` it once. `taken` are the directories that have it; `failure` is what the last refusal said."""

    def __init__(self, encode: Callable[[], bytes], directories: Sequence[Relay]) -> None:
        """`encode` makes the descriptor's text, with a higher revision counter each time."""
        self.taken: set[bytes] = set()
        self.failure: TorkitError | None = None
        self.has_begun_to_serve = trio.Event()  # a directory has it, or all have failed
        self._encode = encode
        self._text = encode()
        self._directories = directories
        self._limit = trio.CapacityLimiter(MAX_UPLOADS)

    @property
    def is_complete(self) -> bool:
        """Whether every directory has it."""
        return not self.missing

    @property
    def missing(self) -> int:
        """How many directories do not have it."""
        return len(self._directories) - len(self.taken)

    async def run(self, stems: Stems) -> None:
        """Until every directory has it, or has failed for good."""
        async with trio.open_nursery() as nursery:
            for relay in self._directories:
                nursery.start_soon(self._give, stems, relay)
        self.has_begun_to_serve.set()

    async def _give(self, stems: Stems, relay: Relay) -> None:
        for rest in (*RESTS, None):
            text = self._text
            try:
                async with self._limit:
                    await self._try(stems, relay, text)
            except TorkitError as error:
                self.failure = error
                logger.info("a descriptor was not taken by %s: %s", relay.nickname, error)
                if rest is None:
                    return
                await trio.sleep(rest)
                # The directory may have this version, its answer lost, or a later one of another process with
                # the same key.
                if text is self._text:
                    self._text = self._encode()
            else:
                self.taken.add(relay.identity)
                self.has_begun_to_serve.set()
                return

    async def _try(self, stems: Stems, relay: Relay, text: bytes) -> None:
        circuit = await stems.reach(ServiceDirectory(relay), relay, self)
        try:
            with trio.fail_after(UPLOAD_TIMEOUT):
                await publish_onion_descriptor(circuit, text)
            circuit.watch.note_use()
            circuit.watch.note_used()
        except trio.TooSlowError:
            raise TimedOut(f"no answer within {UPLOAD_TIMEOUT:.0f} s") from None
        finally:
            circuit.close()
