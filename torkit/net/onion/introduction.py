"""One attempt to be introduced to an onion service, through one of its introduction points."""

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf
from typing import NamedTuple

import trio

from torkit._fast.cells import RelayCommand
from torkit._fast.hs_ntor import HsNtorClient
from torkit._fast.keys import wipe
from torkit._fast.onion import LayerKind
from torkit.errors import Closed, OnionStep, PeerError, TimedOut, TorkitError
from torkit.hs.descriptor import Descriptor, IntroductionPoint
from torkit.hs.introduction import PointFailure, Points, relay_of
from torkit.hs.keys import KEY_LEN
from torkit.hs.messages import (
    AckStatus,
    IntroduceExtension,
    decode_introduce_ack,
    decode_rendezvous2,
    introduce_header,
    introduce_plaintext,
)
from torkit.hs.pow import Proof, encode_proof
from torkit.net.circuit.circuit import Circuit, Reply
from torkit.net.circuits.purpose import Introduction as ToPoint
from torkit.net.contact import or_addresses
from torkit.net.onion.rendezvous import RendezvousPoint
from torkit.net.onion.stems import Stems
from torkit.net.onion.work import Worker
from torkit.proto.flow import PathKind
from torkit.proto.messages import encode_link_specifiers
from torkit.proto.setup_padding import Machine, SetupPadding


class Means(NamedTuple):
    """What every attempt of one meeting uses."""

    stems: Stems
    points: Points
    worker: Worker
    isolation: Hashable
    testing: bool
    nursery: trio.Nursery
    working: Callable[[], AbstractContextManager[None]]  # while a proof of work is made
    note_acknowledged: Callable[[], None]


class Introduction:
    """One attempt: `run` it once. Its circuit, cookie and keys serve no other attempt."""

    def __init__(
        self, means: Means, descriptor: Descriptor, point: IntroductionPoint, unanswered_count: int
    ) -> None:
        """`unanswered_count` introductions of this meeting were acknowledged, and not answered."""
        self.is_cookie_spent = False  # the service may know the cookie
        self.was_acknowledged = False  # the point says that it has told the service
        self.step: OnionStep | None = None  # of this attempt; None while our own circuit is built
        self._means = means
        self._descriptor = descriptor
        self._point = point
        self._unanswered_count = unanswered_count
        self._refusal: TorkitError | None = None
        self._acknowledgement: Reply | None = None
        self._is_over = False

    async def run(self, rendezvous: RendezvousPoint, scope: trio.CancelScope) -> Circuit:
        """Returns the rendezvous circuit, joined. Raises what ended the attempt, and notes a point's fault.

        The deadline of `scope` is put off by the time that a proof of work takes.
        """
        means = self._means
        introduction: Circuit | None = None
        handshake: HsNtorClient | None = None
        try:
            with self._blaming():
                relay = relay_of(self._point, allow_internal=means.testing)
            introduction = await means.stems.extend_ready(relay)
            if introduction is None:
                introduction = await means.stems.build(ToPoint(relay), means.isolation)
                self.step = OnionStep.INTRODUCTION
                with self._blaming():
                    await means.stems.extend(introduction, relay)
            with self._blaming():
                handshake = self._begin_handshake()
            self.step = OnionStep.RENDEZVOUS
            circuit = await rendezvous.wait()
            proof = await self._prove(scope)
            answer = await self._introduce(introduction, circuit, rendezvous.cookie, handshake, proof)
            if answer is None:
                raise self._refusal or TimedOut("the introduction point was given up")
            self._join(circuit, handshake, answer)
            return rendezvous.take()
        finally:
            self._is_over = True
            if introduction is not None:
                is_due = self._acknowledgement is not None and self._acknowledgement.body is None
                means.stems.let_go(introduction, RelayCommand.INTRODUCE_ACK if is_due else None)
            if handshake is not None:
                handshake.wipe()

    def _begin_handshake(self) -> HsNtorClient:
        private_key = os.urandom(KEY_LEN)
        try:
            return HsNtorClient(
                auth_key=self._point.auth_key,
                enc_key=self._point.enc_key,
                subcredential=self._descriptor.subcredential,
                private_key=private_key,
            )
        finally:
            wipe(private_key)

    async def _prove(self, scope: trio.CancelScope) -> Proof | None:
        """Returns a proof of the work that the service asks for, up to the user's limit; None for no work."""
        failures = self._unanswered_count + self._means.points.unanswered_count(self._point)
        search = self._means.worker.search_for(self._descriptor, failures)
        if search is None:
            return None
        with self._means.working(), suspended(scope):
            return await self._means.worker.run(search)

    async def _introduce(
        self,
        introduction: Circuit,
        rendezvous: Circuit,
        cookie: bytes,
        handshake: HsNtorClient,
        proof: Proof | None,
    ) -> bytes | None:
        """Have the point tell the service where we wait. Returns RENDEZVOUS2's body, None where it refuses.

        RENDEZVOUS2 may overtake the acknowledgement, which then does not matter any more.
        """
        header = introduce_header(self._point.auth_key)
        plaintext = introduce_plaintext(
            cookie=cookie,
            onion_key=rendezvous.path[-1].ntor_onion_key,
            link_specifiers=_link_specifiers(rendezvous),
            extensions=_extensions(self._sendme_inc(rendezvous), proof),
            header_len=len(header),
        )
        body = header + handshake.seal(header, plaintext)
        with self._blaming():
            introduction.tell(RelayCommand.INTRODUCE1, body)
            introduction.pad(SetupPadding(Machine.INTRODUCTION))
            self.is_cookie_spent = True
            self.step = OnionStep.INTRODUCTION
            self._acknowledgement = acknowledgement = introduction.expect(RelayCommand.INTRODUCE_ACK)
        try:
            answer = rendezvous.expect(RelayCommand.RENDEZVOUS2)
            with trio.CancelScope() as waiting:
                self._means.nursery.start_soon(self._hear, acknowledgement, waiting)
                return await answer.wait()
        except TorkitError:
            self.step = OnionStep.RENDEZVOUS
            raise
        return None

    async def _hear(self, acknowledgement: Reply, waiting: trio.CancelScope) -> None:
        """Wait for INTRODUCE_ACK; a refusal ends the wait for the service."""
        try:
            with self._blaming():
                status = decode_introduce_ack(await acknowledgement.wait())
                if status is not AckStatus.SUCCESS:
                    self.is_cookie_spent = False  # the point says that it has told nobody
                    raise PeerError(f"the introduction point refused: {status.name}")
            self.was_acknowledged = True
            self._means.note_acknowledged()
        except TorkitError as error:
            self._refusal = error
            waiting.cancel()

    def _join(self, circuit: Circuit, handshake: HsNtorClient, answer: bytes) -> None:
        self.step = OnionStep.RENDEZVOUS
        try:
            keys = handshake.finish(decode_rendezvous2(answer))
        except TorkitError as error:
            circuit.fail(error)
            raise
        path = PathKind.EXIT if self._descriptor.is_single_onion else PathKind.ONION
        layer = keys.layer(LayerKind.TOR1_ONION)
        keys.wipe()
        circuit.join(layer, self._sendme_inc(circuit), path)

    def _sendme_inc(self, rendezvous: Circuit) -> int | None:
        """Returns the cells of a SENDME where service and network do congestion control, else None."""
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
                self.step = OnionStep.INTRODUCTION
                self._means.points.note(self._point, failure, trio.current_time())
            raise


@contextmanager
def suspended(scope: trio.CancelScope) -> Iterator[None]:
    """Put off the deadline of `scope` by the time that the block takes."""
    left, scope.deadline = scope.deadline - trio.current_time(), inf
    try:
        yield
    finally:
        scope.deadline = trio.current_time() + left


def _extensions(sendme_inc: int | None, proof: Proof | None) -> dict[int, bytes]:
    extensions: dict[int, bytes] = {}
    if sendme_inc is not None:
        extensions[IntroduceExtension.CC_REQUEST] = b""
    if proof is not None:
        extensions[IntroduceExtension.PROOF_OF_WORK] = encode_proof(proof)
    return extensions


def _link_specifiers(circuit: Circuit) -> bytes:
    """Returns the addresses and identities of the last relay of `circuit`."""
    relay = circuit.path[-1]
    return encode_link_specifiers(
        or_addresses(relay), rsa_identity=relay.identity, ed25519_identity=relay.ed25519_identity
    )
