"""Whom a descriptor is asked of, how often, and what is said when nobody has it."""

import random

import network_docs as nd
import pytest
import trio
from hs.making import VECTORS
from trio.testing import MockClock

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import split_microdescs
from torkit.errors import CircuitClosed, NotServed, OnionServiceError, OnionStep, TimedOut, TorkitError
from torkit.net.circuit.circuit import Circuit
from torkit.net.current import Current
from torkit.net.onion.descriptors import PATIENCE, Descriptors

IDENTITY = bytes.fromhex(VECTORS["cases"][0]["services"][0]["identity_public_key"])
HSDIR = "Fast Guard HSDir Running Stable V2Dir Valid"


def directory_of(count: int, protocols: str = "HSDir=2") -> Directory:
    docs = [
        nd.RelayDoc(f"r{n}", bytes([n]) * 20, f"10.{n}.1.1", flags=HSDIR, protocols=protocols)
        for n in range(1, count + 1)
    ]
    microdescs = split_microdescs(nd.microdescs(docs))
    consensus = parse_consensus(nd.consensus(docs, nd.authorities(1)))
    return Directory(consensus, {digest: text for digest, text, _ in microdescs})


def current_of(directory: Directory) -> Current:
    current = Current()
    current.use(directory)
    return current


class Asked:
    """Builds no circuit, and notes to whom one was wanted."""

    def __init__(self, error: TorkitError) -> None:
        self.relays: list[str] = []
        self._error = error

    async def __call__(self, relay: Relay) -> Circuit:
        self.relays.append(relay.nickname)
        raise self._error


async def test_every_responsible_directory_is_asked_once_and_anew_at_the_next_request() -> None:
    asked = Asked(CircuitClosed("the relay closed the circuit"))
    directory = directory_of(20)
    descriptors = Descriptors(current_of(directory), asked, random.Random(1))
    for turn in (1, 2):
        with pytest.raises(CircuitClosed):
            await descriptors.get(IDENTITY)
        assert len(asked.relays) == 6 * turn  # two replicas, three directories each
    assert set(asked.relays[:6]) == set(asked.relays[6:])
    assert len(set(asked.relays)) == 6


async def test_a_descriptor_that_no_directory_has_is_said_to_be_missing() -> None:
    asked = Asked(NotServed("the directory answered 404"))
    directory = directory_of(20)
    with pytest.raises(OnionServiceError) as caught:
        await Descriptors(current_of(directory), asked, random.Random(1)).get(IDENTITY)
    assert caught.value.step is OnionStep.NOT_FOUND


@pytest.mark.parametrize("directory", [directory_of(0), directory_of(8, protocols="HSDir=1")])
async def test_relays_that_hold_no_descriptors_are_not_asked(directory: Directory) -> None:
    asked = Asked(NotServed("the directory answered 404"))
    with pytest.raises(OnionServiceError):
        await Descriptors(current_of(directory), asked, random.Random(1)).get(IDENTITY)
    assert asked.relays == []


async def test_beside_a_directory_that_is_silent_the_next_is_asked(autojump_clock: MockClock) -> None:
    asked: list[float] = []

    async def stall(relay: Relay) -> Circuit:
        asked.append(trio.current_time())
        if len(asked) == 6:
            raise NotServed("the directory answered 404")
        await trio.sleep(60)
        raise TimedOut("no answer")

    with pytest.raises(OnionServiceError) as caught:
        await Descriptors(current_of(directory_of(20)), stall, random.Random(1)).get(IDENTITY)
    assert asked == [PATIENCE * number for number in range(6)]
    assert caught.value.step is OnionStep.NOT_FOUND
