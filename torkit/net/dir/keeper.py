"""Keeps the directory: from the cache, then from the network, then ever newer. dir-spec, "Client operation".

Every document is verified before it replaces the one at hand. A source that fails, lies or lags is passed
over for another. Sources are the configured fallbacks and authorities, and guards.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf
from random import Random

import trio

from torkit.directory.authorities import AuthorityCertificate, parse_certificates
from torkit.directory.cache import Cache
from torkit.directory.consensus import Consensus, Preamble, read_consensus, read_preamble
from torkit.directory.directory import CountryOf, Directory
from torkit.directory.microdesc import Microdescs
from torkit.directory.netdoc import decode_protocols
from torkit.directory.trust import (
    REASONABLY_LIVE,
    Liveness,
    check_times,
    is_live,
    length_of,
    missing_certificates,
    verify_in_steps,
)
from torkit.errors import (
    ClockSkewed,
    DocumentError,
    NoDirectory,
    NothingNewer,
    NotServed,
    TorkitError,
)
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.guards import UNTOLD, GuardTry
from torkit.net.clock import CLOCK_CHECK, ClockWatch
from torkit.net.current import Current
from torkit.net.dir.kept import KeptDocuments
from torkit.net.dir.servers import Asked, DirectoryServers, Sources, next_backoff
from torkit.net.dir.steps import in_steps
from torkit.net.link.channels import Channels
from torkit.net.progress import Phase, diagnose
from torkit.paths.choose import prepare
from torkit.paths.guards import missing_microdescs

# The subprotocols that a consensus may require of clients. Those of onion services are listed even if unused:
# to lack them keeps no client from the network. subprotocol-versioning; proposals 264 and 303.
SUPPORTED = decode_protocols(
    "Cons=2 Desc=2-4 FlowCtrl=1-2 HSDir=2 HSIntro=4-5 HSRend=2 Link=4-5 Microdesc=2-3 Relay=2-6"
)

# 2026-11-22. The requirements of an older consensus may have been dropped since: proposal 297.
RELEASED = 1_795_305_600

# Specification constant, seconds (dir-spec, "Downloading server descriptors or microdescriptors"): when
# microdescriptors that could not be had are tried again.
MISSING_RETRY = 600.0

# Implementation limits.
ROUNDS_BEFORE_ERROR = 4  # failed rounds, some 10 s, before waiting callers are told

logger = logging.getLogger(__name__)

Verified = tuple[Consensus, tuple[AuthorityCertificate, ...]]


class DirectoryKeeper:
    """Run `run` in a task. `directory` is the newest usable one, or None until there is one.

    A newer directory replaces it only when enough of its microdescriptors have come, and those of all guards
    in use.

    `authorities` maps v3 identities, 20 bytes, to nicknames.
    """

    def __init__(
        self,
        *,
        authorities: dict[bytes, str],
        sources: Callable[[Directory | None], Sources],
        cache: Cache,
        is_cache_shared: bool = False,
        channels: Channels,
        settings: Callable[[], CircuitSettings],
        rng: Random,
        consensus: Preamble | None = None,
        country_of: CountryOf | None = None,
        current: Current | None = None,
        first_hop: Callable[[bytes], GuardTry] = lambda identity: UNTOLD,
        missing_guards: Callable[[Directory], list[str]] = lambda directory: [],
        agree_on_guards: Callable[[Directory], Awaitable[None]] | None = None,
    ) -> None:
        """`settings` are for circuits to directories, `country_of` is for the directories that are made.

        With `is_cache_shared`, other processes fetch as well, and keep it in `cache`, which may be theirs to
        write. `current` gets each directory that may be used. `first_hop` gives the handle of a circuit's
        first hop, by identity. `missing_guards` names the guards without whose microdescriptors a directory
        may not be used; `agree_on_guards` is awaited before the first of them is asked for microdescriptors.
        With `consensus`, a document from elsewhere, that one is verified and used, and never replaced.
        """
        self.is_ready = trio.Event()
        self._current = current or Current()
        self._is_loaded = trio.Event()
        self._has_failed = trio.Event()
        self._has_consensus = trio.Event()
        self._authorities = authorities
        self._cache = cache
        self._progress = self._current.journal.progress
        self._kept = KeptDocuments(cache, self._progress, is_shared=is_cache_shared)
        self._awaited: int | None = None  # when a consensus is valid that was kept without what it lists
        self._servers = DirectoryServers(channels, lambda: sources(self._newest), settings, rng, first_hop)
        self._rng = rng
        self._given = consensus
        self._country_of = country_of
        self._missing_guards = missing_guards
        self._agree_on_guards = agree_on_guards
        self._newest: Directory | None = None  # of the newest verified consensus, usable or not
        self._untimely: Verified | None = None  # the newest of this round that is good but for its times
        self._backoff = 0.0  # seconds
        self._said: type[TorkitError] | None = None  # the obstacle that was told last
        self._certificates: tuple[AuthorityCertificate, ...] = ()
        self._microdescs = Microdescs()

    @property
    def directory(self) -> Directory | None:
        """The directory in use, if there is one."""
        return self._current.known

    @property
    def failure(self) -> TorkitError | None:
        """Why there is no directory, after some rounds."""
        return self._current.failure

    async def wait_ready(self) -> Directory:
        """Wait for a directory on which circuits may be built.

        Raises why there is none, after some rounds.
        """
        await self._wait_for(self.is_ready)
        return self._current.directory

    async def wait_consensus(self) -> Consensus:
        """Wait for a live consensus, with or without its microdescriptors. Raises as `wait_ready`."""
        await self._wait_for(self._has_consensus)
        if self._newest is None or not self._has_consensus.is_set():
            raise self.failure or NoDirectory("there is no live consensus")
        return self._newest.consensus

    async def download(self, flavor: str, held: Preamble | None = None) -> Consensus:
        """Returns a live consensus of this flavor from the network, verified; the directory stays as it is.

        With `held`, a diff from it is asked for; `held` is returned if nothing has changed. Several
        sources are asked in one round. Raises NoDirectory, DocumentError, or what made them fail.
        """

        async def ask(asked: Asked) -> Verified:
            try:
                verified = await self._fetch_verified(asked, held, flavor)
            except NothingNewer:
                if held is None:
                    raise
                verified = await self._check(held.text, asked, flavor)
            self._check_times(verified[0], time.time(), least=Liveness.LIVE)
            return verified

        await self._is_loaded.wait()
        consensus, certificates = await self._servers.ask(ask)
        await self._keep_certificates(certificates)
        return consensus

    async def _wait_for(self, event: trio.Event) -> None:
        """Wait for `event`, or until some rounds have failed."""
        async with trio.open_nursery() as nursery:

            async def wait_failed() -> None:
                await self._has_failed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_failed)
            await event.wait()
            nursery.cancel_scope.cancel()

    async def run(self) -> None:
        """Keep the directory; never returns. Failures are kept in `failure` and tried again."""
        failed_rounds = 0
        await self._load()
        self._is_loaded.set()
        while True:
            try:
                wait = await self._advance()
            except TorkitError as error:
                failed_rounds += 1
                wait = self._retry_wait()
                if isinstance(error, ClockSkewed):  # somebody is about to set it
                    wait = min(wait, CLOCK_CHECK)
                is_shown = not self._progress.now.is_done  # with the progress of the start
                self._say("the directory cannot be brought up to date", error, is_shown=is_shown)
                self._progress.block(error)
                if failed_rounds >= ROUNDS_BEFORE_ERROR or self._given is not None:
                    self._current.failure = error
                    self._has_failed.set()
            else:
                failed_rounds = 0
                if self._has_consensus.is_set():
                    self._current.failure = None
                self._current.is_wanted = trio.Event()
                await self._sleep(wait, self._current.is_wanted)
                continue
            await self._sleep(wait, trio.Event(), has_failed=True)

    async def _advance(self) -> float:
        """Fetch a fresh consensus and its microdescriptors. Returns the seconds until the next round."""
        if self._given is not None:
            await self._use_given(self._given, time.time())
        elif await self._kept.has_news() and await self._load():
            return CLOCK_CHECK
        elif self._is_due(time.time()):
            try:
                await self._fetch_consensus()
            except TorkitError as failure:
                # An old consensus stays in use as long as it is reasonably live.
                if self._newest is None:
                    raise
                if time.time() > self._newest.consensus.valid_until + REASONABLY_LIVE:
                    self._drop()
                    raise
                error = self._skewed(self._newest.consensus, time.time()) or failure
                if isinstance(error, ClockSkewed):
                    self._say("a consensus is used that this computer's clock calls untimely", error)
                else:
                    what = "no newer consensus is to be had, the one at hand is still good"
                    logger.info("%s: %s", what, error)
                await self._fetch_microdescs()
                if not self._has_consensus.is_set():  # somebody may wait for a live one
                    self._current.failure = error
                    self._has_failed.set()
                return self._retry_wait()
            self._backoff = 0.0
        await self._fetch_microdescs()
        if self._given is not None:
            return inf
        wait = max(self._refresh_at - time.time(), 1.0)
        return min(wait, MISSING_RETRY) if self._newest and self._newest.missing else wait

    def _is_due(self, now: float) -> bool:
        """Returns whether a newer consensus is to be fetched."""
        return self._newest is None or now >= self._refresh_at or not is_live(self._newest.consensus, now)

    def _say(self, what: str, error: TorkitError, *, is_shown: bool = False) -> None:
        """Log what went wrong: as a warning where it is news and shown nowhere else."""
        is_news = not is_shown and self._said is not type(error)
        self._said = type(error)
        logger.log(
            logging.WARNING if is_news else logging.INFO,
            "%s: %s",
            what,
            "; ".join(filter(None, (str(error), error.hint))),
        )

    def _retry_wait(self) -> float:
        """Returns the seconds until the round after a failed one: until some source may be asked again."""
        self._backoff = next_backoff(self._backoff, self._rng)
        return max(self._backoff, self._servers.wait_seconds())

    async def _sleep(self, seconds: float, is_hurried: trio.Event, *, has_failed: bool = False) -> None:
        """Sleep `seconds` of either clock. Looks at the wall clock and at old circuits every CLOCK_CHECK.

        When the wall clock has jumped ahead, the computer was suspended or its clock was set. Then all that
        is known of the sources is forgotten, and the caller looks anew at what is due. So it is where a clock
        is set back after a round that failed: it may have been the reason.
        """
        ends_at = trio.current_time() + seconds
        watch = ClockWatch()
        while (remaining := ends_at - trio.current_time()) > 0 and not is_hurried.is_set():
            with trio.move_on_after(min(remaining, CLOCK_CHECK)):
                await is_hurried.wait()
            self._servers.close_worn()
            if self._given is None and await self._kept.has_news():
                return
            jump = watch.jump(trio.current_time())
            if jump > 0 or (jump < 0 and has_failed):
                self._servers.forget()
                self._backoff = 0.0
                return

    # --- the cache --------------------------------------------------------------------------------

    async def _load(self) -> bool:
        """Use what is kept, where it is newer than what is at hand or has what is missing there.

        Returns whether that has to wait: another process has just kept a newer consensus, and is about to
        keep its microdescriptors.
        """
        certificates, microdescs, consensus = await self._kept.read()
        newest = self._newest
        is_newer = consensus is not None and (
            newest is None or consensus.valid_after > newest.consensus.valid_after
        )
        if newest is not None and not is_newer and not newest.missing:
            return False
        held = {(one.identity, one.signing_key_digest): one for one in self._certificates + certificates}
        self._certificates = tuple(held.values())
        if microdescs is not None:
            with suppress(DocumentError):  # damaged: they are fetched anew
                self._microdescs.merge(await in_steps(Microdescs.decode_in_steps(microdescs)))
        if newest is not None and not is_newer:
            await self._join(newest.renewed())
        if consensus is None or not is_newer or self._given is not None:
            return False
        try:
            verified = await self._verify(
                consensus, self._certificates, time.time(), least=Liveness.REASONABLE
            )
            is_new = self._awaited != consensus.valid_after
            self._awaited = consensus.valid_after
            if newest is not None and is_new and Directory(verified, self._microdescs).missing:
                self._kept.read_again()
                return True
            await self._adopt(verified)
        except (NoDirectory, DocumentError) as error:
            logger.info("the cached consensus is not used: %s", error)
        return False

    # --- the network ------------------------------------------------------------------------------

    async def _fetch_consensus(self) -> None:
        """Adopt the newest consensus that a source has: a live one, else one still within the tolerance.

        Where it is live by several relays' clocks and not by ours, adopts it and raises ClockSkewed.
        """
        self._untimely = None
        try:
            verified = await self._servers.ask(self._ask_for_consensus)
        except TorkitError:
            if self._untimely is None:
                raise
            self._check_times(self._untimely[0], time.time(), least=Liveness.REASONABLE)
            await self._keep(*self._untimely)
            raise
        await self._keep(*verified)
        self._check_times(verified[0], time.time(), least=Liveness.LIVE)

    async def _keep(self, consensus: Consensus, certificates: tuple[AuthorityCertificate, ...]) -> None:
        await self._keep_certificates(certificates)
        await self._kept.save(self._cache.save_consensus, consensus)
        await self._adopt(consensus)

    async def _keep_certificates(self, certificates: tuple[AuthorityCertificate, ...]) -> None:
        if certificates != self._certificates:
            self._certificates = certificates
            await self._kept.save(self._cache.save_certificates, certificates)

    async def _use_given(self, consensus: Preamble, now: float) -> None:
        if self._newest is None:
            if missing_certificates(consensus, self._certificates, self._authorities, now):
                self._certificates = await self._servers.ask(
                    lambda asked: self._with_certificates(consensus, asked, now)
                )
            await self._adopt(await self._verify(consensus, self._certificates, now))

    async def _ask_for_consensus(self, asked: Asked) -> Verified:
        self._progress.reach(Phase.LOADING_STATUS)
        held = None if self._newest is None else self._newest.consensus
        verified = await self._fetch_verified(asked, held)
        consensus, _ = verified
        if held is not None and consensus.valid_after <= held.valid_after:
            raise NothingNewer("the directory has no newer consensus than ours")
        try:
            self._check_times(consensus, time.time(), least=Liveness.LIVE)
        except ClockSkewed:
            return verified  # other sources have no better one: our clock is wrong
        except NoDirectory as error:
            if self._untimely is None or consensus.valid_after > self._untimely[0].valid_after:
                self._untimely = verified
            raise NothingNewer(str(error), hint=error.hint) from error
        return verified

    async def _fetch_verified(
        self, asked: Asked, held: Preamble | None, flavor: str = "microdesc"
    ) -> Verified:
        from torkit.directory.diff import apply_in_steps, is_diff
        from torkit.net.dir.fetch import fetch_consensus

        answer = await fetch_consensus(asked.circuit, self._authorities, flavor, held=held, begun=asked.begun)
        if answer.date is not None:
            self._servers.note_clock(asked.source, answer.date - time.time())
        if held is None or not is_diff(answer.body):
            return await self._check(answer.body, asked, flavor)
        try:
            text = await in_steps(apply_in_steps(held.text, answer.body))
            return await self._check(text, asked, flavor)
        except ClockSkewed:
            raise  # the whole consensus has the same times
        except (DocumentError, NoDirectory) as error:
            logger.info("a consensus diff is not used, the whole consensus is asked for: %s", error)
            return await self._fetch_verified(asked, None, flavor)

    async def _check(self, text: bytes, asked: Asked, flavor: str) -> Verified:
        """Verify and read in full, with certificates fetched where they are missing.

        Raises DocumentError, NoDirectory, or what ended the fetching.
        """
        await trio.lowlevel.checkpoint()  # a turn for others between two steps
        consensus = read_preamble(text)
        now = time.time()
        self._check_times(consensus, now, least=Liveness.REASONABLE)
        certificates = self._certificates
        if missing_certificates(consensus, certificates, self._authorities, now):
            self._progress.reach(Phase.LOADING_KEYS)
            certificates = await self._with_certificates(consensus, asked, now)
        verified = await self._verify(consensus, certificates, now, least=Liveness.REASONABLE, flavor=flavor)
        return verified, certificates

    async def _with_certificates(
        self, consensus: Preamble, asked: Asked, now: float
    ) -> tuple[AuthorityCertificate, ...]:
        """Returns the certificates at hand, and those that a consensus needs.

        Asks for the newest certificate of every authority that has none here; then, where a signature was
        made with another key, for that key's. (As C tor.)
        """
        from torkit.net.dir.fetch import fetch_certificates, fetch_certificates_of_keys

        kept = {(one.identity, one.signing_key_digest): one for one in self._certificates}

        def current() -> tuple[AuthorityCertificate, ...]:
            return tuple(
                one for one in kept.values() if one.identity in self._authorities and one.is_current(now)
            )

        def keep(fetched: bytes) -> None:
            kept.update(((one.identity, one.signing_key_digest), one) for one in parse_certificates(fetched))

        unknown = self._authorities.keys() - {one.identity for one in current()}
        if unknown:
            in_order = (identity for identity in self._authorities if identity in unknown)
            keep(await fetch_certificates(asked.circuit, in_order))
        missing = missing_certificates(consensus, current(), self._authorities, now)
        if missing:
            keep(await fetch_certificates_of_keys(asked.circuit, missing))
        return current()

    def _check_times(self, consensus: Preamble, now: float, *, least: Liveness) -> None:
        """As `check_times`. Raises ClockSkewed where our clock is why."""
        try:
            check_times(consensus, now, least=least)
        except NoDirectory:
            if skewed := self._skewed(consensus, now):
                raise skewed from None
            raise

    def _skewed(self, consensus: Preamble, now: float) -> ClockSkewed | None:
        """Returns how our clock is wrong, where the consensus is live by several relays' clocks only."""
        skew = self._servers.clock_skew()
        if skew is None or is_live(consensus, now) or not is_live(consensus, now - skew):
            return None
        length = length_of(round(abs(skew) / 60) * 60)
        return ClockSkewed(
            f"this computer's clock is {length} {'ahead of' if skew > 0 else 'behind'}"
            " what several relays show",
            skew=skew,
            hint="set this computer's clock and time zone",
        )

    async def _verify(
        self,
        consensus: Preamble,
        certificates: Sequence[AuthorityCertificate],
        now: float,
        *,
        least: Liveness = Liveness.LIVE,
        flavor: str = "microdesc",
    ) -> Consensus:
        """Check flavor, times and signatures, and only then read the rest.

        Raises DocumentError or NoDirectory.
        """
        if consensus.flavor != flavor:
            raise DocumentError(f"a consensus of flavor {consensus.flavor} came, {flavor} expected")
        await in_steps(verify_in_steps(consensus, certificates, self._authorities, now, least=least))
        return await in_steps(read_consensus(consensus))

    async def _adopt(self, consensus: Consensus) -> None:
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
        window = max(consensus.valid_until - earliest, 0)
        # At random, so that clients do not all come to the caches together, and do not differ in when they
        # come. dir-spec, "Downloading network-status documents". Who reads what others fetch is after them.
        self._refresh_at = earliest + window * (
            self._rng.random() * 7 / 8 if self._kept.is_ours else 7 / 8 + self._rng.random() / 16
        )
        self._said = None
        await self._join(Directory(consensus, self._microdescs, self._country_of))

    async def _join(self, directory: Directory) -> bool:
        """Use this directory, unless too much of it is missing, or a newer one came while it was read.

        Returns whether enough of it is there.
        """
        self._newest = directory
        if is_live(directory.consensus, time.time()):
            self._has_consensus.set()
        is_usable = await in_steps(directory.is_usable_in_steps())
        if is_usable:
            await in_steps(prepare(directory))
        if self._newest is directory and is_usable and not self._missing_guards(directory):
            self._current.use(directory)
            self.is_ready.set()
            self._progress.reach(Phase.ENOUGH_DIRINFO)
        return is_usable

    def _drop(self) -> None:
        """Let no document at hand be used any more."""
        self._newest = None
        self._stop_using()

    def _stop_using(self) -> None:
        self._current.drop()
        if self.is_ready.is_set():
            self.is_ready = trio.Event()

    async def _fetch_microdescs(self) -> None:
        """Fetch the microdescriptors that the newest directory lacks.

        Raises why it may not be used without.
        """
        assert self._newest is not None
        if self._agree_on_guards is not None:
            await self._agree_on_guards(self._newest)
        await trio.lowlevel.checkpoint()
        failures: list[TorkitError] = []
        if self._newest.missing:
            await self._fetch_missing(self._newest, failures)
        if self.directory is self._newest:
            return
        # Who was about to use it may have been overtaken and cut off; and other guards may be needed by now.
        is_usable = await self._join(self._newest.renewed())
        if self.directory is self._newest:
            return
        if self.directory and time.time() > self.directory.consensus.valid_until + REASONABLY_LIVE:
            self._stop_using()
        error = diagnose(failures) if failures else NoDirectory("too few relays are known to build circuits")
        names = self._missing_guards(self._newest)
        if names and is_usable and type(error) in (NoDirectory, NotServed):
            raise missing_microdescs(names) from error
        raise error

    async def _fetch_missing(self, directory: Directory, failures: list[TorkitError]) -> None:
        from torkit.net.dir.fetch import MICRODESCS_PER_REQUEST, fetch_microdescs

        # In this order no source sees which relays stand together in our list. (It is C tor's, too.)
        missing = sorted(directory.missing)
        have_more_come = False  # since the directory that is used was read
        self._progress.expect_microdescs(len(directory) - len(missing), len(directory))

        async def fetch(asked: Asked, digests: list[bytes]) -> set[bytes]:
            nonlocal have_more_come
            text = await fetch_microdescs(asked.circuit, digests, begun=asked.begun)
            came = await in_steps(self._microdescs.add_in_steps(text, frozenset(digests), time.time()))
            self._progress.add_microdescs(len(came))
            if self.directory is self._newest:
                have_more_come = True
            else:
                await self._join(directory.renewed())
            return came

        failures += await self._servers.share(
            missing,
            fetch,
            max_part_len=MICRODESCS_PER_REQUEST,
            is_enough=lambda: self.directory is self._newest,
        )
        now = time.time()
        for one in filter(None, (directory, self.directory)):
            self._microdescs.mark_listed(one.consensus.relays.digests, now)
        self._microdescs.expire(now)
        await self._kept.save(self._cache.save_microdescs, self._microdescs, now)
        if have_more_come:
            await self._join(directory.renewed())
