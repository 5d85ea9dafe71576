"""What `torkit scan` and `torkit cache` say before they need a network."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from campaigns import unit_of as frozen
from cli.shelf import Shelf, some_relays
from network.torkit_process import Shell, wait_until
from served import serve_network
from served_shell import shell_on

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs
from torkit.scan.unit import export
from torkit.testing.directory import encode_microdescs, make_authorities, signed_service
from torkit.testing.directory.authority import HOUR


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "connect"], "connect takes HOST:PORT"),
        (["--", "connect", "web.test"], "no port in 'web.test'"),
        (["--", "connect", "web.test:0"], "port 0 cannot be connected to"),
        (["--", "connect", "localhost:80"], "no exit can reach it"),
        (["--", "tls", "a", "b"], "tls takes HOST[:PORT]"),
        (["--", "http", "ftp://web.test/"], "is no URL in http or https"),
        (["--", "http", "http://me:secret@web.test/"], "no credentials"),
        (["--", "http", "http://web.test/a b"], "no URL that HTTP takes"),
        (["--", "http"], "http takes [-H NAME]... URL"),
        (["--", "dns", "no name"], "neither an address nor a host name"),
        (["--", "ping", "-c", "3"], "ping takes nothing"),
        (["--", "no-such-command"], "no probe and no command 'no-such-command'"),
        (["--shard", "1", "--", "ping"], "'1' is no shard"),
        (["--shard", "/8", "--", "ping"], "'/8' is no shard"),
        (["--rate", "0", "--", "ping"], "--rate"),
        (["--rate", "nan", "--", "ping"], "--rate"),
        (["--position", "end", "--", "ping"], "a position is guard, middle, exit"),
        (["--cache", "/nonexistent", "--", "ping"], "/nonexistent holds no exported directory"),
    ],
)
def test_what_can_never_work_is_said_at_once(shelf: Shelf, arguments: list[str], said: str) -> None:
    status, out, err = shelf("scan", *arguments)
    assert (status, out) == (2, "")
    assert said in err


def kill_and_resume(shell: Shell, rows: Path, line: str) -> list[dict[str, Any]]:
    """Kill a scan when its first row is there, and run it again. Returns the rows then."""
    with shell.running(f"exec torkit scan --rate 3 --resume {rows} {line}") as scan:
        wait_until(lambda: rows.exists() and b"\n" in rows.read_bytes(), 60, "a row")
        scan.kill()
        scan.wait()
    done = rows.read_bytes()
    again = shell.run(f"torkit scan --rate 1000 --resume {rows} {line}")
    assert again.returncode == 0, again.stderr
    assert rows.read_bytes().startswith(done[: done.rfind(b"\n") + 1])
    assert b"relays have their rows in" in again.stderr
    return [json.loads(row) for row in rows.read_bytes().splitlines()]


async def test_a_scan_that_is_killed_goes_on_and_repeats_no_row(tmp_path: Path) -> None:
    async with serve_network(exits=5) as network:
        unit = export(frozen(network).directory, network.service.certificates, tmp_path / "units")
        shell = shell_on(network, tmp_path)
        line = f"--cache {unit} -- ping"
        rows = await trio.to_thread.run_sync(kill_and_resume, shell, tmp_path / "rows", line)
    assert sorted(row["nickname"] for row in rows) == [f"exit{n}" for n in range(5)]
    assert all(row["ok"] for row in rows)


def unit_of(shelf: Shelf) -> Path:
    """The shelf's relays as an exported directory of now."""
    signers = make_authorities()
    service = signed_service(some_relays(), signers)
    texts = Microdescs.decode(encode_microdescs(some_relays()))
    directory = Directory(parse_consensus(service.consensus), texts)
    return export(directory, service.certificates, shelf.path / "units")


def test_a_shard_that_is_empty_or_none_is_said(shelf: Shelf) -> None:
    unit = unit_of(shelf)
    scan = ["scan", "--cache", f"{unit}", "--fingerprint", "01"]
    found = [shelf(*scan, "--shard", f"{n}/3", "--exit-port", "7", "--", "ping") for n in range(3)]
    assert [status for status, *_ in found] == [0, 0, 0]
    assert all("nothing to look at: none of 0 relays is in shard" in err for _, _, err in found)
    status, _, err = shelf(*scan, "--shard", "3/3", "--", "ping")
    assert status == 2
    assert "there is no shard 3/3" in err
    assert "the last of 3 is 2/3" in err


def test_rows_of_another_directory_are_refused(shelf: Shelf) -> None:
    unit, rows = unit_of(shelf), shelf.path / "rows"
    rows.write_text('{"fingerprint": "00", "version": 1, "digest": "other"}\n')
    status, _, err = shelf("scan", "--cache", f"{unit}", "--resume", f"{rows}", "--", "ping")
    assert status == 2
    assert "line 1: a row of another campaign: digest 'other'" in err
    assert "torkit cache export" in err


def test_a_directory_of_another_time_is_refused(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, now = unit_of(shelf), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 48 * HOUR)
    status, _, err = shelf("scan", "--cache", f"{unit}", "--", "ping")
    assert status == 3
    assert "expired" in err
