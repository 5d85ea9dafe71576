"""`torkit connect` between the programs of a pipe: ends of file, statuses, signals, bulk, and below ssh."""

import os
import re
import selectors
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO

import pytest
from network.far_servers import git_server, make_repository, ssh_server
from network.servers import (
    BANNER,
    HOST,
    PAGE,
    BannerServer,
    EchoServer,
    SilentServer,
    SinkServer,
    TlsServer,
    WebServer,
    blocks,
    free_port,
    sha256_of,
)
from network.torkit_process import Proxy, Result, Shell, skip_without, wait_until

pytestmark = pytest.mark.network

MIB = 1 << 20
REQUEST = b"GET /page HTTP/1.0\r\n\r\n"


@contextmanager
def _connected(shell: Shell, line: str) -> Iterator[tuple[IO[bytes], IO[bytes], subprocess.Popen[bytes]]]:
    """stdin and stdout of a running `torkit connect -v` that has said it is connected."""
    with shell.running(line) as process, selectors.DefaultSelector() as selector:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        selector.register(process.stderr, selectors.EVENT_READ)
        said = b""
        while not said.endswith(b"\n"):
            assert selector.select(40), said
            data = os.read(process.stderr.fileno(), 1 << 12)
            assert data, said
            said += data
        assert said.startswith(b"torkit: connected through ")
        yield process.stdin, process.stdout, process


def _free_port() -> socket.socket:
    """A port that refuses as long as the socket is open."""
    nobody = socket.socket()
    nobody.bind((HOST, 0))
    return nobody


# --- stdin, stdout and the end --------------------------------------------------------------------------


def test_reply_comes_after_the_end_of_stdin(shell: Shell, web_server: WebServer) -> None:
    for target in (f"web.test:{web_server.port}", f"web.test {web_server.port}", f"{HOST}:{web_server.port}"):
        result = shell.run(f"torkit connect {target}", stdin=REQUEST)
        assert (result.returncode, result.stderr) == (0, b""), result
        assert result.stdout.endswith(b"\r\n\r\n" + PAGE)


def test_banner_arrives_without_stdin(shell: Shell, banner_server: BannerServer) -> None:
    for line in ("torkit connect web.test:{} </dev/null", "torkit connect web.test:{} <&-"):
        result = shell.run(line.format(banner_server.port))
        assert (result.returncode, result.stdout) == (0, BANNER), result


@pytest.mark.parametrize("options", ["-N", "--eof end", "-q 0", "--eof-timeout 0"])
def test_end_of_stdin_ends_the_stream_where_asked(
    shell: Shell, silent_server: SilentServer, options: str
) -> None:
    result = shell.run(f"torkit connect {options} web.test:{silent_server.port}", stdin=b"hello")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_echo_arrives_within_the_time_after_the_end_of_stdin(shell: Shell, echo_server: EchoServer) -> None:
    result = shell.run(f"torkit connect -q 1 web.test:{echo_server.port}", stdin=b"hello")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hello", b"")


def test_idle_time_and_connect_time_have_a_status_of_their_own(shell: Shell, echo_server: EchoServer) -> None:
    idle = shell.run(f"torkit connect -i 1 web.test:{echo_server.port}", stdin=b"hello")
    assert (idle.returncode, idle.stdout) == (6, b"hello")
    assert b"nothing was sent or received for 1 s" in idle.stderr
    late = shell.run(f"torkit connect -w 0.0001 web.test:{echo_server.port}")
    assert (late.returncode, late.stdout) == (6, b"")


def test_bytes_pass_as_they_are_and_at_once(shell: Shell, echo_server: EchoServer) -> None:
    with _connected(shell, f"torkit connect -v web.test:{echo_server.port}") as (stdin, stdout, _):
        for data in (bytes(range(256)), b"\x00", b"\r\n\xff"):
            stdin.write(data)
            stdin.flush()
            assert stdout.read(len(data)) == data


@pytest.mark.parametrize("way", ["", "--via {}"])
def test_tls_with_a_server_that_proves_its_name(
    shell: Shell, proxy: Proxy, tls_server: TlsServer, way: str
) -> None:
    line = f"torkit connect --tls {way.format(proxy.address)}"
    trusting = f"SSL_CERT_FILE={tls_server.authority} {line}"
    result = shell.run(f"{trusting} web.test:{tls_server.port}", stdin=b"hello")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"HELLO", b"")
    for other in (f"{line} web.test:{tls_server.port}", f"{trusting} {HOST}:{tls_server.port}"):
        result = shell.run(other, stdin=b"hello")
        assert (result.returncode, result.stdout) == (8, b""), result


# --- statuses -------------------------------------------------------------------------------------------


def test_probe(shell: Shell, web_server: WebServer) -> None:
    result = shell.run(f"torkit connect -z -v web.test:{web_server.port}")
    assert result.returncode == 0
    assert result.stdout == b""
    assert result.stderr.startswith(b"torkit: connected through ")
    with _free_port() as nobody:
        assert shell.run(f"torkit connect -z web.test:{nobody.getsockname()[1]}").returncode in (1, 5)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("no-such-name.invalid:80", 4),
        ("web.test:0", 2),
        ("web.test", 2),
        ("::1:80", 2),
        ("web.test:http", 2),
        ("web.test:65536", 2),
        ("duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion:80", 4),
        ("--path nobody,exit1,exit2 web.test:80", 2),
        ("--path exit1,exit1,exit1 web.test:80", 2),
        ("--path auth1,auth2,auth3 127.0.0.1:80", 5),
    ],
)
def test_what_cannot_work_is_said_in_a_line_with_its_status(shell: Shell, target: str, status: int) -> None:
    result = shell.run(f"torkit connect {target}")
    assert (result.returncode, result.stdout) == (status, b""), result
    assert result.stderr.startswith(b"torkit: ")


def test_reader_that_leaves_ends_us_quietly(shell: Shell, echo_server: EchoServer) -> None:
    line = f"torkit connect -v web.test:{echo_server.port} | head -c1; echo -${{PIPESTATUS[0]}}"
    with _connected(shell, line) as (stdin, stdout, process):
        stdin.write(b"x")
        stdin.flush()
        # The peer says no more, and stdin is open: that nobody reads must be seen without a write.
        assert stdout.read() == b"x-141\n"
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_banner_for_a_reader_of_one_byte(shell: Shell, banner_server: BannerServer) -> None:
    line = f"torkit connect web.test:{banner_server.port} </dev/null | head -c1; echo -${{PIPESTATUS[0]}}"
    result = shell.run(line)
    assert (result.stdout, result.stderr) in ((b"2-0\n", b""), (b"2-141\n", b""))


def test_full_device_is_a_failure_with_a_reason(shell: Shell, banner_server: BannerServer) -> None:
    result = shell.run(f"torkit connect web.test:{banner_server.port} >/dev/full")
    assert result.returncode == 1
    assert b"No space left on device" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_it_at_once_and_quietly(
    shell: Shell, silent_server: SilentServer, number: signal.Signals
) -> None:
    with _connected(shell, f"exec env --default-signal torkit connect -v web.test:{silent_server.port}") as (
        _,
        _,
        process,
    ):
        process.send_signal(number)
        assert process.wait(5) == 128 + number
        assert process.stderr is not None
        assert process.stderr.read() == b""


# --- bulk -----------------------------------------------------------------------------------------------


def test_large_stdin_reaches_a_slow_reader_whole(
    shell: Shell, sink_server: SinkServer, tmp_path: Path
) -> None:
    length = 8 * MIB
    with (tmp_path / "file").open("wb") as file:
        file.writelines(blocks(length))
    with shell.running(f"torkit connect -N web.test:{sink_server.port} < {tmp_path}/file") as process:
        wait_until(lambda: sink_server.connections, 40, "a connection")
        sink_server.gate.set()
        assert sink_server.uploads.get(timeout=60) == (length, sha256_of(length))
        assert process.wait(10) == 0


def test_both_directions_at_once(shell: Shell, echo_server: EchoServer) -> None:
    data = b"".join(blocks(8 * MIB))
    result = shell.run(f"torkit connect -q 3 web.test:{echo_server.port}", stdin=data, timeout=90)
    assert sha256(result.stdout).hexdigest() == sha256_of(8 * MIB)


@skip_without("socat")
def test_below_socat_whose_pipe_is_a_socket_pair(shell: Shell, web_server: WebServer) -> None:
    port = free_port()
    line = f"socat TCP-LISTEN:{port},bind={HOST},reuseaddr EXEC:'torkit connect web.test {web_server.port}'"
    with shell.running(line):
        results: list[Result] = []

        def answered() -> bool:
            results.append(shell.run(f"curl -sS http://{HOST}:{port}/page"))
            return results[-1].returncode != 7

        wait_until(answered, 10, "socat to listen")
    assert results[-1].stdout == PAGE, results[-1]


# --- ssh ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The beginning of a line that logs in, through torkit, to a real sshd with keys of this test alone."""
    with ssh_server(tmp_path_factory.mktemp("ssh")) as line:
        yield f"{line} -o ProxyCommand='torkit connect %h %p' shell.test"


@skip_without("ssh", "ssh-keygen", "sshd")
def test_ssh_brings_back_the_remote_status(shell: Shell, ssh: str) -> None:
    result = shell.run(f"{ssh} 'echo through; exit 7'")
    assert (result.returncode, result.stdout, result.stderr) == (7, b"through\n", b"")


@skip_without("ssh", "ssh-keygen", "sshd")
def test_ssh_carries_a_file_both_ways(shell: Shell, ssh: str) -> None:
    data = b"".join(blocks(4 * MIB))
    result = shell.run(f"{ssh} cat", stdin=data)
    assert (result.returncode, sha256(result.stdout).hexdigest()) == (0, sha256_of(4 * MIB))


@skip_without("ssh", "ssh-keygen", "sshd")
def test_ssh_to_a_name_that_does_not_exist_ends_with_the_reason(shell: Shell, ssh: str) -> None:
    result = shell.run(ssh.replace("shell.test", "no-such-name.invalid true"))
    assert result.returncode == 255
    assert re.search(rb"torkit: \w+: the exit found no such name \(RESOLVEFAILED\)", result.stderr)


@skip_without("git")
def test_git_clones_through_a_proxy_command(shell: Shell, tmp_path: Path) -> None:
    """git has all it wants, closes both of its pipes and looks at the status (core.gitProxy)."""
    content = os.urandom(200_000)
    make_repository(tmp_path / "served" / "r.git", content)
    proxy = tmp_path / "proxy"
    proxy.write_text('#!/bin/sh\nexec torkit connect "$1" "$2"\n')
    proxy.chmod(0o755)
    with git_server(tmp_path / "served", tmp_path / "log") as port:
        line = f"git -c core.gitProxy={proxy} clone -q git://git.test:{port}/r.git {tmp_path}/copy"
        result = shell.run(line, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "copy" / "file").read_bytes() == content
