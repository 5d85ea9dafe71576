"""`--pow-max-effort`: what an onion service may ask for, read by the commands that carry streams."""

import pytest

from torkit.cli.app import run_command_line
from torkit.cli.effort import parse_effort
from torkit.cli.failures import WRONG_USAGE


def test_an_effort_is_a_number_of_32_bits() -> None:
    assert [parse_effort(text) for text in (None, "0", "10000", str((1 << 32) - 1))] == [
        None,
        0,
        10_000,
        (1 << 32) - 1,
    ]


@pytest.mark.parametrize("command", [["socks"], ["connect", "web.test:80"]], ids=lambda command: command[0])
@pytest.mark.parametrize("text", ["", "-1", "1e3", "\u0661", str(1 << 32), "9" * 5000])
def test_other_efforts_are_refused(command: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([*command, "--pow-max-effort", text]) == WRONG_USAGE
    assert capsys.readouterr().err.startswith("torkit: --pow-max-effort: ")
