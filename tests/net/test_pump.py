"""Bytes moved without a task: a relay in another thread, so that this one sleeps while data flows."""

import queue
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from fakes import FakeRelay, FakeStream, answer_begin
from served import build, connect, fresh_relays, serve

from torkit.errors import InternalError
from torkit.net import pump
from torkit.net.carrier import Carrier
from torkit.net.pump import Pump
from torkit.net.sockdiag import SockDiag
from torkit.net.stream import Stream

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
            home.pump.remove(source)
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
        monkeypatch.setattr(pump, "_inside_of_trio", lambda: (-1, lambda: True))
    return str(request.param)


async def test_the_inside_of_trio_is_where_it_was() -> None:
    """Without it all works, at trio's price: nobody else would notice that it has moved."""
    descriptor, has_runnable = pump._inside_of_trio()
    assert descriptor >= 0
    assert not has_runnable()


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
        def on_pump(self, what: object) -> None:
            raise RuntimeError("web.test")

        def on_fault(self, error: InternalError) -> None:
            faults.append(str(error))
            moved.remove(source)

    class Sound:
        def __init__(self) -> None:
            self.heard = trio.Event()

        def on_pump(self, what: object) -> None:
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
