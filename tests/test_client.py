"""The client as a program uses it, on a network of scripted relays, and failures that are not its fault."""

import fcntl
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from hashlib import sha3_256, sha256
from ipaddress import ip_address
from itertools import count, pairwise
from pathlib import Path
from random import Random
from typing import Any, TextIO

import network_docs
import pytest
import trio
import trio.testing
from fakes import (
    FakeCircuit,
    FakeRelay,
    FakeStream,
    answer_begin,
    answer_extend2,
    answer_versions,
    http_response,
    ignore,
)
from network_docs import HOUR
from served import Arrivals, ServedNetwork, authorities, serve_network, signed_service

from torkit._fast.cells import Command, RelayCommand
from torkit.client import Tor, open_tor
from torkit.directory.cache import MICRODESCS, Cache
from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs
from torkit.errors import (
    CircuitClosed,
    DocumentError,
    EndReason,
    NoDirectory,
    NoGuard,
    NoPath,
    NotPossible,
    OnionServiceError,
    StorageError,
    StreamClosed,
    TimedOut,
    UsageError,
)
from torkit.learnt.build_times import INITIAL
from torkit.learnt.path_bias import State
from torkit.net.circuit.stream import Stream
from torkit.net.circuits.purpose import ExitTo, Need
from torkit.net.circuits.request import ATTEMPT_TIMEOUTS, MAX_FAILURES, STREAM_TIMEOUT, Resolved
from torkit.net.current import TESTING_MIN_TIMEOUT
from torkit.net.state import load_state
from torkit.paths.constraints import Constraints
from torkit.paths.guards import RETRY_SCHEDULE
from torkit.proto.destination import is_onion
from torkit.proto.padding import Padding


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


def expire(network: ServedNetwork) -> None:
    """Let its consensus be one that is about to be replaced."""
    expiring = signed_service(network.docs, authorities(), valid_after=int(time.time()) - 29 * HOUR // 10)
    network.service.consensus = expiring.consensus


async def until_replaced(tor: Tor, directory: Directory) -> None:
    with trio.fail_after(600):
        while tor.directory is directory:
            await trio.sleep(5)


async def test_a_stream_goes_through_guard_middle_and_exit(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.on_data = lambda stream, data: stream.write(data.upper())
        async with await tor.connect("web.test", 80) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"HELLO"
        names = [relay.nickname for relay in stream.path]
        assert names[0].startswith("guard")
        assert names[2].startswith("exit")
        assert len(set(names)) == 3


async def test_names_and_addresses_are_resolved_by_the_exit(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.hosts = {
                "name.test": ["192.0.2.1", "2001:db8::1"],
                "1.2.0.192.in-addr.arpa": ["name.test"],
            }
        assert await tor.resolve("name.test") == [
            Resolved("ipv4", "192.0.2.1", 60),
            Resolved("ipv6", "2001:db8::1", 60),
        ]
        assert await tor.resolve("192.0.2.1") == [Resolved("hostname", "name.test", 60)]
        with pytest.raises(StreamClosed) as caught:
            await tor.resolve("unknown.test")
        assert caught.value.reason is EndReason.RESOLVEFAILED


async def test_isolation_separates_and_equality_shares(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        streams = [await tor.connect("web.test", 80, isolation=i) for i in ("a", "a", "b", None)]
        circuits = [stream.circuit for stream in streams]
        assert circuits[0] is circuits[1]
        assert len(set(map(id, circuits))) == 3


async def test_every_circuit_begins_at_one_guard_which_a_second_start_keeps(tmp_path: Path) -> None:
    async with serve_network(guards=3) as network:
        used = set()
        for _ in range(3):
            async with open_tor(network=network.config, data_dir=tmp_path) as tor:
                await tor.wait_ready()
                for isolation in range(3):
                    used.add((await tor.connect("web.test", 80, isolation=isolation)).path[0].nickname)
        assert len(used) == 1


async def test_a_second_start_asks_nobody_for_a_directory(tmp_path: Path) -> None:
    async with serve_network() as network:
        for _ in range(2):
            async with open_tor(network=network.config, data_dir=tmp_path) as tor:
                await tor.wait_ready()
                await tor.connect("web.test", 80)
        assert len([path for path in network.service.requests if "consensus" in path]) == 1


@pytest.mark.parametrize("flavor", ["microdesc", "ns"])
async def test_a_consensus_is_downloaded_verified_and_not_used(tmp_path: Path, flavor: str) -> None:
    async with served_tor(tmp_path) as (tor, network):
        held = tor.directory
        consensus = await tor.download_consensus(flavor)
        assert consensus.flavor == flavor
        assert (
            consensus.text
            == {"microdesc": network.service.consensus, "ns": network.service.ns_consensus}[flavor]
        )
        assert tor.directory is held
        assert (await tor.fetch_consensus()).text == network.service.consensus


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("flavor", "flavor microdesc came, ns expected"),
        ("forged", "bad signature"),
        ("expired", "expired"),
        ("missing", "404"),
    ],
)
async def test_a_downloaded_consensus_must_be_of_its_flavor_live_and_signed(
    tmp_path: Path, fault: str, reason: str
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        valid_after = int(time.time()) - 4 * network_docs.HOUR
        network.service.ns_consensus = {
            "flavor": network.service.consensus,
            "forged": network.service.ns_consensus.replace(b"s Exit", b"s Guard", 1),
            "expired": network_docs.consensus([], authorities(), flavor="ns", valid_after=valid_after),
            "missing": b"",
        }[fault]
        with pytest.raises((DocumentError, NoDirectory), match=reason):
            await tor.download_consensus("ns")


async def test_a_downloaded_consensus_comes_as_a_diff_or_whole(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        new = network.service.ns_consensus
        held = parse_consensus(
            network_docs.consensus(
                [], authorities(), flavor="ns", valid_after=int(time.time()) - 2 * network_docs.HOUR
            )
        )
        asked: list[bytes] = []
        answers: dict[bool, bytes] = {}  # by whether a diff was asked for

        def answer(request: bytes) -> bytes:
            asked.append(request.lower())
            return answers[b"x-or-diff" in asked[-1]]

        for fake in network.relays.values():
            fake.directory = answer
        digest = sha3_256(network_docs.signed_part(held.text)).hexdigest().encode()
        for body in (network_docs.consensus_diff(held.text, new), new):
            answers[True] = http_response(body)
            assert (await tor.download_consensus("ns", held)).text == new
        assert [b"x-or-diff-from-consensus: " + digest in request for request in asked] == [True, True]

        asked.clear()
        answers[True] = http_response(b"", status="304 Not modified")
        assert (await tor.download_consensus("ns", held)).text == held.text
        assert len(asked) == 1

        answers[False] = http_response(new)
        forged = new.replace(b"s Exit", b"s Guard", 1)
        for base, made in ((new, new), (held.text, forged)):
            asked.clear()
            answers[True] = http_response(network_docs.consensus_diff(base, made))
            assert (await tor.download_consensus("ns", held)).text == new
            assert [b"x-or-diff-from-consensus" in request for request in asked] == [True, False]

        answers[False] = http_response(forged)
        with pytest.raises(NoDirectory, match="bad signature"):
            await tor.download_consensus("ns", held)


async def test_an_unreachable_guard_is_replaced_and_come_back_to(
    tmp_path: Path, patient_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a network of one subnet too, where the second guard once conflicted with the first."""
    started = time.time() - trio.current_time()
    monkeypatch.setattr(time, "time", lambda: started + trio.current_time())
    async with served_tor(tmp_path, padding=Padding.OFF) as (tor, network):
        first = (await tor.connect("web.test", 80)).path[0].nickname
        guard = network.relays[first]
        guard.on_versions = lambda link: link.close()
        guard.links[-1].close()
        second = (await tor.connect("web.test", 80, isolation="again")).path[0].nickname
        assert second not in (first, "middle")
        guard.on_versions = answer_versions
        _, primary_delay, _ = RETRY_SCHEDULE[0]
        await trio.sleep(primary_delay - 60)
        assert tor.choose_path(Constraints(port=80))[0].nickname == second
        await trio.sleep(60)
        assert tor.choose_path(Constraints(port=80))[0].nickname == first


# --- Padding -------------------------------------------------------------------------------------------


async def test_the_guard_is_padded_as_the_consensus_says(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with (
        serve_network(params="nf_ito_high=7000 nf_ito_low=7000") as network,
        open_tor(network=network.config, data_dir=tmp_path, spare_circuits=0) as tor,
    ):
        await tor.wait_ready()
        stream = await tor.connect("web.test", 80)
        guard = network.relays[stream.path[0].nickname]
        guard.on_padding = padded = Arrivals()
        await padded.next()
        for _ in range(3):
            started = trio.current_time()
            await padded.next()
            assert trio.current_time() - started == pytest.approx(7.0, abs=0.1)
        assert not any(command == Command.PADDING_NEGOTIATE for _, command, _ in guard.links[0].control_cells)
        assert not any(
            command == Command.PADDING for _, command, _ in network.relays["middle"].links[0].control_cells
        )


async def test_padding_can_be_turned_off(tmp_path: Path) -> None:
    async with served_tor(tmp_path, padding=Padding.OFF) as (tor, network):
        stream = await tor.connect("web.test", 80)
        guard = network.relays[stream.path[0].nickname]
        assert any(command == Command.PADDING_NEGOTIATE for _, command, _ in guard.links[0].control_cells)


async def test_a_circuit_whose_exit_has_left_the_network_takes_no_new_stream(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with serve_network() as network:
        expire(network)
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            before = tor.directory
            stream = await tor.connect("web.test", 80)
            gone = stream.path[-1].nickname
            left = [doc for doc in network.docs if doc.nickname != gone]
            network.service.consensus = signed_service(left, authorities()).consensus
            await until_replaced(tor, before)
            assert (await tor.connect("web.test", 80)).path[-1].nickname != gone
            await stream.send_all(b"still here")


# --- Attempts ------------------------------------------------------------------------------------------


async def test_a_stream_refused_for_the_exits_fault_is_tried_at_another(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        refused: list[FakeStream] = []

        def refuse_once(stream: FakeStream) -> None:
            if refused:
                answer_begin(stream)
            else:
                refused.append(stream)
                stream.end(EndReason.EXITPOLICY)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse_once
        stream = await tor.connect("web.test", 80)
        assert refused[0].hop.relay.rsa_identity != stream.path[-1].identity


@pytest.mark.parametrize("reason", [EndReason.CONNECTREFUSED, EndReason.TIMEOUT, EndReason.CONNRESET])
async def test_a_refusal_by_the_destination_is_not_repeated(tmp_path: Path, reason: EndReason) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun: list[FakeStream] = []

        def refuse(stream: FakeStream) -> None:
            begun.append(stream)
            stream.end(reason)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse
        with pytest.raises(StreamClosed) as caught:
            await tor.connect("web.test", 80)
        assert caught.value.reason is reason
        assert len(begun) == 1


async def test_when_no_exit_is_left_the_last_refusal_is_told(tmp_path: Path) -> None:
    """It was hidden behind the NoPath that there is no third exit."""
    async with served_tor(tmp_path, exits=2) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.on_begin = lambda stream: stream.end(EndReason.RESOLVEFAILED)
        with pytest.raises(StreamClosed) as caught:
            await tor.connect("web.test", 80)
        assert caught.value.reason is EndReason.RESOLVEFAILED


async def test_a_port_that_no_exit_allows_is_no_path(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        with pytest.raises(NoPath, match="exit policy"):
            await tor.connect("web.test", 25)


async def failed(stream: Stream | None) -> Stream:
    """A stream that was begun, once it has failed."""
    assert stream is not None
    with pytest.raises(StreamClosed):
        await stream.wait_connected()
    return stream


async def test_a_stream_is_begun_at_once_only_where_a_circuit_is_ready(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        stream = await tor.connect("web.test", 80, isolation="a")
        begun = tor.request("web.test", 443, isolation="a").begin()
        assert begun is not None
        assert begun.circuit is stream.circuit
        await begun.wait_connected()
        assert tor.request("web.test", 25, isolation="a").begin() is None  # no exit allows that port
        tor.new_identity()
        assert tor.request("web.test", 80, isolation="a").begin() is None


async def test_a_first_attempt_that_an_exit_refused_goes_on_at_another(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        await tor.connect("web.test", 80)
        refused: list[FakeStream] = []

        def refuse_once(stream: FakeStream) -> None:
            if refused:
                answer_begin(stream)
            else:
                refused.append(stream)
                stream.end(EndReason.EXITPOLICY)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse_once
        request = tor.request("web.test", 80)
        begun = await failed(request.begin())
        stream = await request.connect()
        assert stream.path[-1] != begun.path[-1]


async def test_a_first_attempt_that_the_destination_refused_is_not_repeated(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        await tor.connect("web.test", 80)
        asked: list[FakeStream] = []

        def refuse(stream: FakeStream) -> None:
            asked.append(stream)
            stream.end(EndReason.CONNECTREFUSED)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse
        request = tor.request("web.test", 80)
        await failed(request.begin())
        with pytest.raises(StreamClosed) as caught:
            await request.connect()
        assert caught.value.reason is EndReason.CONNECTREFUSED
        assert len(asked) == 1


async def test_a_first_attempt_that_is_not_answered_retires_its_circuit(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("web.test", 80)
        silent = next(fake for fake in exits_of(network) if fake.rsa_identity == first.path[-1].identity)
        silent.on_begin = ignore
        request = tor.request("web.test", 80)
        assert request.begin() is not None
        stream = await request.connect()
        assert stream.path[-1] != first.path[-1]
        again = tor.request("web.test", 80).begin()
        assert again is not None
        assert again.circuit is stream.circuit


async def test_a_look_up_has_no_stream(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        request = tor.request("web.test", None)
        with pytest.raises(UsageError):
            request.begin()
        with pytest.raises(UsageError):
            await request.connect()


async def test_a_request_goes_on_under_the_identity_that_it_began_with(tmp_path: Path) -> None:
    async with served_tor(tmp_path, exits=3) as (tor, _):
        await tor.connect("web.test", 80)
        request = tor.request("web.test", 80)
        begun = request.begin()
        assert begun is not None
        tor.new_identity()
        after = await tor.connect("web.test", 80)
        begun.circuit.close()
        stream = await request.connect()
        assert stream.circuit not in (begun.circuit, after.circuit)
        again = await tor.connect("web.test", 80)
        assert again.circuit is after.circuit


async def test_a_circuit_destroyed_under_a_stream_is_replaced(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        destroyed: list[FakeStream] = []

        def destroy_once(stream: FakeStream) -> None:
            if destroyed:
                answer_begin(stream)
            else:
                destroyed.append(stream)
                stream.circuit.destroy()

        for exit_relay in exits_of(network):
            exit_relay.on_begin = destroy_once
        assert (await tor.connect("web.test", 80)).circuit.error is None
        assert len(destroyed) == 1


async def test_an_exit_that_never_answers_is_left_for_another(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path, padding=Padding.OFF) as (tor, network):
        silent: list[FakeStream] = []

        def silent_once(stream: FakeStream) -> None:
            if silent:
                answer_begin(stream)
            else:
                silent.append(stream)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = silent_once
        started = trio.current_time()
        stream = await tor.connect("web.test", 80)
        assert trio.current_time() - started >= ATTEMPT_TIMEOUTS[0]
        assert stream.path[-1].identity != silent[0].hop.relay.rsa_identity
        again = await tor.connect("web.test", 80)
        assert again.path[-1].identity != silent[0].hop.relay.rsa_identity


async def test_a_stream_tried_again_after_a_new_identity_shares_nothing_with_later_ones(
    tmp_path: Path,
) -> None:
    """It took the new identity for its own."""
    async with served_tor(tmp_path) as (tor, network):
        begun = Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin = begun
        streams: list[Stream] = []

        async def connect() -> None:
            streams.append(await tor.connect("web.test", 80))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            refused = await begun.next()
            tor.new_identity()
            for exit_relay in exits_of(network):
                exit_relay.on_begin = answer_begin
            refused.end(EndReason.MISC)
        assert (await tor.connect("web.test", 80)).circuit is not streams[0].circuit


async def test_exits_that_never_answer_time_out(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path, padding=Padding.OFF, exits=3) as (tor, network):
        ended = Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin, exit_relay.on_end = ignore, ended
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await tor.connect("web.test", 80)
        assert trio.current_time() - started >= sum(ATTEMPT_TIMEOUTS)
        for _ in ATTEMPT_TIMEOUTS:
            await ended.next()


async def test_a_stream_is_tried_until_it_is_too_old(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path, padding=Padding.OFF, exits=10) as (tor, network):
        begun: list[FakeStream] = []

        def ignore_and_note(stream: FakeStream) -> None:
            if stream.target == ("web.test", 80):  # and no probe
                begun.append(stream)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = ignore_and_note
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await tor.connect("web.test", 80)
        assert STREAM_TIMEOUT <= trio.current_time() - started < STREAM_TIMEOUT + ATTEMPT_TIMEOUTS[-1]
        assert len(begun) == 9  # two of 10 s, seven of 15 s


async def test_a_stream_that_exits_refuse_is_not_tried_for_ever(tmp_path: Path) -> None:
    async with served_tor(tmp_path, exits=MAX_FAILURES + 1) as (tor, network):
        begun: list[FakeStream] = []

        def refuse(stream: FakeStream) -> None:
            begun.append(stream)
            stream.end(EndReason.RESOLVEFAILED)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse
        with pytest.raises(StreamClosed):
            await tor.connect("web.test", 80)
        assert len(begun) == MAX_FAILURES


def answer_error(kind: int) -> Callable[[FakeCircuit, int, int, str], None]:
    """RESOLVED with one error. tor-spec, "Remote hostname lookup"."""

    def answer(circuit: FakeCircuit, number: int, stream_id: int, name: str) -> None:
        body = bytes([kind, 1]) + b"?" + bytes(4)
        circuit.send(number, RelayCommand.RESOLVED, stream_id, body)

    return answer


@pytest.mark.parametrize(("kind", "attempts"), [(0xF0, 2), (0xF1, 1)])
async def test_a_look_up_that_fails_at_an_exit_is_tried_at_another(
    tmp_path: Path, kind: int, attempts: int
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        asked = Arrivals(answer_error(kind))
        for exit_relay in exits_of(network):
            exit_relay.on_resolve = asked
        with pytest.raises(StreamClosed) as caught:
            await tor.resolve("name.test")
        assert caught.value.reason is EndReason.RESOLVEFAILED
        assert len({circuit.hops[2].relay.rsa_identity for circuit, *_ in asked.all()}) == attempts


@pytest.mark.parametrize("reason", [EndReason.MISC, EndReason.NOROUTE, EndReason.RESOLVEFAILED])
async def test_a_circuit_whose_exit_fails_takes_no_further_stream(tmp_path: Path, reason: EndReason) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("web.test", 80)
        exit_relay = exit_of(network, first)
        exit_relay.on_begin = lambda stream: stream.end(reason)
        second = await tor.connect("web.test", 80)
        exit_relay.on_begin = answer_begin
        assert first.path[-1] != second.path[-1]
        assert first.circuit.error is None
        exit_of(network, second).on_begin = lambda stream: stream.end(reason)
        third = await tor.connect("web.test", 80)
        assert third.path[-1] == first.path[-1]
        assert third.circuit is not first.circuit


@pytest.mark.parametrize("reason", [EndReason.TORPROTOCOL, EndReason.DESTROY])
async def test_an_end_that_tells_of_broken_cells_ends_its_circuit(tmp_path: Path, reason: EndReason) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("web.test", 80)
        exit_relay = exit_of(network, first)
        exit_relay.on_begin = lambda stream: stream.end(reason)
        second = await tor.connect("web.test", 80)
        assert first.circuit.error is not None
        assert first.path[-1] != second.path[-1]
        counts = tor._parts.guards.guards.path_bias_of(first.path[0].identity)
        assert counts is not None
        assert counts.unusable_circuits == 1  # though a stream was answered


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (EndReason.CONNECTREFUSED, State.USE_SUCCEEDED),
        (EndReason.INTERNAL, State.USE_ATTEMPTED),
        (EndReason.MISC, State.USE_ATTEMPTED),
        (EndReason.EXITPOLICY, State.USE_ATTEMPTED),
        (EndReason.TORPROTOCOL, State.COUNTED),
    ],
)
async def test_what_an_exit_answers_says_whether_the_guard_let_the_circuit_work(
    tmp_path: Path, reason: EndReason, state: State
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.on_begin = lambda stream: stream.end(reason)
        taken = await tor._parts.circuits.acquire(Need(ExitTo(80)))
        assert taken.watch.needs_probe
        with pytest.raises(StreamClosed):
            await tor.connect("web.test", 80)
        assert taken.watch.state is state
        counts = tor._parts.guards.guards.path_bias_of(taken.path[0].identity)
        assert counts is not None
        assert (counts.unusable_circuits > 0) is (state is State.COUNTED)


async def test_streams_that_are_answered_and_those_given_up_are_told_apart(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("web.test", 80)
        assert first.circuit.watch.state is State.USE_SUCCEEDED
        exit_of(network, first).on_begin = ignore
        second = await tor.connect("web.test", 80)
        assert first.circuit.watch.needs_probe  # later ones were perhaps held back
        assert second.circuit.watch.state is State.USE_SUCCEEDED


async def test_a_guard_that_fails_too_often_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_tor(tmp_path) as (tor, _):
        guard = (await tor.connect("web.test", 80)).path[0]
        counts = tor._parts.guards.guards.path_bias_of(guard.identity)
        assert counts is not None
        counts.circ_attempts += 151
        for isolation in range(4):
            await tor.connect("web.test", 80, isolation=isolation)
        message = f"guard {guard.fingerprint} fails extremely often"
        assert [message in record.getMessage() for record in caplog.records].count(True) == 1


async def test_an_exit_that_refused_a_target_is_not_asked_for_it_again(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("other.test", 80)
        exit_relay = exit_of(network, first)
        exit_relay.on_begin = begun = Arrivals(refuse_by_policy)
        second = await tor.connect("Web.test", 80)
        assert second.path[-1] != first.path[-1]
        for _ in range(8):
            await tor.connect("web.test", 80)
        assert len(begun.all()) == 1
        with trio.fail_after(
            10
        ):  # another isolation learns by itself: its choices tell nothing of this one's
            for isolation in count():
                await tor.connect("web.test", 80, isolation=isolation)
                if begun.all():
                    break
        exit_relay.on_begin = answer_begin
        exit_of(network, second).on_begin = refuse_by_policy
        assert (await tor.connect("other.test", 80)).circuit is first.circuit
        exit_of(network, second).on_begin = answer_begin
        tor.new_identity()  # and nobody can tell from the exits which targets were before
        exit_relay.on_begin = begun = Arrivals(answer_begin)
        with trio.fail_after(10):
            for isolation in count():
                await tor.connect("web.test", 80, isolation=isolation)
                if begun.all():
                    break


async def test_exits_that_all_refused_a_target_are_asked_again(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun = Arrivals(refuse_by_policy)
        for exit_relay in exits_of(network):
            exit_relay.on_begin = begun
        for _ in range(2):
            with pytest.raises(StreamClosed) as caught:
                await tor.connect("web.test", 80)
            assert caught.value.reason is EndReason.EXITPOLICY
            assert len({stream.hop.relay.rsa_identity for (stream,) in begun.all()}) == 2
        for exit_relay in exits_of(network):
            exit_relay.on_begin = answer_begin
        await tor.connect("web.test", 80)


@pytest.mark.parametrize("reason", [EndReason.EXITPOLICY, EndReason.HIBERNATING, EndReason.RESOURCELIMIT])
async def test_an_exit_that_wants_no_streams_gets_none_before_the_next_consensus(
    tmp_path: Path, patient_clock: trio.testing.MockClock, reason: EndReason
) -> None:
    async with serve_network() as network:
        new = network.service.consensus
        expire(network)
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            old = tor.directory
            first = await tor.connect("other.test", 80)
            exit_relay = exit_of(network, first)
            exit_relay.on_begin = begun = Arrivals(lambda stream: stream.end(reason))
            for isolation in range(4):
                await tor.connect("web.test", 443, isolation=isolation)
                await tor.connect("other.test", 80, isolation=isolation)
            assert len(begun.all()) <= 1
            exit_relay.on_begin = begun = Arrivals(answer_begin)
            network.service.consensus = new
            await until_replaced(tor, old)
            with trio.fail_after(600):
                for isolation in count():
                    await tor.connect("web.test", 80, isolation=isolation)
                    if begun.all():
                        break


async def test_exits_that_all_want_no_streams_are_asked_again(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.on_begin = lambda stream: stream.end(EndReason.RESOURCELIMIT)
        with pytest.raises(StreamClosed):
            await tor.connect("web.test", 80)
        for exit_relay in exits_of(network):
            exit_relay.on_begin = answer_begin
        await tor.connect("web.test", 80)


async def test_refusals_by_policy_are_followed_to_many_exits(tmp_path: Path) -> None:
    async with served_tor(tmp_path, exits=6) as (tor, network):
        begun: list[FakeStream] = []

        def refuse_five(stream: FakeStream) -> None:
            begun.append(stream)
            (refuse_by_policy if len(begun) <= 5 else answer_begin)(stream)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse_five
        await tor.connect("web.test", 80)
        assert len({stream.hop.relay.rsa_identity for stream in begun}) == 6


async def test_a_path_whose_exit_refuses_is_not_tried_again(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun = Arrivals(refuse_by_policy)
        for exit_relay in exits_of(network):
            exit_relay.on_begin = begun
        with pytest.raises(StreamClosed):
            await tor.connect("web.test", 80, path=tor.choose_path(Constraints(port=80)))
        assert len(begun.all()) == 1


async def test_a_name_of_a_private_address_is_not_tried_elsewhere(tmp_path: Path) -> None:
    async with serve_network() as network:
        begun = Arrivals(lambda stream: refuse_by_policy(stream, "192.168.0.1"))
        for exit_relay in exits_of(network):
            exit_relay.on_begin = begun
        for testing in (False, True):  # on a private network all are
            config = network.config._replace(testing=testing)
            async with open_tor(network=config, data_dir=tmp_path) as tor:
                await tor.wait_ready()
                with pytest.raises(StreamClosed) as caught:
                    await tor.connect("web.test", 80)
            assert str(caught.value.address) == "192.168.0.1"
            assert len(begun.all()) == (2 if testing else 1)


async def test_only_attempts_that_time_out_lengthen_the_next(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path, exits=5) as (tor, network):
        begun: list[float] = []

        def refuse_two(stream: FakeStream) -> None:
            begun.append(trio.current_time())
            if len(begun) < 3:
                stream.end(EndReason.MISC)
            elif len(begun) == 5:
                answer_begin(stream)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse_two
        await tor.connect("web.test", 80)
        waits = [after - before for before, after in pairwise(begun[2:])]
        assert waits == pytest.approx(ATTEMPT_TIMEOUTS[:2], abs=1)


async def test_a_stream_waits_for_circuits_until_it_is_too_old(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        tor.new_identity()
        for fake in network.relays.values():
            fake.on_extend2 = ignore
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await tor.connect("web.test", 80)
        assert trio.current_time() - started == pytest.approx(STREAM_TIMEOUT, abs=1)


async def test_a_stream_waits_while_circuits_cannot_be_built(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    """It was refused after eight attempts, within a second."""
    async with served_tor(tmp_path, padding=Padding.OFF) as (tor, network):
        tor.new_identity()
        guards = [fake for name, fake in network.relays.items() if name.startswith("guard")]
        for fake in guards:
            fake.on_extend2 = lambda circuit, number, cell: circuit.destroy()
        started = trio.current_time()

        async def recover() -> None:
            await trio.sleep(STREAM_TIMEOUT - 30)
            for fake in guards:
                fake.on_extend2 = answer_extend2

        async with trio.open_nursery() as nursery:
            nursery.start_soon(recover)
            await tor.connect("web.test", 80)
        assert trio.current_time() - started < STREAM_TIMEOUT


async def test_a_connect_given_up_sends_end(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun, ended = Arrivals(), Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin, exit_relay.on_end = begun, ended
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tor.connect, "web.test", 80)
            far = await begun.next()
            nursery.cancel_scope.cancel()
        assert (await ended.next())[0] is far


# --- What is asked for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["x.onion", "X.ONION.", "a.b.onion", "web.test.exit", "", "with space", "ünicode.test"]
)
async def test_names_that_no_exit_can_look_up_are_refused(tmp_path: Path, host: str) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun = Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin = exit_relay.on_resolve = begun
        with pytest.raises((UsageError, OnionServiceError)) as caught:
            await tor.connect(host, 80)
        assert isinstance(caught.value, OnionServiceError) == is_onion(host)
        with pytest.raises(UsageError):
            await tor.resolve(host)
        assert begun.count == 0


async def test_the_data_directory_is_made_and_kept_in(tmp_path: Path) -> None:
    """A library's user was told only that it is not a directory, and nothing was kept."""
    place = tmp_path / "new" / "data"
    async with (
        serve_network() as network,
        open_tor(network=network.config, data_dir=place, spare_circuits=0) as tor,
    ):
        await tor.wait_ready()
        await (await tor.connect("web.test", 80)).aclose()
    assert place.stat().st_mode & 0o777 == 0o700
    assert {"consensus-microdesc", "state.json"} <= {path.name for path in place.iterdir()}
    with pytest.raises(StorageError):
        async with open_tor(network=network.config, data_dir=place / "state.json"):
            pass


@pytest.mark.parametrize("host", ["localhost", "x.local", "127.0.0.1", "192.168.1.1", "::1", "[fe80::1]"])
async def test_places_near_the_exit_are_never_asked_of_it(tmp_path: Path, host: str) -> None:
    async with serve_network() as network:
        asked = Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin = exit_relay.on_resolve = asked
        public = network.config._replace(testing=False)
        async with open_tor(network=public, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            for ask in (partial(tor.connect, port=80), tor.resolve):
                with pytest.raises(UsageError) as caught:
                    await ask(host)
                assert caught.value.hint is not None
        assert asked.count == 0


async def test_on_a_private_network_every_place_is_asked_for(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.hosts = {"a.localhost": ["127.0.0.1"]}
        for host in ("localhost", "127.0.0.1"):
            await (await tor.connect(host, 80)).aclose()
        assert await tor.resolve("a.localhost") == [Resolved("ipv4", "127.0.0.1", 60)]


async def test_answers_that_are_internal_are_no_answers(tmp_path: Path) -> None:
    async with serve_network() as network:
        for exit_relay in exits_of(network):
            exit_relay.hosts = {
                "mixed.test": ["10.0.0.1", "192.0.2.1", "::1"],
                "internal.test": ["10.0.0.1", "fe80::1"],
            }
        public = network.config._replace(testing=False)
        async with open_tor(network=public, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            assert await tor.resolve("mixed.test") == [Resolved("ipv4", "192.0.2.1", 60)]
            with pytest.raises(StreamClosed) as caught:
                await tor.resolve("internal.test")
            assert caught.value.reason is EndReason.RESOLVEFAILED


async def test_an_exit_that_connects_inside_its_own_network_is_left(tmp_path: Path) -> None:
    """A name may be made to mean a router or a printer of the exit's: as C tor, we want none of it."""
    async with serve_network() as network:
        ended = Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin = lambda stream: stream.connected("192.168.1.1")
            exit_relay.on_end = ended
        public = network.config._replace(testing=False)
        async with open_tor(network=public, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            with pytest.raises(StreamClosed) as caught:
                await tor.connect("web.test", 80)
            assert caught.value.reason is EndReason.EXITPOLICY
            await ended.next()
        assert ended.count == 1


async def test_a_given_path_is_the_one_used(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        for name in ("exit0", "exit1"):
            path = tor.choose_path(Constraints(exit=name))
            stream = await tor.connect("web.test", 80, path=path)
            assert stream.path == path
            assert stream.path[-1].nickname == name


async def test_a_given_path_that_cannot_lead_there_is_refused_in_words(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        path = tor.choose_path(Constraints(exit="exit0"))
        begun = Arrivals(answer_begin)
        for relay in network.relays.values():
            relay.on_begin = begun
        with pytest.raises(NoPath, match="exit0's exit policy does not allow this port"):
            await tor.connect("web.test", 25, path=path)
        with pytest.raises(NoPath, match="exit0's exit policy does not allow this port"):
            tor.request("web.test", 25, path=path)
        no_exit = path[::-1]
        for call in (tor.connect("web.test", 80, path=no_exit), tor.resolve("web.test", path=no_exit)):
            with pytest.raises(NoPath, match=f"{no_exit[-1].nickname}'s exit policy allows no port"):
                await call
        assert begun.count == 0


async def test_a_circuit_of_ones_own_is_used_by_nobody_else(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        circuit = await tor.build_circuit(tor.choose_path(Constraints(port=80)))
        assert (await tor.connect("web.test", 80)).circuit is not circuit
        circuit.close()
        assert isinstance(circuit.error, CircuitClosed)


# --- Beginning and end ---------------------------------------------------------------------------------


async def test_before_there_is_a_directory_nothing_is_chosen(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with serve_network() as network:
        network.service.consensus = b""
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            with pytest.raises(NoDirectory):
                tor.choose_path(Constraints(port=80))
            with pytest.raises(NoDirectory):
                await tor.connect("web.test", 80)
            with pytest.raises(NoDirectory, match="404"):
                await tor.wait_ready()


async def test_closing_destroys_every_circuit(tmp_path: Path) -> None:
    async with serve_network() as network:
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            streams = [await tor.connect("web.test", 80, isolation=i) for i in range(3)]
            guard = next(f for f in network.relays.values() if f.rsa_identity == streams[0].path[0].identity)
            guard.on_destroy = destroyed = Arrivals()
            in_use = {circuit.circ_id for circuit in guard.circuits if circuit.streams}
            assert len(in_use) == 3
        while in_use:
            in_use.discard((await destroyed.next())[0].circ_id)


async def test_what_the_caller_raises_comes_out_as_it_was(tmp_path: Path) -> None:
    async with serve_network() as network:
        with pytest.raises(NoPath):  # noqa: PT012
            async with open_tor(network=network.config, data_dir=tmp_path) as tor:
                await tor.wait_ready()
                tor.choose_path(Constraints(port=25))


async def test_a_given_consensus_is_used(tmp_path: Path) -> None:
    async with serve_network() as network:
        given = network.service.consensus
        network.service.consensus = b""
        async with open_tor(network=network.config, data_dir=tmp_path, consensus=given) as tor:
            await tor.wait_ready()
            assert tor.directory.consensus.text == given
            await tor.connect("web.test", 80)


async def test_a_given_consensus_that_is_none_is_refused(tmp_path: Path) -> None:
    async with serve_network() as network:
        with pytest.raises(DocumentError):
            async with open_tor(network=network.config, data_dir=tmp_path, consensus=b"rubbish"):
                pass


async def test_a_state_that_cannot_be_read_is_set_aside_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state.json").write_bytes(b'{"guards": [')
    async with served_tor(tmp_path) as (tor, _):
        await tor.connect("web.test", 80)
    assert (tmp_path / "state.json.damaged-1").read_bytes() == b'{"guards": ['
    assert "state.json.damaged-1" in caplog.text
    assert len(json.loads((tmp_path / "state.json").read_text())["guards"]) == 2


async def test_of_a_state_the_good_is_kept_and_the_whole_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_network(guards=3) as network:
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            guard = (await tor.connect("web.test", 80)).path[0]
        state = json.loads((tmp_path / "state.json").read_text())
        assert state["guards"][0]["fingerprint"] == guard.fingerprint
        state["guards"].insert(0, {"fingerprint": "none"})
        state["of a later version"] = {"n": 1}
        text = json.dumps(state)
        (tmp_path / "state.json").write_text(text)
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            assert (await tor.connect("web.test", 80)).path[0] == guard
        assert (tmp_path / "state.json.damaged-1").read_text() == text
        assert "guards, entry 1: " in caplog.text
        kept = json.loads((tmp_path / "state.json").read_text())
        # What is counted of circuits goes on, but for those that were open at the end.
        before, after = (one.pop("path_bias") for one in (state["guards"][1], kept["guards"][0]))
        assert after["circ_attempts"] > before["circ_attempts"] == before["circ_successes"]
        assert after["use_attempts"] > before["use_attempts"] == before["use_successes"]
        assert kept["guards"] == state["guards"][1:]
        assert kept["of a later version"] == {"n": 1}
        assert sum(kept["build_times"].values()) > sum(state["build_times"].values())


def test_of_a_state_cut_off_anywhere_nothing_is_lost_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [{"fingerprint": f"{n:02X}" * 20, "sampled_on": "2026-11-01T10:00:00"} for n in range(3)]
    text = json.dumps({"build_times": {"105": 3}, "guards": entries}).encode()
    aside = tmp_path / "state.json.damaged-1"
    for length in range(len(text)):
        (tmp_path / "state.json").write_bytes(text[:length])
        state, guards = load_state(Cache(tmp_path), Constraints(), Random(1), time.time())
        assert (state, guards.sample) == ({}, [])
        assert aside.read_bytes() == text[:length]
        assert str(aside) in caplog.text
        aside.unlink()
        caplog.clear()


def guards_without_counts(state: Path) -> list[dict[str, Any]]:
    """Those of a state file; what path bias counts goes on while circuits are used."""
    guards = json.loads(state.read_text())["guards"]
    return [{name: value for name, value in guard.items() if name != "path_bias"} for guard in guards]


async def test_a_state_damaged_while_a_client_runs_costs_no_guard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state.json"
    async with served_tor(tmp_path) as (tor, _):
        await tor.connect("web.test", 80)
        with trio.fail_after(10):
            while not state.exists():
                await trio.sleep(0.01)
        # Only what has changed is saved, from now on the build times.
        await tor._parts.state.save()
        guards = guards_without_counts(state)
        state.write_text("{")
        for isolation in range(5):  # more than were built ahead
            await tor.connect("web.test", 80, isolation=isolation)
    assert guards_without_counts(state) == guards
    assert (tmp_path / "state.json.damaged-1").read_text() == "{"
    assert "kept as" in caplog.text


async def test_first_starts_at_once_agree_on_their_guards(tmp_path: Path) -> None:
    """Each would draw its own, and the last to save would change the others' guard at their next start."""
    async with serve_network(guards=5) as network, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_tor(network=network.config, data_dir=tmp_path))
            for _ in range(4)
        ]
        for tor in clients:
            await tor.wait_ready()
        used = {(await tor.connect("web.test", 80)).path[0].nickname for tor in clients}
        orders = [[guard.identity for guard in tor._parts.guards.guards.sample] for tor in clients]
    assert len(used) == 1
    assert orders == [orders[0]] * 4
    kept = json.loads((tmp_path / "state.json").read_text())["guards"]
    assert [bytes.fromhex(guard["fingerprint"]) for guard in kept] == orders[0]


def hold_lock(directory: Path) -> TextIO:
    """As another process does, until it is closed."""
    lock = (directory / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


async def test_guards_are_agreed_upon_while_the_loop_goes_on(tmp_path: Path) -> None:
    async with (
        serve_network(guards=3) as network,
        open_tor(network=network.config, data_dir=tmp_path) as tor,
    ):
        lock = hold_lock(tmp_path)
        with trio.move_on_after(0.3) as waiting:  # the loop goes on
            await tor.wait_ready()
        assert waiting.cancelled_caught
        with pytest.raises((NoDirectory, NoGuard)):
            tor.choose_path(Constraints(port=80))
        lock.close()
        await tor.wait_ready()
        assert json.loads((tmp_path / "state.json").read_text())["guards"]
        assert (await tor.connect("web.test", 80)).path[0].fingerprint in (
            tmp_path / "state.json"
        ).read_text()


async def test_a_damaged_state_is_set_aside_while_the_loop_goes_on(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    lock = hold_lock(tmp_path)

    async def release() -> None:
        await trio.sleep(0.1)
        lock.close()

    async with serve_network() as network, trio.open_nursery() as nursery:
        nursery.start_soon(release)
        async with open_tor(network=network.config, data_dir=tmp_path):
            assert (tmp_path / "state.json.damaged-1").read_text() == "{"


async def test_build_times_are_kept_but_never_trusted_below_seconds_on_a_private_network(
    tmp_path: Path,
) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"build_times": {"105": 99}}))
    async with served_tor(tmp_path) as (tor, _):
        assert tor._parts.build_times.timeouts == INITIAL
        await tor.connect("web.test", 80)
        assert tor._parts.build_times.timeouts.use == TESTING_MIN_TIMEOUT / 1000
    kept = json.loads((tmp_path / "state.json").read_text())
    assert sum(kept["build_times"].values()) >= 100


async def test_a_guard_of_an_older_state_is_kept(tmp_path: Path) -> None:
    async with serve_network(guards=3) as network:
        old = network.relays["guard2"].rsa_identity.hex().upper()
        (tmp_path / "state.json").write_text(json.dumps({"guards": [{"fingerprint": old}]}))
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            assert (await tor.connect("web.test", 80)).path[0].fingerprint == old


async def test_a_guard_whose_microdesc_is_not_in_the_cache_is_used_all_the_same(tmp_path: Path) -> None:
    """Another guard carried the traffic at once, and was confirmed for good."""
    async with serve_network(guards=3) as network:
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            guard = (await tor.connect("web.test", 80)).path[0]
        kept = Microdescs()
        for doc in network.docs:
            if doc.identity != guard.identity:
                kept.add(doc.microdesc(), {sha256(doc.microdesc()).digest()}, time.time())
        (tmp_path / MICRODESCS).unlink()
        Cache(tmp_path).save_microdescs(kept, time.time())
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            assert (await tor.connect("web.test", 80)).path[0] == guard
            assert [one.confirmed_on is not None for one in tor._parts.guards.guards.sample].count(True) == 1


async def test_paths_that_are_only_chosen_begin_at_the_same_guard(tmp_path: Path) -> None:
    """Where no primary guard was usable each began at another, as if those before were being tried."""
    async with served_tor(tmp_path, guards=5) as (tor, _):
        for guard in tor._parts.guards.guards.primary:
            tor._parts.guards.guards.note_failed(guard.identity, now=time.time())
        assert len({tor.choose_path(Constraints())[0].identity for _ in range(10)}) == 1


async def test_an_exit_of_the_guards_family_gets_another_guard(tmp_path: Path) -> None:
    """That was NoPath while the guard was chosen first."""
    async with served_tor(tmp_path, guards=2) as (tor, _):
        first = (await tor.connect("web.test", 80)).path[0]
        path = tor.choose_path(Constraints(port=80, exclude=frozenset({first.fingerprint})))
        assert path[0] != first
        assert tor.choose_path(Constraints(port=80))[0] == first


async def test_what_the_user_restricts_holds_for_every_path(tmp_path: Path) -> None:
    async with serve_network(guards=3, exits=3) as network:
        restrictions = Constraints(
            entries=frozenset({"guard1", "guard2"}),
            exits=frozenset({"exit0", "exit1"}),
            exclude=frozenset({"guard2", "exit1"}),
        )
        async with open_tor(network=network.config, data_dir=tmp_path, restrictions=restrictions) as tor:
            await tor.wait_ready()
            for isolation in range(5):
                path = (await tor.connect("web.test", 80, isolation=isolation)).path
                assert (path[0].nickname, path[2].nickname) == ("guard1", "exit0")


@pytest.mark.parametrize("option", ["entries", "exits", "exclude"])
async def test_countries_are_looked_up_where_a_relay_is(tmp_path: Path, option: str) -> None:
    everyone, nobody = ("{cc}", "{aa}") if option == "exclude" else ("{aa}", "{cc}")
    async with serve_network() as network:

        @asynccontextmanager
        async def restricted(name: str) -> AsyncIterator[Tor]:
            wanted: dict[str, Any] = {option: frozenset({name})}
            async with open_tor(
                network=network.config,
                data_dir=tmp_path,
                restrictions=Constraints(**wanted),
                country_of={"127.0.0.1": "aa"}.get,
            ) as tor:
                await tor.wait_ready()
                yield tor

        async with restricted(everyone) as tor:
            await tor.connect("web.test", 80)
        async with restricted(nobody) as tor:
            with pytest.raises(NotPossible):
                await tor.connect("web.test", 80)


async def test_countries_that_nobody_can_look_up_are_a_mistake(tmp_path: Path) -> None:
    async with serve_network() as network:
        restrictions = Constraints(exits=frozenset({"{aa}"}))
        with pytest.raises(UsageError, match="country_of"):
            async with open_tor(network=network.config, data_dir=tmp_path, restrictions=restrictions):
                pass


async def test_authorities_are_asked_where_there_are_no_fallbacks(tmp_path: Path) -> None:
    async with serve_network() as network:
        (fallback,) = network.config.fallbacks
        first, *others = network.config.authorities
        first = first._replace(or_port=fallback.or_port, fingerprint=fallback.identity)
        config = network.config._replace(authorities=(first, *others), fallbacks=())
        async with open_tor(network=config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
