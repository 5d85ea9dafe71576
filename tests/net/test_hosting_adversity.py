"""A relay does wrong at one step of an onion service of ours: who comes afterwards is met all the same."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from onion_network import OnionNetwork, onion_relays
from trio.testing import MockClock
from waiting import until

from torkit._fast.cells import RelayCommand
from torkit.client import open_tor
from torkit.errors import TorkitError
from torkit.net.hosting.serve import OnionListener
from torkit.proto.padding import Padding
from torkit.testing.relay import FakeRelay, Fault

PLAYS_ALL = os.environ.get("TORKIT_ADVERSITY") == "all"  # `make adversity`
LIMIT = 3600.0  # seconds for all of it, with every rest that follows a failure
PATIENCE = 60.0  # seconds that a client waits at its rendezvous point

# What the service needs before clients can come, and what it does for each of them.
AHEAD: dict[str, Callable[[FakeRelay], Fault]] = {
    "hears ESTABLISH_INTRO": lambda relay: relay.receiving(RelayCommand.ESTABLISH_INTRO),
    "says INTRO_ESTABLISHED": lambda relay: relay.sending(RelayCommand.INTRO_ESTABLISHED),
    "takes a descriptor": lambda relay: relay.answering("/tor/hs/3/publish"),
}
FOR_CLIENTS: dict[str, Callable[[FakeRelay], Fault]] = {
    "says INTRODUCE2": lambda relay: relay.sending(RelayCommand.INTRODUCE2),
    "hears EXTEND2 to the rendezvous": lambda relay: relay.receiving(RelayCommand.EXTEND2),
    "hears RENDEZVOUS1": lambda relay: relay.receiving(RelayCommand.RENDEZVOUS1),
    "says BEGIN": lambda relay: relay.sending(RelayCommand.BEGIN),
}
VERBS: dict[str, Callable[[Fault], Fault]] = {
    "drop": lambda step: step.drop(),
    "delay": lambda step: step.delay(20),
    "duplicate": lambda step: step.duplicate(),
    "flood": lambda step: step.flood(300),
    "swap": lambda step: step.swap(),
    "cut": lambda step: step.cut(),
    "empty": lambda step: step.cut(0),
    "corrupt": lambda step: step.corrupt(),
    "lie": lambda step: step.lie(lambda body: b"\xff" * len(body)),
    "stall": lambda step: step.stall(),
    "close": lambda step: step.close(abrupt=True),
    "destroy": lambda step: step.destroy(),
}
ALL = [(step, verb) for step in [*AHEAD, *FOR_CLIENTS] for verb in VERBS]


@pytest.mark.parametrize(("step", "verb"), ALL if PLAYS_ALL else ALL[:: len(VERBS) + 1])
async def test_a_service_is_met_whatever_a_relay_has_done(
    tmp_path: Path, patient_clock: MockClock, step: str, verb: str
) -> None:
    async with (
        onion_relays() as network,
        open_tor(
            network=network.config, data_dir=tmp_path, padding=Padding.OFF, spare_circuits=0, conflux=False
        ) as tor,
    ):
        net = OnionNetwork(network.relays, tor)
        await tor.wait_ready()
        with trio.fail_after(LIMIT):
            fault = strike(net, AHEAD[step], VERBS[verb]) if step in AHEAD else None
            async with tor.serve_onion([80]) as service:
                await service.wait_published()
                await until(lambda: has_points(net, service), step=1, seconds=LIMIT)
                if fault is None:
                    fault = strike(net, FOR_CLIENTS[step], VERBS[verb])
                    await come(net, service)
                assert fault.count == 1
                for relay in net.relays:
                    relay.faults.clear()
                while not await come(net, service):
                    await trio.sleep(30)
        for relay in net.relays:
            relay.complaints.clear()  # of what it was made to hear


def strike(net: OnionNetwork, step: Callable[[FakeRelay], Fault], verb: Callable[[Fault], Fault]) -> Fault:
    """At whichever relay comes to the step first."""
    first, *others = net.relays
    fault = verb(step(first))
    for relay in others:
        relay.faults.append(fault)
    return fault


def has_points(net: OnionNetwork, service: OnionListener) -> bool:
    try:
        return len(net.descriptor(service.address).points) == 3
    except ValueError:
        return False  # no directory has the newest yet


async def come(net: OnionNetwork, service: OnionListener) -> bool:
    """A client asks for a stream by a point that is there; whether it got one, with what it had said."""
    descriptor = net.descriptor(service.address)
    here = [one for one in descriptor.points if not net.points[one.auth_key].circuit.closed]
    if not here:
        return False
    cookie = net.introduce(descriptor, here[0])
    with trio.move_on_after(PATIENCE):
        await until(lambda: cookie in net.client.met, step=1)
        net.client.met[cookie].begin(80, b"hello")
        stream = await service.accept()
        try:
            return bool(await stream.receive_some() == b"hello")
        except (TorkitError, trio.BrokenResourceError):
            return False
        finally:
            await stream.aclose()
    return False
