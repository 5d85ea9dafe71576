"""Proofs of work that an onion service asks for, made before it is met."""

import struct
import time

import pytest
import trio
from onion_home import a_home
from trio.testing import MockClock
from warned import warnings

from torkit.hs.descriptor import ProofOfWork
from torkit.hs.pow import Proof, Search, is_valid
from torkit.net.onion.work import Worker
from torkit.testing.onion import Introduction


@pytest.mark.parametrize("effort", [1, 5])
async def test_a_service_gets_the_proof_of_work_that_it_asks_for(effort: int) -> None:
    async with a_home() as home:
        home.service.work = ProofOfWork(b"e" * 32, effort, expires=int(time.time()) + 3600)
        home.service.sendme_inc = 31
        await home.meet()
        (introduction,) = home.service.introductions
        extensions = introduction.extensions
        assert extensions[:5] == b"\2\1\0\2" + bytes([41])
        version, nonce, asked, head, solution = struct.unpack(">B16sI4s16s", extensions[5:])
        assert (version, asked, head) == (1, effort, b"e" * 4)
        blinded = home.service.maker.blinded
        assert is_valid(Proof(nonce, asked, head, solution), blinded=blinded, seed=b"e" * 32)


async def test_a_service_that_answers_nobody_gets_a_greater_effort_each_time(
    patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(worker: Worker, search: Search) -> Proof | None:
        return search.run()  # in no thread, for which the clock would not wait

    monkeypatch.setattr(Worker, "run", work)
    async with a_home() as home:
        service = home.service
        service.work = ProofOfWork(b"e" * 32, 1, expires=int(time.time()) + 3600)

        def accept_third(introduction: Introduction) -> None:
            introduction.acknowledge()
            if len(service.introductions) == 3:
                service.meet(introduction)

        service.on_introduce = accept_third
        await home.meet()
        efforts = [int.from_bytes(one.extensions[-24:-20], "big") for one in service.introductions]
        assert efforts == [1, 8, 16]


@pytest.mark.parametrize(("limit", "effort"), [(0, None), (3, 3), (100, 5)])
async def test_no_more_work_is_done_than_the_user_allows(
    limit: int, effort: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_home() as home:
        home.worker = Worker(limit)
        home.service.work = ProofOfWork(b"e" * 32, 5, expires=int(time.time()) + 3600)
        await home.meet()
        (introduction,) = home.service.introductions
        if effort is None:
            assert introduction.extensions == b"\0"
        else:
            assert int.from_bytes(introduction.extensions[-24:-20], "big") == effort
        assert len(warnings(caplog)) == (limit < 5)


async def test_without_effort_there_is_no_proof_and_an_old_seed_has_a_newer_one_fetched() -> None:
    async with a_home() as home:
        home.service.work = ProofOfWork(b"e" * 32, 0, expires=int(time.time()) - 1)
        await home.meet()
        assert home.service.introductions[0].extensions == b"\0"
        assert home.fetched == [False, True]


async def test_a_search_ends_with_its_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torkit.hs.pow.MAX_EFFORT", 2**32 - 1)  # which nobody finds by chance
    monkeypatch.setattr("torkit.hs.pow.MAX_EFFORT_INTERPRETED", 2**32 - 1)
    async with a_home() as home:
        home.service.work = ProofOfWork(b"e" * 32, 2**32 - 1, expires=int(time.time()) + 3600)
        with trio.move_on_after(0.5):
            await home.meet()
        assert home.service.introductions == []
