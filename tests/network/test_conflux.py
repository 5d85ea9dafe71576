"""Circuits that real exits link: traffic by both legs, a leg that stands still, a leg that dies."""

import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from network.private_network import RunningTestnet, running_testnet
from network.servers import HOST, PAGE, EchoServer, WebServer, blocks, sha256_of
from waiting import until

import torkit
from torkit import Tor
from torkit.net.circuit.linked import LinkedCircuit
from torkit.net.circuit.stream import Stream, StreamBroken
from torkit.testnet import Options

pytestmark = pytest.mark.network

EXITS = ("exit1", "exit2", "exit3")
MIB = 1 << 20

# What an exit would say of numbers, hops or amounts that are against the rules.
FAULTS = ("less than the last delivered", "incorrect hop", "OOO queue is at maximum")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each exit notes what it links."""
    return tmp_path_factory.mktemp("exits")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[RunningTestnet]:
    torrc = {name: [f"Log [circ]info file {logs / name}", "ProtocolWarnings 1"] for name in EXITS}
    with running_testnet(tmp_path_factory.mktemp("conflux"), Options(torrc=torrc)) as net:
        yield net


def sets_of(tor: Tor) -> list[LinkedCircuit]:
    clean = tor._parts.circuits.clean
    return [entry.circuit for entry in clean if isinstance(entry.circuit, LinkedCircuit)]


@asynccontextmanager
async def open_client(net: RunningTestnet, data_dir: Path, *, conflux: bool = True) -> AsyncIterator[Tor]:
    async with torkit.open_tor(network=net.network_file, data_dir=data_dir, conflux=conflux) as tor:
        with trio.fail_after(60):
            await tor.wait_ready()
            if conflux:
                await until(lambda: len(sets_of(tor)) == 3)
            yield tor


async def ask(tor: Tor, port: int, length: int) -> tuple[Stream, LinkedCircuit]:
    """A stream on which `length` bytes were asked for."""
    stream = await tor.connect(HOST, port)
    assert isinstance(stream.circuit, LinkedCircuit)
    await stream.send_all(b"GET /bytes/%d HTTP/1.0\r\n\r\n" % length)
    return stream, stream.circuit


class Download:
    """The body of an answer: its length and hash so far."""

    def __init__(self, stream: Stream) -> None:
        self.length = 0
        self.digest = hashlib.sha256()
        self._stream = stream
        self._head = b""

    async def receive(self, at_least: int) -> None:
        """Until so much has come, or all."""
        while self.length < at_least and (data := await self._stream.receive_some()):
            if not self.length:
                self._head += data
                _, end, data = self._head.partition(b"\r\n\r\n")
                if not end:
                    continue
            self.length += len(data)
            self.digest.update(data)


def lines(logs: Path, what: str) -> int:
    return sum((logs / name).read_text().count(what) for name in EXITS)


async def test_a_download_comes_by_both_legs(
    net: RunningTestnet,
    tmp_path: Path,
    logs: Path,
    web_server: WebServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random, urandom = list[bytes](), os.urandom

    def note(count: int) -> bytes:
        random.append(urandom(count))
        return random[-1]

    monkeypatch.setattr(os, "urandom", note)
    async with open_client(net, tmp_path) as tor:
        for pair in sets_of(tor):
            (guard, middle, exit_), (other_guard, other_middle, same_exit) = pair.paths
            assert len({guard.identity, middle.identity, exit_.identity}) == 3
            assert (guard.identity, middle.identity) != (other_guard.identity, other_middle.identity)
            assert guard.identity != other_guard.identity
            assert middle.identity != other_middle.identity
            assert exit_.identity == same_exit.identity
        stream, pair = await ask(tor, web_server.port, 16 * MIB)
        download = Download(stream)
        await download.receive(16 * MIB)
        assert download.digest.hexdigest() == sha256_of(16 * MIB)
        assert all(one.received > 100 for one in pair.carried())
    for command in ("LINK", "LINKED_ACK"):  # with half of the nonce; relays link circuits of their own, too
        asked = [lines(logs, f"a CONFLUX_{command} for set {one[:8].hex().upper()}") for one in random]
        assert asked.count(2) >= 3  # and one more is linked once the first is in use
        assert max(asked) == 2
    for complaint in FAULTS:
        assert lines(logs, complaint) == 0


async def test_what_is_sent_comes_back_in_order(
    net: RunningTestnet, tmp_path: Path, logs: Path, echo_server: EchoServer
) -> None:
    async with open_client(net, tmp_path) as tor, trio.open_nursery() as nursery:
        stream = await tor.connect(HOST, echo_server.port)

        async def send() -> None:
            for block in blocks(6 * MIB):
                await stream.send_all(block)

        nursery.start_soon(send)
        digest, length = hashlib.sha256(), 0
        while length < 6 * MIB:
            data = await stream.receive_some()
            digest.update(data)
            length += len(data)
        assert digest.hexdigest() == sha256_of(6 * MIB)
    for complaint in FAULTS:
        assert lines(logs, complaint) == 0


async def test_a_middle_that_stands_still_costs_no_byte(
    net: RunningTestnet, tmp_path: Path, web_server: WebServer
) -> None:
    async with open_client(net, tmp_path) as tor, trio.open_nursery() as nursery:
        stream, pair = await ask(tor, web_server.port, 24 * MIB)
        download = Download(stream)
        await download.receive(2 * MIB)
        pid = net.relay(pair.paths[0][1].nickname).pid
        assert pid is not None
        queued = [0]

        async def watch() -> None:
            while True:
                queued.append(pair._core.queued_bytes)
                await trio.sleep(0.01)

        nursery.start_soon(watch)
        os.kill(pid, signal.SIGSTOP)
        try:
            with trio.move_on_after(3):
                await download.receive(24 * MIB)
        finally:
            os.kill(pid, signal.SIGCONT)
        await download.receive(24 * MIB)
        nursery.cancel_scope.cancel()
        assert download.digest.hexdigest() == sha256_of(24 * MIB)
        assert max(queued) <= 8 * MIB


async def test_with_a_leg_that_dies_a_stream_is_told_and_the_next_one_goes_elsewhere(
    net: RunningTestnet, tmp_path: Path, web_server: WebServer
) -> None:
    async with open_client(net, tmp_path) as tor:
        stream, pair = await ask(tor, web_server.port, 1024 * MIB)
        download = Download(stream)
        await download.receive(MIB)
        middle = pair.paths[0][1].nickname
        await trio.to_thread.run_sync(net.kill_relay, middle)
        try:
            with pytest.raises(StreamBroken):
                await download.receive(1024 * MIB)
            page = await tor.connect(HOST, web_server.port)
            await page.send_all(b"GET /page HTTP/1.0\r\n\r\n")
            answer = b""
            while data := await page.receive_some():
                answer += data
            assert answer.endswith(PAGE)
        finally:
            await trio.to_thread.run_sync(net.start_relay, middle)


async def test_without_conflux_nothing_is_linked(net: RunningTestnet, tmp_path: Path) -> None:
    async with open_client(net, tmp_path, conflux=False) as tor:
        await until(lambda: len(tor._parts.circuits.clean) >= 2)
        assert sets_of(tor) == []
