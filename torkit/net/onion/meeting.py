"""Meets one onion service: a circuit of ours and one of its own are joined at a relay that we choose.

    we, to the rendezvous point       ESTABLISH_RENDEZVOUS ->    <- RENDEZVOUS_ESTABLISHED
    we, to an introduction point      INTRODUCE1 ->              <- INTRODUCE_ACK
    the rendezvous point              <- RENDEZVOUS2, from the service

Cookie and keys are made before anything is sent. A message may come only after the message that it answers;
any other ends its circuit.

An attempt has its own introduction circuit and keys. When one fails, another begins at once, through another
point. While one is silent, it goes on, and after PATIENCE another begins beside it, at another rendezvous
point: an acknowledgement says only that the point still knows the service, and the service may be gone. The
first attempt that joins ends all others. (C tor waits three build timeouts, 181 s while none is learnt.)

When every point has failed, and a newer descriptor names no others, all are tried again after a rest: a
service that has lost its circuits builds new ones to the same points. (C tor then fails, and does not use
these points for two minutes. So does torkit with points that were silent themselves; where the service was,
its points have answered, and the next request asks them again.)
"""

import logging
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from math import inf
from random import Random

import trio

from torkit._fast.keys import X25519PrivateKey
from torkit.errors import NotPossible, OnionServiceError, OnionStep, TimedOut, TorkitError
from torkit.hs.descriptor import Descriptor, IntroductionPoint
from torkit.hs.introduction import PointFailure, Points
from torkit.hs.pow import is_expired
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.turns import rest
from torkit.net.onion.descriptors import Descriptors
from torkit.net.onion.introduction import Introduction, Means
from torkit.net.onion.rendezvous import RendezvousPoint
from torkit.net.onion.stems import Stems
from torkit.net.onion.work import Worker

# Implementation limits. Seconds:
PATIENCE = 15.0  # until another attempt begins beside one that is silent
ATTEMPT_TIMEOUT = 60.0
RESTS = (1.0, 4.0, 10.0)  # before failed points are tried again, each times 0.5 to 1.5

# For one meeting:
MAX_ATTEMPTS = 48
MAX_OTHER_FAILURES = 12  # attempts that failed without a fault of their point

logger = logging.getLogger(__name__)


class Meeting:
    """Meets the service with this identity key, for one isolation; `run` it once."""

    def __init__(
        self,
        identity: bytes,
        isolation: Hashable,
        client_key: X25519PrivateKey | None,
        *,
        stems: Stems,
        descriptors: Descriptors,
        points: Points,
        rng: Random,
        worker: Worker,
        testing: bool,
    ) -> None:
        self.worked = 0.0  # seconds in which proofs of work were made
        self._identity = identity
        self._isolation = isolation
        self._client_key = client_key
        self._stems = stems
        self._descriptors = descriptors
        self._points = points
        self._rng = rng
        self._worker = worker
        self._testing = testing
        self._descriptor: Descriptor | None = None
        self._has_fetched_anew = False  # since the last rest
        self._rest_count = 0
        self._spare: RendezvousPoint | None = None  # for the next attempt
        self._joined: Circuit | None = None
        self._count = 0  # attempts
        self._failure: TorkitError | None = None  # the last attempt's
        self._failed_step: OnionStep | None = None  # of that attempt; None where our own circuit failed
        self._other_failure_count = 0  # attempts that failed without a fault of their point
        self._was_acknowledged = False  # any introduction
        self._unanswered_count = 0  # introductions that were acknowledged, and the service did not come
        self._under_way: set[bytes] = set()  # auth-keys of points that are being tried
        self._unanswered: set[bytes] = set()  # and of those behind which the service was silent
        self._has_changed = trio.Event()
        self._scope = trio.CancelScope()
        self._working_count = 0  # attempts that make a proof of work
        self._work_began = 0.0
        self._left = 0.0  # seconds that were left until the deadline when the work began
        self._nursery: trio.Nursery  # while it runs

    async def run(self, give_up_at: float) -> Circuit:
        """Returns a circuit that has joined with the service's; the caller closes it.

        Proofs of work put `give_up_at` off by as long as they take. Raises OnionServiceError, with the step
        that failed, NoDirectory, NoPath, NoGuard, or what made every circuit fail.
        """
        error: TorkitError | None = None
        self._scope.deadline = give_up_at
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    with self._scope:
                        await self._try_until_joined()
                except TorkitError as raised:
                    error = raised
                self._nursery.cancel_scope.cancel()
        except BaseException:
            if self._joined is not None:
                self._joined.close()
            raise
        finally:
            if self._spare is not None:
                self._spare.close()
        if self._joined is not None:
            self._descriptors.note_met(self._identity)
            return self._joined
        raise error or self._explain()

    async def _try_until_joined(self) -> None:
        """Begin attempts. The one that joins cancels this; else it returns when nothing is left to try."""
        self._spare = self._prepare()  # while the descriptor is fetched
        self._descriptor = await self._descriptors.get(self._identity, self._client_key)
        work = self._descriptor.proof_of_work
        if work is not None and is_expired(work, time.time()):
            await self._fetch_anew()
        while True:
            point = await self._choose_point() if self._may_begin() else None
            if point is not None:
                self._count += 1
                self._under_way.add(point.auth_key)
                self._nursery.start_soon(self._attempt, self._descriptor, point)
            elif self._may_begin() and await self._rest():
                continue
            elif not self._under_way:
                return
            await self._wait_for_change()

    def _may_begin(self) -> bool:
        return self._count < MAX_ATTEMPTS and self._other_failure_count < MAX_OTHER_FAILURES

    async def _wait_for_change(self) -> None:
        """Wait until an attempt has failed, or has been silent for PATIENCE."""
        self._has_changed = trio.Event()
        failure_count = self._other_failure_count
        while True:
            with trio.move_on_after(PATIENCE) as patience:
                await self._has_changed.wait()
            if not (patience.cancelled_caught and self._working_count):
                break
        if patience.cancelled_caught and self._was_acknowledged:
            self._unanswered_count += 1
            await self._fetch_anew()  # the service may have new points
        if self._other_failure_count > failure_count:
            await trio.sleep(rest(failure_count, self._rng))

    # --- points -----------------------------------------------------------------------------------

    async def _choose_point(self) -> IntroductionPoint | None:
        """Returns one of the usable points at random; None where a newer descriptor has none, either."""
        usable = self._usable_points()
        if not usable:
            await self._fetch_anew()
            usable = self._usable_points()
        return self._rng.choice(usable) if usable else None

    def _usable_points(self) -> list[IntroductionPoint]:
        assert self._descriptor is not None
        points = self._points.usable(self._descriptor.points, trio.current_time())
        return [point for point in points if point.auth_key not in self._under_way | self._unanswered]

    async def _rest(self) -> bool:
        """Rest while the service comes back to failed points. Returns whether any may be tried again."""
        assert self._descriptor is not None
        if self._rest_count == len(RESTS) or not self._points.may_come_back(self._descriptor.points):
            return False
        if self._count:  # else the points failed in an earlier meeting, and have rested
            await trio.sleep(RESTS[self._rest_count] * self._rng.uniform(0.5, 1.5))
        self._rest_count += 1
        self._has_fetched_anew = False
        await self._fetch_anew()
        self._points.forgive(self._descriptor.points)
        return True

    async def _fetch_anew(self) -> None:
        """Ask another directory for a newer descriptor, once until the next rest."""
        if self._has_fetched_anew:
            return
        self._has_fetched_anew = True
        try:
            self._descriptor = await self._descriptors.get(self._identity, self._client_key, anew=True)
        except TorkitError as error:
            logger.info("no newer descriptor: %s", error)

    # --- attempts ---------------------------------------------------------------------------------

    async def _attempt(self, descriptor: Descriptor, point: IntroductionPoint) -> None:
        rendezvous = self._prepare()
        means = Means(
            self._stems,
            self._points,
            self._worker,
            self._isolation,
            self._testing,
            self._nursery,
            self._working,
            self._note_acknowledged,
        )
        attempt = Introduction(means, descriptor, point, self._unanswered_count)
        try:
            with trio.fail_after(ATTEMPT_TIMEOUT) as scope:
                circuit = await attempt.run(rendezvous, scope)
        except trio.TooSlowError:
            if attempt.was_acknowledged:
                self._points.note(point, PointFailure.UNANSWERED, trio.current_time())
                self._unanswered.add(point.auth_key)
            elif attempt.step is OnionStep.INTRODUCTION:
                self._points.note(point, PointFailure.TIMED_OUT, trio.current_time())
            self._note_failure(TimedOut(f"no answer within {ATTEMPT_TIMEOUT:g} s"), attempt.step)
            rendezvous.close()  # the rendezvous point may have been the silent one
        except TorkitError as error:
            logger.info("an introduction to the onion service failed: %s", error)
            self._note_failure(error, attempt.step)
            if isinstance(error, NotPossible):
                self._count = MAX_ATTEMPTS  # no path fits the next attempt, either
        else:
            if self._joined is None:
                self._joined = circuit
                self._nursery.cancel_scope.cancel()
            else:
                circuit.close()
        finally:
            if attempt.is_cookie_spent or rendezvous.has_failed or self._spare is not None:
                rendezvous.close()
            else:
                self._spare = rendezvous
            self._under_way.discard(point.auth_key)
            self._has_changed.set()

    def _note_failure(self, error: TorkitError, step: OnionStep | None) -> None:
        self._failure, self._failed_step = error, step
        if step is not OnionStep.INTRODUCTION:
            self._other_failure_count += 1

    def _prepare(self) -> RendezvousPoint:
        """Returns a rendezvous point that no attempt uses and no service knows. It may not be ready yet."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.has_failed:
            return spare
        rendezvous = RendezvousPoint()
        self._nursery.start_soon(rendezvous.make, self._stems, self._isolation)
        return rendezvous

    def _note_acknowledged(self) -> None:
        self._was_acknowledged = True

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Put off the meeting's deadline by the time that a proof of work takes: the block."""
        if not self._working_count:
            self._work_began = trio.current_time()
            self._left, self._scope.deadline = self._scope.deadline - self._work_began, inf
        self._working_count += 1
        try:
            yield
        finally:
            self._working_count -= 1
            if not self._working_count:
                self.worked += trio.current_time() - self._work_began
                self._scope.deadline = trio.current_time() + self._left

    def _explain(self) -> TorkitError:
        """Returns the error that says which step failed, when no attempt has joined."""
        if isinstance(self._failure, NotPossible):
            return self._failure
        if self._descriptor is None:
            return TimedOut("the onion service's descriptor was not fetched in time")
        why = "" if self._failure is None else f": {self._failure}"
        if self._was_acknowledged or self._failed_step is OnionStep.RENDEZVOUS:
            return OnionServiceError.at(OnionStep.RENDEZVOUS, why)
        if self._failure is not None and self._failed_step is None:
            return self._failure
        if self._points.have_timed_out(self._descriptor.points):
            return OnionServiceError.at(OnionStep.INTRODUCTION_TIMEOUT, why)
        return OnionServiceError.at(OnionStep.INTRODUCTION, why)
