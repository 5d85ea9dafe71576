"""Circuits that have joined: who shares one, for how long, and what follows where one ends. Client keys."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import network_docs as nd
import pytest
import trio
from onion_home import GUARD, RENDEZVOUS, SECOND, SERVICE, Home, a_home
from served import doc_of
from trio.testing import MockClock

from torkit._fast.cells import RelayCommand
from torkit._fast.keys import X25519PrivateKey
from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.microdesc import split_microdescs
from torkit.errors import EndReason, OnionServiceError, OnionStep, StreamClosed
from torkit.hs.address import encode_address
from torkit.hs.client_auth import ClientKey, encode_client_key
from torkit.hs.descriptor import ProofOfWork
from torkit.hs.pow import Proof, Search
from torkit.net.circuit.stream import Stream
from torkit.net.circuits.pool import WORN_GRACE
from torkit.net.circuits.request import STREAM_TIMEOUT
from torkit.net.circuits.shelves import MAX_DIRTINESS
from torkit.net.current import Current
from torkit.net.journal import Journal
from torkit.net.onion.client_keys import ClientKeys
from torkit.net.onion.meeting import RESTS
from torkit.net.onion.request import OnionRequest
from torkit.net.onion.services import OnionServices
from torkit.net.onion.work import Worker
from torkit.testing.directory import encode_microdescs, make_authorities
from torkit.testing.relay import FakeStream

ADDRESS = encode_address(bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"))


class Pool:
    """As much of the pool of circuits as onion services ask."""

    identity = age = 0
    journal = Journal()

    def look_at_clock(self, now: float) -> None:
        pass


def directory_of(home: Home, *left_out: int) -> Directory:
    docs = [
        doc_of(home.fakes[number], f"r{number}")
        for number in (GUARD, SECOND, RENDEZVOUS)
        if number not in left_out
    ]
    microdescs = split_microdescs(encode_microdescs(docs))
    consensus = parse_consensus(nd.consensus(docs, make_authorities(1)))
    return Directory(consensus, {digest: text for digest, text, _ in microdescs})


class Client:
    def __init__(self, home: Home, nursery: trio.Nursery, tmp_path: Path) -> None:
        self.home = home
        self.pool = Pool()
        self.current = Current(testing=True)
        self.current.use(directory_of(home))
        stub: Any = home
        pool: Any = self.pool
        stub.to_directory = None  # descriptors are the home's
        self.services = OnionServices(
            stub, pool, self.current, ClientKeys(tmp_path / "keys"), Worker(), Random(1), nursery
        )
        self.services._descriptors = stub
        home.fakes[SERVICE].on_begin = self.answer

    def answer(self, stream: FakeStream) -> None:
        stream.send(RelayCommand.CONNECTED)

    def request(self, isolation: str = "a", port: int = 80) -> OnionRequest:
        return OnionRequest(self.services, ADDRESS, port, isolation=isolation)

    async def connect(self, isolation: str = "a", port: int = 80) -> Stream:
        return await self.request(isolation, port).connect()


@asynccontextmanager
async def a_client(tmp_path: Path) -> AsyncIterator[Client]:
    async with a_home() as home, trio.open_nursery() as nursery:
        yield Client(home, nursery, tmp_path)
        nursery.cancel_scope.cancel()
        home.met = len(home.open_circuits)


async def test_streams_share_a_circuit_where_isolation_and_service_are_equal(tmp_path: Path) -> None:
    async with a_client(tmp_path) as client:
        one, same, other = [await client.connect(isolation) for isolation in "aab"]
        assert one.circuit is same.circuit
        assert one.circuit is not other.circuit
        assert client.home.met == 2
        ready = client.request("a").begin()
        assert ready is not None
        await ready.wait_connected()
        assert client.request("c").begin() is None


async def test_equal_requests_wait_for_one_meeting(tmp_path: Path) -> None:
    async with a_client(tmp_path) as client:
        streams: list[Stream] = []

        async def connect() -> None:
            streams.append(await client.connect())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(connect)
        assert client.home.met == 1
        assert len({stream.circuit for stream in streams}) == 1


async def test_equal_requests_fail_with_one_meeting(tmp_path: Path, patient_clock: MockClock) -> None:
    async with a_client(tmp_path) as client:
        client.home.service.on_introduce = lambda introduction: introduction.acknowledge(1)
        steps: list[OnionStep] = []

        async def connect() -> None:
            with pytest.raises(OnionServiceError) as caught:
                await client.connect()
            steps.append(caught.value.step)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(connect)
        assert steps == [OnionStep.INTRODUCTION] * 5
        assert len(client.home.service.introductions) == 3 * (1 + len(RESTS))


async def test_no_request_times_out_while_a_proof_of_work_is_made(
    tmp_path: Path, patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_client(tmp_path) as client:
        client.home.service.work = ProofOfWork(b"e" * 32, 1, expires=int(time.time()) + 3600)

        async def take_long(worker: Worker, search: Search) -> Proof | None:
            await trio.sleep(2 * STREAM_TIMEOUT)
            return search.run()

        monkeypatch.setattr(Worker, "run", take_long)
        begun: list[FakeStream] = []
        both_have_begun = trio.Event()

        def begin(stream: FakeStream) -> None:
            begun.append(stream)
            if len(begun) == 2:
                both_have_begun.set()

        client.home.fakes[SERVICE].on_begin = begin
        streams: list[Stream] = []

        async def connect(seconds: float) -> None:
            await trio.sleep(seconds)
            streams.append(await client.connect())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, 0.0)
            nursery.start_soon(connect, STREAM_TIMEOUT / 2)
            await both_have_begun.wait()
            await trio.sleep(STREAM_TIMEOUT / 2)
            for stream in begun:
                client.answer(stream)
                stream.circuit.link.on_output()
        assert all(stream.is_connected for stream in streams)
        assert client.home.met == 1


async def test_a_meeting_goes_on_where_the_first_to_ask_has_left(tmp_path: Path) -> None:
    async with a_client(tmp_path) as client, trio.open_nursery() as nursery:
        leaving = trio.CancelScope()

        async def leave() -> None:
            with leaving:
                await client.connect()

        honest = client.home.service.on_introduce
        client.home.service.on_introduce = lambda introduction: leaving.cancel()
        nursery.start_soon(leave)
        await trio.sleep(0.01)

        async def stay() -> None:
            await client.connect()

        nursery.start_soon(stay)
        while not leaving.cancelled_caught:
            await trio.sleep(0.01)
        client.home.service.on_introduce = honest


async def test_a_new_identity_and_a_jump_of_the_clock_share_nothing(tmp_path: Path) -> None:
    async with a_client(tmp_path) as client:
        first = await client.connect()
        client.pool.age += 1
        second = await client.connect()
        client.pool.identity += 1
        third = await client.connect()
        assert len({first.circuit, second.circuit, third.circuit}) == 3
        assert first.circuit.error is None  # it goes on


async def test_a_relay_that_left_the_directory_serves_no_new_streams(tmp_path: Path) -> None:
    async with a_client(tmp_path) as client:
        first = await client.connect()
        client.current.use(directory_of(client.home, RENDEZVOUS))
        assert client.request().begin() is None
        assert first.circuit.error is None


async def test_a_circuit_is_closed_ten_minutes_after_its_last_stream(
    tmp_path: Path, patient_clock: MockClock
) -> None:
    async with a_client(tmp_path) as client:
        stream = await client.connect()
        await trio.sleep(MAX_DIRTINESS - 1)
        again = await client.connect()
        assert again.circuit is stream.circuit
        stream.close()
        await trio.sleep(2 * MAX_DIRTINESS)
        assert stream.circuit.error is None  # a stream is on it
        again.close()
        await trio.sleep(3 * WORN_GRACE)
        assert stream.circuit.error is not None


async def test_where_a_circuit_ends_before_the_answer_the_service_is_met_again(tmp_path: Path) -> None:
    async with a_client(tmp_path) as client:
        begun: list[FakeStream] = []

        def answer_second(stream: FakeStream) -> None:
            begun.append(stream)
            if len(begun) == 2:
                stream.send(RelayCommand.CONNECTED)
            else:
                stream.circuit.destroy()

        client.home.fakes[SERVICE].on_begin = answer_second
        stream = await client.connect()
        assert stream.is_connected
        assert client.home.met == 2


@pytest.mark.parametrize("reason", [EndReason.MISC, EndReason.CONNECTREFUSED, EndReason.DONE])
async def test_what_the_service_answers_is_final(tmp_path: Path, reason: EndReason) -> None:
    async with a_client(tmp_path) as client:
        client.home.fakes[SERVICE].on_begin = lambda stream: stream.end(reason)
        with pytest.raises(StreamClosed) as caught:
            await client.connect()
        assert caught.value.reason is reason
        assert client.home.met == 1
        request = client.request()
        begun = request.begin()
        assert begun is not None
        with pytest.raises(StreamClosed):
            await begun.wait_connected()
        with pytest.raises(StreamClosed) as caught:
            await request.connect()
        assert caught.value.reason is reason


async def test_what_is_no_address_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async with a_client(tmp_path) as client:
        with pytest.raises(OnionServiceError) as caught:
            OnionRequest(client.services, "x.onion", 80)
        assert caught.value.step is OnionStep.ADDRESS
        assert client.home.circuits == []


# --- Client keys -----------------------------------------------------------------------------------------


async def test_a_client_key_is_found_in_its_file_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    keys, service = ClientKeys(tmp_path / "keys"), b"\2" + bytes(31)
    identity = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert await keys.find(identity) is None
    (tmp_path / "keys").mkdir()
    for name, text in (
        ("mine.auth_private", encode_client_key(ClientKey(identity, b"k" * 32))),
        ("a.auth_private", "nonsense"),
        ("b.auth_private", "x" * 10_000),
        ("c.auth_private", "\xff"),
        ("notes.txt", "not looked at"),
    ):
        (tmp_path / "keys" / name).write_text(text)
    (tmp_path / "keys" / "d.auth_private").symlink_to(tmp_path / "keys" / "notes.txt")
    found = await keys.find(identity)
    assert found is not None
    assert found.public_key == X25519PrivateKey(b"k" * 32).public_key
    assert await keys.find(service) is None
    told = [record.message for record in caplog.records]
    assert sum("a.auth_private is passed over" in line for line in told) == 2
    assert not any("mine" in line or "notes" in line for line in told)
    keys.add(ClientKey(identity, b"g" * 32))
    found = await keys.find(identity)
    assert found is not None
    assert found.public_key == X25519PrivateKey(b"g" * 32).public_key
