"""The directory kept up to date: from the cache, from the network, ever newer."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random

import network_docs
import pytest
import trio
import trio.testing
from keeping import (
    CONSENSUS_PATH,
    DOCS,
    MINUTE,
    bit_flipped,
    expired,
    fill_cache,
    forged,
    half_signed,
    keeping,
    microdescs_asked_of,
    refusal,
    stale_service,
    until,
)

from torkit.directory.cache import Cache
from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.microdesc import KEEP_UNLISTED, Microdescs
from torkit.directory.steps import Steps
from torkit.directory.trust import REASONABLY_LIVE
from torkit.errors import NoDirectory
from torkit.net.dir.fetch import MICRODESCS_PER_REQUEST
from torkit.net.dir.steps import in_steps
from torkit.paths.guards import Guards
from torkit.testing.directory import DirectoryService, FakeAuthority, RelayDoc, signed_service
from torkit.testing.directory.authority import HOUR, rsa_key
from torkit.testing.encoding import bare64

# --- A fresh start -------------------------------------------------------------------------------------


async def test_a_fresh_start_fetches_consensus_certificates_and_microdescs(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    async with keeping(tmp_path, signers, [service]) as started:
        directory = await started.keeper.wait_ready()
        assert len(directory) == 30
        assert directory.missing == ()
        assert started.keeper.directory is directory
        assert [one and len(one) for one in started.asked_with] == [None, 30]
    paths = [path.split("/")[2] for path in service.requests]
    assert paths == ["status-vote", "keys", "micro"]


async def test_a_second_start_needs_no_network(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    await fill_cache(tmp_path, signers, service)
    async with keeping(tmp_path, signers, [service]) as started:
        assert len(await started.keeper.wait_ready()) == 30
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert started.relays[0].links == []
    assert service.requests == []


async def test_microdescs_come_in_parts_from_several_sources(
    tmp_path: Path, signers: list[FakeAuthority]
) -> None:
    docs = network_docs.relays(2 * MICRODESCS_PER_REQUEST + 100)
    services = [signed_service(docs, signers) for _ in range(4)]
    async with keeping(tmp_path, signers, services) as started:
        assert (await started.keeper.wait_ready()).missing == ()
    parts = [part for service in services for part in microdescs_asked_of(service)]
    assert sorted(map(len, parts)) == [366, 367, 367]
    assert max(len(microdescs_asked_of(service)) for service in services) == 1
    asked = [digest for part in parts for digest in part]
    assert len(set(asked)) == len(docs)
    listed = [bare64(digest or b"") for digest in parse_consensus(services[0].consensus).relays.digests]
    for part in parts:  # shuffled: no source sees which relays stand together
        assert part != sorted(part, key=listed.index)


async def test_a_certificate_held_is_not_fetched_again(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    await fill_cache(tmp_path, signers, service)
    (tmp_path / "consensus-microdesc").unlink()
    async with keeping(tmp_path, signers, [service]) as started:
        await started.keeper.wait_ready()
    assert service.requests == [CONSENSUS_PATH]


async def test_certificates_of_renewed_signing_keys_are_fetched_and_older_ones_go_on_counting(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    await fill_cache(tmp_path, signers, service)
    renewed = [
        replace(signers[0], signing_key=rsa_key(301), published=int(time.time()) - HOUR),
        signers[1],
        replace(signers[2], signing_key=rsa_key(302), published=int(time.time()) - HOUR),
    ]
    newer = signed_service(DOCS, renewed)
    (tmp_path / "consensus-microdesc").unlink()
    async with keeping(tmp_path, signers, [newer]) as started:
        await started.keeper.wait_ready()
    (fetched,) = (path for path in newer.requests if path.startswith("/tor/keys/"))
    asked_for = {pair.split("-")[0] for pair in fetched.removeprefix("/tor/keys/fp-sk/").split("+")}
    assert asked_for == {one.v3ident.hex().upper() for one in (renewed[0], renewed[2])}
    kept = Cache(tmp_path).load_certificates()
    assert kept is not None
    assert {one.signing_key_digest for one in kept} == {
        one.signing_key_digest for one in (*signers, *renewed)
    }
    (tmp_path / "consensus-microdesc").unlink()
    async with keeping(tmp_path, signers, [service]) as started:  # signed with the keys of before
        await started.keeper.wait_ready()
    assert service.requests == [CONSENSUS_PATH]


async def test_where_the_newest_certificate_is_not_of_the_key_that_signed_that_one_is_asked_for(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    newer = replace(signers[1], signing_key=rsa_key(305))
    answers = [b"".join(one.certificate() for one in (signers[0], newer, signers[2])), service.certificates]

    class Service(DirectoryService):
        def __call__(self, request: bytes) -> bytes:
            if b"/tor/keys/" in request:
                self.certificates = answers.pop(0)
            return super().__call__(request)

    renewing = Service(service.consensus, microdescs=service.microdescs)
    async with keeping(tmp_path, signers, [renewing]) as started:
        await started.keeper.wait_ready()
    everybody = "+".join(one.v3ident.hex() for one in signers)
    key = f"{signers[1].v3ident.hex()}-{signers[1].signing_key_digest.hex()}"
    assert renewing.requests[1:3] == [
        f"/tor/keys/fp/{everybody.upper()}",
        f"/tor/keys/fp-sk/{key.upper()}",
    ]


async def test_certificates_of_strangers_are_not_kept(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    stranger = replace(signers[0], identity_key=rsa_key(303), signing_key=rsa_key(304))
    service.certificates += stranger.certificate()
    async with keeping(tmp_path, signers, [service]) as started:
        await started.keeper.wait_ready()
    kept = Cache(tmp_path).load_certificates()
    assert kept is not None
    assert {one.identity for one in kept} == {one.v3ident for one in signers}


@pytest.mark.parametrize("name", ["consensus-microdesc", "certificates", "microdescs"])
@pytest.mark.parametrize("damage", ["emptied", "overwritten", "changed"])
async def test_a_damaged_cache_is_fetched_anew(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, name: str, damage: str
) -> None:
    await fill_cache(tmp_path, signers, service)
    file = tmp_path / name
    match damage:
        case "emptied":
            file.write_bytes(b"")
        case "overwritten":
            file.write_bytes(b"rubbish\n")
        case "changed":
            file.write_bytes(
                re.sub(
                    rb"(Bandwidth=|SIGNATURE-----\n|ntor-onion-key ).", rb"\1%", file.read_bytes(), count=1
                )
            )
    async with keeping(tmp_path, signers, [service]) as started:
        directory = await started.keeper.wait_ready()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert directory.usable_fraction() > 0.6
    assert service.requests


async def test_a_data_directory_that_cannot_be_used_is_done_without(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    nowhere = tmp_path / "file" / "inside"
    (tmp_path / "file").write_bytes(b"")
    async with keeping(nowhere, signers, [service]) as started:
        assert len(await started.keeper.wait_ready()) == 30


# --- Enough microdescriptors ---------------------------------------------------------------------------


async def test_it_is_not_usable_before_there_are_enough_microdescs(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    everything = dict(service.microdescs)
    service.microdescs = dict(list(everything.items())[:10])
    async with keeping(tmp_path, signers, [service]) as started:
        assert isinstance(await refusal(started.keeper), NoDirectory)
        assert started.keeper.directory is None
        service.microdescs = everything
        await started.keeper.is_ready.wait()
        directory = await started.keeper.wait_ready()
        assert directory.missing == ()
    assert service.requests.count(CONSENSUS_PATH) == 1
    asked_last = service.requests[-1].removeprefix("/tor/micro/d/").split("-")
    assert len(asked_last) == 20  # what came was kept


async def test_some_microdescs_may_be_missing(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    light = sorted(DOCS, key=lambda doc: doc.bandwidth or 0)[:3]
    service.hold([doc for doc in DOCS if doc not in light])
    async with keeping(tmp_path, signers, [service]) as started:
        directory = await started.keeper.wait_ready()
        assert len(directory.missing) == 3


async def test_of_two_sources_that_answer_at_once_one_is_enough(
    tmp_path: Path,
    signers: list[FakeAuthority],
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second was cut off while it looked at what the first had brought, and nobody looked again."""
    looks = 0
    has_overtaken = trio.Event()

    async def in_slow_steps(steps: Steps[object]) -> object:
        nonlocal looks
        if getattr(steps, "__name__", "") == "is_usable_in_steps":
            looks += 1  # the first is at the consensus alone
            if looks == 2:
                await has_overtaken.wait()
            elif looks == 3:
                has_overtaken.set()
                await trio.sleep(MINUTE)
        return await in_steps(steps)

    monkeypatch.setattr("torkit.net.dir.keeper.in_steps", in_slow_steps)
    services = [signed_service(DOCS, signers) for _ in range(2)]
    async with keeping(tmp_path, signers, services) as started:
        for relay in started.relays:
            relay.answering("/tor/micro/", nth=None).delay(10)
        directory = await started.keeper.wait_ready()
        assert directory.missing == ()
    assert [len(microdescs_asked_of(one)) for one in services] == [1, 1]
    assert looks == 4


async def test_what_nobody_lists_for_a_week_is_forgotten_in_memory_too(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    """A proxy that ran for long held every microdescriptor that there had been since its start."""
    doc = network_docs.relays(31)[30]
    digest = sha256(doc.microdesc()).digest()
    then = time.time() - KEEP_UNLISTED - MINUTE
    unlisted = Microdescs()
    unlisted.add(doc.microdesc(), {digest}, then)
    Cache(tmp_path).save_microdescs(unlisted, then)
    async with keeping(tmp_path, signers, [service]) as started:
        await started.keeper.wait_ready()
        await until(lambda: digest not in (Cache(tmp_path).load_microdescs() or (digest,)))
        assert len(started.keeper._microdescs) == len(DOCS)


async def test_a_network_without_guards_is_a_failure_told(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    """Everything was held and nothing was missing, so nobody was told that it could not be used."""
    docs = [replace(doc, flags=doc.flags.replace("Guard ", "")) for doc in DOCS]
    async with keeping(tmp_path, signers, [signed_service(docs, signers)]) as started:
        assert isinstance(await refusal(started.keeper), NoDirectory)


# --- The guards' microdescriptors -----------------------------------------------------------------------


def first_guard(guards: Guards, directory: Directory) -> RelayDoc:
    guards.update(directory, now=time.time(), rng=Random(1))
    return next(doc for doc in DOCS if doc.identity == guards.primary[0].identity)


def new_guards(service: DirectoryService) -> tuple[Guards, RelayDoc]:
    """Guards of a client that has kept none, and the first of them."""
    guards = Guards()
    return guards, first_guard(guards, Directory(parse_consensus(service.consensus), {}))


async def test_a_directory_source_cannot_choose_the_guard_by_leaving_one_microdesc_out(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    """All other guards could have been used, and the next one was."""
    guards, guard = new_guards(service)
    hostile = signed_service(DOCS, signers)
    hostile.hold([doc for doc in DOCS if doc is not guard])
    async with keeping(tmp_path, signers, [hostile, service], guards=guards) as started:
        directory = await started.keeper.wait_ready()
        assert directory.relay(guard.identity) is not None
        chosen = guards.choose(directory, lambda _: True, now=time.time(), rng=Random(1))
        assert chosen.identity == guard.identity
        assert len(microdescs_asked_of(service)) == 1


async def test_a_guards_microdesc_that_nobody_has_is_named_and_waited_for(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    guards, guard = new_guards(service)
    everything = dict(service.microdescs)
    service.hold([doc for doc in DOCS if doc is not guard])
    async with keeping(tmp_path, signers, [service], guards=guards) as started:
        error = await refusal(started.keeper)
        assert type(error) is NoDirectory
        assert str(error) == f"the microdescriptor of the guard {guard.nickname} has not come yet"
        service.microdescs = everything
        await until(lambda: started.keeper.directory is not None)
    assert service.requests.count(CONSENSUS_PATH) == 1


async def test_guards_that_are_others_by_now_are_not_waited_for(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    """Where nothing had come since, nobody looked again."""
    guards, guard = new_guards(service)
    service.hold([doc for doc in DOCS if doc is not guard])
    async with keeping(tmp_path, signers, [service], guards=guards) as started:
        await refusal(started.keeper)
        guards.lacking = lambda directory, *, now, rng: []  # type: ignore[method-assign]  # a stand-in's
        await until(lambda: started.keeper.directory is not None)


async def test_a_guards_microdesc_missing_from_the_cache_is_fetched_before_anything_else(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    guards, guard = new_guards(service)
    incomplete = signed_service(DOCS, signers)
    incomplete.hold([doc for doc in DOCS if doc is not guard])
    await fill_cache(tmp_path, signers, incomplete)
    async with keeping(tmp_path, signers, [service], guards=guards) as started:
        directory = await started.keeper.wait_ready()
        assert directory.relay(guard.identity) is not None
        assert microdescs_asked_of(service) == [[bare64(sha256(guard.microdesc()).digest())]]


async def test_the_old_directory_is_used_until_the_guards_new_microdesc_has_come(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    """It changes whenever the guard's onion key does, every four weeks."""
    service = stale_service(signers)
    guards = Guards()
    async with keeping(tmp_path, signers, [service], guards=guards) as started:
        old = await started.keeper.wait_ready()
        guard = first_guard(guards, old)
        changed = [doc if doc is not guard else replace(doc, ntor_onion_key=bytes(32)) for doc in DOCS]
        newer = signed_service(changed, signers)
        service.consensus = newer.consensus
        await until(lambda: service.requests.count(CONSENSUS_PATH) == 2)
        await trio.sleep(5 * MINUTE)
        assert started.keeper.directory is old
        assert len(microdescs_asked_of(service)) > 3
        service.microdescs = newer.microdescs
        await until(lambda: started.keeper.directory is not old)
        assert started.keeper.directory is not None
        relay = started.keeper.directory.relay(guard.identity)
        assert relay is not None
        assert relay.ntor_onion_key == bytes(32)


async def test_a_directory_that_waits_for_a_guard_is_not_used_for_ever(
    tmp_path: Path,
    signers: list[FakeAuthority],
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = stale_service(signers)
    guards = Guards()
    async with keeping(tmp_path, signers, [service], guards=guards) as started:
        old = await started.keeper.wait_ready()
        guard = first_guard(guards, old)
        changed = [doc if doc is not guard else replace(doc, ntor_onion_key=bytes(32)) for doc in DOCS]
        real_time = time.time
        later = old.consensus.valid_until + REASONABLY_LIVE - MINUTE
        service.consensus = signed_service(changed, signers, valid_after=int(later) - HOUR).consensus
        monkeypatch.setattr(time, "time", lambda: later)
        await until(lambda: service.requests.count(CONSENSUS_PATH) == 2)
        await trio.sleep(MINUTE)
        assert started.keeper.directory is old
        monkeypatch.setattr(time, "time", lambda: later + 2 * MINUTE)
        await until(lambda: started.keeper.directory is None)
        monkeypatch.setattr(time, "time", real_time)


async def test_what_is_missing_is_fetched_at_once_for_whoever_cannot_go_on_without(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    everything = dict(service.microdescs)
    service.hold(DOCS[:-1])
    async with keeping(tmp_path, signers, [service]) as started:
        await started.keeper.wait_ready()
        await until(lambda: started.keeper.failure is None and service.requests)
        await trio.sleep(MINUTE)
        service.microdescs = everything
        began = trio.current_time()
        started.keeper._current.hurry()
        await until(lambda: started.keeper.directory and not started.keeper.directory.missing)
        assert trio.current_time() - began < MINUTE


# --- Growing old ---------------------------------------------------------------------------------------


async def test_a_newer_consensus_replaces_an_old_one(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    service = stale_service(signers)
    async with keeping(tmp_path, signers, [service]) as started:
        old = await started.keeper.wait_ready()
        newer = signed_service(DOCS[:25], signers)
        service.consensus = newer.consensus
        await until(lambda: started.keeper.directory is not old)
        assert started.keeper.directory is not None
        assert len(started.keeper.directory) == 25
    assert (tmp_path / "consensus-microdesc").read_bytes() == newer.consensus


async def test_an_older_consensus_replaces_nothing(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    service = stale_service(signers)
    async with keeping(tmp_path, signers, [service]) as started:
        old = await started.keeper.wait_ready()
        older = signed_service(DOCS[:25], signers, valid_after=old.consensus.valid_after - 60)
        service.consensus = older.consensus
        service.requests.clear()
        await until(lambda: service.requests.count(CONSENSUS_PATH) >= 3)
        assert started.keeper.directory is old


async def test_a_newer_one_is_not_used_before_its_microdescs_have_come(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock
) -> None:
    """Whoever serves directories could otherwise choose the relays we see, by holding back the others."""
    service = stale_service(signers)
    async with keeping(tmp_path, signers, [service]) as started:
        old = await started.keeper.wait_ready()
        changed = [replace(doc, ntor_onion_key=Random(n).randbytes(32)) for n, doc in enumerate(DOCS)]
        newer = signed_service(changed, signers)
        newer.hold(changed[:5])
        service.consensus, service.microdescs = newer.consensus, newer.microdescs
        await until(lambda: len(service.requests) > 6)
        assert started.keeper.directory is old
        newer.hold(changed)
        service.microdescs = newer.microdescs
        await until(lambda: started.keeper.directory is not old)
        assert started.keeper.directory is not None
        assert started.keeper.directory.consensus.text == newer.consensus


async def test_a_consensus_is_replaced_though_the_computer_was_suspended(
    tmp_path: Path,
    signers: list[FakeAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The monotonic clock stands still meanwhile: it would have slept for hours more."""
    async with keeping(tmp_path, signers, [service]) as started:
        old = await started.keeper.wait_ready()
        await trio.sleep(MINUTE)
        real_time = time.time
        monkeypatch.setattr(time, "time", lambda: real_time() + 5 * HOUR)
        service.consensus = signed_service(DOCS[:25], signers).consensus
        resumed = trio.current_time()
        await until(lambda: started.keeper.directory is not old)
        assert trio.current_time() - resumed < 2 * MINUTE


async def test_a_clock_set_back_does_not_put_off_the_next_consensus(
    tmp_path: Path,
    signers: list[FakeAuthority],
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would have been asked for when that clock is there again."""
    service = signed_service(DOCS, signers, valid_after=int(time.time() - 1.7 * HOUR))
    async with keeping(tmp_path, signers, [service]) as started:
        old = await started.keeper.wait_ready()
        await trio.sleep(MINUTE)
        service.requests.clear()
        real_time = time.time
        monkeypatch.setattr(time, "time", lambda: real_time() - 48 * HOUR)
        await until(lambda: service.requests.count(CONSENSUS_PATH) >= 2, step=20)
        assert started.keeper.directory is old


async def test_after_a_day_and_more_nothing_is_used_any_longer(
    tmp_path: Path,
    signers: list[FakeAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with keeping(tmp_path, signers, [service]) as started:
        await started.keeper.wait_ready()
        real_time = time.time
        for later, is_used in ((26 * HOUR, True), (27 * HOUR, False)):
            monkeypatch.setattr(time, "time", lambda later=later: real_time() + later)
            service.requests.clear()
            await until(lambda: service.requests.count(CONSENSUS_PATH) >= 2)
            assert (started.keeper.directory is not None) is is_used
            assert started.keeper.is_ready.is_set() is is_used


@pytest.mark.parametrize("hours", [-20, 20])
async def test_one_that_is_not_live_is_used_where_there_is_no_other(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock, hours: int
) -> None:
    """As after an outage of the authorities. It is no answer to who wants a live one."""
    untimely = signed_service(DOCS, signers, valid_after=int(time.time()) + hours * HOUR)
    older = signed_service(DOCS, signers, valid_after=int(time.time()) - 21 * HOUR)
    async with keeping(tmp_path, signers, [older, untimely, older]) as started:
        assert (await started.keeper.wait_ready()).consensus.text == untimely.consensus
        with pytest.raises(NoDirectory, match=r"has expired|from the future"):
            await started.keeper.wait_consensus()


async def test_a_live_one_is_taken_before_one_that_is_not(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    untimely = signed_service(DOCS, signers, valid_after=int(time.time()) - 20 * HOUR)
    async with keeping(tmp_path, signers, [untimely, untimely, service]) as started:
        assert (await started.keeper.wait_ready()).consensus.text == service.consensus


# --- A given consensus ---------------------------------------------------------------------------------


async def test_a_given_consensus_is_verified_and_used(
    tmp_path: Path, signers: list[FakeAuthority], service: DirectoryService
) -> None:
    given = parse_consensus(service.consensus)
    async with keeping(tmp_path, signers, [service], given=given) as started:
        assert (await started.keeper.wait_ready()).consensus == given
    assert CONSENSUS_PATH not in service.requests
    assert not (tmp_path / "consensus-microdesc").exists()


@pytest.mark.parametrize("spoil", [forged, expired, half_signed, bit_flipped])
async def test_a_given_consensus_that_cannot_be_believed_is_refused(
    tmp_path: Path,
    signers: list[FakeAuthority],
    service: DirectoryService,
    spoil: Callable[[DirectoryService], None],
) -> None:
    spoil(service)
    given = parse_consensus(service.consensus)
    async with keeping(tmp_path, signers, [service], given=given) as started:
        assert isinstance(await refusal(started.keeper), NoDirectory)
