"""What rows say together, as a table and as plots."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from torkit.cli.app import run_command_line
from torkit.errors import DocumentError, NotPossible, UsageError
from torkit.scan.plots import LATENCY, REASONS, plot
from torkit.scan.report import at_share, read_report

HEAD: dict[str, Any] = {"version": 1, "digest": "ab", "seed": "", "position": "exit", "probe": "ping"}


def row(number: int, reason: str | None = None, **changes: Any) -> dict[str, Any]:
    return (
        HEAD
        | {"fingerprint": f"{number:040X}", "ok": reason is None, "step": reason and "hop3", "reason": reason}
        | {"began": "2026-11-29T10:00:00", "attempts": 2, "sent": 10, "received": 100}
        | {"build_seconds": number / 10, "probe_seconds": number / 100}
        | changes
    )


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / "0", row(1), row(2), row(3, "timed_out")),
        write(tmp_path / "1", row(4), row(5, "timed_out"), row(6, "connectfailed")),
    ]


def test_shards_are_counted_together(shards: list[Path]) -> None:
    report = read_report(shards)
    assert (report.row_count, report.ok_count) == (6, 3)
    assert report.reasons == {("hop3", "timed_out"): 2, ("hop3", "connectfailed"): 1}
    assert report.times == {"build_seconds": [0.1, 0.2, 0.4], "probe_seconds": [0.01, 0.02, 0.04]}
    assert (report.circuits, report.sent, report.received) == (12, 60, 600)
    lines = "\n".join(report.lines())
    assert "       3  ok  (50.0%)" in lines
    assert "       2  hop3: timed_out" in lines


def test_of_two_rows_of_one_relay_the_later_counts(tmp_path: Path) -> None:
    later = row(1, began="2026-11-29T11:00:00")
    for order in ([row(1, "timed_out"), later], [later, row(1, "timed_out")]):
        report = read_report([write(tmp_path / "rows", *order)])
        assert (report.row_count, report.ok_count) == (1, 1)


def test_rows_of_two_directories_are_refused(tmp_path: Path, shards: list[Path]) -> None:
    other = write(tmp_path / "other", row(7, digest="cd"))
    with pytest.raises(UsageError, match="other, line 1: a row of another campaign: digest 'cd', not 'ab'"):
        read_report([*shards, other])


def test_what_has_no_row_or_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no row in"):
        read_report([write(tmp_path / "empty")])
    with pytest.raises(UsageError, match="nowhere"):
        read_report([tmp_path / "nowhere"])
    (tmp_path / "binary").write_bytes(bytes(range(256)) + b"\n")
    with pytest.raises(DocumentError, match="no row of a scan"):
        read_report([tmp_path / "binary"])


def test_rows_where_nothing_is_well_or_fields_are_odd_have_a_table(tmp_path: Path) -> None:
    odd = row(2) | {"build_seconds": "soon", "sent": None, "step": ["x"], "ok": 1}
    report = read_report([write(tmp_path / "rows", row(1, "timed_out"), odd)])
    assert report.ok_count == 0
    assert list(report.lines())


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 10**400, -1])
def test_a_number_that_no_scan_writes_counts_as_nothing(tmp_path: Path, number: float) -> None:
    odd = row(2, sent=number, build_seconds=number)
    report = read_report([write(tmp_path / "rows", row(1), odd)])
    assert report.sent == 10
    assert report.times["build_seconds"] == [0.0, 0.1]
    assert list(report.lines())


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.9, 4.0), (1.0, 4.0)])
def test_shares_of_sorted_values(share: float, value: float) -> None:
    assert at_share([1.0, 2.0, 3.0, 4.0], share) == value


def test_plots_are_drawn(tmp_path: Path, shards: list[Path]) -> None:
    pytest.importorskip("matplotlib")
    written = plot(read_report(shards), tmp_path / "plots")
    assert [path.name for path in written] == [LATENCY, REASONS]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_without_matplotlib_it_says_how_to_get_it(
    tmp_path: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NotPossible, match="matplotlib") as raised:
        plot(read_report(shards), tmp_path / "plots")
    assert "torkit[plots]" in (raised.value.hint or "")
    assert not (tmp_path / "plots").exists()


def test_the_command_prints_the_table(
    shards: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_command_line(["scan", "report", *map(str, shards)]) == 0
    assert capsys.readouterr().out.startswith("version 1  digest ab  position exit  probe ping\n")
    assert run_command_line(["scan", "report", f"{tmp_path}/nowhere"]) == 2
    assert "nowhere: No such file" in capsys.readouterr().err
    assert run_command_line(["scan", "report"]) == 2
    assert run_command_line(["scan", "report", "--help"]) == 0
    assert "--png" in capsys.readouterr().out
