"""Every line on stderr begins with `torkit:`, whoever it comes from."""

import subprocess
import sys
from pathlib import Path

import pytest

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
for name in "torkit.net.circuit", "another.library":
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


def test_v_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(voice, "speak_for_loggers", seen.append)
    monkeypatch.setattr(running, "speak_for_loggers", seen.append)
    for options in ([], ["-v"], ["-vv"], ["-v", "--verbose"], ["-vvv"]):
        run_command_line([*options, "--network", "/nonexistent", "build-circuit"])
    assert seen == [0, 1, 2, 2, 3]
