"""Meets one onion service: a circuit of ours and one of its own are joined at a relay that we choose.

    we, to the rendezvous point       ESTABLISH_RENDEZVOUS ->    <- RENDEZVOUS_ESTABLISHED
    we, to an introduction point      INTRODUCE1 ->              <- INTRODUCE_ACK
    the rendezvous point              <- RENDEZVOUS2, from the service

Cookie and keys are made before anything is sent, and a message may come only once we have sent what it
answers: whatever else comes ends its circuit.

An attempt has its own introduction circuit and keys. One that fails is followed by another at once, through
another point. One that is silent is left to go on, and after PATIENCE another begins beside it, at another
rendezvous point: an acknowledgement says only that the point still knows the service, which may be gone. The
first that joins ends all others. (C tor waits three build timeouts, 181 s while none is learnt.)
"""

import logging
import os
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from math import inf
from random import Random

import trio

from torkit._fast.cells import RelayCommand
from torkit._fast.keys import X25519PrivateKey, wipe
from torkit._fast.onion import TOR1_ONION_KEYS_LEN
from torkit.errors import (
    Closed,
    NotPossible,
    OnionServiceError,
    OnionStep,
    PeerError,
    TimedOut,
    TorkitError,
)
from torkit.hs.descriptor import Descriptor, IntroductionPoint
from torkit.hs.handshake import ServiceHandshake
from torkit.hs.introduction import PointFailure, Points, relay_of
from torkit.hs.keys import KEY_LEN
from torkit.hs.messages import (
    COOKIE_LEN,
    AckStatus,
    IntroduceExtension,
    decode_introduce_ack,
    decode_rendezvous2,
    introduce_header,
    introduce_plaintext,
)
from torkit.hs.pow import NONCE_LEN, Proof, Search, choose_effort, encode_proof, is_expired, max_effort
from torkit.net.circuit.circuit import Circuit, Reply
from torkit.net.contact import or_addresses
from torkit.net.onion.descriptors import Descriptors
from torkit.net.onion.stems import Stems
from torkit.net.shortage import run_in_thread
from torkit.proto.flow import PathKind
from torkit.proto.messages import encode_link_specifiers

# Implementation limits: seconds until another attempt begins beside one that is silent, and until an attempt
# has failed; attempts for one meeting.
PATIENCE = 15.0
ATTEMPT_TIMEOUT = 60.0
MAX_ATTEMPTS = 12

logger = logging.getLogger(__name__)


class Meeting:
    """Made for one service, by its identity key, and one isolation; `run` it once."""

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
        workers: trio.CapacityLimiter,
        testing: bool,
    ) -> None:
        """`workers` bounds how many proofs of work are made at once."""
        self.isolation = isolation
        self.stems = stems
        self.points = points
        self.testing = testing
        self.was_acknowledged = False  # by any point
        self.working = 0  # attempts that make a proof of work
        self.workers = workers
        self.nursery: trio.Nursery  # while it runs
        self._identity = identity
        self._client_key = client_key
        self._descriptors = descriptors
        self._rng = rng
        self._descriptor: Descriptor | None = None
        self._has_fetched_anew = False
        self._spare: _Rendezvous | None = None  # for the next attempt
        self._joined: Circuit | None = None
        self._failure: TorkitError | None = None  # the last attempt's
        self._was_points_fault = True
        self._count = 0  # attempts
        self._under_way: set[bytes] = set()  # auth-keys of points that are being tried
        self._has_changed = trio.Event()

    async def run(self, give_up_at: float) -> Circuit:
        """A circuit that has joined with the service's; the caller closes it.

        Raises OnionServiceError, with the step that failed, NoDirectory, NoPath, NoGuard, or what made every
        circuit fail.
        """
        error: TorkitError | None = None
        try:
            async with trio.open_nursery() as self.nursery:
                try:
                    with trio.move_on_at(give_up_at):
                        await self._try_until_joined()
                except TorkitError as raised:
                    error = raised
                self.nursery.cancel_scope.cancel()
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
        """Begin attempts; whichever joins cancels this. Returns when there is nothing left to try."""
        self._spare = self.prepare()  # while the descriptor is fetched
        self._descriptor = await self._descriptors.get(self._identity, self._client_key)
        work = self._descriptor.proof_of_work
        if work is not None and is_expired(work, time.time()):
            await self._fetch_anew()
        while True:
            point = await self._choose_point()
            if point is not None:
                self._count += 1
                self._under_way.add(point.auth_key)
                self.nursery.start_soon(self._attempt, self._descriptor, point)
            elif not self._under_way:
                return
            self._has_changed = trio.Event()
            while True:
                with trio.move_on_after(PATIENCE) as patience:
                    await self._has_changed.wait()
                if not (patience.cancelled_caught and self.working):
                    break
            if patience.cancelled_caught and self.was_acknowledged:
                await self._fetch_anew()  # the service may have begun anew, elsewhere

    async def _choose_point(self) -> IntroductionPoint | None:
        """The next one at random; None where none is left. Those of a newer descriptor count as well."""
        if self._count == MAX_ATTEMPTS:
            return None
        usable = self._usable_points()
        if not usable:
            await self._fetch_anew()
            usable = self._usable_points()
        return self._rng.choice(usable) if usable else None

    def _usable_points(self) -> list[IntroductionPoint]:
        assert self._descriptor is not None
        points = self.points.usable(self._descriptor.points, trio.current_time())
        return [point for point in points if point.auth_key not in self._under_way]

    async def _fetch_anew(self) -> None:
        """Ask another directory for a newer descriptor, once."""
        if self._has_fetched_anew:
            return
        self._has_fetched_anew = True
        try:
            self._descriptor = await self._descriptors.get(self._identity, self._client_key, anew=True)
        except TorkitError as error:
            logger.info("no newer descriptor: %s", error)

    async def _attempt(self, descriptor: Descriptor, point: IntroductionPoint) -> None:
        attempt = _Attempt(self, descriptor, point)
        try:
            with trio.fail_after(ATTEMPT_TIMEOUT) as scope:
                circuit = await attempt.run(scope)
        except trio.TooSlowError:
            self.points.note(point, PointFailure.TIMED_OUT, trio.current_time())
            self._failure = TimedOut(f"no answer within {ATTEMPT_TIMEOUT:g} s")
        except TorkitError as error:
            logger.info("an introduction to the onion service failed: %s", error)
            self._failure = error
            self._was_points_fault = attempt.is_points_fault
            if isinstance(error, NotPossible):
                self._count = MAX_ATTEMPTS  # nothing fits the next one either
        else:
            if self._joined is None:
                self._joined = circuit
                self.nursery.cancel_scope.cancel()
            else:
                circuit.close()
        finally:
            self._under_way.discard(point.auth_key)
            self._has_changed.set()

    # --- rendezvous -------------------------------------------------------------------------------

    def prepare(self) -> "_Rendezvous":
        """One that nobody waits at: it may still be being made."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.has_failed:
            return spare
        rendezvous = _Rendezvous()
        self.nursery.start_soon(rendezvous.make, self.stems, self.isolation)
        return rendezvous

    def give_back(self, rendezvous: "_Rendezvous") -> None:
        """The service has not heard of it: it serves the next attempt."""
        if self._spare is None:
            self._spare = rendezvous
        else:
            rendezvous.close()

    def _explain(self) -> TorkitError:
        """Which step failed, where no attempt has joined."""
        if isinstance(self._failure, NotPossible):
            return self._failure
        if self._descriptor is None:
            return TimedOut("the onion service's descriptor was not fetched in time")
        why = "" if self._failure is None else f": {self._failure}"
        if self.was_acknowledged or not self._was_points_fault:
            return OnionServiceError.at(OnionStep.RENDEZVOUS, why)
        if self.points.have_timed_out(self._descriptor.points):
            return OnionServiceError.at(OnionStep.INTRODUCTION_TIMEOUT, why)
        return OnionServiceError.at(OnionStep.INTRODUCTION, why)


class _Rendezvous:
    """Where we wait for the service, under a cookie that nobody else has had."""

    def __init__(self) -> None:
        self.cookie = os.urandom(COOKIE_LEN)
        self._circuit: Circuit | None = None
        self._error: TorkitError | None = None
        self._is_over = trio.Event()
        self._is_closed = False

    async def make(self, stems: Stems, isolation: Hashable) -> None:
        """Build the circuit, and have its last relay wait for the cookie."""
        circuit: Circuit | None = None
        try:
            circuit = await stems.to_rendezvous_point(isolation)
            with trio.fail_after(stems.timeouts.use):
                await circuit.ask(
                    RelayCommand.ESTABLISH_RENDEZVOUS, self.cookie, RelayCommand.RENDEZVOUS_ESTABLISHED
                )
            if not self._is_closed:
                circuit, self._circuit = None, circuit
        except TorkitError as error:
            self._error = error
        except trio.TooSlowError:
            self._error = TimedOut("the rendezvous point did not answer in time")
        finally:
            if circuit is not None:
                circuit.close()
            self._is_over.set()

    @property
    def has_failed(self) -> bool:
        return self._error is not None or (self._circuit is not None and self._circuit.error is not None)

    async def wait(self) -> Circuit:
        """Its circuit. Raises what made it fail."""
        await self._is_over.wait()
        if self._circuit is None:
            raise self._error or TimedOut("the rendezvous point was given up")
        return self._circuit

    def close(self) -> None:
        self._is_closed = True
        if self._circuit is not None:
            self._circuit.close()


class _Attempt:
    """One introduction. What it holds is for it alone; the service may have spent its cookie."""

    def __init__(self, meeting: Meeting, descriptor: Descriptor, point: IntroductionPoint) -> None:
        self._meeting = meeting
        self._descriptor = descriptor
        self._point = point
        self._proof: Proof | None = None
        self._refusal: TorkitError | None = None
        self._was_passed_on = True  # as far as we know
        self.is_points_fault = False
        self._is_over = False

    async def run(self, scope: trio.CancelScope) -> Circuit:
        """The rendezvous circuit, joined. Raises what ended the attempt; a fault of the point is noted.

        What a proof of work takes does not count against `scope`.
        """
        meeting, point = self._meeting, self._point
        with self._blaming():
            relay = relay_of(point, allow_internal=meeting.testing)
        rendezvous = meeting.prepare()
        is_ours = True
        introduction: Circuit | None = None
        handshake: ServiceHandshake | None = None
        try:
            with self._blaming():
                introduction = await meeting.stems.to_introduction_point(relay, meeting.isolation)
                handshake = self._begin_handshake()
            circuit = await rendezvous.wait()
            await self._work(scope)
            answer = await self._introduce(introduction, circuit, rendezvous.cookie, handshake)
            if answer is None:
                if not self._was_passed_on:
                    is_ours = False
                    meeting.give_back(rendezvous)
                raise self._refusal or TimedOut("the introduction point was given up")
            self._join(circuit, handshake, answer)
            is_ours = False
            return circuit
        finally:
            self._is_over = True
            if introduction is not None:
                introduction.close()
            if handshake is not None:
                handshake.wipe()
            if is_ours:
                rendezvous.close()

    def _begin_handshake(self) -> ServiceHandshake:
        private_key = os.urandom(KEY_LEN)
        try:
            return ServiceHandshake(
                auth_key=self._point.auth_key,
                enc_key=self._point.enc_key,
                subcredential=self._descriptor.subcredential,
                private_key=private_key,
            )
        finally:
            wipe(private_key)

    async def _introduce(
        self, introduction: Circuit, rendezvous: Circuit, cookie: bytes, handshake: ServiceHandshake
    ) -> bytes | None:
        """Ask the point to pass on where we wait; RENDEZVOUS2, or None where it refuses.

        RENDEZVOUS2 may overtake the acknowledgement, which then means nothing any more.
        """
        header = introduce_header(self._point.auth_key)
        sendme_inc = self._sendme_inc(rendezvous)
        plaintext = introduce_plaintext(
            cookie=cookie,
            onion_key=rendezvous.path[-1].ntor_onion_key,
            link_specifiers=_link_specifiers(rendezvous),
            extensions=self._extensions(sendme_inc),
            header_len=len(header),
        )
        body = header + handshake.seal(header, plaintext)
        with self._blaming():
            introduction.tell(RelayCommand.INTRODUCE1, body)
            acknowledgement = introduction.expect(RelayCommand.INTRODUCE_ACK)
        answer = rendezvous.expect(RelayCommand.RENDEZVOUS2)
        with trio.CancelScope() as waiting:
            self._meeting.nursery.start_soon(self._hear, acknowledgement, waiting)
            return await answer.wait()
        return None

    def _extensions(self, sendme_inc: int | None) -> dict[int, bytes]:
        extensions: dict[int, bytes] = {}
        if sendme_inc is not None:
            extensions[IntroduceExtension.CC_REQUEST] = b""
        if self._proof is not None:
            extensions[IntroduceExtension.PROOF_OF_WORK] = encode_proof(self._proof)
        return extensions

    async def _work(self, scope: trio.CancelScope) -> None:
        """Prove as much work as the service asks for, as far as we are ready to."""
        params = self._descriptor.proof_of_work
        if params is None or (effort := choose_effort(params.effort, failures=0, maximum=max_effort())) == 0:
            return
        began = trio.current_time()
        nonce = os.urandom(NONCE_LEN)
        search = Search(params, blinded=self._descriptor.blinded, effort=effort, nonce=nonce)
        self._meeting.working += 1
        how = "" if search.is_compiled else ", by an interpreter: nothing can be compiled here"
        logger.info("the onion service asks for a proof of work of effort %d%s", effort, how)
        try:
            with suspended(scope):
                self._proof = await run_in_thread(
                    search.run, abandon_on_cancel=True, limiter=self._meeting.workers
                )
        finally:
            search.cancel()
            self._meeting.working -= 1
        logger.info("that took %.1f s", trio.current_time() - began)

    async def _hear(self, acknowledgement: Reply, waiting: trio.CancelScope) -> None:
        """Wait for INTRODUCE_ACK; a refusal ends the wait for the service."""
        try:
            with self._blaming():
                status = decode_introduce_ack(await acknowledgement.wait())
                if status is not AckStatus.SUCCESS:
                    self._was_passed_on = False
                    raise PeerError(f"the introduction point refused: {status.name}")
            self._meeting.was_acknowledged = True
        except TorkitError as error:
            self._refusal = error
            waiting.cancel()

    def _join(self, circuit: Circuit, handshake: ServiceHandshake, answer: bytes) -> None:
        try:
            keys = handshake.finish(decode_rendezvous2(answer))
        except TorkitError as error:
            circuit.fail(error)
            raise
        path = PathKind.EXIT if self._descriptor.is_single_onion else PathKind.ONION
        circuit.join(keys.derive(TOR1_ONION_KEYS_LEN), self._sendme_inc(circuit), path)
        keys.wipe()

    def _sendme_inc(self, rendezvous: Circuit) -> int | None:
        """In cells, for congestion control where the service and the network do it; else None."""
        return self._descriptor.sendme_inc if rendezvous.can_congestion_control else None

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        """Remember a failure as the point's, unless the attempt is over anyway."""
        try:
            yield
        except TorkitError as error:
            failure = PointFailure.UNREACHABLE
            if isinstance(error, TimedOut):
                failure = PointFailure.TIMED_OUT
            elif isinstance(error, PeerError):
                failure = PointFailure.REFUSED
            is_its_fault = isinstance(error, (PeerError, Closed, TimedOut))
            if is_its_fault and not self._is_over:
                self.is_points_fault = True
                self._meeting.points.note(self._point, failure, trio.current_time())
            raise


@contextmanager
def suspended(scope: trio.CancelScope) -> Iterator[None]:
    """Have the deadline of `scope` wait for the block."""
    left, scope.deadline = scope.deadline - trio.current_time(), inf
    try:
        yield
    finally:
        scope.deadline = trio.current_time() + left


def _link_specifiers(circuit: Circuit) -> bytes:
    """Where the last relay of `circuit` is, and who it is."""
    relay = circuit.path[-1]
    return encode_link_specifiers(
        or_addresses(relay), rsa_identity=relay.identity, ed25519_identity=relay.ed25519_identity
    )
