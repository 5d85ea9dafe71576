"""Relays killed while they carry a transfer: it fails and says so, and the next request finds another way."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from network.private_network import RunningTestnet, running_testnet
from network.servers import PAGE, WebServer, sha256_of
from network.torkit_process import (
    CarrierServer,
    Proxy,
    Result,
    Shell,
    confirmed_guards,
    let_retries_be_due,
    make_shell,
    primary_guards,
    running_proxy,
    wait_until,
)

pytestmark = pytest.mark.network


@pytest.fixture
def net(tmp_path: Path) -> Iterator[RunningTestnet]:
    """A network for each test: a relay refuses for 60 s to connect again to one that it has found dead."""
    with running_testnet(tmp_path / "faulty-testnet") as net:
        yield net


@pytest.fixture
def faulty_shell(net: RunningTestnet, tmp_path: Path) -> Shell:
    return make_shell(net, tmp_path)


@pytest.fixture
def faulty_proxy(faulty_shell: Shell, tmp_path: Path) -> Iterator[Proxy]:
    with running_proxy(faulty_shell, tmp_path / "proxy") as proxy:
        yield proxy


@pytest.fixture
def server(net: RunningTestnet) -> Iterator[CarrierServer]:
    with CarrierServer(net) as server:
        yield server


def _guard(net: RunningTestnet, shell: Shell) -> str:
    """The nickname of the guard in use."""
    wait_until((shell.data_dir / "state.json").exists, 10, "the guard to be kept")
    fingerprint = confirmed_guards(shell)[0]
    return next(relay.nickname for relay in net.relays if relay.fingerprint == fingerprint)


@contextmanager
def _transfer(
    shell: Shell, line: str, server: CarrierServer
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An endless download that is under way, and its exit's nickname."""
    with shell.running(f"{line} | {{ head -c 100000 | wc -c >&2; cat >/dev/null; }}") as process:
        assert process.stderr is not None
        wait_until(lambda: not server.carriers.empty() or process.poll() is not None, 30, "the first bytes")
        assert process.poll() is None, process.stderr.read()
        assert process.stderr.readline() == b"100000\n"
        while not server.carriers.empty():  # the newest: an attempt before it may have been given up
            exit_nickname = server.carriers.get()
        yield process, exit_nickname


@contextmanager
def _killed(net: RunningTestnet, nickname: str) -> Iterator[None]:
    net.kill_relay(nickname)
    try:
        yield
    finally:
        net.start_relay(nickname)


def _wait_for_page(shell: Shell, line: str) -> None:
    """Two attempts of a stream and a build may fail first."""
    results: list[Result] = []
    deadline = time.monotonic() + 30
    while not results or results[-1].stdout != PAGE:
        assert time.monotonic() < deadline, results
        results.append(shell.run(line))


def test_start_while_the_kept_guard_is_down(
    net: RunningTestnet, faulty_shell: Shell, web_server: WebServer
) -> None:
    line = f"torkit connect web.test:{web_server.port}"
    request = b"GET /page HTTP/1.0\r\n\r\n"
    assert faulty_shell.run(line, stdin=request).stdout.endswith(PAGE)
    guard = _guard(net, faulty_shell)
    with _killed(net, guard):
        assert faulty_shell.run(line, stdin=request, timeout=15).stdout.endswith(PAGE)
    # Back, and tried again when that is due; but for a path that ends there, the one that is preferred.
    let_retries_be_due(faulty_shell)
    preferred = primary_guards(faulty_shell)[0]
    built = faulty_shell.run("torkit -vv build-circuit")
    path = json.loads(built.stdout)["path"]
    assert preferred in (path[0]["fingerprint"], path[2]["fingerprint"]), built.stderr


def test_exit_killed_in_mid_transfer(
    net: RunningTestnet,
    faulty_shell: Shell,
    faulty_proxy: Proxy,
    server: CarrierServer,
    web_server: WebServer,
) -> None:
    page = f"{faulty_proxy.curl()} http://web.test:{web_server.port}/page"
    line = f"{faulty_proxy.curl()} http://web.test:{server.port}/endless"
    with _transfer(faulty_shell, line, server) as (transfer, carrier), _killed(net, carrier):
        try:
            transfer.wait(10)
        except subprocess.TimeoutExpired:  # the paths tell whether this exit's end was kept back on its way
            status = faulty_shell.run("torkit status").stdout.decode()
            pytest.fail(f"{carrier} was killed, and the transfer has not ended:\n{status}")
        result = faulty_shell.finish(transfer, line)
        assert result.returncode in (18, 56), result  # a partial file or a reset, never a good end
        _wait_for_page(faulty_shell, page)
        # The exit is still in the consensus: each new circuit may meet it.
        many = [f"{faulty_proxy.curl(f'u:{n}')} http://web.test:{web_server.port}/page" for n in range(4)]
        assert [r.stdout for r in faulty_shell.run_at_once(many, timeout=20)] == [PAGE] * 4


def test_connect_tells_a_cut_from_an_end(
    net: RunningTestnet, faulty_shell: Shell, server: CarrierServer
) -> None:
    line = f"printf 'GET /endless HTTP/1.0\\r\\n\\r\\n' | torkit connect web.test:{server.port}"
    with _transfer(faulty_shell, line, server) as (transfer, carrier), _killed(net, carrier):
        result = faulty_shell.finish(transfer, line, timeout=10)
        assert result.returncode == 1, result
        assert re.search(rb"torkit: the circuit to \w+ failed: ", result.stderr)


@pytest.mark.alone
@pytest.mark.timeout(300)  # it takes a minute, and each wait has its own deadline
def test_every_relay_is_lost_in_turn_under_load(
    net: RunningTestnet, faulty_shell: Shell, faulty_proxy: Proxy, web_server: WebServer, tmp_path: Path
) -> None:
    """Clients that try again get what they want throughout, never a wrong byte, and none of them hangs."""
    length = 2 << 20
    stop, log = tmp_path / "stop", tmp_path / "log"
    log.touch()

    def client(number: int) -> str:
        """Keeps its circuit as long as that lives: many would leave no path in so small a network."""
        curl = (
            f"{faulty_proxy.curl(f'load{number}:x')} -m 130 http://web.test:{web_server.port}/bytes/{length}"
        )
        return (
            f"while [ ! -e {stop} ]; do sum=$({curl} 2>/dev/null | sha256sum; exit ${{PIPESTATUS[0]}});"
            f' echo "$? $sum" >>{log}; done'
        )

    def outcomes() -> list[tuple[int, str]]:
        return [(int(line.split()[0]), line.split()[1]) for line in log.read_text().splitlines()]

    def successes() -> int:
        return sum(status == 0 for status, _ in outcomes())

    def go_on(before: int) -> bool:
        return successes() > before + 2

    with ExitStack() as stack:
        clients = [(stack.enter_context(faulty_shell.running(client(n))), client(n)) for n in range(3)]
        wait_until(successes, 30, "a download")
        for relay in list(net.relays):
            with _killed(net, relay.nickname):
                wait_until(partial(go_on, successes()), 90, f"downloads without {relay.nickname}")
        stop.touch()
        for process, line in clients:
            faulty_shell.finish(process, line, timeout=140)
    assert {digest for status, digest in outcomes() if status == 0} == {sha256_of(length)}
    # Those on circuits through a lost relay, the guard at least: cut, reset, refused; no time that ran out.
    failures = {status for status, _ in outcomes()} - {0}
    assert failures & {18, 56}
    assert failures <= {18, 56, 97}
    _wait_for_page(faulty_shell, f"{faulty_proxy.curl()} http://web.test:{web_server.port}/page")
