"""What the relays of an onion service see of a client: those of recording.py's wide network, which play one.

Each relay gives the descriptor to whoever asks; exit0 and exit1, which are in the middle of no path, are the
introduction points; whichever relay the client chooses is the rendezvous point; the second relay pads.
"""

import os
import time
from functools import partial
from pathlib import Path
from random import Random

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
from onion_service import OnionService
from served import fresh_relays
from setup_padder import RENDEZVOUS, SetupPadder

from torkit._fast.cells import RelayCommand
from torkit.hs.address import encode_address
from torkit.hs.calendar import RUN_INTERVALS, Calendar
from torkit.hs.keys import SecretKey, subcredential
from torkit.hs.publication import Publication, encode_descriptor
from torkit.testing.directory.authority import HOUR
from torkit.testing.relay import FakeCircuit, FakeRelay, FakeStream, http_response

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
        service = OnionService([seen.relays[name] for name in ("exit0", "exit1")], far)
        service.sendme_inc = 31
        padder = SetupPadder()
        padder.stops = False  # as slowly as real ones: the acknowledgement comes first,
        padder.drops[RENDEZVOUS] = 0  # and so does the client's own padding
        onion = Onion(seen, service, padder)
        address = _publish(onion, valid_after)
        for name, relay in seen.relays.items():
            if not name.startswith("exit"):
                service.stand_at(relay)
            padder.pad_at(relay)
        far.on_begin = partial(_connect, onion)
        far.on_data = answer_request
        await wait_until(lambda: len(stems_of(seen)) >= STEMS)
        onion.stems = stems_of(seen)
        for _ in range(2):
            async with await ask(port, CONNECT, address, PORT) as stream:
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


def _publish(onion: Onion, valid_after: int) -> str:
    """Have every relay give the descriptor. Returns the service's address."""
    identity = SecretKey.from_seed(os.urandom(32))
    # As both clients take it on a testing network, whose consensus is fresh for an hour.
    period = Calendar(valid_after, HOUR, RUN_INTERVALS * HOUR // 60).period
    blinded = identity.blinded(period)
    onion.service.subcredential = subcredential(identity.public, blinded.public)
    points = [onion.service.point(number) for number in range(2)]
    descriptor = encode_descriptor(
        Publication(points, onion.service.sendme_inc),
        blinded=blinded,
        subcredential=onion.service.subcredential,
        signing=SecretKey.from_seed(os.urandom(32)),
        revision=1,
        now=time.time(),
        randomness=os.urandom,
        rng=Random(1),
    )
    for relay in onion.seen.relays.values():
        _serve(relay, descriptor)
    return encode_address(identity.public)


def _serve(relay: FakeRelay, descriptor: bytes) -> None:
    other = relay.directory
    assert other is not None

    def answer(request: bytes) -> bytes:
        return http_response(descriptor) if request.startswith(b"GET /tor/hs/3/") else other(request)

    relay.directory = answer
