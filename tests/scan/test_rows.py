"""Files of rows: resumed after whatever has ended them, and never mixed."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from torkit.errors import DocumentError, StorageError, UsageError
from torkit.scan.rows import FULL_TIMEOUT, RowFile, RowWriter, encode_row, read_rows

HEAD: dict[str, Any] = {"version": 1, "digest": "ab", "seed": "", "position": "exit", "probe": "ping"}


def row(number: int, **changes: Any) -> dict[str, Any]:
    return HEAD | {"fingerprint": f"{number:040X}", "ok": True} | changes


def write(path: Path, *numbers: int) -> None:
    file = RowFile(path, HEAD)
    for number in numbers:
        file.write(encode_row(row(number)))
    file.close()


def fingerprints(path: Path) -> list[int]:
    return [int(one["fingerprint"], 16) for one, _ in read_rows(path)]


def test_rows_are_added_and_known_again(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    write(path, 1, 2)
    file = RowFile(path, HEAD)
    assert file.done == {f"{1:040X}", f"{2:040X}"}
    file.write(encode_row(row(3)))
    file.close()
    assert fingerprints(path) == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_that_was_cut_off_is_taken_away(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows"
    write(path, 1, 2)
    path.write_bytes(path.read_bytes()[:-cut])
    assert fingerprints(path) == [1]
    write(path, 3)
    assert fingerprints(path) == [1, 3]


def test_a_file_of_nothing_but_half_a_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"version"')
    write(path, 1)
    assert fingerprints(path) == [1]


@pytest.mark.parametrize("name", ["version", "digest", "seed", "position", "probe"])
def test_rows_of_another_campaign_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows"
    write(path, 1)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=f"line 1: a row of another campaign: {name}"):
        RowFile(path, HEAD | {name: "other"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"\0\xff\n", b"[]\n", b'{"fingerprint": 1}\n', b"[" * 100_000 + b"\n"])
def test_what_is_no_row_is_refused_and_left_as_it_is(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows"
    write(path, 1)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(DocumentError, match="line 2: no row"):
        RowFile(path, HEAD)
    assert path.read_bytes().endswith(line)


def test_a_line_without_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"x" * (2 << 20))
    with pytest.raises(DocumentError, match="line 1: more than"):
        list(read_rows(path))


def test_two_scans_do_not_write_one_file(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows", HEAD)
    with pytest.raises(StorageError, match="another scan is writing it"):
        RowFile(tmp_path / "rows", HEAD)
    file.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        RowFile(tmp_path / "nowhere" / "rows", HEAD)


class FullDisk:
    """Takes `room` more bytes, then none."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._pwrite = os.pwrite

    def __call__(self, file: int, data: bytes, offset: int) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._pwrite(file, data[: self.room], offset)
        self.room -= count
        return count


async def test_a_full_disk_is_waited_for_and_no_row_is_lost(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = FullDisk(room=len(encode_row(row(1))) + 20)
    monkeypatch.setattr(os, "pwrite", disk)
    file = RowFile(tmp_path / "rows", HEAD)
    writer = RowWriter(file)
    for number in range(1, 4):
        writer.emit(row(number))
    assert fingerprints(tmp_path / "rows") == [1]  # of the second, half was written and taken back
    assert "No space left" in caplog.text
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.wait_room)
        await trio.sleep(FULL_TIMEOUT / 2)
        disk.room = 10_000
    file.close()
    assert fingerprints(tmp_path / "rows") == [1, 2, 3]


async def test_a_disk_that_stays_full_ends_the_scan_with_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(os, "pwrite", FullDisk(room=len(encode_row(row(1))) + 20))
    file = RowFile(tmp_path / "rows", HEAD)
    writer = RowWriter(file)
    for number in range(1, 4):
        writer.emit(row(number))
    with pytest.raises(StorageError, match="no room for 2 rows"):
        await writer.wait_room()
    file.close()
    assert (tmp_path / "rows").read_bytes() == encode_row(row(1))
