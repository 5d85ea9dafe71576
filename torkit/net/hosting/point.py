"""One introduction point of a service of ours: a circuit on which clients' requests come, kept."""

import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf

import trio

from torkit._fast.cells import RelayCommand
from torkit._fast.hs_ntor import HsNtorPoint
from torkit._fast.keys import wipe
from torkit.directory.directory import Relay, supports
from torkit.errors import CircuitError, TimedOut, TorkitError
from torkit.hs.descriptor import IntroductionPoint
from torkit.hs.keys import KEY_LEN, SecretKey
from torkit.hs.replay import ReplayCache
from torkit.hs.service_messages import DosLimits, decode_intro_established, encode_establish_intro
from torkit.net.circuit.circuit import Circuit, Reply
from torkit.net.circuits.purpose import ServiceIntroduction
from torkit.net.contact import or_addresses
from torkit.net.onion.stems import Stems
from torkit.proto.messages import LinkSpecifierType

# As C tor: how often a lost circuit to the same point is tried again.
RETRIES = 3

# Implementation limits, seconds: the rests before each of these; how long a circuit has to stand until it is
# tried as often again, lest a relay that takes us and drops us at once has us build circuits for ever.
RESTS = (0.0, 1.0, 5.0)
STEADY = 300.0

# As C tor: circuits to introduction points that one service has made within so many seconds.
MAX_LAUNCHES = 28
LAUNCH_PERIOD = 300.0

logger = logging.getLogger(__name__)


class Launches:
    """Bounds the circuits to introduction points of one service.

    Else whoever can end them, a guard or a point, could have a service build as many as it takes to find out
    where it is. Circuits that could not be built do not count.
    """

    def __init__(self) -> None:
        self._made: deque[float] = deque()  # when, the earliest first
        self._told_until = -inf

    async def take(self) -> float:
        """Wait until a circuit may be built. Returns what `give_back` takes."""
        while True:
            now = trio.current_time()
            while self._made and now >= self._made[0] + LAUNCH_PERIOD:
                self._made.popleft()
            if len(self._made) < MAX_LAUNCHES:
                self._made.append(now)
                return now
            until = self._made[0] + LAUNCH_PERIOD
            if until > self._told_until:
                self._told_until = until
                logger.warning("circuits to introduction points end too often: none for %.0f s", until - now)
            await trio.sleep_until(until)

    def give_back(self, launch: float) -> None:
        """Count a circuit no more, since it was not built."""
        with suppress(ValueError):  # it is no more counted anyway
            self._made.remove(launch)


class Point:
    """Its keys are made with it, and serve for as long as it does. `keep` it in a task."""

    def __init__(
        self,
        relay: Relay,
        *,
        subcredential: bytes,
        max_introductions: int,
        expires_at: float,
        hear: Callable[["Point", bytes], None],
    ) -> None:
        """`hear` is called at once with each INTRODUCE2; `expires_at` is on trio's clock."""
        self.relay = relay
        self.is_established = False
        self.was_established = False
        self.expires_at = expires_at
        self.replays = ReplayCache(max_introductions)
        self._max_introductions = max_introductions
        self.introduction_count = 0
        self.wears_out = trio.Event()  # it has passed on as much as one point should
        seed, private_key = os.urandom(KEY_LEN), os.urandom(KEY_LEN)
        self._auth_key = SecretKey.from_seed(seed)
        self.handshake = HsNtorPoint(
            auth_key=self.auth_key, private_key=private_key, subcredential=subcredential
        )
        wipe(seed)
        wipe(private_key)
        self._hear = hear
        self._circuit: Circuit | None = None

    @property
    def auth_key(self) -> bytes:
        return self._auth_key.public

    @property
    def described(self) -> IntroductionPoint:
        """As the descriptor names it."""
        relay = self.relay
        assert relay.ed25519_identity is not None
        values = {one.version: one.packed + port.to_bytes(2, "big") for one, port in or_addresses(relay)}
        specifiers: list[tuple[int, bytes]] = [
            (LinkSpecifierType.IPV4, values[4]),
            (LinkSpecifierType.LEGACY_ID, relay.identity),
            (LinkSpecifierType.ED25519_ID, relay.ed25519_identity),
        ]
        if 6 in values:
            specifiers.append((LinkSpecifierType.IPV6, values[6]))
        return IntroductionPoint(
            tuple(specifiers), relay.ntor_onion_key, self.auth_key, self.handshake.public_key
        )

    async def keep(
        self, stems: Stems, limits: DosLimits | None, launches: Launches, has_changed: Callable[[], None]
    ) -> None:
        """Stand there until that cannot be made or has been lost too often; `has_changed` tells of either.

        Raises what made the last attempt fail.
        """
        failures = 0
        try:
            while True:
                stands_since = inf
                try:
                    await self._establish(stems, limits, launches)
                    stands_since = trio.current_time()
                    await self._wait_for_end(has_changed)
                except TorkitError as error:
                    if trio.current_time() - stands_since >= STEADY:
                        failures = 0
                    failures += 1
                    logger.info("introduction point %s: %s", self.relay.nickname, error)
                    if failures > RETRIES or (failures > 1 and not self.was_established):
                        raise
                    await trio.sleep(RESTS[failures - 1])
        finally:
            self.is_established = False
            if self._circuit is not None:
                self._circuit.close("the introduction point is given up")
            has_changed()

    async def _establish(self, stems: Stems, limits: DosLimits | None, launches: Launches) -> None:
        launch = await launches.take()
        try:
            circuit = await stems.reach(ServiceIntroduction(self.relay), self.relay, self, keeps_kh=True)
        except BaseException:
            launches.give_back(launch)
            raise
        kh, circuit.kh = circuit.kh, b""
        self._circuit = circuit
        may_ask = supports(self.relay, "HSIntro", 5)
        body = encode_establish_intro(self._auth_key, kh, limits if may_ask else None)
        wipe(kh)
        try:
            answer = circuit.expect(RelayCommand.INTRO_ESTABLISHED)
            # Clients may know the point already: what they send can come in the same read as its answer.
            circuit.hear(RelayCommand.INTRODUCE2, partial(self._on_introduce, circuit, answer))
            circuit.tell(RelayCommand.ESTABLISH_INTRO, body)
            with trio.fail_after(stems.timeouts.use):
                decode_intro_established(await answer.wait())
        except trio.TooSlowError:
            circuit.close("the introduction point is silent")
            raise TimedOut("the introduction point did not answer in time") from None
        except TorkitError as error:
            circuit.fail(error)
            raise

    async def _wait_for_end(self, has_changed: Callable[[], None]) -> None:
        circuit = self._circuit
        assert circuit is not None
        has_ended = trio.Event()
        circuit.on_end = lambda _: has_ended.set()
        circuit.watch.note_use()
        circuit.watch.note_used()
        self.is_established = self.was_established = True
        has_changed()
        if circuit.error is None:
            await has_ended.wait()
        self.is_established = False
        assert circuit.error is not None
        raise circuit.error

    def _on_introduce(self, circuit: Circuit, answer: Reply, body: bytes) -> None:
        if answer.body is None:
            circuit.fail(CircuitError("INTRODUCE2 arrived before INTRO_ESTABLISHED"))
            return
        self.introduction_count += 1
        if self.introduction_count >= self._max_introductions:
            self.wears_out.set()
        self._hear(self, body)
