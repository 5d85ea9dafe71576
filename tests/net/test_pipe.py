"""The pipe between file descriptors and a stream: ends, idleness, and descriptors of every kind."""

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from ends import Ends, open_ends
from fake_tor import FakeStream

from torkit.errors import EndReason, StreamClosed, TimedOut
from torkit.net.pipe import Descriptor, pipe, race


@pytest.fixture
def ends() -> Iterator[Ends]:
    with open_ends() as ends:
        yield ends


async def test_bytes_go_both_ways_until_the_peer_ends(ends: Ends) -> None:
    stream = FakeStream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        os.write(ends.stdin, b"ping\0\n")
        assert await stream.peer.receive_some() == b"ping\0\n"
        await stream.peer.send_all(b"pong\xff\r\n")
        assert await trio.to_thread.run_sync(os.read, ends.stdout, 100) == b"pong\xff\r\n"
        await stream.end()


async def test_end_of_stdin_is_not_an_end(ends: Ends) -> None:
    stream = FakeStream()
    os.write(ends.stdin, b"request")
    ends.close(ends.stdin)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        assert await stream.peer.receive_some() == b"request"
        await stream.peer.send_all(b"reply")
        assert await trio.to_thread.run_sync(os.read, ends.stdout, 100) == b"reply"
        await stream.end()


async def test_eof_timeout_of_zero_ends_after_the_last_byte_was_sent(ends: Ends) -> None:
    stream = FakeStream()
    os.write(ends.stdin, b"all of it")
    ends.close(ends.stdin)
    await pipe(stream, source=ends.source, sink=ends.sink, eof_timeout=0)
    assert await stream.peer.receive_some() == b"all of it"


async def test_eof_timeout_counts_from_the_peers_last_byte(
    ends: Ends, mock_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream()
    is_done = trio.Event()

    async def run() -> None:
        await pipe(stream, source=ends.source, sink=ends.sink, eof_timeout=5)
        is_done.set()

    ends.close(ends.stdin)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(3):
            mock_clock.jump(4)
            await stream.peer.send_all(b"x")
            await trio.to_thread.run_sync(os.read, ends.stdout, 100)
            assert not is_done.is_set()
        # From here the clock goes to the next deadline whenever everybody waits; a jump of our own could
        # come before the pipe has noted its last write, and be lost.
        mock_clock.autojump_threshold = 0.05
        await is_done.wait()


async def test_eof_timeout_does_not_run_before_the_end_of_stdin(
    ends: Ends, mock_clock: trio.testing.MockClock
) -> None:
    stream = FakeStream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink, eof_timeout=5))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(100)
        await trio.testing.wait_all_tasks_blocked()
        os.write(ends.stdin, b"late")
        assert await stream.peer.receive_some() == b"late"
        await stream.end()


@pytest.mark.parametrize("at_eof", [False, True])
async def test_idle_timeout_is_an_error(
    ends: Ends, autojump_clock: trio.testing.MockClock, at_eof: bool
) -> None:
    if at_eof:
        ends.close(ends.stdin)
    with pytest.raises(TimedOut, match="3 s"):
        await pipe(FakeStream(), source=ends.source, sink=ends.sink, idle_timeout=3, eof_timeout=9)


async def test_stream_that_fails_gives_its_data_then_its_error(ends: Ends) -> None:
    stream = FakeStream()
    await stream.peer.send_all(b"half")
    await stream.end(EndReason.CONNRESET)
    with pytest.raises(StreamClosed) as caught:
        await pipe(stream, source=ends.source, sink=ends.sink)
    assert caught.value.reason is EndReason.CONNRESET
    assert os.read(ends.stdout, 100) == b"half"


async def test_peer_that_ends_while_we_send_is_still_heard(ends: Ends) -> None:
    stream = FakeStream()
    await stream.peer.send_all(b"last words")
    await stream.end()
    os.write(ends.stdin, b"too late")
    await pipe(stream, source=ends.source, sink=ends.sink)
    assert os.read(ends.stdout, 100) == b"last words"


async def test_a_parent_that_closes_both_ends_has_all_it_wants(ends: Ends) -> None:
    """Status 141 made `git clone git://` through core.gitProxy fail, though all had arrived."""
    stream = FakeStream()
    await stream.peer.send_all(b"all there is")
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            assert await trio.to_thread.run_sync(os.read, ends.stdout, 100) == b"all there is"
            ends.close(ends.stdout)
            await trio.sleep(0.05)
            ends.close(ends.stdin)

        nursery.start_soon(leave)
        assert not await pipe(stream, source=ends.source, sink=ends.sink)


async def test_bytes_that_nobody_reads_break_the_pipe_though_stdin_has_ended(ends: Ends) -> None:
    stream = FakeStream()
    ends.close(ends.stdin)
    ends.close(ends.stdout)
    await stream.peer.send_all(b"undelivered")
    with pytest.raises(BrokenPipeError):
        await pipe(stream, source=ends.source, sink=ends.sink)


async def test_reader_that_is_gone_breaks_the_pipe_though_nothing_is_written(ends: Ends) -> None:
    ends.close(ends.stdout)
    with pytest.raises(BrokenPipeError):
        await pipe(FakeStream(), source=ends.source, sink=ends.sink)


async def test_full_device_is_an_error(ends: Ends) -> None:
    stream = FakeStream()
    await stream.peer.send_all(b"x")
    with open("/dev/full", "wb") as full, pytest.raises(OSError, match="No space left"):
        await pipe(stream, source=ends.source, sink=full.fileno())


async def test_regular_files_and_devices_are_carried_whole(tmp_path: Path) -> None:
    body = os.urandom(1_000_000)
    (tmp_path / "in").write_bytes(body)
    stream = FakeStream()

    async def answer() -> None:
        received = b""
        while len(received) < len(body):
            received += await stream.peer.receive_some()
        await stream.peer.send_all(received[::-1])
        await stream.end()

    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            await pipe(stream, source=source.fileno(), sink=sink.fileno())
    assert (tmp_path / "out").read_bytes() == body[::-1]


async def test_one_socket_as_stdin_and_stdout() -> None:
    near, far = socket.socketpair()
    stream = FakeStream()
    with near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: pipe(stream, source=near.fileno(), sink=near.fileno()))
            far.send(b"ping")
            assert await stream.peer.receive_some() == b"ping"
            await stream.peer.send_all(b"pong")
            assert await trio.to_thread.run_sync(far.recv, 100) == b"pong"
            far.shutdown(socket.SHUT_WR)
            await stream.peer.send_all(b"still open")
            assert await trio.to_thread.run_sync(far.recv, 100) == b"still open"
            await stream.end()


async def test_descriptors_that_are_non_blocking_are_waited_for() -> None:
    """As a terminal that a program has left so: it was "Resource temporarily unavailable"."""
    body = bytes(range(256)) * 4000  # more than the kernel takes
    near, far = socket.socketpair()
    near.setblocking(False)
    stream = FakeStream()
    with near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: pipe(stream, source=near.fileno(), sink=near.fileno()))
            await trio.testing.wait_all_tasks_blocked(0.05)  # nothing is there to be read
            far.send(b"ping")
            assert await stream.peer.receive_some() == b"ping"
            await stream.peer.send_all(body)
            await stream.end()
            received = b""
            while len(received) < len(body):
                received += await trio.to_thread.run_sync(far.recv, 1 << 20)
        assert received == body
        assert not near.getblocking()


async def test_a_thread_that_comes_late_touches_nobody_elses_file(ends: Ends) -> None:
    """By then its descriptor may have been closed, and its number be given to another file."""
    late = Descriptor(ends.source)
    late.close()
    ends.close(ends.source)
    others = [os.pipe() for _ in range(3)]
    for _, writing in others:
        os.write(writing, b"not for us")
    with pytest.raises(OSError, match="Bad file descriptor"):
        await trio.to_thread.run_sync(late.use, os.read, 100)
    for reading, writing in others:
        assert os.read(reading, 100) == b"not for us"
        os.close(reading)
        os.close(writing)


async def test_a_thread_in_the_middle_of_its_call_keeps_its_file(ends: Ends) -> None:
    descriptor = Descriptor(ends.source)
    has_begun = trio.Event()

    def read(number: int) -> bytes:
        trio.from_thread.run_sync(has_begun.set)
        return os.read(number, 100)

    received = []
    async with trio.open_nursery() as nursery:

        async def use() -> None:
            received.append(await trio.to_thread.run_sync(descriptor.use, read))

        nursery.start_soon(use)
        await has_begun.wait()
        descriptor.close()
        ends.close(ends.source)
        os.write(ends.stdin, b"for us")
    assert received == [b"for us"]
    with pytest.raises(BrokenPipeError):  # the last one that could read it is gone
        os.write(ends.stdin, b"x")


async def test_flags_of_the_descriptors_stay_as_they_are(ends: Ends) -> None:
    stream = FakeStream()
    descriptors = (ends.source, ends.sink)
    before = [fcntl.fcntl(descriptor, fcntl.F_GETFL) for descriptor in descriptors]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pipe(stream, source=ends.source, sink=ends.sink))
        os.write(ends.stdin, b"x")
        await stream.peer.receive_some()
        assert [fcntl.fcntl(descriptor, fcntl.F_GETFL) for descriptor in descriptors] == before
        await stream.end()


async def test_race_does_as_the_first_does() -> None:
    async def fail() -> None:
        raise ValueError("first")

    async def succeed() -> None:
        await trio.testing.wait_all_tasks_blocked()

    with pytest.raises(ValueError, match="first"):
        await race(trio.sleep_forever, fail, succeed)
    await race(trio.sleep_forever, succeed)
