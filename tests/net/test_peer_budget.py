"""Work for a peer has a budget: what a flood costs us, before a relay has proved who it is and after."""

import fcntl
import select
import socket
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from random import Random

import pytest
import trio
from fast.talk import CONGESTION_CONTROL, Talk
from served import fresh_relays

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.channel import Channel as CoreChannel
from torkit._fast.events import ChannelFailed, CircuitFailed
from torkit._fast.pump import Pump as CorePump
from torkit._fast.tls import Tls
from torkit.errors import ChannelError, TorkitError
from torkit.net.link.channel import Channel
from torkit.net.link.tls import TlsConnection
from torkit.testing.relay import FakeRelay
from torkit.testing.relay.raw_tls import TLS_1_2, RawPeer, raw_server

SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>

Flood = Callable[[RawPeer], bytes]

# Those of TLS: what is sent, in which version of TLS, and how the error names it.
TLS_FLOODS: dict[str, tuple[Flood, int, str]] = {
    "key updates, answers asked": (lambda peer: peer.key_updates(5000, is_asked=True), 0, "KeyUpdate"),
    "key updates": (lambda peer: peer.key_updates(5000, is_asked=False), 0, "KeyUpdate"),
    "tickets": (lambda peer: peer.tickets(1000), 0, "NewSessionTicket"),
    "hello requests": (lambda peer: peer.hello_requests(5000), TLS_1_2, "HelloRequest"),
    "one-byte records": (lambda peer: peer.records(bytes(20_000), 1), 0, "next to no data"),
}


@pytest.fixture(params=TLS_FLOODS)
def tls_flood(request: pytest.FixtureRequest) -> tuple[Flood, int, str]:
    return TLS_FLOODS[request.param]


async def connect_to(relay: FakeRelay, address: tuple[str, int]) -> Channel:
    return await Channel.connect(*address, rsa=relay.rsa_identity, ed25519=relay.ed_identity, rng=Random())


@asynccontextmanager
async def running_channel(
    relay: FakeRelay, play: Callable[[RawPeer], None], max_version: int = 0
) -> AsyncIterator[Channel]:
    """A channel that runs, to a relay that does what `play` does once the link is open."""

    def open_and_play(peer: RawPeer) -> None:
        peer.shake_hands()
        peer.open_link()
        play(peer)
        peer.wait_closed()

    with raw_server(relay, open_and_play, max_version) as address:
        async with trio.open_nursery() as nursery:
            channel = await connect_to(relay, address)
            nursery.start_soon(channel.run)
            yield channel
            nursery.cancel_scope.cancel()


async def failure_of(channel: Channel) -> TorkitError | None:
    with trio.fail_after(30):
        await channel._has_ended.wait()
    return channel.error


@pytest.fixture
def relay() -> FakeRelay:
    return fresh_relays(1)[0]


async def test_a_relay_that_floods_tls_is_closed(relay: FakeRelay, tls_flood: tuple[Flood, int, str]) -> None:
    flood, version, what = tls_flood
    async with running_channel(relay, lambda peer: peer.send(flood(peer)), version) as channel:
        error = await failure_of(channel)
    assert isinstance(error, ChannelError)
    assert what in str(error)


async def test_who_floods_tls_before_the_link_handshake_is_closed(
    relay: FakeRelay, tls_flood: tuple[Flood, int, str]
) -> None:
    """Whoever answers TCP can do this: nobody has proved anything."""
    flood, version, what = tls_flood

    def play(peer: RawPeer) -> None:
        peer.shake_hands()
        peer.send(flood(peer))
        peer.wait_closed()

    with raw_server(relay, play, version) as address:
        if what == "next to no data":  # nor is this the beginning of a VERSIONS cell
            what = "fixed-length cell came before VERSIONS|next to no data"
        with pytest.raises(ChannelError, match=what):
            await connect_to(relay, address)


def test_a_flood_within_one_call_of_libssl_is_broken_off() -> None:
    """libssl passes over any number of these while it waits for ServerHello, as long as bytes are at hand."""
    hello_request = b"\x16\x03\x03\0\4" + bytes(4)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(10_000 * hello_request)
        ours.setblocking(False)
        with pytest.raises(ChannelError, match="HelloRequest"):
            Tls(ours.fileno(), b"www.example.com").do_handshake()
        assert waiting(ours) > 9_000 * len(hello_request)


# A handshake of TLS 1.3 has five messages of the server's, and two tickets follow.
HANDSHAKE_MESSAGES = 7
MESSAGES_BRIM = 64


@pytest.mark.parametrize("is_asked", [True, False])
async def test_a_peer_within_its_budget_of_messages_is_not_closed(relay: FakeRelay, is_asked: bool) -> None:
    def play(peer: RawPeer) -> None:
        peer.shake_hands()
        peer.send(peer.key_updates(MESSAGES_BRIM - HANDSHAKE_MESSAGES, is_asked=is_asked))
        peer.send(peer.records(b"data"))
        peer.wait_closed()

    with raw_server(relay, play) as address:
        connection = await TlsConnection.connect(*address)
        buffer = bytearray(100)
        assert await connection.receive(buffer) == 4
        await connection.send(b"")
        connection.close()


async def test_what_came_before_a_flood_is_received(relay: FakeRelay) -> None:
    def play(peer: RawPeer) -> None:
        peer.shake_hands()
        peer.send(peer.records(b"data") + peer.key_updates(MESSAGES_BRIM + 10, is_asked=False))
        peer.wait_closed()

    with raw_server(relay, play) as address:
        connection = await TlsConnection.connect(*address)
        buffer = bytearray(100)
        assert await connection.receive(buffer) == 4
        with pytest.raises(ChannelError, match="KeyUpdate"):
            await connection.receive(buffer)
        connection.close()


async def test_records_of_a_cell_each_are_within_the_budget(relay: FakeRelay) -> None:
    length = 514 * 20_000

    def play(peer: RawPeer) -> None:
        peer.shake_hands()
        peer.send(peer.records(bytes(length), 514))
        peer.wait_closed()

    with raw_server(relay, play) as address:
        connection = await TlsConnection.connect(*address)
        buffer = bytearray(1 << 17)
        received = 0
        while received < length:
            received += await connection.receive(buffer)
        connection.close()


# --- Cells that serve nothing -----------------------------------------------------------------------------

IDLE_CELLS_BRIM = 4096
CELL_LEN = 514


def cells_of(command: int, count: int, circ_id: int = 0) -> bytes:
    return count * (circ_id.to_bytes(4, "big") + bytes([command]) + bytes(CELL_LEN - 5))


@pytest.mark.parametrize(
    ("command", "circ_id"),
    [(0, 0), (200, 0), (99, 0), (4, 0x80000001), (11, 0x80000001), (8, 0)],
    ids=["PADDING", "unknown variable", "unknown", "DESTROY", "CREATED2", "NETINFO"],
)
async def test_a_relay_that_floods_cells_which_serve_nothing_is_closed(
    relay: FakeRelay, command: int, circ_id: int
) -> None:
    flood = cells_of(command, 3 * IDLE_CELLS_BRIM, circ_id)
    if command >= 128:
        flood = 3 * IDLE_CELLS_BRIM * (circ_id.to_bytes(4, "big") + bytes([command, 0, 0]))
    async with running_channel(relay, lambda peer: peer.send(peer.records(flood))) as channel:
        error = await failure_of(channel)
    assert isinstance(error, ChannelError)
    assert "serve nothing" in str(error) or "second link handshake" in str(error)


@pytest.mark.parametrize("excess", [0, 1])
def test_the_bound_of_idle_cells_is_exact(excess: int) -> None:
    core = CoreChannel()
    versions = bytearray(b"\0\0\x07\0\x02\0\x05")
    core.receive_data(versions, len(versions))
    data = bytearray(cells_of(0, IDLE_CELLS_BRIM + excess))
    failed = [event for event in core.receive_data(data, len(data)) if isinstance(event, ChannelFailed)]
    assert len(failed) == excess


@pytest.mark.parametrize("command", [1, 99], ids=["CREATE", "unknown"])
def test_what_answers_nothing_is_idle_on_a_circuit_of_ours_too(command: int) -> None:
    core = CoreChannel()
    versions = bytearray(b"\0\0\x07\0\x02\0\x05")
    core.receive_data(versions, len(versions))
    circuit = core.open_circuit(0x80000001, 1, 8)
    data = bytearray(cells_of(command, IDLE_CELLS_BRIM + 1, circuit.id))
    assert isinstance(core.receive_data(data, len(data))[-1], ChannelFailed)


async def test_answers_to_our_circuits_are_no_idle_cells(relay: FakeRelay) -> None:
    """A client of many identities has thousands of circuits made, and many may end at once."""
    core = CoreChannel()
    versions = bytearray(b"\0\0\x07\0\x02\0\x05")
    core.receive_data(versions, len(versions))
    for number in range(IDLE_CELLS_BRIM + 100):
        core.open_circuit(0x80000000 | number + 1, 1, 8)
    for command in (11, 4):
        for number in range(IDLE_CELLS_BRIM + 100):
            data = bytearray(cells_of(command, 1, 0x80000000 | number + 1))
            events = core.receive_data(data, len(data))
            assert not any(isinstance(event, ChannelFailed) for event in events)


# --- Relay cells that serve nothing: whoever sends them, the guard is not to blame ---------------------


@pytest.mark.parametrize("excess", [0, IDLE_CELLS_BRIM // 4])  # time passes, which is worth some
@pytest.mark.parametrize("kind", ["DROP", "XON for a look-up", "XOFF for a closed stream"])
def test_relay_cells_that_serve_nothing_end_the_circuit_beyond_a_bound(kind: str, excess: int) -> None:
    talk = Talk(hops=[CONGESTION_CONTROL])
    circuit, other = talk.circuit(), talk.circuit()
    far = talk.link.circuits[circuit.id]
    stream_id = 0
    if kind.endswith("look-up"):
        stream_id = circuit.open_stream(0, is_resolve=True).id
    elif kind.endswith("closed stream"):
        stream = talk.stream(circuit)
        stream_id = stream.id
        circuit.close_stream(stream, b"\x06", 0.0)
    for _ in range(IDLE_CELLS_BRIM + excess):
        far.send(1, RelayCommand[kind.split()[0]], stream_id, bytes(5))
    events = talk.feed(talk.link.take())
    assert [type(event) for event in events] == ([CircuitFailed] if excess else [])
    assert circuit.has_ended is bool(excess)
    assert not other.has_ended


# --- A crowd of relays ------------------------------------------------------------------------------------

ROUND_LEN = 16 * (131072 + 16384)  # bytes: what all of them may have read in one round, and a record beside


def test_a_crowd_of_relays_that_flood_is_read_in_turns(relay: FakeRelay) -> None:
    """Counted, not timed: what one call of the core takes from the kernel, and that nobody is forgotten."""
    flood_len, crowd_len = 400_000, 24
    are_full = threading.Barrier(crowd_len + 1)

    def play(peer: RawPeer) -> None:
        peer.shake_hands()
        flood = peer.records(cells_of(Command.RELAY, flood_len // CELL_LEN, 0x80000001))
        peer.sock.sendall(flood)
        are_full.wait(60)
        peer.wait_closed()

    with raw_server(relay, play) as address, ExitStack() as stack:
        pump = CorePump()
        socks = []
        for _ in range(crowd_len):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 * flood_len)
            sock.connect(address)
            sock.setblocking(False)
            tls = Tls(sock.fileno(), b"www.example.com")
            while not tls.do_handshake():
                tls.send(b"")
                select.select([sock], [], [], 10)
            tls.send(b"")
            core = CoreChannel()
            versions = bytearray(b"\0\0\x07\0\x02\0\x05")
            core.receive_data(versions, len(versions))
            pump.add_link(tls, core, object())
            socks.append(sock)
        are_full.wait(60)
        before = list(map(waiting, socks))
        assert sum(before) > 2 * ROUND_LEN
        for _ in range(4):
            left = sum(map(waiting, socks))
            assert pump.run(-1, 0, 0, 0) == []
            assert 0 < left - sum(map(waiting, socks)) <= ROUND_LEN
        assert all(now < then for now, then in zip(map(waiting, socks), before, strict=True))


def waiting(sock: socket.socket) -> int:
    """How many bytes the kernel holds for this socket."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)
