"""Which streams share circuits, flag by flag: many clients at once, and an exit that refuses now and then."""

from collections.abc import Hashable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from fakes import FakeCircuit, FakeStream, answer_begin
from served import serve_network

from torkit.client import Tor, open_tor
from torkit.errors import EndReason
from torkit.net.socks import ISOLATION, Isolate, serve_socks


class Asked(NamedTuple):
    """One client's request, by what may keep it apart from others."""

    auth: str
    client: str
    listener: int
    host: str
    port: int
    number: int

    def key(self, flag: Isolate) -> Hashable:
        return {
            Isolate.AUTH: self.auth,
            Isolate.CLIENT: self.client,
            Isolate.LISTENER: self.listener,
            Isolate.DEST_ADDR: self.host,
            Isolate.DEST_PORT: self.port,
            Isolate.STREAM: self,
        }[flag]


REQUESTS = [
    Asked(*values)
    for values in product(
        ("", "alice", "bob"), ("127.0.0.1", "127.0.0.2"), (0, 1), ("a.test", "b.test"), (80, 443), (1, 2)
    )
]


def _hello(asked: Asked) -> bytes:
    """SOCKS5 in one write: method, credentials if any, CONNECT."""
    user = asked.auth.encode()
    method = b"\x05\x01\x02\x01" + bytes([len(user)]) + user + b"\x01x" if user else b"\x05\x01\x00"
    host = asked.host.encode()
    return method + b"\x05\x01\x00\x03" + bytes([len(host)]) + host + asked.port.to_bytes(2, "big")


async def _circuits_of(
    tor: Tor, carried: dict[bytes, FakeCircuit], isolate: frozenset[Isolate]
) -> dict[Asked, FakeCircuit]:
    """Send every request at once through a proxy, and a token on each stream; who carried it."""
    listeners = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(2)]

    async def ask(asked: Asked) -> None:
        address = listeners[asked.listener].socket.getsockname()[:2]
        async with await trio.open_tcp_stream(*address, local_address=asked.client) as client:
            await client.send_all(_hello(asked))
            replies = (2 if asked.auth else 0) + 2 + 10
            while replies > 0:
                data = await client.receive_some(replies)
                assert data, asked
                replies -= len(data)
            await client.send_all(repr(asked).encode())
            assert await client.receive_some(1) == b"+"

    async with trio.open_nursery() as proxy:
        proxy.start_soon(
            lambda: serve_socks(
                listeners, begin=tor.begin, connect=tor.connect, resolve=tor.resolve, isolate=isolate
            )
        )
        async with trio.open_nursery() as clients:
            for asked in REQUESTS:
                clients.start_soon(ask, asked)
        proxy.cancel_scope.cancel()
    return {asked: carried[repr(asked).encode()] for asked in REQUESTS}


@pytest.mark.parametrize(
    "isolate",
    [*({flag} for flag in Isolate), set(), ISOLATION],
    ids=lambda flags: "+".join(sorted(f.value for f in flags)),
)
async def test_streams_that_must_not_share_a_circuit_never_do(
    tmp_path: Path, isolate: frozenset[Isolate]
) -> None:
    carried: dict[bytes, FakeCircuit] = {}
    begun: list[FakeStream] = []

    def refuse_some(stream: FakeStream) -> None:
        begun.append(stream)
        if len(begun) % 3 == 0:
            stream.end(EndReason.EXITPOLICY)
        else:
            answer_begin(stream)

    def take(stream: FakeStream, data: bytes) -> None:
        carried[data] = stream.circuit
        stream.write(b"+")

    async with serve_network(exits=3) as network:
        for fake in network.relays.values():
            fake.on_data = take
        one_exit = next(fake for name, fake in network.relays.items() if name.startswith("exit"))
        one_exit.on_begin = refuse_some
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            circuits = await _circuits_of(tor, carried, frozenset(isolate))
    groups: dict[FakeCircuit, set[Hashable]] = {}
    for asked, circuit in circuits.items():
        groups.setdefault(circuit, set()).add(tuple(asked.key(flag) for flag in Isolate if flag in isolate))
    assert all(len(keys) == 1 for keys in groups.values())
    # Sharing goes on: a circuit for each group, and some more where an exit refused.
    assert len(groups) == len(REQUESTS) or len(groups) < len(REQUESTS) / 2
    assert (len(groups) == len(REQUESTS)) == (Isolate.STREAM in isolate)
