"""`torkit testnet`."""

import fcntl
import os
import pwd
import subprocess
import sys
from errno import ENOLCK
from pathlib import Path

import pytest

from torkit.cli.app import run_command_line
from torkit.errors import StorageError
from torkit.testnet import owner
from torkit.testnet.network import owned

# The commands as a program of their own, so that nothing of pytest's is inherited by the supervisor.
COMMAND = [sys.executable, "-c", "from torkit.cli.app import main; main()", "testnet"]


def _torkit_testnet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=110)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_process_that_somebody_else_names_is_sent_no_signal(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        (tmp_path / "lock").write_text(str(victim.pid))
        os.chown(tmp_path / "lock", 65534, 65534)
        with (tmp_path / "lock").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            stopped = _torkit_testnet("down", "--dir", str(tmp_path))
        assert victim.poll() is None
        assert "belongs to user 65534" in stopped.stderr
        assert (tmp_path / "lock").exists()
        victim.kill()


def test_user_without_a_home_is_told_to_name_a_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hint was for another directory, that of the client's state."""
    for variable in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)

    def fail(_uid: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", fail)
    assert run_command_line(["testnet", "verify"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "torkit: this user has no home directory to keep files in",
        "torkit: hint: name a place for the network: --dir DIR",
    ]


def test_file_system_without_locks_holds_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_file: object, _operation: int) -> None:
        raise OSError(ENOLCK, os.strerror(ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StorageError, match=r"cannot lock .*: No locks available"), owned(tmp_path / "net"):
        pass


@pytest.mark.network
def test_up_verify_down(tmp_path: Path) -> None:
    directory = tmp_path / "net"
    started = _torkit_testnet("up", "--dir", str(directory))
    assert started.stdout == f"{directory}/network.toml\n"
    assert started.stderr == f"torkit: hint: export TORKIT_NETWORK={directory}/network.toml\n"
    try:
        verified = _torkit_testnet("verify", "--dir", str(directory))
        assert verified.returncode == 0, verified.stdout
        assert [line.split()[0] for line in verified.stdout.splitlines()] == ["ok"] * 5
    finally:
        stopped = _torkit_testnet("down", "--dir", str(directory))
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "")
    assert owner(directory) is None
    assert not directory.exists()


@pytest.mark.network
def test_run_passes_environment_and_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORKIT_DATA_DIR", raising=False)
    script = 'grep -c v3ident "$TORKIT_NETWORK"; echo "$TORKIT_NETWORK $TORKIT_DATA_DIR"; exit 7'
    finished = _torkit_testnet("run", "--", "sh", "-c", script)
    assert finished.returncode == 7, finished.stderr
    authorities, paths = finished.stdout.splitlines()
    assert authorities == "3"
    network_file, data_dir = map(Path, paths.split())
    assert data_dir.parent == network_file.parent
    assert not network_file.parent.exists()


@pytest.mark.parametrize("command", ["verify", "down"])
def test_without_a_network_says_so(command: str, tmp_path: Path) -> None:
    finished = _torkit_testnet(command, "--dir", str(tmp_path / "none"))
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"torkit: no test network is running in {tmp_path}/none\n")


def test_run_without_a_command_is_wrong_usage() -> None:
    assert _torkit_testnet("run").returncode == 2


def test_a_command_that_is_none_is_refused_before_a_network_is_made() -> None:
    finished = _torkit_testnet("run", "--", "no-such-command-of-anybody")
    assert finished.returncode == 2
    assert "cannot run no-such-command-of-anybody" in finished.stderr
