"""A start, or a scan, that is killed or refused by the disk at each call that changes a file; and the next.

strace stops the real program, on scripted relays, at the first call of a kind, the second and so on.
`make test` has the same for whatever saves one file (tests/test_saves.py).
"""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from errno import EIO, ENOSPC, errorcode
from itertools import count as numbers
from pathlib import Path

import pytest
import trio
from campaigns import unit_of
from network.torkit_process import Result, Shell, skip_without
from served import serve_network
from served_shell import shell_on

from torkit.cli.failures import FAILED, OK, WRONG_USAGE
from torkit.directory.cache import CERTIFICATES, CONSENSUS, LOCK, MICRODESCS, STATE, UNFINISHED
from torkit.scan.unit import export

pytestmark = [skip_without("strace"), pytest.mark.timeout(1800)]

FILES = (LOCK, UNFINISHED, STATE, CONSENSUS, CERTIFICATES, MICRODESCS)
CALLS = ("mkdir", "openat", "write", "fsync", "rename", "unlink", "flock", "close")
LINE = "torkit build-circuit"

ROW_CALLS = ("openat", "flock", "ftruncate", "pwrite64", "close")
EXITS = ["exit0", "exit1", "exit2"]


def trace(shell: Shell, call: str, more: str = "", output: Path = Path("/dev/null")) -> Result:
    """A start whose calls of this name, for files of the data directory, are seen by strace."""
    paths = " ".join(f"-P {path}" for path in (shell.data_dir, *(shell.data_dir / name for name in FILES)))
    return shell.run(f"strace -f -qqq -o {output} {paths} -e trace={call} {more} {LINE}", timeout=60)


def count(shell: Shell, warm: Path | None, call: str, output: Path) -> int:
    """Returns how many such calls the busiest thread of a start makes: strace counts those of each."""
    put_back(shell, warm)
    assert trace(shell, call, output=output).returncode == OK
    by_thread = Counter(line.split()[0] for line in output.read_text().splitlines() if f"{call}(" in line)
    return max(by_thread.values(), default=0)


def guards_of(shell: Shell) -> list[str]:
    """What was kept of guards; nothing where no state was."""
    path = shell.data_dir / STATE
    if not path.exists():
        return []
    return [one["fingerprint"] for one in json.loads(path.read_text()).get("guards", [])]


def check_next_start(shell: Shell, before: Sequence[str], what: str) -> None:
    """It starts, says nothing of damage, and has the guards that were kept before."""
    left = guards_of(shell)  # of files that are read as they are, before a start may mend them
    assert left[: len(before)] == before, what
    result = shell.run(LINE, timeout=60)
    said = result.stderr.decode()
    assert result.returncode == OK, (what, said)
    assert not any(word in said for word in ("damaged", "kept as", "cannot")), (what, said)
    assert guards_of(shell)[: len(left)] == left, what
    assert {one.name for one in shell.data_dir.iterdir()} <= set(FILES) - {UNFINISHED}, what


def put_back(shell: Shell, warm: Path | None) -> list[str]:
    """The data directory as a start is to find it; its guards."""
    shutil.rmtree(shell.data_dir, ignore_errors=True)
    if warm is not None:
        shutil.copytree(warm, shell.data_dir)
        shell.data_dir.chmod(0o700)
    return guards_of(shell)


def stop_everywhere(
    shell: Shell, warm: Path | None, inject: str, calls: Sequence[str], output: Path
) -> Counter[str]:
    """Stop a start at each call of `calls`, and look at the next. Returns how often each stopped."""
    stopped: Counter[str] = Counter()
    for call in calls:
        for number in range(1, count(shell, warm, call, output) + 1):
            before = put_back(shell, warm)
            what = f"{inject} at {call} {number}"
            result = trace(shell, call, f"-e inject={call}:{inject}:when={number}")
            said = result.stderr.decode()
            if inject.startswith("signal"):
                assert result.returncode in (OK, -signal.SIGKILL, 128 + signal.SIGKILL), (what, said)
                stopped[call] += result.returncode != OK
            else:  # it goes on and says so, or ends and says so
                assert result.returncode in (OK, FAILED), (what, said)
                stopped[call] += bool(said.strip())
            check_next_start(shell, before, what)
    return stopped


@pytest.fixture(params=["cold", "warm"])
def is_warm(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "warm")


def unconfirm(path: Path) -> None:
    """Make the state one of guards that have carried nothing yet: the next start changes it."""
    state = json.loads(path.read_text())
    for guard in state["guards"]:
        guard.pop("confirmed_on", None)
    path.write_text(json.dumps(state))


async def on_relays(tmp_path: Path, is_warm: bool, inject: str, calls: Sequence[str]) -> Counter[str]:
    def play(shell: Shell) -> Counter[str]:
        warm = None
        if is_warm:
            assert shell.run(LINE, timeout=60).returncode == OK
            warm = tmp_path / "warm"
            unconfirm(shell.data_dir / STATE)
            shutil.copytree(shell.data_dir, warm)
        return stop_everywhere(shell, warm, inject, calls, tmp_path / "trace")

    async with serve_network() as network:
        return await trio.to_thread.run_sync(play, shell_on(network, tmp_path))


async def test_a_start_that_is_killed_at_any_call_leaves_what_the_next_accepts(
    tmp_path: Path, is_warm: bool
) -> None:
    seen = await on_relays(tmp_path, is_warm, "signal=SIGKILL", CALLS)
    print(f"{'warm' if is_warm else 'cold'}: killed at {dict(seen)}")
    assert all(seen[name] for name in ("openat", "write", "fsync", "rename", "unlink"))


@pytest.mark.parametrize("number", [ENOSPC, EIO], ids=lambda number: errorcode[number])
async def test_a_disk_that_fails_at_any_call_loses_nothing(
    tmp_path: Path, is_warm: bool, number: int
) -> None:
    calls = [call for call in CALLS if call != "close"]  # strace would leave the file open
    seen = await on_relays(tmp_path, is_warm, f"error={errorcode[number]}", calls)
    print(f"{'warm' if is_warm else 'cold'}, {errorcode[number]}: {dict(seen)}")
    assert all(seen[name] for name in ("openat", "write", "fsync", "rename", "unlink", "flock"))


# --- a scan, whose rows are added to one file -----------------------------------------------------------


def resume_everywhere(shell: Shell, rows: Path, line: str, inject: str) -> Counter[str]:
    """Stop a scan at each call for its file of rows, and go on with it. Returns how often each stopped."""
    scan = f"torkit scan --rate 1000 --resume {rows} {line}"
    stopped: Counter[str] = Counter()
    for call in ROW_CALLS:
        for number in numbers(1):
            rows.unlink(missing_ok=True)
            options = f"-P {rows} -e trace={call} -e inject={call}:{inject}:when={number}"
            result = shell.run(f"strace -f -qqq -o /dev/null {options} {scan}", timeout=60)
            if result.returncode == OK:
                break  # it makes fewer such calls
            stopped[call] += 1
            what = (inject, call, number, result.stderr)
            if not inject.startswith("signal"):
                assert result.returncode in (FAILED, WRONG_USAGE), (
                    what
                )  # a file that cannot be read is the user's
                assert str(rows).encode() in result.stderr, what
            left = rows.read_bytes() if rows.exists() else b""
            again = shell.run(scan, timeout=60)
            assert again.returncode == OK, (*what, again.stderr)
            assert rows.read_bytes().startswith(left[: left.rfind(b"\n") + 1]), what
            found = sorted(json.loads(row)["nickname"] for row in rows.read_bytes().splitlines())
            assert found == EXITS, what
    return stopped


@pytest.mark.parametrize("inject", ["signal=SIGKILL", "error=EIO"])
async def test_a_scan_that_is_stopped_at_any_call_goes_on(tmp_path: Path, inject: str) -> None:
    async with serve_network(exits=len(EXITS)) as network:
        unit = export(unit_of(network).directory, network.service.certificates, tmp_path / "units")
        shell = shell_on(network, tmp_path)
        line = f"--cache {unit} -- ping"
        seen = await trio.to_thread.run_sync(resume_everywhere, shell, tmp_path / "rows", line, inject)
    print(f"scan, {inject}: {dict(seen)}")
    assert all(seen[name] for name in ROW_CALLS)
