"""Who may look into a command's memory: nobody but root, unless told otherwise."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

NOBODY = 65534
DEADLINE = 60.0  # seconds

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NETWORK = """
testing = true
authorities = ["one orport=1 v3ident=0000000000000000000000000000000000000001 127.0.0.1:1 \\
0000000000000000000000000000000000000002"]
"""


def core_limit(pid: int) -> str:
    limits = Path(f"/proc/{pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    return line.split()[4]


def wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def test_nobody_may_read_the_memory_and_no_core_is_left() -> None:
    script = (
        "import ctypes, resource\n"
        "from torkit._fast.process import forbid_inspection\n"
        "def is_dumpable(): return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE\n"
        "assert is_dumpable() == 1\n"
        "forbid_inspection()\n"
        "assert is_dumpable() == 0\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@needs_root
def test_pipes_are_opened_by_a_process_that_cannot_be_inspected() -> None:
    """`torkit connect` opens its ends anew by way of /proc, whose files are root's then."""
    script = (
        "import os, sys\n"
        "from torkit._fast.process import forbid_inspection\n"
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "forbid_inspection()\n"
        "near, far = os.pipe()\n"
        "again = os.open(f'/proc/self/fd/{near}', os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)\n"
        "os.write(far, b'passed')\n"
        "assert os.read(again, 9) == b'passed'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_CORE)[1] == 0, reason="no cores here anyway")
@pytest.mark.parametrize("is_allowed", [False, True], ids=["by default", "--allow-debugging"])
def test_commands_that_make_circuits_leave_no_core(tmp_path: Path, is_allowed: bool) -> None:
    (tmp_path / "network.toml").write_text(NETWORK.replace("\\\n", ""))
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    command = [sys.executable, "-m", "torkit", "--network", str(tmp_path / "network.toml")]
    command += ["--data-dir", str(tmp_path / "data"), *(["--allow-debugging"] if is_allowed else [])]
    errors = tmp_path / "stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "socks", "--listen", "127.0.0.1:0"],
            stderr=stderr,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),
        )
    try:
        if is_allowed:
            wait_until(lambda: b"--allow-debugging: other programs" in errors.read_bytes())
            assert core_limit(process.pid) != "0"
        else:
            wait_until(lambda: core_limit(process.pid) == "0")
    finally:
        process.terminate()
        process.wait()
