"""What saves a file, where the disk refuses any call or the process dies at it: the old one or the new stays.

`make soak` has whole starts (tests/network/soak_crashes.py).
"""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from errno import EIO, ENOSPC
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import network_docs as nd
import pytest
from children import start_child, wait_for
from failing_disk import failing_disk

from torkit.cli.files import write_file
from torkit.directory.authorities import parse_certificates
from torkit.directory.cache import Cache
from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs
from torkit.errors import StorageError
from torkit.hs.keyfiles import KEY_FILE
from torkit.hs.keys import SecretKey
from torkit.net.hosting.keys import load_key, make_key
from torkit.scan.rows import RowFile, encode_row
from torkit.scan.unit import export, load
from torkit.share.inbox import Inbox
from torkit.testing.directory import RelayDoc, encode_microdescs
from torkit.testing.directory.authority import HOUR

AUTHORITIES = nd.authorities(2)
VOTERS = {one.v3ident: one.nickname for one in AUTHORITIES}
DOCS = nd.relays(4)


def some_microdescs(docs: Sequence[RelayDoc]) -> Microdescs:
    found = Microdescs()
    found.add(encode_microdescs(docs), {sha256(doc.microdesc()).digest() for doc in docs}, nd.NOW)
    return found


CONSENSUSES = [
    parse_consensus(nd.consensus(DOCS, AUTHORITIES, valid_after=nd.NOW - at)) for at in (HOUR, HOUR // 2)
]
CERTIFICATES = tuple(parse_certificates(one.certificate())[0] for one in AUTHORITIES)
MICRODESCS = [some_microdescs(DOCS[:count]) for count in (2, 4)]
SEED = bytes(range(32))
HEAD = {"version": 1, "digest": "ab", "seed": "", "position": "exit", "probe": "ping"}


class Kind(NamedTuple):
    """How something is saved in a directory, and what is there then; None where there is nothing.

    Both values are numbers: 0 is what was there before, 1 what is saved. Where `is_made_once`, there is no 0.
    """

    save: Callable[[Path, int], object]
    load: Callable[[Path], object]
    is_made_once: bool = False


def loads(what: Callable[[Cache], Any], values: list[Any]) -> Callable[[Path], object]:
    """Which of `values` a cache has."""
    return lambda path: None if (found := what(Cache(path))) is None else values.index(found)


def load_own_key(path: Path) -> int | None:
    if not (path / "service" / KEY_FILE).exists():
        return None
    assert load_key(path / "service").public == SecretKey.from_seed(SEED).public
    return 1


def export_unit(path: Path, _: int) -> None:
    directory = Directory(CONSENSUSES[1], MICRODESCS[1])
    export(directory, b"".join(one.text for one in CERTIFICATES), path / "units")


def load_unit(path: Path) -> int | None:
    units = path / "units"
    found = [one for one in units.iterdir() if not one.name.startswith(".")] if units.exists() else []
    for one in found:
        load(one, VOTERS, nd.NOW)
    return 1 if found else None


def add_row(path: Path, value: int) -> None:
    with closing(RowFile(path / "rows", HEAD)) as file:
        try:
            file.write(encode_row(HEAD | {"fingerprint": str(value)}))
        except OSError as error:  # RowWriter says which of these pass
            raise StorageError(str(error)) from error


def last_row(path: Path) -> int | None:
    with closing(RowFile(path / "rows", HEAD)) as file:
        return max(map(int, file.done), default=None)


def take_upload(path: Path, _: int) -> None:
    with closing(Inbox(path, 1 << 20)) as inbox:
        try:
            arrival = inbox.begin("name")
            try:
                arrival.write(b"1")
                arrival.finish()
            finally:
                arrival.discard()
        except OSError as error:  # the visitor is told
            raise StorageError(str(error)) from error


def read_number(path: Path) -> int | None:
    return int((path / "name").read_bytes()) if (path / "name").exists() else None


KINDS = {
    "state": Kind(
        lambda path, value: Cache(path).update_state({"n": value}),
        loads(Cache.load_state, [{"n": 0}, {"n": 1}]),
    ),
    "first state": Kind(
        lambda path, value: Cache(path).add_to_state({"n": value}),
        loads(Cache.load_state, [None, {"n": 1}]),
        True,
    ),
    "consensus": Kind(
        lambda path, value: Cache(path).save_consensus(CONSENSUSES[value]),
        loads(
            lambda cache: (kept := cache.load_consensus()) and kept.text, [one.text for one in CONSENSUSES]
        ),
    ),
    "certificates": Kind(
        lambda path, value: Cache(path).save_certificates(CERTIFICATES[: value + 1]),
        loads(lambda cache: (kept := cache.load_certificates()) and len(kept), [1, 2]),
    ),
    "microdescs": Kind(
        lambda path, value: Cache(path).save_microdescs(MICRODESCS[value], nd.NOW),
        loads(lambda cache: (kept := cache.load_microdescs()) and dict(kept), list(map(dict, MICRODESCS))),
    ),
    "key": Kind(lambda path, _: make_key(path / "service", SecretKey.from_seed(SEED)), load_own_key, True),
    "unit": Kind(export_unit, load_unit, True),
    "rows": Kind(add_row, last_row),
    "output": Kind(lambda path, value: write_file(path / "name", b"%d" % value), read_number),
    "upload": Kind(take_upload, read_number, True),
}


def names_in(path: Path) -> set[str]:
    return {str(one.relative_to(path)) for one in path.rglob("*")}


@pytest.mark.parametrize(
    ("code", "stays"),
    [(ENOSPC, False), (EIO, False), (EIO, True)],
    ids=["ENOSPC", "EIO", "EIO-from-there-on"],
)
@pytest.mark.parametrize("name", KINDS)
def test_a_disk_that_fails_at_any_call_leaves_the_old_or_the_new(
    tmp_path: Path, name: str, code: int, stays: bool
) -> None:
    kind = KINDS[name]
    before = None if kind.is_made_once else 0
    left: dict[str, set[str]] = {}  # the names of files, by what has failed
    for at in count():
        path = tmp_path / str(at)
        path.mkdir()
        if before is not None:
            kind.save(path, before)
        told = ""
        with failing_disk(at, code, stays=stays) as disk:
            try:
                kind.save(path, 1)
            except StorageError as error:
                told = str(error)
        if not disk.has_failed:
            break
        what = f"call {at} of {disk.calls}"
        if disk.calls[at] != "unlink":
            left[what] = names_in(path)
        found = kind.load(path)
        assert found == 1 or (found == before and os.strerror(code) in told), what
        if found != 1:
            kind.save(path, 1)
        assert kind.load(path) == 1, what
    assert len(left) >= 3
    whole = names_in(path)
    if not stays:  # else nothing can be removed, either
        assert {what: names - whole for what, names in left.items() if names - whole} == {}


@pytest.mark.parametrize("name", KINDS)
def test_a_process_killed_at_any_call_leaves_the_old_or_the_new(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    before = None if kind.is_made_once else 0

    def save_and_die(path: Path, at: int) -> None:
        with failing_disk(at, None):
            kind.save(path, 1)

    found: list[object] = []
    for at in count():
        path = tmp_path / str(at)
        path.mkdir()
        if before is not None:
            kind.save(path, before)
        if (status := wait_for(start_child(partial(save_and_die, path, at)))) == 0:
            break
        assert status == -signal.SIGKILL
        found.append(kind.load(path))
        assert found[-1] in (before, 1)
        if found[-1] != 1:
            kind.save(path, 1)
        assert kind.load(path) == 1
    assert len(found) >= 3
    assert found == sorted(found, key=lambda value: value == 1)  # from one call on, the new one
