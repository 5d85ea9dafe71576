"""`--padding`: read by the commands that run for long, and what less than by default costs is said."""

import pytest

from torkit.cli.app import run_command_line
from torkit.cli.failures import WRONG_USAGE
from torkit.cli.options import parse_padding
from torkit.proto.padding import Padding


@pytest.mark.parametrize("padding", Padding)
def test_less_padding_than_by_default_costs_something(
    padding: Padding, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_padding(padding.value) is padding
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (padding is not Padding.AUTO)
    assert all(line.startswith(f"torkit: --padding {padding.value}: ") for line in lines)


@pytest.mark.parametrize("command", [["socks"], ["connect", "web.test:80"]], ids=lambda command: command[0])
@pytest.mark.parametrize("name", ["", "AUTO", "1", "on"])
def test_other_names_are_refused(command: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([*command, "--padding", name]) == WRONG_USAGE
    assert capsys.readouterr().err == f"torkit: --padding takes auto, reduced or off, not {name!r}\n"
