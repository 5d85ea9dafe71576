"""A whole client on scripted relays, one of which does wrong at one step of a journey. No tests here.

    async with under_attack(tmp_path) as world:
        world.at("exit", is_sent=True, step=RelayCommand.CONNECTED).drop()      at whichever exit comes to it
        await world.suffer()                                                    a journey, and what must hold

A journey is what a program does: a stream, bytes both ways until the far end ends it, a name looked up. It
ends in its right bytes or in an error of torkit's, in a time that torkit sets; where the far end of an open
stream falls silent the program waits as long as it likes, here a minute. Then nothing is left of it, whoever
shared nothing with it goes on as before, and the same journey succeeds.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from served import ServedNetwork, serve_network
from waiting import until

from torkit._fast.cells import Command, RelayCommand
from torkit.client import Tor, open_tor
from torkit.errors import InternalError, TorkitError, UsageError
from torkit.net.circuit.stream import Stream
from torkit.proto.padding import Padding
from torkit.testing.relay import FakeCircuit, FakeStream, Fault

Step = Command | RelayCommand

SET_UP_LIMIT = 240.0  # seconds: twice what torkit tries for a stream, or for a look-up
PATIENCE = 60.0  # seconds that a program waits for bytes
RECOVERY = 3600.0  # seconds until guards that were found dead have been tried again

# Enough for SENDMEs of circuits and streams, both ways.
UPLOAD = bytes(range(256)) * 250
DOWNLOAD = bytes(reversed(range(256))) * 250
JOURNEY, BYSTANDER = 80, 443  # ports


@dataclass
class Outcome:
    """What came of a journey: the bytes, and the error where it had one."""

    received: bytes = b""
    is_whole: bool = False  # the far end has ended the stream in good order
    is_silent: bool = False  # the program has lost patience
    errors: list[TorkitError] = field(default_factory=list)

    def __str__(self) -> str:
        end = "whole" if self.is_whole else "silent" if self.is_silent else "broken"
        return f"{len(self.received)} bytes, {end}, {self.errors or 'no error'}"


class World:
    """The client, the network, and a bystander: a stream on a circuit of its own."""

    def __init__(self, tor: Tor, network: ServedNetwork) -> None:
        self.tor = tor
        self.network = network
        self.sealed: dict[tuple[FakeCircuit, int], bytes] = {}  # DATA of exits, by stream
        self.carried: list[FakeStream] = []  # the far ends of journeys
        self._bystander: Stream | None = None
        for relay in network.relays.values():
            relay.hosts = {"name.test": ["192.0.2.1"]}
            relay.on_data = self._hear
            relay.on_sent = self._note_sent

    def at(
        self, role: str, *, is_sent: bool, step: Step | None, nth: int = 1, byte: int | None = None
    ) -> Fault:
        """A step of `guard`, `exit` or any relay (""): of whichever comes to it first, then of no other."""
        first, *others = (relay for name, relay in self.network.relays.items() if name.startswith(role))
        fault = (first.sending if is_sent else first.receiving)(step, nth=nth, byte=byte)
        for relay in others:
            relay.faults.append(fault)
        return fault

    def cut_links(self) -> None:
        """End every connection, so that the next step is a link's."""
        for relay in self.network.relays.values():
            for link in relay.links:
                link.close(abrupt=True)
            relay.links.clear()

    def _hear(self, stream: FakeStream, data: bytes) -> None:
        if stream.target is not None and stream.target[1] == BYSTANDER:
            stream.write(data)
        elif len(stream.received) >= len(UPLOAD) and stream not in self.carried:
            self.carried.append(stream)
            stream.write(DOWNLOAD)
            stream.finish()

    def _note_sent(self, circuit: FakeCircuit, hop: int, command: int, stream_id: int, body: bytes) -> None:
        if command == RelayCommand.DATA:
            key = (circuit, stream_id)
            self.sealed[key] = self.sealed.get(key, b"") + body

    # --- one journey ------------------------------------------------------------------------------

    async def travel(self) -> Outcome:
        outcome = Outcome()
        isolation = object()
        with _told_to(outcome):
            with trio.fail_after(SET_UP_LIMIT):
                stream = await self.tor.connect("web.test", JOURNEY, isolation=isolation)
            async with stream:
                with trio.move_on_after(PATIENCE) as patience:
                    await self._exchange(stream, outcome)
                outcome.is_silent = patience.cancelled_caught
        with _told_to(outcome), trio.fail_after(SET_UP_LIMIT):
            await self.tor.resolve("name.test", isolation=isolation)
        return outcome

    async def _exchange(self, stream: Stream, outcome: Outcome) -> None:
        await stream.send_all(UPLOAD)
        while data := await stream.receive_some():
            outcome.received += data
        outcome.is_whole = True

    async def suffer(self, *, is_lying: bool = False, spares_others: bool = True) -> Outcome:
        """A journey with what was put in its way, and all that has to hold then.

        is_lying: an exit makes up what it sends or hears, which nobody in Tor can tell.
        spares_others: what is not on the same circuit goes on.
        """
        self.sealed.clear()
        self.carried.clear()
        outcome = await self.travel()
        for relay in self.network.relays.values():
            relay.faults.clear()
        assert not any(isinstance(error, InternalError | UsageError) for error in outcome.errors)
        self._check_bytes(outcome, is_lying=is_lying)
        if not spares_others:
            self.forget_bystander()
        await self.greet_bystander()
        await until(lambda: self.tor.status().streams == 1, step=1)
        await self.recover()
        return outcome

    def _check_bytes(self, outcome: Outcome, *, is_lying: bool) -> None:
        """What a program got is the beginning of what one exit has sent it, whole where it seems whole."""
        sent = [data for data in self.sealed.values() if data.startswith(outcome.received)]
        assert sent or not outcome.received
        if outcome.is_whole:
            assert outcome.received in sent
        if not is_lying:
            assert DOWNLOAD.startswith(outcome.received)
            assert not outcome.is_whole or outcome.received == DOWNLOAD
            assert all(bytes(stream.received) == UPLOAD for stream in self.carried)

    # --- what is left -----------------------------------------------------------------------------

    async def greet_bystander(self) -> None:
        """It is there, and answers. A new one takes the place of one that was forgotten."""
        if self._bystander is None:
            with trio.fail_after(RECOVERY):
                self._bystander = await self._reach("bystander.test", BYSTANDER)
        with trio.fail_after(PATIENCE):
            await self._bystander.send_all(b"still here?")
            assert await self._bystander.receive_some() == b"still here?"

    def forget_bystander(self) -> None:
        if self._bystander is not None:
            self._bystander.close()
            self._bystander = None

    async def recover(self) -> None:
        """The same journey succeeds, once guards that were found dead have been tried again."""
        with trio.fail_after(RECOVERY):
            while not (outcome := await self.travel()).is_whole or outcome.errors:
                await trio.sleep(30)
        assert outcome.received == DOWNLOAD

    async def _reach(self, host: str, port: int) -> Stream:
        while True:
            try:
                return await self.tor.connect(host, port, isolation=object())
            except TorkitError:
                await trio.sleep(30)


@contextmanager
def _told_to(outcome: Outcome) -> Iterator[None]:
    """An error of torkit's is a part of the outcome; every other is a failure of the test."""
    try:
        yield
    except TorkitError as error:
        outcome.errors.append(error)


@asynccontextmanager
async def under_attack(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        serve_network(guards=2, exits=2) as network,
        open_tor(
            network=network.config, data_dir=tmp_path, padding=Padding.OFF, spare_circuits=0, conflux=False
        ) as tor,
    ):
        await tor.wait_ready()
        yield World(tor, network)
