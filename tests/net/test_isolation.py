"""Which streams share circuits, flag by flag: many clients at once, circuits that fail, exits that refuse."""

from collections.abc import Hashable
from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from proxied import CONNECT, GREETING, ScriptedTor, proxy_for
from served import ServedNetwork, serve_network

from torkit.client import Tor, open_tor
from torkit.errors import CircuitClosed, EndReason, StreamClosed
from torkit.net.proxy import ISOLATION, Isolate, Isolation, Rotate, serve_proxy, serve_socks
from torkit.net.proxy.isolation import MAX_IDENTITIES, Origin
from torkit.net.proxy.listener import StreamListener
from torkit.net.proxy.upstream import Upstream
from torkit.proto.first_byte import AnyProtocol
from torkit.proto.request import Command, Request
from torkit.testing.relay import FakeCircuit, FakeStream, RelayCell, answer_begin, answer_extend2


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


class Trouble:
    """A network some of whose circuits fail, and some of whose exits refuse; and who carried what.

    Each stream that is connected sends one message that tells it from others, and gets one byte.
    """

    def __init__(self, network: ServedNetwork) -> None:
        self.carried: dict[bytes, FakeCircuit] = {}
        self._extend_count = self._begin_count = 0
        for name, fake in network.relays.items():
            fake.on_data = self._take
            if name.startswith("exit"):
                fake.on_begin = self._begin
            elif name == "middle":
                fake.on_extend2 = self._extend

    def _take(self, stream: FakeStream, data: bytes) -> None:
        self.carried[data] = stream.circuit
        stream.write(b"+")

    def _extend(self, circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        self._extend_count += 1
        if self._extend_count % 4 == 0:
            circuit.destroy()
        else:
            answer_extend2(circuit, number, cell)

    def _begin(self, stream: FakeStream) -> None:
        self._begin_count += 1
        if self._begin_count % 101 == 0:  # not within the first crowd: where all share one circuit, all go
            stream.circuit.destroy()
        elif self._begin_count % 11 == 0:
            stream.end(EndReason.MISC)
        elif self._begin_count % 13 == 0:
            stream.end(EndReason.EXITPOLICY, bytes([203, 0, 113, 5]) + bytes(4))
        else:
            answer_begin(stream)


async def _circuits_of(tor: Tor, trouble: Trouble, isolate: frozenset[Isolate]) -> dict[Asked, FakeCircuit]:
    """Send every request at once through a proxy, and a token on each stream; who carried it."""
    listeners = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(2)]

    async def ask(asked: Asked) -> None:
        address = listeners[asked.listener].socket.getsockname()[:2]
        async with await trio.open_tcp_stream(*address, local_address=asked.client) as client:
            await client.send_all(_hello(asked))
            replies = b""
            wanted = (2 if asked.auth else 0) + 2 + 10
            while len(replies) < wanted:
                data = await client.receive_some(wanted - len(replies))
                if not data:
                    break
                replies += data
            if len(replies) == wanted and replies[-9] == 0:  # it succeeded
                with suppress(trio.BrokenResourceError):  # another stream's trouble ends this one too
                    await client.send_all(repr(asked).encode())
                    await client.receive_some(1)

    async with trio.open_nursery() as proxy:
        proxy.start_soon(
            lambda: serve_socks(listeners, request=tor.request, resolve=tor.resolve, isolate=isolate)
        )
        async with trio.open_nursery() as clients:
            for asked in REQUESTS:
                clients.start_soon(ask, asked)
        proxy.cancel_scope.cancel()
    return {
        asked: trouble.carried[repr(asked).encode()]
        for asked in REQUESTS
        if repr(asked).encode() in trouble.carried
    }


async def _check_isolation(data_dir: Path, isolate: frozenset[Isolate]) -> None:
    async with serve_network(exits=3) as network:
        trouble = Trouble(network)
        async with open_tor(network=network.config, data_dir=data_dir) as tor:
            await tor.wait_ready()
            circuits = await _circuits_of(tor, trouble, isolate)
    groups: dict[FakeCircuit, set[Hashable]] = {}
    for asked, circuit in circuits.items():
        groups.setdefault(circuit, set()).add(tuple(asked.key(flag) for flag in Isolate if flag in isolate))
    assert all(len(keys) == 1 for keys in groups.values())
    # Not for nothing: most streams did not meet trouble when they were no longer tried again.
    assert len(circuits) > len(REQUESTS) / 2
    # Sharing goes on: a circuit for each group, and some more where something failed.
    assert (len(groups) == len(circuits)) == (Isolate.STREAM in isolate)


@pytest.mark.parametrize(
    "isolate",
    [*({flag} for flag in Isolate), set(), ISOLATION],
    ids=lambda flags: "+".join(sorted(f.value for f in flags)),
)
async def test_streams_that_must_not_share_a_circuit_never_do(
    tmp_path: Path, isolate: frozenset[Isolate]
) -> None:
    await _check_isolation(tmp_path, frozenset(isolate))


@settings(max_examples=6, deadline=None)
@given(
    st.sets(st.sampled_from([flag for flag in Isolate if flag is not Isolate.STREAM]), min_size=2, max_size=4)
)
def test_flags_together_keep_apart_what_differs_in_any(isolate: set[Isolate]) -> None:
    with TemporaryDirectory() as data_dir:
        trio.run(_check_isolation, Path(data_dir), frozenset(isolate))


@pytest.mark.parametrize(
    ("token", "other"),
    [
        (object(), object()),  # nothing else is equal to it
        ("browser", "mail"),
        (("browser", "a.test"), ("browser", "b.test")),
        (None, ""),
    ],
    ids=["object", "name", "group", "none"],
)
async def test_a_program_isolates_by_any_token(tmp_path: Path, token: Hashable, other: Hashable) -> None:
    async with (
        serve_network() as network,
        open_tor(network=network.config, data_dir=tmp_path) as tor,
    ):
        await tor.wait_ready()
        first = await tor.connect("a.test", 80, isolation=token)
        assert (await tor.connect("b.test", 80, isolation=other)).circuit is not first.circuit
        assert (await tor.connect("b.test", 443, isolation=token)).circuit is first.circuit


async def test_no_circuit_is_shared_under_load_failures_and_new_identities(tmp_path: Path) -> None:
    """Streams of five tasks that a program keeps apart, which go on while its identity is renewed."""
    asked: dict[bytes, Hashable] = {}
    async with serve_network(exits=3) as network:
        trouble = Trouble(network)
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            rng = Random(6)

            async def ask(identity: int, task: int, number: int) -> None:
                message = f"{identity} {task} {number}".encode()
                asked[message] = identity, task
                with suppress(StreamClosed, CircuitClosed):
                    # From here to where a circuit is chosen nothing waits: the identity is that of this call.
                    stream = await tor.connect("a.test", rng.choice([80, 443]), isolation=task)
                    await stream.send_all(message)
                    await stream.receive_some(1)

            async with trio.open_nursery() as clients:
                for identity in range(8):
                    for number in range(40):
                        clients.start_soon(ask, identity, rng.randrange(5), number)
                    for _ in range(rng.choice([2, 20, 200])):  # all have asked, and not all have an answer
                        await trio.lowlevel.checkpoint()
                    tor.new_identity()
    assert len(trouble.carried) > len(asked) / 2
    groups: dict[FakeCircuit, set[Hashable]] = {}
    for message, circuit in trouble.carried.items():
        groups.setdefault(circuit, set()).add(asked[message])
    assert all(len(keys) == 1 for keys in groups.values())
    assert len({key for keys in groups.values() for key in keys}) == 40
    assert len(groups) < len(trouble.carried) / 2


# --- identities that are followed by new ones -------------------------------------------------------------

WEB = Request(Command.CONNECT, "web.test", 80)
LOOK_UP = Request(Command.RESOLVE, "web.test", 0)


def by(user: str, request: Request = WEB) -> Request:
    return request._replace(isolation=user)


async def test_an_identity_lasts_as_long_as_was_said_since_its_first_request(
    mock_clock: trio.testing.MockClock,
) -> None:
    origin = Origin("", "", Isolation({Isolate.AUTH}, Rotate(seconds=600)))
    first = origin.key(by("a"))
    mock_clock.jump(300)
    other = origin.key(by("b"))
    mock_clock.jump(299)
    assert origin.key(by("a")) == first
    mock_clock.jump(1)
    assert origin.key(by("a")) != first
    assert origin.key(by("b")) == other  # which began later


async def test_an_identity_has_as_many_uses_as_was_said(mock_clock: trio.testing.MockClock) -> None:
    origin = Origin("", "", Isolation({Isolate.AUTH}, Rotate(uses=2)))
    looked_up = [origin.key(by("a", LOOK_UP)) for _ in range(5)]  # is no use
    keys = [origin.key(by("a")) for _ in range(6)]
    assert set(looked_up) == {keys[0]}
    assert [keys.index(key) for key in keys] == [0, 0, 2, 2, 4, 4]
    assert origin.key(by("a", LOOK_UP)) == keys[4]
    assert origin.key(by("b")) not in keys


async def test_an_identity_never_comes_back(mock_clock: trio.testing.MockClock) -> None:
    """Even where so many are counted that the oldest is forgotten."""
    origin = Origin("", "", Isolation({Isolate.AUTH}, Rotate(uses=10)))
    first = origin.key(by("a"))
    for number in range(MAX_IDENTITIES):
        origin.key(by(str(number)))
    assert len(origin.isolation._identities) == MAX_IDENTITIES
    assert origin.key(by("a")) != first


async def test_two_listeners_have_no_identity_in_common(mock_clock: trio.testing.MockClock) -> None:
    origins = [Origin("", "", Isolation((), Rotate(uses=10))) for _ in range(2)]
    assert origins[0].key(WEB) != origins[1].key(WEB)
    assert origins[0].key(WEB) == origins[0].key(WEB)


async def test_streams_of_a_listener_with_an_identity_of_two_uses(tmp_path: Path) -> None:
    tor = ScriptedTor(failure=StreamClosed("", reason=EndReason.MISC))

    async def serve(listeners: Any, **upstream: Any) -> None:
        own = Isolation({Isolate.AUTH}, Rotate(uses=2))
        stream_listener = StreamListener(listeners[0].socket, lambda _: AnyProtocol(), own)
        await serve_proxy([stream_listener], upstream=Upstream(**upstream))

    async with proxy_for(tor, circuit=False, serve=serve) as proxy:
        for _ in range(4):
            await proxy.ask(GREETING + CONNECT)
    isolations = [asked[2] for asked in tor.asked]
    assert [isolations.index(one) for one in isolations] == [0, 0, 2, 2]
