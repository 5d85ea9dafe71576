"""What the keeper of the directory does not believe: documents, and our clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from keeping import (
    CONSENSUS_PATH,
    DOCS,
    MINUTE,
    another_flavor,
    bit_flipped,
    certificate_flipped,
    certificates_expired,
    expired,
    fill_cache,
    forged,
    from_the_future,
    half_signed,
    keeping,
    one_signature_thrice,
    refusal,
    rubbish,
    truncated,
    until,
    without_certificates,
)
from warned import warnings

from torkit.directory.trust import REASONABLY_LIVE
from torkit.errors import ClockSkewed, DocumentError, NoDirectory, TorkitError
from torkit.net.dir.keeper import ROUNDS_BEFORE_ERROR
from torkit.testing.directory import DirectoryService, FakeAuthority, sign_consensus, signed_service
from torkit.testing.directory.authority import HOUR, rsa_key

# --- Documents that are refused ------------------------------------------------------------------------


REFUSED_THOUGH_CERTIFICATES_ARE_AT_HAND = [
    forged,
    expired,
    from_the_future,
    half_signed,
    one_signature_thrice,
    bit_flipped,
    truncated,
    another_flavor,
    rubbish,
]
REFUSED = [
    *REFUSED_THOUGH_CERTIFICATES_ARE_AT_HAND,
    without_certificates,
    certificates_expired,
    certificate_flipped,
]


@pytest.mark.parametrize("spoil", REFUSED)
async def test_what_cannot_be_believed_is_refused_with_its_reason_and_not_kept(
    tmp_path: Path,
    signers: list[FakeAuthority],
    service: DirectoryService,
    spoil: Callable[[DirectoryService], None],
    clock: trio.testing.MockClock,
) -> None:
    spoil(service)
    async with keeping(tmp_path, signers, [service]) as started:
        assert isinstance(await refusal(started.keeper), (DocumentError, NoDirectory))
    assert service.requests.count(CONSENSUS_PATH) == ROUNDS_BEFORE_ERROR
    assert not (tmp_path / "consensus-microdesc").exists()
    assert not any(path.startswith("/tor/micro") for path in service.requests)


@pytest.mark.parametrize("spoil", REFUSED_THOUGH_CERTIFICATES_ARE_AT_HAND)
async def test_the_good_cached_one_is_kept_and_used(
    tmp_path: Path,
    signers: list[FakeAuthority],
    spoil: Callable[[DirectoryService], None],
    clock: trio.testing.MockClock,
) -> None:
    # Old enough to be replaced, and still valid.
    service = signed_service(DOCS, signers, valid_after=int(time.time()) - 5 * HOUR // 2)
    await fill_cache(tmp_path, signers, service)
    kept = (tmp_path / "consensus-microdesc").read_bytes()
    service.consensus = signed_service(DOCS, signers).consensus
    spoil(service)
    async with keeping(tmp_path, signers, [service]) as started:
        directory = await started.keeper.wait_ready()
        await until(lambda: service.requests.count(CONSENSUS_PATH) >= 4)
        assert started.keeper.directory is directory
        assert directory.consensus.text == kept
        assert started.keeper.failure is None
    assert service.requests.count(CONSENSUS_PATH) >= 3
    assert (tmp_path / "consensus-microdesc").read_bytes() == kept


async def test_a_cached_consensus_past_reasonable_age_is_not_used(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    await fill_cache(tmp_path, signers, service)
    for age, is_used in ((REASONABLY_LIVE - HOUR, True), (REASONABLY_LIVE + HOUR, False)):
        old = signed_service(DOCS, signers, valid_after=int(time.time()) - 3 * HOUR - age)
        (tmp_path / "consensus-microdesc").write_bytes(old.consensus)
        async with keeping(tmp_path, signers, [None]) as started:
            if is_used:
                assert (await started.keeper.wait_ready()).consensus.text == old.consensus
            else:
                await refusal(started.keeper)


async def test_one_that_has_expired_serves_circuits_but_is_not_handed_out(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    await fill_cache(tmp_path, signers, service)
    old = signed_service(DOCS, signers, valid_after=int(time.time()) - 5 * HOUR)
    (tmp_path / "consensus-microdesc").write_bytes(old.consensus)
    async with keeping(tmp_path, signers, [None]) as started:
        assert (await started.keeper.wait_ready()).consensus.text == old.consensus
        with pytest.raises(TorkitError):
            await started.keeper.wait_consensus()
    async with keeping(tmp_path, signers, [service]) as started:
        assert (await started.keeper.wait_consensus()).text == service.consensus


async def test_a_cache_of_another_network_is_not_used(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    await fill_cache(tmp_path, signers, service)
    others = [replace(one, identity_key=rsa_key(200 + n)) for n, one in enumerate(signers)]
    other_service = signed_service(DOCS[:20], others)
    async with keeping(tmp_path, others, [other_service]) as started:
        assert len(await started.keeper.wait_ready()) == 20


async def test_microdescs_not_asked_for_are_not_taken(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    evil = [replace(doc, ntor_onion_key=b"\xee" * 32) for doc in DOCS]
    liar = DirectoryService(service.consensus, service.certificates)
    by_digest = list(service.microdescs)
    liar.microdescs = dict(zip(by_digest, (doc.microdesc() for doc in evil), strict=True))
    async with keeping(tmp_path, signers, [liar]) as started:
        assert isinstance(await refusal(started.keeper), NoDirectory)
    assert b"7u7u7u7u" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


# --- The clock -----------------------------------------------------------------------------------------


def services_of_another_time(
    signers: Sequence[FakeAuthority], hours: int, count: int
) -> list[DirectoryService]:
    """Directories with a consensus that is live by their clocks, which show so many hours more than ours."""
    there = int(time.time()) + hours * HOUR
    services = [signed_service(DOCS, signers, valid_after=there - HOUR // 2) for _ in range(count)]
    for service in services:
        service.clock = hours * HOUR
    return services


@pytest.mark.parametrize("hours", [-50, 50])
async def test_several_relays_that_tell_another_time_blame_our_clock(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock, hours: int
) -> None:
    services = services_of_another_time(signers, hours, 3)
    async with keeping(tmp_path, signers, services) as started:
        error = await refusal(started.keeper)
    assert isinstance(error, ClockSkewed)
    assert error.skew == pytest.approx(-hours * HOUR, abs=30)
    assert f" is 2 days 2 hours {'behind' if hours > 0 else 'ahead of'}" in str(error)
    assert not (tmp_path / "consensus-microdesc").exists()


@pytest.mark.parametrize("hours", [-20, -3, 2, 20])
@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_clock_that_is_wrong_by_less_than_a_day_stops_no_start_and_is_told(
    tmp_path: Path,
    signers: list[FakeAuthority],
    clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    hours: int,
    is_warm: bool,
) -> None:
    """Whatever is cached. Three relays settle it: no fourth is asked for a consensus."""
    services = services_of_another_time(signers, hours, 5)
    if is_warm:
        there = services[0].consensus
        await fill_cache(tmp_path, signers, signed_service(DOCS, signers))
        (tmp_path / "consensus-microdesc").write_bytes(there)
    async with keeping(tmp_path, signers, services) as started:
        assert (await started.keeper.wait_ready()).consensus.text == services[0].consensus
        with pytest.raises(ClockSkewed):
            await started.keeper.wait_consensus()
    if not is_warm:
        assert sum(service.requests.count(CONSENSUS_PATH) for service in services) == 3
    (warning,) = warnings(caplog)
    assert f" is {abs(hours)} hours {'behind' if hours > 0 else 'ahead of'}" in warning
    assert "set this computer's clock" in warning


class Late(Random):
    """Chooses the latest moment for everything."""

    def random(self) -> float:
        return 1.0

    def getrandbits(self, k: int, /) -> int:
        """Shuffles stay shuffles: without this they would be drawn from `random`."""
        return super().getrandbits(k)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_clock_that_was_ahead_and_is_set_right_is_noticed(
    tmp_path: Path,
    signers: list[FakeAuthority],
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    """By the wrong clock every source had failed, and was left alone for up to ten minutes."""
    real_time = time.time
    services = [signed_service(DOCS, signers) for _ in range(count)]
    async with keeping(tmp_path, signers, services) as started:
        keeper = started.keeper
        keeper._rng = keeper._servers._rng = Late()
        await keeper.wait_ready()
        monkeypatch.setattr(time, "time", lambda: real_time() + 50 * HOUR)
        for service in services:
            service.clock = -50 * HOUR
        await until(lambda: keeper.directory is None)
        await trio.sleep(50 * MINUTE)
        monkeypatch.setattr(time, "time", real_time)
        for service in services:
            service.clock = 0
        began = trio.current_time()
        await until(lambda: keeper.directory is not None)
        assert trio.current_time() - began < 2 * MINUTE


async def test_a_clock_is_not_doubted_for_an_old_consensus_that_few_relays_call_new(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock, service: DirectoryService
) -> None:
    """Two that lie, or that are as far behind, cannot have it taken while another has a live one."""
    services = [*services_of_another_time(signers, -20, 2), service]
    service.clock = 0
    async with keeping(tmp_path, signers, services) as started:
        assert (await started.keeper.wait_ready()).consensus.text == service.consensus


async def test_relays_that_agree_with_our_clock_do_not_blame_it(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    services = [signed_service(DOCS, signers, valid_after=int(time.time()) - 50 * HOUR) for _ in range(3)]
    async with keeping(tmp_path, signers, services) as started:
        error = await refusal(started.keeper)
    assert not isinstance(error, ClockSkewed)
    assert "has expired" in str(error)


async def test_two_relays_alone_cannot_blame_our_clock(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    services = [signed_service(DOCS, signers, valid_after=int(time.time()) - 50 * HOUR) for _ in range(2)]
    for service in services:
        service.clock = -49 * HOUR
    async with keeping(tmp_path, signers, services) as started:
        assert not isinstance(await refusal(started.keeper), ClockSkewed)


async def test_relays_of_a_consensus_without_enough_signatures_are_not_read(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    """What is wrong with its entries is never seen, so nothing is spent on reading them."""
    unsigned = service.consensus[: service.consensus.index(b"directory-signature ")]
    unsigned = unsigned.replace(b"\nm ", b"\nm wrong ")
    for signed_by, error in ((1, NoDirectory), (2, DocumentError)):
        service.consensus = sign_consensus(unsigned, signers[:signed_by])
        async with keeping(tmp_path, signers, [service]) as started:
            assert type(await refusal(started.keeper)) is error
