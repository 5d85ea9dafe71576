"""The start's progress as people and programs see it on stderr."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from torkit.cli import progress as shown
from torkit.errors import Unreachable
from torkit.net.progress import Phase, Progress

ROOT = Path(__file__).parents[2]
LOADING = Progress(Phase.LOADING_DESCRIPTORS, 62, (500, 1000))
BLOCKED = Progress(Phase.CONN, 5, None, Unreachable("nobody answers", hint="go online"))
DONE = Progress(Phase.DONE, 100)


class StartingTor:
    """Goes through `changes` at these seconds."""

    def __init__(self, changes: dict[float, Progress]) -> None:
        self._changes = changes

    async def progress_changes(self) -> AsyncIterator[Progress]:
        for (at, change), overtaken_at in zip(self._changes.items(), [*self._changes, inf][1:], strict=True):
            if overtaken_at > trio.current_time():
                await trio.sleep_until(at)
                yield change


async def stderr_of(
    capsys: pytest.CaptureFixture[str], changes: dict[float, Progress], **style: bool
) -> list[str]:
    tor: Any = StartingTor({trio.current_time() + at: change for at, change in changes.items()})
    await shown.show(tor, **{"is_service": False, "as_json": False, **style})
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


async def test_a_command_that_works_says_nothing_in_a_script(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    assert await stderr_of(capsys, {0: Progress(), 1: BLOCKED, 2: LOADING, 3: DONE}) == []


async def test_a_command_that_makes_a_script_wait_says_why(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    assert await stderr_of(capsys, {0: BLOCKED, 8: BLOCKED, 9: LOADING, 10: DONE}) == [
        "torkit: 5% (conn) connecting to a directory server; nobody answers; go online",
        "torkit: 62% (loading_descriptors) fetching microdescriptors: 500 of 1000",
    ]


async def test_what_stays_true_is_said_again_ever_more_rarely(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    first, *again = await stderr_of(capsys, {0: BLOCKED, 70: LOADING, 83: DONE})
    what = "5% (conn) connecting to a directory server; nobody answers; go online"
    assert first == f"torkit: {what}"
    assert again == [
        *(f"torkit: waiting for {seconds} s: {what}" for seconds in (15, 25, 35, 47, 63)),
        "torkit: 62% (loading_descriptors) fetching microdescriptors: 500 of 1000",
    ]
    an_hour = await stderr_of(capsys, {0: BLOCKED, 3600: DONE}, is_service=True)
    assert len(an_hour) < 30


async def test_a_start_without_a_failure_says_that_it_waits_too(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    lines = await stderr_of(capsys, {0: Progress(Phase.HANDSHAKE, 14), 16: DONE})
    assert lines == [
        "torkit: 14% (handshake) shaking hands with a directory server",
        "torkit: waiting for 15 s: 14% (handshake) shaking hands with a directory server",
    ]


async def test_a_service_says_so_early(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    assert await stderr_of(capsys, {0: Progress(), 0.2: DONE}, is_service=True) == []
    [line] = await stderr_of(capsys, {0: Progress(), 0.3: LOADING, 1: DONE}, is_service=True)
    assert line.startswith("torkit: 62% ")


async def test_who_stops_it_before_it_begins_sees_nothing(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    """As a program that is started on the terminal within half a second."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: stderr_of(capsys, {0: BLOCKED, 60: DONE}, is_service=True))
        await trio.sleep(0.1)
        shown.stop()
    assert trio.current_time() < 1
    assert capsys.readouterr().err == ""


async def test_programs_get_every_change_as_json(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    lines = await stderr_of(capsys, {0: Progress(), 0.1: BLOCKED, 0.2: LOADING, 0.3: DONE}, as_json=True)
    start, blocked, loading, done = map(json.loads, lines)
    assert start == {
        "progress": 0,
        "tag": "starting",
        "summary": "starting",
        "microdescs": None,
        "blockage": None,
    }
    assert blocked["blockage"] == {
        "kind": "unreachable",
        "message": "nobody answers",
        "hint": "go online",
        "retry": "later",
    }
    assert loading["microdescs"] == {"held": 500, "listed": 1000}
    assert (done["progress"], done["tag"]) == (100, "done")


@pytest.mark.parametrize("columns", [10, 40, 80, 300])
@pytest.mark.parametrize("progress", [Progress(), BLOCKED, LOADING, DONE])
def test_bar_fits_its_line(progress: Progress, columns: int) -> None:
    bar = shown.to_bar(progress, 3600.0, columns)
    assert len(bar) < columns
    assert "\n" not in bar


def test_bar_grows_and_tells_what_is_waited_for_and_how_long() -> None:
    assert shown.to_bar(LOADING, 1.4, 80) == (
        "torkit: [######----]  62%  1 s  fetching microdescriptors: 500 of 1000"
    )
    assert shown.to_bar(BLOCKED, 12.0, 80) == "torkit: [----------]   5%  12 s  nobody answers"
    assert shown.to_bar(DONE, 0.0, 80).count("#") == shown.BAR_LEN


def test_bar_makes_room_for_its_message() -> None:
    message = "could not connect to the relay: Connection refused"
    refused = Progress(Phase.CONN, 5, None, Unreachable(message))
    assert shown.to_bar(refused, 12.0, 80) == f"torkit:   5%  12 s  {message}"
    assert shown.to_bar(refused, 12.0, 120).endswith(f"]   5%  12 s  {message}")
    assert shown.to_bar(refused, 12.0, 40) == "torkit:   5%  12 s  could not connect t"


# --- On a terminal ---------------------------------------------------------------------------------------

# A session of its own, whose terminal is stderr; then perhaps a job of it in the background.
ON_A_TERMINAL = """
import fcntl, os, sys, termios
sys.path[:0] = {path!r}
os.setsid()
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
if {in_background}:
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.setpgid(0, 0)
import trio, trio.testing
from torkit.cli import progress, voice
from torkit.net.progress import Phase, Progress

class Tor:
    async def progress_changes(self):
        yield Progress(Phase.CONN, 5)
        await trio.sleep(1.5)
        voice.say("something else")
        yield Progress(Phase.CIRCUIT_CREATE, 95)
        await trio.sleep(1.2)
        yield Progress(Phase.DONE, 100)

async def main():
    await progress.show(Tor(), is_service=False, as_json=False)
    print("data")

trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
"""


def run_on_a_terminal(*, in_background: bool) -> tuple[str, str]:
    """What the program wrote to its stdout, a pipe, and to the terminal."""
    program = ON_A_TERMINAL.format(path=[str(ROOT), *sys.path], in_background=in_background)
    near, far = pty.openpty()
    environment = os.environ | {"TERM": "xterm"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        stdin=far,
        stdout=subprocess.PIPE,
        stderr=far,
        env=environment,
        check=False,
    )
    os.close(far)
    terminal = b""
    try:
        while data := os.read(near, 1 << 16):
            terminal += data
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    os.close(near)
    assert result.returncode == 0, terminal
    return result.stdout.decode(), terminal.decode()


def test_terminal_has_a_bar_that_goes_and_makes_room() -> None:
    out, terminal = run_on_a_terminal(in_background=False)
    assert out == "data\n"
    bars = re.findall(r"torkit: \[#*-*\] +(\d+%)  (\d+ s)  [a-z ]+", terminal)
    assert bars == [("5%", "0 s"), ("5%", "1 s"), ("95%", "2 s")]
    assert "\r\x1b[Ktorkit: something else\r\n" in terminal
    assert terminal.endswith("\r\x1b[K")  # nothing is left of it


def test_job_in_the_background_draws_no_bar() -> None:
    assert run_on_a_terminal(in_background=True) == ("data\n", "torkit: something else\r\n")
