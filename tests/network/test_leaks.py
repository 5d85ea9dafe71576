"""What the kernel saw of connections, relays of the network and nobody else; and what is said of them."""

import json
import re
import socket
from pathlib import Path

import pytest
from network.private_network import RunningTestnet
from network.servers import HOST, PAGE, WebServer
from network.torkit_process import (
    START_DEADLINE,
    Proxy,
    Shell,
    running_proxy,
    skip_without,
    wait_until,
)
from network.tracing import STRACE, peers_in

from torkit.targets import format_address

pytestmark = pytest.mark.network

CONNECT, BIND, UDP_ASSOCIATE, RESOLVE, RESOLVE_PTR = 1, 2, 3, 0xF0, 0xF1  # SOCKS commands

# The beginning of a request for what nobody serves, or of what is no request, and its status.
HTTP_REQUESTS = [
    (b"CONNECT web.test:28131", b"502"),
    (b"GET http://web.test:28131/page", b"502"),
    (b"GET http://web.test:28131/a page", b"400"),
    (b"GET /page", b"501"),
]


def _relays(net: RunningTestnet) -> set[tuple[str, int]]:
    return {(relay.address, relay.or_port) for relay in net.relays}


@skip_without("strace")
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
    peers = peers_in(trace)
    assert peers
    assert peers <= _relays(testnet)


@skip_without("strace")
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
    peers = peers_in(trace)
    assert peers
    assert peers <= _relays(testnet)


def test_neither_destinations_nor_relays_are_named_in_what_is_said(
    shell: Shell, testnet: RunningTestnet, web_server: WebServer, tmp_path: Path
) -> None:
    """Of requests that work and that fail in every way: not even with -vv, which has a line for each."""
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        refused = nobody.getsockname()[1]
        asked = [
            ("web.test", web_server.port, {0}),
            ("web.test", refused, {1, 5}),
            ("no-such-name.invalid", 28123, {4}),
            ("2001:db8::1234", 28124, {2}),  # no exit of this network goes there
            (f"{'a' * 56}.onion", 28125, {0xF6}),
            ("web.test.exit3.exit", 28126, {2}),
            ("strange name.test", 28127, {2}),
            ("::", 28128, {2}),
        ]
        with running_proxy(shell, tmp_path / "proxy", ["-vv"]) as proxy:
            for host, port, replies in asked:
                assert _reply(proxy, host, port) in replies, host
            assert _reply(proxy, "no-such-name.invalid", 28129, RESOLVE) == 4
            assert _reply(proxy, "192.0.2.77", 28129, RESOLVE_PTR) == 4  # a private network's exits know none
            for command in (BIND, UDP_ASSOCIATE):
                assert _reply(proxy, "web.test", 28130, command) == 7
            for line, status in HTTP_REQUESTS:
                with socket.create_connection((HOST, proxy.port), timeout=START_DEADLINE) as client:
                    client.sendall(line + b" HTTP/1.1\r\nHost: web.test:28131\r\n\r\n")
                    with client.makefile("rb") as file:
                        assert file.readline().split()[1] == status, line
            said = proxy.log.read_text()
        refusals = [line for line in said.splitlines() if " was refused: " in line]
        assert len(refusals) == len(asked) - 1 + 4 + len(HTTP_REQUESTS)
        assert re.search(r"a connection was refused: \w+: the exit", said)
        assert re.search(r"a look-up was refused: \w+: the exit found no such name \(RESOLVEFAILED\)", said)
        assert "a client was refused: SOCKS's BIND is not supported" in said
        assert re.search(r"circuit \d+ for streams was built in [\d.]+ s: \w+, \w+, \w+", said)
        for host, port, replies in asked[:4]:
            result = shell.run(f"torkit -vv connect -z {format_address(host, port)}")
            assert (result.returncode == 0) is (replies == {0}), result
            said += result.stderr.decode()
        assert all(line.startswith("torkit: ") for line in said.splitlines())
    names = {name for host, port, _ in asked for name in (host, str(port))}
    names |= {"192.0.2.77", "28129", "28130", "28131"}
    names |= {name for relay in testnet.relays for name in (relay.address, str(relay.or_port))}
    for name in names:
        assert re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", said) is None, (name, said)


def _reply(proxy: Proxy, host: str, port: int, command: int = CONNECT) -> int:
    """The REP field of what a SOCKS5 client is told that asks for this, always as a name."""
    request = bytes([5, command, 0, 3]) + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big")
    with socket.create_connection((HOST, proxy.port), timeout=START_DEADLINE) as client:
        client.sendall(b"\x05\x01\x00" + request)
        with client.makefile("rb") as file:
            reply = file.read(4)
    assert reply[:3] == b"\x05\x00\x05", reply
    return reply[3]
