"""Whom the keeper of the directory asks, and when a diff will do."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from keeping import (
    CONSENSUS_PATH,
    DOCS,
    MINUTE,
    bit_flipped,
    fill_cache,
    half_signed,
    keeping,
    microdescs_asked_of,
    refusal,
    stale_service,
    until,
)
from served import fresh_relays, source_of

from torkit.errors import NoDirectory
from torkit.net.dir.keeper import MISSING_RETRY
from torkit.net.dir.servers import STAGGER
from torkit.testing.directory import DirectoryService, FakeAuthority, consensus_diff, signed_service
from torkit.testing.directory.authority import HOUR
from torkit.testing.relay import FakeStream, answer_begin_dir, http_response, ignore

# --- Sources -------------------------------------------------------------------------------------------


async def test_a_source_that_fails_is_passed_over(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    liar = signed_service(DOCS, signers)
    bit_flipped(liar)
    async with keeping(tmp_path, signers, [None, liar, lambda _: b"rubbish", service]) as started:
        assert (await started.keeper.wait_ready()).consensus.text == service.consensus


async def test_a_silent_source_is_overtaken(
    tmp_path: Path,
    signers: list[FakeAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
) -> None:
    async with keeping(tmp_path, signers, [service, service]) as started:
        started.relays[0].on_versions = ignore
        before = trio.current_time()
        await started.keeper.wait_ready()
        assert trio.current_time() - before == pytest.approx(STAGGER)


async def test_authorities_are_left_alone_where_fallbacks_serve(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    async with keeping(tmp_path, signers, [None, service, service], authority_count=1) as started:
        await started.keeper.wait_ready()
        assert started.relays[2].links == []


@pytest.mark.parametrize("status", ["404 Not found", "503 Directory busy"])
async def test_one_that_has_not_what_is_asked_for_is_named_as_such(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock, status: str
) -> None:
    async with keeping(tmp_path, signers, [lambda _: http_response(b"", status=status)]) as started:
        assert status in str(await refusal(started.keeper))


async def test_what_one_source_lacks_comes_from_another(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    partial = signed_service(DOCS, signers)
    partial.hold(DOCS[:20])
    async with keeping(tmp_path, signers, [partial, service]) as started:
        await started.keeper.wait_ready()
        await until(lambda: started.keeper.directory and not started.keeper.directory.missing)
    (rest,) = microdescs_asked_of(service)
    assert len(rest) == 10
    assert len(microdescs_asked_of(partial)) == 1


async def test_what_nobody_had_is_asked_for_again_later(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    """The next consensus may be hours away."""
    light = sorted(DOCS, key=lambda doc: doc.bandwidth or 0)[:3]
    everything = dict(service.microdescs)
    service.hold([doc for doc in DOCS if doc not in light])
    async with keeping(tmp_path, signers, [service]) as started:
        assert len((await started.keeper.wait_ready()).missing) == 3
        service.microdescs = everything
        asked = trio.current_time()
        await until(lambda: started.keeper.directory and not started.keeper.directory.missing, step=MINUTE)
        assert trio.current_time() - asked == pytest.approx(MISSING_RETRY, abs=3 * MINUTE)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["consensus", "certificates", "microdescs"])
async def test_a_source_that_dies_in_mid_answer_is_passed_over(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, number: int
) -> None:
    answers = [service.consensus, service.certificates, b"".join(service.microdescs.values())]
    begun: list[FakeStream] = []

    def die_in_mid_answer(stream: FakeStream) -> None:
        begun.append(stream)
        answer_begin_dir(stream)
        if len(begun) == number + 1:
            answer = http_response(answers[number])
            stream.write(answer[: len(answer) * 2 // 3])
            stream.circuit.link.close(abrupt=True)

    async with keeping(tmp_path, signers, [service, service]) as started:
        started.relays[0].on_begin_dir = die_in_mid_answer
        directory = await started.keeper.wait_ready()
        assert len(directory) == 30
        assert len(begun) == number + 1
        assert started.relays[1].links != []


async def test_no_source_is_a_failure_told(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    async with keeping(tmp_path, signers, []) as started:
        assert isinstance(await refusal(started.keeper), NoDirectory)


async def test_failure_is_forgotten_when_the_directory_comes(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    good = service.consensus
    half_signed(service)
    async with keeping(tmp_path, signers, [service]) as started:
        assert "1 good signatures, 2 of 3" in str(await refusal(started.keeper))
        service.consensus = good
        await started.keeper.is_ready.wait()
        assert len(await started.keeper.wait_ready()) == 30


# --- Diffs ---------------------------------------------------------------------------------------------


def newer_as_diff(service: DirectoryService, signers: Sequence[FakeAuthority]) -> bytes:
    """Give `service` a newer consensus and the diff to it; returns the text."""
    newer = signed_service(DOCS[:25], signers).consensus
    service.diff = consensus_diff(service.consensus, newer)
    service.consensus = newer
    return newer


async def test_a_diff_makes_the_newer_consensus(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    service = stale_service(signers)
    await fill_cache(tmp_path, signers, service)
    newer = newer_as_diff(service, signers)
    service.consensus = b""  # nothing else is to be had
    async with keeping(tmp_path, signers, [service]) as started:
        await until(lambda: started.keeper.directory and len(started.keeper.directory) == 25)
    assert (tmp_path / "consensus-microdesc").read_bytes() == newer
    assert service.requests == [CONSENSUS_PATH]


def diff_of_another(service: DirectoryService, signers: Sequence[FakeAuthority]) -> None:
    other = signed_service(DOCS[:20], signers).consensus
    service.diff = consensus_diff(other, service.consensus)


def diff_that_is_cut(service: DirectoryService, signers: Sequence[FakeAuthority]) -> None:
    service.diff = service.diff[: len(service.diff) // 2]


def diff_to_a_forgery(service: DirectoryService, signers: Sequence[FakeAuthority]) -> None:
    held = stale_service(signers)
    held.consensus = service.consensus
    bit_flipped(held)
    base = stale_service(signers).consensus
    service.diff = consensus_diff(base, held.consensus)


@pytest.mark.parametrize("spoil", [diff_of_another, diff_that_is_cut, diff_to_a_forgery])
async def test_where_a_diff_fails_the_whole_is_asked_for(
    tmp_path: Path,
    signers: list[FakeAuthority],
    clock: trio.testing.MockClock,
    spoil: Callable[[DirectoryService, Sequence[FakeAuthority]], None],
) -> None:
    service = stale_service(signers)
    await fill_cache(tmp_path, signers, service)
    newer = newer_as_diff(service, signers)
    spoil(service, signers)
    async with keeping(tmp_path, signers, [service]) as started:
        await until(lambda: started.keeper.directory and len(started.keeper.directory) == 25)
    assert (tmp_path / "consensus-microdesc").read_bytes() == newer
    assert service.requests == [CONSENSUS_PATH] * 2


async def test_no_whole_consensus_is_asked_for_where_a_diff_shows_that_our_clock_is_wrong(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    """It has the same times."""
    service = stale_service(signers)
    await fill_cache(tmp_path, signers, service)
    newer = signed_service(DOCS[:25], signers, valid_after=int(time.time()) + 51 * HOUR // 2)
    service.diff = consensus_diff(service.consensus, newer.consensus)
    service.consensus = newer.consensus
    service.clock = 26 * HOUR
    asked_for_diff = []

    def answer(request: bytes) -> bytes:
        asked_for_diff.append(b"x-or-diff-from-consensus:" in request.lower())
        return service(request)

    async with keeping(tmp_path, signers, [answer]) as started:
        for other in map(source_of, fresh_relays(2)):  # what two have told, and the one that is asked
            started.keeper._servers.note_clock(other, 26 * HOUR)
        await until(lambda: len(asked_for_diff) > 1)
    assert all(asked_for_diff)


async def test_where_diff_and_whole_fail_another_is_asked(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    good, bad = stale_service(signers), stale_service(signers)
    await fill_cache(tmp_path, signers, good)
    newer = newer_as_diff(good, signers)
    bad.consensus, bad.diff = newer, good.diff
    diff_that_is_cut(bad, signers)
    bit_flipped(bad)
    async with keeping(tmp_path, signers, [bad, good]) as started:
        await until(lambda: started.keeper.directory and len(started.keeper.directory) == 25)
    assert bad.requests == [CONSENSUS_PATH] * 2
    assert good.requests == [CONSENSUS_PATH]
