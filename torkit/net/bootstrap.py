"""Keeps the directory: from the cache, then from the network, then ever newer. dir-spec, "Client operation".

Whatever arrives is verified before it replaces what is held. A source that fails, lies or lags is passed
over for another. Nothing is fetched but from the configured fallbacks and authorities and from guards.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from math import inf
from random import Random
from typing import Protocol, TypeVar

import trio

from torkit.directory.authorities import AuthorityCertificate, parse_certificates
from torkit.directory.cache import Cache
from torkit.directory.consensus import (
    REASONABLY_LIVE,
    Consensus,
    missing_certificates,
    parse_consensus,
    verify,
)
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs
from torkit.directory.netdoc import decode_protocols
from torkit.errors import DocumentError, NoDirectory, StorageError, TorkitError
from torkit.net.channels import Channels
from torkit.net.circuit import Circuit
from torkit.net.circuits import build_directory_circuit
from torkit.net.contact import Contact
from torkit.net.directory import (
    MICRODESCS_PER_REQUEST,
    fetch_certificates,
    fetch_consensus,
    fetch_microdescs,
)
from torkit.net.progress import Phase, diagnose

# What we speak of the subprotocols that clients may be required to. Those of onion services are not ours
# to lack: we offer none. subprotocol-versioning; proposals 264 and 303.
SUPPORTED = decode_protocols(
    "Cons=2 Desc=2-4 FlowCtrl=1-2 HSDir=2 HSIntro=4-5 HSRend=2 Link=4-5 Microdesc=2-3 Relay=2-6"
)

# 2026-11-22. What an older consensus requires may have been dropped since: proposal 297.
RELEASED = 1_795_305_600

# Implementation limits.
STAGGER = 4.0  # seconds until another source is asked beside one that has not answered
MAX_SOURCES = 8  # asked for one document before giving up for this round
FIRST_RETRY = 1.0  # seconds after the first failed round; doubled up to LAST_RETRY
LAST_RETRY = 60.0
ROUNDS_BEFORE_ERROR = 4  # failed rounds, some 10 s, before whoever waits is told
CONCURRENT_BATCHES = 3  # requests for microdescriptors under way at once

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Sources(Protocol):
    """Whom to ask for directory documents, best first."""

    def __call__(self, directory: Directory | None) -> Sequence[Contact]: ...


class Bootstrap:
    """Run `run` in a task; `directory` is the newest usable one, or None until there is one.

    A newer one that lacks too many microdescriptors does not replace it until they have come.

    `authorities` maps v3 identities, 20 bytes, to nicknames.
    """

    def __init__(
        self,
        *,
        authorities: dict[bytes, str],
        sources: Sources,
        cache: Cache,
        channels: Channels,
        rng: Random,
        consensus: Consensus | None = None,
    ) -> None:
        """With `consensus`, a document from elsewhere, that one is verified and used, and never replaced."""
        self.directory: Directory | None = None
        self.is_ready = trio.Event()
        self.failure: TorkitError | None = None
        self._is_loaded = trio.Event()
        self._has_failed = trio.Event()
        self._has_consensus = trio.Event()
        self._authorities = authorities
        self._sources = sources
        self._cache = cache
        self._channels = channels
        self._progress = channels.progress
        self._rng = rng
        self._given = consensus
        self._newest: Directory | None = None  # of the newest verified consensus, usable or not
        self._certificates: tuple[AuthorityCertificate, ...] = ()
        self._microdescs = Microdescs()

    async def wait_ready(self) -> Directory:
        """The directory, once circuits may be built on it. Raises why there is none, after some rounds."""
        await self._wait_for(self.is_ready)
        if self.directory is None:
            raise self.failure or NoDirectory("there is no directory yet")
        return self.directory

    async def wait_consensus(self) -> Consensus:
        """A live consensus, whether its microdescriptors have come or not. Raises as `wait_ready`."""
        await self._wait_for(self._has_consensus)
        if self._newest is None or not self._has_consensus.is_set():
            raise self.failure or NoDirectory("there is no live consensus")
        return self._newest.consensus

    async def download(self, flavor: str) -> Consensus:
        """A live consensus of this flavor from the network, verified; the directory stays as it is.

        Asked once of several sources. Raises NoDirectory, DocumentError, or what made the sources fail.
        """
        await self._is_loaded.wait()
        consensus, certificates = await self._ask_any(lambda circuit: self._fetch_verified(circuit, flavor))
        await self._keep_certificates(certificates)
        return consensus

    async def _wait_for(self, event: trio.Event) -> None:
        """Until `event`, or until some rounds have failed."""
        async with trio.open_nursery() as nursery:

            async def wait_failed() -> None:
                await self._has_failed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_failed)
            await event.wait()
            nursery.cancel_scope.cancel()

    async def run(self) -> None:
        """Never returns. Failures are kept in `failure` and tried again."""
        failed_rounds = 0
        await self._load()
        self._is_loaded.set()
        while True:
            try:
                wait = await self._advance()
            except TorkitError as error:
                failed_rounds += 1
                wait = min(FIRST_RETRY * 2 ** (failed_rounds - 1), LAST_RETRY)
                logger.info("the directory could not be brought up to date: %s", error)
                self._progress.block(error)
                if failed_rounds >= ROUNDS_BEFORE_ERROR or self._given is not None:
                    self.failure = error
                    self._has_failed.set()
            else:
                failed_rounds = 0
                self.failure = None
            await trio.sleep(wait)

    async def _advance(self) -> float:
        """One round: a consensus that is fresh, its microdescriptors; seconds until the next round."""
        now = time.time()
        if self._given is not None:
            await self._use_given(self._given, now)
        elif self._newest is None or now >= self._refresh_at:
            try:
                await self._fetch_consensus()
            except TorkitError as error:
                # An old one goes on being used as long as it is reasonably live.
                if self._newest is None:
                    raise
                if now > self._newest.consensus.valid_until + REASONABLY_LIVE:
                    self._drop()
                    raise
                logger.info("no newer consensus is to be had, the one at hand is still good: %s", error)
                if not self._has_consensus.is_set():  # somebody may wait for a live one
                    self.failure = error
                    self._has_failed.set()
                await self._fetch_microdescs()
                return LAST_RETRY
        await self._fetch_microdescs()
        if self._given is not None:
            return inf
        return max(self._refresh_at - time.time(), 1.0)

    # --- the cache --------------------------------------------------------------------------------

    async def _load(self) -> None:
        try:
            self._certificates = self._cache.load_certificates() or ()
            self._microdescs = self._cache.load_microdescs() or Microdescs()
            consensus = self._cache.load_consensus()
        except StorageError as error:
            self._do_without_cache("the cache is not used", error)
            return
        if consensus is None or self._given is not None:
            return
        try:
            self._verify(consensus, self._certificates, time.time(), tolerance=REASONABLY_LIVE)
            self._adopt(consensus)
        except (NoDirectory, DocumentError) as error:
            logger.info("the cached consensus is not used: %s", error)

    async def _save(self, save: Callable[..., None], *args: object) -> None:
        try:
            await trio.to_thread.run_sync(save, *args)
        except StorageError as error:
            self._do_without_cache("the cache could not be written", error)

    def _do_without_cache(self, what: str, error: StorageError) -> None:
        logger.warning("%s: %s", what, "; ".join(filter(None, (str(error), error.hint))))
        self._progress.block(error)

    # --- the network ------------------------------------------------------------------------------

    async def _fetch_consensus(self) -> None:
        consensus, certificates = await self._ask_any(self._ask_for_consensus)
        await self._keep_certificates(certificates)
        await self._save(self._cache.save_consensus, consensus)
        self._adopt(consensus)

    async def _keep_certificates(self, certificates: tuple[AuthorityCertificate, ...]) -> None:
        if certificates != self._certificates:
            self._certificates = certificates
            await self._save(self._cache.save_certificates, certificates)

    async def _use_given(self, consensus: Consensus, now: float) -> None:
        if self._newest is None:
            missing = missing_certificates(consensus, self._certificates, self._authorities, now)
            if missing:
                fetched = await self._ask_any(lambda circuit: fetch_certificates(circuit, missing))
                self._certificates += parse_certificates(fetched)
            self._verify(consensus, self._certificates, now)
            self._adopt(consensus)

    async def _ask_for_consensus(
        self, circuit: Circuit
    ) -> tuple[Consensus, tuple[AuthorityCertificate, ...]]:
        self._progress.reach(Phase.LOADING_STATUS)
        consensus, certificates = await self._fetch_verified(circuit, "microdesc")
        if self._newest is not None and consensus.valid_after <= self._newest.consensus.valid_after:
            raise NoDirectory("the directory has no newer consensus than ours")
        return consensus, certificates

    async def _fetch_verified(
        self, circuit: Circuit, flavor: str
    ) -> tuple[Consensus, tuple[AuthorityCertificate, ...]]:
        consensus = parse_consensus(await fetch_consensus(circuit, flavor))
        now = time.time()
        certificates = self._certificates
        missing = missing_certificates(consensus, certificates, self._authorities, now)
        if missing:
            self._progress.reach(Phase.LOADING_KEYS)
            fetched = parse_certificates(await fetch_certificates(circuit, missing))
            kept = {certificate.signing_key_digest: certificate for certificate in certificates + fetched}
            certificates = tuple(
                c for c in kept.values() if c.identity in self._authorities and c.is_current(now)
            )
        self._verify(consensus, certificates, now, flavor=flavor)
        return consensus, certificates

    def _verify(
        self,
        consensus: Consensus,
        certificates: Sequence[AuthorityCertificate],
        now: float,
        *,
        tolerance: float = 0,
        flavor: str = "microdesc",
    ) -> None:
        """Check flavor, times and signatures. Raises DocumentError or NoDirectory."""
        if consensus.flavor != flavor:
            raise DocumentError(f"a consensus of flavor {consensus.flavor} came, {flavor} expected")
        verify(consensus, certificates, self._authorities, now, tolerance=tolerance)

    def _adopt(self, consensus: Consensus) -> None:
        """Use a verified consensus. Raises NoDirectory, and stops being ready, if it rules us out."""
        missing = consensus.required_client_protocols.missing_from(SUPPORTED)
        if missing and consensus.valid_after > RELEASED:
            self._drop()
            raise NoDirectory(
                f"the network requires of clients what this torkit does not speak: {' '.join(missing)}",
                hint="update torkit",
            )
        lifetime = consensus.fresh_until - consensus.valid_after
        earliest = consensus.fresh_until + 0.75 * lifetime
        # At random, so that clients neither fall upon the caches together nor are told apart by when
        # they come. dir-spec, "Downloading network-status documents".
        self._refresh_at = earliest + self._rng.random() * max(consensus.valid_until - earliest, 0) * 7 / 8
        self._join(consensus)

    def _join(self, consensus: Consensus) -> None:
        self._newest = Directory(consensus, self._microdescs)
        if time.time() <= consensus.valid_until:
            self._has_consensus.set()
        if self._newest.is_usable():
            self.directory = self._newest
            self.is_ready.set()
            self._progress.reach(Phase.ENOUGH_DIRINFO)

    def _drop(self) -> None:
        """Nothing at hand may be used any more."""
        self.directory = self._newest = None
        if self.is_ready.is_set():
            self.is_ready = trio.Event()

    async def _fetch_microdescs(self) -> None:
        """Fetch what the newest directory lacks. Raises the last error if it is not usable without."""
        assert self._newest is not None
        failures: list[TorkitError] = []
        if self._newest.missing:
            await self._fetch_missing(self._newest, failures)
        if self.directory is not self._newest:
            raise failures[-1] if failures else NoDirectory("too few relays are known to build circuits")

    async def _fetch_missing(self, directory: Directory, failures: list[TorkitError]) -> None:
        missing = list(directory.missing)
        self._progress.expect_microdescs(len(directory) - len(missing), len(directory))
        self._rng.shuffle(missing)  # no source shall see which relays stand together in our list
        batches = iter(missing)
        limit = trio.CapacityLimiter(CONCURRENT_BATCHES)
        async with trio.open_nursery() as nursery:
            while batch := list(islice(batches, MICRODESCS_PER_REQUEST)):
                nursery.start_soon(self._fetch_batch, batch, limit, failures)
        self._join(directory.consensus)
        now = time.time()
        self._microdescs.mark_listed((d for d in directory.consensus.relays.digests if d), now)
        await self._save(self._cache.save_microdescs, self._microdescs, now)

    async def _fetch_batch(
        self, digests: list[bytes], limit: trio.CapacityLimiter, failures: list[TorkitError]
    ) -> None:
        async def ask(circuit: Circuit) -> None:
            text = await fetch_microdescs(circuit, digests)
            found = self._microdescs.add(text, frozenset(digests), time.time())
            if not found:
                raise NoDirectory("the directory sent none of the microdescriptors asked for")
            self._progress.add_microdescs(len(found))

        async with limit:
            try:
                await self._ask_any(ask)
            except TorkitError as error:
                failures.append(error)

    async def _ask_any(self, ask: Callable[[Circuit], Awaitable[T]]) -> T:
        """The first good answer of several sources; the next is asked when one fails or is slow."""
        answers: list[T] = []
        failures: list[TorkitError] = []
        sources = self._sources(self.directory)

        async def attempt(source: Contact, is_over: trio.Event) -> None:
            try:
                circuit = await build_directory_circuit(self._channels, source)
                try:
                    answers.append(await ask(circuit))
                finally:
                    circuit.close()
                nursery.cancel_scope.cancel()
            except TorkitError as error:
                failures.append(error)
                is_over.set()

        async with trio.open_nursery() as nursery:
            for source in islice(sources, MAX_SOURCES):
                is_over = trio.Event()
                nursery.start_soon(attempt, source, is_over)
                with trio.move_on_after(STAGGER):
                    await is_over.wait()
        if answers:
            return answers[0]
        if failures:
            raise diagnose(failures)
        raise NoDirectory("no directory source is configured")
