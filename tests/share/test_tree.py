"""torkit.share.tree: what is under a path is shared, and nothing else, whatever names and links say."""

import os
import socket
from pathlib import Path

import pytest

from torkit.errors import StorageError
from torkit.share import tree as tree_module
from torkit.share.tree import Entry, Summary, Tree


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory to be shared, beside a secret; with everything in it that could lead there, or block."""
    (tmp_path / "secret").write_text("secret")
    place = tmp_path / "place"
    (place / "sub" / "deep").mkdir(parents=True)
    (place / "one.txt").write_text("one")
    (place / ".hidden").write_text("hidden")
    (place / "sub" / "two.txt").write_text("two!")
    (place / "sub" / "deep" / "empty").touch()
    (place / "link").symlink_to("one.txt")
    (place / "out").symlink_to(tmp_path / "secret")
    (place / "up").symlink_to("..")
    os.mkfifo(place / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(place)  # a socket's path is short
        sock.bind("socket")
        os.chdir(here)
    return place


def read(tree: Tree, *names: str) -> str:
    found = tree.open(names)
    with open(found.handle) as file:
        return file.read()


def test_files_and_directories_are_listed_and_nothing_else(place: Path) -> None:
    tree = Tree(place)
    assert tree.entries([]) == [Entry("sub", None), Entry(".hidden", 6), Entry("one.txt", 3)]
    assert tree.entries(["sub"]) == [Entry("deep", None), Entry("two.txt", 4)]
    assert sorted(tree.walk()) == [
        ((".hidden",), 6),
        (("one.txt",), 3),
        (("sub", "deep", "empty"), 0),
        (("sub", "two.txt"), 4),
    ]
    assert tree.summarize() == Summary(files=4, directories=2, size=13, hidden=1)
    assert read(tree, "sub", "two.txt") == "two!"
    tree.close()


@pytest.mark.parametrize(
    "path",
    [
        *(
            "secret",
            "../secret",
            "..",
            "../place/one.txt",
            "sub/../one.txt",
            "./one.txt",
            "sub//two.txt",
            "/",
        ),
        *(
            "link",
            "out",
            "up",
            "up/secret",
            "up/place/one.txt",
            "pipe",
            "socket",
            "one.txt/x",
            "a\0b",
            "x" * 300,
        ),
    ],
)
def test_no_other_name_leads_anywhere(place: Path, path: str) -> None:
    tree = Tree(place)
    for names in ([path], path.split("/")):
        with pytest.raises(OSError, match=r"\[Errno"):
            tree.open(names)
        with pytest.raises(OSError, match=r"\[Errno"):
            tree.entries(names)
    tree.close()


def test_a_file_is_shared_without_what_is_beside_it(place: Path) -> None:
    tree = Tree(place / "link")  # what the user names may be a link
    assert (tree.name, tree.is_directory) == ("one.txt", False)
    assert tree.entries([]) == [Entry("one.txt", 3)]
    assert tree.summarize() == Summary(files=1, directories=0, size=3, hidden=0)
    assert read(tree, "one.txt") == "one"
    for names in ([], [".hidden"], ["sub"], ["sub", "two.txt"], ["one.txt", "one.txt"], ["."], [".."]):
        with pytest.raises(FileNotFoundError):
            tree.open(names)
    tree.close()


def test_what_is_no_file_and_no_directory_cannot_be_shared(place: Path) -> None:
    for path in (place / "pipe", Path("/dev/null"), place / "nothing"):
        with pytest.raises(StorageError):
            Tree(path)


def test_a_directory_that_has_become_a_link_leads_nowhere(place: Path, tmp_path: Path) -> None:
    tree = Tree(place)
    assert read(tree, "sub", "two.txt") == "two!"
    (place / "sub").rename(tmp_path / "elsewhere")
    (place / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        tree.open(["sub", "two.txt"])
    tree.close()


def test_a_directory_that_is_moved_is_shared_on(place: Path, tmp_path: Path) -> None:
    tree = Tree(place)
    place.rename(tmp_path / "moved")
    assert read(tree, "one.txt") == "one"
    tree.close()


def test_too_many_names_are_an_error_and_not_a_part_of_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_module, "MAX_ENTRIES", 8)
    tree = Tree(place)
    assert len(tree.entries([])) == 3
    monkeypatch.setattr(tree_module, "MAX_ENTRIES", 7)
    with pytest.raises(StorageError, match="more than 7 names"):
        tree.summarize()
    tree.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_said_before_it_is_shared(place: Path) -> None:
    (place / "sub" / "two.txt").chmod(0)
    tree = Tree(place)
    assert tree.entries(["sub"])[1] == Entry("two.txt", 4, is_readable=False)
    with pytest.raises(StorageError, match=r"place/sub/two\.txt: Permission denied"):
        tree.summarize()
    tree.close()


def test_no_descriptor_is_left_open(place: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    tree = Tree(place)
    read(tree, "sub", "two.txt")
    list(tree.walk())
    for names in (["sub", "deep", "nothing"], ["sub", "pipe"], ["out"], ["one.txt", "x"]):
        with pytest.raises(OSError, match=r"\[Errno"):
            tree.open(names)
    tree.close()
    assert set(os.listdir("/proc/self/fd")) == before
