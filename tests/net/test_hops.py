"""Circuits over real TLS: handshakes hop by hop, how a circuit ends, and that it ends alone."""

from collections.abc import Callable

import pytest
import trio
import trio.testing
from served import (
    CONGESTION_CONTROL,
    Arrivals,
    build,
    far_end,
    fresh_relays,
    open_stream,
    relay_of,
    serve_channel,
    serve_circuit,
)

from torkit._fast.cells import Command, RelayCommand
from torkit.errors import (
    ChannelClosed,
    CircuitClosed,
    CircuitError,
    DestroyReason,
    TorkitError,
    UsageError,
)
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.stream import StreamBroken
from torkit.net.link.channel import Channel
from torkit.proto.circuit import HopHandshake
from torkit.testing.relay import CONNECTFAILED, FakeCircuit, RelayCell, answer_create, answer_extend2


async def failure_of(circuit: Circuit) -> TorkitError:
    """What a circuit ends with, waited for."""
    if circuit.error is None:
        ended = trio.Event()
        circuit.on_end = lambda _: ended.set()
        await ended.wait()
    assert circuit.error is not None
    return circuit.error


async def test_a_circuit_knows_its_path_and_how_long_each_hop_took() -> None:
    async with serve_circuit() as (circuit, relays):
        assert [relay.identity for relay in circuit.path] == [relay.rsa_identity for relay in relays]
        assert [hop.handshake for hop in circuit.hops] == ["ntor"] * 3
        assert all(hop.seconds > 0 for hop in circuit.hops)
        extends = [cell for _, cell in far_end(relays[0]).control_cells]
        assert [cell.command for cell in extends] == [RelayCommand.EXTEND2] * 2
        assert all(cell.early for cell in extends)


async def test_only_the_last_hop_is_asked_for_congestion_control() -> None:
    async with serve_circuit(protocols=CONGESTION_CONTROL) as (circuit, relays):
        assert [hop.flow_control for hop in circuit.hops] == ["fixed", "fixed", "vegas"]
        assert [hop.congestion_control for hop in far_end(relays[0]).hops] == [False, False, True]


async def test_create_fast_makes_a_directory_circuit() -> None:
    (relay,) = fresh_relays(1)
    relay.directory = lambda _: b""
    async with serve_channel(relay) as channel:
        circuit = channel.open_circuit(0, CircuitSettings())
        await circuit.create_fast()
        assert circuit.path == ()
        await circuit.begin_directory().wait_connected()
    assert relay.complaints == []


async def test_many_circuits_share_one_channel() -> None:
    relays = fresh_relays(3)
    async with serve_channel(relays[0]) as channel:
        circuits: list[Circuit] = []

        async def use() -> None:
            circuit = await build(channel, relays)
            circuits.append(circuit)
            (await circuit.resolve("name.test")).clear()

        relays[2].hosts["name.test"] = ["192.0.2.1"]
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(use)
        assert all(circuit.error is None for circuit in circuits)
        assert len(circuits) == len({circuit.circ_id for circuit in relays[0].circuits}) == 30
    assert len(relays[0].links) == 1
    assert relays[0].complaints == []


# --- Handshakes that fail ------------------------------------------------------------------------------


async def test_wrong_onion_key_is_refused_by_the_relay() -> None:
    relays = fresh_relays(2)
    async with serve_channel(relays[0]) as channel:
        circuit = channel.open_circuit(8, CircuitSettings())
        with pytest.raises(CircuitClosed) as caught:
            await circuit.create(relay_of(relays[0], ntor_onion_key=relays[1].ntor_onion_key))
        assert caught.value.reason is DestroyReason.PROTOCOL


async def test_a_relay_that_cannot_prove_its_onion_key_is_refused() -> None:
    def answer_with_wrong_auth(circuit: FakeCircuit, command: int, body: bytes) -> None:
        circuit.link.send_cell(circuit.circ_id, Command.CREATED2, b"\0\x40" + bytes([9] * 64))

    relays = fresh_relays(1)
    relays[0].on_create = answer_with_wrong_auth
    async with serve_channel(relays[0]) as channel:
        circuit = channel.open_circuit(8, CircuitSettings())
        with pytest.raises(CircuitError):
            await circuit.create(relay_of(relays[0]))


@pytest.mark.parametrize("body", [b"", b"\xff\xff", b"\0\0", b"\0\x3f" + bytes(63)])
async def test_malformed_extended2_is_the_circuits_error(body: bytes) -> None:
    relays = fresh_relays(2)
    relays[0].on_extend2 = lambda circuit, hop, _: circuit.send(hop, RelayCommand.EXTENDED2, 0, body)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays[:1])
        with pytest.raises(CircuitError):
            await circuit.extend(relay_of(relays[1]), is_last=True)


async def test_extending_to_an_unknown_relay_ends_the_circuit_with_the_reason() -> None:
    relays = fresh_relays(3)
    relays[0].known = relays[:1]
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays[:1])
        with pytest.raises(CircuitClosed) as caught:
            await circuit.extend(relay_of(relays[1]), is_last=True)
        assert caught.value.reason is DestroyReason.CONNECTFAILED


async def test_another_ed25519_identity_is_refused_by_the_extending_relay() -> None:
    relays = fresh_relays(3)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays[:1])
        with pytest.raises(CircuitClosed) as caught:
            await circuit.extend(relay_of(relays[1], ed25519_identity=relays[2].ed_identity), is_last=True)
        assert caught.value.reason is DestroyReason.OR_IDENTITY


@pytest.mark.parametrize("silent_hop", [0, 1])
async def test_a_hop_that_never_answers_can_be_given_up(silent_hop: int) -> None:
    relays = fresh_relays(2)
    asked, destroyed = Arrivals(), Arrivals()
    if silent_hop == 0:
        relays[0].on_create = asked
    else:
        relays[0].on_extend2 = asked
    relays[0].on_destroy = destroyed
    async with serve_channel(relays[0]) as channel:
        circuit = channel.open_circuit(8, CircuitSettings())

        async def extend() -> None:
            await circuit.create(relay_of(relays[0]))
            await circuit.extend(relay_of(relays[1]), is_last=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(extend)
            await asked.next()
            nursery.cancel_scope.cancel()
        circuit.close()
        if silent_hop == 1:  # the relay knows no hop of the other
            far, reason = await destroyed.next()
            assert (far.closed, reason) == (True, DestroyReason.NONE)
        relays[0].on_create, relays[0].on_extend2 = answer_create, answer_extend2
        assert (await build(channel, relays)).error is None
        commands = [command for _, command, _ in relays[0].links[0].control_cells]
        assert Command.DESTROY in commands


async def test_a_late_answer_to_a_handshake_given_up_harms_nothing() -> None:
    relays = fresh_relays(1)
    asked = Arrivals()
    relays[0].on_create = asked
    async with serve_channel(relays[0]) as channel:
        circuit = channel.open_circuit(8, CircuitSettings())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(circuit.create, relay_of(relays[0]))
            far, command, body = await asked.next()
            nursery.cancel_scope.cancel()
        circuit.close()
        answer_create(far, command, body)
        relays[0].on_create = answer_create
        assert (await build(channel, relays)).error is None
        assert channel.error is None


async def test_nothing_can_be_added_to_a_circuit_that_has_ended() -> None:
    async with serve_circuit(2) as (circuit, relays):
        circuit.close()
        assert isinstance(circuit.error, CircuitClosed)
        with pytest.raises(CircuitClosed):
            await circuit.extend(relay_of(relays[1]), is_last=True)
        with pytest.raises(CircuitClosed):
            circuit.begin("web.test", 80)
        with pytest.raises(CircuitClosed):
            await circuit.resolve("web.test")


# --- Answers that nobody asked for ---------------------------------------------------------------------


async def test_created2_out_of_turn_ends_the_circuit() -> None:
    async with serve_circuit(2) as (circuit, relays):
        far = far_end(relays[0])
        far.link.send_cell(far.circ_id, Command.CREATED2, b"\0\x40" + bytes(64))
        assert isinstance(await failure_of(circuit), CircuitError)


async def test_a_link_cell_is_not_taken_for_the_relay_message_of_the_same_number() -> None:
    relays = fresh_relays(2)

    def answer(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        circuit.link.send_cell(circuit.circ_id, RelayCommand.EXTENDED2, b"\0\x40" + bytes(64))
        answer_extend2(circuit, number, cell)

    relays[0].on_extend2 = answer
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        assert len(circuit.path) == 2


@pytest.mark.parametrize("command", [RelayCommand.EXTENDED2, RelayCommand.XON, 99, 200])
async def test_an_unknown_link_command_leaves_the_circuit_alone(command: int) -> None:
    async with serve_circuit(2) as (circuit, relays):
        far = far_end(relays[0])
        far.link.send_cell(far.circ_id, command, bytes(8))
        await open_stream(circuit, relays[1])
        assert circuit.error is None


async def test_extended2_out_of_turn_ends_the_circuit() -> None:
    async with serve_circuit(2) as (circuit, relays):
        far_end(relays[0]).send(2, RelayCommand.EXTENDED2, 0, b"\0\x40" + bytes(64))
        assert isinstance(await failure_of(circuit), CircuitError)


async def test_extended2_from_another_hop_than_the_last_ends_the_circuit() -> None:
    relays = fresh_relays(3)
    relays[1].on_extend2 = lambda circuit, hop, _: circuit.send(1, RelayCommand.EXTENDED2, 0, b"\0\x40")
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays[:2])
        with pytest.raises(CircuitError, match="hop 1"):
            await circuit.extend(relay_of(relays[2]), is_last=True)


async def test_two_answers_to_one_handshake_end_the_circuit() -> None:
    def answer_twice(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        circuit.send(number, RelayCommand.EXTENDED2, 0, b"\0\x40" + bytes(64))
        circuit.send(number, RelayCommand.EXTENDED2, 0, b"\0\x40" + bytes(64))

    relays = fresh_relays(2)
    relays[0].on_extend2 = answer_twice
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays[:1])
        with pytest.raises(CircuitError):
            await circuit.extend(relay_of(relays[1]), is_last=True)


async def test_an_unknown_message_without_stream_ends_the_circuit() -> None:
    async with serve_circuit(2) as (circuit, relays):
        far_end(relays[0]).send(2, 99, 0, b"?")
        assert isinstance(await failure_of(circuit), CircuitError)


async def test_drop_is_dropped() -> None:
    async with serve_circuit() as (circuit, relays):
        for hop in (1, 2, 3):
            far_end(relays[0]).send(hop, RelayCommand.DROP)
        relays[2].hosts["name.test"] = ["192.0.2.1"]
        assert len(await circuit.resolve("name.test")) == 1


# --- How circuits end ----------------------------------------------------------------------------------


async def test_destroy_ends_the_circuit_with_its_reason_and_is_not_answered() -> None:
    async with serve_circuit() as (circuit, relays):
        stream, _ = await open_stream(circuit, relays[2])
        far_end(relays[0]).destroy(DestroyReason.RESOURCELIMIT)
        error = await failure_of(circuit)
        assert isinstance(error, CircuitClosed)
        assert (error.reason, error.hop) == (DestroyReason.RESOURCELIMIT, None)
        with pytest.raises(StreamBroken) as caught:
            await stream.receive_some()
        assert repr(caught.value.__cause__) == repr(error)
        commands = [command for _, command, _ in relays[0].links[0].control_cells]
        assert Command.DESTROY not in commands


async def test_an_unknown_destroy_reason_is_none() -> None:
    async with serve_circuit(1) as (circuit, relays):
        far_end(relays[0]).destroy(200)
        error = await failure_of(circuit)
        assert isinstance(error, CircuitClosed)
        assert error.reason is DestroyReason.NONE


async def test_truncated_ends_the_circuit_and_names_the_hop_that_is_gone() -> None:
    async with serve_circuit() as (circuit, relays):
        destroyed = Arrivals()
        relays[0].on_destroy = destroyed
        far_end(relays[0]).truncated(2, CONNECTFAILED)
        error = await failure_of(circuit)
        assert isinstance(error, CircuitClosed)
        assert (error.reason, error.hop) == (DestroyReason.CONNECTFAILED, 3)
        await destroyed.next()


async def test_truncated_while_extending_is_the_answer() -> None:
    relays = fresh_relays(3)
    relays[1].on_extend2 = lambda circuit, hop, _: circuit.truncated(hop, DestroyReason.OR_IDENTITY)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays[:2])
        with pytest.raises(CircuitClosed) as caught:
            await circuit.extend(relay_of(relays[2]), is_last=True)
        assert (caught.value.reason, caught.value.hop) == (DestroyReason.OR_IDENTITY, 3)


async def test_closing_sends_destroy_once_and_fails_what_is_open() -> None:
    async with serve_circuit() as (circuit, relays):
        destroyed = Arrivals()
        relays[0].on_destroy = destroyed
        stream, _ = await open_stream(circuit, relays[2])
        circuit.close()
        circuit.close()
        await circuit.aclose()
        with pytest.raises(StreamBroken):
            await stream.receive_some()
        with pytest.raises(StreamBroken):
            await stream.send_all(b"x")
        _, reason = await destroyed.next()
        assert reason == DestroyReason.NONE
        commands = [command for _, command, _ in relays[0].links[0].control_cells]
        assert commands.count(Command.DESTROY) == 1


async def test_cells_for_a_circuit_just_closed_harm_nothing() -> None:
    relays = fresh_relays(2)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        far = far_end(relays[0])
        circuit.close()
        far.send(2, RelayCommand.DROP)
        far.link.send_cell(far.circ_id, Command.CREATED2, b"\0\x40")
        far.link.send_cell(far.circ_id, Command.DESTROY, b"\1")
        assert (await build(channel, relays)).error is None
        assert channel.error is None


async def test_the_end_of_the_link_ends_every_circuit() -> None:
    relays = fresh_relays(2)
    async with serve_channel(relays[0]) as channel:
        circuits = [await build(channel, relays) for _ in range(3)]
        asked = Arrivals()
        relays[0].on_create = asked
        waiting = channel.open_circuit(8, CircuitSettings())

        async def create() -> None:
            with pytest.raises(ChannelClosed):
                await waiting.create(relay_of(relays[0]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await asked.next()
            relays[0].links[0].close(abrupt=True)
        assert all([isinstance(await failure_of(circuit), ChannelClosed) for circuit in circuits])
        with pytest.raises(ChannelClosed):
            channel.open_circuit(8, CircuitSettings())


# --- One bad circuit beside good ones ------------------------------------------------------------------


def no_hop_recognizes(far: FakeCircuit) -> None:
    far.send(3, RelayCommand.DROP, wrong_digest=True)


def bit_flipped(far: FakeCircuit) -> None:
    far.send(3, RelayCommand.DROP, flip_bit=2000)


def relay_early(far: FakeCircuit) -> None:
    far.send(3, RelayCommand.DROP, early=True)


def too_long(far: FakeCircuit) -> None:
    far.send(3, RelayCommand.DROP, length=499)


def stream_never_begun(far: FakeCircuit) -> None:
    far.send(3, RelayCommand.DATA, 7, b"x")


def sendme_for_nothing(far: FakeCircuit) -> None:
    far.sendme(3, bytes(20))


def sendme_without_tag(far: FakeCircuit) -> None:
    far.send(3, RelayCommand.SENDME, 0, b"")


@pytest.mark.parametrize(
    "misbehave",
    [
        no_hop_recognizes,
        bit_flipped,
        relay_early,
        too_long,
        stream_never_begun,
        sendme_for_nothing,
        sendme_without_tag,
    ],
)
async def test_a_breach_ends_its_circuit_and_no_other(misbehave: object) -> None:
    assert callable(misbehave)
    relays = fresh_relays(3)
    destroyed = Arrivals()
    relays[0].on_destroy = destroyed
    async with serve_channel(relays[0]) as channel:
        good, bad = await build(channel, relays), await build(channel, relays)
        good_far, bad_far = relays[0].circuits
        stream, far_stream = await open_stream(good, relays[2])
        held = good_far.link
        assert held is bad_far.link
        # In one write: good data, the breach, good data.
        far_stream.write(b"before ")
        misbehave(bad_far)
        far_stream.write(b"after")
        assert isinstance(await failure_of(bad), CircuitError)
        (far, reason) = await destroyed.next()
        assert far is bad_far
        assert reason == DestroyReason.NONE
        data = b""
        while len(data) < len(b"before after"):
            data += await stream.receive_some()
        assert data == b"before after"
        assert good.error is None
        assert channel.error is None


async def test_more_data_than_the_windows_allow_ends_the_circuit() -> None:
    async with serve_circuit() as (circuit, relays):
        stream, far_stream = await open_stream(circuit, relays[2])
        for _ in range(501):
            far_stream.data(b"x")
        assert isinstance(await failure_of(circuit), CircuitError)
        assert await stream.receive_some() == b"x" * 500
        with pytest.raises(StreamBroken):
            await stream.receive_some()


async def test_the_wrong_tag_in_a_sendme_ends_the_circuit() -> None:
    async with serve_circuit() as (circuit, relays):
        relays[2].on_sendme_due = lambda far, hop, _: far.sendme(hop, bytes(20))
        stream, _ = await open_stream(circuit, relays[2])
        with pytest.raises(StreamBroken):
            await stream.send_all(bytes(498 * 2000))
        assert isinstance(circuit.error, CircuitError)


async def test_truncated_by_an_earlier_hop_names_the_hop_that_is_gone() -> None:
    relays = fresh_relays(3)
    relays[1].on_extend2 = lambda circuit, hop, _: circuit.truncated(1, DestroyReason.OR_IDENTITY)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays[:2])
        with pytest.raises(CircuitClosed, match="hop 2 is gone, says hop 1") as caught:
            await circuit.extend(relay_of(relays[2]), is_last=True)
        assert caught.value.hop == 2


async def test_a_handshake_that_cannot_be_sent_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    wiped: list[HopHandshake] = []
    wipe = HopHandshake.wipe

    def note(handshake: HopHandshake) -> None:
        wiped.append(handshake)
        wipe(handshake)

    relays = fresh_relays(2)
    async with serve_channel(relays[0]) as channel:
        circuit = channel.open_circuit(0, CircuitSettings())
        await circuit.create(relay_of(relays[0]))
        monkeypatch.setattr(HopHandshake, "wipe", note)
        with pytest.raises(UsageError, match="RELAY_EARLY"):
            await circuit.extend(relay_of(relays[1]), is_last=True)
        assert len(wiped) == 1


async def test_x_of_create_fast_that_cannot_be_sent_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def fail(_: Channel, circ_id: int, command: Command, body: bytes) -> None:
        sent.append(body)
        raise UsageError("no cell goes out")

    (relay,) = fresh_relays(1)
    async with serve_channel(relay) as channel:
        circuit = channel.open_circuit(0, CircuitSettings())
        with monkeypatch.context() as patch:
            patch.setattr(Channel, "send_control", fail)
            with pytest.raises(UsageError):
                await circuit.create_fast()
        assert len(sent[0]) == 20
        assert not any(sent[0])


async def test_kh_goes_with_a_circuit_whose_extender_left_just_then(monkeypatch: pytest.MonkeyPatch) -> None:
    relays = fresh_relays(2)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays[:1])
        with trio.CancelScope() as scope:
            monkeypatch.setattr(Circuit, "_on_reply", leaving_first(scope, Circuit._on_reply))
            await circuit.extend(relay_of(relays[1]), is_last=False, keeps_kh=True)
        assert scope.cancelled_caught
        kept = circuit.kh
        assert len(kept) == 20
        assert any(kept)
        circuit.close()
        assert not any(kept)


def leaving_first(
    scope: trio.CancelScope, on_reply: Callable[[Circuit, Command | RelayCommand, bytes], None]
) -> Callable[[Circuit, Command | RelayCommand, bytes], None]:
    """Cancel the scope just before the answer is read, as another task may have done."""

    def leave_and_go_on(circuit: Circuit, command: Command | RelayCommand, body: bytes) -> None:
        scope.cancel()
        on_reply(circuit, command, body)

    return leave_and_go_on
