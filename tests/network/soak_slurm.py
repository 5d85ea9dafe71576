"""deploy/slurm/scan.sbatch as a job array on Slurm itself: a cluster of one node, which is this machine."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from network.servers import HOST, FilesServer, free_port
from network.torkit_process import Result, Shell, skip_without

from torkit.scan.rows import read_rows

pytestmark = [
    pytest.mark.network,
    skip_without("munged", "slurmctld", "slurmd"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons are root's"),
]

SCRIPT = Path(__file__).parents[2] / "deploy/slurm/scan.sbatch"
DEADLINE = 60.0  # seconds for the daemons to be up, and for an array
POLL_INTERVAL = 0.2
FIRST, SHARDS = 3, 4  # of an array that does not count from 0

# All plugins that Slurm would want something of the system for are those that do nothing.
CONF = """\
ClusterName=torkit
SlurmctldHost={node}({host})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={directory}/munge
StateSaveLocation={directory}
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={node} NodeAddr={host} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={node} Default=YES
"""


@pytest.fixture
def on_slurm(shell: Shell, tmp_path: Path) -> Iterator[Callable[[str], Result]]:
    """Runs lines where Slurm's commands find their cluster."""
    conf, node = tmp_path / "slurm.conf", socket.gethostname().partition(".")[0]
    ports = free_port(), free_port()
    cpus = os.cpu_count()
    conf.write_text(CONF.format(node=node, host=HOST, ports=ports, directory=tmp_path, cpus=cpus))
    (tmp_path / "spool").mkdir()
    key = tmp_path / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = " ".join(f"--{name}-file={tmp_path}/munge.{name}" for name in ("log", "pid", "seed"))
    with ExitStack() as stack:
        for line in (
            f"munged --foreground --force --socket={tmp_path}/munge --key-file={key} {files}",
            "slurmctld -D -i",
            f"slurmd -D -N {node}",
        ):
            log = tmp_path / f"{line.split()[0]}.out"
            stack.enter_context(shell.running(f"SLURM_CONF={conf} exec {line} >{log} 2>&1"))

        def run(line: str) -> Result:
            return shell.run(f"export SLURM_CONF={conf}; {line}")

        wait_until(lambda: b"idle" in run("sinfo -h").stdout)
        yield run


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_INTERVAL)


def test_each_exit_has_one_row_and_the_same_line_again_repeats_none(
    shell: Shell, on_slurm: Callable[[str], Result], tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    unit = Path(shell.run(f"torkit cache export {tmp_path}/units").stdout.decode().strip())
    with FilesServer(tmp_path) as server:
        array = (
            f"sbatch --array={FIRST}-{FIRST + SHARDS - 1} --mem=0 -o {tmp_path}/%a.out"
            f" --export=ALL,UNIT={unit},ROWS={rows},RATE=20 {SCRIPT} -- connect {HOST}:{server.port}"
        )
        began = []
        for _ in range(2):
            assert on_slurm(array).returncode == 0
            wait_until(lambda: on_slurm("squeue -h").stdout == b"")
            states = on_slurm("scontrol -o show jobs").stdout.decode()
            assert Counter(word for word in states.split() if word.startswith("JobState=")).keys() == {
                "JobState=COMPLETED"
            }
            found = [row for n in range(SHARDS) for row, _ in read_rows(rows / f"{n}.jsonl")]
            began.append(sorted((row["fingerprint"], row["began"]) for row in found))
    exits = shell.run("torkit relays --flag Exit --columns fingerprint").stdout.decode().split()
    assert [fingerprint for fingerprint, _ in began[0]] == sorted(exits)
    assert began[1] == began[0]
    assert all(row["ok"] for row in found)
