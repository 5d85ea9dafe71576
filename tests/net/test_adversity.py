"""A client whose relays do wrong at one step of a journey: what has to hold is in support/adversity.py.

TORKIT_ADVERSITY=all plays every verb at every step (`make adversity`); else each has its turn once.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from adversity import Step, under_attack
from trio.testing import MockClock

from torkit._fast.cells import Command, RelayCommand
from torkit.testing.relay import Fault

PLAYS_ALL = os.environ.get("TORKIT_ADVERSITY") == "all"

VERBS: dict[str, Callable[[Fault], Fault]] = {
    "drop": lambda step: step.drop(),
    "delay": lambda step: step.delay(5),
    "delay for long": lambda step: step.delay(100),
    "duplicate": lambda step: step.duplicate(),
    "flood": lambda step: step.flood(200),
    "swap": lambda step: step.swap(),
    "cut": lambda step: step.cut(),
    "empty": lambda step: step.cut(0),
    "corrupt": lambda step: step.corrupt(),
    "lie": lambda step: step.lie(lambda body: os.urandom(len(body))),
    "grow": lambda step: step.lie(lambda body: body + bytes(400)),
    "stall": lambda step: step.stall(),
    "close": lambda step: step.close(),
    "cut off": lambda step: step.close(abrupt=True),
}
# What ends in more than the circuit that it happens on.
ENDS_LINKS = {"close", "cut off"}


class Case(NamedTuple):
    role: str
    is_sent: bool
    step: Step | None
    nth: int = 1
    byte: int | None = None

    def __str__(self) -> str:
        what = f"byte {self.byte}" if self.step is None else self.step.name
        return f"{self.role or 'middle'} {'sends' if self.is_sent else 'hears'} {what}, {self.nth}"

    @property
    def is_of_a_link(self) -> bool:
        """Whether others share it: cells of no circuit, and bytes."""
        link = (Command.VERSIONS, Command.CERTS, Command.AUTH_CHALLENGE, Command.NETINFO)
        return self.step is None or (self.step in link and isinstance(self.step, Command))


LINK = [
    *(Case("guard", True, step) for step in (Command.VERSIONS, Command.CERTS, Command.AUTH_CHALLENGE)),
    Case("guard", True, Command.NETINFO),
    Case("guard", False, Command.VERSIONS),
    Case("guard", False, Command.NETINFO),
    *(Case("guard", True, None, byte=byte) for byte in (3, 11, 600, 2500)),
]
BUILDING = [
    Case("guard", False, Command.CREATE2),
    Case("guard", True, Command.CREATED2),
    Case("guard", False, RelayCommand.EXTEND2),
    Case("guard", True, RelayCommand.EXTENDED2),
    Case("", False, RelayCommand.EXTEND2, nth=2),
    Case("", True, RelayCommand.EXTENDED2, nth=2),
]
STREAMS = [
    Case("exit", False, RelayCommand.BEGIN),
    Case("exit", True, RelayCommand.CONNECTED),
    Case("exit", False, RelayCommand.DATA, nth=3),
    Case("exit", True, RelayCommand.DATA, nth=3),
    Case("exit", False, RelayCommand.SENDME),
    Case("exit", True, RelayCommand.SENDME),  # a stream's, and its circuit's
    Case("exit", True, RelayCommand.SENDME, nth=2),
    Case("exit", True, RelayCommand.END),
    Case("exit", False, RelayCommand.RESOLVE),
    Case("exit", True, RelayCommand.RESOLVED),
    Case("guard", False, Command.RELAY, nth=40),
    Case("guard", True, Command.RELAY, nth=40),
]
CASES = [*LINK, *BUILDING, *STREAMS]


def verbs_at(case: Case) -> list[str]:
    """All, or so few that over all steps each verb has its turn."""
    names = list(VERBS)
    if PLAYS_ALL:
        return names
    at = CASES.index(case)
    return [names[at % len(names)]]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_journey_ends_in_its_right_bytes_or_a_clear_error(
    tmp_path: Path, patient_clock: MockClock, case: Case
) -> None:
    async with under_attack(tmp_path) as world:
        for verb in verbs_at(case):
            if case in LINK:
                world.forget_bystander()
                world.cut_links()
            else:
                await world.greet_bystander()
            fault = world.at(case.role, is_sent=case.is_sent, step=case.step, nth=case.nth, byte=case.byte)
            VERBS[verb](fault)
            is_lying = case.role == "exit" and isinstance(case.step, RelayCommand)
            spares_others = not case.is_of_a_link and verb not in ENDS_LINKS
            outcome = await world.suffer(is_lying=is_lying, spares_others=spares_others)
            print(f"{case}, {verb}: struck {fault.count} times, {outcome}")
            assert fault.count == 1
