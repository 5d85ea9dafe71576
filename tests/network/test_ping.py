"""`torkit ping` on real relays."""

import json

import pytest
from network.servers import BannerServer
from network.torkit_process import Shell

pytestmark = pytest.mark.network


def test_hops_round_trips_and_streams(shell: Shell, banner_server: BannerServer) -> None:
    result = shell.run(f"torkit ping -c 3 -i 0.2 web.test:{banner_server.port}")
    assert (result.returncode, result.stderr) == (0, b"")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["kind"] for row in rows] == ["hop"] * 3 + ["circuit", "stream"] * 3
    assert all(0 < row["seconds"] < 10 for row in rows)


def test_what_no_exit_can_connect_to_has_a_status(shell: Shell) -> None:
    result = shell.run("torkit ping -c 1 no-such-name.invalid:80")
    assert result.returncode == 4
    *_, circuit, stream = map(json.loads, result.stdout.splitlines())
    assert "seconds" in circuit
    assert "no such name" in stream["error"]
