"""`torkit onion new --prefix`: addresses as somebody wishes them, by processes that leave nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from torkit.cli.onion_prefix import to_duration
from torkit.errors import UsageError
from torkit.hs.address import encode_address
from torkit.hs.keyfiles import HOSTNAME_FILE, KEY_FILE, decode_secret_file
from torkit.hs.keys import SecretKey, public_key_of
from torkit.hs.prefix import Prefix
from torkit.net.hosting.keys import load_key

COMMAND = [sys.executable, "-m", "torkit", "onion", "new", "--prefix"]


def new(prefix: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, prefix, str(directory)], capture_output=True, text=True, timeout=100)


def test_an_address_begins_as_wished_and_its_key_is_as_any_other(tmp_path: Path) -> None:
    made = new("ab", tmp_path / "key")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("ab")
    assert made.stdout == (tmp_path / "key" / HOSTNAME_FILE).read_text()
    key = load_key(tmp_path / "key")
    assert encode_address(key.public) + "\n" == made.stdout
    scalar = decode_secret_file((tmp_path / "key" / KEY_FILE).read_bytes()).expanded[:32]
    assert (scalar[0] & 7, scalar[31] & 0xC0) == (0, 0x40)  # clamped, as C tor's keys are. RFC 8032, 5.1.5
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "key").iterdir()} == {0o600}


def test_two_searches_find_nothing_in_common(tmp_path: Path) -> None:
    keys = []
    for name in "ab":
        assert new("a", tmp_path / name).returncode == 0
        keys.append(load_key(tmp_path / name).expanded)
    assert keys[0][:32] != keys[1][:32]
    assert keys[0][32:] != keys[1][32:]


@pytest.mark.parametrize("prefix", ["", "A", "a1", "a8", "a.", "ä", " a", "a" * 52])
def test_what_no_address_begins_with_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(UsageError):
        Prefix(prefix)
    refused = new(prefix, tmp_path / "key")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert not (tmp_path / "key").exists()


def test_what_takes_longer_than_a_year_is_refused(tmp_path: Path) -> None:
    refused = new("longerthanayear", tmp_path / "key")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "years at" in refused.stderr
    assert "keys a second" in refused.stderr
    assert not (tmp_path / "key").exists()


def test_what_cannot_be_written_is_said_before_the_search(tmp_path: Path) -> None:
    assert new("a", tmp_path / "key").returncode == 0
    (tmp_path / "file").touch()
    before = (tmp_path / "key" / KEY_FILE).read_bytes()
    for directory, why in ((tmp_path / "key", "File exists"), (tmp_path / "file" / "x", "Not a directory")):
        refused = new("aaaaaaa", directory)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert why in refused.stderr
    assert (tmp_path / "key" / KEY_FILE).read_bytes() == before


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_a_search_that_is_stopped_leaves_no_process_and_no_file(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    command = [*COMMAND, "aaaaaaa", str(tmp_path / "key")]  # 32^7 keys
    with subprocess.Popen(command, stderr=subprocess.PIPE, process_group=0, text=True) as search:
        wait_until(lambda: len(children_of(search.pid)) == len(os.sched_getaffinity(0)))
        assert search.stderr is not None
        assert "'aaaaaaa' takes one key in 34,359,738,368: " in search.stderr.readline()
        children = children_of(search.pid)
        if number == signal.SIGINT:
            os.killpg(search.pid, number)  # as a terminal does
        else:
            search.send_signal(number)
        assert search.wait(30) == status
        wait_until(lambda: not any(map(is_running, children)))
        assert "Traceback" not in search.stderr.read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 51])
def test_a_prefix_is_the_first_characters_of_the_address(length: int) -> None:
    public = SecretKey.from_seed(bytes(32)).public
    text = encode_address(public)[:length]
    assert Prefix(text).fits(public)
    assert Prefix(text).mean_tries == 32**length
    for at in range(length):
        other = "b" if text[at] == "a" else "a"
        assert not Prefix(text[:at] + other + text[at + 1 :]).fits(public)


def test_the_public_key_of_a_seed_is_that_of_its_secret_key() -> None:
    for number in range(20):
        seed = bytes([number]) * 32
        assert public_key_of(seed) == SecretKey.from_seed(seed).public


def test_times_are_as_precise_as_averages() -> None:
    times = [0.31, 2, 119, 120, 7200, 86400 * 2, 86400 * 730, 86400 * 365 * 34_000]
    assert [to_duration(seconds) for seconds in times] == [
        *("0.3 s", "2 s", "119 s", "2 minutes", "2 hours", "2 days", "2 years", "34,000 years"),
    ]
