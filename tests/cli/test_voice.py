"""Every line on stderr begins with `torkit:`, whoever it comes from."""

import os
import re
import select
import socket
import subprocess
import sys
import threading
import tty
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import wait_until

from torkit.cli import running, voice
from torkit.cli.app import run_command_line
from torkit.cli.voice import say

ROOT = Path(__file__).parents[2]


def run_program(program: str, *options: str) -> tuple[int, list[str]]:
    """The exit status and the lines on stderr of a Python of its own."""
    ended = subprocess.run(
        [sys.executable, *options, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stderr.splitlines()


def test_a_message_of_more_lines_is_so_many_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo\n  three")
    assert capsys.readouterr().err == "torkit: one\ntorkit: two\ntorkit:   three\n"


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "a\rb", "\x9b2J", "\u202etxt.exe", "\x00"])
def test_nothing_that_moves_a_cursor_reaches_the_terminal(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    say(f"the directory says {text}!")
    said = capsys.readouterr().err
    assert said.replace("\n", "").isprintable()
    assert said.startswith("torkit: the directory says ")
    assert all(line.startswith("torkit: ") for line in said.splitlines())


@pytest.mark.parametrize(
    ("verbosity", "heard"), [(0, ["w"]), (1, ["w", "i"]), (2, ["w", "i", "d"]), (5, ["w", "i", "d"])]
)
def test_what_is_logged_is_said_by_verbosity(verbosity: int, heard: list[str]) -> None:
    program = f"""
import logging
from torkit.cli.voice import speak_for_loggers
speak_for_loggers({verbosity})
for name in "torkit.net.circuit.circuit", "another.library":
    logger = logging.getLogger(name)
    logger.warning("%s w", name)
    logger.info("%s i", name)
    logger.debug("%s d\\nin two lines", name)
"""
    status, lines = run_program(program)
    assert status == 0
    assert all(line.startswith("torkit: ") for line in lines)
    assert [line[-1] for line in lines if "torkit.net" in line] == heard
    assert [line[-1] for line in lines if "another" in line] == ["w"]


def test_what_python_and_libraries_say_begins_with_torkit_too() -> None:
    program = """
import warnings
from torkit.cli.voice import speak_for_python
speak_for_python()
class Broken:
    def __del__(self):
        raise ValueError("web.test")
Broken()
warnings.warn("old\\nand in two lines", DeprecationWarning)
open("/dev/null")
async def never(): ...
never()
"""
    status, lines = run_program(program, "-W", "always", "-X", "dev")
    assert status == 0
    assert len(lines) >= 4
    assert all(line.startswith("torkit: ") for line in lines), lines
    assert "torkit: old and in two lines" in lines
    assert any("ValueError" in line for line in lines)
    assert not any("web.test" in line for line in lines)


@pytest.mark.parametrize("arguments", [["relays"], ["socks", "--listen", "x"], ["nonsense"], []])
def test_a_command_with_all_of_pythons_warnings_says_nothing_else(arguments: list[str]) -> None:
    options = ["-X", "dev", "-W", "always", "-m", "torkit", "--network", "/nonexistent"]
    ended = subprocess.run(
        [sys.executable, *options, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert all(line.startswith("torkit: ") for line in ended.stderr.splitlines()), ended.stderr
    assert "Warning" not in ended.stderr


LOUD = """
import sys, trio
from torkit.cli.options import Options
from torkit.cli.running import run
from torkit.cli.voice import say
async def command():
    for number in range(COUNT):
        say(f"line {number} " + LONG * "x")
        await trio.sleep(0)
    print("carried on", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    say("read again")
run(command, Options(None, None, "exit", 0))
say("over")
"""
LOST = re.compile(r"torkit: (?:(\d+) lines were|a line was) lost here: nobody had read what was before")


def ends_of_stderr(kind: str) -> tuple[int, int]:
    """What reads, and what is written to: with little room, as everywhere."""
    match kind:
        case "pipe":
            return os.pipe()
        case "terminal":
            reading, writing = os.openpty()
            tty.setraw(writing)
            return reading, writing
        case _:
            one, other = socket.socketpair()
            return one.detach(), other.detach()


@pytest.mark.parametrize("length", [50, 5_000], ids=["short", "long"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
@pytest.mark.parametrize("is_blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_reader_of_stderr_that_has_stopped_holds_nobody_up(
    kind: str, length: int, is_blocking: bool
) -> None:
    """The command goes on; the reader, when it is back, hears how many lines it has missed."""
    count = 400_000 // length
    reading, writing = ends_of_stderr(kind)
    os.set_blocking(writing, is_blocking)
    program = LOUD.replace("COUNT", str(count)).replace("LONG", str(length))
    start = "from torkit.cli.standard import open_standard_descriptors as o; o()\n"
    child = subprocess.Popen(
        [sys.executable, "-c", start + program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writing,
        cwd=ROOT,
        text=True,
    )
    os.close(writing)
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "carried on\n"
        said = bytearray()
        read = threading.Thread(target=read_all, args=(reading, said))
        read.start()
        wait_until(lambda: not select.select([reading], [], [], 0)[0])
        child.stdin.write("\n")
        child.stdin.flush()
        read.join()
    assert child.returncode == 0
    lines = said.decode().splitlines()
    assert lines[-2:] == ["torkit: read again", "torkit: over"]
    lost = [int(match[1] or 1) for line in lines if (match := LOST.fullmatch(line))]
    assert lost
    whole = [line for line in lines if re.fullmatch(rf"torkit: line \d+ x{{{length}}}", line)]
    assert len(whole) + sum(lost) == count


def read_all(descriptor: int, into: bytearray) -> None:
    """Until all who might write have gone."""
    with suppress(OSError):  # of a terminal that nobody has open any more
        while data := os.read(descriptor, 65_536):
            into += data
    os.close(descriptor)


def test_v_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(voice, "speak_for_loggers", seen.append)
    monkeypatch.setattr(running, "speak_for_loggers", seen.append)
    for options in ([], ["-v"], ["-vv"], ["-v", "--verbose"], ["-vvv"]):
        run_command_line([*options, "--network", "/nonexistent", "build-circuit"])
    assert seen == [0, 1, 2, 2, 3]
