"""The exported directory: the same bytes under the same name, and whatever is wrong with it is said."""

import os
import shutil
from pathlib import Path

import network_docs as nd
import pytest

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs
from torkit.errors import DocumentError, NoDirectory, StorageError, UsageError
from torkit.scan.unit import export, freeze, load
from torkit.testing.directory import encode_microdescs
from torkit.testing.directory.authority import HOUR

SIGNERS = nd.authorities()
VOTERS = {one.v3ident: one.nickname for one in SIGNERS}
CERTIFICATES = b"".join(one.certificate() for one in SIGNERS)
DOCS = nd.relays(12)


def some_directory(held: int = len(DOCS)) -> Directory:
    texts = Microdescs.decode(encode_microdescs(DOCS[:held]))
    return Directory(parse_consensus(nd.consensus(DOCS, SIGNERS)), texts)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    return export(some_directory(), CERTIFICATES, tmp_path / "units")


def test_what_was_exported_is_loaded(unit: Path) -> None:
    loaded = load(unit, VOTERS, nd.NOW)
    assert loaded.digest == unit.name == freeze(some_directory()).digest
    assert [loaded.directory.relay_at(n) for n in range(12)] == [
        some_directory().relay_at(n) for n in range(12)
    ]
    assert sorted(path.name for path in unit.iterdir()) == [
        *("certificates", "consensus-microdesc", "digest", "microdescs"),
    ]


def test_the_order_in_which_microdescriptors_came_does_not_matter() -> None:
    texts = Microdescs.decode(encode_microdescs(reversed(DOCS)))
    other = Directory(parse_consensus(nd.consensus(DOCS, SIGNERS)), texts)
    assert freeze(other).digest == freeze(some_directory()).digest
    assert freeze(some_directory(held=11)).digest != freeze(some_directory()).digest


def test_a_second_export_leaves_the_first_as_it_is(unit: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unit.iterdir()}
    assert export(some_directory(), CERTIFICATES, unit.parent) == unit
    assert {path: path.stat().st_mtime_ns for path in unit.iterdir()} == before
    assert list(unit.parent.iterdir()) == [unit]


def test_relays_without_microdescriptors_do_not_spoil_it(tmp_path: Path) -> None:
    place = export(some_directory(held=5), CERTIFICATES, tmp_path)
    assert len(load(place, VOTERS, nd.NOW).directory.missing) == 7


def test_loading_writes_nothing(unit: Path) -> None:
    before = (unit.stat().st_mtime_ns, sorted(os.listdir(unit)))
    load(unit, VOTERS, nd.NOW)
    assert (unit.stat().st_mtime_ns, sorted(os.listdir(unit))) == before


@pytest.mark.parametrize("name", ["certificates", "consensus-microdesc", "microdescs"])
def test_what_is_incomplete_or_damaged_is_refused(unit: Path, name: str) -> None:
    path = unit / name
    text = path.read_bytes()
    path.unlink()
    with pytest.raises(DocumentError, match=f"incomplete: it lacks {name}"):
        load(unit, VOTERS, nd.NOW)
    path.write_bytes(text[: len(text) // 2])
    with pytest.raises((DocumentError, NoDirectory)):
        load(unit, VOTERS, nd.NOW)
    path.write_bytes(b"\0" * 1000)
    with pytest.raises(DocumentError, match="damaged"):
        load(unit, VOTERS, nd.NOW)


def test_a_microdescriptor_that_is_gone_is_seen(unit: Path) -> None:
    (unit / "microdescs").write_bytes(encode_microdescs(DOCS[:-1]))
    with pytest.raises(DocumentError, match="damaged: its digest is"):
        load(unit, VOTERS, nd.NOW)


def test_another_networks_is_refused(unit: Path) -> None:
    with pytest.raises(NoDirectory, match="0 good signatures") as raised:
        load(unit, {bytes([9]) * 20: "stranger"}, nd.NOW)
    assert "another network" in (raised.value.hint or "")


def test_one_that_is_too_old_is_refused(unit: Path) -> None:
    load(unit, VOTERS, nd.NOW + 24 * HOUR)
    with pytest.raises(NoDirectory, match="expired"):
        load(unit, VOTERS, nd.NOW + 48 * HOUR)


def test_a_place_without_one_says_how_to_get_one(unit: Path) -> None:
    for place in (unit.parent, unit / "digest", unit / "nowhere"):
        with pytest.raises(UsageError, match="no exported directory") as raised:
            load(place, VOTERS, nd.NOW)
        assert "torkit cache export" in (raised.value.hint or "")


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        export(some_directory(), CERTIFICATES, tmp_path / "file" / "units")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        export(some_directory(), CERTIFICATES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_is_removed_by_the_next_export(tmp_path: Path) -> None:
    left = tmp_path / ".unfinished-1-0123"
    left.mkdir()
    (left / "consensus-microdesc").write_bytes(b"network-status-version 3")
    assert list(tmp_path.iterdir()) == [left]
    unit = export(some_directory(), CERTIFICATES, tmp_path)
    assert list(tmp_path.iterdir()) == [unit]


def test_a_copy_under_another_name_serves(unit: Path, tmp_path: Path) -> None:
    shutil.copytree(unit, tmp_path / "cache")
    assert load(tmp_path / "cache", VOTERS, nd.NOW).digest == unit.name
