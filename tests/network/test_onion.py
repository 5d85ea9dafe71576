"""Descriptors of real onion services, from the directories of a private network."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from network.private_network import RunningTestnet, running_testnet
from network.torkit_process import Shell, make_shell, wait_until

from torkit.testnet import Options

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTestnet]:
    """Periods turn every eight minutes, since they follow the voting interval."""
    with running_testnet(tmp_path_factory.mktemp("onions"), Options(voting_interval=20)) as net:
        yield net


@pytest.fixture(scope="module")
def onion_shell(net: RunningTestnet, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return make_shell(net, tmp_path_factory.mktemp("onion-shell"))


def start_service(net: RunningTestnet, directory: Path, *clients: str) -> str:
    """A service of C tor's with these lines of authorized clients. Returns its address."""
    authorized = directory / "authorized_clients"
    authorized.mkdir(mode=0o700, parents=True)
    directory.chmod(0o700)
    for number, line in enumerate(clients):
        (authorized / f"client{number}.auth").write_text(line)
    net.start_client(f"HiddenServiceDir {directory}", "HiddenServicePort 80 127.0.0.1:9")
    return (directory / "hostname").read_text().strip()


def test_the_descriptor_of_a_service_is_fetched_and_checked(
    net: RunningTestnet, onion_shell: Shell, tmp_path: Path
) -> None:
    address = start_service(net, tmp_path / "plain")
    found: list[dict[str, object]] = []

    def is_fetched() -> bool:
        result = onion_shell.run(f"torkit onion descriptor {address}")
        if result.returncode == 0:
            found.append(json.loads(result.stdout))
        else:
            assert b"no directory has the onion service's descriptor" in result.stderr, result
        return bool(found)

    wait_until(is_fetched, 60, "the descriptor to be published")
    points = found[0]["introduction_points"]
    assert isinstance(points, list)
    assert len(points) >= 3
    relays = {relay.fingerprint.lower() for relay in net.relays}
    for point in points:
        identities = [one["value"] for one in point["link_specifiers"] if one["type"] == 2]
        assert set(identities) <= relays
    assert found[0]["sendme_inc"] == 31


def test_a_service_for_its_clients_opens_to_our_key_only(
    net: RunningTestnet, onion_shell: Shell, tmp_path: Path
) -> None:
    # The address comes first, then the key, then the service: so a service is made twice with one key pair.
    first = tmp_path / "first"
    address = start_service(net, first)
    made = onion_shell.run(f"torkit onion keygen {address} {tmp_path}/key")
    assert made.returncode == 0
    assert os.stat(tmp_path / "key").st_mode & 0o777 == 0o600
    again = onion_shell.run(f"torkit onion keygen {address} {tmp_path}/key")
    assert again.returncode != 0  # nothing is overwritten
    second = tmp_path / "second"
    second.mkdir(mode=0o700)
    for name in ("hs_ed25519_secret_key", "hs_ed25519_public_key", "hostname"):
        subprocess.run(["cp", "-p", first / name, second / name], check=True)
    assert start_service(net, second, made.stdout.decode()) == address

    def is_for_clients() -> bool:
        return b"for clients that it knows" in onion_shell.run(f"torkit onion descriptor {address}").stderr

    wait_until(is_for_clients, 90, "the descriptor for clients to replace the other")
    wait_until(
        lambda: onion_shell.run(f"torkit onion descriptor --key {tmp_path}/key {address}").returncode == 0,
        60,
        "the descriptor to open to the key",
    )
