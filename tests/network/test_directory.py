"""The directory of real relays: ever new consensuses under traffic, and servers that go one after the other.

The tests share a network that ends up dead, so their order matters. The first is a soak of 50 s, or of
TORKIT_SOAK_SECONDS.
"""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
from network.private_network import RunningTestnet, running_testnet
from network.servers import PAGE, WebServer
from network.torkit_process import Shell, make_shell, running_proxy, wait_until

from torkit.config import load_network
from torkit.directory.authorities import parse_certificates
from torkit.directory.consensus import Consensus, parse_consensus
from torkit.directory.diff import apply_diff, is_diff
from torkit.directory.trust import missing_certificates, verify
from torkit.errors import NothingNewer
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuits.build import build_directory_circuit
from torkit.net.circuits.purpose import AskDirectory
from torkit.net.contact import DirectoryServer
from torkit.net.dir.fetch import fetch_certificates, fetch_certificates_of_keys, fetch_consensus
from torkit.net.link.channels import Channels
from torkit.sandbox import can_be_closed
from torkit.testnet import Options

VOTING_INTERVAL = 15  # seconds; a consensus lives twice as long
SOAK_SECONDS = float(os.environ.get("TORKIT_SOAK_SECONDS", "50"))

pytestmark = [pytest.mark.network, pytest.mark.timeout(SOAK_SECONDS + 150)]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTestnet]:
    options = Options(voting_interval=VOTING_INTERVAL)
    with running_testnet(tmp_path_factory.mktemp("short-lived"), options) as net:
        yield net


@pytest.fixture
def fresh_shell(net: RunningTestnet, tmp_path: Path) -> Shell:
    """Somebody's first start, who knows the middle relays as fallbacks."""
    fallbacks = [
        f'    "{relay.address} orport={relay.or_port} id={relay.fingerprint}",\n'
        for relay in net.relays
        if relay.nickname.startswith("middle")
    ]
    network_file = tmp_path / "network.toml"
    network_file.write_text(f"fallbacks = [\n{''.join(fallbacks)}]\n{net.network_file.read_text()}")
    return replace(make_shell(net, tmp_path), network_file=network_file)


def _time_in(shell: Shell, keyword: str) -> float:
    """One of the times of the consensus at hand, in seconds since the epoch."""
    text = (shell.data_dir / "consensus-microdesc").read_text()
    found = re.search(rf"^{keyword} (.+)$", text, re.MULTILINE)
    assert found is not None
    return time.mktime(time.strptime(f"{found[1]} UTC", "%Y-%m-%d %H:%M:%S %Z")) - time.timezone


def test_no_request_fails_while_consensuses_come_and_go(fresh_shell: Shell, web_server: WebServer) -> None:
    """In a sandbox, if this kernel has one: what comes is written to the disk, too."""
    used = set()
    requests = 0
    options = ["--sandbox"] if can_be_closed() else []
    with running_proxy(fresh_shell, fresh_shell.data_dir / "proxy", options=options) as proxy:
        end = time.monotonic() + SOAK_SECONDS
        while time.monotonic() < end:
            page = f"{proxy.curl(f'user:{requests // 5}')} http://web.test:{web_server.port}/page"
            result = fresh_shell.run(page)
            assert result.stdout == PAGE, (requests, result, proxy.log.read_text())
            requests += 1
            used.add(_time_in(fresh_shell, "valid-after"))
            assert time.time() < _time_in(fresh_shell, "valid-until") + VOTING_INTERVAL
        print(f"{requests} requests, {len(used)} consensuses in {SOAK_SECONDS:g} s")
    assert len(used) > SOAK_SECONDS / (3 * VOTING_INTERVAL)
    assert requests > SOAK_SECONDS / 5


def test_new_consensus_is_made_from_an_old_one_and_a_diff(net: RunningTestnet, tmp_path: Path) -> None:
    shell = make_shell(net, tmp_path)
    old = shell.run("torkit fetch-consensus --flavor ns").stdout
    (tmp_path / "old").write_bytes(old)
    printed = old

    def has_new() -> bool:
        nonlocal printed
        result = shell.run(f"torkit -v fetch-consensus --diff-from {tmp_path}/old")
        assert result.returncode == 0, result
        assert b"diff is not used" not in result.stderr
        printed = result.stdout
        return printed != old

    wait_until(has_new, 60, "the next consensus", every=0.5)
    assert printed.startswith(b"network-status-version 3\n")
    again = shell.run("torkit fetch-consensus --from -", stdin=printed)
    assert again.stdout == printed, again


async def test_relays_send_diffs_and_what_they_make_is_verified(net: RunningTestnet) -> None:
    network = load_network(net.network_file)
    first = network.authorities[0]
    assert first.or_port is not None
    server = DirectoryServer(first.fingerprint, first.address, first.or_port, None)
    async with trio.open_nursery() as nursery:
        channels = Channels(nursery, Random())

        async def fetch(held: Consensus | None) -> bytes:
            circuit = await build_directory_circuit(channels, AskDirectory(server), CircuitSettings())
            try:
                return (await fetch_consensus(circuit, network.voters, held=held)).body
            finally:
                circuit.close()

        held = parse_consensus(await fetch(None))
        diff = b""
        while not is_diff(diff):  # pytest's timeout is the deadline
            with suppress(NothingNewer):
                diff = await fetch(held)
            await trio.sleep(1)
        newer = parse_consensus(apply_diff(held.text, diff))
        circuit = await build_directory_circuit(channels, AskDirectory(server), CircuitSettings())
        certificates = parse_certificates(await fetch_certificates(circuit, network.voters))
        missing = missing_certificates(newer, (), network.voters, time.time())
        of_keys = parse_certificates(await fetch_certificates_of_keys(circuit, missing))
        assert {one.signing_key_digest for one in of_keys} == {one.signing_key_digest for one in certificates}
        assert len(verify(newer, certificates, network.voters, time.time())) == len(network.voters)
        assert newer.valid_after > held.valid_after
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("hours", [-20, -2, 3, 20])
def test_a_clock_that_is_wrong_by_less_than_a_day_stops_no_first_start(
    fresh_shell: Shell, web_server: WebServer, hours: int
) -> None:
    clock = f"import time; real = time.time; time.time = lambda: real() + {hours} * 3600"
    start = f"{clock}; import sys; sys.argv[0] = 'torkit'; from torkit.cli.app import main; main()"
    line = f'{sys.executable} -c "{start}" connect web.test:{web_server.port}'
    result = fresh_shell.run(line, stdin=b"GET /page HTTP/1.0\r\n\r\n")
    assert result.stdout.endswith(PAGE), result
    told = f"clock is {abs(hours)} hours {'behind' if hours < 0 else 'ahead of'}"
    assert told in result.stderr.decode()


def test_fallbacks_serve_when_all_authorities_are_down_and_the_consensus_has_expired(
    net: RunningTestnet, fresh_shell: Shell, web_server: WebServer
) -> None:
    for relay in net.relays:
        if relay.is_authority:
            net.kill_relay(relay.nickname)
    line = f"torkit connect web.test:{web_server.port}"
    request = b"GET /page HTTP/1.0\r\n\r\n"
    assert fresh_shell.run(line, stdin=request).stdout.endswith(PAGE)
    # The fallbacks may since have had one that the authorities made with their last breath.
    last = _time_in(fresh_shell, "valid-until") + VOTING_INTERVAL
    wait_until(lambda: time.time() > last, 4 * VOTING_INTERVAL, "the last consensus to expire")
    later = fresh_shell.with_data_dir(fresh_shell.data_dir.with_name("later"))
    assert later.run(line, stdin=request).stdout.endswith(PAGE)
    assert _time_in(later, "valid-until") <= last
    # Whoever asks for a live one is told that there is none.
    refused = later.run("torkit fetch-consensus", timeout=60)
    assert refused.returncode != 0
    assert refused.stdout == b""


def test_a_second_start_needs_nobody(net: RunningTestnet, fresh_shell: Shell) -> None:
    assert fresh_shell.run("torkit choose-path").returncode == 0
    kept = (fresh_shell.data_dir / "consensus-microdesc").read_bytes()
    for relay in net.relays:
        if relay.pid is not None:
            net.kill_relay(relay.nickname)
    path = fresh_shell.run("torkit choose-path")
    assert path.returncode == 0
    assert len(path.stdout.split()) >= 3
    assert (fresh_shell.data_dir / "consensus-microdesc").read_bytes() == kept
    refused = fresh_shell.run("torkit connect -w 5 web.test:80", timeout=60)
    assert refused.returncode == 6
    assert b"torkit: " in refused.stderr
