"""One account for memory: what counts, who ends when the limit is passed, what a peer cannot make us hold."""

import gc
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import trio
from fast.talk import CONGESTION_CONTROL, Talk, failure_of
from served import CONGESTION_CONTROL as RELAY_WITH_CC
from served import build, fresh_relays, open_stream, relay_of, serve_channel

from torkit._fast import memory
from torkit._fast.events import CircuitFailed
from torkit.cli.memory import parse_size
from torkit.directory.netdoc import decode_protocols
from torkit.errors import CircuitClosed, DestroyReason, EndReason, UsageError
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.stream import StreamBroken
from torkit.net.link.channel import Channel
from torkit.net.memory import FLOOR, LEAST, MOST, default_limit, limit_memory
from torkit.testing.relay import FakeStream
from torkit.testing.relay.raw_tls import RawPeer, raw_server

CELL_DATA_LEN = 498
LARGE = 450 * CELL_DATA_LEN  # bytes: under the window of one stream


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Tests set a limit of their own. What earlier tests left behind must not be freed meanwhile."""
    gc.collect()
    before = memory.limit()
    yield
    memory.set_limit(before)


# --- What counts ------------------------------------------------------------------------------------------


def test_a_queue_counts_until_it_has_been_read() -> None:
    before = memory.held()
    talk = Talk(1)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    empty = memory.held()
    talk.far_stream(circuit, stream).write(bytes(LARGE))
    talk.exchange()
    assert memory.held() - empty >= LARGE
    assert stream.take() == bytes(LARGE)
    assert memory.held() - empty < LARGE / 2
    circuit.keep(1000)  # somebody keeps what was read
    kept = memory.held()
    circuit.keep(-1000)
    assert kept - memory.held() == 1000
    del talk, circuit, stream
    assert memory.held() - before < LARGE / 2


@pytest.mark.parametrize("excess", [0, 1])
def test_what_may_come_after_xoff_is_bounded_to_the_byte(excess: int) -> None:
    talk = Talk(hops=[CONGESTION_CONTROL])
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    far = talk.far_stream(circuit, stream)
    stream.note_xoff_sent(700)
    far.data(bytes(300))
    far.data(bytes(400 + excess))
    events = talk.exchange()
    failed = [event for event in events if isinstance(event, CircuitFailed)]
    assert len(failed) == excess
    if failed:
        assert "after XOFF" in str(failure_of(events))
    else:
        stream.note_xon_sent()
        far.data(bytes(400))
        assert not any(isinstance(event, CircuitFailed) for event in talk.exchange())


# --- Over the limit ---------------------------------------------------------------------------------------


async def test_the_circuit_that_holds_most_ends_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    relays = fresh_relays(1)
    async with serve_channel(relays[0]) as channel:
        small, large = await build(channel, relays), await build(channel, relays)
        ends: list[FakeStream] = []
        streams = []
        for circuit in (small, large):
            stream, far = await open_stream(circuit, relays[0])
            streams.append(stream)
            ends.append(far)
        ends[0].write(bytes(LARGE // 4))
        while streams[0]._core.queued < LARGE // 4:
            await trio.sleep(0.01)
        memory.set_limit(memory.held() + LARGE // 2)
        ends[1].write(bytes(LARGE))
        with trio.fail_after(30):
            while large.error is None:
                await trio.sleep(0.01)
        assert isinstance(large.error, CircuitClosed)
        assert large.error.reason is DestroyReason.RESOURCELIMIT
        assert small.error is None
        received = b""
        while len(received) < LARGE // 4:
            received += await streams[0].receive_some()
        assert received == bytes(LARGE // 4)
        ends[0].write(b"more")
        assert await streams[0].receive_some() == b"more"
    warnings = [record for record in caplog.records if "that held most" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].levelno == logging.WARNING


async def test_a_limit_that_is_kept_ends_nobody() -> None:
    relays = fresh_relays(1)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        stream, far = await open_stream(circuit, relays[0])
        memory.set_limit(memory.held() + 8 * LARGE)
        far.write(bytes(LARGE))
        while stream._core.queued < LARGE:
            await trio.sleep(0.01)
        assert circuit.error is None


async def test_a_queue_that_is_dropped_after_its_stream_has_ended_is_no_end_of_file() -> None:
    """The peer ended in good order, so nothing but the cut itself can tell of it."""
    relays = fresh_relays(1)
    async with serve_channel(relays[0]) as channel:
        circuit, other = await build(channel, relays), await build(channel, relays)
        stream, far = await open_stream(circuit, relays[0])
        second, far_second = await open_stream(other, relays[0])
        far.write(bytes(LARGE))
        far.finish()
        with trio.fail_after(30):
            while not stream._core.has_ended:
                await trio.sleep(0.01)
            assert stream.queued == LARGE
            memory.set_limit(memory.held() - LARGE)
            far_second.write(b"x")
            assert await second.receive_some() == b"x"
        with pytest.raises(StreamBroken, match="memory limit") as caught:
            await stream.receive_some()
        assert caught.value.reason is EndReason.RESOURCELIMIT
        assert stream.failure is not None
        assert other.error is None


async def test_what_a_task_still_keeps_of_an_ended_circuit_ends_no_other() -> None:
    """A directory answer is freed by its task, which has its turn only after the pump."""
    relays = fresh_relays(1)
    async with serve_channel(relays[0]) as channel:
        large, small = await build(channel, relays), await build(channel, relays)
        ends = [await open_stream(circuit, relays[0]) for circuit in (large, small)]
        for _, far in ends:
            far.write(bytes(LARGE // 4))
        with trio.fail_after(30):
            while any(stream.queued < LARGE // 4 for stream, _ in ends):
                await trio.sleep(0.01)
            large.note_kept(10 * LARGE)
            memory.set_limit(memory.held() - LARGE)
            ends[1][1].write(b"x")
            while large.error is None:
                await trio.sleep(0.01)
        held = memory.held()
        large.note_kept(-10 * LARGE)  # its task lets go: it counts no more
        assert memory.held() == held
        assert small.error is None
        assert channel.error is None


async def test_a_circuit_that_holds_only_what_a_task_keeps_can_be_ended() -> None:
    relays = fresh_relays(1)
    async with serve_channel(relays[0]) as channel:
        circuit, other = await build(channel, relays), await build(channel, relays)
        stream, far = await open_stream(other, relays[0])
        memory.set_limit(memory.held() + LARGE)
        circuit.note_kept(2 * LARGE)
        far.write(b"x")
        with trio.fail_after(30):
            assert await stream.receive_some() == b"x"
            while circuit.error is None:
                await trio.sleep(0.01)
        assert other.error is None


async def test_a_buffer_in_which_nothing_waits_ends_nobody() -> None:
    relays = fresh_relays(1)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        stream, far = await open_stream(circuit, relays[0])
        far.write(bytes(LARGE // 4))
        with trio.fail_after(30):
            received = 0
            while received < LARGE // 4:
                received += len(await stream.receive_some())
            before = memory.held()
            memory.set_limit(before - LARGE // 8)
            far.write(b"x")
            assert await stream.receive_some() == b"x"
        assert memory.held() < before
        assert circuit.error is None
        assert channel.error is None


# --- What may come after XOFF -----------------------------------------------------------------------------


async def test_what_may_come_after_xoff_grows_with_the_windows_and_no_faster_beyond_slow_start() -> None:
    settings = CircuitSettings({"cc_sendme_inc": 31, "cc_ss_max": 500, "cc_cwnd_init": 124})
    [relay] = fresh_relays(1)
    relay.cc_sendme_inc = 31
    async with serve_channel(relay) as channel:
        circuit = channel.open_circuit(8, settings)
        await circuit.create(relay_of(relay, protocols=decode_protocols(RELAY_WITH_CC)), is_last=True)
        stream, far = await open_stream(circuit, relay)

        async def receive(cells: int) -> int:
            far.write(bytes(cells * CELL_DATA_LEN))
            received = 0
            while received < cells * CELL_DATA_LEN:
                received += len(await stream.receive_some())
            return circuit.bytes_under_way(stream._core)

        with trio.fail_after(30):
            assert circuit.bytes_under_way(stream._core) == 2 * 124 * CELL_DATA_LEN
            assert await receive(31) == 2 * (124 + 31 + 1) * CELL_DATA_LEN
            assert await receive(31 * 19) == 2 * (500 + 20) * CELL_DATA_LEN


# --- A relay that does not take our answers ---------------------------------------------------------------


async def test_a_relay_that_does_not_take_our_answers_is_read_no_more_until_it_does() -> None:
    """Each cell of data costs us a SENDME here, and these pile up while the relay reads nothing."""
    [relay] = fresh_relays(1)
    relay.cc_sendme_inc = 1
    total = 1600  # cells: 800 KB of SENDMEs
    is_reading = threading.Event()

    def play(peer: RawPeer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        peer.shake_hands()
        link = peer.open_link()
        begun: list[FakeStream] = []

        def answer(stream: FakeStream) -> None:
            stream.connected()
            begun.append(stream)

        relay.on_begin_dir = answer
        while not begun:
            peer.send(peer.records(link.receive(peer.receive())))
        for _ in range(total):
            begun[0].data(bytes(CELL_DATA_LEN))
        peer.send(peer.records(link.take()))
        assert is_reading.wait(60)
        peer.wait_closed()

    with raw_server(relay, play) as address:
        async with trio.open_nursery() as nursery:
            channel = await Channel.connect(
                *address, rsa=relay.rsa_identity, ed25519=relay.ed_identity, rng=Random()
            )
            nursery.start_soon(channel.run)
            channel._tls._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
            circuit = channel.open_circuit(8, CircuitSettings({"cc_sendme_inc": 1}))
            await circuit.create(relay_of(relay, protocols=decode_protocols(RELAY_WITH_CC)), is_last=True)
            stream = circuit.begin_directory()
            await stream.wait_connected()
            received = 0
            while True:
                with trio.move_on_after(1 if received else 60) as waiting:
                    received += len(await stream.receive_some())
                if waiting.cancelled_caught:
                    break
            stopped_at = received
            is_reading.set()
            with trio.fail_after(60):
                while received < total * CELL_DATA_LEN:
                    received += len(await stream.receive_some())
            nursery.cancel_scope.cancel()
    assert 0 < stopped_at < 0.9 * received


# --- The option -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [("256M", 256 << 20), ("1G", 1 << 30), ("1g", 1 << 30), ("65536k", 64 << 20), ("100MiB", 100 << 20)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text) == count
    assert parse_size(None) is None


@pytest.mark.parametrize("text", ["", "M", "1T", "-1", "1.5G", "1 0M", "x", "9" * 16])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_a_limit_below_the_floor_is_refused_and_one_at_it_taken() -> None:
    with pytest.raises(UsageError):
        limit_memory(FLOOR - 1)
    limit_memory(FLOOR)
    assert memory.limit() == FLOOR


def test_the_default_is_a_quarter_of_what_the_machine_or_its_group_has(tmp_path: Path) -> None:
    group = tmp_path / "memory.max"
    assert LEAST <= default_limit(group) <= MOST
    for text, expected in (("max\n", default_limit(group)), (f"{1 << 30}\n", 1 << 28), ("1048576\n", LEAST)):
        group.write_text(text)
        assert default_limit(group) == expected


def test_nothing_is_left_in_the_account_when_all_is_gone() -> None:
    gc.collect()
    before = memory.held()
    talk = Talk(2)
    circuit = talk.circuit()
    stream = talk.stream(circuit)
    talk.far_stream(circuit, stream).write(bytes(LARGE))
    talk.exchange()
    del talk, circuit, stream
    gc.collect()
    assert memory.held() == before


# --- What goes back to the system -------------------------------------------------------------------------

AFTER_A_BURST = """
import os
import resource
import sys
from torkit._fast import memory
from torkit._fast.pump import Pump
from fast.talk import Talk

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "ours":
    memory.own_process()
pump, (never_readable, _) = Pump(), os.pipe()
circuit = Talk(1).circuit()
blocks = [bytes(10_000) for _ in range(int(sys.argv[2]))]
circuit.keep(10_000 * len(blocks))
pump.run(never_readable, 1.0, 0.0, 1.0)
highest = resident()
circuit.keep(-10_000 * len(blocks))
blocks = blocks[::20]  # what is in use keeps the heap from shrinking by itself
pump.run(never_readable, 1.0, 0.0, 1.0)
print((highest - resident()) >> 10)
"""


@pytest.mark.parametrize(
    ("whose", "blocks", "least", "most"),
    [
        pytest.param("ours", 2000, 10_000, 20_000, id="a burst"),
        pytest.param("ours", 300, 0, 500, id="too little for a look at all memory"),
        pytest.param("a library's", 2000, 0, 500, id="a library's process is not ours"),
    ],
)
def test_what_a_burst_has_freed_goes_back_to_the_system(
    whose: str, blocks: int, least: int, most: int
) -> None:
    """In KiB."""
    child = [sys.executable, "-c", AFTER_A_BURST, whose, str(blocks)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(child, capture_output=True, text=True, check=True, env=environment)
    assert least <= int(ended.stdout) <= most
