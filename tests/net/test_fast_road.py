"""The fast road of `torkit connect`: pipes and files that the core reads and writes, over scripted relays."""

import os
import pty
import select
import socket
import time
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from ends import Ends, open_ends, waiting_in
from served import PLAIN, open_stream, serve_circuit
from waiting import until_by_the_wall

from torkit.errors import EndReason, StreamClosed, TimedOut
from torkit.net import pipe as pipe_module
from torkit.net.circuit.stream import Stream
from torkit.net.link.pump import Pump
from torkit.net.pipe import pipe
from torkit.testing.relay import WITHOUT_CGO, FakeStream

BODY = bytes(range(256)) * 4096  # 1 MiB: four times what the windows of a stream let through at once
PROTOCOLS = pytest.mark.parametrize("protocols", [PLAIN, WITHOUT_CGO], ids=["windows", "congestion control"])


@pytest.fixture
def ends() -> Iterator[Ends]:
    with open_ends() as ends:
        yield ends


@dataclass
class Threads:
    """The calls that the slow road made, by name."""

    begun: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads = Threads()
    in_thread = pipe_module._in_thread

    async def spy(descriptor: Any, call: Any, *arguments: Any) -> Any:
        threads.begun.append(call.__name__)
        result = await in_thread(descriptor, call, *arguments)
        threads.returned.append(call.__name__)
        return result

    monkeypatch.setattr(pipe_module, "_in_thread", spy)
    return threads


@asynccontextmanager
async def opened(protocols: str = PLAIN) -> AsyncIterator[tuple[Stream, FakeStream]]:
    """A stream, and the exit's end of it."""
    async with serve_circuit(2, protocols=protocols) as (circuit, relays):
        yield await open_stream(circuit, relays[1])


async def until_received(far: FakeStream, count: int) -> bytes:
    await until_by_the_wall(lambda: len(far.received) >= count)
    return bytes(far.received)


def in_thread(call: Any, *arguments: Any) -> Any:
    return trio.to_thread.run_sync(call, *arguments)


def read_exactly(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(descriptor, count - len(data))
    return data


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def write_all_and_close(ends: Ends, data: bytes) -> None:
    write_all(ends.stdin, data)
    ends.close(ends.stdin)


@PROTOCOLS
async def test_pipes_are_carried_whole_both_ways_without_a_thread(
    ends: Ends, threads: Threads, protocols: str
) -> None:
    async with opened(protocols) as (stream, far), stream, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        far.write(BODY)
        nursery.start_soon(in_thread, write_all, ends.stdin, BODY[::-1])
        assert await in_thread(read_exactly, ends.stdout, len(BODY)) == BODY
        assert await until_received(far, len(BODY)) == BODY[::-1]
        assert threads.begun == []
        far.finish()


@PROTOCOLS
async def test_a_writer_that_has_gone_ends_nothing_and_loses_nothing(ends: Ends, protocols: str) -> None:
    """Not even while windows are closed, and a pipe's worth of bytes waits with nobody at its other end."""
    async with opened(protocols) as (stream, far), stream, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        await in_thread(write_all_and_close, ends, BODY)
        assert await until_received(far, len(BODY)) == BODY
        far.write(b"answer")
        assert await in_thread(os.read, ends.stdout, 100) == b"answer"
        far.finish()


async def test_an_eof_timeout_of_zero_ends_once_all_is_sent(ends: Ends) -> None:
    async with opened() as (stream, far), stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, write_all_and_close, ends, BODY)
            assert not await pipe(stream, source=ends.source, sink=ends.sink, eof_timeout=0)
        assert await until_received(far, len(BODY)) == BODY


async def wait(seconds: int, clock: trio.testing.MockClock) -> None:
    for _ in range(seconds):
        clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("at_eof", [False, True])
async def test_time_runs_from_the_last_byte(
    ends: Ends, mock_clock: trio.testing.MockClock, threads: Threads, at_eof: bool
) -> None:
    ended: list[object] = []

    async def run() -> None:
        timeouts = {"eof_timeout": 10.0} if at_eof else {"idle_timeout": 10.0}
        try:
            ended.append(await pipe(stream, source=ends.source, sink=ends.sink, **timeouts))
        except TimedOut as error:
            ended.append(str(error))

    if at_eof:
        ends.close(ends.stdin)
    async with opened() as (stream, far), stream, trio.open_nursery() as nursery:
        nursery.start_soon(run)
        if at_eof:
            await until_by_the_wall(
                lambda: "read_some" in threads.returned
            )  # the slow road's, for which no clock here waits
        await wait(8, mock_clock)
        for _ in range(3):
            far.write(b"x")
            assert await in_thread(os.read, ends.stdout, 100) == b"x"
            await wait(8, mock_clock)
        if not at_eof:
            os.write(ends.stdin, b"x")
            await until_received(far, 1)
            await wait(8, mock_clock)
        assert not ended
        await wait(4, mock_clock)
    assert ended == [False if at_eof else "nothing was sent or received for 10 s"]


async def test_what_comes_after_the_pipe_goes_to_nobody_elses_file(ends: Ends, tmp_path: Path) -> None:
    """Its descriptors are closed then, and their numbers may be those of other files."""
    ends.close(ends.stdin)
    async with opened() as (stream, far), stream:
        await pipe(stream, source=ends.source, sink=ends.sink, eof_timeout=0)
        with ExitStack() as others:
            files = [others.enter_context(open(tmp_path / str(number), "wb")) for number in range(9)]
            far.write(b"late")
            with trio.fail_after(30):
                assert await stream.receive_some() == b"late"
    assert [os.path.getsize(file.name) for file in files] == [0] * 9


async def test_a_writer_that_has_gone_keeps_nobody_busy(ends: Ends) -> None:
    """The system tells whoever watches a pipe for anything, again and again, that its other end is closed."""
    window = 500 * 498
    async with opened() as (stream, far), stream, trio.open_nursery() as nursery:
        far.hop.relay.on_stream_sendme_due = lambda _: None
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        await in_thread(write_all_and_close, ends, bytes(window + 60_000))
        await until_received(far, window - 4 * 498)  # each read may end in a cell that is not full
        await until_by_the_wall(lambda: not select.select([Pump.current()._core.descriptor], [], [], 0)[0])
        far.finish()


@PROTOCOLS
async def test_a_reader_that_is_slow_gets_all(ends: Ends, protocols: str) -> None:
    async with opened(protocols) as (stream, far), stream, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        far.write(BODY)
        far.finish()
        received = b""
        while len(received) < len(BODY):
            await trio.sleep(0.01)
            received += await in_thread(os.read, ends.stdout, 50_000)
        assert received == BODY


async def test_a_reader_that_has_gone_breaks_the_pipe_though_nothing_is_written(ends: Ends) -> None:
    async with opened() as (stream, _), stream, trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(BrokenPipeError):
                await pipe(stream, source=ends.source, sink=ends.sink)

        nursery.start_soon(run)
        await trio.sleep(0.05)
        ends.close(ends.stdout)


async def test_a_stream_that_fails_gives_its_data_then_its_error(ends: Ends) -> None:
    async with opened() as (stream, far), stream:
        far.write(b"half")
        far.finish(EndReason.CONNRESET)
        with pytest.raises(StreamClosed) as caught:
            await pipe(stream, source=ends.source, sink=ends.sink)
    assert caught.value.reason is EndReason.CONNRESET
    assert os.read(ends.stdout, 100) == b"half"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("reason", [EndReason.CONNRESET, EndReason.MISC, EndReason.TIMEOUT, None])
async def test_who_reads_late_gets_all_that_came_before_a_failure(
    ends: Ends, kind: str, reason: EndReason | None
) -> None:
    """The kernel holds some of it, we the rest. Without a reason, the circuit is lost."""
    body = BODY[:200_000]
    near, far_end = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    sink, reading = (ends.sink, ends.stdout) if kind == "pipe" else (near.fileno(), far_end.fileno())
    with near, far_end:
        async with opened() as (stream, far), stream, trio.open_nursery() as nursery:
            failures: list[StreamClosed] = []

            async def carry() -> None:
                try:
                    await pipe(stream, source=ends.source, sink=sink)
                except StreamClosed as error:
                    failures.append(error)

            nursery.start_soon(carry)
            far.write(body)
            if reason is None:
                far.circuit.destroy()
            else:
                far.finish(reason)
            await until_by_the_wall(lambda: stream.has_ended)
            await trio.testing.wait_all_tasks_blocked()
            assert failures == []  # told before the rest is delivered
            assert await in_thread(read_exactly, reading, len(body)) == body
        assert [error.reason for error in failures] == [reason or EndReason.DESTROY]


async def test_a_peer_that_ends_while_we_send_is_still_heard(ends: Ends) -> None:
    async with opened() as (stream, far), stream:
        far.write(b"last words")
        far.finish()
        os.write(ends.stdin, b"too late")
        assert await pipe(stream, source=ends.source, sink=ends.sink)
    assert os.read(ends.stdout, 100) == b"last words"


@pytest.mark.parametrize("rate", [0, 10_000, *range(40_000, 400_000, 20_000)])  # KB a second
async def test_after_an_xon_all_goes_on_where_it_was(ends: Ends, threads: Threads, rate: int) -> None:
    """At rates at which a feed is due at once again, some stood still: it became due between two looks."""
    allowing_xoff, held, rest = BODY[:300_000], BODY[300_000:350_000], BODY[350_000:]
    async with opened(WITHOUT_CGO) as (stream, far), stream, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        await in_thread(write_all, ends.stdin, allowing_xoff)
        await until_received(far, len(allowing_xoff))
        far.xoff()
        await until_by_the_wall(lambda: stream._core.is_xoff)
        os.write(ends.stdin, held)
        await until_by_the_wall(lambda: waiting_in(ends.source) == 0)  # the core has read it
        far.xon(kbps_ewma=rate)
        await in_thread(write_all, ends.stdin, rest)
        assert await until_received(far, len(BODY)) == BODY
        assert "read_some" not in threads.begun
        far.finish()


@pytest.mark.parametrize("is_file", [False, True], ids=["a pipe", "a file"])
async def test_the_core_keeps_to_the_rate_of_an_xon(ends: Ends, tmp_path: Path, is_file: bool) -> None:
    rate = 50_000  # bytes a second
    body = BODY[: 300_000 + 3 * rate]
    (tmp_path / "in").write_bytes(body[300_000:])
    came: list[tuple[float, int]] = []
    async with opened(WITHOUT_CGO) as (stream, far), stream, trio.open_nursery() as nursery:
        await stream.send_all(body[:300_000])
        await until_received(far, 300_000)
        far.xoff()
        await until_by_the_wall(lambda: stream._core.is_xoff)
        with open(tmp_path / "in", "rb", buffering=0) as file:
            source = file.fileno() if is_file else ends.source
            nursery.start_soon(lambda: pipe(stream, source=source, sink=ends.sink))
            if not is_file:
                nursery.start_soon(in_thread, write_all, ends.stdin, body[300_000:])
            far.circuit.hops[-1].relay.on_data = lambda *_: came.append((time.monotonic(), len(far.received)))
            began = time.monotonic()
            far.xon(kbps_ewma=rate // 1000)
            assert await until_received(far, len(body)) == body
            far.finish()
    # A second's worth may come at once.
    assert all(count - 300_000 <= rate * (when - began + 1) for when, count in came)


@PROTOCOLS
async def test_files_are_carried_whole_from_where_they_stand(
    tmp_path: Path, threads: Threads, protocols: str
) -> None:
    """And left there: what the shell writes before and after stays in order."""
    (tmp_path / "in").write_bytes(b"not this" + BODY)
    with (
        open(tmp_path / "in", "rb", buffering=0) as source,
        open(tmp_path / "out", "wb", buffering=0) as sink,
    ):
        assert source.read(8) == b"not this"
        sink.write(b"before")
        async with opened(protocols) as (stream, far), stream, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: pipe(stream, source=source.fileno(), sink=sink.fileno()))
            assert await until_received(far, len(BODY)) == BODY
            far.write(BODY[::-1])
            far.finish()
        sink.write(b"after")
    assert (tmp_path / "out").read_bytes() == b"before" + BODY[::-1] + b"after"
    assert threads.begun in ([], ["read_some"])  # that of the end of the file


async def test_a_full_disk_is_an_error(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is none that the core writes to, but for this test."""
    monkeypatch.setattr(os, "devnull", "/dev/full")
    async with opened() as (stream, far), stream:
        far.write(b"x")
        with open("/dev/full", "wb") as full, pytest.raises(OSError, match="No space left"):
            await pipe(stream, source=ends.source, sink=full.fileno())


async def test_a_terminal_is_written_by_the_core_and_stays_as_it_was(ends: Ends, threads: Threads) -> None:
    ours, terminal = pty.openpty()
    tty.setraw(terminal)
    async with opened() as (stream, far), stream, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=terminal))
        far.write(BODY)
        assert await in_thread(read_exactly, ours, len(BODY)) == BODY
        assert os.get_blocking(terminal)
        assert threads.begun == []
        far.finish()
    os.close(ours)
    os.close(terminal)


async def test_flags_of_the_descriptors_stay_as_they_are(ends: Ends) -> None:
    async with opened() as (stream, far), stream, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        os.write(ends.stdin, b"x")
        await until_received(far, 1)
        assert os.get_blocking(ends.source)
        assert os.get_blocking(ends.sink)
        far.finish()


@pytest.mark.parametrize("kind", ["named pipe", "socket"])
async def test_other_kinds_take_the_slow_road(
    ends: Ends, tmp_path: Path, threads: Threads, kind: str
) -> None:
    if kind == "socket":
        near, far_end = socket.socketpair()
        sink, reading = near.detach(), far_end.detach()
    else:
        os.mkfifo(tmp_path / "named")
        sink = reading = os.open(tmp_path / "named", os.O_RDWR)
    async with opened() as (stream, far), stream, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=sink))
        far.write(b"x")
        assert await in_thread(os.read, reading, 100) == b"x"
        assert "write_some" in threads.begun
        far.finish()
    for descriptor in {sink, reading}:
        os.close(descriptor)


async def test_a_pipe_held_by_the_wrong_end_is_an_error(ends: Ends) -> None:
    """Opened once more, it would be the right one, and others' bytes be read."""
    async with opened() as (stream, _), stream:
        with pytest.raises(OSError, match="Bad file descriptor"):
            await pipe(stream, source=ends.stdin, sink=ends.sink)
