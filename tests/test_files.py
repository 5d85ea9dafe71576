"""Files where somebody else may have planted something."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from torkit.errors import StorageError
from torkit.files import (
    is_replaceable,
    make_file,
    make_private_directory,
    read_file,
    remove_file,
    replace_file,
    write_output,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
NOBODY = 65534


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- directories ---------------------------------------------------------------------------------------


def test_a_private_directory_and_those_above_it_are_for_their_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        make_private_directory(tmp_path / "state" / "torkit" / "public")
    finally:
        os.umask(umask)
    for path in ("state", "state/torkit", "state/torkit/public"):
        assert mode_of(tmp_path / path) == 0o700


@needs_root
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(StorageError, match="belongs to user 65534") as caught:
        make_private_directory(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(("mode", "mended"), [(0o777, 0o755), (0o770, 0o750), (0o702, 0o700), (0o755, 0o755)])
def test_a_directory_that_others_may_write_to_is_closed_to_them(
    tmp_path: Path, mode: int, mended: int
) -> None:
    tmp_path.chmod(mode)
    make_private_directory(tmp_path)
    assert mode_of(tmp_path) == mended


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_private_directory(tmp_path / "file")


def test_a_directory_that_users_share_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(StorageError, match="shared"):
        make_private_directory(tmp_path)
    assert mode_of(tmp_path) == 0o1777


def test_a_link_to_a_directory_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    make_private_directory(tmp_path / "link")


# --- reading -------------------------------------------------------------------------------------------


def test_a_file_is_read_to_its_limit_and_one_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_file(path, 3) is None
    path.write_bytes(b"12345")
    assert read_file(path, 3) == b"1234"
    assert read_file(path, 5) == b"12345"


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file")
    with pytest.raises(StorageError, match="not a regular file"):
        read_file(tmp_path / "file", 3)


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"1")
    (tmp_path / "file").symlink_to("secret")
    with pytest.raises(OSError, match="symbolic links"):
        read_file(tmp_path / "file", 3)


@needs_root
def test_a_file_that_somebody_else_has_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"{}")
    os.chown(tmp_path / "file", NOBODY, NOBODY)
    with pytest.raises(StorageError, match="belongs to user 65534"):
        read_file(tmp_path / "file", 3)


# --- writing -------------------------------------------------------------------------------------------


def test_no_link_is_followed_wherever_it_was_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(os, "urandom", bytes)  # somebody has guessed the name
    (tmp_path / f".torkit-{bytes(16).hex()}").symlink_to(victim)
    (tmp_path / f".file.{os.getpid()}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_output(tmp_path / "file", b"data")
    monkeypatch.undo()
    write_output(tmp_path / "file", b"data")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()


def test_a_link_in_the_place_of_the_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to("victim")
    write_output(tmp_path / "file", b"data")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "file").read_bytes() == b"data"


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "file", b"data", mode=0o666)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_made_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    make_file(path, b"first", mode=0o600)
    assert (path.read_bytes(), mode_of(path)) == (b"first", 0o600)
    with pytest.raises(FileExistsError):
        make_file(path, b"second", mode=0o600)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        make_file(tmp_path / "link", b"second", mode=0o600)
    assert path.read_bytes() == b"first"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "link"]


def test_files_have_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_output(tmp_path / "output", b"")
        replace_file(tmp_path / "state", b"", mode=0o600)
    finally:
        os.umask(umask)
    assert (mode_of(tmp_path / "output"), mode_of(tmp_path / "state")) == (0o640, 0o600)


def test_a_name_of_any_length_that_the_system_takes_will_do(tmp_path: Path) -> None:
    write_output(tmp_path / ("n" * 255), b"data")


def test_only_the_file_that_was_written_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = replace_file(path, b"first", mode=0o666)
    held = path.open()  # so that its inode is not given to the next
    second = replace_file(path, b"second", mode=0o666)
    remove_file(path, first)
    assert path.read_bytes() == b"second"
    remove_file(path, second)
    assert not path.exists()
    remove_file(path, second)
    held.close()


def test_a_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert not is_replaceable(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert write_output(pipe, b"data") is None
    assert os.read(reader, 9) == b"data"
    os.close(reader)


@pytest.mark.parametrize("name", ["stdout", "own", "fd/1"])
def test_a_name_of_our_own_output_is_not_replaced(tmp_path: Path, name: str) -> None:
    """As root, `-o /dev/stdout > file` would else make /dev/stdout a file."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    (tmp_path / "fd").symlink_to("/proc/self/fd")
    (tmp_path / "own").symlink_to("fd/1")
    script = "import sys; from pathlib import Path; from torkit.files import write_output as write\n"
    script += "write(Path(sys.argv[1]), b'data')\n"
    with (tmp_path / "target").open("w+b") as target:
        target.write(b"before ")
        target.flush()
        subprocess.run([sys.executable, "-c", script, tmp_path / name], stdout=target, check=True)
    assert (tmp_path / "target").read_bytes() == b"before data"
    assert (tmp_path / "stdout").is_symlink()
