"""`torkit run` on real relays, with programs that know nothing of Tor."""

import os
import pty
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from confined import skip_where_forbidden
from network.servers import PAGE, WebServer, sha256_of
from network.torkit_process import CarrierServer, Shell, skip_without, wait_until

pytestmark = [pytest.mark.network, skip_where_forbidden()]


def test_curl_by_name(shell: Shell, web_server: WebServer) -> None:
    result = shell.run(f"torkit run -- curl -sS --noproxy '*' http://web.test:{web_server.port}/page")
    assert (result.stdout, result.stderr, result.returncode) == (PAGE, b"", 0)


def test_what_is_fetched_is_whole(shell: Shell, web_server: WebServer) -> None:
    length = 3_000_000
    line = (
        f"torkit run -- curl -sS --noproxy '*' http://web.test:{web_server.port}/bytes/{length} | sha256sum"
    )
    assert shell.run(line).stdout.split()[0].decode() == sha256_of(length)


def test_curl_by_an_address_that_was_made_up(shell: Shell, web_server: WebServer) -> None:
    fetch = (
        f"curl -sS --noproxy '*' http://$(getent ahostsv4 web.test | sed 's/ .*//;q'):{web_server.port}/page"
    )
    assert shell.run(f'torkit run -- bash -c "{fetch}"'.replace("$", "\\$")).stdout == PAGE


def test_an_address_is_connected_to_as_it_is(shell: Shell) -> None:
    """The exits run on this machine: one of its addresses has to be no loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        address = probe.getsockname()[0]
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        with shell.running(f"torkit run -- curl -sS --noproxy '*' http://{address}:{port}/") as process:
            server.settimeout(30)
            accepted, _ = server.accept()
            with accepted:
                assert accepted.recv(100).startswith(b"GET / HTTP/1.1\r\n")
                accepted.sendall(b"HTTP/1.0 200 OK\r\n\r\nhere")
            assert process.communicate(timeout=30)[0] == b"here"


def test_the_proxy_inside(shell: Shell, web_server: WebServer) -> None:
    url = f"http://web.test:{web_server.port}/page"
    line = f"curl -sS -x socks5h://127.0.0.1:9150 {url} && curl -sSp {url} && wget -qO - {url}"
    assert shell.run(f"torkit run -- sh -c '{line}'").stdout == PAGE * 3


@skip_without("go")
def test_a_static_program_in_go(shell: Shell, web_server: WebServer, tmp_path: Path) -> None:
    """Go's programs look up names by themselves, and call the kernel by themselves.

    No net/http, and nothing optimized: that is three times as much to compile, for one connection.
    """
    (tmp_path / "main.go").write_text(
        r"""
        package main
        import ("io"; "net"; "os")
        func main() {
            connection, err := net.Dial("tcp", os.Args[1])
            if err != nil { panic(err) }
            io.WriteString(connection, "GET /page HTTP/1.0\r\n\r\n")
            io.Copy(os.Stdout, connection)
        }
        """
    )
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(tmp_path / "cache"),
        "GOFLAGS": "-mod=mod",
    }
    build = ["go", "build", "-gcflags=all=-N -l", "-o", "fetch", "main.go"]
    subprocess.run(build, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    answer = shell.run(f"torkit run -- {tmp_path}/fetch web.test:{web_server.port}").stdout
    assert answer.partition(b"\r\n\r\n")[2] == PAGE


def test_names_are_looked_up_by_nobody_before_a_connection(shell: Shell) -> None:
    code = 'import socket; print(socket.getaddrinfo("nosuch.example", 80, type=socket.SOCK_STREAM))'
    result = shell.run(f"torkit run -- python3 -c '{code}'")
    assert b"198.18.0.1" in result.stdout
    assert b"fd74:6f72:6b00::1" in result.stdout
    result = shell.run("torkit run -- getent hosts printer")
    assert (result.stdout, result.returncode) == (b"", 2)


UNIGNORING = "env --default-signal"  # whoever runs the tests may ignore some signals, as nohup does


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_the_status_is_the_commands(shell: Shell, status: int) -> None:
    assert shell.run(f"torkit run -- sh -c 'exit {status}'").returncode == status


@pytest.mark.parametrize("name", ["TERM", "KILL", "INT", "USR1"])
def test_the_signal_that_ended_the_command_ends_us(shell: Shell, name: str) -> None:
    result = shell.run(f"{UNIGNORING} torkit run -- sh -c 'kill -{name} $$'; echo $?")
    assert result.stdout == b"%d\n" % (128 + signal.Signals[f"SIG{name}"])


def test_commands_that_cannot_run_have_the_statuses_of_a_shell(shell: Shell) -> None:
    assert shell.run("torkit run nosuchprogram").returncode == 127
    result = shell.run("torkit run -- /etc/passwd")
    assert (result.returncode, result.stderr) == (126, b"torkit: /etc/passwd: not executable\n")


def test_a_start_that_fails_runs_nothing(shell: Shell, tmp_path: Path) -> None:
    result = shell.run(f"torkit --network /nonexistent run -- touch {tmp_path}/ran")
    assert result.returncode == 125
    assert not (tmp_path / "ran").exists()


def test_stdin_arguments_and_directory_are_the_commands(shell: Shell, tmp_path: Path) -> None:
    line = f"cd {tmp_path} && torkit run -- sh -c 'cat; pwd; echo \"$@\"' sh -x 'a b'"
    assert shell.run(line, stdin=b"given\n").stdout == b"given\n%b\n-x a b\n" % bytes(tmp_path)


def test_without_a_command_it_is_the_users_shell(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "shell").write_text('#!/bin/sh\necho "$# arguments: $all_proxy"\ncat\n')
    (tmp_path / "shell").chmod(0o755)
    result = shell.run(f"SHELL={tmp_path}/shell torkit run", stdin=b"typed\n")
    assert result.stdout == b"0 arguments: http://127.0.0.1:9150\ntyped\n"
    assert (
        shell.run("env -u SHELL torkit run", stdin=b"echo /bin/sh, as $0").stdout == b"/bin/sh, as /bin/sh\n"
    )


def test_proxies_outside_are_no_longer_in_the_environment(shell: Shell) -> None:
    result = shell.run(
        "http_proxy=http://192.0.2.9:3128 RSYNC_PROXY=192.0.2.9:1 ALL_PROXY=x torkit run -- env"
    )
    assert b"192.0.2.9" not in result.stdout
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        assert f"\n{name}=http://127.0.0.1:9150\n".encode() in b"\n" + result.stdout


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1", "USR2", "QUIT"])
def test_signals_to_us_reach_the_command(shell: Shell, name: str, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f'trap "echo {name}; exit 3" {name}; touch {started}; while :; do sleep 0.1; done'
    with shell.running(f"exec {UNIGNORING} torkit run -- bash -c '{script}'") as process:
        wait_until(started.exists, 40, "the command")
        process.send_signal(signal.Signals[f"SIG{name}"])
        stdout, _ = process.communicate(timeout=20)
    assert (stdout, process.returncode) == (name.encode() + b"\n", 3)


def test_what_stops_the_command_stops_us_until_somebody_goes_on(shell: Shell, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with shell.running(f"exec torkit run -- bash -c 'echo $$ >{pid_file}; kill -STOP $$; exit 4'") as process:
        wait_until(pid_file.exists, 40, "the command")
        wait_until(lambda: _state(process.pid) == "T", 20, "us to be stopped")
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 4


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_terminal_is_the_commands(shell: Shell) -> None:
    """Typed ^C ends the command, which alone decides what that means; a shell has job control."""
    pid, terminal = pty.fork()
    if pid == 0:
        command = [*UNIGNORING.split(), "torkit", "run", "--", "bash", "--norc", "-i"]
        os.execvpe(command[0], command, {**shell.environment, "PS1": "> "})
    seen = b""

    def expect(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 40
        while text not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(terminal, 1000)
        seen = seen.partition(text)[2]

    try:
        expect(b"> ")
        os.write(terminal, b"sleep 1000\n")
        expect(b"sleep 1000")
        time.sleep(0.3)
        os.write(terminal, b"\x03")
        expect(b"> ")
        os.write(terminal, b"echo $?-status; sleep 1000\n")
        expect(b"130-status")
        time.sleep(0.3)
        os.write(terminal, b"\x1a")
        expect(b"Stopped")
        os.write(terminal, b"fg\n")
        expect(b"sleep 1000")
        time.sleep(0.3)
        os.write(terminal, b"\x03")
        expect(b"> ")
        os.write(terminal, b"exit 9\n")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 9
    finally:
        os.close(terminal)


@pytest.mark.parametrize(("option", "is_one"), [("", True), ("--isolate stream", False)])
def test_connections_share_a_circuit_unless_told_otherwise(
    shell: Shell, carrier_server: CarrierServer, option: str, is_one: bool
) -> None:
    url = f"http://web.test:{carrier_server.port}/carrier"
    line = f"for i in 1 2 3 4 5 6 7 8; do curl -sS --noproxy '*' {url}; echo; done"
    # While sets of circuits are being linked, an isolation may move to one.
    carriers = shell.run(f'torkit run --conflux off {option} -- bash -c "{line}"').stdout.split()
    assert len(carriers) == 8
    assert (len(set(carriers)) == 1) is is_one


def test_isolation_that_is_unknown_is_refused(shell: Shell) -> None:
    result = shell.run("torkit run --isolate port -- true")
    assert (result.returncode, b"'port' is none of dest-addr, dest-port, stream" in result.stderr) == (
        2,
        True,
    )
