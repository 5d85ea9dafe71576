"""What is logged of circuits, connections and directory servers: who, what for, and how it went."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from served import ServedNetwork, fresh_relays, relay_of, serve, serve_network
from waiting import until

from torkit.client import Tor, open_tor
from torkit.errors import CircuitClosed, TimedOut, TorkitError
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.build import build_circuit
from torkit.net.circuits.purpose import LOOK_UP, ExitTo, Introduction, OnionDirectory, Rendezvous
from torkit.net.circuits.purpose import Path as Relays
from torkit.net.circuits.words import names_of
from torkit.net.link.channels import Channels
from torkit.proto.padding import Padding
from torkit.testing.relay import FakeCircuit, RelayCell, ignore

NAMES = ("one", "two", "three")

BUILT = re.compile(r"circuit (\d+) for streams was built in \d+\.\d\d s: guard\d, \w+, exit\d")


@asynccontextmanager
async def client(data_dir: Path) -> AsyncIterator[tuple[Tor, ServedNetwork, Relays]]:
    """A client that builds nothing by itself, its network, and the relays of a circuit that was built."""
    async with (
        serve_network(exits=1) as network,
        open_tor(network=network.config, data_dir=data_dir, spare_circuits=0, padding=Padding.OFF) as tor,
    ):
        await tor.wait_ready()
        yield tor, network, (await tor.build_circuit()).path


def lines(caplog: pytest.LogCaptureFixture, level: int, what: str) -> list[str]:
    return [r.message for r in caplog.records if r.levelno == level and what in r.message]


def break_extends(network: ServedNetwork, name: str) -> None:
    """Have a relay close every circuit that is to go on from it."""

    def destroy(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        circuit.destroy()

    network.relays[name].on_extend2 = destroy


async def test_each_circuit_is_a_line_when_it_is_built_and_one_when_it_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with client(tmp_path) as (tor, _, _):
        (await tor.build_circuit()).close()
    said = lines(caplog, logging.INFO, "was built")
    numbers = [match[1] for line in said if (match := BUILT.fullmatch(line))]
    assert len(set(numbers)) == len(said) == 2
    assert lines(caplog, logging.INFO, "was closed") == [
        f"circuit {numbers[1]} was closed: nobody needs it any more",
        f"circuit {numbers[0]} was closed: the client ends",
    ]


async def test_a_circuit_that_a_relay_ends_is_a_line_with_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with client(tmp_path) as (tor, network, _):
        circuit = await tor.build_circuit()
        for one in network.relays["exit0"].circuits:
            one.destroy()
        await until(lambda: circuit.error is not None)
    assert f"circuit {circuit.id} failed: a relay closed the circuit: " in caplog.text


async def test_a_circuit_that_cannot_be_built_is_a_line_with_the_relay_and_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with client(tmp_path) as (tor, network, path):
        break_extends(network, path[1].nickname)
        with pytest.raises(CircuitClosed, match="exit0: a relay closed the circuit"):
            await tor.build_circuit(path)
    [line] = lines(caplog, logging.INFO, "failed")
    assert re.match(r"a circuit for streams failed after \d+\.\d\d s: exit0: a relay closed", line)


@pytest.mark.parametrize("silent", [0, 1], ids=["guard", "middle"])
async def test_a_relay_that_does_not_answer_is_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    patient_clock: trio.testing.MockClock,
    silent: int,
) -> None:
    """The one that was to be added when nothing came any more."""
    caplog.set_level(logging.INFO)
    async with client(tmp_path) as (tor, network, path):
        network.relays[path[silent].nickname].on_extend2 = ignore
        named = path[silent + 1].nickname
        with pytest.raises(TimedOut, match=f"{named}: a circuit was not built in time"):
            await tor.build_circuit(path)
    [line] = lines(caplog, logging.INFO, "failed")
    assert f" s: {named}: a circuit was not built in time" in line


async def test_a_guard_that_cannot_be_connected_to_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with client(tmp_path) as (tor, _, path):
        elsewhere = path[0]._replace(identity=bytes(20), ed25519_identity=bytes(32), or_port=1)
        with pytest.raises(TorkitError, match=f"{elsewhere.nickname}: "):
            await tor.build_circuit((elsewhere, *path[1:]))
    [line] = lines(caplog, logging.INFO, "failed")
    assert f" s: {elsewhere.nickname}: could not connect" in line


def test_the_last_relay_of_an_onion_circuit_is_not_named() -> None:
    """A service has chosen it: who reads it in a log, and asks which service it is, has an answer."""
    relays = tuple(relay_of(fake, nickname=name) for fake, name in zip(fresh_relays(3), NAMES, strict=True))
    for purpose in (OnionDirectory(relays[2]), Introduction(relays[2]), Rendezvous()):
        assert names_of(relays, purpose) == ["one", "two", "the last relay"]
    for shared in (LOOK_UP, ExitTo(443)):
        assert names_of(relays, shared) == [*NAMES]


async def test_an_onion_circuit_that_fails_does_not_name_its_last_relay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    fakes = fresh_relays(3)
    path = tuple(
        relay_of(fake, nickname=name) for fake, name in zip(fakes, ("one", "two", "three"), strict=True)
    )
    fakes[1].on_extend2 = lambda circuit, number, cell: circuit.destroy()
    async with serve(fakes[0]), trio.open_nursery() as nursery:
        path = tuple(relay_of(fake, nickname=name) for fake, name in zip(fakes, NAMES, strict=True))
        channels = Channels(nursery, Random(1))
        with pytest.raises(CircuitClosed, match=r"^the last relay: "):
            await build_circuit(channels, path, CircuitSettings(), Random(1), purpose=Introduction(path[2]))
        nursery.cancel_scope.cancel()
    assert "a circuit for an introduction failed" in caplog.text
    assert "three" not in caplog.text


async def test_connections_and_directory_servers_are_lines_in_detail_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with client(tmp_path) as (_, network, _):
        fallback = network.relays["middle"].rsa_identity.hex().upper()  # which has no nickname
    assert f"connected to {fallback}, link protocol 5" in caplog.text
    assert re.search(rf"{fallback} has sent \d+ of \d+ documents", caplog.text)
    assert lines(caplog, logging.INFO, "connect") == []
    for relay in network.relays.values():
        assert f"{relay.address[0]}" not in caplog.text
        assert f"{relay.address[1]}" not in caplog.text
