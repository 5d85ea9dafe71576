"""The data directory: whole files or none, shared, and never trusted."""

import errno
import fcntl
import hashlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import network_docs as nd
import pytest
from children import start_child, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torkit.directory import cache as cache_module
from torkit.directory.authorities import parse_certificates
from torkit.directory.cache import Cache
from torkit.directory.consensus import parse_consensus
from torkit.directory.microdesc import KEEP_UNLISTED, Microdescs
from torkit.errors import StorageError
from torkit.testing.directory import RelayDoc, encode_microdescs

AUTHORITIES = nd.authorities(2)
DOCS = nd.relays(6)
CONSENSUS = parse_consensus(nd.consensus(DOCS, AUTHORITIES))
CERTIFICATES = tuple(parse_certificates(one.certificate())[0] for one in AUTHORITIES)
DIGESTS = [hashlib.sha256(doc.microdesc()).digest() for doc in DOCS]
FILES = {"consensus-microdesc", "certificates", "microdescs", "state.json"}
OLD, NEW = {"guard": "AB", "n": [1]}, {"guard": "CD", "n": list(range(500))}


def some_microdescs(docs: Sequence[RelayDoc] = DOCS, now: int = nd.NOW) -> Microdescs:
    kept = Microdescs()
    kept.add(encode_microdescs(docs), set(DIGESTS), now)
    return kept


def fill(directory: Path) -> Cache:
    cache = Cache(directory)
    cache.save_consensus(CONSENSUS)
    cache.save_certificates(CERTIFICATES)
    cache.save_microdescs(some_microdescs(), nd.NOW)
    cache.update_state(OLD)
    return cache


def load_all(cache: Cache) -> tuple[object, ...]:
    """What is kept, whatever it is; raises nothing."""
    return cache.load_consensus(), cache.load_certificates(), cache.load_microdescs(), cache.load_state()


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
    assert {path.name for path in tmp_path.iterdir()} - {cache_module.LOCK} == FILES
    for name in FILES:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["consensus-microdesc", "certificates"])
def test_every_truncation_is_dropped(tmp_path: Path, name: str) -> None:
    """Or, where it is cut between two signatures or certificates, has fewer of them."""
    cache = fill(tmp_path)

    def count() -> int:
        consensus = cache.load_consensus()
        return len(consensus.signatures if consensus else ()) + len(cache.load_certificates() or ())

    whole, text = count(), (tmp_path / name).read_bytes()
    for end in range(len(text) - 1):
        (tmp_path / name).write_bytes(text[:end])
        assert count() < whole


def test_truncated_microdescs_lose_the_last_one_at_most(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    path = tmp_path / "microdescs"
    text = path.read_bytes()
    for end in range(len(text)):
        path.write_bytes(text[:end])
        whole = set(cache.load_microdescs() or {}) & set(DIGESTS)
        assert len(whole) < 6
        path.write_bytes(text[:end] + b"\n")
        assert len(whole - set(cache.load_microdescs() or {})) <= 1
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
    cache.update_state({"guard": "AB", "n": [1]})
    assert (tmp_path / "state.json").read_bytes() == STATE
    for number in (1, 2):
        (tmp_path / "state.json").write_bytes(junk)
        with pytest.raises(StorageError, match=rf"state\.json\.damaged-{number}$"):
            cache.load_state()
        assert (tmp_path / f"state.json.damaged-{number}").read_bytes() == junk
        assert cache.load_state() is None
    cache.update_state({"newer": 1})
    assert cache.load_state() == {"newer": 1}


def test_of_many_damaged_states_the_first_and_the_last_are_kept(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / "state.json").write_text(f"{{{number}")
        with pytest.raises(StorageError, match="damaged-"):
            Cache(tmp_path).load_state()
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.damaged-*")}
    assert len(kept) == cache_module.MAX_SET_ASIDE
    assert kept["state.json.damaged-1"] == "{0"
    assert kept[f"state.json.damaged-{cache_module.MAX_SET_ASIDE}"] == "{11"


def test_what_is_added_to_a_state_replaces_nothing(tmp_path: Path) -> None:
    first = {"guards": ["a"], "more": []}
    assert Cache(tmp_path).add_to_state(first) == first
    assert Cache(tmp_path).add_to_state({"guards": ["b"], "more": ["c"]}) == {"guards": ["a"], "more": ["c"]}
    assert Cache(tmp_path).load_state() == {"guards": ["a"], "more": ["c"]}
    (tmp_path / "state.json").write_bytes(b"[")
    assert Cache(tmp_path).add_to_state(first) == first
    assert (tmp_path / "state.json.damaged-1").read_bytes() == b"["


def test_processes_that_add_at_once_agree(tmp_path: Path) -> None:
    def work(number: int) -> None:
        agreed = Cache(tmp_path).add_to_state({"guards": [number]})
        assert Cache(tmp_path).load_state() == agreed

    children = [start_child(partial(work, number)) for number in range(6)]
    assert [wait_for(child) for child in children] == [0] * 6


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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    name=st.sampled_from(sorted(FILES)),
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=20)), min_size=1, max_size=4),
)
def test_no_damage_is_fatal(tmp_path: Path, name: str, edits: list[tuple[int, bytes]]) -> None:
    cache = Cache(tmp_path) if (tmp_path / "state.json").exists() else fill(tmp_path)
    whole = (tmp_path / name).read_bytes()
    text = bytearray(whole)
    for at, data in edits:
        text[at % (len(text) + 1) :][: len(data)] = b""
        text[at % (len(text) + 1) : at % (len(text) + 1) + len(data)] = data
    (tmp_path / name).write_bytes(text)
    with suppress(StorageError) if name == "state.json" else nullcontext():  # that one is set aside
        load_all(cache)
    (tmp_path / name).write_bytes(whole)


# --- Crashes, each in a process of its own ---------------------------------------------------------------


def die_around(step: int) -> None:
    """Have this process die before or after one of its calls of the operating system."""
    calls = 0

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            for is_done in (False, True):
                if is_done:
                    result = call(*args, **kwargs)
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
            return result

        return counted

    for name in ("open", "fsync", "unlink", "replace", "close"):
        setattr(os, name, wrap(getattr(os, name)))


def check_after_a_crash(directory: Path) -> bool:
    """Nothing is half written, and the next one to save clears up. Whether the new state was kept."""
    cache = Cache(directory)
    state = cache.load_state()
    assert state in (OLD, NEW)
    assert None not in load_all(cache)
    assert {path.name for path in directory.iterdir()} <= FILES | {"lock", "unfinished"}
    cache.save_certificates(CERTIFICATES)  # nor does the dead process hold the lock
    assert {path.name for path in directory.iterdir()} == FILES | {"lock"}
    cache.update_state(OLD)
    return state == NEW


def test_a_process_killed_at_any_call_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    fill(tmp_path)
    kept: list[bool] = []

    def save_and_die() -> None:
        die_around(len(kept))
        Cache(tmp_path).update_state(NEW)

    while (status := wait_for(start_child(save_and_die))) == -signal.SIGKILL:
        kept.append(check_after_a_crash(tmp_path))
    assert status == 0
    assert len(kept) >= 16  # open, unlink, open, fsync, replace, open, fsync, close, of both sides
    assert kept == sorted(kept)  # from the renaming on, the new one
    assert set(kept) == {False, True}


def test_a_process_killed_at_any_byte_leaves_the_old_file(tmp_path: Path) -> None:
    fill(tmp_path)
    Cache(tmp_path).update_state(NEW)
    size = (tmp_path / "state.json").stat().st_size
    Cache(tmp_path).update_state(OLD)

    def save_up_to(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        Cache(tmp_path).update_state(NEW)

    for limit in [*range(0, size, 211), size - 1]:
        assert wait_for(start_child(partial(save_up_to, limit))) == -signal.SIGXFSZ
        assert not check_after_a_crash(tmp_path)
    assert wait_for(start_child(partial(save_up_to, size))) == 0


def test_what_is_renamed_is_on_the_disk_and_so_is_the_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power may fail at any time: what is not synced then may be anything."""
    cache = fill(tmp_path)
    fsync, replace = os.fsync, os.replace
    synced: dict[int, int] = {}  # size by inode

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    def note_replace(source: Path, target: Path) -> None:
        assert synced[source.stat().st_ino] == source.stat().st_size > 0
        synced.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    cache.update_state(NEW)
    assert set(synced) == {tmp_path.stat().st_ino}


# --- Several at once -------------------------------------------------------------------------------------


def test_processes_at_once_see_whole_files_and_lose_no_microdescs(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "microdescs").unlink()
    Cache(tmp_path).save_microdescs(Microdescs(), nd.NOW)

    def work(number: int) -> None:
        cache = Cache(tmp_path)
        for turn in range(5):
            cache.update_state({"n": [number, turn] * 2000})
            cache.save_microdescs(some_microdescs([DOCS[number]]), nd.NOW)
            cache.save_consensus(CONSENSUS)
            consensus, certificates, microdescs, state = load_all(cache)
            assert isinstance(state, dict)
            assert len(state["n"]) == 4000
            assert isinstance(microdescs, Microdescs)
            assert DIGESTS[number] in microdescs
            assert consensus is not None
            assert certificates is not None

    children = [start_child(partial(work, number)) for number in range(4)]
    assert [wait_for(child) for child in children] == [0] * 4
    assert set(Cache(tmp_path).load_microdescs() or {}) == set(DIGESTS[:4])
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"lock"}


def test_many_writers_each_leave_what_is_theirs(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: Cache(tmp_path).update_state({str(n): "x" * 10_000}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Cache(tmp_path).load_state() == {str(n): "x" * 10_000 for n in range(8)}


def test_what_cannot_be_read_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b"[")
    Cache(tmp_path).update_state({"newer": 1})
    assert (tmp_path / "state.json.damaged-1").read_bytes() == b"["
    assert Cache(tmp_path).load_state() == {"newer": 1}


def test_a_held_lock_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "LOCK_TIMEOUT", 0)
    with (tmp_path / cache_module.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process") as caught:
            Cache(tmp_path).update_state({})
    assert caught.value.hint is not None
    Cache(tmp_path).update_state({})  # it went with its holder


@pytest.mark.parametrize("code", sorted(cache_module.NO_LOCKS))
def test_file_system_without_locks_keeps_the_guards_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """They were not kept, so that every start drew new ones; or a library said so in its own words."""

    def fail(_descriptor: object, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.warns(UserWarning, match="no locks") as warned:
        Cache(tmp_path).update_state(OLD)
    assert len(warned) == 1
    assert Cache(tmp_path).load_state() == OLD


def test_lock_that_fails_otherwise_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: object, _operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        Cache(tmp_path).update_state(OLD)


def test_a_directory_that_is_not_there_or_no_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(StorageError):
            Cache(path).update_state({})
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
            cache.update_state({"new": 1})
    assert hint in (caught.value.hint or "")
    assert cache.load_state() == {"guard": "AB", "n": [1]}
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"lock"}


# A file system of its own, in a namespace of its own: small, then full, then read-only.
FULL_AND_READ_ONLY = """
import subprocess, sys
sys.path[:0] = {path!r}
from pathlib import Path
from torkit.directory.cache import Cache
from torkit.errors import StorageError

place = Path({place!r})
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)
cache = Cache(place)
cache.update_state({{"old": 1}})
print("mounted")

def refuse(state, hint):
    try:
        cache.update_state(state)
    except StorageError as error:
        assert hint in error.hint, error.hint
    else:
        raise AssertionError("it was saved")
    assert cache.load_state() == {{"old": 1}}
    assert sorted(path.name for path in place.iterdir()) == ["lock", "state.json"]

refuse({{"new": "x" * 100_000}}, "free some space")
cache.update_state({{"old": 1}})
subprocess.run(["mount", "-o", "remount,ro", place], check=True)
refuse({{"new": 1}}, "make it writable")
print("passed")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="not installed: unshare")
def test_a_real_disk_that_is_full_or_read_only_keeps_the_old_file(tmp_path: Path) -> None:
    program = FULL_AND_READ_ONLY.format(path=sys.path, place=str(tmp_path))
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    if not result.stdout:
        pytest.skip(f"no file system can be mounted here: {result.stderr.strip().splitlines()[-1:]}")
    assert result.stdout == "mounted\npassed\n", result.stderr


# --- what others may have planted ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_planted_pipe_is_told_and_not_waited_for(tmp_path: Path, name: str) -> None:
    cache = fill(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(StorageError, match="not a regular file"):
        load_all(cache)


@pytest.mark.parametrize("name", ["lock", "unfinished"])
def test_a_planted_link_is_never_written_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("precious")
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / name).symlink_to(tmp_path / "victim")
    with suppress(StorageError):
        Cache(directory).update_state(NEW)
    assert (tmp_path / "victim").read_text() == "precious"
