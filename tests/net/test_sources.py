"""Which directory server is asked when: scripted relays over real TLS, and questions that tests answer."""

import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest
import trio
from clocks import HastyClock
from served import fresh_relays, serve, source_of
from trio.testing import MockClock

from torkit.errors import NoDirectory, TorkitError
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.shelves import MAX_DIRTINESS
from torkit.net.contact import DirectoryServer
from torkit.net.dir.servers import (
    AUTHORITY_DELAY,
    MAX_AT_ONCE,
    MAX_AUTHORITIES,
    MAX_BACKOFF,
    MAX_CACHES,
    MIN_BACKOFF,
    MIN_CLOCKS,
    MIN_PART_LEN,
    PATIENCE,
    SLOW,
    STAGGER,
    Asked,
    DirectoryServers,
    Sources,
    next_backoff,
)
from torkit.net.link.channels import Channels


@pytest.fixture
def autojump_clock() -> MockClock:
    """Jumps to the next deadline when for a while nothing moved: the sockets' other ends are in here too."""
    return MockClock(autojump_threshold=0.05)


@asynccontextmanager
async def servers(
    guards: int = 0, fallbacks: int = 0, authorities: int = 0, *, clock: float | None = None
) -> AsyncIterator[tuple[DirectoryServers, Sources]]:
    """Relays to be asked, each of which takes circuits; `clock` is what theirs show."""
    relays = fresh_relays(guards + fallbacks + authorities)
    async with AsyncExitStack() as stack:
        for relay in relays:
            relay.now = clock or relay.now
            await stack.enter_async_context(serve(relay))
        contacts = [source_of(relay) for relay in relays]
        sources = Sources(
            contacts[:guards], contacts[guards : guards + fallbacks], contacts[guards + fallbacks :]
        )
        async with trio.open_nursery() as nursery:
            yield (
                DirectoryServers(Channels(nursery, Random()), lambda: sources, CircuitSettings, Random(1)),
                sources,
            )
            nursery.cancel_scope.cancel()


class Question:
    """Answered by `good`, refused by `bad`; the others are silent. Notes when each was asked."""

    def __init__(self, *, good: Collection[object] = (), bad: Collection[object] = ()) -> None:
        self.good, self.bad = good, bad
        self.asked: list[DirectoryServer] = []
        self.at: list[float] = []
        self.at_once = self.most_at_once = 0
        self._started = trio.current_time()

    async def __call__(self, asked: Asked) -> str:
        assert isinstance(asked.source, DirectoryServer)
        self.asked.append(asked.source)
        self.at.append(round(trio.current_time() - self._started))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            if asked.source in self.bad:
                raise NoDirectory("refused")
            if asked.source not in self.good:
                await trio.sleep_forever()
        finally:
            self.at_once -= 1
        return "good"


class Good:
    """Any relay's answer is good. Notes the circuits."""

    def __init__(self) -> None:
        self.circuits: list[Circuit] = []

    async def __call__(self, asked: Asked) -> str:
        self.circuits.append(asked.circuit)
        await trio.lowlevel.checkpoint()
        return "good"


# --- One document --------------------------------------------------------------------------------------


async def test_guards_come_before_fallbacks_and_these_before_authorities(autojump_clock: MockClock) -> None:
    async with servers(1, 2, 2) as (asking, sources):
        everybody = [*sources.guards, *sources.fallbacks, *sources.authorities]
        question = Question(bad=everybody[:-1], good=everybody[-1:])
        assert await asking.ask(question) == "good"
        assert question.asked == everybody
        assert max(question.at) < STAGGER  # those who fail cost no waiting, not even authorities


async def test_the_next_is_asked_beside_a_silent_one_authorities_last(autojump_clock: MockClock) -> None:
    async with servers(0, 1, 1) as (asking, sources):
        question = Question(good=sources.authorities)
        await asking.ask(question)
        assert question.at == [0, AUTHORITY_DELAY]


async def test_no_more_than_some_are_asked_at_once(autojump_clock: MockClock) -> None:
    async with servers(0, 5) as (asking, _):
        question = Question()
        with trio.move_on_after(STAGGER + SLOW - 0.1):
            await asking.ask(question)
        assert question.at == [STAGGER * n for n in range(MAX_AT_ONCE)]
        assert question.most_at_once == MAX_AT_ONCE


async def test_three_sources_that_trickle_do_not_hold_a_start(autojump_clock: MockClock) -> None:
    """Each sends a byte now and then, for ANSWER_TIMEOUT at most."""
    async with servers(0, 5) as (asking, sources):
        question = Question(good=sources.fallbacks[MAX_AT_ONCE:])

        async def trickle(asked: Asked) -> str:
            if asked.source in sources.fallbacks[:MAX_AT_ONCE]:
                asked.begun()
            return await question(asked)

        assert await asking.ask(trickle) == "good"
        assert question.at[-1] == 3 * PATIENCE


async def test_while_an_answer_comes_nobody_else_is_asked_for_a_while(autojump_clock: MockClock) -> None:
    async with servers(0, 2) as (asking, sources):
        question = Question(good=sources.fallbacks[1:])

        async def slow(asked: Asked) -> str:
            if asked.source == sources.fallbacks[0]:
                await trio.sleep(1)
                asked.begun()
            return await question(asked)

        await asking.ask(slow)
        assert question.at == [1, 1 + PATIENCE]


async def test_a_round_has_an_end(autojump_clock: MockClock) -> None:
    count = MAX_CACHES + 2
    async with servers(0, count, MAX_AUTHORITIES + 1) as (asking, sources):
        question = Question(bad=[*sources.fallbacks, *sources.authorities])
        with pytest.raises(NoDirectory, match="refused"):
            await asking.ask(question)
        assert len(question.asked) == MAX_CACHES + MAX_AUTHORITIES


async def test_where_there_is_nobody_to_ask_it_says_so() -> None:
    async with servers() as (asking, _):
        with pytest.raises(NoDirectory, match="no directory source is configured, or all are excluded"):
            await asking.ask(Question())


# --- Those that have failed ----------------------------------------------------------------------------


def test_backoff_is_random_grows_and_has_an_end() -> None:
    """dir-spec, "Retrying failed downloads"."""
    rng = Random(1)
    firsts = [next_backoff(0, rng) for _ in range(1000)]
    assert MIN_BACKOFF <= min(firsts) < 1.1
    assert 1.9 < max(firsts) <= MIN_BACKOFF + 1
    later = [next_backoff(10, rng) for _ in range(1000)]
    assert MIN_BACKOFF <= min(later) < 2
    assert 29 < max(later) <= 30
    assert max(next_backoff(MAX_BACKOFF, rng) for _ in range(100)) == MAX_BACKOFF


async def test_one_that_failed_is_left_alone_longer_and_longer(autojump_clock: MockClock) -> None:
    async with servers(0, 1) as (asking, sources):
        question = Question(bad=sources.fallbacks)
        waits = []
        for _ in range(12):
            with pytest.raises(NoDirectory, match="refused"):
                await asking.ask(question)
            waits.append(asking.wait_seconds())
            asked = len(question.asked)
            with pytest.raises(NoDirectory, match="refused"):  # the last failure, told again
                await asking.ask(question)
            assert len(question.asked) == asked
            await trio.sleep(asking.wait_seconds())
        assert MIN_BACKOFF - 0.1 < waits[0] <= MIN_BACKOFF + 1
        assert max(waits) > 10


async def test_a_good_answer_ends_the_backoff(autojump_clock: MockClock) -> None:
    async with servers(0, 1) as (asking, sources):
        for _ in range(8):
            with pytest.raises(NoDirectory):
                await asking.ask(Question(bad=sources.fallbacks))
            await trio.sleep(asking.wait_seconds())
        await asking.ask(Question(good=sources.fallbacks))
        with pytest.raises(NoDirectory):
            await asking.ask(Question(bad=sources.fallbacks))
        assert asking.wait_seconds() <= MIN_BACKOFF + 1


async def test_one_that_was_overtaken_is_not_asked_first_again(autojump_clock: MockClock) -> None:
    async with servers(0, 2) as (asking, sources):
        await asking.ask(Question(good=sources.fallbacks[1:]))
        question = Question(good=sources.fallbacks)
        await asking.ask(question)
        assert question.asked == [sources.fallbacks[1]]


async def test_what_is_forgotten_is_asked_again_at_once() -> None:
    async with servers(0, 1) as (asking, sources):
        with pytest.raises(NoDirectory):
            await asking.ask(Question(bad=sources.fallbacks))
        asking.forget()
        assert asking.wait_seconds() == 0
        await asking.ask(Question(good=sources.fallbacks))


# --- Many documents ------------------------------------------------------------------------------------


class Shelves:
    """What each source has; notes what each was asked for."""

    def __init__(self, *held: Collection[bytes]) -> None:
        self.held = held
        self.sources: list[object] = []
        self.asked: list[tuple[int, list[bytes]]] = []
        self.silent: set[int] = set()

    async def __call__(self, asked: Asked, part: list[bytes]) -> list[bytes]:
        number = self.sources.index(asked.source)
        self.asked.append((number, part))
        if number in self.silent:
            await trio.sleep_forever()
        await trio.sleep(0.1)
        return [item for item in part if item in self.held[number]]

    def asked_of(self, number: int) -> list[bytes]:
        return [item for one, part in self.asked if one == number for item in part]


ITEMS = [bytes([n]) for n in range(200)]


@asynccontextmanager
async def shelves_of(
    shelves: Shelves, *, guards: int = 0, authorities: int = 0
) -> AsyncIterator[DirectoryServers]:
    count = len(shelves.held)
    async with servers(guards, count - guards - authorities, authorities) as (asking, sources):
        shelves.sources = [*sources.guards, *sources.fallbacks, *sources.authorities]
        yield asking


async def share(asking: DirectoryServers, shelves: Shelves) -> list[TorkitError]:
    return await asking.share(ITEMS, shelves, max_part_len=500)


async def test_parts_are_spread_over_three_sources(autojump_clock: MockClock) -> None:
    shelves = Shelves(ITEMS, ITEMS, ITEMS, ITEMS)
    async with shelves_of(shelves) as asking:
        assert await share(asking, shelves) == []
    assert sorted(number for number, _ in shelves.asked) == [0, 1, 2]
    assert sorted(item for _, part in shelves.asked for item in part) == ITEMS


async def test_a_few_are_not_split(autojump_clock: MockClock) -> None:
    shelves = Shelves(ITEMS, ITEMS)
    async with shelves_of(shelves) as asking:
        await asking.share(ITEMS[:MIN_PART_LEN], shelves, max_part_len=500)
    assert len(shelves.asked) == 1


async def test_what_one_lacks_is_asked_of_others_and_never_again_of_it(autojump_clock: MockClock) -> None:
    shelves = Shelves(ITEMS[::2], ITEMS, ITEMS[::3])
    async with shelves_of(shelves) as asking:
        assert await share(asking, shelves) == []
    for number in range(3):
        asked = shelves.asked_of(number)
        assert len(asked) == len(set(asked))
    assert set(shelves.asked_of(1)) >= set(ITEMS) - set(ITEMS[::2]) - set(ITEMS[::3])


async def test_what_nobody_has_is_asked_once_of_each_and_told(autojump_clock: MockClock) -> None:
    shelves = Shelves(*[ITEMS[:150]] * 3)
    async with shelves_of(shelves) as asking:
        assert await share(asking, shelves) != []
    for number in range(3):
        asked = shelves.asked_of(number)
        assert len(asked) == len(set(asked))


async def test_one_that_has_nothing_is_passed_over(autojump_clock: MockClock) -> None:
    shelves = Shelves((), ITEMS, ITEMS)
    async with shelves_of(shelves) as asking:
        failures = await share(asking, shelves)
        assert [str(failure) for failure in failures] == [
            "the directory sent nothing of what it was asked for"
        ]
        assert asking.wait_seconds() == 0
    assert len([number for number, _ in shelves.asked if number == 0]) == 1


async def test_a_stalled_part_is_asked_elsewhere(autojump_clock: MockClock) -> None:
    shelves = Shelves(ITEMS, ITEMS, ITEMS)
    shelves.silent = {1}
    async with shelves_of(shelves) as asking:
        started = trio.current_time()
        await share(asking, shelves)
        assert trio.current_time() - started == pytest.approx(STAGGER, abs=1)
    (stalled,) = (part for number, part in shelves.asked if number == 1)
    assert set(stalled) <= {item for number, part in shelves.asked if number != 1 for item in part}


async def test_a_part_that_is_overdue_between_two_looks_is_asked_elsewhere(
    hasty_clock: HastyClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetcher once looked for overdue parts, then for when the next would be, and one was neither."""
    monkeypatch.setattr("torkit.net.dir.servers.STAGGER", 0.5)
    shelves = Shelves(ITEMS, ITEMS, ITEMS)
    shelves.silent = {1}
    async with shelves_of(shelves) as asking:
        for late in range(20):
            asking.forget()
            answers_at = trio.current_time() + 0.5 + late / 1000

            async def answer(asked: Asked, part: list[bytes], at: float = answers_at) -> list[bytes]:
                if asked.source is shelves.sources[2]:
                    await trio.sleep_until(at)
                    return part
                return await shelves(asked, part)

            with trio.fail_after(AUTHORITY_DELAY / 2):
                await asking.share(ITEMS, answer, max_part_len=500)


async def test_fallbacks_leave_the_work_to_guards_that_do_it(autojump_clock: MockClock) -> None:
    shelves = Shelves(ITEMS, ITEMS, ITEMS)
    async with shelves_of(shelves, guards=1) as asking:
        await share(asking, shelves)
    assert {number for number, _ in shelves.asked} == {0}
    assert len(shelves.asked) == 3


async def test_fallbacks_help_out_where_a_guard_stalls(autojump_clock: MockClock) -> None:
    shelves = Shelves(ITEMS, ITEMS)
    shelves.silent = {0}
    async with shelves_of(shelves, guards=1) as asking:
        await share(asking, shelves)
    assert set(shelves.asked_of(1)) == set(ITEMS)


@pytest.mark.parametrize("is_enough", [True, False])
async def test_authorities_are_not_troubled_for_what_can_be_done_without(
    autojump_clock: MockClock, is_enough: bool
) -> None:
    shelves = Shelves(ITEMS[:150], ITEMS)
    async with shelves_of(shelves, authorities=1) as asking:
        await asking.share(ITEMS, shelves, max_part_len=500, is_enough=lambda: is_enough)
    assert bool(shelves.asked_of(1)) is not is_enough


# --- What time it is -----------------------------------------------------------------------------------


async def test_a_clock_is_not_doubted_for_fewer_than_three_and_one_liar_does_nothing() -> None:
    async with servers(0, 4) as (asking, sources):
        for source in sources.fallbacks[: MIN_CLOCKS - 1]:
            asking.note_clock(source, -3600.0)
            asking.note_clock(source, -3600.0)  # again the same one
        assert asking.clock_skew() is None
        asking.note_clock(sources.fallbacks[3], 10**9)
        assert asking.clock_skew() == 3600.0


async def test_clocks_are_read_from_the_link_handshake() -> None:
    async with servers(0, 3, clock=time.time() + 7200) as (asking, sources):
        with pytest.raises(NoDirectory):
            await asking.ask(Question(bad=sources.fallbacks))
        assert asking.clock_skew() == pytest.approx(-7200, abs=30)


async def test_a_clock_that_is_set_while_connections_last_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with servers(0, 3, clock=time.time()) as (asking, sources):
        with pytest.raises(NoDirectory):
            await asking.ask(Question(bad=sources.fallbacks))
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 20 * 86_400)
        assert asking.clock_skew() == pytest.approx(20 * 86_400, abs=30)
        asking.forget()
        with pytest.raises(NoDirectory):
            await asking.ask(Question(bad=sources.fallbacks))
        assert asking.clock_skew() == pytest.approx(20 * 86_400, abs=30)


async def test_what_was_told_long_ago_says_nothing(autojump_clock: MockClock) -> None:
    async with servers(0, 3) as (asking, sources):
        for source in sources.fallbacks:
            asking.note_clock(source, 3600.0)
        assert asking.clock_skew() == -3600.0
        await trio.sleep(601)
        assert asking.clock_skew() is None


# --- Circuits ------------------------------------------------------------------------------------------


async def test_a_circuit_is_kept_for_the_next_question_and_closed_when_it_is_old(
    autojump_clock: MockClock,
) -> None:
    async with servers(0, 1) as (asking, _):
        question = Good()
        for _ in range(2):
            await asking.ask(question)
        first, second = question.circuits
        assert first is second
        await trio.sleep(MAX_DIRTINESS - 1)
        asking.close_worn()
        assert first.error is None
        await trio.sleep(1)
        asking.close_worn()
        assert first.error is not None
        await asking.ask(question)
        assert question.circuits[2].error is None


async def test_a_circuit_that_failed_has_ended_or_slept_is_not_used_again(autojump_clock: MockClock) -> None:
    async with servers(0, 2) as (asking, sources):
        question = Good()
        await asking.ask(question)

        async def fail(asked: Asked) -> str:
            if asked.source == sources.fallbacks[0]:
                assert asked.circuit is question.circuits[0]
                raise NoDirectory("it has not")
            return await question(asked)

        await asking.ask(fail)
        assert question.circuits[0].error is not None
        question.circuits[1].close()
        await asking.ask(question)
        asking.forget()
        await asking.ask(question)
        assert [one.error is None for one in question.circuits] == [False, False, False, True]
