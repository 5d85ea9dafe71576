"""`torkit choose-path`: what it takes from stdin, and the lines it prints."""

import os
from pathlib import Path

import pytest
from fake_tor import FakeTor

from torkit.cli.choose_path import print_paths, read_consensus
from torkit.errors import NoPath, UsageError
from torkit.path import path_from_json


async def test_paths_are_lines_that_path_takes(capsys: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor()
    print_paths(tor, count=3, exit_port=80, path=None)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert len(path_from_json(line, tor.directory)) == 3


async def test_named_path_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor()
    names = [relay.nickname for relay in list(tor.directory.consensus.relays)[:3]]
    print_paths(tor, count=1, exit_port=None, path=",".join(names))  # type: ignore[arg-type]
    path = path_from_json(capsys.readouterr().out, tor.directory)
    assert [relay.nickname for relay in path] == names


async def test_port_that_no_exit_allows_has_no_path() -> None:
    with pytest.raises(NoPath):
        print_paths(FakeTor(), count=1, exit_port=25, path=None)  # type: ignore[arg-type]


def test_consensus_is_read_from_a_pipe_or_a_file(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"network-status-version 3")
    os.close(writing)
    assert read_consensus(reading) == b"network-status-version 3"
    assert read_consensus(reading) is None  # nothing more
    os.close(reading)
    (tmp_path / "consensus").write_bytes(b"network")
    with (tmp_path / "consensus").open("rb") as file:
        assert read_consensus(file.fileno()) == b"network"


def test_device_is_not_read() -> None:
    with open("/dev/zero", "rb") as zeros:
        assert read_consensus(zeros.fileno()) is None


def test_document_without_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(1 << 34)
        with pytest.raises(UsageError, match="more than"):
            read_consensus(file.fileno())
