"""Sockets to relays come from the dialer that a client's channels are given."""

import errno
import os
import socket
from random import Random
from typing import NoReturn

import pytest
import trio
from served import fresh_relays, relay_of, serve

from torkit.errors import ChannelClosed, OutOfResources, TorkitError
from torkit.net.link.channels import Channels
from torkit.net.link.dial import dial_directly


async def test_channels_connect_by_the_dialer_that_they_are_given() -> None:
    (fake,) = fresh_relays(1)
    dialled: list[tuple[str, int]] = []

    async def dial(address: str, port: int) -> socket.socket:
        dialled.append((address, port))
        return await dial_directly(*fake.address)

    async with serve(fake), trio.open_nursery() as nursery:
        channels = Channels(nursery, Random(), dial=dial)
        relay = relay_of(fake, address="192.0.2.1", or_port=9001)
        channel = await channels.get(relay)
        assert channel.address == ("192.0.2.1", 9001)
        assert dialled == [("192.0.2.1", 9001)]
        nursery.cancel_scope.cancel()


async def test_every_address_of_a_relay_is_dialled_before_it_is_given_up() -> None:
    (fake,) = fresh_relays(1)
    dialled: list[str] = []

    async def dial(address: str, port: int) -> socket.socket:
        dialled.append(address)
        raise ChannelClosed("the proxy is gone")

    async with trio.open_nursery() as nursery:
        channels = Channels(nursery, Random(), dial=dial)
        with pytest.raises(ChannelClosed, match="the proxy is gone"):
            await channels.get(relay_of(fake, address="192.0.2.1", or_port=9001, ipv6=("2001:db8::1", 9001)))
    assert dialled == ["192.0.2.1", "2001:db8::1"]


async def test_where_nobody_listens_the_system_says_why() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(ChannelClosed, match="could not connect to the relay: Connection refused"):
            await dial_directly(*nobody.getsockname())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, OutOfResources),
        (errno.ENFILE, OutOfResources),
        (errno.ENOBUFS, OutOfResources),
        (errno.EAFNOSUPPORT, ChannelClosed),  # a machine without IPv6
        (errno.EACCES, ChannelClosed),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else None,
)
async def test_where_no_socket_can_be_made_it_is_told_whose_fault_that_is(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[TorkitError]
) -> None:
    def make(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("torkit.net.link.dial.socket.socket", make)
    with pytest.raises(kind, match=os.strerror(number)):
        await dial_directly("2001:db8::1", 9001)
