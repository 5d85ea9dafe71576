"""What the kernel saw of connections: relays of the network and nobody else, no look-up outside Tor."""

import json
import re
from pathlib import Path

import pytest
from network.private_network import RunningTestnet
from network.servers import HOST, PAGE, WebServer
from network.torkit_process import START_DEADLINE, Shell, skip_without, wait_until

pytestmark = [pytest.mark.network, skip_without("strace")]

# Every call that can name another end.
STRACE = "strace -f -qq -e trace=connect,sendto,sendmsg,sendmmsg -e signal=none -o"
PEER = re.compile(
    r"sin6?_port=htons\((\d+)\), (?:sin_addr=inet_addr|.*inet_pton\(AF_INET6,) ?\(?\"([0-9a-f.:]+)\""
)


def _peers(trace: Path) -> set[tuple[str, int]]:
    """Every address and port in a trace of STRACE."""
    peers = set()
    for line in trace.read_text().splitlines():
        if "AF_INET" in line:
            found = PEER.search(line)
            assert found is not None, line
            peers.add((found[2], int(found[1])))
        # Name services of the machine are sockets of the file system.
        assert "AF_UNIX" not in line, line
    return peers


def _relays(net: RunningTestnet) -> set[tuple[str, int]]:
    return {(relay.address, relay.or_port) for relay in net.relays}


def test_the_proxy_connects_to_relays_only(
    shell: Shell, testnet: RunningTestnet, web_server: WebServer, tmp_path: Path
) -> None:
    fresh = shell.with_data_dir(tmp_path / "data")  # so that the directory is fetched too
    trace, ready = tmp_path / "trace", tmp_path / "ready.json"
    with fresh.running(f"{STRACE} {trace} torkit socks --listen {HOST}:0 --ready-file {ready}") as process:
        wait_until(lambda: ready.exists() or process.poll() is not None, START_DEADLINE, "the proxy")
        assert process.poll() is None
        proxy = json.loads(ready.read_text())["socks"]
        url = f"web.test:{web_server.port}/page"
        assert fresh.run(f"curl -sS -x socks5h://{proxy} http://{url}").stdout == PAGE
        assert fresh.run(f"curl -sS -x socks4a://{proxy} http://{url}").stdout == PAGE
        assert fresh.run(f"curl -sS -x socks5h://{proxy} http://no.such.name.test/").returncode == 97
        process.terminate()
    peers = _peers(trace)
    assert peers
    assert peers <= _relays(testnet)


@pytest.mark.parametrize(
    "line",
    [
        "printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | {} torkit connect web.test:{}",
        "{} torkit fetch-consensus >/dev/null # {}",
        "{} torkit build-circuit >/dev/null # {}",
    ],
)
def test_commands_connect_to_relays_only(
    shell: Shell, testnet: RunningTestnet, web_server: WebServer, tmp_path: Path, line: str
) -> None:
    trace = tmp_path / "trace"
    fresh = shell.with_data_dir(tmp_path / "data")
    result = fresh.run(line.format(f"{STRACE} {trace}", web_server.port))
    assert result.returncode == 0, result
    peers = _peers(trace)
    assert peers
    assert peers <= _relays(testnet)
