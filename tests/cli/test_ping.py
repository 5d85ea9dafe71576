"""`torkit ping` on a circuit through scripted relays: what is asked, what is printed, what is lost."""

import json
from typing import Any

import pytest
import trio
import trio.testing
from cli.shelf import Shelf
from served import serve_circuit

from torkit.cli.failures import WRONG_USAGE
from torkit.cli.ping import Report, histogram, measure, summary
from torkit.errors import EndReason, TorkitError
from torkit.testing.relay import FakeStream, answer_begin, ignore

WEB = ("web.test", 80)


async def lines_of(capsys: Any, on_begin: Any, *, count: int = 3) -> tuple[list[Any], list[TorkitError]]:
    async with serve_circuit() as (circuit, relays):
        relays[-1].on_begin = on_begin
        report = Report(for_people=False)
        report.show_hops(circuit)
        failures = await measure(circuit, WEB, count, 0.0, report)
        report.finish()
        assert circuit.stream_count == 0
        circuit.close()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()], failures


async def test_hops_the_exits_refusals_and_streams_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def answer(stream: FakeStream) -> None:
        asked.append(stream.target)
        if stream.target == WEB:
            answer_begin(stream)
        else:
            stream.end(EndReason.EXITPOLICY)

    rows, failures = await lines_of(capsys, answer)
    assert failures == []
    assert [row["kind"] for row in rows] == ["hop"] * 3 + ["circuit", "stream"] * 3
    assert [row["number"] for row in rows] == [1, 2, 3, 1, 1, 2, 2, 3, 3]
    assert all(row["seconds"] >= 0 for row in rows)
    assert len(rows[0]["fingerprint"]) == 40
    probed = [target for target in asked if target != WEB]
    assert len(probed) == 3
    assert all(target is not None and target[0].startswith("0.") for target in probed)


async def test_what_is_refused_is_lost_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    rows, failures = await lines_of(capsys, lambda stream: stream.end(EndReason.CONNECTREFUSED), count=2)
    assert ["error" in row for row in rows[3:]] == [False, True] * 2  # any refusal is an answer of the exit's
    assert "refused" in rows[4]["error"]
    assert len(failures) == 2


async def test_what_is_not_answered_is_lost_after_a_time(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.1
    rows, failures = await lines_of(capsys, ignore, count=1)
    assert [row.get("error") for row in rows[3:]] == ["no answer within 10 s"] * 2
    assert len(failures) == 2


async def test_an_end_of_the_circuit_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve_circuit() as (circuit, relays):
        relays[-1].on_begin = lambda stream: stream.circuit.destroy()
        with pytest.raises(TorkitError):
            await measure(circuit, None, 3, 0.0, Report(for_people=True))


def test_a_histogram() -> None:
    values = [0.010, 0.011, 0.011, 0.050, 0.110]
    lines = histogram(values, 60)
    assert len(lines) == 4
    assert [line.rpartition(" ")[2] for line in lines] == ["3", "1", "0", "1"]
    assert lines[0].startswith("   10.0 -    35.0 ms  ####")
    assert max(map(len, lines)) <= 60
    assert histogram([0.02] * 7, 60)[0].endswith(" 7")
    assert len(histogram([number / 1000 for number in range(1000)], 80)) == 10


def test_a_summary() -> None:
    assert summary("circuit", [0.1, 0.3, 0.2, 0.4], 2) == (
        "circuit: 4 round trips, 2 lost, least 100.0 ms, median 250.0 ms, most 400.0 ms"
    )


@pytest.mark.parametrize(
    "arguments", [["-i", "0.1"], ["-c", "0"], ["-c", "1001"], ["--path", "-"], ["a.onion:80"], ["web.test"]]
)
def test_what_is_refused_before_a_start(shelf: Shelf, arguments: list[str]) -> None:
    (shelf.path / "data").mkdir()
    assert shelf("ping", *arguments)[0] == WRONG_USAGE
