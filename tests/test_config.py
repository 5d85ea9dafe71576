"""The network file: what torrc's values mean, and what is refused by name."""

import pwd
from pathlib import Path
from typing import Any

import pytest

from torkit.config import (
    Authority,
    Fallback,
    data_dir,
    load_network,
    parse_authority,
    parse_fallback,
    user_state_dir,
)
from torkit.errors import StorageError, UsageError

IDENT, PRINT = "AB" * 20, "cd" * 20
AUTHORITY = f"test0 orport=5000 no-v2 v3ident={IDENT} 127.0.0.1:7000 {PRINT}"
PUBLIC = load_network(None)
FALLBACK = f"127.0.0.1:7001 orport=5001 id={PRINT} ipv6=[::1]:5002 weight=2.5"


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "network.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_public_network_is_built_in() -> None:
    network = load_network(None)
    assert len(network.voters) == len(network.authorities) == 9
    assert "Serge" not in {one.nickname for one in network.authorities}
    assert network.voters[bytes.fromhex("F533C81CEF0BC0267857C99B2F471ADF249FA232")] == "moria1"
    assert len(network.fallbacks) == 200
    assert len({one.identity for one in network.fallbacks}) == 200
    assert not network.testing
    assert network.distinct_subnets


def test_network_file_is_read(tmp_path: Path) -> None:
    network = load_network(
        write(tmp_path, f"authorities = ['{AUTHORITY}']\nfallbacks = ['{FALLBACK}']\ntesting = true\n")
    )
    assert network.authorities == (
        Authority("test0", "127.0.0.1", 7000, 5000, bytes.fromhex(PRINT), bytes.fromhex(IDENT), None),
    )
    assert network.fallbacks == (Fallback("127.0.0.1", 5001, bytes.fromhex(PRINT), ("::1", 5002)),)
    assert network.voters == {bytes.fromhex(IDENT): "test0"}
    assert network.testing
    assert not network.distinct_subnets


def test_subnet_rule_follows_testing_unless_said(tmp_path: Path) -> None:
    base = f"authorities = ['{AUTHORITY}']\n"
    assert load_network(write(tmp_path, base)).distinct_subnets
    assert load_network(write(tmp_path, base + "testing = true\ndistinct_subnets = true")).distinct_subnets
    assert not load_network(write(tmp_path, base + "distinct_subnets = false")).distinct_subnets


def test_authority_values_of_torrc() -> None:
    spaced = "FAA4 BCA4 A6AC 0FB4 CA2F 8AD5 A11D 9E12 2BA8 94F6"
    authority = parse_authority(
        f"tor26 ORPort=443 v3ident={IDENT.lower()} ipv6=[2001:858:2:2::1]:443 weight=1.0"
        f" upload=http://1.2.3.4:80/ 217.196.147.77:80 {spaced}"
    )
    assert authority.fingerprint == bytes.fromhex(spaced.replace(" ", ""))
    assert authority.ipv6 == ("2001:858:2:2::1", 443)
    assert authority.or_port == 443
    bridge = parse_authority(f"Serge orport=9001 bridge 66.111.2.131:9030 {PRINT}")
    assert bridge.v3ident is None
    assert parse_authority(f"v3ident={IDENT} 1.2.3.4:80 {PRINT}").nickname == "1.2.3.4:80"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "fingerprint expected at the end"),
        ("name", "fingerprint expected at the end"),
        (AUTHORITY.replace(" no-v2", " no-v9"), "unknown flag 'no-v9'"),
        (AUTHORITY.replace("v3ident=AB", "v3ident="), "40 hexadecimal digits"),
        (AUTHORITY.replace("orport=5000", "orport=0"), "port from 1"),
        (AUTHORITY.replace("orport=5000", "orport=65536"), "port from 1"),
        (AUTHORITY.replace("orport=5000", "orport"), "unknown flag"),
        (AUTHORITY.replace("127.0.0.1:7000", "127.0.0.1"), "address:port expected"),
        (AUTHORITY.replace("127.0.0.1:7000", "127.0.0.256:7000"), "IPv4 address"),
        (AUTHORITY + "0", "40 hexadecimal digits"),
        (AUTHORITY.replace("no-v2", "ipv6=1.2.3.4:5"), "IPv6"),
        (AUTHORITY.replace("no-v2", "ipv6=[::g]:5"), "IPv6"),
        (AUTHORITY.replace("no-v2", "weight=x"), "weight"),
    ],
)
def test_malformed_authorities_are_refused(value: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_authority(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "expected"),
        (f"1.2.3.4 id={PRINT}", "orport= and id= expected"),
        ("1.2.3.4 orport=1", "orport= and id= expected"),
        (f"1.2.3.4 orport=1 id={PRINT} future=1", "unknown word"),
        (f"1.2.3.4 5.6.7.8 orport=1 id={PRINT}", "unknown word"),
        (f"1.2.3.4:0 orport=1 id={PRINT}", "port from 1"),
    ],
)
def test_malformed_fallbacks_are_refused(value: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_fallback(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "at least one with a v3ident"),
        ("authorities = []", "at least one"),
        (f"authorities = ['bridge 1.2.3.4:80 {PRINT}']", "at least one"),
        (f"authorities = ['{AUTHORITY}', '{AUTHORITY}']", "one v3ident twice"),
        (f"authorities = ['{AUTHORITY}', 'x']", "authorities, entry 2: "),
        (f"authorities = ['{AUTHORITY}']\nfallbacks = ['x']", "fallbacks, entry 1: "),
        ("authorities = 'x'", "authorities: a list of strings"),
        ("authorities = [1]", "authorities: a list of strings"),
        (f"authorities = ['{AUTHORITY}']\ntesting = 1", "testing: true or false"),
        (f"authorities = ['{AUTHORITY}']\nauthority = []", "unknown key 'authority'"),
        ("authorities = [", "network.toml"),
        (b"\xff", "network.toml"),
        (b"\0", "network.toml"),
        ("#" * (2 << 20), "more than"),
        ("a = " + "[" * 100_000, "network.toml"),
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path: Path, text: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        load_network(write(tmp_path, text))
    assert str(caught.value).count("network.toml") == 1


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: No such file") as caught:
        load_network(tmp_path / "none.toml")
    assert "torkit testnet up" in (caught.value.hint or "")


def test_data_dir_is_made_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_dir(PUBLIC, tmp_path / "a" / "b")
    assert path.is_dir()
    assert path.stat().st_mode & 0o777 == 0o700
    assert data_dir(PUBLIC, path) == path
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_dir(PUBLIC, None) == tmp_path / "state" / "torkit" / "public"
    with_other_authorities = PUBLIC._replace(authorities=PUBLIC.authorities[1:])
    assert data_dir(with_other_authorities, None) == data_dir(PUBLIC, None)
    other = load_network(write(tmp_path, f'authorities = ["{AUTHORITY}"]'))
    assert data_dir(other, None) == tmp_path / "state" / "torkit" / other.name != data_dir(PUBLIC, None)


@pytest.mark.parametrize("variable", ["HOME", "XDG_STATE_HOME"])
def test_relative_places_in_the_environment_count_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv(variable, "somewhere")
    if variable == "HOME":  # then the file of users tells
        user = pwd.struct_passwd(("user", "x", 1, 1, "", str(tmp_path), "/bin/sh"))
        monkeypatch.setattr(pwd, "getpwuid", lambda _uid: user)
    assert user_state_dir() == tmp_path / ".local/state/torkit"


def test_user_without_a_home_is_told_what_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback: the exception of a library."""
    for variable in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def fail(_uid: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", fail)
    with pytest.raises(StorageError, match="no home directory") as caught:
        data_dir(PUBLIC, None)
    assert "--data-dir" in (caught.value.hint or "")


@pytest.mark.parametrize("teller", ["HOME", "passwd"])
def test_home_directory_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teller: str
) -> None:
    """Accounts of services have /nonexistent on Debian; root made it, and kept its guards there."""
    home = tmp_path / "nonexistent"
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if teller == "HOME":
        monkeypatch.setenv("HOME", str(home))
    user = pwd.struct_passwd(("user", "x", 1, 1, "", str(home), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: user)
    with pytest.raises(StorageError, match=f"home directory {home} is not there") as caught:
        data_dir(PUBLIC, None)
    assert "--data-dir" in (caught.value.hint or "")
    assert not home.exists()
    assert data_dir(PUBLIC, tmp_path / "named").is_dir()


def test_data_dir_that_cannot_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(StorageError) as caught:
            data_dir(PUBLIC, path)
        assert str(caught.value) == f"data directory {path}: Not a directory"
        assert caught.value.hint is not None
