"""Whom a descriptor is asked of, how often, and what is said when nobody has it."""

import random
from types import SimpleNamespace
from typing import Any

import network_docs as nd
import pytest
import trio
from hs.making import VECTORS, Service, services
from trio.testing import MockClock

from torkit._fast.keys import X25519PrivateKey
from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import split_microdescs
from torkit.errors import CircuitClosed, NotServed, OnionServiceError, OnionStep, TimedOut, TorkitError
from torkit.net.circuit.circuit import Circuit
from torkit.net.current import Current
from torkit.net.onion import descriptors as module
from torkit.net.onion.descriptors import PATIENCE, Descriptors, _Place, calendar_of
from torkit.testing.directory import RelayDoc, encode_microdescs
from torkit.testing.directory.authority import HOUR

IDENTITY = bytes.fromhex(VECTORS["cases"][0]["services"][0]["identity_public_key"])
HSDIR = "Fast Guard HSDir Running Stable V2Dir Valid"


def directory_of(count: int, protocols: str = "HSDir=2", valid_after: int = nd.NOW - HOUR // 2) -> Directory:
    docs = [
        RelayDoc(f"r{n}", bytes([n]) * 20, f"10.{n}.1.1", flags=HSDIR, protocols=protocols)
        for n in range(1, count + 1)
    ]
    microdescs = split_microdescs(encode_microdescs(docs))
    consensus = parse_consensus(nd.consensus(docs, nd.authorities(1), valid_after=valid_after))
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


async def test_one_directory_is_asked_by_itself() -> None:
    asked = Asked(NotServed("the directory answered 404"))
    descriptors = Descriptors(current_of(directory_of(20)), asked, random.Random(1))
    replicas = await descriptors.directories(IDENTITY)
    assert [len(relays) for relays in replicas] == [3, 3]
    for number, relay in enumerate(relay for relays in replicas for relay in relays):
        for _ in range(2):  # however often it was asked
            with pytest.raises(NotServed):
                await descriptors.ask(relay, IDENTITY, None)
        assert asked.relays[2 * number :] == [relay.nickname] * 2


# --- Directories that lie, or are behind -----------------------------------------------------------------


class Directories:
    """Each answers with the next of `texts`; what a directory may send is its affair."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, texts: list[bytes], kind: str = "plain") -> None:
        network, vector = services(kind)[0]
        self.service = Service(network, vector)
        self.texts = texts
        self.asked = 0
        directory = directory_of(6)
        relays = [directory.relay_at(place) for place in range(6)]

        async def find_place(descriptors: Descriptors, identity: bytes) -> _Place:
            period = calendar_of(self.current).period
            return _Place(period, self.service.blinded, [[one for one in relays if one]])

        async def fetch(circuit: object, blinded: bytes, limit: int) -> bytes:
            self.asked += 1
            return self.texts.pop(0)

        monkeypatch.setattr(Descriptors, "_find_place", find_place)
        monkeypatch.setattr(module, "fetch_onion_descriptor", fetch)
        monkeypatch.setattr(module, "subcredential", lambda identity, blinded: self.service.subcredential)
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: self.service.now))
        self.current = current_of(directory)
        self.current.testing = True  # a directory may be asked again after 5 s
        self.descriptors = Descriptors(self.current, self._build, random.Random(1))

    async def _build(self, relay: Relay) -> Any:
        return SimpleNamespace(close=lambda: None)


def made(counter: int = 7, **changes: str) -> bytes:
    service = Service(*services("plain")[0])
    key = X25519PrivateKey(b"\1" * 32).public_key
    second = "create2-formats 2\n" + service.some_point(key)
    return service.outer(service.first(second, counter), counter, **changes)


async def test_a_descriptor_older_than_one_seen_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    directories = Directories(monkeypatch, [made(9), made(8), made(9), made(8)])
    assert (await directories.descriptors.get(IDENTITY)).revision == 9
    assert (await directories.descriptors.get(IDENTITY, anew=True)).revision == 9
    assert directories.asked == 3  # the next directory was asked


async def test_a_descriptor_serves_until_a_newer_consensus_begins_another_period(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Clients go by a consensus for hours; those who asked again meanwhile would be told by the seventh time
    that there is no service, since every directory was asked."""
    directories = Directories(monkeypatch, [made(7), made(8)])
    for _ in range(7):
        assert (await directories.descriptors.get(IDENTITY)).revision == 7
        directories.service.now += 3 * HOUR
    assert directories.asked == 1
    directories.current.use(directory_of(6, valid_after=nd.NOW + 24 * HOUR))
    assert (await directories.descriptors.get(IDENTITY)).revision == 8
    assert directories.asked == 2


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"nonsense",
        made()[:-10],
        made(lifetime="descriptor-lifetime 721\n"),
        made().replace(b"revision-counter 7", b"revision-counter 8"),
        made() + b"\0",
        b"x" * 60_000,
    ],
    ids=["empty", "nonsense", "cut", "lifetime", "signature", "NUL", "large"],
)
async def test_a_descriptor_that_fails_its_checks_is_asked_for_elsewhere_and_told_where_all_do(
    monkeypatch: pytest.MonkeyPatch, wrong: bytes
) -> None:
    directories = Directories(monkeypatch, [wrong, wrong, made()])
    assert (await directories.descriptors.get(IDENTITY)).revision == 7
    directories = Directories(monkeypatch, [wrong] * 6)
    with pytest.raises(OnionServiceError) as caught:
        await directories.descriptors.get(IDENTITY)
    assert caught.value.step is OnionStep.DESCRIPTOR  # F1
    assert directories.asked == 6


@pytest.mark.parametrize(("key", "step"), [(None, OnionStep.NO_KEY), (b"w" * 32, OnionStep.WRONG_KEY)])
async def test_a_descriptor_that_does_not_open_is_not_asked_for_elsewhere(
    monkeypatch: pytest.MonkeyPatch, key: bytes | None, step: OnionStep
) -> None:
    _, vector = services("auth")[0]
    right = bytes.fromhex(vector["client_authorization"]["x25519_secret_key"])
    directories = Directories(monkeypatch, [vector["descriptor"].encode()] * 2, "auth")
    with pytest.raises(OnionServiceError) as caught:
        await directories.descriptors.get(IDENTITY, None if key is None else X25519PrivateKey(key))
    assert caught.value.step is step
    assert directories.asked == 1
    await directories.descriptors.get(IDENTITY, X25519PrivateKey(right))  # a key that comes later opens it
