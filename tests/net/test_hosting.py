"""Onion services that we run, on scripted relays: published, introduced, met; streams carried to servers."""

import errno
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from onion_network import PROTOCOLS, OnionNetwork, onion_network
from setup_padder import NEGOTIATE
from waiting import until

from torkit._fast.cells import RelayCommand
from torkit._fast.keys import X25519PrivateKey
from torkit.client import Tor
from torkit.errors import CircuitError, EndReason, OnionServiceError, UsageError
from torkit.hs.calendar import Calendar
from torkit.hs.keys import SecretKey
from torkit.hs.messages import IntroduceExtension
from torkit.hs.pow import Proof, Search, encode_proof
from torkit.hs.service_messages import DosLimits
from torkit.net.current import Current
from torkit.net.hosting import edition, forward, upload
from torkit.net.hosting import point as standing
from torkit.net.hosting import service as hosted
from torkit.net.hosting.forward import Target
from torkit.net.hosting.means import Wishes
from torkit.net.hosting.point import LAUNCH_PERIOD, MAX_LAUNCHES, RETRIES, Launches
from torkit.net.hosting.serve import OnionListener
from torkit.net.onion.descriptors import calendar_of
from torkit.testing.onion import End, FarClient
from torkit.testing.onion.descriptor import read_outer
from torkit.testing.relay import FakeCircuit, FakeRelay, RelayCell, http_response

LOGGER = "torkit.net.hosting.service"


@asynccontextmanager
async def listening(tmp_path: Path) -> AsyncIterator[tuple[OnionListener, OnionNetwork]]:
    """A published service with port 80."""
    async with onion_network(tmp_path) as (tor, net), tor.serve_onion([80]) as service:
        await service.wait_published()
        yield service, net


@asynccontextmanager
async def forwarding(tor: Tor, server: trio.SocketListener) -> AsyncIterator[OnionListener]:
    """A published service whose port 80 leads to `server`."""
    host, port = server.socket.getsockname()
    async with tor.serve_onion({80: Target(host, port)}) as service:
        await service.wait_published()
        yield service


@asynccontextmanager
async def a_server() -> AsyncIterator[trio.SocketListener]:
    [server] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with server:
        yield server


@asynccontextmanager
async def forwarded(
    tmp_path: Path,
) -> AsyncIterator[tuple[trio.SocketListener, OnionNetwork, OnionListener]]:
    """A server, and a published service whose port 80 leads to it."""
    async with (
        a_server() as server,
        onion_network(tmp_path) as (tor, net),
        forwarding(tor, server) as service,
    ):
        yield server, net, service


def is_told(caplog: pytest.LogCaptureFixture, what: str) -> bool:
    return what in caplog.text


def ends(far: FarClient) -> list[int]:
    """The reasons of every END that came."""
    return [
        cell.body[0]
        for _, cell in far.circuit.control_cells
        if cell.command == RelayCommand.END and cell.body
    ]


async def test_a_client_finds_a_service_and_talks_to_it(tmp_path: Path) -> None:
    async with listening(tmp_path) as (service, net):
        descriptor = net.descriptor(service.address)
        assert len(descriptor.points) == 3
        assert {point.auth_key for point in descriptor.points} <= net.points.keys()
        far = await net.meet(descriptor)
        theirs = far.begin(80, b"sent at once")
        stream = await service.accept()
        assert stream.port == 80
        assert await stream.receive_some() == b"sent at once"
        await stream.send_all(b"answered")
        await until(lambda: theirs.received == b"answered")
        assert [cell.command for cell in far.answers] == [RelayCommand.CONNECTED]
        assert service.client_count == 1
        await stream.aclose()
        await until(lambda: ends(far) == [EndReason.DONE])


async def test_both_replicas_of_both_periods_are_published(tmp_path: Path) -> None:
    """Every relay of a small network is responsible for both descriptors."""
    async with listening(tmp_path) as (_, net):
        await until(lambda: all(len(texts) == 2 for texts in net.texts.values()))
        assert len({text for texts in net.texts.values() for text in texts}) == 2


async def test_points_and_meetings_are_behind_three_relays_and_not_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard, vanguard, middle; the machines of padding are for clients' circuits."""
    monkeypatch.setattr("onion_network.PROTOCOLS", f"{PROTOCOLS} Padding=2")
    async with onion_network(tmp_path) as (tor, net):
        padded: list[FakeCircuit] = []
        for relay in net.relays:
            relay.on_unknown = partial(_hear_padding, padded, relay.on_unknown)
        async with tor.serve_onion([80]) as service:
            await service.wait_published()
            await until(lambda: len(net.points) == 6)
            assert [number for _, number in net.points.values()] == [4] * 6
            far = await net.meet(net.descriptor(service.address))
            far.begin(80)
            await service.accept()
            assert far.number - 1 == 4  # the client's hop is behind it
        assert padded == []


def _hear_padding(
    padded: list[FakeCircuit],
    before: Callable[[FakeCircuit, int, RelayCell], object],
    circuit: FakeCircuit,
    number: int,
    cell: RelayCell,
) -> None:
    if cell.command in (NEGOTIATE, RelayCommand.DROP):
        padded.append(circuit)
    before(circuit, number, cell)


@pytest.mark.parametrize("answer", [http_response(b"", status="503 busy"), b""], ids=["busy", "lost"])
async def test_a_directory_that_fails_is_given_a_newer_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """It may have this one, or a later one of another process with the same key: it would refuse this."""
    monkeypatch.setattr(upload, "RESTS", (0.0,))
    async with onion_network(tmp_path) as (tor, net):
        failed: set[tuple[FakeRelay, bytes]] = set()
        refused: list[bytes] = []

        def take(relay: FakeRelay, text: bytes) -> bytes:
            answered = net.answer_upload(relay, text)
            if answered != http_response(b""):
                refused.append(answered)
            elif (about := (relay, read_outer(text).blinded)) not in failed:
                failed.add(about)
                return answer
            return answered

        net.on_upload = take
        async with tor.serve_onion([80]) as service:
            await service.wait_published()
            await until(lambda: len(net.uploads) == 4 * len(net.relays))  # two periods, each version
    assert refused == []


async def test_what_is_not_offered_or_refused_ends_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        deaf = stack.enter_context(trio.socket.socket())
        await deaf.bind(("127.0.0.1", 0))  # so that nobody else gets the port, where nobody listens
        targets = {80: Target(*deaf.getsockname()), 81: Target(f"{tmp_path}/nobody")}
        tor, net = await stack.enter_async_context(onion_network(tmp_path))
        service = await stack.enter_async_context(tor.serve_onion(targets))
        await service.wait_published()
        far = await net.meet(net.descriptor(service.address))
        for port in (443, 80, 81, 0):
            far.begin(port, b"for nobody")
        await until(lambda: len(ends(far)) == 4)
        assert sorted(ends(far)) == sorted(
            [EndReason.DONE, EndReason.CONNECTREFUSED, EndReason.CONNECTREFUSED, EndReason.DONE]
        )
        assert far.answers == []
        assert f"a client of the onion service was refused: {targets[80]}: Connection refused" in caplog.text


async def test_bytes_are_carried_both_ways_and_the_servers_end_is_told(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    async with forwarded(tmp_path) as (server, net, service):
        far = await net.meet(net.descriptor(service.address))
        theirs = far.begin(80, b"request")
        theirs.write(data)
        connection = await server.accept()
        got = b""
        while len(got) < 7 + len(data):
            got += await connection.receive_some()
        assert got == b"request" + data
        await connection.send_all(data[::-1])
        await connection.aclose()
        await until(lambda: ends(far) == [EndReason.DONE])
        assert theirs.received == data[::-1]


async def test_a_client_that_ends_is_an_end_of_file_and_one_that_is_cut_off_a_reset(tmp_path: Path) -> None:
    async with forwarded(tmp_path) as (server, net, service):
        far = await net.meet(net.descriptor(service.address))
        theirs = far.begin(80, b"all there is")
        async with await server.accept() as connection:
            assert service.connection_count == 1
            theirs.end(EndReason.DONE)
            assert await connection.receive_some() == b"all there is"
            assert await connection.receive_some() == b""
        far.begin(80, b"and then")
        async with await server.accept() as cut:
            assert await cut.receive_some() == b"and then"
            far.circuit.destroy()
            assert service.cut_count == 0
            with pytest.raises(trio.BrokenResourceError):
                await cut.receive_some()
        await until(lambda: service.client_count == 0)
        assert (service.connection_count, service.cut_count) == (0, 1)


async def test_a_client_that_leaves_before_it_has_all_is_counted(tmp_path: Path) -> None:
    """It ends with MISC, as clients do, while the server still has something to say."""
    async with forwarded(tmp_path) as (server, net, service):
        far = await net.meet(net.descriptor(service.address))
        theirs = far.begin(80, b"request")
        async with await server.accept() as connection:
            await connection.send_all(b"answer")
            await until(lambda: theirs.received == b"answer")
            theirs.end(EndReason.MISC)
            await until(lambda: service.connection_count == 0)
            assert service.cut_count == 0
        theirs = far.begin(80, b"request")
        async with await server.accept() as connection, trio.open_nursery() as nursery:

            async def send_on() -> None:
                with suppress(trio.BrokenResourceError):
                    while True:
                        await connection.send_all(bytes(1 << 20))

            nursery.start_soon(send_on)
            await until(lambda: theirs.received)
            theirs.end(EndReason.MISC)
            await until(lambda: service.connection_count == 0)
            assert service.cut_count == 1
            nursery.cancel_scope.cancel()


async def test_connections_beyond_what_a_service_may_have_are_refused(tmp_path: Path) -> None:
    async with a_server() as server, onion_network(tmp_path) as (tor, net):
        targets = {80: Target(*server.socket.getsockname())}
        async with tor.serve_onion(targets, None, Wishes(max_connections=1)) as service:
            await service.wait_published()
            far = await net.meet(net.descriptor(service.address))
            far.begin(80)
            async with await server.accept():
                far.begin(80)
                await until(lambda: ends(far) == [EndReason.RESOURCELIMIT])


async def test_a_server_that_cannot_be_watched_refuses_one_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system watches no more sockets for now."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no more")

    async with forwarded(tmp_path) as (server, net, service):
        far = await net.meet(net.descriptor(service.address))
        with monkeypatch.context() as patch:
            patch.setattr("torkit.net.link.pump.Pump.add_local", refuse)
            far.begin(80)
            await until(lambda: ends(far) == [EndReason.MISC])
        assert is_told(caplog, os.strerror(errno.ENOSPC))
        assert service.connection_count == 0
        far.begin(80, b"request")
        async with await server.accept() as refused, await server.accept() as connection:
            assert await refused.receive_some() == b""
            assert await connection.receive_some() == b"request"


@pytest.mark.parametrize("accepts", ["at once", "later"])
async def test_a_fault_where_a_stream_is_taken_on_counts_for_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepts: str
) -> None:
    """It ends the client; the server it had reached, too, gets a reset."""

    def fail(*_: object) -> None:
        raise MemoryError

    if accepts == "later":
        begin = forward._begin
        monkeypatch.setattr(forward, "_begin", lambda *args: (begin(*args)[0], False))
    async with forwarded(tmp_path) as (server, net, service):
        far = await net.meet(net.descriptor(service.address))
        with monkeypatch.context() as patch:
            patch.setattr("torkit.net.circuit.stream.Stream.accept", fail)
            far.begin(80)
            async with await server.accept() as connection:
                with pytest.raises(trio.BrokenResourceError):
                    await connection.receive_some()
        assert service.connection_count == 0
        far = await net.meet(net.descriptor(service.address))
        far.begin(80, b"request")
        async with await server.accept() as connection:
            assert await connection.receive_some() == b"request"


async def test_a_replay_is_met_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    async with listening(tmp_path) as (service, net):
        descriptor = net.descriptor(service.address)
        sent: list[bytes] = []

        def note(body: bytes) -> bytes:
            sent.append(body)
            return body

        await net.meet(descriptor, edit=note)
        net.introduce(descriptor, edit=lambda _: sent[0])  # the very same
        await until(lambda: "was sent before: a replay" in caplog.text)
        cookie = next(iter(net.client.met))
        net.introduce(descriptor, descriptor.points[1], cookie=cookie)  # its cookie, by another point
        await until(lambda: "a cookie that another had: a replay" in caplog.text)
        assert service.client_count == 1


async def test_introductions_that_are_none_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    async with listening(tmp_path) as (service, net):
        descriptor = net.descriptor(service.address)
        for edit, why in (
            (lambda body: body[:-1] + bytes([body[-1] ^ 1]), "its MAC is wrong"),
            (lambda body: body[:100], "holds nothing for us"),
            (lambda body: b"", "INTRODUCE2"),
            (lambda body: bytes(20) + b"\2\0\x20" + bytes(32) + body[55:], "for another service"),
        ):
            net.introduce(descriptor, edit=edit)
            await until(partial(is_told, caplog, why))
        far = await net.meet(descriptor)
        far.begin(80)
        await service.accept()
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1  # however many there are
        assert "an introduction came to nothing" in warnings[0].getMessage()


async def test_a_flood_takes_bounded_memory_and_others_are_met(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    async with listening(tmp_path) as (service, net):
        descriptor = net.descriptor(service.address)
        auth_key = descriptor.points[0].auth_key
        circuit, number = net.points[auth_key]
        for _ in range(3000):
            circuit.send(number, RelayCommand.INTRODUCE2, 0, bytes(20) + b"\2\0\x20" + auth_key + bytes(200))
        circuit.link.on_output()
        far = await net.meet(descriptor, point=descriptor.points[1])
        far.begin(80)
        await service.accept()
        assert "too many wait" in caplog.text


async def test_a_client_that_has_to_wait_is_met_when_another_has_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torkit.net.hosting.service.MAX_MEETINGS", 1)
    async with listening(tmp_path) as (service, net), trio.open_nursery() as nursery:
        descriptor = net.descriptor(service.address)
        for _ in range(4):
            nursery.start_soon(net.meet, descriptor)
        await until(lambda: service.client_count == 4)


async def test_a_point_that_is_lost_is_taken_again_with_its_keys(tmp_path: Path) -> None:
    async with listening(tmp_path) as (service, net):
        descriptor = net.descriptor(service.address)
        auth_key = descriptor.points[0].auth_key
        circuit, _ = net.points[auth_key]
        circuit.destroy()
        circuit.link.on_output()
        await until(lambda: net.established.count(auth_key) == 2)
        await net.meet(descriptor)
        assert service.client_count == 1


async def test_clients_are_met_while_every_point_is_lost_in_turn(tmp_path: Path) -> None:
    """By another point at once, and by the one that was lost as soon as it is taken again."""
    async with onion_network(tmp_path) as (tor, net), tor.serve_onion([80]) as service:
        await service.wait_published()
        await until(lambda: len(net.descriptor(service.address).points) == 3)
        descriptor = net.descriptor(service.address)
        for number, point in enumerate(descriptor.points):
            circuit, _ = net.points[point.auth_key]
            circuit.destroy()
            circuit.link.on_output()
            await net.meet(descriptor, point=descriptor.points[number - 1])
            taken_again = partial(lambda auth_key: net.established.count(auth_key) == 2, point.auth_key)
            await until(taken_again)
            await net.meet(descriptor, point=point)
        assert service.client_count == 2 * len(descriptor.points)


async def test_a_client_that_comes_in_the_same_read_as_the_points_answer_is_met(tmp_path: Path) -> None:
    """Clients know a point that is taken again: one may come before our task has seen that it is taken."""
    async with listening(tmp_path) as (service, net):
        descriptor = net.descriptor(service.address)
        auth_key = descriptor.points[0].auth_key
        cookies: list[bytes] = []

        def establish(end: End) -> None:
            net.answer_establish_intro(end)
            cookies.append(net.introduce(descriptor))

        net.on_establish_intro = establish
        circuit, _ = net.points[auth_key]
        circuit.destroy()
        circuit.link.on_output()
        await until(lambda: cookies != [] and cookies[0] in net.client.met)
        assert service.client_count == 1
        assert net.established.count(auth_key) == 2


async def test_an_introduction_before_the_points_answer_ends_its_circuit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with onion_network(tmp_path) as (tor, net):
        early: list[FakeCircuit] = []

        def establish(end: End) -> None:
            if not early:
                early.append(end.circuit)
                end.send(RelayCommand.INTRODUCE2, bytes(400))
            net.answer_establish_intro(end)

        net.on_establish_intro = establish
        async with tor.serve_onion([80]) as service:
            await service.wait_published()
            await until(lambda: early != [] and early[0].circ_id not in early[0].link.circuits)
            await until(lambda: len(net.descriptor(service.address).points) == 3)
    assert "INTRODUCE2 arrived before INTRO_ESTABLISHED" in caplog.text


async def test_a_point_that_is_lost_again_and_again_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that takes us and drops us has us build no circuits for ever."""
    monkeypatch.setattr(edition, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(standing, "RESTS", (0.0,) * RETRIES)
    async with onion_network(tmp_path) as (tor, net):
        dropping: set[bytes] = set()

        def establish(end: End) -> None:
            net.answer_establish_intro(end)
            if net.established[-1] in dropping:
                end.circuit.destroy()

        net.on_establish_intro = establish
        async with tor.serve_onion([80]) as service:
            await service.wait_published()
            before = net.descriptor(service.address)
            auth_key = before.points[0].auth_key
            dropping.add(auth_key)
            circuit, _ = net.points[auth_key]
            circuit.destroy()
            circuit.link.on_output()

            def named() -> set[bytes]:
                return {point.auth_key for point in net.descriptor(service.address).points}

            await until(lambda: auth_key not in named() and len(named()) == 3)
            assert net.established.count(auth_key) == 1 + RETRIES


async def test_points_that_all_end_at_once_cost_a_bounded_number_of_circuits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(standing, "RESTS", (0.0,) * RETRIES)
    async with onion_network(tmp_path) as (tor, net):

        def establish(end: End) -> None:
            net.answer_establish_intro(end)
            end.circuit.destroy()

        net.on_establish_intro = establish
        async with tor.serve_onion([80]):
            await until(lambda: len(net.established) == MAX_LAUNCHES)
            await until(lambda: "end too often" in caplog.text)
        assert len(net.established) == MAX_LAUNCHES


async def test_circuits_that_were_not_built_are_not_counted(autojump_clock: trio.testing.MockClock) -> None:
    launches = Launches()
    first = await launches.take()
    for _ in range(MAX_LAUNCHES - 1):
        await launches.take()
    launches.give_back(first)
    await launches.take()
    assert trio.current_time() == first
    await trio.sleep(1)
    assert await launches.take() == first + LAUNCH_PERIOD
    launches.give_back(first)  # it is long forgotten


async def test_a_point_that_refuses_is_replaced(tmp_path: Path) -> None:
    async with onion_network(tmp_path) as (tor, net):
        refusing = net.named["exit0"]

        def establish(end: End) -> None:
            if end.relay is refusing:
                end.circuit.destroy()
            else:
                net.answer_establish_intro(end)

        net.on_establish_intro = establish
        async with tor.serve_onion([80]) as service:
            await service.wait_published()
            points = net.descriptor(service.address).points
            assert refusing.rsa_identity not in [dict(point.link_specifiers)[2] for point in points]


async def test_a_key_gives_the_address_and_clients_may_be_few(tmp_path: Path) -> None:
    key = SecretKey.from_seed(b"k" * 32)
    client = X25519PrivateKey(b"c" * 32)
    async with onion_network(tmp_path) as (tor, net):
        async with tor.serve_onion([80], key, Wishes(clients=[client.public_key])) as service:
            await service.wait_published()
            with pytest.raises(OnionServiceError, match="for clients that it knows"):
                net.descriptor(service.address)
            assert net.descriptor(service.address, client_key=client).points
        async with tor.serve_onion([80], key) as again:
            assert again.address == service.address
        async with tor.serve_onion([80]) as other:
            assert other.address != service.address
        for ports in ([], [0], [70000], ["80"]):
            with pytest.raises(UsageError):
                async with tor.serve_onion(ports):  # type: ignore[arg-type]  # as an untyped program may
                    pass


async def test_clients_that_have_worked_are_met_and_those_that_pretend_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    wishes = Wishes(proof_of_work=True)
    async with onion_network(tmp_path) as (tor, net), tor.serve_onion([80], None, wishes) as service:
        await service.wait_published()
        descriptor = net.descriptor(service.address)
        asked = descriptor.proof_of_work
        assert asked is not None
        assert asked.effort == 0
        proof = Search(asked, blinded=descriptor.blinded, effort=2, nonce=bytes(16)).run()
        assert proof is not None
        kind = IntroduceExtension.PROOF_OF_WORK
        await net.meet(descriptor, extensions={kind: encode_proof(proof)})
        await net.meet(descriptor)  # nobody is made to work while there is no need
        for wrong, why in (
            (encode_proof(proof), "used before"),
            (encode_proof(proof._replace(effort=1 << 31)), "that is none"),
            (encode_proof(proof)[:-1], "41 bytes"),
            (b"\2" + encode_proof(proof)[1:], "version 2"),
        ):
            net.introduce(descriptor, extensions={kind: wrong})
            await until(partial(is_told, caplog, why))
        assert service.client_count == 2


async def test_those_who_worked_too_little_leave_room_for_those_who_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[trio.Event] = []

    async def meet(*_: object) -> None:
        begun.append(trio.Event())
        await begun[-1].wait()
        raise CircuitError("nobody waits there")

    monkeypatch.setattr(hosted, "meet", meet)
    monkeypatch.setattr(hosted, "MAX_CHEAP_MEETINGS", 2)
    wishes = Wishes(proof_of_work=True)
    async with onion_network(tmp_path) as (tor, net), tor.serve_onion([80], None, wishes) as listener:
        await listener.wait_published()
        descriptor = net.descriptor(listener.address)
        service = listener._service
        puzzle = service._puzzle
        assert puzzle is not None
        assert descriptor.proof_of_work is not None
        puzzle._published = 2  # as after a load
        for _ in range(3):
            net.introduce(descriptor)
        await until(lambda: len(service._waiting) == 1)
        assert len(begun) == 2
        proof = Search(descriptor.proof_of_work, blinded=descriptor.blinded, effort=2, nonce=bytes(16)).run()
        assert proof is not None
        net.introduce(descriptor, extensions={IntroduceExtension.PROOF_OF_WORK: encode_proof(proof)})
        await until(lambda: len(begun) == 3)
        assert len(service._waiting) == 1
        begun[0].set()
        await until(lambda: len(begun) == 4)


async def test_a_proof_that_nobody_asked_for_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    async with listening(tmp_path) as (service, net):
        proof = Proof(bytes(16), 1, bytes(4), bytes(16))
        extensions = {IntroduceExtension.PROOF_OF_WORK.value: encode_proof(proof)}
        net.introduce(net.descriptor(service.address), extensions=extensions)
        await until(lambda: "which we did not ask for" in caplog.text)


async def test_a_directory_that_is_dropped_ends_no_service(tmp_path: Path) -> None:
    async with onion_network(tmp_path) as (tor, net), tor.serve_onion([80]) as service:
        await service.wait_published()
        current = tor._parts.current
        directory = current.directory
        current.drop()
        for one in service._service._editions:
            one.note_change()
        await trio.testing.wait_all_tasks_blocked()
        current.use(directory)
        far = await net.meet(net.descriptor(service.address))
        far.begin(80)
        await service.accept()


async def test_a_point_that_has_served_is_replaced_and_goes_on_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edition, "MIN_INTERVAL", 0.0)
    params = "hs_intro_min_introduce2=2 hs_intro_max_introduce2=2"
    async with onion_network(tmp_path, params) as (tor, net), tor.serve_onion([80]) as service:
        await service.wait_published()
        before = net.descriptor(service.address)
        worn = before.points[0]
        for _ in range(2):
            await net.meet(before, point=worn)
        await until(lambda: worn not in net.descriptor(service.address).points)
        after = net.descriptor(service.address)
        assert after.revision > before.revision
        assert set(before.points[1:]) <= set(after.points)
        await net.meet(before, point=worn)  # whoever knows no other is met all the same
        assert service.client_count == 3


async def test_a_period_that_turns_brings_another_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second becomes the first, with its points; a new second is published, and the old first is over."""
    async with listening(tmp_path) as (service, net):
        await until(lambda: len(net.points) == 6)
        first, second = service._service._editions
        points = [{point.auth_key for point in one._points} for one in (first, second)]

        def a_day_later(current: Current) -> Calendar:
            calendar = calendar_of(current)
            return calendar._replace(
                valid_after=calendar.valid_after + 86400,
                random_current=b"n" * 32,
                random_previous=calendar.random_current,
            )

        monkeypatch.setattr(hosted, "calendar_of", a_day_later)
        service._service._note_directory(net.tor.directory)
        await until(lambda: len(service._service._editions) == 2 and first not in service._service._editions)
        assert service._service._editions[0] is second
        circuits = [net.points[key][0] for key in points[0]]
        await until(lambda: all(one.circ_id not in one.link.circuits for one in circuits))
        assert all(net.points[key][0].circ_id in net.points[key][0].link.circuits for key in points[1])
        third = service._service._editions[1]
        await until(lambda: third.is_published)
        assert third.stand.period.number == second.stand.period.number + 1


async def test_points_are_asked_for_limits(tmp_path: Path) -> None:
    wishes = Wishes(limits=DosLimits(25, 200))
    async with onion_network(tmp_path) as (tor, net), tor.serve_onion([80], None, wishes) as service:
        await service.wait_published()
        circuit, number = next(iter(net.points.values()))
        [body] = [
            cell.body
            for hop, cell in circuit.control_cells
            if hop == number and cell.command == RelayCommand.ESTABLISH_INTRO
        ]
        numbers = b"\1" + (25).to_bytes(8, "big") + b"\2" + (200).to_bytes(8, "big")
        assert body[35:57] == b"\1\1\x13\2" + numbers


async def test_streams_beyond_what_one_client_may_have_are_refused(tmp_path: Path) -> None:
    wishes = Wishes(max_streams=2)
    async with onion_network(tmp_path) as (tor, net), tor.serve_onion([80], None, wishes) as service:
        await service.wait_published()
        far = await net.meet(net.descriptor(service.address))
        for _ in range(3):
            far.begin(80)
        await until(lambda: ends(far) == [EndReason.RESOURCELIMIT])


async def test_begin_that_is_none_ends_that_client_only(tmp_path: Path) -> None:
    async with listening(tmp_path) as (service, net):
        descriptor = net.descriptor(service.address)
        bad, good = await net.meet(descriptor), await net.meet(descriptor)
        bad.circuit.send(bad.number, RelayCommand.BEGIN, 9, b"no port")
        await until(lambda: service.client_count == 1)
        good.begin(80)
        await service.accept()


async def test_the_end_of_a_service_closes_what_it_had(tmp_path: Path) -> None:
    async with onion_network(tmp_path) as (tor, net):
        async with tor.serve_onion([80]) as service:
            await service.wait_published()
            far = await net.meet(net.descriptor(service.address))
            far.begin(80)
            stream = await service.accept()
        with pytest.raises(trio.ClosedResourceError):
            await service.accept()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await until(lambda: far.circuit.circ_id not in far.circuit.link.circuits)


async def test_the_end_of_a_service_is_a_reset_to_its_server_and_no_good_end_to_its_client(
    tmp_path: Path,
) -> None:
    async with a_server() as server, onion_network(tmp_path) as (tor, net):
        async with forwarding(tor, server) as service:
            far = await net.meet(net.descriptor(service.address))
            far.begin(80, b"half of it")
            cut = await server.accept()
            assert await cut.receive_some() == b"half of it"
        async with cut:
            with pytest.raises(trio.BrokenResourceError):
                await cut.receive_some()
        await until(lambda: far.circuit.circ_id not in far.circuit.link.circuits)
        assert EndReason.DONE not in ends(far)
