"""`torkit choose-path`: what it takes from stdin, and the lines it prints."""

import os
from pathlib import Path

import pytest
from cli.shelf import Shelf
from fake_tor import FakeTor, as_tor

from torkit.cli.choose_path import print_paths, read_consensus
from torkit.errors import NoPath, UsageError
from torkit.paths.constraints import Constraints
from torkit.paths.text import path_from_json


async def test_paths_are_lines_that_path_takes(capsys: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor()
    print_paths(as_tor(tor), count=3, exit_port=80, path=None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert len(path_from_json(line, tor.directory)) == 3


async def test_named_path_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor()
    names = [relay.nickname for relay in list(tor.directory.consensus.relays)[:3]]
    print_paths(as_tor(tor), count=1, exit_port=None, path=",".join(names))
    path = path_from_json(capsys.readouterr().out, tor.directory)
    assert [relay.nickname for relay in path] == names


async def test_port_that_no_exit_allows_has_no_path() -> None:
    with pytest.raises(NoPath):
        print_paths(as_tor(FakeTor()), count=1, exit_port=25, path=None)


def test_a_path_that_was_given_must_lead_to_the_port() -> None:
    tor = FakeTor()
    names = ",".join(relay.fingerprint for relay in tor.choose_path(Constraints(port=80)))
    with pytest.raises(NoPath, match="does not allow this port"):
        print_paths(as_tor(tor), count=1, exit_port=25, path=names)


async def test_people_get_a_row_for_each_relay_and_an_empty_line_between_paths(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tor = FakeTor()
    print_paths(as_tor(tor), count=2, exit_port=80, path=None, for_people=True)
    header, *first, between, _, _, _ = capsys.readouterr().out.splitlines()
    assert header.split() == ["hop", "relay", "address", "fingerprint"]
    assert between == ""
    for row in first:
        _, nickname, address, beginning = row.split()  # of the fingerprint, on 80 columns
        [index] = tor.directory.indexes_of(nickname)
        relay = tor.directory.relay_at(index)
        assert relay is not None
        assert relay.fingerprint.startswith(beginning)
        assert address == f"{relay.address}:{relay.or_port}"


def test_stdin_is_left_alone_unless_it_is_named(shelf: Shelf) -> None:
    """Where it was read unasked, a pipe that nobody writes to held the command for ever."""
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    try:
        status, out, err = shelf("--cgo", "nonsense", "choose-path")  # ends it after its arguments are read
    finally:
        os.dup2(saved, 0)
        for descriptor in (reading, writing, saved):
            os.close(descriptor)
    assert (status, out) == (2, "")
    assert "--cgo takes" in err


def test_consensus_is_read_from_the_file_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "consensus").write_bytes(b"network")
    assert read_consensus(tmp_path / "consensus") == b"network"
    assert read_consensus(None) is None


@pytest.mark.parametrize("source", [["-"], ["--from", "-"]])
def test_consensus_on_stdin_is_read_when_it_is_named(shelf: Shelf, source: list[str]) -> None:
    saved = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        status, out, err = shelf("choose-path", *source)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert (status, out) == (1, "")
    assert "consensus" in err


@pytest.mark.parametrize("arguments", [["consensus"], ["-", "--from", "consensus"]])
def test_other_arguments_are_refused(shelf: Shelf, arguments: list[str]) -> None:
    status, _, err = shelf("choose-path", *arguments)
    assert status == 2
    assert "--from FILE" in err


def test_document_without_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(1 << 34)
    with pytest.raises(UsageError, match="more than"):
        read_consensus(tmp_path / "sparse")
