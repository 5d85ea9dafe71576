"""What the user may restrict: read by four commands alike, and each says what it costs."""

from typing import Any

import pytest
from cli.shelf import Shelf
from fake_tor import FakeTor, as_tor

from torkit.cli.app import run_command_line
from torkit.cli.failures import WRONG_USAGE
from torkit.cli.options import country_lookup, restrictions
from torkit.cli.paths import parse_path
from torkit.errors import UsageError
from torkit.paths.constraints import Constraints
from torkit.paths.text import path_to_json

NONE = {"entry_nodes": None, "exit_nodes": None, "exclude_nodes": None, "path": None}
COMMANDS = (["socks"], ["connect", "web.test:80"], ["build-circuit"], ["choose-path"])


def test_nothing_is_restricted_and_nothing_said_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert restrictions(**NONE) is None
    assert restrictions(**NONE | {"path": "a,b,c"}) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "field"), [("entry_nodes", "entries"), ("exit_nodes", "exits"), ("exclude_nodes", "exclude")]
)
def test_names_become_constraints_and_their_cost_is_said(
    option: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = f"relay1, ${'ab' * 20},{'CD' * 20},{{de}}, {{??}}"
    wanted: dict[str, Any] = {field: frozenset({"relay1", "$" + "ab" * 20, "CD" * 20, "{de}", "{??}"})}
    assert restrictions(**NONE | {option: names}) == Constraints(**wanted)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"torkit: --{option.replace('_', '-')}: ")


@pytest.mark.parametrize(
    "names",
    [
        *("", ",", "a,,b", "no-dashes", "a" * 20, "$" + "AB" * 19, "ab" * 21),
        *("{deu}", "{d}", "{}", "{de", "de}", "{?}", "{d?}", "{de,fr}"),
    ],
)
def test_what_is_no_name_is_refused(names: str) -> None:
    with pytest.raises(UsageError, match="--exclude-nodes"):
        restrictions(**NONE | {"exclude_nodes": names})


@pytest.mark.parametrize("option", ["--entry-nodes", "--exit-nodes", "--exclude-nodes"])
def test_countries_are_never_silently_ignored(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    (shelf.path / "data").mkdir()
    monkeypatch.setattr("torkit.cli.countries.GEOIP_DIRS", (shelf.path / "none",))
    status, _, err = shelf("build-circuit", option, "{aa}")
    assert (status, "no file of countries is installed" in err) == (WRONG_USAGE, True)
    monkeypatch.setattr("torkit.cli.countries.GEOIP_DIRS", (shelf.path,))
    status, _, err = shelf("build-circuit", option, "{aa},{??},{zz}")
    assert (status, "no address is in a country 'zz'" in err) == (WRONG_USAGE, True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_file_of_countries_can_be_named_for_every_command(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Where tor-geoipdb is not installed, as off Debian."""
    (shelf.path / "data").mkdir()
    monkeypatch.setattr("torkit.cli.countries.GEOIP_DIRS", (shelf.path / "none",))
    assert "no file of countries is installed" in shelf(*command, "--exit-nodes", "{zz}")[2]
    status, _, err = shelf(*command, *shelf.geoip, "--exit-nodes", "{zz}")
    assert (status, "no address is in a country 'zz'" in err) == (WRONG_USAGE, True)
    monkeypatch.setenv("TORKIT_GEOIP", shelf.geoip[1])
    status, _, err = shelf(*command, "--exit-nodes", "{zz}")
    assert (status, "no address is in a country 'zz'" in err) == (WRONG_USAGE, True)


def test_countries_are_told_by_the_first_file_that_a_package_has_installed(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torkit.cli.countries.GEOIP_DIRS", (shelf.path / "none", shelf.path))
    country_of = country_lookup(Constraints(exits=frozenset({"{aa}"})), None)
    assert country_of is not None
    assert country_of("10.0.0.1") == "aa"


def test_country_of_a_relay_is_looked_up_once(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torkit.cli.countries.GEOIP_DIRS", (shelf.path,))
    assert country_lookup(None, None) is None
    assert country_lookup(Constraints(exits=frozenset({"relay1"})), None) is None
    country_of = country_lookup(Constraints(exclude=frozenset({"{AA}", "{??}"})), None)
    assert country_of is not None
    assert [country_of(f"10.0.{n}.1") for n in (0, 1, 2)] == ["aa", "??", "bb"]
    monkeypatch.setattr("torkit.directory.geoip.country_of", None)
    assert country_of("10.0.2.1") == "bb"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("option", ["--entry-nodes", "--exit-nodes", "--exclude-nodes"])
def test_every_command_that_chooses_paths_takes_them(
    command: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line([*command, option, "no-dashes"]) == WRONG_USAGE
    assert f"{option}: 'no-dashes' is neither" in capsys.readouterr().err
    assert run_command_line([*command, option, "relay1", "--path", "a,b,c"]) == WRONG_USAGE
    assert "--path names every relay" in capsys.readouterr().err


async def test_a_path_of_fewer_than_three_relays_says_each_time_that_it_gives_no_anonymity(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tor = FakeTor()
    drawn = tor.choose_path(Constraints(port=80))
    for length, count in ((1, "one relay"), (2, "2 relays")):
        line = path_to_json(drawn[:length])
        for _ in range(2):
            assert parse_path(as_tor(tor), line) == drawn[:length]
            assert f"no anonymity over {count}" in capsys.readouterr().err


async def test_relays_named_by_hand_cost_something_and_drawn_ones_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tor = FakeTor()
    drawn = tor.choose_path(Constraints(port=80))
    parse_path(as_tor(tor), path_to_json(drawn))
    assert capsys.readouterr().err == ""
    names = ",".join(relay.fingerprint for relay in drawn)
    for _ in range(2):
        assert parse_path(as_tor(tor), names) == drawn
    assert capsys.readouterr().err.count("torkit: --path: ") <= 1  # once in a process
