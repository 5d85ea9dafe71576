"""One onion service that we run: its editions, and what becomes of whoever is introduced to it."""

import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

import trio

from torkit._fast.hs_ntor import HsNtorRequest
from torkit.directory.directory import Directory
from torkit.errors import CircuitError, EndReason, TorkitError
from torkit.hs.address import encode_address
from torkit.hs.defence import Puzzle, Waiting
from torkit.hs.descriptor import ProofOfWork
from torkit.hs.keys import SecretKey
from torkit.hs.replay import ReplayCache
from torkit.hs.service_messages import Invitation, decode_introduce2, decode_invitation
from torkit.net.circuit.stream import Stream
from torkit.net.circuit.tunnel import Tunnel
from torkit.net.hosting.edition import Edition
from torkit.net.hosting.means import Means, Wishes
from torkit.net.hosting.meeting import meet
from torkit.net.hosting.point import Launches, Point
from torkit.net.onion.descriptors import calendar_of
from torkit.proto.messages import decode_begin_service

# Implementation limits: introductions of one point that were not read yet; seconds after which whoever sent
# one is met by nobody; clients met at once, and of these, who have worked less than was asked for (as C tor);
# clients that have joined; cookies remembered, so that none is met twice.
MAX_UNREAD = 256
MAX_WAIT = 30.0
MAX_MEETINGS = 64
MAX_CHEAP_MEETINGS = 16
MAX_JOINED = 4096
MAX_COOKIES = 65_536

REPORT_INTERVAL = 60.0  # seconds between warnings of introductions that come to nothing
PUZZLE_INTERVAL = 10.0  # seconds between looks whether another seed or effort is due

logger = logging.getLogger(__name__)


class _Introduction(NamedTuple):
    """What a point has passed on; `came_at` is on trio's clock."""

    came_at: float
    edition: Edition
    body: bytes


class _Guest(NamedTuple):
    """A client that wants to be met."""

    request: HsNtorRequest
    invitation: Invitation


class OnionService:
    """`run` it in a task. `address` is known at once; clients find it once it `is_published`."""

    def __init__(
        self, means: Means, key: SecretKey, wishes: Wishes, take: Callable[[Stream, int], None]
    ) -> None:
        """`take` is called at once for each stream that a client begins, with its port. It answers by
        `Stream.accept` or `Stream.close`, then or later."""
        self.address = encode_address(key.public)
        self.is_published = trio.Event()  # a directory that clients ask now has a descriptor
        self._means = means
        self._key = key
        self._wishes = wishes
        self._take = take
        self._editions: list[Edition] = []
        self._launches = Launches()
        self._has_directory = trio.Event()  # a new one
        self._puzzle = Puzzle(time.time(), os.urandom, means.rng) if wishes.proof_of_work else None
        self._unread: OrderedDict[Point, deque[_Introduction]] = OrderedDict()  # whose turn it is, first
        self._has_unread = trio.Event()
        self._waiting: Waiting[_Guest] = Waiting()
        self._meeting_count = self._cheap_count = 0
        self._cookies = ReplayCache(MAX_COOKIES)
        self._joined: set[Tunnel] = set()
        self._refused: dict[str, int] = {}  # introductions since the last report, by why
        self._reported_at = -REPORT_INTERVAL

    def __repr__(self) -> str:
        state = "published" if self.is_published.is_set() else "not published yet"
        return f"<OnionService {self.address}, {state}, {len(self._joined)} clients>"

    @property
    def client_count(self) -> int:
        """Circuits of clients that have joined."""
        return len(self._joined)

    async def run(self) -> None:
        """Never returns; what is open is closed when it is cancelled."""
        self._means.current.add_reader(self._note_directory)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, nursery)
                if self._puzzle is not None:
                    nursery.start_soon(self._keep_puzzle, self._puzzle)
                await self._keep_editions(nursery)
        finally:
            self._means.current.remove_reader(self._note_directory)
            for circuit in list(self._joined):
                circuit.close("the onion service ends")

    def _note_directory(self, _: Directory) -> None:
        self._has_directory.set()
        for edition in self._editions:
            edition.note_change()

    async def _keep_editions(self, nursery: trio.Nursery) -> None:
        """One for each of the two periods that clients may look in."""
        while True:
            stands = calendar_of(self._means.current).stands
            for edition in list(self._editions):
                if edition.stand not in stands:
                    edition.scope.cancel()
                    self._editions.remove(edition)
            have = [edition.stand for edition in self._editions]
            for stand in stands:
                if stand not in have:
                    edition = Edition(
                        self._means,
                        self._wishes,
                        self._key,
                        stand,
                        self._launches,
                        asked=self._asked,
                        hear=self._hear,
                        published=self._note_published,
                    )
                    self._editions.append(edition)
                    nursery.start_soon(edition.keep)
            await self._has_directory.wait()
            self._has_directory = trio.Event()

    def _asked(self) -> ProofOfWork | None:
        return None if self._puzzle is None else self._puzzle.asked

    def _note_published(self, edition: Edition) -> None:
        known = self._means.current.known is not None
        if known and edition.stand.period == calendar_of(self._means.current).period:
            self.is_published.set()

    # --- introductions ----------------------------------------------------------------------------

    def _hear(self, edition: Edition, point: Point, body: bytes) -> None:
        unread = self._unread.setdefault(point, deque())
        if len(unread) == MAX_UNREAD:
            self._note_refused("too many wait")
            return
        unread.append(_Introduction(trio.current_time(), edition, body))
        self._has_unread.set()

    async def _read(self, nursery: trio.Nursery) -> None:
        """Open introductions one by one, each point's in its turn; have others run between two of them."""
        while True:
            if self._unread:
                await trio.lowlevel.checkpoint()
            else:
                self._has_unread = trio.Event()
                await self._has_unread.wait()
            point, unread = self._unread.popitem(last=False)
            came_at, edition, body = unread.popleft()
            if unread:
                self._unread[point] = unread  # behind all others
            try:
                effort, guest = self._open(edition, point, body)
            except CircuitError as error:
                self._note_refused(str(error))
                continue
            for dropped in self._waiting.add(effort, came_at, guest):
                self._note_dropped(dropped, "too many wait")
            self._meet_next(nursery)

    def _open(self, edition: Edition, point: Point, body: bytes) -> tuple[int, "_Guest"]:
        """Who asks to be met, and what work that was worth. Raises CircuitError for what is nobody's, or was
        asked before."""
        message = decode_introduce2(body, point.auth_key)
        request = point.handshake.open(*message)
        if not point.replays.is_new(message.mac):
            raise CircuitError("INTRODUCE2 was sent before: a replay")
        invitation = decode_invitation(request.plaintext)
        if invitation.wants_congestion_control and self._means.sendme_inc is None:
            raise CircuitError("INTRODUCE2 asks for congestion control, which we do not offer")
        effort = 0
        if invitation.proof is not None:
            if self._puzzle is None:
                raise CircuitError("INTRODUCE2 has a proof of work, which we did not ask for")
            effort = self._puzzle.check(invitation.proof, edition.blinded.public)
        if not self._cookies.is_new(invitation.cookie):
            raise CircuitError("INTRODUCE2 has a cookie that another had: a replay")
        return effort, _Guest(request, invitation)

    def _meet_next(self, nursery: trio.Nursery) -> None:
        """Begin to meet those who wait, as many as may be met at once, whoever worked most first."""
        while len(self._waiting) and self._may_meet():
            effort, came_at, guest = self._waiting.take()
            if trio.current_time() - came_at > MAX_WAIT:
                self._note_dropped(effort, "came too late")
            elif len(self._joined) >= MAX_JOINED:
                self._note_dropped(effort, "too many clients")
            else:
                if self._puzzle is not None:
                    next_effort = self._waiting.next_effort
                    self._puzzle.note_met(effort, others_wait=len(self._waiting) > 0, next_effort=next_effort)
                is_cheap = self._is_cheap(effort)
                self._meeting_count += 1
                self._cheap_count += is_cheap
                nursery.start_soon(self._meet, guest, is_cheap, nursery)

    def _may_meet(self) -> bool:
        if self._is_cheap(self._waiting.next_effort) and self._cheap_count >= MAX_CHEAP_MEETINGS:
            return False
        return self._meeting_count < MAX_MEETINGS

    def _is_cheap(self, effort: int) -> bool:
        """Returns whether somebody has worked less than is asked for."""
        return self._puzzle is not None and effort < self._puzzle.suggested

    async def _meet(self, guest: "_Guest", is_cheap: bool, nursery: trio.Nursery) -> None:
        try:
            circuit = await meet(self._means, guest.request, guest.invitation, self._begin)
        except TorkitError as error:
            self._note_refused(str(error))
        else:
            self._joined.add(circuit)
            circuit.on_end = self._joined.discard
            if circuit.error is not None:
                self._joined.discard(circuit)
        finally:
            self._meeting_count -= 1
            self._cheap_count -= is_cheap
        self._meet_next(nursery)  # not where the service ends

    async def _keep_puzzle(self, puzzle: Puzzle) -> None:
        """Have the effort follow the load, and seeds change."""
        while True:
            await trio.sleep(PUZZLE_INTERVAL)
            if puzzle.update(time.time(), waiting=len(self._waiting)):
                logger.info("clients are asked for a proof of work of effort %d", puzzle.suggested)
                for edition in self._editions:
                    edition.note_change()

    def _note_dropped(self, effort: int, why: str) -> None:
        if self._puzzle is not None:
            self._puzzle.note_dropped(effort)
        self._note_refused(why)

    def _note_refused(self, why: str) -> None:
        """Tell of introductions that come to nothing, now and then: anybody may send them."""
        if why in self._refused or len(self._refused) < 16:
            self._refused[why] = self._refused.get(why, 0) + 1
        logger.debug("an introduction comes to nothing: %s", why)
        now = trio.current_time()
        if now - self._reported_at >= REPORT_INTERVAL:
            self._reported_at = now
            count, refused = sum(self._refused.values()), self._refused
            self._refused = {}
            most = max(refused, key=lambda one: refused[one])
            what = "an introduction" if count == 1 else f"{count} introductions"
            logger.warning("%s came to nothing: %s", what, most)

    # --- streams ----------------------------------------------------------------------------------

    def _begin(self, stream: Stream, body: bytes) -> None:
        """A client begins a stream."""
        circuit = stream.circuit
        try:
            port = decode_begin_service(body)
        except CircuitError as error:
            circuit.fail(error)
            return
        if circuit.stream_count > self._wishes.max_streams:
            logger.info("a client has more than %d streams open", self._wishes.max_streams)
            stream.close(EndReason.RESOURCELIMIT)
            return
        self._take(stream, port)
