"""The link to a relay over real TLS: who it must be, how it ends, and how the channels are shared."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

import pytest
import trio
import trio.testing
from served import (
    Arrivals,
    build,
    connect,
    fresh_relays,
    open_stream,
    relay_of,
    serve,
    serve_channel,
    source_of,
)

from torkit._fast.cells import Command
from torkit.errors import ChannelClosed, ChannelError, HandshakeCut, TimedOut
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.contact import DirectoryServer
from torkit.net.link.channel import CONNECT_TIMEOUT, Channel
from torkit.net.link.channels import MAX_AGE, Channels
from torkit.proto.padding import IDLE_TIMEOUT, IDLE_TIMEOUT_SPREAD, Padding
from torkit.testing.relay import (
    FakeLink,
    FakeRelay,
    answer_versions,
    encode_certs,
    encode_netinfo,
    encode_versions,
    ignore,
    make_ed_certificate,
    serve_relay,
)

Certs = list[tuple[int, bytes]]


@pytest.fixture
def relay() -> FakeRelay:
    return fresh_relays(1)[0]


# --- The handshake -------------------------------------------------------------------------------------


async def test_the_handshake_tells_who_the_relay_is(relay: FakeRelay) -> None:
    async with serve_channel(relay) as channel:
        assert channel.link.peer.rsa == relay.rsa_identity
        assert channel.link.peer.ed25519 == relay.ed_identity
        assert channel.link.link_protocol == 5
        assert str(channel.link.our_address) == "127.0.0.1"
        assert channel.link.clock_skew is not None
        assert abs(channel.link.clock_skew - (relay.now - time.time())) < 10
    assert relay.complaints == []


async def test_a_relay_known_by_its_rsa_identity_alone_is_accepted(relay: FakeRelay) -> None:
    async with channels_to(relay) as channels:
        channel = await channels.get(source_of(relay))
        assert channel.link.peer.ed25519 == relay.ed_identity


@pytest.mark.parametrize("versions", [(4,), (3, 4), (4, 5, 6)])
async def test_the_highest_common_link_protocol_is_spoken(
    relay: FakeRelay, versions: tuple[int, ...]
) -> None:
    relay.link_versions = versions
    async with serve_channel(relay) as channel:
        assert channel.link.link_protocol == min(max(versions), 5)
        assert (await build(channel, [relay])).error is None


async def expect_refusal(relay: FakeRelay, error: type[Exception], match: str | None = None) -> None:
    """Connecting fails, and the relay has learnt nothing but VERSIONS."""
    async with serve(relay):
        with pytest.raises(error, match=match):
            await connect(relay)
    assert [command for _, command, _ in relay.links[0].control_cells] == [Command.VERSIONS]


@pytest.mark.parametrize("versions", [(), (3,), (6, 7)])
async def test_no_common_link_protocol_is_refused(relay: FakeRelay, versions: tuple[int, ...]) -> None:
    relay.link_versions = versions
    await expect_refusal(relay, ChannelError, "link protocol")


@pytest.mark.parametrize("which", ["rsa_identity", "ed_identity"])
async def test_another_identity_than_asked_for_is_refused(which: str) -> None:
    relay, other = fresh_relays(2)
    rsa, ed25519 = relay.rsa_identity, relay.ed_identity
    if which == "rsa_identity":
        rsa = other.rsa_identity
    else:
        ed25519 = other.ed_identity
    async with serve_relay(relay) as address:
        with pytest.raises(ChannelError, match="identity"):
            await Channel.connect(*address, rsa=rsa, ed25519=ed25519, rng=Random())
    assert [command for _, command, _ in relay.links[0].control_cells] == [Command.VERSIONS]


@pytest.mark.parametrize("cert_type", [2, 4, 5, 7])
async def test_a_missing_or_doubled_certificate_is_refused(relay: FakeRelay, cert_type: int) -> None:
    def without(certs: Certs) -> Certs:
        return [cert for cert in certs if cert[0] != cert_type]

    def doubled(certs: Certs) -> Certs:
        return [*certs, *(cert for cert in certs if cert[0] == cert_type)]

    edits: list[Callable[[Certs], Certs]] = [without, doubled]
    for edit in edits:
        (relay,) = fresh_relays(1)
        relay.edit_certs = edit
        await expect_refusal(relay, ChannelError)


@pytest.mark.parametrize("cert_type", [2, 4, 5, 7])
async def test_a_certificate_with_one_bit_flipped_is_refused(relay: FakeRelay, cert_type: int) -> None:
    def flipped(certs: Certs) -> Certs:
        return [(kind, der[:-1] + bytes([der[-1] ^ 1]) if kind == cert_type else der) for kind, der in certs]

    relay.edit_certs = flipped
    await expect_refusal(relay, ChannelError)


async def test_a_certificate_of_an_unknown_type_is_passed_over(relay: FakeRelay) -> None:
    relay.edit_certs = lambda certs: [(99, b"?"), *certs, (1, b"")]
    async with serve_channel(relay) as channel:
        assert channel.error is None


async def test_certificates_for_another_tls_connection_are_refused(relay: FakeRelay) -> None:
    """What somebody in the middle, who terminates TLS, would forward."""

    def for_another_certificate(certs: Certs) -> Certs:
        expires = time.time() + 86400
        cert = make_ed_certificate(5, 3, bytes(32), signer=relay.ed_signing_key, expires=expires)
        return [(kind, cert if kind == 5 else der) for kind, der in certs]

    relay.edit_certs = for_another_certificate
    await expect_refusal(relay, ChannelError, "TLS")


async def test_expired_certificates_are_refused(relay: FakeRelay) -> None:
    relay.now -= 60 * 86400
    await expect_refusal(relay, ChannelError)


async def test_the_cells_of_another_relay_behind_this_relays_tls_are_refused() -> None:
    relay, other = fresh_relays(2)
    relay.make_certs = other.make_certs  # type: ignore[method-assign]  # an impostor's
    async with serve_relay(relay) as address:
        with pytest.raises(ChannelError):
            await Channel.connect(*address, rsa=other.rsa_identity, ed25519=other.ed_identity, rng=Random())


@pytest.mark.parametrize("abrupt", [False, True])
@pytest.mark.parametrize("length", [0, 3, 11, 100])
async def test_end_in_mid_handshake_is_a_closed_channel(relay: FakeRelay, length: int, abrupt: bool) -> None:
    def stop(link: FakeLink) -> None:
        answer_versions(link)
        link.push(link.take()[:length])
        link.close(abrupt=abrupt)

    relay.on_versions = stop
    await expect_refusal(relay, ChannelClosed)


@pytest.mark.parametrize(
    "order",
    [
        ["certs", "versions"],
        ["versions", "netinfo"],
        ["versions", "versions again"],
        ["versions", "certs", "certs"],
        ["versions", "created2"],
        ["versions", "certs", "created2"],
    ],
)
async def test_cells_out_of_order_are_refused(relay: FakeRelay, order: list[str]) -> None:
    def misorder(link: FakeLink) -> None:
        for name in order:
            match name:
                case "versions":
                    link.push(encode_versions(relay.link_versions))
                case "versions again":
                    link.send_cell(0, Command.VERSIONS, b"\0\5")
                case "certs":
                    link.send_cell(0, Command.CERTS, encode_certs(relay.make_certs()))
                case "netinfo":
                    link.send_cell(0, Command.NETINFO, encode_netinfo(relay))
                case "created2":
                    link.send_cell(0x80000001, Command.CREATED2, bytes(100))

    relay.on_versions = misorder
    async with serve(relay):
        with pytest.raises(ChannelError):
            await connect(relay)


async def test_random_bytes_are_refused(relay: FakeRelay) -> None:
    for seed in range(20):
        rng = Random(seed)

        def babble(link: FakeLink, rng: Random = rng) -> None:
            link.push(rng.randbytes(3000))
            link.close()

        relay.on_versions = babble
        async with serve(relay):
            with pytest.raises((ChannelError, ChannelClosed)):
                await connect(relay)


async def test_padding_and_unknown_cells_in_the_handshake_are_passed_over(relay: FakeRelay) -> None:
    def chatter(link: FakeLink) -> None:
        certs = encode_certs(relay.make_certs())
        link.push(encode_versions(relay.link_versions))
        for after in ((Command.CERTS, certs), (Command.NETINFO, encode_netinfo(relay))):
            link.send_cell(0, Command.VPADDING, bytes(77))
            link.send_cell(0, Command.PADDING)
            link.send_cell(0, 250, b"from the future")
            link.send_cell(0, 99)
            link.send_cell(0, *after)

    relay.on_versions = chatter
    async with serve_channel(relay) as channel:
        assert (await build(channel, [relay])).error is None


# --- Silence -------------------------------------------------------------------------------------------


async def test_a_relay_silent_after_tls_is_given_up(
    relay: FakeRelay, patient_clock: trio.testing.MockClock
) -> None:
    relay.on_versions = ignore
    started = trio.current_time()
    await expect_refusal(relay, TimedOut, "link handshake")
    assert trio.current_time() - started >= CONNECT_TIMEOUT


async def test_a_host_silent_in_tls_is_given_up(patient_clock: trio.testing.MockClock) -> None:
    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, say_nothing, [listener])
        with pytest.raises(TimedOut):
            await Channel.connect(*listener.socket.getsockname(), rsa=bytes(20), ed25519=None, rng=Random())
        nursery.cancel_scope.cancel()


# --- The open channel ----------------------------------------------------------------------------------


@asynccontextmanager
async def served_until_end(relay: FakeRelay) -> AsyncIterator[Channel]:
    """An open channel; leaving the block waits until it has ended."""
    async with serve(relay), trio.open_nursery() as nursery:
        channel = await connect(relay)
        nursery.start_soon(channel.run)
        yield channel


@pytest.mark.parametrize(
    "command", [Command.VERSIONS, Command.CERTS, Command.NETINFO, Command.PADDING_NEGOTIATE]
)
async def test_cells_that_only_handshakes_or_clients_have_end_the_channel(
    relay: FakeRelay, command: Command
) -> None:
    async with served_until_end(relay) as channel:
        circuit = await build(channel, [relay])
        relay.links[0].send_cell(0, command, b"\0\5\0\4")
    assert isinstance(channel.error, ChannelError)
    assert isinstance(circuit.error, ChannelClosed)


async def test_an_oversized_cell_ends_the_channel_however_much_of_it_one_read_brings(
    relay: FakeRelay,
) -> None:
    # A cell that came whole in one read was let through until _fast/channel.pyx checked lengths first.
    for length in (20_000, 65_535):
        async with serve_channel(relay) as channel:
            relay.links[-1].send_cell(0, 200, bytes(length))
            with pytest.raises(ChannelClosed):
                await build(channel, [relay])
            assert isinstance(channel.error, ChannelError)


@pytest.mark.parametrize("abrupt", [False, True])
async def test_the_relays_end_is_the_channels(relay: FakeRelay, abrupt: bool) -> None:
    async with served_until_end(relay) as channel:
        relay.links[0].push(bytes(100))  # in mid-cell
        relay.links[0].close(abrupt=abrupt)
    assert isinstance(channel.error, ChannelClosed)


async def test_unknown_cells_and_padding_are_passed_over(relay: FakeRelay) -> None:
    async with serve_channel(relay) as channel:
        link = relay.links[0]
        for circ_id in (0, 5, 0x80000005):
            link.send_cell(circ_id, Command.PADDING)
            link.send_cell(circ_id, Command.VPADDING, bytes(300))
            link.send_cell(circ_id, 99)
            link.send_cell(circ_id, 250, b"?")
            link.send_cell(circ_id, Command.RELAY)
            link.send_cell(circ_id, Command.DESTROY, b"\1")
        circuit = await build(channel, [relay])
        assert circuit.error is None
        assert channel.error is None


async def test_draining_sends_what_was_sealed(relay: FakeRelay) -> None:
    async with serve_channel(relay) as channel:
        destroyed = Arrivals()
        relay.on_destroy = destroyed
        circuit = await build(channel, [relay])
        circuit.close()
        await channel.drain()
        await destroyed.next()
        relay.links[0].close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert channel.error is not None
        await channel.drain()  # nothing left that could be sent


async def test_cancelling_the_tasks_of_many_streams_cuts_no_cell() -> None:
    relays = fresh_relays(3)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        for _ in range(20):
            stream, _ = await open_stream(circuit, relays[2])
            arrived = Arrivals()
            relays[2].on_data = arrived
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(100_000))
                await arrived.next()
                nursery.cancel_scope.cancel()
            await stream.aclose()
        relays[2].hosts["name.test"] = ["192.0.2.1"]
        assert len(await circuit.resolve("name.test")) == 1
    assert [relay.complaints for relay in relays] == [[], [], []]


# --- The channels in use -------------------------------------------------------------------------------


@asynccontextmanager
async def channels_to(relay: FakeRelay, padding: Padding = Padding.AUTO) -> AsyncIterator[Channels]:
    async with serve(relay), trio.open_nursery() as nursery:
        yield Channels(nursery, Random(), padding=padding)
        nursery.cancel_scope.cancel()


async def test_whoever_needs_a_relay_shares_its_channel(relay: FakeRelay) -> None:
    async with channels_to(relay) as channels:
        got: list[Channel] = []

        async def get() -> None:
            got.append(await channels.get(relay_of(relay)))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(get)
        assert len(set(map(id, got))) == 1
        assert await channels.get(source_of(relay)) is got[0]
        assert len(relay.links) == 1


async def test_a_channel_that_has_ended_is_replaced(relay: FakeRelay) -> None:
    async with channels_to(relay) as channels:
        first = await channels.get(relay_of(relay))
        circuit = await build(first, [relay])
        ended = trio.Event()
        circuit.on_end = lambda _: ended.set()
        relay.links[0].close(abrupt=True)
        await ended.wait()
        second = await channels.get(relay_of(relay))
        assert second is not first
        assert second.error is None


async def test_a_shared_channel_must_have_the_ed25519_identity_asked_for() -> None:
    """A channel made for an authority, by its RSA identity alone, serves no other Ed25519 identity."""
    relay, other = fresh_relays(2)
    async with channels_to(relay) as channels:
        first = await channels.get(source_of(relay))
        with pytest.raises(ChannelError, match="Ed25519"):
            await channels.get(relay_of(relay, ed25519_identity=other.ed_identity))
        assert await channels.get(relay_of(relay)) is first


async def test_every_address_of_a_relay_is_tried(relay: FakeRelay) -> None:
    async with channels_to(relay) as channels:
        (dead,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        dead_port = dead.socket.getsockname()[1]
        await dead.aclose()
        listening = ("::ffff:127.0.0.1", relay.address[1])
        contact = DirectoryServer(relay.rsa_identity, "127.0.0.1", dead_port, listening)
        assert (await channels.get(contact)).error is None


async def test_a_waiter_tries_itself_when_the_first_attempt_fails(relay: FakeRelay) -> None:
    attempts: list[int] = []

    def refuse_once(link: FakeLink) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            link.close()
        else:
            answer_versions(link)

    relay.on_versions = refuse_once
    async with channels_to(relay) as channels:
        outcomes: list[Any] = []

        async def get() -> None:
            try:
                outcomes.append(await channels.get(relay_of(relay)))
            except ChannelClosed as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(get)
        assert [type(outcome) for outcome in outcomes] == [HandshakeCut, Channel]


@pytest.mark.parametrize("padding", [Padding.AUTO, Padding.REDUCED])
async def test_an_idle_channel_is_closed_and_a_busy_one_is_not(
    relay: FakeRelay, mock_clock: trio.testing.MockClock, padding: Padding
) -> None:
    least, most = IDLE_TIMEOUT, IDLE_TIMEOUT + IDLE_TIMEOUT_SPREAD
    if padding is Padding.REDUCED:
        least, most = least // 2, most // 2
    async with channels_to(relay, padding) as channels:
        channel = await channels.get(relay_of(relay))
        circuit = channel.open_circuit(8, CircuitSettings())
        await circuit.create(relay_of(relay))
        mock_clock.jump(most * 10)
        await trio.testing.wait_all_tasks_blocked()
        assert channel.error is None
        circuit.close()
        mock_clock.jump(least - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert channel.error is None
        assert await channels.get(relay_of(relay)) is channel
        for _ in range(2):
            mock_clock.jump(most - least + 1)
            await trio.testing.wait_all_tasks_blocked()
        assert isinstance(channel.error, ChannelClosed)
        assert await channels.get(relay_of(relay)) is not channel


async def test_a_channel_that_ends_for_idleness_is_given_to_nobody_any_more(
    relay: FakeRelay, mock_clock: trio.testing.MockClock
) -> None:
    seen: list[Channel | None] = []

    class Scope:
        def cancel(self) -> None:
            seen.append(channels.find(relay_of(relay)))  # its own task ends the channel only later

    async with channels_to(relay) as channels:
        channel = await channels.get(relay_of(relay))
        mock_clock.jump(IDLE_TIMEOUT + IDLE_TIMEOUT_SPREAD)
        await channels._expire(relay_of(relay), channel, cast(Any, Scope()))
    assert seen == [None]


async def test_a_channel_of_a_week_takes_no_new_circuits_and_ends_with_its_last(
    relay: FakeRelay, mock_clock: trio.testing.MockClock
) -> None:
    async with channels_to(relay) as channels:
        old = await channels.get(relay_of(relay))
        circuit = old.open_circuit(8, CircuitSettings())
        await circuit.create(relay_of(relay))
        mock_clock.jump(MAX_AGE - 1)
        assert await channels.get(relay_of(relay)) is old
        mock_clock.jump(1)
        assert not channels.is_open(relay_of(relay))
        new = await channels.get(relay_of(relay))
        assert new is not old
        assert await channels.get(relay_of(relay)) is new
        assert (circuit.error, old.error) == (None, None)
        circuit.close()
        for _ in range(2):
            mock_clock.jump(IDLE_TIMEOUT + IDLE_TIMEOUT_SPREAD)
            await trio.testing.wait_all_tasks_blocked()
        assert isinstance(old.error, ChannelClosed)
