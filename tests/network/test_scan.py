"""`torkit scan` on real relays."""

import json
from pathlib import Path
from typing import Any

import pytest
from network.private_network import RunningTestnet
from network.servers import TlsServer, WebServer
from network.torkit_process import Shell

pytestmark = pytest.mark.network

FAST = "--rate 1000 --per-relay 100"


def rows_of(text: bytes) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in text.splitlines()]
    assert len({row["fingerprint"] for row in rows}) == len(rows)
    return {row["nickname"]: row for row in rows}


def test_every_exit_has_one_row_whatever_is_asked_and_in_whichever_shard(
    shell: Shell, testnet: RunningTestnet, web_server: WebServer, tls_server: TlsServer, tmp_path: Path
) -> None:
    exits = {relay.nickname for relay in testnet.exits}
    unit = shell.run(f"torkit cache export {tmp_path}/units").stdout.decode().strip()
    page = f"http://web.test:{web_server.port}/page"
    scans: list[tuple[str, dict[str, Any]]] = [
        (f"http -H Server {page}", {"ok": True}),
        (f"tls web.test:{tls_server.port}", {"ok": False, "reason": "not_proven"}),
        ("dns web.test", {"ok": True}),
        (f"curl -sS --fail -o /dev/null {page}", {"ok": True}),
        ("connect no-such-name.invalid:80", {"ok": False, "step": "probe"}),
    ]
    scan = f"torkit scan --cache {unit} {FAST}"
    shards = [f"{scan} --shard {n}/2 --resume {tmp_path}/rows{n} -- ping" for n in range(2)]
    results = shell.run_at_once([*(f"{scan} -- {probe}" for probe, _ in scans), *shards])
    assert [(result.returncode, result.stderr) for result in results if result.returncode] == []
    for result, (_, expected) in zip(results, scans, strict=False):
        rows = rows_of(result.stdout)
        assert rows.keys() == exits
        for row in rows.values():
            assert expected.items() <= row.items(), row
            assert row["digest"] in unit
            assert [hop["seconds"] > 0 for hop in row["hops"]] == [True] * 3
    halves = [(tmp_path / f"rows{n}").read_bytes() for n in range(2)]
    rows = rows_of(b"".join(halves))
    assert rows.keys() == exits
    assert all(row["ok"] for row in rows.values())
    again = shell.run(shards[0])
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "rows0").read_bytes() == halves[0], "a relay that had its row was asked again"
