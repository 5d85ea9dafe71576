"""`torkit relays`: what each filter keeps, order and columns, and what is said of what is missing."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli.shelf import Shelf, some_relays

from torkit.cli.relays import COLUMNS, DEFAULT_COLUMNS

DATA = Path(__file__).parents[3] / "shared" / "data" / "public-network-2022"

EVERYONE = "Alpha beta gamma delta twin twin"
MISSING = "torkit: 6 of 6 relays have no microdescriptor at hand: "


def names(shelf: Shelf, *arguments: str) -> str:
    """The nicknames listed, when nothing is said."""
    assert shelf("relays", *arguments, "--columns", "nickname")[::2] == (0, "")
    return " ".join(shelf("relays", *arguments, "--columns", "nickname")[1].split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], EVERYONE),
        (["--flag", "Exit"], "Alpha twin"),
        (["--flag", "exit", "--flag", "fast"], "Alpha twin"),
        (["--flag", "Exit", "--flag", "Guard"], ""),
        (["--nickname", "ALPHA"], "Alpha"),
        (["--nickname", "*ta"], "beta delta"),
        (["--nickname", "?????"], "Alpha gamma delta"),
        (["--nickname", "twi"], ""),
        (["--fingerprint", "02" * 20], "beta"),
        (["--fingerprint", "$ee"], "twin"),
        (["--fingerprint", "0"], "Alpha beta gamma delta twin"),
        (["--fingerprint", "01", "--fingerprint", "0303"], "Alpha gamma"),
        (["--min-bandwidth", "700"], "beta delta twin twin"),
        (["--max-bandwidth", "100"], "Alpha gamma"),
        (["--min-bandwidth", "100", "--max-bandwidth", "700"], "Alpha beta"),
        (["--protocol", "Relay=5"], "Alpha beta gamma twin twin"),
        (["--protocol", "Relay=1-4"], EVERYONE),
        (["--protocol", "Relay=4", "--protocol", "Cons=2"], "Alpha beta gamma twin twin"),
        (["--protocol", "Relay=63"], ""),
        (["--flag", "Exit", "--min-bandwidth", "200"], "twin"),
        (["--sort", "nickname"], "Alpha beta delta gamma twin twin"),
        (["--sort", "bandwidth"], "gamma Alpha beta delta twin twin"),
        (["--sort", "bandwidth", "--reverse"], "twin twin delta beta Alpha gamma"),
        (["--sort", "address"], "delta Alpha twin twin beta gamma"),
        (["-r"], "twin twin delta gamma beta Alpha"),
    ],
)
def test_filters_and_order(shelf: Shelf, options: list[str], expected: str) -> None:
    assert names(shelf, *shelf.source(), *options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--country", "aa"], "Alpha twin twin"),
        (["--country", "AA", "--country", "{bb}"], "Alpha gamma twin twin"),
        (["--country", "??"], "beta delta"),
    ],
)
def test_countries(shelf: Shelf, options: list[str], expected: str) -> None:
    assert names(shelf, *shelf.source(), *shelf.geoip, *options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--exit-port", "80"], "Alpha"),
        (["--exit-port", "443"], "Alpha twin"),
        (["--exit-port", "25"], "twin"),
        (["--exit-port6", "6667"], "twin"),
        (["--exit-port6", "80"], ""),
        (["--family", "ALPHA"], "Alpha beta gamma"),
        (["--family", "$" + "02" * 20], "Alpha beta"),
        (["--family", "delta"], "delta"),
    ],
)
def test_filters_that_need_microdescriptors(shelf: Shelf, options: list[str], expected: str) -> None:
    assert names(shelf, *shelf.fill_cache(some_relays()), *options) == expected


def test_missing_microdescriptors_are_said_and_their_columns_are_empty(shelf: Shelf) -> None:
    source = shelf.fill_cache(some_relays()[:1])
    status, out, err = shelf("relays", *source, "--exit-port", "443", "--columns", "nickname")
    assert (status, out) == (0, "Alpha\n")
    assert err == ("torkit: 5 of 6 relays have no microdescriptor at hand: their exit_policy is not known\n")
    _, out, err = shelf("relays", *source, "--columns", "nickname,exit_policy,family_ids")
    assert out.splitlines()[:2] == ["Alpha\taccept 80,443\t-", "beta\t-\t-"]
    assert "their exit_policy, family_ids are not known" in err
    lines = shelf("relays", *source, "--columns", "exit_policy,family_ids", "--json")[1].splitlines()
    assert lines[0] == '{"exit_policy": "accept 80,443", "family_ids": []}'
    assert lines[1] == '{"exit_policy": null, "family_ids": null}'
    status, out, err = shelf("relays", *source, "--family", "beta")
    assert (status, out) == (3, "")
    assert "the family of beta is not known" in err
    assert shelf("relays", *source)[2] == ""  # nobody asked for what is missing


def test_ns_flavor_knows_the_policies_for_ipv4(shelf: Shelf) -> None:
    assert names(shelf, *shelf.source("ns"), "--exit-port", "443") == "Alpha twin"
    status, out, err = shelf("relays", *shelf.source("ns"), "--exit-port6", "443")
    assert (status, out) == (0, "")
    assert err == f"{MISSING}their exit_policy6 is not known\n"


def test_every_column_in_text_and_json(shelf: Shelf) -> None:
    chosen = ["--columns", ",".join(COLUMNS), "--nickname", "beta"]
    source = shelf.fill_cache(some_relays())
    expected: dict[str, Any] = {
        "fingerprint": "02" * 20,
        "nickname": "beta",
        "address": "10.0.1.2",
        "or_port": 9001,
        "ipv6": "[2001:db8::2]:9001",
        "country": "??",
        "bandwidth": 700,
        "flags": ["Fast", "Guard", "HSDir", "Running", "Stable", "V2Dir", "Valid"],
        "version": "Tor 0.4.9.11",
        "protocols": some_relays()[1].protocols,
        "exit_policy": "reject 1-65535",
        "exit_policy6": "reject 1-65535",
        "family": ["$" + "01" * 20],
        "family_ids": [],
    }
    status, out, err = shelf("relays", *source, *shelf.geoip, *chosen, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == expected
    [line] = shelf("relays", *source, *shelf.geoip, *chosen)[1].splitlines()
    assert line.split("\t") == [
        ",".join(value) or "-" if isinstance(value, list) else str(value) for value in expected.values()
    ]
    for column in COLUMNS:
        assert shelf("relays", *source, *shelf.geoip, "--sort", column)[::2] == (0, "")


def test_default_columns_have_as_many_fields_on_every_line(shelf: Shelf) -> None:
    lines = shelf("relays", *shelf.source())[1].splitlines()
    assert [line.count("\t") for line in lines] == [len(DEFAULT_COLUMNS) - 1] * 6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--flag", "Exits"], "no flag 'Exits'"),
        (["--columns", "nickname,nick"], "no column 'nick'"),
        (["--sort", "name"], "no column 'name'"),
        (["--fingerprint", "xyz"], "does not begin a fingerprint"),
        (["--fingerprint", ""], "does not begin a fingerprint"),
        (["--country", "usa"], "is not a country code"),
        (["--country", "éé"], "is not a country code"),
        (["--country", "zz"], "no address is in a country 'zz'"),
        (["--country", "aa", "--country", "{ZZ}"], "no address is in a country 'zz'"),
        (["--protocol", "Relay=5-"], "--protocol takes a name and versions"),
        (["--protocol", "Relay"], "--protocol takes a name and versions"),
        (["--exit-port", "0"], "--exit-port"),
        (["--family", "nobody"], "no relay 'nobody' in the consensus"),
        (["--family", "twin"], "2 relays are called 'twin'"),
        (["-"], "the only argument is -"),
    ],
)
def test_wrong_usage_is_said(shelf: Shelf, options: list[str], reason: str) -> None:
    status, out, err = shelf("relays", *shelf.fill_cache(some_relays()), *shelf.geoip, *options)
    assert (status, out) == (2, "")
    assert reason in err


def test_country_without_a_file_of_countries_is_an_error(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torkit.cli.countries.GEOIP_DIRS", (shelf.path / "none",))
    for options in (["--country", "us"], ["--columns", "country"], ["--sort", "country"]):
        status, out, err = shelf("relays", *shelf.source(), *options)
        assert (status, out) == (2, "")
        assert "no file of countries is installed" in err
    # Before a consensus is looked for, which may take its time.
    assert "no file of countries is installed" in shelf("relays", "--from", "nowhere", "--country", "us")[2]
    (shelf.path / "geoip").write_text("nonsense\n")
    status, out, err = shelf("relays", *shelf.source(), *shelf.geoip, "--columns", "country")
    assert (status, out) == (1, "")
    assert "geoip: FIRST,LAST,CC expected" in err


@pytest.mark.skipif(not DATA.is_dir(), reason="the 2022 documents are not at hand")
def test_relays_of_the_public_network_of_2022(tmp_path: Path) -> None:
    """In a pipe whose reader leaves early, as `head` does."""
    certificates = (DATA / "authority-certs").read_bytes()
    identities = sorted(set(re.findall(rb"^fingerprint ([0-9A-F]{40})", certificates, re.M)))
    lines = (f'"orport=1 v3ident={one.decode()} 127.0.0.1:1 {one.decode()}"' for one in identities)
    (tmp_path / "network.toml").write_text(f"authorities = [{', '.join(lines)}]\n")
    command = [sys.executable, "-m", "torkit", "--network", f"{tmp_path}/network.toml", "relays", "-"]
    command += ["--certs", f"{DATA}/authority-certs", "--at", "2022-11-19T10:30:00Z"]

    def run(*options: str, reader: str = "cat") -> subprocess.CompletedProcess[bytes]:
        line = f'"$@" < {DATA}/microdesc-consensus | {reader}'
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", line, "bash", *command, *options],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=False,
        )

    everyone = run()
    assert (everyone.returncode, everyone.stderr) == (0, b"")
    assert len(everyone.stdout.splitlines()) == 6088
    first = run(reader="head -n 3")
    assert (first.returncode, first.stderr) == (141, b"")
    assert first.stdout.splitlines() == everyone.stdout.splitlines()[:3]
    fastest = run(
        "--flag", "Exit", "--sort", "bandwidth", "--reverse", "--columns", "bandwidth"
    ).stdout.split()
    assert len(fastest) == 1438
    assert list(map(int, fastest)) == sorted(map(int, fastest), reverse=True)
