"""Tables on terminals of any width, and in pipes."""

import os
import pty
import sys
import termios
from math import inf

import pytest
from cli.shelf import Shelf, some_relays

from torkit.cli.build_circuit import WIDTHS as CIRCUIT
from torkit.cli.choose_path import WIDTHS as PATH
from torkit.cli.table import Table, labelled, terminal_width


def row_of(widths: dict[str, int], room: int) -> str:
    return Table(widths, room).row("x" * width for width in widths.values())


@pytest.mark.parametrize("room", [1, 10, 40, 80, 300])
@pytest.mark.parametrize("widths", [CIRCUIT, PATH])
def test_no_row_is_longer_than_its_terminal(widths: dict[str, int], room: int) -> None:
    assert len(row_of(widths, room)) <= room
    assert len(Table(widths, room).header) <= room


@pytest.mark.parametrize("widths", [CIRCUIT, PATH])
def test_eighty_columns_lose_nothing_but_digits_of_fingerprints(widths: dict[str, int]) -> None:
    assert Table(widths, 80).has_room
    *others, _ = widths
    wide = Table(widths, 300)
    assert Table(widths, 80).header[: len(wide.header)] == wide.header
    assert [len(field) for field in row_of(widths, 80).split()[:-1]] == [widths[name] for name in others]


def test_a_wide_terminal_gets_the_whole_fingerprint() -> None:
    assert row_of(PATH, 89).split()[-1] == "x" * 40
    assert row_of(PATH, 88).split()[-1] == "x" * len("fingerprint")


@pytest.mark.parametrize("text", ["short", "Conflux=1 Cons=1-2 Desc=1-4 DirCache=2", "A" * 40, ""])
@pytest.mark.parametrize("room", [5, 40, 80])
def test_a_long_value_goes_on_below_its_beginning(text: str, room: int) -> None:
    first, *more = labelled("protocols       ", text, room).split("\n")
    assert "".join([first[16:], *(line.lstrip() for line in more)]).replace(" ", "") == text.replace(" ", "")
    assert all(line.startswith(" " * 16) for line in more)
    if room > 16:
        assert max(map(len, [first, *more])) <= room
    assert labelled("protocols       ", text, inf) == f"protocols       {text}"


def test_what_is_no_terminal_is_eighty_columns_wide() -> None:
    with open(os.devnull) as nothing:
        assert terminal_width(nothing) == 80


def relays_on_terminal(shelf: Shelf, columns: int, *options: str) -> list[str]:
    """In a process of its own, whose stdout is a terminal this wide."""
    source = ["--network", f"{shelf.path}/network.toml", "relays", *shelf.source(), *options]
    pid, terminal = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(1, (24, columns))
        os.execv(sys.executable, [sys.executable, "-m", "torkit", *source])
    output = b""
    try:
        while data := os.read(terminal, 1 << 16):
            output += data
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output
    return output.decode().splitlines()


def test_relays_fit_any_terminal(shelf: Shelf) -> None:
    fingerprints = [one.fingerprint for one in some_relays()]
    header, *wide = relays_on_terminal(shelf, 200)
    assert header.split() == ["fingerprint", "nickname", "address", "or_port", "bandwidth", "flags"]
    assert [line.split()[0] for line in wide] == fingerprints
    header, *narrow = relays_on_terminal(shelf, 80)
    assert header.split() == ["fingerprint", "nickname", "bandwidth", "flags"]
    assert [line.split()[0] for line in narrow] == [one[:11] for one in fingerprints]
    assert narrow[0].split()[3].startswith("Exit,Fast,")
    assert max(map(len, narrow)) <= 80
    asked = relays_on_terminal(shelf, 40, "--columns", "address,nickname")
    assert asked[1].split() == ["10.0.0.1", "Alpha"]
    assert max(map(len, relays_on_terminal(shelf, 40))) <= 40


def test_a_pipe_gets_everything(shelf: Shelf) -> None:
    line = shelf("relays", *shelf.source())[1].splitlines()[0]
    assert line.split("\t")[:4] == [some_relays()[0].fingerprint, "Alpha", "10.0.0.1", "9001"]
