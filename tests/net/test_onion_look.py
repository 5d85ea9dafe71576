"""An onion service, looked at: what each directory says, and one meeting. Over scripted relays."""

from pathlib import Path
from typing import Any

import pytest
import trio
from net.test_onion_services import ADDRESS, Client, a_client
from onion_home import SERVICE
from served import relay_of
from trio.testing import MockClock

from torkit._fast.keys import X25519PrivateKey
from torkit.directory.directory import Relay
from torkit.errors import NotServed, OnionServiceError, OnionStep
from torkit.hs.address import parse_address
from torkit.hs.client_auth import ClientKey
from torkit.hs.descriptor import Descriptor
from torkit.net.onion.look import MAX_AT_ONCE, Answer, Look

IDENTITY = parse_address(ADDRESS)


class Directories:
    """As much of Descriptors as a look asks: five relays, of which the first has nothing."""

    def __init__(self, client: Client) -> None:
        self.relays = [relay_of(client.home.fakes[SERVICE])._replace(nickname=f"r{n}") for n in range(5)]
        self.descriptor = client.home.descriptor()
        self.keys: list[X25519PrivateKey | None] = []
        self.at_once = self.most_at_once = 0
        self.get = client.home.get
        self.note_met = client.home.note_met

    async def directories(self, identity: bytes) -> list[list[Relay]]:
        assert identity == IDENTITY
        return [self.relays[:3], self.relays[3:]]

    async def ask(self, relay: Relay, identity: bytes, key: X25519PrivateKey | None) -> Descriptor:
        self.keys.append(key)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await trio.sleep(1)
        self.at_once -= 1
        if relay is self.relays[0]:
            raise NotServed("the directory answered 404")
        return self.descriptor


def looking(client: Client) -> tuple[Look, Directories]:
    directories = Directories(client)
    stub: Any = directories
    client.services._descriptors = stub
    return Look(client.services, ADDRESS, None), directories


async def test_each_directory_of_each_replica_is_asked(tmp_path: Path, patient_clock: MockClock) -> None:
    async with a_client(tmp_path) as client:
        look, directories = looking(client)
        client.services.keys.add(ClientKey(IDENTITY, b"k" * 32))
        told: list[Answer] = []
        answers = await look.ask_directories(told.append)
        assert told == answers
        assert sorted((one.relay.nickname, one.replica) for one in answers) == [
            *(("r0", 1), ("r1", 1), ("r2", 1), ("r3", 2), ("r4", 2)),
        ]
        [missing] = [one for one in answers if one.descriptor is None]
        assert missing.relay.nickname == "r0"
        assert isinstance(missing.failure, NotServed)
        assert all(1 <= one.seconds < 2 for one in answers)  # on a clock that stands still but for sleeps
        assert directories.most_at_once == MAX_AT_ONCE
        assert None not in directories.keys


async def test_a_meeting_is_one_of_its_own_and_leaves_no_circuit(tmp_path: Path) -> None:
    async with a_client(tmp_path) as client:
        look, _ = looking(client)
        for count in (1, 2):
            meeting = await look.meet()
            assert meeting.seconds > 0
            assert meeting.worked == 0
            assert len(client.home.service.introductions) == count
        assert all(entry.circuit.error is not None for entry in client.services._joined.values())


async def test_a_service_that_does_not_come_is_told(tmp_path: Path, patient_clock: MockClock) -> None:
    async with a_client(tmp_path) as client:
        look, _ = looking(client)
        client.home.service.on_introduce = lambda introduction: introduction.acknowledge(1)
        with pytest.raises(OnionServiceError) as caught:
            await look.meet()
        assert caught.value.step is OnionStep.INTRODUCTION
