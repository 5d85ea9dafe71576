"""What the relays of an onion service see of a client: those of recording.py's wide network, which play one.

Each relay gives the descriptor to whoever asks; exit0 and exit1, which are in the middle of no path, are the
introduction points; whichever relay the client chooses is the rendezvous point; the second relay pads.
"""

from functools import partial
from pathlib import Path

from network.recording import (
    ANSWER_LEN,
    CONNECT,
    REQUEST,
    Client,
    Recording,
    answer_request,
    ask,
    running,
    wait_until,
)
from served import fresh_relays
from setup_padder import RENDEZVOUS, SetupPadder

from torkit._fast.cells import RelayCommand
from torkit.testing.directory.authority import HOUR
from torkit.testing.onion import OnionNetwork, OnionService, TimePeriod
from torkit.testing.relay import FakeCircuit, FakeStream

PORT = 80
STEMS = 3  # that either client builds ahead


class Onion:
    """What was recorded of one client at one service."""

    def __init__(self, seen: Recording, service: OnionService, padder: SetupPadder) -> None:
        self.seen = seen
        self.service = service
        self.padder = padder
        self.stems: list[FakeCircuit] = []  # that were there before it was asked for a service
        self.streams: list[FakeStream] = []  # as they came to the service


async def record_onion(client: Client, directory: Path, now: int) -> Onion:
    """Run a client through two requests to an onion service. Raises trio.TooSlowError where it hangs."""
    valid_after = now - HOUR // 2
    async with running(client, directory, valid_after, 3 * HOUR, is_wide=True) as (seen, port, _):
        (far,) = fresh_relays(1)
        network = OnionNetwork(seen.relays.values())
        points = [seen.relays[name] for name in ("exit0", "exit1")]
        # The period as both clients take it on a testing network, whose consensus is fresh for an hour.
        service = OnionService(network, points, far, period=TimePeriod.at(valid_after))
        service.sendme_inc = 31
        service.publish()
        padder = SetupPadder()
        padder.stops = False  # as slowly as real ones: the acknowledgement comes first,
        padder.drops[RENDEZVOUS] = 0  # and so does the client's own padding
        onion = Onion(seen, service, padder)
        for relay in seen.relays.values():
            padder.pad_at(relay)
        far.on_begin = partial(_connect, onion)
        far.on_data = answer_request
        await wait_until(lambda: len(stems_of(seen)) >= STEMS)
        onion.stems = stems_of(seen)
        for _ in range(2):
            async with await ask(port, CONNECT, service.address, PORT) as stream:
                await stream.send_all(REQUEST)
                received = 0
                while data := await stream.receive_some():
                    received += len(data)
                assert received == ANSWER_LEN
        return onion


def stems_of(seen: Recording) -> list[FakeCircuit]:
    """Circuits of three hops that end at a relay for the middle, and not at an exit."""
    return [one for one in seen.circuits(3) if not seen.name_of(one.hops[2].relay).startswith("exit")]


def _connect(onion: Onion, stream: FakeStream) -> None:
    onion.streams.append(stream)
    stream.send(RelayCommand.CONNECTED)
