"""`--vanguards`: what is asked for, and that what differs from most clients is said."""

import pytest

from torkit.cli.app import run_command_line
from torkit.cli.failures import WRONG_USAGE
from torkit.cli.options import parse_vanguards
from torkit.paths.constraints import VanguardMode


@pytest.mark.parametrize("mode", VanguardMode)
def test_what_differs_from_most_is_said(mode: VanguardMode, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_vanguards(mode.value) is mode
    assert len(capsys.readouterr().err.splitlines()) == (mode is VanguardMode.FULL)


@pytest.mark.parametrize("name", ["", "off", "LITE", "2"])
def test_other_names_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["socks", "--vanguards", name]) == WRONG_USAGE
    assert capsys.readouterr().err == f"torkit: --vanguards takes lite or full, not {name!r}\n"
