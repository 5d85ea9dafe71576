"""Scripted relays served over real TLS on loopback, as the client's side knows them. No tests here.

relays = fresh_relays(3)
async with serve_channel(relays[0]) as channel:            a link, its tasks running
    circuit = await build(channel, relays)                 a circuit through all of them
async with serve_network(tmp_path) as network: ...         a signed directory of relays that can be used
"""

import operator
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import trio
import trio.testing

from torkit.config import Authority, Fallback, Network
from torkit.directory.directory import Relay
from torkit.directory.microdesc import REJECT_ALL, PortPolicy
from torkit.directory.netdoc import decode_protocols
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.stream import Stream, StreamHost
from torkit.net.contact import DirectoryServer
from torkit.net.link.channel import Channel
from torkit.testing.directory import DirectoryService, RelayDoc, make_authorities, signed_service
from torkit.testing.relay import (
    FakeCircuit,
    FakeRelay,
    FakeStream,
    fresh,
    make_chain,
    serve_relay,
)

ACCEPT_ALL = PortPolicy(True, ((1, 65535),))

# What a scripted relay can do: ntor and windows, or ntor-v3 and congestion control.
PLAIN = "Cons=2 DirCache=2 FlowCtrl=1 Link=4-5 Microdesc=2 Relay=2"
CONGESTION_CONTROL = "Cons=2 DirCache=2 FlowCtrl=1-2 Link=4-5 Microdesc=2 Relay=2-4"


@cache
def _keys(count: int) -> list[FakeRelay]:
    return make_chain(count)  # RSA keys take a while: made once


def fresh_relays(count: int) -> list[FakeRelay]:
    """Scripted relays that know each other and that nobody has spoken to."""
    return fresh(_keys(count))


def relay_of(fake: FakeRelay, **changes: Any) -> Relay:
    """What a directory would say of a scripted relay, but for `changes`."""
    relay = Relay(
        nickname="fake",
        identity=fake.rsa_identity,
        ed25519_identity=fake.ed_identity,
        ntor_onion_key=fake.ntor_onion_key,
        address=fake.address[0],
        or_port=fake.address[1],
        ipv6=None,
        flags=frozenset({"Exit", "Fast", "Guard", "Running", "Stable", "V2Dir", "Valid"}),
        bandwidth=1000,
        version=None,
        protocols=decode_protocols(PLAIN),
        family=frozenset(),
        family_ids=frozenset(),
        policy=ACCEPT_ALL,
        policy6=REJECT_ALL,
        networks=frozenset(),
    )
    return relay._replace(**changes)


@asynccontextmanager
async def serve(fake: FakeRelay) -> AsyncIterator[None]:
    """Serve a relay; its `address` becomes where it listens."""
    async with serve_relay(fake) as address:
        fake.address = address
        yield


@asynccontextmanager
async def serve_channel(fake: FakeRelay) -> AsyncIterator[Channel]:
    """A relay served, and a channel to it that runs."""
    async with serve(fake), trio.open_nursery() as nursery:
        channel = await connect(fake)
        nursery.start_soon(channel.run)
        yield channel
        nursery.cancel_scope.cancel()


async def connect(fake: FakeRelay) -> Channel:
    return await Channel.connect(*fake.address, rsa=fake.rsa_identity, ed25519=fake.ed_identity, rng=Random())


async def build(
    channel: Channel,
    fakes: Sequence[FakeRelay],
    *,
    protocols: str = PLAIN,
    params: Mapping[str, int] | None = None,
) -> Circuit:
    """A circuit through these relays, of which the first is the channel's."""
    relays = [relay_of(fake, protocols=decode_protocols(protocols)) for fake in fakes]
    circuit = channel.open_circuit(8, CircuitSettings(params))
    await circuit.create(relays[0], is_last=len(relays) == 1)
    for relay in relays[1:]:
        await circuit.extend(relay, is_last=relay is relays[-1])
    return circuit


def far_end(fake: FakeRelay) -> FakeCircuit:
    """The relay's end of the circuit last made with it."""
    return fake.circuits[-1]


@asynccontextmanager
async def serve_circuit(
    hop_count: int = 3, *, protocols: str = PLAIN
) -> AsyncIterator[tuple[Circuit, list[FakeRelay]]]:
    """A circuit, and the relays it goes through, which at the end have nothing to complain about."""
    relays = fresh_relays(hop_count)
    relays[-1].cc_sendme_inc = 31
    async with serve_channel(relays[0]) as channel:
        yield await build(channel, relays, protocols=protocols), relays
    assert [relay.complaints for relay in relays] == [[]] * hop_count


class Arrivals:
    """A handler that a test can wait for: `relay.on_begin = begun = Arrivals(answer_begin)`."""

    def __init__(self, answer: Callable[..., object] = lambda *_: None) -> None:
        self._answer = answer
        self.count = 0
        self._send, self._receive = trio.open_memory_channel[tuple[Any, ...]](float("inf"))

    def __call__(self, *args: Any) -> None:
        self.count += 1
        self._answer(*args)
        self._send.send_nowait(args)

    def all(self) -> list[tuple[Any, ...]]:
        """The arguments of every call so far that nobody has waited for."""
        calls = []
        with suppress(trio.WouldBlock):
            while True:
                calls.append(self._receive.receive_nowait())
        return calls

    async def next(self) -> Any:
        """The arguments of the next call, or the only one."""
        args = await self._receive.receive()
        return args[0] if len(args) == 1 else args


class FarStream(trio.abc.Stream):
    """The exit's end of one stream, as trio knows streams; how it ends is by DONE."""

    def __init__(self, stream: FakeStream) -> None:
        self.fake = stream
        self._taken = 0
        self._is_closed = False
        self._arrived = trio.Event()
        self._is_receiving = False
        relay = stream.hop.relay
        relay.on_data = relay.on_end = lambda *_: self._arrived.set()

    @property
    def _has_ended(self) -> bool:
        return self.fake.id not in self.fake.circuit.streams

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._has_ended:
            raise trio.BrokenResourceError("the client has ended the stream")
        self.fake.write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._is_receiving = True
        try:
            while True:
                self._check_open()
                end = None if max_bytes is None else self._taken + max_bytes
                data = bytes(self.fake.received[self._taken : end])
                if data or self._has_ended:
                    self._taken += len(data)
                    return data
                self._arrived = trio.Event()
                await self._arrived.wait()
        finally:
            self._is_receiving = False

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._arrived.set()
            if not self._has_ended:
                self.fake.finish()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("closed by the test")


async def open_stream(circuit: StreamHost, exit_relay: FakeRelay) -> tuple[Stream, FakeStream]:
    """A connected stream: our end and the exit's."""
    begun = Arrivals(exit_relay.on_begin)
    exit_relay.on_begin = begun
    stream = circuit.begin("web.test", 80)
    await stream.wait_connected()
    return stream, await begun.next()


# --- Directories ---------------------------------------------------------------------------------------


def doc_of(fake: FakeRelay, nickname: str, *, flags: str = "", policy: str | None = None) -> RelayDoc:
    """The directory's entry for a scripted relay, which says that it can do PLAIN only."""
    return RelayDoc.of(fake, nickname, flags=flags, policy=policy, protocols=PLAIN)


def source_of(fake: FakeRelay) -> DirectoryServer:
    return DirectoryServer(fake.rsa_identity, *fake.address, None)


@dataclass
class ServedNetwork:
    """Scripted relays by nickname, and what a client needs to know of them."""

    relays: dict[str, FakeRelay]
    docs: list[RelayDoc]  # what its directory says of them
    service: DirectoryService
    config: Network

    def renew_consensus(self) -> None:
        """Serve one that is as valid now as the first was then."""
        self.service.consensus = signed_service(self.docs, make_authorities()).consensus


@asynccontextmanager
async def serve_network(
    *, guards: int = 2, exits: int = 2, params: str = "", ports: str = "80,443"
) -> AsyncIterator[ServedNetwork]:
    """A network for `open_tor`, whose middle relay is the authorities' and serves the directory."""
    names = ["middle", *(f"guard{n}" for n in range(guards)), *(f"exit{n}" for n in range(exits))]
    relays = dict(zip(names, fresh_relays(len(names)), strict=True))
    async with AsyncExitStack() as stack:
        for fake in relays.values():
            await stack.enter_async_context(serve(fake))
        docs = [
            doc_of(
                fake,
                name,
                flags={"g": "Guard", "e": "Exit"}.get(name[0], ""),
                policy=f"accept {ports}" if name[0] == "e" else None,
            )
            for name, fake in relays.items()
        ]
        signers = make_authorities()
        service = signed_service(docs, signers, params=params)
        for fake in relays.values():
            fake.directory = service
        middle = relays["middle"]
        voters = tuple(
            Authority(one.nickname, "127.0.0.1", 80, None, bytes([n]) * 20, v3ident=one.v3ident, ipv6=None)
            for n, one in enumerate(signers)
        )
        fallback = Fallback(*middle.address, middle.rsa_identity, None)
        yield ServedNetwork(relays, docs, service, Network(voters, (fallback,), True, False))
