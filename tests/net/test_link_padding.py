"""Padding of channels over real TLS: what a scripted relay gets of it, and when."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random

import pytest
import trio
import trio.testing
from served import Arrivals, build, fresh_relays, open_stream, relay_of, serve

from torkit._fast.cells import Command
from torkit.net.link.channel import Channel
from torkit.net.link.channels import Channels
from torkit.proto.padding import KEEPALIVE, Padding
from torkit.testing.relay import FakeRelay

EVERY_2_S = {"nf_ito_low": 2000, "nf_ito_high": 2000}


@pytest.fixture
def relay() -> FakeRelay:
    return fresh_relays(1)[0]


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps to the next deadline when for a while nothing moved: the sockets' other ends are in here too."""
    return trio.testing.MockClock(autojump_threshold=0.03)


@asynccontextmanager
async def channel_to(
    relay: FakeRelay, padding: Padding = Padding.AUTO, params: Mapping[str, int] = EVERY_2_S
) -> AsyncIterator[Channel]:
    """A channel as clients have them; at the end it must be open, and the relay content."""
    async with serve(relay), trio.open_nursery() as nursery:
        channels = Channels(nursery, Random(), padding=padding, params=lambda: params)
        channel = await channels.get(relay_of(relay))
        yield channel
        assert channel.error is None
        nursery.cancel_scope.cancel()
    assert relay.complaints == []


def count_padding(relay: FakeRelay) -> int:
    return [command for _, command, _ in relay.links[0].control_cells].count(Command.PADDING)


async def silences(relay: FakeRelay, count: int) -> list[float]:
    """How long the relay has heard nothing between so many PADDING cells and one more, in seconds."""
    relay.on_padding = padded = Arrivals()
    times = []
    for _ in range(count + 1):
        await padded.next()
        times.append(trio.current_time())
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("link_versions", [(4,), (4, 5)])
@pytest.mark.parametrize("padding", Padding)
async def test_a_relay_is_told_to_stop_before_anything_else(
    relay: FakeRelay, padding: Padding, link_versions: tuple[int, ...]
) -> None:
    relay.link_versions = link_versions
    async with channel_to(relay, padding) as channel:
        await build(channel, [relay])
        commands = [command for _, command, _ in relay.links[0].control_cells]
    stop = [Command.PADDING_NEGOTIATE] if padding is not Padding.AUTO and 5 in link_versions else []
    assert commands == [Command.VERSIONS, Command.NETINFO, *stop, Command.CREATE2]


async def test_a_stop_names_no_times(relay: FakeRelay) -> None:
    relay.on_padding_negotiate = negotiated = Arrivals()
    async with channel_to(relay, Padding.OFF):
        assert (await negotiated.next())[1:] == (1, 0, 0)


@pytest.mark.parametrize(
    ("padding", "params", "seconds"),
    [
        (Padding.AUTO, EVERY_2_S, 2.0),
        (Padding.REDUCED, EVERY_2_S | {"nf_ito_low_reduced": 3000, "nf_ito_high_reduced": 3000}, 3.0),
    ],
)
async def test_a_silent_channel_with_circuits_is_padded_at_the_times_of_the_consensus(
    relay: FakeRelay,
    clock: trio.testing.MockClock,
    padding: Padding,
    params: Mapping[str, int],
    seconds: float,
) -> None:
    async with channel_to(relay, padding, params) as channel:
        await build(channel, [relay])
        for silence in await silences(relay, 4):
            assert silence == pytest.approx(seconds, abs=0.1)


async def test_by_default_no_silence_is_long_enough_to_be_recorded(
    relay: FakeRelay, clock: trio.testing.MockClock
) -> None:
    async with channel_to(relay, params={}) as channel:
        await build(channel, [relay])
        found = await silences(relay, 8)
    assert all(1.4 < silence < 9.6 for silence in found)
    assert max(found) - min(found) > 0.5


async def test_padding_of_the_relays_puts_ours_off(relay: FakeRelay, clock: trio.testing.MockClock) -> None:
    async with channel_to(relay) as channel:
        await build(channel, [relay])
        for _ in range(12):
            relay.links[0].send_cell(0, Command.PADDING)
            await trio.sleep(0.9)
        assert count_padding(relay) == 0
        await trio.sleep(4.1)
        assert count_padding(relay) > 0


async def test_a_channel_for_directory_requests_is_not_padded_until_it_carries_circuits(
    relay: FakeRelay, clock: trio.testing.MockClock
) -> None:
    async with channel_to(relay) as channel:
        await trio.sleep(60)
        assert count_padding(relay) == 0
        await build(channel, [relay])
        await trio.sleep(5)
        assert count_padding(relay) > 0


async def test_where_the_consensus_wants_it_padding_waits_for_the_first_stream(
    clock: trio.testing.MockClock,
) -> None:
    relays = fresh_relays(2)
    async with channel_to(relays[0], params=EVERY_2_S | {"nf_pad_before_usage": 0}) as channel:
        circuit = await build(channel, relays)
        await trio.sleep(60)
        assert count_padding(relays[0]) == 0
        await open_stream(circuit, relays[1])
        await trio.sleep(5)
        assert count_padding(relays[0]) > 0


@pytest.mark.parametrize(
    ("padding", "link_versions", "params"),
    [
        (Padding.OFF, (5,), EVERY_2_S),
        (Padding.AUTO, (4,), EVERY_2_S),
        (Padding.AUTO, (5,), {"nf_ito_low": 0, "nf_ito_high": 0}),
    ],
)
async def test_without_padding_a_cell_in_five_minutes_keeps_the_connection(
    relay: FakeRelay,
    clock: trio.testing.MockClock,
    padding: Padding,
    link_versions: tuple[int, ...],
    params: Mapping[str, int],
) -> None:
    relay.link_versions = link_versions
    async with channel_to(relay, padding, params) as channel:
        await build(channel, [relay])
        await trio.sleep(KEEPALIVE - 1)
        assert count_padding(relay) == 0
        for silence in await silences(relay, 2):
            assert silence == pytest.approx(KEEPALIVE, abs=0.1)


class Stall:
    """Passes the bytes of one connection on, until told to take no more from the client."""

    def __init__(self) -> None:
        self.may_go_on = trio.Event()
        self.may_go_on.set()

    async def serve(self, client: trio.SocketStream, target: tuple[str, int]) -> None:
        async with await trio.open_tcp_stream(*target) as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, server, client, False)
            await self._copy(client, server, True)

    async def _copy(self, source: trio.SocketStream, target: trio.SocketStream, stalls: bool) -> None:
        while True:
            if stalls:
                await self.may_go_on.wait()
            if not (data := await source.receive_some(65536)):
                return
            await target.send_all(data)


async def test_a_relay_that_takes_nothing_gets_no_padding(
    relay: FakeRelay, clock: trio.testing.MockClock
) -> None:
    stall = Stall()
    async with serve(relay), trio.open_nursery() as nursery:
        target = relay.address
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def pass_on(client: trio.SocketStream) -> None:
            await stall.serve(client, target)

        nursery.start_soon(trio.serve_listeners, pass_on, [listener])
        relay.address = listener.socket.getsockname()[:2]
        channel = await Channels(nursery, Random(), params=lambda: EVERY_2_S).get(relay_of(relay))
        await build(channel, [relay])
        stall.may_go_on = trio.Event()
        while not channel.is_congested:
            for _ in range(64):
                channel.send_control(0, Command.VPADDING, bytes(16_000))
            await trio.sleep(0.01)
        await trio.sleep(60)
        assert channel.is_congested
        channel.send_control(0, Command.VPADDING, b"what was sealed last")
        stall.may_go_on.set()
        await silences(relay, 2)
        commands = [command for _, command, _ in relay.links[0].control_cells]
        last = len(commands) - commands[::-1].index(Command.VPADDING)
        assert Command.PADDING not in commands[:last]
        nursery.cancel_scope.cancel()
