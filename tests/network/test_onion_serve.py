"""Onion services of torkit's on a private network of real relays: C tor's client and torkit's reach them."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from network.private_network import RunningTestnet
from network.servers import PAGE, EchoServer, WebServer, sha256_of
from network.torkit_process import Proxy, Shell, open_through, wait_until

pytestmark = pytest.mark.network

LARGE = 4 << 20


@pytest.fixture(scope="module")
def served(
    shell: Shell, web_server: WebServer, echo_server: EchoServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a service with a web server at 80, an echo at 7 and nobody at 9."""
    here = tmp_path_factory.mktemp("served")
    made = shell.run(f"torkit onion new {here}/key")
    ports = f"80:127.0.0.1:{web_server.port} 7:{echo_server.port} 9:unix:{here}/nobody"
    line = f"exec torkit onion serve --key {here}/key {ports}"
    with shell.with_data_dir(here / "data").running(line) as process:
        assert process.stdout is not None
        address = process.stdout.readline()
        assert address == made.stdout != b""
        yield address.decode().strip()
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        said = process.stderr.read()
        assert b"Traceback" not in said
        assert b"nobody: No such file or directory" in said


def test_clients_of_c_tor_and_of_torkit_get_the_same_bytes(
    testnet: RunningTestnet, shell: Shell, proxy: Proxy, served: str, tmp_path: Path
) -> None:
    host, port = testnet.start_client()
    data = os.urandom(LARGE)
    (tmp_path / "data").write_bytes(data)
    for curl in (f"curl -sS --socks5-hostname {host}:{port}", proxy.curl()):
        assert shell.run(f"{curl} http://{served}/page", timeout=130).stdout == PAGE
        line = f"{curl} http://{served}/bytes/{LARGE} | sha256sum"
        assert shell.run(line, timeout=130).stdout.split()[0].decode() == sha256_of(LARGE)
        line = f"{curl} -T {tmp_path}/data http://{served}/upload"
        assert shell.run(line, timeout=130).stdout.decode() == hashlib.sha256(data).hexdigest()
        for nothing in (81, 9):
            refused = shell.run(f"{curl} http://{served}:{nothing}/", timeout=130)
            assert refused.returncode != 0
            assert refused.stdout == b""
    lines = [f"{proxy.curl()} http://{served}/page"] * 5
    assert [result.stdout for result in shell.run_at_once(lines)] == [PAGE] * 5


def test_a_look_at_a_service_finds_it_at_every_directory(shell: Shell, served: str) -> None:
    def look() -> list[dict[str, Any]]:
        result = shell.run(f"torkit onion check {served}", timeout=130)
        assert result.returncode == 0, result
        return [json.loads(line) for line in result.stdout.splitlines()]

    def directories() -> list[dict[str, Any]]:
        return [row for row in looks[-1] if row["kind"] == "directory"]

    looks = [look()]
    while not all("revision" in row for row in directories()):  # some may not have been given it yet
        assert len(looks) < 5, looks
        looks.append(look())
    assert {row["replica"] for row in directories()} == {1, 2}
    found, meeting = looks[-1][len(directories()) :]
    assert found["kind"] == "descriptor"
    assert found["revision"] == max(row["revision"] for row in directories())
    assert len(found["introduction_points"]) == 3
    assert meeting["kind"] == "meeting"
    assert meeting["seconds"] > 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_service_moves_from_c_tor_to_torkit_and_back(
    testnet: RunningTestnet, shell: Shell, web_server: WebServer, tmp_path: Path
) -> None:
    """Each of them publishes after the other: directories take only a descriptor that counts higher."""
    theirs, ours, back = tmp_path / "theirs", tmp_path / "ours", tmp_path / "back"
    theirs.mkdir(mode=0o700)
    pid = tmp_path / "pid"
    testnet.start_client(f"PidFile {pid}", f"HiddenServiceDir {theirs}", "HiddenServicePort 80 127.0.0.1:9")
    address = (theirs / "hostname").read_text().strip()
    describe = f"torkit onion descriptor {address}"
    wait_until(lambda: shell.run(describe).returncode == 0, 90, "C tor to publish", every=0.5)
    with stopped(int(pid.read_text())):  # or it publishes again, and counts higher than ours
        shutil.copytree(theirs, ours)
        fetch = f"torkit connect -w 60 {address}:80"
        request = b"GET /page HTTP/1.0\r\n\r\n"
        line = f"exec torkit onion serve --key {ours} 80:{web_server.port}"
        with shell.with_data_dir(tmp_path / "data").running(line) as process:
            assert process.stdout is not None
            assert process.stdout.readline().decode().strip() == address
            assert shell.run(fetch, stdin=request, timeout=130).stdout.endswith(PAGE)
            process.terminate()
            assert process.wait(20) == 0
        shutil.copytree(ours, back)
        testnet.start_client(f"HiddenServiceDir {back}", f"HiddenServicePort 80 127.0.0.1:{web_server.port}")
        wait_until(
            lambda: shell.run(fetch, stdin=request, timeout=130).stdout.endswith(PAGE),
            120,
            "C tor to take over",
            every=0.5,
        )


def hang_up(process: subprocess.Popen[bytes]) -> bytes:
    """Send SIGHUP; gives the line by which it is answered."""
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    for line in process.stderr:
        if b"was read again" in line or b"go on as they were" in line:
            return line
    raise AssertionError("it has ended")


def test_services_change_by_a_hangup_and_the_streams_of_another_go_on(
    shell: Shell, proxy: Proxy, web_server: WebServer, echo_server: EchoServer, tmp_path: Path
) -> None:
    """The new one has the key of the old one: directories take its descriptor as the newer."""
    address = shell.run(f"torkit onion new {tmp_path}/key").stdout.decode().strip()
    file = tmp_path / "services.toml"
    stays = f'[stays]\nports = ["{echo_server.port}"]\n'
    file.write_text(f'{stays}[old]\nports = ["80:9"]\nkey = "key"\n')
    with shell.with_data_dir(tmp_path / "data").running(
        f"exec torkit onion serve --services {file}"
    ) as process:
        assert process.stdout is not None
        told = dict(process.stdout.readline().decode().split() for _ in range(2))
        assert told["old"] == address
        with open_through(proxy, told["stays"], echo_server.port) as stream:
            stream.sendall(b"before")
            assert stream.recv(6, socket.MSG_WAITALL) == b"before"
            file.write_text(f'{stays}[new]\nports = ["80:{web_server.port}"]\nkey = "key"\n')
            assert hang_up(process).endswith(b"; ended: old; begun: new\n")
            assert process.stdout.readline().decode().split() == ["new", address]
            assert shell.run(f"{proxy.curl()} http://{address}/page", timeout=130).stdout == PAGE
            file.write_text(stays + "[new]")
            assert b"[new] wants ports" in hang_up(process)
            stream.sendall(b"after")
            assert stream.recv(5, socket.MSG_WAITALL) == b"after"
            assert shell.run(f"{proxy.curl()} http://{address}/page", timeout=130).stdout == PAGE
        process.terminate()
        assert process.wait(20) == 0
        assert process.stdout.read() == b""
