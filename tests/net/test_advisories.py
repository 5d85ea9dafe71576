"""Faults that C tor's advisories name, where no other test plays the attack. docs/security.md lists them."""

import struct
from collections.abc import Callable
from functools import partial

import pytest
import trio
from served import (
    CONGESTION_CONTROL,
    PLAIN,
    build,
    connect,
    far_end,
    fresh_relays,
    open_stream,
    serve,
    serve_channel,
    serve_circuit,
)
from waiting import until

from torkit._fast.cells import Command, RelayCommand
from torkit.errors import ChannelClosed, ChannelError, CircuitError
from torkit.testing.relay import FULL, FakeRelay, Fault, ignore


async def test_a_circuit_that_is_closed_again_from_within_its_own_end_ends_once() -> None:
    """TROVE-2026-009. Data, an END and DESTROY come at once, and whoever hears of them closes all."""
    async with serve_circuit(3) as (circuit, relays):
        streams = [await open_stream(circuit, relays[2]) for _ in range(3)]
        ends = []

        def on_end(_: object) -> None:
            ends.append(circuit.error)
            circuit.close()
            for stream, _far in streams:
                stream.close()
            circuit.close()

        circuit.on_end = on_end
        streams[1][1].send(RelayCommand.DATA, b"x")
        streams[0][1].send(RelayCommand.DATA, b"y")
        streams[2][1].end()
        far_end(relays[2]).destroy()
        await until(lambda: bool(ends))
        await trio.testing.wait_all_tasks_blocked()
        assert len(ends) == 1


@pytest.mark.parametrize("hop", [1, 2, 3])
async def test_truncated_without_a_reason_ends_the_circuit(hop: int) -> None:
    """TROVE-2026-011."""
    async with serve_circuit(3) as (circuit, relays):
        far_end(relays[2]).send(hop, RelayCommand.TRUNCATED, 0, b"")
        await until(lambda: circuit.error is not None)


@pytest.mark.parametrize(
    "change",
    [
        lambda tag: tag[:-1],
        lambda tag: tag[:4],
        lambda _: b"",
        lambda tag: tag + b"\0",
        lambda tag: tag.ljust(400),
    ],
)
async def test_a_sendme_whose_tag_is_of_another_length_ends_the_circuit(
    change: Callable[[bytes], bytes],
) -> None:
    """TROVE-2026-004 was a comparison over as many bytes as the peer named."""
    async with serve_circuit(3) as (circuit, relays):
        relays[2].on_sendme_due = lambda far, hop, tag: far.sendme(hop, change(tag))
        relays[2].on_data = ignore
        stream, _ = await open_stream(circuit, relays[2])
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(bytes(498 * 2000))
        assert isinstance(circuit.error, CircuitError)


@pytest.mark.parametrize("protocols", [PLAIN, CONGESTION_CONTROL, FULL], ids=["windows", "congestion", "CGO"])
@pytest.mark.parametrize("change", [lambda tag: tag[:-1], lambda tag: tag[:-1] + bytes([tag[-1] ^ 1])])
async def test_a_sendme_with_another_tag_ends_the_circuit_whatever_its_layers(
    protocols: str, change: Callable[[bytes], bytes]
) -> None:
    """TROVE-2026-004, where the tags are of a SHA-1 digest and where they are CGO's."""
    relays = fresh_relays(1)
    relays[0].protocols = protocols

    def lie(body: bytes) -> bytes:
        tag = change(body[3:])
        return struct.pack(">BH", 1, len(tag)) + tag

    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays, protocols=protocols)
        stream, far = await open_stream(circuit, relays[0])
        wrong = (
            relays[0]
            .sending(RelayCommand.SENDME, nth=None, circuit=far.circuit)
            .lie(lambda body: lie(body) if len(body) > 3 else body)
        )
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(bytes(498 * 2000))
        assert isinstance(circuit.error, CircuitError)
        assert wrong.count >= 1
        assert channel.error is None


async def test_a_sendme_that_ends_within_its_tag_says_so() -> None:
    async with serve_circuit(3) as (circuit, relays):
        relays[2].sending(RelayCommand.SENDME, nth=2).cut(22)
        stream, _ = await open_stream(circuit, relays[2])
        with pytest.raises(trio.BrokenResourceError, match="19 bytes of a tag of 20"):
            await stream.send_all(bytes(498 * 2000))


@pytest.mark.parametrize("protocols", [PLAIN, FULL], ids=["ntor", "ntor-v3"])
@pytest.mark.parametrize("step", [Command.CREATED2, RelayCommand.EXTENDED2])
async def test_an_answer_to_a_handshake_that_lies_about_its_length_ends_the_circuit(
    step: Command | RelayCommand, protocols: str
) -> None:
    """TROVE-2026-003, as it comes over a connection: this goes on."""

    def claim(length: int, body: bytes) -> bytes:
        return struct.pack(">H", length) + body[2:].ljust(400, b"\x55")

    relays = fresh_relays(2)
    async with serve_channel(relays[0]) as channel:
        for length in (0, 1, 63, 66, 494, 495, 496, 497, 498, 505, 506, 507, 508, 509, 520, 65535):
            relays[0].sending(step).lie(partial(claim, length))
            with pytest.raises(CircuitError):
                await build(channel, relays, protocols=protocols)
            relays[0].faults.clear()
        assert (await build(channel, relays, protocols=protocols)).error is None


@pytest.mark.parametrize(
    "story",
    [
        lambda relay: relay.sending(Command.VERSIONS).drop(),
        lambda relay: relay.sending(Command.VERSIONS).swap(),
        lambda relay: relay.sending(Command.VERSIONS).duplicate(),
        lambda relay: relay.sending(Command.CERTS).drop(),
        lambda relay: relay.sending(Command.CERTS).swap(),
        lambda relay: relay.sending(Command.CERTS).duplicate(),
        lambda relay: relay.sending(Command.CERTS).impersonate(fresh_relays(2)[1]),
    ],
)
async def test_a_link_handshake_out_of_order_or_by_another_is_refused(
    story: Callable[[FakeRelay], Fault],
) -> None:
    """TROVE-2026-006."""
    (relay,) = fresh_relays(1)
    wrong = story(relay)
    async with serve(relay):
        with pytest.raises((ChannelError, ChannelClosed)):
            await connect(relay)
    assert wrong.count == 1
    assert [command for _, command, _ in relay.links[0].control_cells] == [Command.VERSIONS]


async def test_an_end_without_a_reason_ends_the_circuit_before_the_answer_and_not_after_our_end() -> None:
    """TROVE-2026-011, where the stream is asked for, and where it has been closed here."""
    async with serve_circuit(3) as (circuit, relays):
        stream, far = await open_stream(circuit, relays[2])
        relays[2].sending(RelayCommand.END).cut(0)
        relays[2].on_end = ignore
        stream.close()
        far.end()
        other, _ = await open_stream(circuit, relays[2])
        assert circuit.error is None
        other.close()
        relays[2].on_begin = lambda stream: stream.end()
        relays[2].sending(RelayCommand.END).cut(0)
        with pytest.raises(trio.BrokenResourceError):
            await circuit.begin("web.test", 80).wait_connected()
        assert isinstance(circuit.error, CircuitError)
