"""`torkit fetch-consensus` from files and the cache: what verifies is printed, and nothing else."""

import json
import os
import pty
import sys
from pathlib import Path

import network_docs as nd
import pytest
from cli.shelf import NOW, Shelf, some_relays

from torkit.cli.documents import iso_time
from torkit.testing.directory.consensus import PROTOCOLS


@pytest.mark.parametrize("flavor", ["microdesc", "ns"])
def test_document_that_verifies_is_printed_byte_for_byte(shelf: Shelf, flavor: str) -> None:
    text = (shelf.path / flavor).read_text()
    for options in ([], ["--raw"], ["--flavor", flavor]):
        assert shelf("fetch-consensus", *shelf.source(flavor), *options) == (0, text, "")
    output = shelf.path / "out"
    assert shelf("fetch-consensus", *shelf.source(flavor), "-o", str(output)) == (0, "", "")
    assert output.read_text() == text


def test_cache_is_read_without_the_network(shelf: Shelf) -> None:
    status, out, err = shelf("fetch-consensus", "--from", "cache")
    assert (status, out) == (3, "")
    assert "the cache holds no consensus" in err
    text = (shelf.path / "microdesc").read_text()
    assert shelf("fetch-consensus", *shelf.fill_cache([])) == (0, text, "")


def test_stdin_is_a_file_too(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (shelf.path / "microdesc").read_bytes()
    source = shelf.source()
    source[1] = "-"
    saved = os.dup(0)
    try:
        with (shelf.path / "microdesc").open("rb") as file:
            os.dup2(file.fileno(), 0)
        assert shelf("fetch-consensus", *source) == (0, text.decode(), "")
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_certificates_that_got_carriage_returns_on_their_way_are_read(shelf: Shelf) -> None:
    certs = shelf.path / "certs"
    certs.write_bytes(certs.read_bytes().replace(b"\n", b"\r\n"))
    assert shelf("fetch-consensus", *shelf.source())[0] == 0


@pytest.mark.parametrize("flavor", ["microdesc", "ns"])
def test_documents_as_archives_keep_them_are_read(shelf: Shelf, flavor: str) -> None:
    text = (shelf.path / flavor).read_bytes()
    (shelf.path / flavor).write_bytes(b"@type network-status-consensus-3 1.0\n@source nobody\n" + text)
    certs = shelf.path / "certs"
    certs.write_bytes(b"@type dir-key-certificate-3 1.0\n" + certs.read_bytes())
    assert shelf("fetch-consensus", *shelf.source(flavor), "--flavor", flavor) == (0, text.decode(), "")


def test_a_document_with_carriage_returns_says_so_and_names_its_file(shelf: Shelf) -> None:
    file = shelf.path / "microdesc"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    status, _, err = shelf("fetch-consensus", *shelf.source())
    assert status == 1
    assert f"{file}: " in err
    assert "CR LF" in err


def test_a_vote_is_called_one(shelf: Shelf) -> None:
    file = shelf.path / "microdesc"
    file.write_bytes(file.read_bytes().replace(b"vote-status consensus", b"vote-status vote", 1))
    status, _, err = shelf("fetch-consensus", *shelf.source())
    assert status == 1
    assert "this is a vote" in err


def test_certificates_of_another_time_are_not_asked_for_again(shelf: Shelf) -> None:
    certs = shelf.path / "certs"
    certs.write_bytes(b"".join(one.certificate() for one in nd.authorities(4)[3:]))
    status, _, err = shelf("fetch-consensus", *shelf.source())
    assert status == 3
    assert "not those of the authorities at that time" in err
    assert "--certs FILE" not in err


@pytest.mark.parametrize(
    ("replaced", "status", "reason"),
    [
        ({"--at": "2027-01-10"}, 3, "consensus is from the future"),
        ({"--at": "2027-01-20T00:00+02:00"}, 3, "consensus has expired"),
        ({"--from": "network.toml"}, 1, "consensus"),
        ({"--from": "nothing"}, 2, "No such file"),
        ({"--from": "."}, 2, "Is a directory"),
        ({"--certs": "microdesc"}, 1, "certificates must start with"),
        ({"--certs": "nothing"}, 2, "No such file"),
    ],
)
def test_nothing_is_printed_of_what_does_not_verify(
    shelf: Shelf, replaced: dict[str, str], status: int, reason: str
) -> None:
    options = dict(zip(*[iter(shelf.source())] * 2, strict=True))
    for name, value in replaced.items():
        options[name] = value if name == "--at" else f"{shelf.path}/{value}"
    output = shelf.path / "out"
    output.write_text("old")
    arguments = [word for pair in options.items() for word in pair]
    got, out, err = shelf("fetch-consensus", *arguments, "-o", str(output))
    assert (got, out) == (status, "")
    assert reason in err
    assert output.read_text() == "old"
    assert shelf("fetch-consensus", *arguments)[1] == ""


def test_forged_and_unsigned_documents_are_refused(shelf: Shelf) -> None:
    document = shelf.path / "microdesc"
    document.write_bytes(document.read_bytes().replace(b" Guard", b" Exit", 1))
    status, out, err = shelf("fetch-consensus", *shelf.source())
    assert (status, out) == (3, "")
    assert "bad signature" in err
    document.write_bytes(nd.consensus(some_relays(), nd.authorities()[:1]))
    status, out, err = shelf("fetch-consensus", *shelf.source())
    assert (status, out) == (3, "")
    assert "2 of 3 authorities needed" in err


def test_missing_certificates_are_named_with_a_hint(shelf: Shelf) -> None:
    status, out, err = shelf("fetch-consensus", "--from", f"{shelf.path}/microdesc", "--at", NOW)
    assert (status, out) == (3, "")
    assert "certificate missing" in err
    assert "hint: name a file with the authorities' certificates: --certs FILE" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--flavor", "full"], "--flavor takes microdesc or ns, not 'full'"),
        (["--from", "cache", "--flavor", "ns"], "the cache holds the microdesc flavor only"),
        (["--at", NOW], "--certs and --at need --from"),
        (["--from", "network", "--certs", "x"], "--certs and --at need --from"),
        (["--from", "cache", "--at", "yesterday"], "expected a time in ISO 8601"),
        (["--from", "cache", "--diff-from", "x"], "--diff-from asks the network, not --from cache"),
        (["--diff-from", "/nonexistent"], "/nonexistent: No such file"),
        (["--raw", "--json"], "two forms of one output"),
    ],
)
def test_wrong_usage_is_said(shelf: Shelf, arguments: list[str], reason: str) -> None:
    status, out, err = shelf("fetch-consensus", *arguments)
    assert (status, out) == (2, "")
    assert reason in err


def test_flavor_of_a_file_must_be_the_one_asked_for(shelf: Shelf) -> None:
    status, out, err = shelf("fetch-consensus", *shelf.source("ns"), "--flavor", "microdesc")
    assert (status, out) == (1, "")
    assert "a consensus of flavor ns" in err


def test_each_relay_is_one_json_line_in_the_order_of_the_consensus(shelf: Shelf) -> None:
    status, out, _ = shelf("fetch-consensus", *shelf.source(), "--json")
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["nickname"] for line in lines] == ["Alpha", "beta", "gamma", "delta", "twin", "twin"]
    assert lines[1] == {
        "nickname": "beta",
        "fingerprint": "02" * 20,
        "address": "10.0.1.2",
        "or_port": 9001,
        "ipv6": "[2001:db8::2]:9001",
        "flags": ["Fast", "Guard", "HSDir", "Running", "Stable", "V2Dir", "Valid"],
        "bandwidth": 700,
        "version": "Tor 0.4.9.11",
        "protocols": PROTOCOLS,
    }
    output = shelf.path / "out"
    assert shelf("fetch-consensus", *shelf.source(), "--json", "-o", str(output)) == (0, "", "")
    assert output.read_text() == out


def test_a_terminal_gets_a_summary_and_raw_the_document(shelf: Shelf) -> None:
    """In a process of its own, whose stdout is a terminal."""
    root = Path(__file__).parents[2]
    command = ["--network", f"{shelf.path}/network.toml", "fetch-consensus", *shelf.source()]

    def on_terminal(*options: str) -> bytes:
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(root)
            os.execv(sys.executable, [sys.executable, "-m", "torkit", *command, *options])
        output = b""
        try:
            while data := os.read(terminal, 1 << 16):
                output += data
        except OSError:  # how Linux says that nobody writes any more
            pass
        os.close(terminal)
        assert os.waitpid(pid, 0)[1] == 0
        return output.replace(b"\r\n", b"\n")

    assert on_terminal().decode() == (
        "flavor       microdesc, method 35\n"
        "valid after  2027-01-15 07:30:00 UTC\n"
        "fresh until  2027-01-15 08:30:00 UTC\n"
        "valid until  2027-01-15 10:30:00 UTC\n"
        "relays       6: 2 Guard, 2 Exit, 6 V2Dir\n"
    )
    assert on_terminal("--raw") == (shelf.path / "microdesc").read_bytes()
    assert len(on_terminal("--json").splitlines()) == 6


@pytest.mark.parametrize(
    "text",
    ["2027-01-15T08:00:00Z", "2027-01-15T08:00:00", "2027-01-15 09:00:00+01:00", "20270115T080000Z"],
)
def test_times_are_iso_8601_and_utc_unless_they_say_otherwise(text: str) -> None:
    assert iso_time(text) == nd.NOW
