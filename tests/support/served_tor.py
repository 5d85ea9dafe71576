"""A client on a network of scripted relays, once it is ready."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import trio
import trio.testing
from served import ServedNetwork, serve_network

from torkit.client import Tor, open_tor
from torkit.directory.directory import Directory
from torkit.errors import (
    EndReason,
)
from torkit.net.circuit.stream import Stream
from torkit.proto.padding import Padding
from torkit.testing.directory import make_authorities, signed_service
from torkit.testing.directory.authority import HOUR
from torkit.testing.relay import (
    FakeRelay,
    FakeStream,
    answer_begin,
)


@asynccontextmanager
async def served_tor(
    tmp_path: Path, *, guards: int = 2, exits: int = 2, padding: Padding = Padding.AUTO
) -> AsyncIterator[tuple[Tor, ServedNetwork]]:
    async with (
        serve_network(guards=guards, exits=exits) as network,
        open_tor(network=network.config, data_dir=tmp_path, padding=padding) as tor,
    ):
        await tor.wait_ready()
        yield tor, network
        assert [fake.complaints for fake in network.relays.values()] == [[]] * (1 + guards + exits)


def exits_of(network: ServedNetwork) -> list[FakeRelay]:
    return [fake for name, fake in network.relays.items() if name.startswith("exit")]


def exit_of(network: ServedNetwork, stream: Stream) -> FakeRelay:
    return network.relays[stream.path[-1].nickname]


def refuse_by_policy(stream: FakeStream, address: str = "203.0.113.5") -> None:
    stream.end(EndReason.EXITPOLICY, ip_address(address).packed + bytes(4))


def refuse_once(network: ServedNetwork) -> list[FakeStream]:
    """Have the next stream refused by its exit's policy. Returns a list, which it is put into then."""
    refused: list[FakeStream] = []

    def refuse(stream: FakeStream) -> None:
        if refused:
            answer_begin(stream)
        else:
            refused.append(stream)
            stream.end(EndReason.EXITPOLICY)

    for fake in exits_of(network):
        fake.on_begin = refuse
    return refused


def expire(network: ServedNetwork) -> None:
    """Let its consensus be one that is about to be replaced."""
    expiring = signed_service(
        network.docs, make_authorities(), valid_after=int(time.time()) - 29 * HOUR // 10
    )
    network.service.consensus = expiring.consensus


async def until_replaced(tor: Tor, directory: Directory) -> None:
    with trio.fail_after(600):
        while tor.directory is directory:
            await trio.sleep(5)
