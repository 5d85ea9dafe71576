"""One descriptor of a service of ours: that of one time period, with introduction points of its own."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from torkit._fast.keys import wipe
from torkit.directory.directory import Relay
from torkit.errors import TorkitError
from torkit.hs.calendar import Stand
from torkit.hs.descriptor import ProofOfWork
from torkit.hs.keys import KEY_LEN, SecretKey, subcredential
from torkit.hs.publication import Publication, encode_descriptor
from torkit.hs.revision import revision_counter
from torkit.net.hosting.means import Means, Wishes
from torkit.net.hosting.point import Launches, Point
from torkit.net.hosting.upload import Upload
from torkit.net.onion.descriptors import make_ring
from torkit.paths.introduction import choose_introduction_point

# As C tor: introduction points of a descriptor; seconds that a relay which has failed as one is passed over;
# seconds until a descriptor is uploaded again.
POINT_COUNT = 3
FAILURE_MEMORY = 300.0
MIN_REFRESH, MAX_REFRESH = 3600.0, 7200.0

# Implementation limits, seconds: how long the first points wait for the others; from one upload to the next;
# until one that some directory has not taken is repeated; before another relay is drawn where none could be;
# how long a point that has served its time goes on for clients who know no other.
PATIENCE = 5.0
MIN_INTERVAL = 10.0
REPEAT = 300.0
REST = 5.0
RETIRED_FOR = 600.0

logger = logging.getLogger(__name__)


class Edition:
    """`keep` it in a task, until its period is over."""

    def __init__(
        self,
        means: Means,
        wishes: Wishes,
        key: SecretKey,
        stand: Stand,
        launches: Launches,
        *,
        asked: Callable[[], ProofOfWork | None],
        hear: Callable[["Edition", Point, bytes], None],
        published: Callable[["Edition"], None],
    ) -> None:
        """`asked` says what work clients are to do; `hear` is called at once with each INTRODUCE2, and
        `published` when a first directory has taken a version."""
        self.stand = stand
        self.scope = trio.CancelScope()
        self.upload: Upload | None = None  # the newest
        self.blinded = key.blinded(stand.period)
        self.subcredential = subcredential(key.public, self.blinded.public)
        seed = os.urandom(KEY_LEN)
        self._signing = SecretKey.from_seed(seed)
        wipe(seed)
        self._means = means
        self._wishes = wishes
        self._launches = launches
        self._asked = asked
        self._hear = hear
        self._published = published
        self._revision = 0
        self._points: list[Point] = []  # those that stand, or are to
        self._failed: dict[bytes, float] = {}  # relays by identity: when, on trio's clock
        self._has_changed = trio.Event()

    @property
    def is_published(self) -> bool:
        """Returns whether a directory has taken a version of it."""
        return self.upload is not None and bool(self.upload.taken)

    def note_change(self) -> None:
        """Points, or the directory, are others now: look whether a new version is due."""
        self._has_changed.set()

    async def keep(self) -> None:
        """Stand at introduction points, and publish which; never returns but by `scope`."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                for _ in range(POINT_COUNT):
                    nursery.start_soon(self._keep_place, nursery)
                await self._keep_published(nursery)

    # --- introduction points ----------------------------------------------------------------------

    async def _keep_place(self, nursery: trio.Nursery) -> None:
        """Have one point at all times, each until it is over."""
        while True:
            try:
                relay = self._choose()
            except TorkitError as error:
                logger.info("no introduction point for the onion service: %s", error)
                await trio.sleep(REST)
                continue
            point = self._make_point(relay)
            self._points.append(point)
            over = trio.Event()
            scope = trio.CancelScope()
            nursery.start_soon(self._keep_point, point, scope, over)
            with trio.move_on_at(point.expires_at):
                await _first_of(over, point.wears_out)
            if point in self._points:
                self._points.remove(point)
            if not over.is_set():  # it stays for those who know no other yet
                scope.deadline = trio.current_time() + RETIRED_FOR
            self.note_change()

    async def _keep_point(self, point: Point, scope: trio.CancelScope, over: trio.Event) -> None:
        try:
            with scope:
                await point.keep(self._means.stems, self._wishes.limits, self._launches, self.note_change)
        except TorkitError as error:
            self._failed[point.relay.identity] = trio.current_time()
            logger.info("introduction point %s is given up: %s", point.relay.nickname, error)
            await trio.sleep(0 if point.was_established else REST * self._means.rng.random())
        finally:
            over.set()

    def _choose(self) -> Relay:
        since = trio.current_time() - FAILURE_MEMORY
        self._failed = {identity: at for identity, at in self._failed.items() if at > since}
        taken = {point.relay.identity for point in self._points}
        directory, rng = self._means.current.directory, self._means.rng
        constraints = self._means.constraints
        try:
            return choose_introduction_point(directory, taken | self._failed.keys(), constraints, rng)
        except TorkitError:
            if not self._failed:
                raise
            return choose_introduction_point(directory, taken, constraints, rng)

    def _make_point(self, relay: Relay) -> Point:
        param, rng = self._means.current.param, self._means.rng
        low, high = param("hs_intro_min_introduce2"), param("hs_intro_max_introduce2")
        shortest, longest = param("hs_intro_min_lifetime"), param("hs_intro_max_lifetime")
        return Point(
            relay,
            subcredential=self.subcredential,
            max_introductions=rng.randint(low, max(low, high)),
            expires_at=trio.current_time() + rng.uniform(shortest, max(shortest, longest)),
            hear=partial(self._hear, self),
        )

    # --- versions ---------------------------------------------------------------------------------

    async def _keep_published(self, nursery: trio.Nursery) -> None:
        while True:
            await self._wait_for_points()
            named, asked = self._standing(), self._asked()
            try:
                directories = await self._responsible()
            except TorkitError as error:  # the directory was dropped, since it is too old
                logger.info("no directory to give the descriptor to: %s", error)
                await trio.sleep(REST)
                continue
            upload = self.upload = Upload(partial(self._encode, named), directories)
            scope = trio.CancelScope()
            nursery.start_soon(self._run_upload, upload, scope)
            began = trio.current_time()
            due = began + self._means.rng.uniform(MIN_REFRESH, MAX_REFRESH)
            while trio.current_time() < due:
                with trio.move_on_at(min(due, began + REPEAT if not upload.is_complete else due)):
                    await self._has_changed.wait()
                self._has_changed = trio.Event()
                if (self._standing() != named and self._standing()) or self._asked() != asked:
                    break
                if await self._has_others(directories):
                    break
                if not upload.is_complete and trio.current_time() >= began + REPEAT:
                    break
            await trio.sleep_until(began + MIN_INTERVAL)
            scope.cancel()

    async def _run_upload(self, upload: Upload, scope: trio.CancelScope) -> None:
        async def tell() -> None:
            await upload.has_begun_to_serve.wait()
            if upload.taken:
                self._published(self)

        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell)
                await upload.run(self._means.stems)
            if not upload.is_complete:
                logger.warning(
                    "%d of %d directories have the onion service's descriptor: %s",
                    len(upload.taken),
                    len(upload.taken) + upload.missing,
                    upload.failure,
                )

    def _standing(self) -> list[Point]:
        """Those to be named: one that was lost is about to stand there again."""
        return [point for point in self._points if point.was_established]

    async def _wait_for_points(self) -> None:
        """Until all stand, or the first has waited long enough for the others."""
        deadline = None
        while len(self._standing()) < POINT_COUNT:
            if self._standing() and deadline is None:
                deadline = trio.current_time() + PATIENCE
            with trio.move_on_at(float("inf") if deadline is None else deadline) as waiting:
                await self._has_changed.wait()
                self._has_changed = trio.Event()
            if waiting.cancelled_caught:
                return

    def _encode(self, points: list[Point]) -> bytes:
        now = time.time()
        counted = revision_counter(self.blinded, int(now) - self.stand.run_began)
        self._revision = max(self._revision + 1, counted)
        return encode_descriptor(
            Publication(
                [point.described for point in points],
                self._means.sendme_inc,
                self._asked(),
                self._wishes.clients,
            ),
            blinded=self.blinded,
            subcredential=self.subcredential,
            signing=self._signing,
            revision=self._revision,
            now=now,
            randomness=os.urandom,
            rng=self._means.rng,
        )

    async def _has_others(self, told: list[Relay]) -> bool:
        """Returns whether a directory is responsible by now that is none of `told`."""
        with suppress(TorkitError):  # there may be no directory any more to tell
            now = {relay.identity for relay in await self._responsible()}
            return not now <= {relay.identity for relay in told}
        return False

    async def _responsible(self) -> list[Relay]:
        """The directories of every replica, in random order."""
        directory = self._means.current.directory
        ring = await make_ring(directory, self.stand.period, self.stand.shared_random)
        chosen = ring.responsible(
            self.blinded.public,
            replicas=directory.consensus.param("hsdir_n_replicas"),
            spread=directory.consensus.param("hsdir_spread_store"),
        )
        return self._means.rng.sample(chosen, len(chosen))


async def _first_of(*events: trio.Event) -> None:
    """Wait until one of them is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
