"""`torkit build-circuit` with a client in memory."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from fake_tor import FakeTor, as_tor

from torkit.cli.build_circuit import build, build_linked
from torkit.paths.text import path_from_json, path_to_json


@contextmanager
def stdin_with(data: bytes) -> Iterator[None]:
    saved = os.dup(0)
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)


async def test_circuits_are_printed_as_lines_that_path_takes_and_closed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tor = FakeTor()
    await build(as_tor(tor), count=2, path=None, for_people=False)
    lines = capsys.readouterr().out.splitlines()
    assert [path_from_json(line, tor.directory) for line in lines] == [one.path for one in tor.circuits]
    assert [hop["handshake"] for hop in json.loads(lines[0])["path"]] == ["ntor"] * 3
    assert [hop["seconds"] for hop in json.loads(lines[0])["path"]] == [0.1] * 3
    assert [one.is_closed for one in tor.circuits] == [True, True]


@pytest.mark.parametrize(("count", "built"), [(None, 3), (2, 2), (5, 3)])
async def test_each_line_of_stdin_is_one_circuit(count: int | None, built: int) -> None:
    tor = FakeTor()
    relays = [relay for index in range(5) if (relay := tor.directory.relay_at(index))]
    wanted = [tuple(relays[first : first + 3]) for first in range(3)]
    with stdin_with("".join(path_to_json(path) + "\n" for path in wanted).encode()):
        await build(as_tor(tor), count=count, path="-", for_people=False)
    assert [one.path for one in tor.circuits] == wanted[:built]


async def test_who_waits_for_a_path_on_stdin_can_be_told_to_stop() -> None:
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        with trio.move_on_after(0.1) as scope:
            await build(as_tor(FakeTor()), count=None, path="-", for_people=False)
        assert scope.cancelled_caught
    finally:
        os.close(writing)  # before stdin is another file's: the thread left behind reads its end
        os.dup2(saved, 0)
        os.close(saved)


async def test_people_get_a_row_for_each_hop(capsys: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor()
    await build(as_tor(tor), count=2, path=None, for_people=True)
    header, *rows, between, _, _, _ = capsys.readouterr().out.splitlines()
    circuit, _ = tor.circuits
    assert header.split() == ["hop", "relay", "address", "keys", "cells", "flow", "time"]
    assert len(header) == len(rows[0])
    assert (between, len(rows)) == ("", 3)
    for row, relay in zip(rows, circuit.path, strict=True):
        assert relay.nickname in row
        assert f"{relay.address}:{relay.or_port}" in row
        assert "100.0 ms" in row


async def test_a_set_is_one_line_with_the_delay_of_each_leg(capsys: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor()
    await build_linked(as_tor(tor), count=2, for_people=False)
    first, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert [leg["rtt"] for leg in first["legs"]] == [0.2, 0.3]
    assert [len(leg["path"]) for leg in first["legs"]] == [3, 3]
    assert [one.is_closed for one in tor.sets] == [True, True]


async def test_people_get_a_row_below_each_leg_when_it_was_linked(capsys: pytest.CaptureFixture[str]) -> None:
    await build_linked(as_tor(FakeTor()), count=1, for_people=True)
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split() for row in rows[3::4]] == [["linked", "200.0", "ms"], ["linked", "300.0", "ms"]]
