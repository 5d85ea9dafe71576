"""torkit.testing.onion against C tor's descriptors, and torkit's clients and services against its relays."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hs.making import services
from onion_network import onion_relays
from served import ServedNetwork, fresh_relays
from trio.testing import MockClock
from waiting import until

from torkit._fast.cells import RelayCommand
from torkit._fast.keys import X25519PrivateKey as TorkitKey
from torkit.client import Tor, open_tor
from torkit.errors import OnionServiceError, OnionStep
from torkit.hs.address import encode_address, parse_address
from torkit.hs.calendar import TimePeriod as TorkitPeriod
from torkit.hs.descriptor import decode_descriptor
from torkit.hs.keys import SecretKey
from torkit.hs.keys import blind as torkit_blind
from torkit.hs.keys import subcredential as torkit_subcredential
from torkit.net.onion.descriptors import calendar_of
from torkit.testing.onion import (
    DescriptorMaker,
    OnionClient,
    OnionKey,
    OnionNetwork,
    OnionService,
    TimePeriod,
    read_descriptor,
)
from torkit.testing.onion.handshake import ClientHandshake, introduce_header, mac
from torkit.testing.onion.keys import blind, decode_address, subcredential
from torkit.testing.relay import (
    FakeCircuit,
    FakeHop,
    FakeStream,
    Fault,
    RelayCell,
    Tor1Layer,
    http_response,
)

PERIOD = TimePeriod(20_000)
RENDEZVOUS = "middle"
ASKED = bytes(range(256)) * 400


# --- Keys and documents --------------------------------------------------------------------------------


def period_of(network: dict[str, Any]) -> TimePeriod:
    period = TimePeriod.at(
        network["valid_after"], network["period_length_min"], network["rotation_offset_min"]
    )
    assert period.number == network["time_period"]
    return period


def test_keys_are_those_of_c_tor_and_of_torkit() -> None:
    for network, vector in services():
        identity = bytes.fromhex(vector["identity_public_key"])
        assert decode_address(vector["address"]) == identity
        blinded = blind(identity, period_of(network))
        assert blinded.hex() == vector["blinded_public_key"]
        assert subcredential(identity, blinded).hex() == vector["subcredential"]
    for seed in (bytes(32), b"k" * 32, b"\xff" * 32):
        key, same = OnionKey(seed), SecretKey.from_seed(seed)
        assert (key.public, key.address) == (same.public, encode_address(same.public))
        assert decode_address(key.address) == parse_address(key.address) == key.public
        period = TorkitPeriod(*PERIOD)
        assert key.blinded(PERIOD).public == same.blinded(period).public == torkit_blind(key.public, period)
        assert key.blinded(PERIOD).sign(b"text") == same.blinded(period).sign(b"text")


@pytest.mark.parametrize("address", ["", "x.onion", "a" * 56 + ".onion", "!" * 56 + ".onion"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_address(address)


def test_real_descriptors_are_read() -> None:
    for network, vector in services():
        identity, period = bytes.fromhex(vector["identity_public_key"]), period_of(network)
        auth = vector.get("client_authorization")
        key = X25519PrivateKey.from_private_bytes(bytes.fromhex(auth["x25519_secret_key"])) if auth else None
        text = vector["descriptor"].encode()
        found = read_descriptor(text, identity, period, client_key=key)
        assert (found.revision, found.lifetime, found.sendme_inc) == (vector["revision_counter"], 180, 31)
        assert (found.pow_params is not None) == (vector["kind"] == "pow")
        for point, expected in zip(found.points, vector["intro_points"], strict=True):
            assert [[t, value.hex()] for t, value in point.link_specifiers] == expected["link_specifiers"]
            for name in ("onion_key", "auth_key", "enc_key"):
                assert getattr(point, name).hex() == expected[name]
        with pytest.raises(ValueError, match="another service or period"):
            read_descriptor(text, identity, TimePeriod(1), client_key=key)


def test_bad_descriptors_are_refused() -> None:
    network, vector = services("plain")[0]
    identity, text = bytes.fromhex(vector["identity_public_key"]), vector["descriptor"].encode()
    period = period_of(network)
    for at in range(0, len(text), 97):
        with pytest.raises(ValueError, match=r"."):
            read_descriptor(text[:at], identity, period)
        with pytest.raises(ValueError, match=r"."):
            read_descriptor(text[:at] + b"!" + text[at + 1 :], identity, period)


def test_a_descriptor_is_for_the_clients_that_it_names() -> None:
    ours, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    network = OnionNetwork(relays := fresh_relays(2))
    service = OnionService(network, relays, relays[0])
    service.clients = [ours.public_key().public_bytes_raw()]
    service.sendme_inc, service.work = 31, (b"s" * 32, 3, 2_000_000_000)
    text = service.descriptor()
    found = read_descriptor(text, service.key.public, service.period, client_key=ours)
    assert found.points == service.points
    assert found.pow_params is not None
    theirs = decode_descriptor(
        text,
        blinded=service.maker.blinded,
        subcredential=torkit_subcredential(service.key.public, service.maker.blinded),
        now=service.maker.now,
        sendme_inc=31,
        client_key=TorkitKey(ours.private_bytes_raw()),
    )
    assert [tuple(point) for point in theirs.points] == [tuple(point) for point in service.points]
    assert theirs.proof_of_work == service.work
    for key in (None, other):
        with pytest.raises(ValueError, match="client"):
            read_descriptor(text, service.key.public, service.period, client_key=key)


def test_a_directory_takes_what_is_signed_and_newer() -> None:
    (relay,) = fresh_relays(1)
    network = OnionNetwork([relay])
    service = OnionService(network, [], relay)

    def put(text: bytes) -> bytes:
        assert relay.directory is not None
        return relay.directory(b"POST /tor/hs/3/publish HTTP/1.0\r\nHost: x\r\n\r\n" + text)[9:12]

    older, newer = service.descriptor(2), service.descriptor(3)
    assert put(older) == b"200"
    assert put(older) == put(service.descriptor(1)) == b"400"
    assert put(newer) == b"200"
    assert [text for _, text in network.uploads] == [older, newer]
    assert relay.complaints == []
    stranger = DescriptorMaker(OnionKey().blinded(PERIOD), bytes(32))
    cert = service.maker.cert(8, stranger.signing_key, signer=service.maker.blinded)  # who has not signed it
    forged = stranger.outer(b"", cert=f"descriptor-signing-key-cert\n{cert}")
    for bad in (b"", b"x" * 100, service.descriptor(4)[:-20], forged):
        assert put(bad) == b"400"
    assert len(relay.complaints) == 4


# --- Relays --------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_network(tmp_path: Path) -> AsyncIterator[tuple[Tor, ServedNetwork, OnionNetwork]]:
    """A client of torkit's that is ready, and the relays."""
    async with (
        onion_relays() as network,
        open_tor(network=network.config, data_dir=tmp_path, spare_circuits=0) as tor,
    ):
        onions = OnionNetwork(network.relays.values())
        await tor.wait_ready()
        yield tor, network, onions


def a_service(tor: Tor, network: ServedNetwork, onions: OnionNetwork) -> OnionService:
    """Scripted, with three points; it says back what it hears."""
    (far,) = fresh_relays(1)
    far.on_begin = lambda stream: stream.send(RelayCommand.CONNECTED)
    far.on_data = FakeStream.write
    points = [relay for name, relay in network.relays.items() if name.startswith("exit")]
    period = TimePeriod(*calendar_of(tor._parts.current).period)
    return OnionService(onions, points, far, period=period)


async def test_a_client_and_a_service_meet_by_way_of_the_relays(tmp_path: Path) -> None:
    """Both are torkit's, and neither is scripted."""
    async with a_network(tmp_path) as (tor, _, onions), tor.serve_onion([80]) as service:
        await service.wait_published()

        async def answer() -> None:
            async with await service.accept() as far:
                heard = b""
                while len(heard) < len(ASKED):
                    heard += await far.receive_some()
                await far.send_all(heard[::-1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            async with await tor.connect(service.address, 80) as stream:
                await stream.send_all(ASKED)
                told = b""
                while data := await stream.receive_some():
                    told += data
        assert told == ASKED[::-1]
        (end,) = onions.cookies.values()
        assert end.circuit.continued is not None
        end.circuit.destroy()
        await until(lambda: service.client_count == 0)


async def test_a_scripted_service_is_looked_up_and_met(tmp_path: Path) -> None:
    async with a_network(tmp_path) as (tor, network, onions):
        service = a_service(tor, network, onions)
        with pytest.raises(OnionServiceError) as caught:
            await tor.connect(service.address, 80)
        assert caught.value.step is OnionStep.NOT_FOUND
        service.publish()
        async with await tor.connect(service.address, 80) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"


async def test_a_scripted_client_meets_a_service(tmp_path: Path) -> None:
    async with a_network(tmp_path) as (tor, network, onions), tor.serve_onion([80]) as service:
        await service.wait_published()
        client = OnionClient(onions)
        period = TimePeriod(*calendar_of(tor._parts.current).period)
        found = client.descriptor(service.address, period)
        with pytest.raises(ValueError, match=r"."):
            client.descriptor(OnionKey().address, period)
        cookie = client.introduce(found.points[0], found.subcredential, network.relays[RENDEZVOUS])
        await until(lambda: cookie in client.met)
        client.met[cookie].begin(80, b"hello")
        stream = await service.accept()
        assert await stream.receive_some() == b"hello"


LIES: dict[str, Callable[[Fault], Fault]] = {
    "drop": lambda step: step.drop(),
    "cut": lambda step: step.cut(500),
    "corrupt": lambda step: step.corrupt(),
    "duplicate": lambda step: step.duplicate(),
    "lie": lambda step: step.lie(lambda _: http_response(b"", status="503 Busy")),
    "destroy": lambda step: step.destroy(),
}


@pytest.mark.parametrize("verb", LIES)
async def test_beside_a_directory_that_answers_wrong_there_is_another(
    tmp_path: Path, patient_clock: MockClock, verb: str
) -> None:
    async with a_network(tmp_path) as (tor, network, onions):
        service = a_service(tor, network, onions)
        service.publish()
        first, *others = network.relays.values()
        fault = LIES[verb](first.answering("/tor/hs/3/"))
        for relay in others:
            relay.faults.append(fault)
        async with await tor.connect(service.address, 80) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
        assert fault.count == 1


class Spoken:
    """What one relay says to whoever has a circuit of one hop to it, by no network at all."""

    def __init__(self) -> None:
        (self.relay,) = fresh_relays(1)
        self.network = OnionNetwork([self.relay])
        self.said: list[tuple[int, bytes]] = []
        self.relay.on_sent = lambda circuit, hop, command, stream_id, body: self.said.append((command, body))

    def hear(self, command: int, body: bytes) -> FakeCircuit:
        link = self.relay.link()
        circuit = FakeCircuit(link, 1)
        link.circuits[1] = circuit
        circuit.hops.append(FakeHop(self.relay, Tor1Layer(bytes(72)), kh=b"k" * 20))
        self.relay.on_unknown(circuit, 1, RelayCell(command, 0, body))
        return circuit


def establish_intro(kh: bytes = b"k" * 20) -> bytes:
    key = Ed25519PrivateKey.generate()
    body = b"\2\0\x20" + key.public_key().public_bytes_raw() + b"\0"
    body += mac(kh, body)
    return body + b"\0\x40" + key.sign(b"Tor establish-intro cell v1" + body)


def test_a_point_is_established_by_whoever_has_the_key_on_that_circuit() -> None:
    spoken = Spoken()
    body = establish_intro()
    circuit = spoken.hear(RelayCommand.ESTABLISH_INTRO, body)
    assert spoken.said == [(RelayCommand.INTRO_ESTABLISHED, b"\0")]
    assert spoken.network.points == {body[3:35]: (circuit, 1)}
    for bad in (b"", body[:-1], body[:-1] + b"x", b"\1" + body[1:], establish_intro(b"another")):
        assert spoken.hear(RelayCommand.ESTABLISH_INTRO, bad).closed
    assert len(spoken.relay.complaints) == 5


def test_introductions_go_to_the_service_that_is_named_and_to_no_other() -> None:
    spoken = Spoken()
    body = establish_intro()
    circuit = spoken.hear(RelayCommand.ESTABLISH_INTRO, body)
    spoken.said.clear()
    named = introduce_header(body[3:35]) + b"sealed"
    spoken.hear(RelayCommand.INTRODUCE1, named)
    assert spoken.said == [(RelayCommand.INTRODUCE2, named), (RelayCommand.INTRODUCE_ACK, b"\0\0\0")]
    spoken.said.clear()
    for unknown in (b"", b"x" * 100):
        spoken.hear(RelayCommand.INTRODUCE1, unknown)
    circuit.destroy()
    spoken.hear(RelayCommand.INTRODUCE1, named)
    assert spoken.said == [(RelayCommand.INTRODUCE_ACK, b"\0\1\0")] * 3


def test_who_comes_with_a_cookie_is_joined_with_whoever_waits_by_it() -> None:
    spoken = Spoken()
    waiting = spoken.hear(RelayCommand.ESTABLISH_RENDEZVOUS, b"c" * 20)
    for wrong in (b"", b"c" * 19, b"c" * 20):
        assert spoken.hear(RelayCommand.ESTABLISH_RENDEZVOUS, wrong).closed
    assert spoken.hear(RelayCommand.RENDEZVOUS1, b"x" * 168).closed  # nobody waits by it
    spoken.said.clear()
    come = spoken.hear(RelayCommand.RENDEZVOUS1, b"c" * 20 + b"reply")
    assert spoken.said == [(RelayCommand.RENDEZVOUS2, b"reply")]
    assert spoken.hear(RelayCommand.RENDEZVOUS1, b"c" * 20 + b"reply").closed  # it is met already
    assert (waiting.closed, come.closed) == (False, False)
    come.destroy()
    assert waiting.closed


def test_an_introduction_that_the_service_cannot_open_ends_its_circuit() -> None:
    spoken = Spoken()
    service = OnionService(spoken.network, [spoken.relay], spoken.relay)
    (point,) = service.points
    handshake = ClientHandshake(
        auth_key=point.auth_key, enc_key=point.enc_key, subcredential=service.subcredential
    )
    body = handshake.introduce(b"c" * 20, spoken.relay)
    assert len(body) == 310
    for bad in (body[:-1], body[:60], body[:100] + b"?" + body[101:], body[:56] + bytes(254)):
        assert spoken.hear(RelayCommand.INTRODUCE1, bad).closed
    assert service.introductions == []
    spoken.relay.complaints.clear()
    assert spoken.hear(RelayCommand.INTRODUCE1, body).closed  # it is opened, but nobody waits by its cookie
    assert spoken.relay.complaints == ["a cookie that nobody waits by"]
    (introduction,) = service.introductions
    assert handshake.finish(introduction.reply) == introduction.keys
    for wrong in (bytes(64), introduction.reply[:-1], b""):
        with pytest.raises(ValueError, match=r"."):
            handshake.finish(wrong)
