"""`torkit socks --sandbox` on scripted relays: when it closes, and what it refuses to begin with."""

import json
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest
import trio
from confined import only_with_a_sandbox
from network.torkit_process import START_DEADLINE, STOP_DEADLINE, Shell, skip_without, wait_until
from served import serve_network
from served_shell import shell_on

from torkit.cli.failures import FAILED, WRONG_USAGE

pytestmark = only_with_a_sandbox


def state_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def look_at(shell: Shell, place: Path) -> None:
    """A proxy from its first moment to its last, as its service manager sees it."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(place / "notify"))
    manager.settimeout(START_DEADLINE)
    ready = shell.data_dir / "ready"
    line = (
        f"exec env NOTIFY_SOCKET={place}/notify torkit socks --sandbox --listen 0 --listen dns:0"
        f" --metrics 0 --ready-file {ready}"
    )
    with manager, shell.running(line) as process:
        assert manager.recv(4096) == b"STATUS=0%: starting"
        closed = state_of(process.pid)
        assert (closed["Seccomp"], closed["NoNewPrivs"]) == ("2", "1")
        while not (told := manager.recv(4096)).startswith(b"READY=1"):
            pass
        wait_until(ready.exists, START_DEADLINE, "the ready file")
        assert json.loads(ready.read_text())["pid"] == process.pid
        assert {one.name for one in shell.data_dir.iterdir()} >= {"ready", "status.sock", "state.json"}
        assert shell.run("torkit status --json").returncode == 0
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(STOP_DEADLINE) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
        while told != b"STOPPING=1":
            told = manager.recv(4096)
    assert not ready.exists()
    assert not (shell.data_dir / "status.sock").exists()


async def test_it_closes_before_a_relay_is_asked_and_the_proxy_lives_and_ends_as_any(tmp_path: Path) -> None:
    async with serve_network() as network:
        await trio.to_thread.run_sync(look_at, shell_on(network, tmp_path), tmp_path)


async def refuse(place: Path, line: str) -> tuple[int, str]:
    async with serve_network() as network:
        run = partial(shell_on(network, place).run, line)
        result = await trio.to_thread.run_sync(run)
        assert not any(relay.links for relay in network.relays.values())
    return result.returncode, result.stderr.decode()


async def test_a_ready_file_that_could_not_be_removed_is_refused(tmp_path: Path) -> None:
    status, said = await refuse(tmp_path, f"torkit socks --sandbox --listen 0 --ready-file {tmp_path}/ready")
    assert status == WRONG_USAGE
    assert "is not in the data directory" in said
    assert f"hint: --ready-file {tmp_path}/data/ready" in said


@skip_without("strace")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("landlock_create_ruleset", "there is no sandbox without Landlock: Function not implemented"),
        ("landlock_restrict_self", "the system does not let us close the sandbox: Function not implemented"),
        ("prctl", "the system does not let us close the sandbox: Function not implemented"),
    ],
)
async def test_where_it_cannot_be_closed_nothing_goes_on(tmp_path: Path, call: str, said: str) -> None:
    strace = f"strace -f -qq -o /dev/null -e trace={call} -e inject={call}:error=ENOSYS"
    status, lines = await refuse(tmp_path, f"{strace} torkit socks --sandbox --listen 0")
    assert status == FAILED
    assert said in lines
