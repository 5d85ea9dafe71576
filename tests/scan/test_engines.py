"""Shards on engines: Dask's workers, of which one is killed; Slurm's and Kubernetes' variables, played."""

import errno
import importlib.util
import json
import os
import re
import signal
import stat
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from campaigns import unit_of
from served import ServedNetwork, serve_network

from torkit.errors import StorageError
from torkit.scan import Limits, run_shard
from torkit.scan.rows import Row, read_rows
from torkit.scan.unit import export

DEPLOY = Path(__file__).parents[2] / "deploy"
DEADLINE = 60.0
FAST = Limits(at_once=8, rate=1000, per_relay=8)
SLOW = Limits(at_once=8, rate=3, per_relay=8)  # two thirds of a second for each row of a shard
SHARDS = 4


def what_stays(rows: list[Row]) -> dict[str, Any]:
    """All of each row but its times."""
    kept = {}
    for row in rows:
        hops = [hop["fingerprint"] for hop in row["hops"]]
        kept[row["fingerprint"]] = (row["ok"], row["step"], row["reason"], row["digest"], hops)
    assert len(kept) == len(rows)
    return kept


def scan_on_dask(network: ServedNetwork, unit: Path, rows: Path) -> dict[str, Row]:
    """Have the example scan, and kill a worker when the first row has been written."""
    distributed = pytest.importorskip("distributed")
    spec = importlib.util.spec_from_file_location("dask_scan", DEPLOY / "dask" / "scan.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    killed: list[int] = []
    with (
        distributed.LocalCluster(
            n_workers=SHARDS,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=False,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = client.run(os.getpid)

        def kill_one() -> None:
            deadline = time.monotonic() + DEADLINE
            while time.monotonic() < deadline:
                if any(path.stat().st_size for path in rows.glob("*.jsonl")):
                    victim = next(iter(client.processing() or pids))
                    os.kill(pids[victim], signal.SIGKILL)
                    killed.append(pids[victim])
                    return
                time.sleep(0.01)

        killer = threading.Thread(target=kill_one)
        killer.start()
        found: dict[str, Row] = example.scan(
            client,
            SHARDS,
            ["connect", "web.test:80"],
            rows=rows,
            limits=SLOW,
            cache=unit,
            network=network.config,
        )
        killer.join()
    assert killed
    return found


@pytest.mark.filterwarnings("default")  # Dask's own
async def test_a_killed_worker_costs_no_row_and_repeats_none(tmp_path: Path) -> None:
    async with serve_network(exits=6) as network:
        unit = export(unit_of(network).directory, network.service.certificates, tmp_path / "units")
        rows = tmp_path / "rows"
        found = await trio.to_thread.run_sync(scan_on_dask, network, unit, rows)
        whole = await trio.to_thread.run_sync(
            lambda: run_shard(
                0, 1, ["connect", "web.test:80"], cache=unit, network=network.config, limits=FAST
            )
        )
    assert len(whole) == 6
    assert what_stays(list(found.values())) == what_stays(whole)
    written = [row for path in rows.glob("*.jsonl") for row, _ in read_rows(path)]
    assert what_stays(written) == what_stays(whole)


async def test_a_shard_that_is_resumed_returns_all_its_rows(tmp_path: Path) -> None:
    async with serve_network(exits=4) as network:
        unit = export(unit_of(network).directory, network.service.certificates, tmp_path / "units")
        rows = tmp_path / "rows"

        def run(**settings: Any) -> list[Row]:
            probe = ["connect", "web.test:80"]
            return run_shard(0, 1, probe, cache=unit, network=network.config, limits=FAST, **settings)

        first = await trio.to_thread.run_sync(lambda: run(resume=rows))
        rows.write_bytes(rows.read_bytes()[:-10])  # killed while it wrote the last
        second = await trio.to_thread.run_sync(lambda: run(resume=rows))
        only = await trio.to_thread.run_sync(lambda: run(fingerprints=[first[0]["fingerprint"].lower()]))
    assert [row["began"] for row in second[:3]] == [row["began"] for row in first[:3]]
    assert what_stays(second) == what_stays(first)
    assert [row["fingerprint"] for row in only] == [first[0]["fingerprint"]]


async def test_what_ends_a_shard_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    async with serve_network(exits=4) as network:
        unit = export(unit_of(network).directory, network.service.certificates, tmp_path / "units")
        monkeypatch.setattr(os, "pwrite", fail)
        run = partial(run_shard, 0, 1, ["ping"], cache=unit, network=network.config, limits=FAST)
        with pytest.raises(StorageError, match="rows: Input/output error"):
            await trio.to_thread.run_sync(partial(run, resume=tmp_path / "rows"))
        rows = await trio.to_thread.run_sync(run)
    assert len(rows) == 4


# --- what other engines run -------------------------------------------------------------------------


@pytest.fixture
def played(tmp_path: Path) -> dict[str, str]:
    """An environment in which `torkit` prints its arguments, one a line."""
    torkit = tmp_path / "bin" / "torkit"
    torkit.parent.mkdir()
    torkit.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    torkit.chmod(torkit.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{torkit.parent}:{os.environ['PATH']}"}


def test_slurms_array_gives_the_shard(tmp_path: Path, played: dict[str, str]) -> None:
    environment = played | {
        "SLURM_ARRAY_TASK_ID": "6",
        "SLURM_ARRAY_TASK_MIN": "4",
        "SLURM_ARRAY_TASK_COUNT": "8",
        "UNIT": "/shared/unit",
        "ROWS": str(tmp_path / "rows"),
    }
    script = str(DEPLOY / "slurm" / "scan.sbatch")
    ended = subprocess.run(
        ["bash", script, "--", "connect", "web.test:80"], env=environment, capture_output=True, text=True
    )
    words = ended.stdout.split("\n")[:-1]
    assert words[:5] == ["scan", "--cache", "/shared/unit", "--shard", "2/8"]
    assert words[-4:] == [f"{tmp_path}/rows/2.jsonl", "--", "connect", "web.test:80"]
    del environment["SLURM_ARRAY_TASK_MIN"]
    ended = subprocess.run(["bash", script, "--", "ping"], env=environment, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "run it as an array" in ended.stderr


def test_kubernetes_index_gives_the_shard(played: dict[str, str]) -> None:
    text = (DEPLOY / "kubernetes" / "scan-job.yaml").read_text()
    found = re.search(r"args:\n +- >-\n((?: {14}.*\n)+)", text)
    assert found is not None
    line = " ".join(found[1].split())
    count = re.search(r"^  completions: (\d+)$", text, re.MULTILINE)
    shards = re.search(r'name: SHARDS.*\n +value: "(\d+)"', text)
    assert count is not None
    assert shards is not None
    assert count[1] == shards[1]
    environment = played | {"JOB_COMPLETION_INDEX": "3", "SHARDS": shards[1], "RATE": "1"}
    ended = subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True)
    words = ended.stdout.split("\n")
    assert words[words.index("--shard") + 1] == "3/8"
    assert words[words.index("--resume") + 1] == "/campaign/rows-3.jsonl"


def test_kubernetes_takes_the_job() -> None:
    yaml, kubernetes = pytest.importorskip("yaml"), pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load((DEPLOY / "kubernetes" / "scan-job.yaml").read_text())
    kubernetes.validate(job, kubernetes.latest_version(), strict=True)
    job["spec"]["completion"] = job["spec"].pop("completions")
    with pytest.raises(kubernetes.ValidationError, match="completion"):
        kubernetes.validate(job, kubernetes.latest_version(), strict=True)


def test_the_board_asks_for_metrics_that_there_are() -> None:
    board = json.loads((DEPLOY / "grafana" / "torkit.json").read_text())
    source = (Path(__file__).parents[2] / "torkit/net/monitor/exposition.py").read_text()
    served = {f"torkit_{name}" for name in re.findall(r'_metric\(\s*"(\w+)"', source)}
    asked = set(re.findall(r"torkit_\w+", json.dumps([panel["targets"] for panel in board["panels"]])))
    assert asked
    assert asked <= served
