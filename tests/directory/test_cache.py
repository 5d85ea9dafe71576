"""The data directory: whole files or none, shared, and never trusted."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import network_docs as nd
import pytest
from filelock import FileLock

from torkit.directory import cache as cache_module
from torkit.directory.authorities import parse_certificates
from torkit.directory.cache import Cache
from torkit.directory.consensus import parse_consensus
from torkit.directory.microdesc import KEEP_UNLISTED, Microdescs
from torkit.errors import StorageError

AUTHORITIES = nd.authorities(2)
DOCS = nd.relays(6)
CONSENSUS = parse_consensus(nd.consensus(DOCS, AUTHORITIES))
CERTIFICATES = tuple(parse_certificates(one.certificate())[0] for one in AUTHORITIES)
DIGESTS = [hashlib.sha256(doc.microdesc()).digest() for doc in DOCS]


def some_microdescs(docs: Sequence[nd.RelayDoc] = DOCS, now: int = nd.NOW) -> Microdescs:
    kept = Microdescs()
    kept.add(nd.microdescs(docs), set(DIGESTS), now)
    return kept


def fill(directory: Path) -> Cache:
    cache = Cache(directory)
    cache.save_consensus(CONSENSUS)
    cache.save_certificates(CERTIFICATES)
    cache.save_microdescs(some_microdescs(), nd.NOW)
    cache.save_state({"guard": "AB", "n": [1]})
    return cache


def test_empty_directory_has_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.load_consensus() is None
    assert cache.load_certificates() is None
    assert cache.load_microdescs() is None
    assert cache.load_state() is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    fill(tmp_path)
    cache = Cache(tmp_path)
    loaded = cache.load_consensus()
    assert loaded is not None
    assert loaded.text == CONSENSUS.text
    certificates = cache.load_certificates()
    assert certificates is not None
    assert [one.text for one in certificates] == [one.text for one in CERTIFICATES]
    assert dict(cache.load_microdescs() or {}) == dict(some_microdescs())
    assert cache.load_state() == {"guard": "AB", "n": [1]}


def test_files_are_their_owners_alone_and_nothing_temporary_stays(tmp_path: Path) -> None:
    fill(tmp_path)
    names = {path.name for path in tmp_path.iterdir()} - {cache_module.LOCK}
    assert names == {"consensus-microdesc", "certificates", "microdescs", "state.json"}
    for name in names:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["consensus-microdesc", "certificates"])
def test_every_truncation_is_dropped(tmp_path: Path, name: str) -> None:
    """Or, where it is cut between two signatures or certificates, has fewer of them."""
    cache = fill(tmp_path)

    def count() -> int:
        consensus = cache.load_consensus()
        return len(consensus.signatures if consensus else ()) + len(cache.load_certificates() or ())

    whole, text = count(), (tmp_path / name).read_bytes()
    for end in range(0, len(text) - 1, max(1, len(text) // 60)):
        (tmp_path / name).write_bytes(text[:end])
        assert count() < whole


def test_truncated_microdescs_lose_the_last_one_at_most(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    path = tmp_path / "microdescs"
    text = path.read_bytes()
    path.write_bytes(text[:-40])
    assert cache.load_microdescs() is None
    path.write_bytes(text[:-40] + b"\n")
    assert set(DIGESTS[:5]) <= set(cache.load_microdescs() or {})


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 100, b"\xff\n", b"[1]", b"[" * 100_000, b"{}" + b" " * (2 << 20)]
)
def test_junk_is_dropped_and_replaced(tmp_path: Path, junk: bytes) -> None:
    cache = Cache(tmp_path)
    for name in ("consensus-microdesc", "certificates", "microdescs"):
        (tmp_path / name).write_bytes(junk)
    assert cache.load_consensus() is None
    assert cache.load_certificates() is None
    assert not cache.load_microdescs()
    fill(tmp_path)
    assert cache.load_microdescs()


STATE = b'{\n "guard": "AB",\n "n": [\n  1\n ]\n}\n'


@pytest.mark.parametrize(
    "junk",
    [
        b"\0" * 100,
        b"\xff\n",
        b"[1]",
        b"[" * 100_000,
        b"{}" + b" " * (2 << 20),
        *(STATE[:end] for end in range(len(STATE) - 1)),
    ],
)
def test_a_state_that_cannot_be_read_is_set_aside(tmp_path: Path, junk: bytes) -> None:
    """Of documents there are others to be had, of a list of guards there is none."""
    cache = Cache(tmp_path)
    cache.save_state({"guard": "AB", "n": [1]})
    assert (tmp_path / "state.json").read_bytes() == STATE
    for number in (1, 2):
        (tmp_path / "state.json").write_bytes(junk)
        with pytest.raises(StorageError, match=rf"state\.json\.damaged-{number}$"):
            cache.load_state()
        assert (tmp_path / f"state.json.damaged-{number}").read_bytes() == junk
        assert cache.load_state() is None
    cache.save_state({"newer": 1})
    assert cache.load_state() == {"newer": 1}


def test_a_state_that_cannot_be_opened_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()
    with pytest.raises(StorageError, match="damaged-1"):
        Cache(tmp_path).load_state()
    assert (tmp_path / "state.json.damaged-1").is_dir()


def test_microdescs_of_another_process_are_kept_and_old_ones_expire(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.save_microdescs(some_microdescs(DOCS[:3], nd.NOW), nd.NOW)
    later = nd.NOW + KEEP_UNLISTED
    Cache(tmp_path).save_microdescs(some_microdescs(DOCS[3:], later), later)
    assert set(cache.load_microdescs() or {}) == set(DIGESTS)
    cache.save_microdescs(Microdescs(), later + 1)
    assert set(cache.load_microdescs() or {}) == set(DIGESTS[3:])


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    killed = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from torkit.directory.cache import Cache
os.replace = lambda *_: os._exit(9)
Cache(Path({str(tmp_path)!r})).save_state({{"new": 1}})
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    assert cache.load_state() == {"guard": "AB", "n": [1]}
    cache.save_state({"newer": 2})  # nor does the dead process still hold the lock
    assert cache.load_state() == {"newer": 2}


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: Cache(tmp_path).save_state({str(n): "x" * 10_000}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (value,) = (Cache(tmp_path).load_state() or {}).values()
    assert value == "x" * 10_000


def test_a_held_lock_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "LOCK_TIMEOUT", 0)
    with (
        FileLock(tmp_path / cache_module.LOCK),
        pytest.raises(StorageError, match="another process") as caught,
    ):
        Cache(tmp_path).save_state({})
    assert caught.value.hint is not None


def test_a_directory_that_is_not_there_or_no_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(StorageError):
            Cache(path).save_state({})
    (tmp_path / "state.json").mkdir()
    with pytest.raises(StorageError, match=r"state\.json"):
        Cache(tmp_path).load_state()


@pytest.mark.parametrize(
    ("code", "hint"), [(errno.ENOSPC, "space"), (errno.EROFS, "writable"), (errno.EACCES, "writable")]
)
def test_full_or_read_only_disk_is_a_storage_error_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str
) -> None:
    cache = fill(tmp_path)

    def fail(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match=os.strerror(code)) as caught:
            cache.save_state({"new": 1})
    assert hint in (caught.value.hint or "")
    assert cache.load_state() == {"guard": "AB", "n": [1]}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".state")]
