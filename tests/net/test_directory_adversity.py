"""A directory server does wrong at one step of a client's first start: it starts, or says what it lacks."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from served import serve_network
from trio.testing import MockClock

from torkit._fast.cells import Command, RelayCommand
from torkit.client import open_tor
from torkit.errors import NotPossible
from torkit.proto.padding import Padding
from torkit.testing.relay import FakeRelay, Fault

PLAYS_ALL = os.environ.get("TORKIT_ADVERSITY") == "all"  # `make adversity`
START = 3600.0  # seconds for a start, with every rest that follows a failure

STEPS: dict[str, Callable[[FakeRelay], Fault]] = {
    "hears CREATE_FAST": lambda relay: relay.receiving(Command.CREATE_FAST),
    "says CREATED_FAST": lambda relay: relay.sending(Command.CREATED_FAST),
    "hears BEGIN_DIR": lambda relay: relay.receiving(RelayCommand.BEGIN_DIR),
    "says CONNECTED": lambda relay: relay.sending(RelayCommand.CONNECTED),
    "hears the request": lambda relay: relay.receiving(RelayCommand.DATA),
    "begins its answer": lambda relay: relay.sending(RelayCommand.DATA),
    "goes on with it": lambda relay: relay.sending(RelayCommand.DATA, nth=4),
    "says END": lambda relay: relay.sending(RelayCommand.END),
    "answers for certificates": lambda relay: relay.answering("/tor/keys/"),
}
VERBS: dict[str, Callable[[Fault], Fault]] = {
    "drop": lambda step: step.drop(),
    "delay": lambda step: step.delay(20),
    "duplicate": lambda step: step.duplicate(),
    "swap": lambda step: step.swap(),
    "cut": lambda step: step.cut(),
    "empty": lambda step: step.cut(0),
    "corrupt": lambda step: step.corrupt(),
    "stall": lambda step: step.stall(),
    "close": lambda step: step.close(abrupt=True),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_first_start_gets_its_directory_or_says_what_it_lacks(
    tmp_path: Path, patient_clock: MockClock, step: str
) -> None:
    async with serve_network(guards=1, exits=1) as network:
        for verb in VERBS if PLAYS_ALL else [list(VERBS)[list(STEPS).index(step)]]:
            fault = VERBS[verb](STEPS[step](network.relays["middle"]))
            async with open_tor(
                network=network.config, data_dir=tmp_path / verb, padding=Padding.OFF, spare_circuits=0
            ) as tor:
                with trio.fail_after(START):
                    while True:
                        try:
                            await tor.wait_ready()
                            break
                        except NotPossible:  # which says what; a program asks again
                            await trio.sleep(60)
                assert fault.count == 1
                assert len(tor.directory) == 3
            network.relays["middle"].faults.clear()
