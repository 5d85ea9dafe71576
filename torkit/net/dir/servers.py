"""Decides which directory servers are asked, when, how many at once, and how long a failed one is left alone.

The caller knows the question, and judges the answer. A round begins with our guards where there are any, goes
on with fallbacks, and comes to the authorities last. dir-spec, "Client operation" and
"Retrying failed downloads".
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from itertools import islice
from math import inf
from random import Random
from typing import NamedTuple, TypeVar

import trio

from torkit.errors import (
    ClockSkewed,
    InternalError,
    NoDirectory,
    NothingNewer,
    OutOfResources,
    TimedOut,
    TorkitError,
)
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.build import build_directory_circuit
from torkit.net.circuits.guards import UNTOLD, GuardTry
from torkit.net.circuits.purpose import AskDirectory
from torkit.net.circuits.shelves import MAX_DIRTINESS
from torkit.net.clock import set_since, wall_ahead
from torkit.net.contact import Contact, name_of
from torkit.net.link.channels import Channels
from torkit.net.progress import diagnose

# What says nothing against the server that was asked.
NOT_AT_FAULT = (ClockSkewed, InternalError, NothingNewer, OutOfResources)

# Specification constants, seconds (dir-spec, "Retrying failed downloads").
AUTHORITY_DELAY = 6.0  # from the beginning of a round until an authority is asked beside caches
MIN_BACKOFF = 1.0

# Implementation limits.
MAX_BACKOFF = 600.0  # seconds; the specification has none, but a server that recovers should be found again
STAGGER = 4.0  # seconds until another source is asked beside one that has not begun to answer
PATIENCE = 30.0  # the same for one that has begun: a large document takes its time on a slow line
MAX_AT_ONCE = 3  # sources asked at the same time (as C tor's clients do while they bootstrap)
SLOW = 20.0  # seconds overdue until a source no longer counts among these: three that trickle hold no start
MAX_CACHES = 8  # asked in one round, beside the authorities
MAX_AUTHORITIES = 3
MIN_CLOCKS = 3  # relays that have to have told the time before ours is doubted: one or two may lie
CLOCK_AGE = 600.0  # seconds for which a relay's clock, once told, is believed

# So that no cache alone chooses what we see, and none is asked for crumbs. (Both as in C tor.)
MIN_PARTS = 3
MIN_PART_LEN = 32

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Sources(NamedTuple):
    """The sources to ask, each list in the order of asking."""

    guards: Sequence[Contact]
    fallbacks: Sequence[Contact]
    authorities: Sequence[Contact]

    def shuffled(self, guards: Sequence[Contact], rng: Random) -> "Sources":
        """Returns sources with these guards, and all others in random order."""
        fallbacks, authorities = list(self.fallbacks), list(self.authorities)
        for servers in (fallbacks, authorities):
            rng.shuffle(servers)
        return Sources(guards, fallbacks, authorities)


AUTHORITIES = Sources._fields.index("authorities")


class Asked(NamedTuple):
    """A source that is being asked. Call `begun` when the first bytes of its answer have come."""

    source: Contact
    circuit: Circuit
    begun: Callable[[], None]


def next_backoff(last: float, rng: Random) -> float:
    """Returns the seconds to wait after a failure; `last` are those after the failure before it, or 0.

    Random, so that clients which failed together do not come back together.
    """
    return min(rng.uniform(MIN_BACKOFF, max(MIN_BACKOFF + 1, 3 * last)), MAX_BACKOFF)


class DirectoryServers:
    """Asks the sources that `choose` names at the beginning of each round."""

    def __init__(
        self,
        channels: Channels,
        choose: Callable[[], Sources],
        settings: Callable[[], CircuitSettings],
        rng: Random,
        attempt: Callable[[bytes], GuardTry] = lambda identity: UNTOLD,
    ) -> None:
        """`attempt` gives the handle of each circuit's first hop, by its relay's identity."""
        self._channels = channels
        self._attempt = attempt
        self._choose = choose
        self._settings = settings
        self._rng = rng
        self._failed: dict[bytes, _Failed] = {}  # by identity, until they serve again
        self._clocks: dict[bytes, _Clock] = {}  # by identity
        self._kept: dict[bytes, _Kept] = {}  # by the relay's identity; circuits that nobody uses now

    async def ask(self, question: Callable[[Asked], Awaitable[T]]) -> T:
        """Returns the first good answer. Another source is asked when one fails, or does not begin to answer.

        Raises what the failures say together, or NoDirectory where no source may be asked.
        """
        answers: list[T] = []

        async def ask(asked: Asked, part: list[bytes]) -> list[bytes]:
            answers.append(await question(asked))
            return part

        failures = await self.share([b"the answer"], ask)
        if not answers:
            # With the sources that are left alone since an earlier round: together they say more.
            earlier = [failed.error for failed in self._failed.values() if failed.error not in failures]
            raise diagnose([*earlier, *failures])
        return answers[0]

    async def share(
        self,
        wanted: Collection[bytes],
        fetch: Callable[[Asked, list[bytes]], Awaitable[Collection[bytes]]],
        *,
        max_part_len: int = 1,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> list[TorkitError]:
        """Fetch `wanted` in parts from several sources; `fetch` returns what has come of a part.

        Items that a source lacks are asked of other sources, never again of the same one. A source that
        fails, or has nothing of a part, is asked nothing more. Authorities are not asked while `is_enough`.
        Returns every failure: at least one where something has not come.
        """
        round_ = _Round(self._ready(), wanted, max_part_len, trio.current_time())
        failures: list[TorkitError] = []
        changed = trio.Event()

        async def attempt(part: _Part) -> None:
            came: Collection[bytes] = ()
            try:
                came = await self._ask_one(part, fetch)
                logger.debug(
                    "%s has sent %d of %d documents", name_of(part.source), len(came), len(part.items)
                )
                self._failed.pop(part.source.identity, None)
            except TorkitError as error:
                logger.debug("%s has sent no document: %s", name_of(part.source), error)
                failures.append(error)
                if not isinstance(error, NOT_AT_FAULT):
                    self._note_failure(part.source, error)
                round_.give_up(part.source)
            round_.settle(part, came)
            changed.set()

        async with trio.open_nursery() as nursery:
            while round_.wanted:
                now = trio.current_time()  # one look: between two, something due would be overlooked
                while part := round_.pick(now, with_authorities=not is_enough()):
                    nursery.start_soon(attempt, part)
                if not round_.under_way:
                    break
                changed = trio.Event()
                with trio.move_on_at(round_.next_due(now)):
                    await changed.wait()
            nursery.cancel_scope.cancel()  # sources that are late, and have been overtaken
        for part in round_.under_way:
            self._note_failure(part.source, TimedOut("a directory was slower than others"))
        if round_.wanted and not failures:
            failures.append(self._why_nobody())
        return failures

    async def _ask_one(
        self, part: "_Part", fetch: Callable[[Asked, list[bytes]], Awaitable[Collection[bytes]]]
    ) -> Collection[bytes]:
        kept = self._take_kept(part.source) or await self._build(part.source)
        try:
            came = await fetch(Asked(part.source, kept.circuit, part.begun), part.items)
            if not came:
                raise NoDirectory("the directory sent nothing of what it was asked for")
        except NothingNewer:
            self._keep(part.source, kept)
            raise
        except BaseException:
            kept.circuit.close("it brought no answer")
            raise
        self._keep(part.source, kept)
        return came

    def _keep(self, source: Contact, kept: "_Kept") -> None:
        if other := self._take_kept(source):
            other.circuit.close()
        self._kept[source.identity] = kept

    def _take_kept(self, source: Contact) -> "_Kept | None":
        """Returns the circuit to `source` that was kept, if it is still good."""
        kept = self._kept.pop(source.identity, None)
        if kept is None or (kept.circuit.error is None and self._channels.is_open(source)):
            return kept
        kept.circuit.close()
        return None

    async def _build(self, source: Contact) -> "_Kept":
        guard = self._attempt(source.identity)
        purpose = AskDirectory(source)
        circuit = await build_directory_circuit(self._channels, purpose, self._settings(), guard)
        if circuit.clock_skew is not None:
            self.note_clock(source, circuit.clock_skew)
        return _Kept(circuit, trio.current_time())

    def close_worn(self, max_age: float = MAX_DIRTINESS) -> None:
        """Close unused circuits that were built this many seconds ago or earlier."""
        for identity, kept in list(self._kept.items()):
            if trio.current_time() - kept.built_at >= max_age:
                del self._kept[identity]
                kept.circuit.close()

    # --- who is to be left alone --------------------------------------------------------------------

    def _ready(self) -> Sources:
        """Returns the sources that have not failed a moment ago, as many as one round may ask."""
        now = trio.current_time()
        guards, fallbacks, authorities = (
            [
                one
                for one in tier
                if one.identity not in self._failed or self._failed[one.identity].until <= now
            ]
            for tier in self._choose()
        )
        guards = guards[:MAX_CACHES]
        return Sources(guards, fallbacks[: MAX_CACHES - len(guards)], authorities[:MAX_AUTHORITIES])

    def _note_failure(self, source: Contact, error: TorkitError) -> None:
        last = self._failed.get(source.identity)
        backoff = next_backoff(last.backoff if last else 0.0, self._rng)
        self._failed[source.identity] = _Failed(error, backoff, trio.current_time() + backoff)

    def _why_nobody(self) -> TorkitError:
        """Returns why something has not come though no source failed: none was asked, or none had it."""
        everybody = [one.identity for tier in self._choose() for one in tier]
        failed = [self._failed[identity] for identity in everybody if identity in self._failed]
        if failed:
            return max(failed, key=lambda one: one.until - one.backoff).error
        if everybody:
            return NoDirectory("no directory has all that it was asked for")
        return NoDirectory("no directory source is configured, or all are excluded")

    def wait_seconds(self) -> float:
        """Returns the seconds until some source may be asked."""
        now = trio.current_time()
        untils = (
            self._failed[one.identity].until if one.identity in self._failed else now
            for tier in self._choose()
            for one in tier
        )
        return max(min(untils, default=now) - now, 0.0)

    def forget(self) -> None:
        """Forget failures, clocks and circuits: after a suspend they mean nothing."""
        self._failed.clear()
        self._clocks.clear()
        self.close_worn(0)

    # --- what time it is ----------------------------------------------------------------------------

    def note_clock(self, source: Contact, skew: float) -> None:
        """Note that a relay's clock has just shown `skew` seconds more than ours."""
        self._clocks[source.identity] = _Clock(skew, trio.current_time(), wall_ahead())

    def clock_skew(self) -> float | None:
        """Returns our clock minus the relays', the median, in seconds; None while too few have told."""
        since = trio.current_time() - CLOCK_AGE
        clocks = [clock for clock in self._clocks.values() if clock.noted_at >= since]
        skews = [clock.skew - set_since(clock.wall_ahead) for clock in clocks]
        if len(skews) < MIN_CLOCKS:
            return None
        skews.sort()
        middle = len(skews) // 2
        return -(skews[middle] + skews[~middle]) / 2


class _Kept(NamedTuple):
    """A circuit that stays open after its last question (as C tor's clients leave it)."""

    circuit: Circuit
    built_at: float


class _Failed(NamedTuple):
    error: TorkitError
    backoff: float
    until: float


class _Clock(NamedTuple):
    """What a relay's clock has shown; `wall_ahead` tells how ours was set then."""

    skew: float
    noted_at: float
    wall_ahead: float


class _Part:
    """The items that one source is asked for. From `due` on, other sources may be asked for them, too."""

    def __init__(self, tier: int, source: Contact, items: list[bytes], now: float) -> None:
        self.tier = tier
        self.source = source
        self.items = items
        self.due = now + STAGGER

    @property
    def gives_way_at(self) -> float:
        """When this part no longer keeps other sources from being asked."""
        return self.due + SLOW

    def begun(self) -> None:
        """Note that the answer has begun to come."""
        self.due = max(self.due, trio.current_time() + PATIENCE)


class _Round:
    """Decides which source is asked for which items next. Asks no source itself."""

    def __init__(self, sources: Sources, wanted: Iterable[bytes], max_part_len: int, now: float) -> None:
        self.wanted: dict[bytes, set[bytes]] = {item: set() for item in wanted}  # and who has been asked
        self.under_way: list[_Part] = []
        self._sources = [(tier, one) for tier, several in enumerate(sources) for one in several]
        self._authorities_at = now + AUTHORITY_DELAY
        self._part_len = min(max(-(-len(self.wanted) // MIN_PARTS), MIN_PART_LEN), max_part_len)

    def pick(self, now: float, *, with_authorities: bool) -> _Part | None:
        """Returns the next part, which then is under way; None if no source is to be asked now."""
        if sum(part.gives_way_at > now for part in self.under_way) >= MAX_AT_ONCE:
            return None
        busy = {part.source.identity: part.tier for part in self.under_way}
        may_ask_authorities = with_authorities and (
            all(tier == AUTHORITIES for tier in busy.values()) or now >= self._authorities_at
        )
        best = min((part.tier for part in self.under_way if part.due > now), default=AUTHORITIES)
        for tier, source in self._sources:
            if source.identity in busy:
                continue
            if tier == AUTHORITIES and not may_ask_authorities:
                continue
            # While better sources work, other sources get only overdue items.
            items = self._items_for(source.identity, now, only_overdue=best < tier)
            if items:
                for item in items:
                    self.wanted[item].add(source.identity)
                self.under_way.append(_Part(tier, source, items, now))
                return self.under_way[-1]
        return None

    def _items_for(self, identity: bytes, now: float, *, only_overdue: bool) -> list[bytes]:
        asked = {item for part in self.under_way for item in part.items}
        not_due = {item for part in self.under_way if part.due > now for item in part.items}
        free = (
            item
            for item, asked_of in self.wanted.items()
            if identity not in asked_of and item not in not_due and (item in asked or not only_overdue)
        )
        return list(islice(free, self._part_len))

    def next_due(self, now: float) -> float:
        """Returns when `pick` may return something new although nothing has come."""
        times = [self._authorities_at]
        times += [time for part in self.under_way for time in (part.due, part.gives_way_at)]
        return min((time for time in times if time > now), default=inf)

    def settle(self, part: _Part, came: Iterable[bytes]) -> None:
        """Note that a part is no longer under way, and what has come of it."""
        self.under_way.remove(part)
        for item in came:
            self.wanted.pop(item, None)

    def give_up(self, source: Contact) -> None:
        """Ask `source` nothing more."""
        self._sources = [(tier, one) for tier, one in self._sources if one.identity != source.identity]
