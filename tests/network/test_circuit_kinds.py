"""The circuits that real relays grant: how each hop is made, and bulk on each kind."""

import json
from pathlib import Path
from typing import Any

import pytest
from network.servers import WebServer, blocks, sha256_of
from network.torkit_process import Shell, running_proxy

pytestmark = pytest.mark.network

MIB = 1 << 20

# One hop: handshake, layer, flow control, DATA cells between SENDMEs.
PLAIN = ("ntor-v3", "tor1", "fixed", 100)
TOR1_VEGAS = ("ntor-v3", "tor1", "vegas", 31)
CGO_VEGAS = ("ntor-v3", "cgo", "vegas", 31)


def _hops(line: bytes) -> list[tuple[Any, ...]]:
    path = json.loads(line)["path"]
    return [(hop["handshake"], hop["layer"], hop["flow_control"], hop["sendme_inc"]) for hop in path]


@pytest.mark.parametrize(
    ("options", "hops"),
    [
        pytest.param("", [PLAIN, PLAIN, CGO_VEGAS], id="as-c-tor"),
        pytest.param("--cgo all", [CGO_VEGAS, CGO_VEGAS, CGO_VEGAS], id="cgo-everywhere"),
        pytest.param("--cgo off", [PLAIN, PLAIN, TOR1_VEGAS], id="no-cgo"),
    ],
)
def test_build_circuit_says_how_each_hop_was_made(
    shell: Shell, options: str, hops: list[tuple[Any, ...]]
) -> None:
    result = shell.run(f"torkit {options} build-circuit --count 3")
    assert result.returncode == 0, result
    assert [_hops(line) for line in result.stdout.splitlines()] == [hops] * 3
    for line in result.stdout.splitlines():
        assert all(0 < hop["seconds"] < 30 for hop in json.loads(line)["path"])


def test_build_circuit_links_two_circuits_to_one_exit(shell: Shell) -> None:
    result = shell.run("torkit build-circuit --linked --count 2")
    assert result.returncode == 0, result
    for line in result.stdout.splitlines():
        legs = json.loads(line)["legs"]
        (guard, middle, exit_), (other_guard, other_middle, same_exit) = (
            [hop["fingerprint"] for hop in leg["path"]] for leg in legs
        )
        assert exit_ == same_exit
        assert guard != other_guard
        assert middle != other_middle
        assert all(0 < leg["rtt"] < 30 for leg in legs)


@pytest.mark.parametrize("cgo", ["all", "off"])  # test_socks_traffic.py does as much with the default
def test_64_mib_each_way(shell: Shell, web_server: WebServer, tmp_path: Path, cgo: str) -> None:
    url = f"http://web.test:{web_server.port}"
    with (tmp_path / "upload").open("wb") as file:
        file.writelines(blocks(64 * MIB))
    with running_proxy(shell, tmp_path / "proxy", ["--cgo", cgo]) as proxy:
        down = shell.run(f"{proxy.curl()} {url}/bytes/{64 * MIB} | sha256sum", timeout=120)
        up = shell.run(f"{proxy.curl()} -T {tmp_path}/upload {url}/", timeout=120)
    assert down.stdout.decode().split()[0] == sha256_of(64 * MIB)
    assert up.stdout.decode() == sha256_of(64 * MIB)
