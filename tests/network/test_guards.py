"""Guards on real relays: which are used, what happens when one goes away, what users restrict."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from network.private_network import RunningTestnet, running_testnet
from network.servers import PAGE, WebServer
from network.torkit_process import (
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
    """A network for each test that stops relays."""
    with running_testnet(tmp_path / "guards-testnet") as net:
        yield net


@pytest.fixture
def own_shell(net: RunningTestnet, tmp_path: Path) -> Shell:
    return make_shell(net, tmp_path)


@pytest.fixture
def fresh_shell(shell: Shell, tmp_path: Path) -> Shell:
    """On the session's network, with guards of its own."""
    return shell.with_data_dir(tmp_path / "data")


def _possible_guards(shell: Shell) -> list[str]:
    flags = "--flag Guard --flag Fast --flag Stable --flag V2Dir"
    return shell.run(f"torkit relays {flags} --columns nickname").stdout.decode().split()


def _path(line: bytes) -> list[str]:
    return [relay["nickname"] for relay in json.loads(line)["path"]]


def _nickname(net: RunningTestnet, fingerprint: str) -> str:
    return next(relay.nickname for relay in net.relays if relay.fingerprint == fingerprint)


def _learn(shell: Shell) -> None:
    """Let circuits be waited for as after a while on this network: five seconds."""
    shell.data_dir.mkdir()
    (shell.data_dir / "state.json").write_text(json.dumps({"build_times": {"995": 100}}))


@contextmanager
def _paused(net: RunningTestnet, nickname: str) -> Iterator[None]:
    """A relay that holds its connections and answers nothing."""
    pid = net.relay(nickname).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_restrictions_hold_on_real_circuits(testnet: RunningTestnet, fresh_shell: Shell) -> None:
    entry = next(name for name in _possible_guards(fresh_shell) if not testnet.relay(name).is_exit)
    other, excluded = [
        relay.nickname for relay in testnet.relays if not relay.is_exit and relay.nickname != entry
    ][:2]
    exit_ = testnet.exits[0]
    result = fresh_shell.run(
        f"torkit build-circuit --count 3 --entry-nodes {entry},{other}"
        f" --exit-nodes {exit_.fingerprint} --exclude-nodes {other},{excluded},nobody"
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 3, result
    for line in lines:
        first, middle, last = _path(line)
        assert (first, last) == (entry, exit_.nickname)
        assert middle not in (other, excluded)
    said = result.stderr.decode()
    assert [said.count(f"torkit: --{name}-nodes: ") for name in ("entry", "exit", "exclude")] == [1, 1, 1]
    assert "torkit: no relay nobody in the directory\n" in said


def test_an_exit_that_is_the_guard_gets_another_guard(testnet: RunningTestnet, fresh_shell: Shell) -> None:
    """One entry node of two makes sure that an exit is the guard."""
    possible = _possible_guards(fresh_shell)
    guard_and_exit = next(name for name in possible if testnet.relay(name).is_exit)
    entries = [guard_and_exit, next(name for name in possible if not testnet.relay(name).is_exit)]
    other_exit = next(relay.nickname for relay in testnet.exits if relay.nickname != guard_and_exit)
    for exit_ in (guard_and_exit, other_exit):
        line = f"torkit build-circuit --entry-nodes {','.join(entries)} --exit-nodes {exit_}"
        first, _, last = _path(fresh_shell.run(line).stdout)
        assert last == exit_
        assert first in entries
        assert first != exit_


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_guard_goes_away_and_comes_back(
    net: RunningTestnet, own_shell: Shell, tmp_path: Path, web_server: WebServer, how: str
) -> None:
    _learn(own_shell)
    with running_proxy(own_shell, tmp_path / "proxy") as proxy:

        def fetch(isolation: str) -> bytes:
            line = f"{proxy.curl(f'{isolation}:x')} http://web.test:{web_server.port}/page"
            return own_shell.run(line, timeout=60).stdout

        assert fetch("before") == PAGE
        used = confirmed_guards(own_shell)[0]
        guard = _nickname(net, used)
        if how == "killed":
            net.kill_relay(guard)
            for n in range(5):
                assert fetch(f"while{n}") == PAGE
            net.start_relay(guard)
        else:
            with _paused(net, guard):
                for n in range(5):
                    assert fetch(f"while{n}") == PAGE
        assert fetch("after") == PAGE
    # Another guard has carried traffic. Both are primary, in the order of sampling.
    assert used in primary_guards(own_shell)
    let_retries_be_due(own_shell)
    preferred = primary_guards(own_shell)[0]
    built: list[bytes] = []

    def is_built() -> bool:  # relays that found each other dead refuse each other for some time
        built.append(own_shell.run("torkit build-circuit").stdout)
        return built[-1] != b""

    wait_until(is_built, 60, "a circuit")
    path = json.loads(built[-1])["path"]
    assert preferred in (path[0]["fingerprint"], path[2]["fingerprint"])


def test_short_commands_leave_a_dead_guard_and_remember_it(net: RunningTestnet, own_shell: Shell) -> None:
    """Each of them asked the same dead guard first, for ever."""
    _learn(own_shell)
    line = own_shell.run("torkit choose-path").stdout
    guard = _path(line)[0]
    net.kill_relay(guard)
    failed = own_shell.run("torkit build-circuit --path -", stdin=line)
    assert failed.returncode != 0
    assert f"torkit: {guard}: could not connect to the relay".encode() in failed.stderr
    wait_until(lambda: own_shell.run("torkit build-circuit").returncode == 0, 60, "a circuit")
    assert _path(own_shell.run("torkit build-circuit").stdout)[0] != guard
    assert _path(own_shell.run("torkit choose-path").stdout)[0] != guard
