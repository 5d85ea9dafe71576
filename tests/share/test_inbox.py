"""torkit.share.inbox and form: uploads appear whole or not at all, named harmlessly, within their bound."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from torkit.errors import StorageError
from torkit.share import form as form_module
from torkit.share import inbox as inbox_module
from torkit.share.form import BadForm, Form, Received
from torkit.share.inbox import MAX_NAME_LEN, MIN_FILE_SIZE, Inbox, InboxFull, to_file_name

BODY = (
    b"--edge\r\n"
    b'Content-Disposition: form-data; name="note"\r\n\r\nno file\r\n'
    b"--edge\r\n"
    b'Content-Disposition: form-data; name="file"; filename="one.bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n" + bytes(range(256)) * 4 + b"\r\n--edg\r\n"
    b"--edge\r\n"
    b'Content-Disposition: form-data; name="file"; filename="../tw\xc3\xb6.txt"\r\n\r\n\r\n'
    b"--edge\r\n"
    b'Content-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n'
    b"--edge--\r\n"
)
FILES = {"one.bin": bytes(range(256)) * 4 + b"\r\n--edg", "twö.txt": b""}
FORM_TYPE = 'multipart/form-data; boundary="edge"'


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    inbox = Inbox(tmp_path, 1 << 20)
    yield inbox
    inbox.close()


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def upload(inbox: Inbox, pieces: list[bytes]) -> list[Received]:
    form = Form(FORM_TYPE, inbox, lambda name: None)
    try:
        for piece in pieces:
            form.write(piece)
        form.finish()
    finally:
        form.discard()
    return form.received


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\a\\b.txt", "b.txt"),
        ("/", "unnamed"),
        ("", "unnamed"),
        ("..", "_."),
        (".bashrc", "_bashrc"),
        ("-rf", "_rf"),
        ("~root", "_root"),
        ("a\nb\x1b[31m\0.txt", "a_b_[31m_.txt"),
        ("gpj\N{RIGHT-TO-LEFT OVERRIDE}.exe", "gpj_.exe"),
        ("  a b  ", "a b"),
        ("ü" * 300 + ".tar", "ü" * ((MAX_NAME_LEN - 4) // 2) + ".tar"),
        ("x" * 300, "x" * MAX_NAME_LEN),
        ("a." + "y" * 300, "a." + "y" * (MAX_NAME_LEN - 2)),
    ],
)
def test_names_become_harmless(sent: str, name: str) -> None:
    assert to_file_name(sent) == name
    assert len(name.encode()) <= MAX_NAME_LEN


def test_a_file_appears_when_it_is_whole_and_for_its_owner_alone(inbox: Inbox, tmp_path: Path) -> None:
    arrival = inbox.begin("one.txt")
    arrival.write(b"on")
    arrival.write(b"e")
    assert "one.txt" not in files_in(tmp_path)
    assert arrival.finish() == "one.txt"
    arrival.discard()
    assert files_in(tmp_path) == {"one.txt": b"one"}
    assert (tmp_path / "one.txt").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "one.txt").stat().st_nlink == 1


def test_nothing_is_overwritten(inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "a(1).txt").symlink_to("/nowhere")
    (tmp_path / "b").mkdir()
    names = []
    for name in ("a.txt", "a.txt", "b"):
        arrival = inbox.begin(name)
        arrival.write(b"new")
        names.append(arrival.finish())
    assert names == ["a(2).txt", "a(3).txt", "b(1)"]
    assert (tmp_path / "a.txt").read_text() == "first"
    monkeypatch.setattr(inbox_module, "MAX_SAME_NAMES", 4)
    arrival = inbox.begin("a.txt")
    with pytest.raises(FileExistsError):
        arrival.finish()
    arrival.discard()
    assert len(files_in(tmp_path.joinpath("b"))) == 0
    assert len(list(tmp_path.iterdir())) == 6


def test_the_bound_is_of_all_files_and_what_is_discarded_is_given_back(inbox: Inbox, tmp_path: Path) -> None:
    first = inbox.begin("a")
    first.write(bytes(1 << 19))
    first.finish()
    second = inbox.begin("b")
    with pytest.raises(InboxFull):
        second.write(bytes((1 << 19) + 1))
    second.discard()
    assert list(files_in(tmp_path)) == ["a"]
    assert inbox.left == 1 << 19
    for _ in range((1 << 19) // MIN_FILE_SIZE):
        inbox.begin("empty").finish()
    with pytest.raises(InboxFull):
        inbox.begin("empty")


def test_a_part_of_the_disk_stays_free(inbox: Inbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inbox_module, "FREE_KEPT", 1 << 62)
    assert inbox.left == 0
    with pytest.raises(InboxFull):
        inbox.begin("a")
    assert files_in(tmp_path) == {}


def test_what_is_no_directory_to_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nothing", Path("/proc")):
        with pytest.raises(StorageError):
            Inbox(path, 1)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(inbox_module, "_link", refuse)  # as a file system without links
    with pytest.raises(StorageError, match="cannot be stored"):
        Inbox(tmp_path, 1)
    assert list(files_in(tmp_path)) == ["file"]


def test_what_a_killed_process_has_left_is_removed_but_no_file_that_comes(tmp_path: Path) -> None:
    left, other = tmp_path / f".torkit-upload-{'0' * 32}", tmp_path / ".torkit-state"
    left.write_bytes(b"half")
    other.write_bytes(b"somebody else's")
    with closing(Inbox(tmp_path, 1 << 20)) as inbox:
        assert files_in(tmp_path) == {".torkit-state": b"somebody else's"}
        arrival = inbox.begin("name")
        with closing(Inbox(tmp_path, 1 << 20)):
            arrival.write(b"1")
            assert arrival.finish() == "name"
    assert files_in(tmp_path) == {".torkit-state": b"somebody else's", "name": b"1"}


def test_a_full_disk_leaves_nothing(inbox: Inbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        with pytest.raises(OSError, match="No space"):
            upload(inbox, [BODY])
    assert files_in(tmp_path) == {}
    assert inbox.taken == 0


@pytest.mark.parametrize("size", [1, 7, 64, 1000, len(BODY)])
def test_a_form_may_come_in_any_pieces(inbox: Inbox, tmp_path: Path, size: int) -> None:
    received = upload(inbox, [BODY[at : at + size] for at in range(0, len(BODY), size)])
    assert files_in(tmp_path) == FILES
    assert received == [Received(name, len(data)) for name, data in FILES.items()]


def test_a_form_that_is_cut_leaves_whole_files_only(inbox: Inbox, tmp_path: Path) -> None:
    for end in range(len(BODY) - 4):
        with pytest.raises(BadForm):
            upload(inbox, [BODY[:end]])
        for name, data in files_in(tmp_path).items():
            assert FILES[name] == data, end
            (tmp_path / name).unlink()
        inbox.taken = 0


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"--other\r\n\r\n",
        b"--edge\r\nno header\r\n\r\n",
        b"--edge\r\n" + b"x" * 100_000,
        b'--edge\r\nContent-Disposition: form-data; filename="' + b"x" * 100_000 + b'"\r\n\r\n',
        b"--edge\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
    ],
)
def test_what_is_no_form_is_refused(
    inbox: Inbox, tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BadForm):
        upload(inbox, [body])
    assert files_in(tmp_path) == {}
    assert caplog.records == []  # or visitors could fill a terminal


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data", "multipart/form-data; boundary="])
def test_another_kind_of_body_is_refused(inbox: Inbox, kind: str) -> None:
    with pytest.raises(BadForm):
        Form(kind, inbox, lambda name: None)


def test_a_form_brings_so_many_files_and_no_more(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(form_module, "MAX_FILES", 1)
    with pytest.raises(BadForm, match="1 files"):
        upload(inbox, [BODY])
    assert list(files_in(tmp_path)) == ["one.bin"]
