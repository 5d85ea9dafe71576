"""The client as a program uses it, on a network of scripted relays, and failures that are not its fault."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha3_256, sha256
from pathlib import Path
from typing import Any

import network_docs
import pytest
import trio
import trio.testing
from served import Arrivals, serve_network
from served_tor import exits_of, expire, served_tor, until_replaced

from torkit._fast.cells import Command
from torkit.client import Tor, open_tor
from torkit.config import Authority, Fallback, Network
from torkit.directory.cache import MICRODESCS, Cache
from torkit.directory.consensus import parse_consensus
from torkit.directory.microdesc import Microdescs
from torkit.errors import (
    CircuitClosed,
    DocumentError,
    EndReason,
    NoDirectory,
    NoPath,
    NotPossible,
    OnionServiceError,
    StorageError,
    StreamClosed,
    TorkitError,
    UsageError,
)
from torkit.net.circuits.request import Resolved
from torkit.net.link.channels import Channels
from torkit.paths.constraints import Constraints
from torkit.paths.guards import RETRY_SCHEDULE
from torkit.proto.destination import is_onion
from torkit.proto.padding import Padding
from torkit.testing.directory import consensus_diff, make_authorities, signed_part, signed_service
from torkit.testing.directory.authority import HOUR
from torkit.testing.relay import (
    answer_begin,
    answer_versions,
    http_response,
)


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
        valid_after = int(time.time()) - 4 * HOUR
        network.service.ns_consensus = {
            "flavor": network.service.consensus,
            "forged": network.service.ns_consensus.replace(b"s Exit", b"s Guard", 1),
            "expired": network_docs.consensus([], make_authorities(), flavor="ns", valid_after=valid_after),
            "missing": b"",
        }[fault]
        with pytest.raises((DocumentError, NoDirectory), match=reason):
            await tor.download_consensus("ns")


async def test_a_downloaded_consensus_comes_as_a_diff_or_whole(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        new = network.service.ns_consensus
        held = parse_consensus(
            network_docs.consensus(
                [], make_authorities(), flavor="ns", valid_after=int(time.time()) - 2 * HOUR
            )
        )
        asked: list[bytes] = []
        answers: dict[bool, bytes] = {}  # by whether a diff was asked for

        def answer(request: bytes) -> bytes:
            asked.append(request.lower())
            return answers[b"x-or-diff" in asked[-1]]

        for fake in network.relays.values():
            fake.directory = answer
        digest = sha3_256(signed_part(held.text)).hexdigest().encode()
        for body in (consensus_diff(held.text, new), new):
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
            answers[True] = http_response(consensus_diff(base, made))
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
            network.service.consensus = signed_service(left, make_authorities()).consensus
            await until_replaced(tor, before)
            assert (await tor.connect("web.test", 80)).path[-1].nickname != gone
            await stream.send_all(b"still here")


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


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ({"AA" * 20}, "bcd"),
        ({f"${'bb' * 20}~nick", "Carol"}, "ad"),
        ({"{De}"}, "b"),  # who is in no known country goes with it
        ({"{de}", "{FR}", "nobody"}, ""),
    ],
)
async def test_nobody_is_asked_for_a_directory_who_is_excluded(
    tmp_path: Path, patient_clock: trio.testing.MockClock, exclude: set[str], left: str
) -> None:
    """A fallback that the user excluded saw the user's address all the same."""
    asked: set[str] = set()
    async with trio.open_nursery() as nursery:

        async def listen(name: str, host: str) -> int:
            async def note(stream: trio.SocketStream) -> None:
                asked.add(name)
                await stream.aclose()

            [listener] = await nursery.start(partial(trio.serve_tcp, note, 0, host=host))
            return int(listener.socket.getsockname()[1])

        ports = {name: await listen(name, f"127.0.{n}.1") for n, name in enumerate("abcd")}
        network = Network(
            tuple(
                Authority(nickname, f"127.0.{n}.1", 1, ports[name], name.encode() * 20, bytes(20), None)
                for n, name, nickname in ((2, "c", "carol"), (3, "d", "dave"))
            ),
            (
                Fallback("127.0.0.1", ports["a"], bytes([0xAA]) * 20, None),
                Fallback("127.0.1.1", ports["b"], bytes([0xBB]) * 20, None),
            ),
            True,
            False,
        )
        countries = {"127.0.0.1": "de", "127.0.1.1": "fr", "127.0.2.1": "??"}
        async with open_tor(
            network=network,
            data_dir=tmp_path,
            restrictions=Constraints(exclude=frozenset(exclude)),
            country_of=countries.get,
        ) as tor:
            with pytest.raises(TorkitError) as caught:
                await tor.wait_ready()
            assert left or "all are excluded" in str(caught.value)
        nursery.cancel_scope.cancel()
    assert asked == set(left)


async def test_a_relay_that_takes_nothing_keeps_no_end_from_writing_down_what_was_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient_clock: trio.testing.MockClock
) -> None:
    async def drain(channels: Channels) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Channels, "drain", drain)
    network = Network((Authority("a", "127.0.0.1", 1, 1, bytes(20), bytes(20), None),), (), True, False)
    async with open_tor(network=network, data_dir=tmp_path, spare_circuits=1) as tor:
        tor._parts.build_times.note_built(0.5)
    assert "build_times" in (Cache(tmp_path).load_state() or {})


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
        no_exit = path[::-1]
        for call in (tor.connect("web.test", 80, path=no_exit), tor.resolve("web.test", path=no_exit)):
            with pytest.raises(NoPath, match=f"{no_exit[-1].nickname}'s exit policy allows no port"):
                await call
        assert begun.count == 0


async def test_an_exit_that_somebody_named_is_asked_for_a_port_that_few_addresses_have(
    tmp_path: Path,
) -> None:
    """Its policy's summary lists no such port. A refusal says nothing new, and costs nobody a circuit."""
    async with served_tor(tmp_path) as (tor, network):
        path = tor.choose_path(Constraints(exit="exit0"))
        shared = await tor.connect("web.test", 80, path=path)
        begun = Arrivals(lambda stream: stream.end(EndReason.EXITPOLICY))
        network.relays["exit0"].on_begin = begun
        with pytest.raises(StreamClosed, match=r"^exit0: the exit's policy does not allow") as refused:
            await tor.connect("web.test", 25, path=path)
        assert (refused.value.reason, begun.count) == (EndReason.EXITPOLICY, 1)
        network.relays["exit0"].on_begin = answer_begin
        assert (await tor.connect("web.test", 25, path=path)).path == path
        assert (await tor.connect("web.test", 80, path=path)).circuit is shared.circuit


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


async def test_a_closed_client_says_so(tmp_path: Path) -> None:
    async with serve_network() as network:
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            apart = tor.isolated()
        for call in (
            tor.wait_ready,
            tor.build_circuit,
            tor.fetch_consensus,
            tor.download_consensus,
            partial(tor.onion_descriptor, f"{'a' * 56}.onion"),
            partial(tor.connect, "web.test", 80),
            partial(tor.connect_tls, "web.test", 443),
            partial(tor.resolve, "web.test"),
            partial(apart.connect, "web.test", 80),
        ):
            with pytest.raises(UsageError, match="client of torkit is closed"):
                await call()


async def test_what_the_caller_raises_comes_out_as_it_was(tmp_path: Path) -> None:
    async with serve_network() as network:

        async def choose_in_vain() -> None:
            async with open_tor(network=network.config, data_dir=tmp_path) as tor:
                await tor.wait_ready()
                tor.choose_path(Constraints(port=25))

        with pytest.raises(NoPath):
            await choose_in_vain()


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
