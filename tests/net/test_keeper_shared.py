"""Several keepers over one cache: one fetches, the others read and are told."""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random

import network_docs
import pytest
import trio
from keeping import CONSENSUS_PATH, DOCS, MINUTE, fill_cache, keeping, stale_service, until

from torkit.directory.cache import Cache
from torkit.directory.consensus import read_preamble
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs
from torkit.net.clock import CLOCK_CHECK
from torkit.net.dir.keeper import DirectoryKeeper
from torkit.testing.directory import DirectoryService, FakeAuthority, signed_service
from torkit.testing.directory.authority import HOUR

CHANGED = [replace(doc, ntor_onion_key=Random(n).randbytes(32)) for n, doc in enumerate(DOCS)]


def keep_consensus(place: Path, service: DirectoryService) -> None:
    Cache(place).save_consensus(read_preamble(service.consensus))


def keep_microdescs(place: Path, service: DirectoryService) -> None:
    kept = Microdescs()
    texts = service.microdescs.values()
    kept.add(b"".join(texts), {sha256(text).digest() for text in texts}, time.time())
    Cache(place).save_microdescs(kept, time.time())


def uses(keeper: DirectoryKeeper, service: DirectoryService) -> Callable[[], bool]:
    return lambda: keeper.directory is not None and keeper.directory.consensus.text == service.consensus


@asynccontextmanager
async def reading(
    place: Path, signers: list[FakeAuthority], service: DirectoryService
) -> AsyncIterator[tuple[DirectoryKeeper, Directory]]:
    """A keeper that uses what `service` has, from a cache that it shares."""
    await fill_cache(place, signers, service)
    async with keeping(place, signers, [service], is_cache_shared=True) as reader:
        yield reader.keeper, await reader.keeper.wait_ready()


@pytest.mark.parametrize("is_shared", [True, False], ids=["a shared cache", "one data directory"])
async def test_what_one_fetches_the_others_use_without_a_request(
    tmp_path: Path, signers: list[FakeAuthority], clock: trio.testing.MockClock, is_shared: bool
) -> None:
    first = stale_service(signers)
    other = stale_service(signers)
    await fill_cache(tmp_path, signers, first)
    other.consensus = b""  # and so it cannot be asked
    async with keeping(tmp_path, signers, [other], is_cache_shared=is_shared) as reader:
        await reader.keeper.wait_ready()
        newer = signed_service(CHANGED, signers)
        first.consensus, first.microdescs = newer.consensus, newer.microdescs
        async with keeping(tmp_path, signers, [first], is_cache_shared=is_shared) as fetcher:
            await until(uses(fetcher.keeper, newer))
        await until(uses(reader.keeper, newer))
        assert reader.keeper.directory is not None
        assert reader.keeper.directory.missing == ()


async def test_a_consensus_kept_without_its_microdescs_is_waited_for_and_used_with_them(
    tmp_path: Path,
    signers: list[FakeAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
) -> None:
    async with reading(tmp_path, signers, service) as (keeper, old):
        newer_since = old.consensus.valid_after + 60
        newer = signed_service(CHANGED, signers, valid_after=newer_since)
        began = trio.current_time()
        keep_consensus(tmp_path, newer)
        # When it looks is chance: on a busy machine the clock jumps while files are read.
        await until(lambda: keeper._awaited == newer_since)
        assert keeper.directory is old
        keep_microdescs(tmp_path, newer)
        await until(uses(keeper, newer))
        assert trio.current_time() - began < 3 * CLOCK_CHECK
    assert service.requests == []


async def test_where_they_do_not_come_it_fetches_them_itself(
    tmp_path: Path,
    signers: list[FakeAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
) -> None:
    async with reading(tmp_path, signers, service) as (keeper, old):
        newer = signed_service(CHANGED, signers, valid_after=old.consensus.valid_after + 60)
        service.microdescs = newer.microdescs
        keep_consensus(tmp_path, newer)
        await until(uses(keeper, newer))
    assert CONSENSUS_PATH not in service.requests


@pytest.mark.parametrize("is_writable", [True, False])
async def test_who_may_not_write_there_fetches_after_all_others_and_keeps_nothing(
    tmp_path: Path,
    signers: list[FakeAuthority],
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    is_writable: bool,
) -> None:
    """Fresh for an hour, valid for three: others fetch from 1 h 45 min on, at 2 h 50 min at the latest."""
    monkeypatch.setattr(os, "access", lambda path, mode: is_writable)
    old = signed_service(DOCS, signers, valid_after=int(time.time() - 1.5 * HOUR))
    await fill_cache(tmp_path, signers, old)
    keep_consensus(tmp_path, old)
    keep_microdescs(tmp_path, old)
    newer = signed_service(CHANGED, signers)
    began, real_time = trio.current_time(), time.time
    monkeypatch.setattr(time, "time", lambda: real_time() + trio.current_time() - began)
    async with keeping(tmp_path, signers, [newer], is_cache_shared=True) as reader:
        await reader.keeper.wait_ready()
        await until(uses(reader.keeper, newer), seconds=2 * HOUR, step=MINUTE)
        came = trio.current_time() - began
    assert (came < 20 * MINUTE) == is_writable
    assert (came > 70 * MINUTE) == (not is_writable)
    kept = (tmp_path / "consensus-microdesc").read_bytes()
    assert kept == (newer if is_writable else old).consensus


async def test_a_damaged_or_older_document_is_no_news(
    tmp_path: Path,
    signers: list[FakeAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
) -> None:
    async with reading(tmp_path, signers, service) as (keeper, old):
        older = signed_service(CHANGED, signers, valid_after=old.consensus.valid_after - 60)
        strangers = network_docs.authorities()[:1]
        forged = signed_service(CHANGED, strangers, valid_after=old.consensus.valid_after + 60)
        for one in (older, forged):
            keep_consensus(tmp_path, one)
            await trio.sleep(2 * CLOCK_CHECK)
            assert keeper.directory is old
        (tmp_path / "consensus-microdesc").write_bytes(b"network-status-version 3 mic")
        await trio.sleep(2 * CLOCK_CHECK)
        assert keeper.directory is old
        (tmp_path / "consensus-microdesc").unlink()
        await trio.sleep(2 * CLOCK_CHECK)
        assert keeper.directory is old
    assert service.requests == []
