"""What a client tells of what happens: in order, to every listener, and at no cost where there is none."""

import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from pool import open_pool
from served import ServedNetwork, serve_network

from torkit.client import Tor, open_tor
from torkit.errors import EndReason, StreamClosed
from torkit.events import (
    CLOSED_HERE,
    CircuitBuilt,
    CircuitEnded,
    CircuitExtended,
    CircuitLaunched,
    DirectoryChanged,
    Event,
    EventsLost,
    GuardChanged,
    ProgressMade,
    StreamAttached,
    StreamEnded,
    StreamFailed,
    StreamNew,
    StreamSucceeded,
)
from torkit.net.circuits.build import build_circuit
from torkit.net.circuits.purpose import OnionDirectory
from torkit.net.journal import MAX_WAITING, Events, Journal, trace
from torkit.net.progress import Phase
from torkit.testing.relay import FakeStream, answer_begin

HOST = "secret.test"


@asynccontextmanager
async def served_client(tmp_path: Path, *, is_ready: bool = True) -> AsyncIterator[tuple[Tor, ServedNetwork]]:
    """A client that builds nothing ahead."""
    async with (
        serve_network(exits=2) as network,
        open_tor(network=network.config, data_dir=tmp_path, spare_circuits=0) as tor,
    ):
        if is_ready:
            await tor.wait_ready()
        yield tor, network


def read_now(events: Events) -> list[Event]:
    """Everything that has not been read."""
    waiting = events._mailbox.waiting
    found = list(waiting)
    waiting.clear()
    return found


def kinds(events: list[Event], *wanted: type[Any]) -> list[Event]:
    return [event for event in events if isinstance(event, wanted)]


async def test_a_start_and_a_stream_are_told_in_order(tmp_path: Path) -> None:
    async with served_client(tmp_path, is_ready=False) as (tor, _):
        events = tor.events()
        await tor.wait_ready()
        start = read_now(events)
        assert kinds(start, DirectoryChanged)
        progress = [event.percent for event in start if isinstance(event, ProgressMade)]
        assert progress == sorted(progress)
        asked = kinds(start, CircuitLaunched)
        assert {event.purpose for event in asked if isinstance(event, CircuitLaunched)} == {"DIR_FETCH"}

        stream = await tor.connect(HOST, 80)
        number, circuit = stream.id, stream.circuit.id
        assert number is not None
        await stream.aclose()
        stream.circuit.close()
        told = read_now(events)
        path = tuple(f"${relay.fingerprint}~{relay.nickname}" for relay in stream.path)
        assert kinds(told, CircuitLaunched, CircuitExtended, CircuitBuilt) == [
            CircuitLaunched(circuit, "GENERAL"),
            *(CircuitExtended(circuit, hop, name) for hop, name in enumerate(path, 1)),
            CircuitBuilt(circuit, path),
        ]
        assert kinds(told, StreamNew, StreamAttached, StreamSucceeded, StreamFailed, StreamEnded) == [
            StreamNew(number),
            StreamAttached(number, circuit),
            StreamSucceeded(number),
            StreamEnded(number, "closed here", CLOSED_HERE),
        ]
        assert kinds(told, CircuitEnded) == [
            CircuitEnded(circuit, "the circuit was closed here: nobody needs it any more", CLOSED_HERE)
        ]
        assert GuardChanged(path[0].partition("~")[0], "GOOD") in told
        assert told.index(CircuitBuilt(circuit, path)) < told.index(StreamAttached(number, circuit))


async def test_every_attempt_is_told_of_and_the_end_once(tmp_path: Path) -> None:
    async with served_client(tmp_path) as (tor, network):
        events = tor.events()
        exits = [fake for name, fake in network.relays.items() if name.startswith("exit")]
        asked: list[FakeStream] = []

        def refuse_once(stream: FakeStream) -> None:
            asked.append(stream)
            answer_begin(stream) if len(asked) == 2 else stream.end(EndReason.MISC)

        for fake in exits:
            fake.on_begin = refuse_once
        stream = await tor.connect(HOST, 80)
        told = kinds(read_now(events), StreamAttached, StreamSucceeded, StreamFailed, StreamEnded)
        assert [type(one) for one in told] == [StreamAttached, StreamFailed, StreamAttached, StreamSucceeded]
        first, _, second, _ = told
        assert isinstance(first, StreamAttached)
        assert isinstance(second, StreamAttached)
        assert first.stream == second.stream == stream.id
        assert first.circuit != second.circuit

        for fake in exits:
            fake.on_begin = lambda stream: stream.end(EndReason.CONNECTREFUSED)
        with pytest.raises(StreamClosed):
            await tor.connect(HOST, 80)
        told = kinds(read_now(events), StreamNew, StreamFailed, StreamEnded)
        assert [type(one) for one in told] == [StreamNew, StreamFailed, StreamEnded]


async def test_look_ups_are_told_of_as_streams(tmp_path: Path) -> None:
    async with served_client(tmp_path) as (tor, network):
        for fake in network.relays.values():
            fake.hosts = {HOST: ["192.0.2.7"]}
        events = tor.events()
        await tor.resolve(HOST)
        told = kinds(read_now(events), StreamNew, StreamAttached, StreamSucceeded, StreamEnded)
        assert [type(one) for one in told] == [StreamNew, StreamAttached, StreamSucceeded, StreamEnded]


async def test_no_event_names_a_destination(tmp_path: Path) -> None:
    async with served_client(tmp_path) as (tor, network):
        events = tor.events()
        for fake in network.relays.values():
            fake.on_begin = lambda stream: stream.end(EndReason.RESOLVEFAILED)
        with pytest.raises(StreamClosed):
            await tor.connect(HOST, 80)
        with pytest.raises(StreamClosed):
            await tor.resolve(HOST)
        assert HOST not in repr(read_now(events))


async def test_no_event_names_the_relay_that_an_onion_service_has_chosen() -> None:
    async with open_pool() as pool:
        settings = pool.current.circuit_settings()
        events = settings.journal.events()
        target = pool.path[-1]._replace(nickname="target")
        purpose = OnionDirectory(target)
        circuit = await build_circuit(pool.channels, pool.path[:2], settings, Random(), purpose=purpose)
        await circuit.extend(target, is_last=False)
        told = read_now(events)
        assert CircuitLaunched(circuit.id, "HS_CLIENT_HSDIR") in told
        assert told[-1] == CircuitExtended(circuit.id, 3, "unnamed")
        for secret in (target.fingerprint, target.nickname):
            assert secret not in repr(told) + repr(circuit)


async def test_nothing_is_made_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(self: Journal, event: Event) -> None:
        raise AssertionError(f"{event} was made for nobody")

    monkeypatch.setattr(Journal, "tell", tell)
    async with served_client(tmp_path) as (tor, _):
        await (await tor.connect(HOST, 80)).aclose()


async def test_every_listener_hears_everything_until_it_is_dropped() -> None:
    journal = Journal()
    first, second = journal.events(), journal.events()
    journal.tell(StreamNew(1))
    assert [await anext(first), await anext(second)] == [StreamNew(1)] * 2
    del first
    assert journal.is_heard
    journal.tell(StreamNew(2))
    assert await anext(second) == StreamNew(2)
    del second
    assert not journal.is_heard


async def test_a_reader_waits_for_the_next(autojump_clock: trio.testing.MockClock) -> None:
    journal = Journal()
    events = journal.events()
    async with trio.open_nursery() as nursery:

        async def tell_later() -> None:
            await trio.sleep(1)
            journal.progress.reach(Phase.CONN)

        nursery.start_soon(tell_later)
        event = await anext(events)
    assert event == ProgressMade(5, "conn", "connecting to a directory server", None)


async def test_a_slow_reader_is_told_how_many_it_has_lost() -> None:
    journal = Journal()
    events = journal.events()
    for number in range(MAX_WAITING + 3):
        journal.tell(StreamNew(number))
    assert [await anext(events), await anext(events)] == [EventsLost(3), StreamNew(3)]
    assert len(events._mailbox.waiting) == MAX_WAITING - 1


async def test_a_trace_prints_events_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORKIT_TRACE", "1")
    async with served_client(tmp_path) as (tor, _):
        await (await tor.connect(HOST, 80)).aclose()
    lines = capsys.readouterr().err.splitlines()
    assert all(re.fullmatch(r"torkit: [A-Z]\w+\(.*\)", line) for line in lines)
    names = [line.split()[1].partition("(")[0] for line in lines]
    assert names.index("CircuitBuilt") < names.index("StreamAttached") < names.index("StreamSucceeded")
    assert HOST not in json.dumps(lines)


async def test_a_trace_that_nobody_reads_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    with open("/dev/full", "w") as full:
        for stderr in (closed, full):
            monkeypatch.setattr("sys.stderr", stderr)
            trace(StreamNew(1))
        monkeypatch.undo()
        with suppress(OSError):
            full.close()


async def test_what_things_are_can_be_seen(tmp_path: Path) -> None:
    async with served_client(tmp_path, is_ready=False) as (tor, _):
        assert re.fullmatch(r"<Tor: [a-z ]+, no directory, 0 clean, 0 dirty, 0 worn circuits>", repr(tor))
        await tor.wait_ready()
        stream = await tor.connect(HOST, 80)
        names = " - ".join(f"${relay.fingerprint}~{relay.nickname}" for relay in stream.path)
        number = stream.circuit.id
        assert repr(stream.circuit) == f"<Circuit {number} GENERAL, {names}, 1 streams, open>"
        assert repr(stream) == f"<Stream {stream.id} on circuit {number}, connected>"
        assert repr(tor).endswith("relays, 0 clean, 1 dirty, 0 worn circuits>")
        guard = tor._parts.guards.guards.find(stream.path[0].identity)
        assert repr(guard) == f"<Guard ${stream.path[0].fingerprint}, reachable: yes, confirmed>"
        stream.close()
        stream.circuit.close()
        assert repr(stream) == f"<Stream {stream.id} on circuit {number}, closed>"
        assert repr(stream.circuit).endswith(": nobody needs it any more>")
        assert HOST not in repr(tor) + repr(stream) + repr(stream.circuit)
