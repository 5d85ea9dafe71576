"""Bytes moved without a task: a relay in another thread, so that this one sleeps while data flows."""

import logging
import os
import queue
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import pytest
import trio
from served import build, connect, fresh_relays, serve

from torkit._fast.pump import Pump as CorePump
from torkit._fast.sources import LocalEvent
from torkit.errors import InternalError
from torkit.net.circuit.stream import Stream
from torkit.net.link import pump
from torkit.net.link.pump import STALL, Pump, Stalls
from torkit.net.proxy.carrier import Carrier
from torkit.net.proxy.sockdiag import SockDiag
from torkit.testing.relay import FakeRelay, FakeStream, answer_begin

logger = logging.getLogger("tests")

BODY = bytes(range(256)) * 4096 * 3  # 3 MiB: what goes through in several wakes of anything


@contextmanager
def relays_elsewhere() -> Iterator[list[FakeRelay]]:
    """Three relays that run in another thread; the first can be connected to."""
    relays = fresh_relays(3)
    is_served: queue.SimpleQueue[trio.lowlevel.TrioToken] = queue.SimpleQueue()
    finished = trio.Event()

    async def keep() -> None:
        async with serve(relays[0]):
            is_served.put(trio.lowlevel.current_trio_token())
            await finished.wait()

    thread = threading.Thread(target=trio.run, args=(keep,))
    thread.start()
    token = is_served.get()
    try:
        yield relays
    finally:
        token.run_sync_soon(finished.set)
        thread.join()


def test_a_pump_that_goes_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    CorePump()
    assert os.listdir("/proc/self/fd") == before


class Home:
    """Where a test's carriers live."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.pump = Pump.current()
        self.nursery = nursery
        self.kernel = SockDiag()


class Ended(Exception):
    """How a carrier ended, where not in good order."""


@asynccontextmanager
async def carried_stream(relays: list[FakeRelay]) -> AsyncIterator[tuple[socket.socket, trio.Event]]:
    """A stream whose bytes a carrier carries; the client's end of it, and when the carrier is done."""
    async with trio.open_nursery() as nursery:
        channel = await connect(relays[0])
        nursery.start_soon(channel.run)
        circuit = await build(channel, relays)
        stream: Stream = circuit.begin("web.test", 80)
        await stream.wait_connected()
        home = Home(nursery)
        client, ours = socket.socketpair()
        ours.setblocking(False)
        is_done = trio.Event()
        failures: list[Exception | None] = []
        source = home.pump.add_local(ours.fileno(), None)

        def end(failure: Exception | None) -> None:
            failures.append(failure)
            logger.info("a carrier ended: %r", failure)  # a socketpair tells no reset
            home.pump.remove(source)
            nursery.start_soon(finish)

        async def finish() -> None:
            """Write what the stream still holds, in the place of a proxy's farewell."""
            while not stream.push(ours.fileno()):
                await trio.lowlevel.wait_writable(ours)
            ours.close()
            is_done.set()

        Carrier(home, ours, source, stream, end).start(b"")
        with client:
            yield client, is_done
        assert failures == [None]
        nursery.cancel_scope.cancel()


def receive_all(client: socket.socket) -> bytes:
    data = bytearray()
    while more := client.recv(1 << 16):
        data += more
    return bytes(data)


@pytest.fixture(params=["fast road", "slow twin"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without what trio does not publish."""
    if request.param == "slow twin":
        monkeypatch.delattr("trio._core._io_epoll.EpollIOManager.force_wakeup")
    return str(request.param)


async def test_the_inside_of_trio_is_where_it_was() -> None:
    """Without it all works, at trio's price: nobody else would notice that it has moved."""
    inside = pump._inside_of_trio()
    assert inside.descriptor >= 0
    assert not inside.has_runnable()


async def test_a_download_reaches_the_client_whole_while_tasks_go_on(road: str) -> None:
    with relays_elsewhere() as relays:

        def answer(stream: FakeStream) -> None:
            answer_begin(stream)
            stream.write(BODY)
            stream.finish()

        relays[2].on_begin = answer
        ticks = 0
        async with carried_stream(relays) as (client, is_done), trio.open_nursery() as nursery:

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await trio.sleep(0.005)
                    ticks += 1

            nursery.start_soon(tick)
            assert await trio.to_thread.run_sync(receive_all, client) == BODY
            await is_done.wait()
            nursery.cancel_scope.cancel()
        # Deadlines and threads are trio's: while the pump waits in its place both still reach it.
        assert ticks > 0


async def test_an_upload_reaches_the_exit_whole(road: str) -> None:
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with relays_elsewhere() as relays:

        def take(stream: FakeStream, data: bytes) -> None:
            if len(stream.received) == len(BODY):
                received.put(bytes(stream.received))
                stream.finish()

        relays[2].on_data = take
        async with carried_stream(relays) as (client, is_done):
            await trio.to_thread.run_sync(client.sendall, BODY)
            assert await trio.to_thread.run_sync(received.get) == BODY
            await is_done.wait()


async def test_a_handler_that_fails_ends_its_own_socket_only(caplog: pytest.LogCaptureFixture) -> None:
    faults: list[str] = []

    class Broken:
        def on_local(self, event: LocalEvent) -> None:
            raise RuntimeError("web.test")

        def on_fault(self, error: InternalError) -> None:
            faults.append(str(error))
            moved.remove(source)

    class Sound:
        def __init__(self) -> None:
            self.heard = trio.Event()

        def on_local(self, event: LocalEvent) -> None:
            moved.remove(other)
            self.heard.set()

        def on_fault(self, error: InternalError) -> None:
            raise AssertionError

    moved = Pump.current()
    sound = Sound()
    pairs = [socket.socketpair() for _ in range(2)]
    source = moved.add_local(pairs[0][0].fileno(), Broken())
    other = moved.add_local(pairs[1][0].fileno(), sound)
    for _, far in pairs:
        far.send(b"x")
    await sound.heard.wait()
    assert faults == ["an internal error (RuntimeError) ended a connection"]
    assert faults[0] in caplog.text
    assert "web.test" not in caplog.text
    for near, far in pairs:
        near.close()
        far.close()


class Clock:
    """time.monotonic, for the pump: a millisecond passes at each look, and as much as is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


class FloodedCore:
    """A core that finds an event whenever it is asked."""

    ended_for_memory = 0

    def __init__(self, owner: object) -> None:
        self.turns = 0
        self._owner = owner

    def run(self, other: int, seconds: float, linger: float, turn: float) -> list[tuple[object, object]]:
        self.turns += 1
        assert self.turns < 1000
        return [(self._owner, LocalEvent.READABLE)]


class Slow:
    """Its handler takes as long as is said."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def on_local(self, event: LocalEvent) -> None:
        self._clock.now += self._seconds

    def on_fault(self, error: InternalError) -> None:
        raise AssertionError(error)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("torkit.net.link.pump.time.monotonic", clock)
    return clock


async def test_trio_has_its_turn_while_every_look_finds_an_event(clock: Clock) -> None:
    pump = Pump()
    core = FloodedCore(Slow(clock, 0.0))
    pump._core = core  # type: ignore[assignment]  # a stand-in
    before = clock.now
    pump.before_io_wait(60.0)
    assert core.turns > 1
    assert clock.now - before < 0.05


async def test_a_handler_that_keeps_all_others_waiting_is_named(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pump = Pump()
    assert pump.stalled_seconds == 0
    for seconds, expected in ((STALL - 0.1, 0), (STALL + 0.2, 1)):
        pump._core = FloodedCore(Slow(clock, seconds))  # type: ignore[assignment]  # a stand-in
        pump.before_io_wait(0.0)
        pump.after_io_wait(0.0)
        assert len(caplog.records) == expected
    assert "everything stood still for 0.7 s in Slow" in caplog.text
    assert pump.stalled_seconds == pytest.approx(STALL + 0.2, abs=0.1)


async def test_a_task_that_keeps_all_others_waiting_is_named(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pump = Pump()
    trio.lowlevel.add_instrument(pump)

    async def tarry() -> None:
        clock.now += 3.0
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tarry)
    trio.lowlevel.remove_instrument(pump)
    assert "everything stood still for 3.0 s in" in caplog.text
    assert "tarry" in caplog.text


async def test_a_machine_that_stood_still_while_we_slept_is_nobodys_stall_but_known(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pump = Pump()
    pump._core = SimpleNamespace(run=lambda *_: [], ended_for_memory=0)  # type: ignore[assignment]  # idle
    pump.before_io_wait(5.0)
    clock.now += 5.2
    pump.after_io_wait(5.0)
    assert pump.stalled_seconds == 0
    pump.before_io_wait(5.0)
    clock.now += 60.0
    pump.after_io_wait(5.0)
    assert pump.stalled_seconds == pytest.approx(55.0, abs=0.1)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("stalls", "is_excused"),
    [
        ([], False),
        ([(0.0, 1.0)], False),
        ([(n, n + 0.6) for n in (0.0, 2.0, 4.0, 6.0, 8.0)], False),  # a busy machine
        ([(0.0, 6.0)], True),
        ([(9.0, 9.9)], True),
    ],
    ids=["none", "early", "some", "long", "at the end"],
)
def test_who_had_no_fair_time_is_excused(stalls: list[tuple[float, float]], is_excused: bool) -> None:
    known = Stalls(0.0)
    for begins, ends in stalls:
        known._count(ends, ends - begins)
    assert known.excuse(0.0, 0.0, 10.0) is is_excused
