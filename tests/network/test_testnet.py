"""The private network itself: that it works, comes alone or in pairs, and leaves nothing behind."""

import hashlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import trio
from network.private_network import RunningTestnet, keys_made_once
from network.servers import PAGE, WebServer, sha256_of

from torkit.errors import NotPossible, UsageError
from torkit.testnet import (
    Options,
    Relay,
    Testnet,
    answer_name,
    down,
    owner,
    run_testnet,
    up,
    verify,
)
from torkit.testnet.processes import tor_processes
from torkit.testnet.ready import fetch_consensus
from torkit.testnet.torrc import common_torrc


async def _eventually(condition: Callable[[], bool]) -> None:
    while not condition():  # pytest's timeout is the deadline
        await trio.sleep(0.1)


async def _next_but_one(authority: Relay) -> None:
    """Waits for a consensus whose votes were all made from now on."""
    seen: set[datetime] = set()
    while len(seen) < 3:  # pytest's timeout is the deadline
        if (consensus := await fetch_consensus(authority)) is not None:
            seen.add(consensus.valid_after)
        await trio.sleep(0.1)


@pytest.mark.network
async def test_session_network_passes_its_own_checks(testnet: RunningTestnet) -> None:
    checks = await verify(Testnet.attach(testnet.directory))
    assert [check for check in checks if not check.passed] == []
    assert {"processes", "consensus of auth1", "traffic"} <= {check.name for check in checks}


@pytest.mark.network
def test_relays_have_distinct_subnets_and_identities(testnet: RunningTestnet) -> None:
    assert len({relay.address.rsplit(".", 2)[0] for relay in testnet.relays}) == len(testnet.relays)
    assert len({relay.fingerprint for relay in testnet.relays}) == len(testnet.relays)
    assert len({relay.ed25519 for relay in testnet.relays}) == len(testnet.relays)


@pytest.mark.network
def test_c_tor_client_reaches_targets_by_name_and_reverse_name(
    testnet: RunningTestnet, web_server: WebServer
) -> None:
    host, port = testnet.start_client()
    curl = ["curl", "-sS", "--fail", "--max-time", "60", "--socks5-hostname", f"{host}:{port}"]
    url = f"http://web.test:{web_server.port}"
    assert subprocess.run([*curl, f"{url}/page"], capture_output=True).stdout == PAGE
    body = subprocess.run([*curl, f"{url}/bytes/3000000"], capture_output=True).stdout
    assert hashlib.sha256(body).hexdigest() == sha256_of(3000000)
    upload = subprocess.run(
        [*curl, "--data-binary", "@-", f"{url}/upload"], input=b"hello", capture_output=True
    )
    assert upload.stdout.decode() == hashlib.sha256(b"hello").hexdigest()
    unknown = subprocess.run([*curl, "http://no-such-name.invalid/"], capture_output=True)
    assert unknown.returncode == 97
    reverse = subprocess.run(["tor-resolve", "-x", "192.0.2.1", f"{host}:{port}"], capture_output=True)
    assert reverse.stdout.strip() == b"reverse.test"


@pytest.mark.network
def test_killed_relay_is_gone_and_comes_back_with_its_identity(testnet: RunningTestnet) -> None:
    relay = testnet.relay("middle1")
    testnet.kill_relay("middle1")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((relay.address, relay.or_port)).close()
    with pytest.raises(UsageError):
        testnet.kill_relay("middle1")
    testnet.start_relay("middle1")
    socket.create_connection((relay.address, relay.or_port)).close()
    assert relay.pid in tor_processes(testnet.directory)


@pytest.mark.network
async def test_second_network_on_one_address_with_short_lived_consensuses(
    testnet: RunningTestnet, tmp_path: Path
) -> None:
    options = Options(distinct_subnets=False, voting_interval=10, exits=2, middles=1)
    async with run_testnet(tmp_path, options) as net:
        # One that was up for less long than the others was not Stable any more, which is no guard.
        await net.kill_relay("middle1")
        await net.start_relay("middle1")
        assert {relay.address for relay in net.relays} == {"127.0.0.1"}
        assert "distinct_subnets = false" in net.network_file.read_text()
        await _next_but_one(net.relays[0])
        assert [check for check in await verify(net) if not check.passed] == []
    assert tor_processes(tmp_path) == []
    assert not net.network_file.exists()


@pytest.mark.network
async def test_killed_owner_leaves_no_process_behind(tmp_path: Path) -> None:
    directory = tmp_path / "net"
    await trio.to_thread.run_sync(up, directory)
    with pytest.raises(NotPossible, match=r"running in .* already"):
        up(directory)
    supervisor = owner(directory)
    assert supervisor is not None
    assert len(tor_processes(directory)) == len(Testnet.attach(directory).relays)
    os.kill(supervisor, signal.SIGKILL)
    await _eventually(lambda: tor_processes(directory) == [])  # tor looks for its owner every 15 s
    with pytest.raises(NotPossible, match="no test network"):
        Testnet.attach(directory)
    down(directory)
    assert not directory.exists()


@pytest.mark.network
def test_tor_reads_the_name_of_any_directory(tmp_path: Path) -> None:
    """A number sign began a comment: tor took another directory, or none."""
    directory = tmp_path / 'a b#c "d" \\e'
    directory.mkdir()
    torrc = directory / "torrc"
    named = [
        line for line in common_torrc(directory, [], "notice") if line.startswith(("DataDirectory", "Log"))
    ]
    torrc.write_text("\n".join([*named, "SocksPort 0", "DisableNetwork 1", ""]))
    command = ["tor", "--defaults-torrc", "/dev/null", "-f", str(torrc), "--dump-config", "short"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert set(named) <= set(told.splitlines())  # quoted where they have to be, as tor writes them


@pytest.fixture
def known_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """For starts that fail later."""
    monkeypatch.setattr("torkit.testnet.network.make_keys", keys_made_once)


@pytest.mark.network
@pytest.mark.usefixtures("known_keys")
async def test_torrc_line_tor_refuses_is_reported_in_tors_words(tmp_path: Path) -> None:
    with pytest.raises(NotPossible, match=r"exit1.*NoSuchOption"):
        async with run_testnet(tmp_path, Options(torrc={"exit1": ["NoSuchOption 1"]})):
            pass
    assert tor_processes(tmp_path) == []


@pytest.mark.network
@pytest.mark.usefixtures("known_keys")
async def test_port_that_is_always_taken_ends_the_attempts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = Options(torrc={"auth1": [f"ORPort 127.0.0.1:{taken.getsockname()[1]} NoAdvertise"]})
        with pytest.raises(NotPossible, match="port was taken"):
            async with run_testnet(tmp_path, options):
                pass
    assert tor_processes(tmp_path) == []


async def test_missing_tor_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotPossible, match=r"needs the program `tor") as caught:
        async with run_testnet(tmp_path / "net"):
            pass
    assert "apt-get install tor" in (caught.value.hint or "")


async def test_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        async with run_testnet(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "options", [Options(exits=0), Options(voting_interval=9), Options(voting_interval=11)]
)
async def test_options_that_cannot_work_are_refused(options: Options, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        async with run_testnet(tmp_path / "net", options):
            pass
    assert not (tmp_path / "net").exists()


def _query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 0xBEEF, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


@pytest.mark.parametrize(
    ("name", "kind", "code", "data"),
    [
        ("web.test", 1, 0, b"\x7f\x00\x00\x01"),
        ("A.deep.NaMe.TEST", 1, 0, b"\x7f\x00\x00\x01"),
        ("web.test", 28, 0, b""),
        ("web.example", 1, 3, b""),
        ("1.2.0.192.in-addr.arpa", 12, 0, b"\x07reverse\x04test\0"),
        ("9.9.9.9.in-addr.arpa", 12, 3, b""),
    ],
)
def test_names_are_answered(name: str, kind: int, code: int, data: bytes) -> None:
    query = _query(name, kind)
    reply = answer_name(query)
    assert reply is not None
    assert reply[:2] == query[:2]
    assert reply[3] & 15 == code
    assert reply[12 : len(query)] == query[12:]  # the question as asked, letter case included
    assert reply[len(query) + 12 :] == data


def test_truncated_queries_are_not_answered() -> None:
    query = _query("web.test", 1)
    assert [answer_name(query[:length]) for length in range(len(query))] == [None] * len(query)
