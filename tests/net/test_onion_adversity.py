"""A rendezvous or introduction point, or the service behind it, does wrong at one step of a meeting.

The meeting comes to a circuit or to an OnionServiceError in the time that a stream has, leaves no circuit
behind, and the next one succeeds.
"""

import os
from collections.abc import Callable, Sequence

import pytest
import trio
from onion_home import GUARD, POINTS, RENDEZVOUS, SERVICE, Home
from served import fresh_relays, serve_channel
from trio.testing import MockClock
from waiting import until

from torkit._fast.cells import RelayCommand
from torkit.errors import CircuitClosed, CircuitError, OnionServiceError, StreamClosed
from torkit.hs.introduction import Points
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.request import STREAM_TIMEOUT
from torkit.testing.relay import Fault

PLAYS_ALL = os.environ.get("TORKIT_ADVERSITY") == "all"  # `make adversity`

VERBS: dict[str, Callable[[Fault], Fault]] = {
    "drop": lambda step: step.drop(),
    "delay": lambda step: step.delay(4),
    "delay for long": lambda step: step.delay(100),
    "duplicate": lambda step: step.duplicate(),
    "flood": lambda step: step.flood(300),
    "cut": lambda step: step.cut(),
    "empty": lambda step: step.cut(0),
    "corrupt": lambda step: step.corrupt(),
    "lie": lambda step: step.lie(lambda body: b"\xff" * len(body)),
    "grow": lambda step: step.lie(lambda body: body + bytes(200)),
    "stall": lambda step: step.stall(),
    "swap": lambda step: step.swap(),
    "destroy": lambda step: step.destroy(),
}
STEPS = [
    ([RENDEZVOUS], RelayCommand.RENDEZVOUS_ESTABLISHED),
    (POINTS, RelayCommand.INTRODUCE_ACK),
    ([RENDEZVOUS], RelayCommand.RENDEZVOUS2),
    ([SERVICE], RelayCommand.CONNECTED),
]


ALL = [(numbers, step, verb) for numbers, step in STEPS for verb in VERBS]


@pytest.mark.parametrize(
    ("numbers", "step", "verb"),
    ALL if PLAYS_ALL else ALL[:: len(STEPS) + 1],
    ids=lambda one: getattr(one, "name", one if isinstance(one, str) else ""),
)
async def test_a_meeting_ends_in_a_circuit_or_an_error_and_leaves_nothing(
    patient_clock: MockClock, numbers: Sequence[int], step: RelayCommand, verb: str
) -> None:
    fakes = fresh_relays(8)
    fakes[SERVICE].on_begin = lambda stream: stream.send(RelayCommand.CONNECTED)
    async with serve_channel(fakes[GUARD]) as channel:
        home = Home(channel, fakes)
        struck = [VERBS[verb](fakes[number].sending(step)) for number in numbers]
        joined = await meet(home)
        assert sum(fault.count for fault in struck) >= 1
        if joined is not None:
            joined.close()
        for fake in fakes:
            fake.faults.clear()
        await until(lambda: not home.open_circuits, step=1)
        home.points = Points()
        again = await meet(home)
        assert again is not None
        assert again.error is None
        again.close()
        await until(lambda: not home.open_circuits, step=1)
        assert channel.error is None
    assert [fake.complaints for fake in fakes] == [[]] * 8


async def meet(home: Home) -> Circuit | None:
    """A stream to the service, if it could be met."""
    try:
        with trio.fail_after(2 * STREAM_TIMEOUT):
            circuit = await home.meet()
    except OnionServiceError:
        return None
    try:
        stream = circuit.begin_service(80)
        with trio.move_on_after(STREAM_TIMEOUT):
            await stream.wait_connected()
        stream.close()
    except (StreamClosed, CircuitClosed, CircuitError):
        pass  # the service, or whoever plays it, has broken a rule
    return circuit
