"""The commands in pipes and beside each other, and what they say where files or the network fail them."""

import io
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stem.descriptor
from network.private_network import RunningTestnet
from network.servers import HOST, PAGE, WebServer
from network.torkit_process import CarrierServer, Shell, running_proxy

pytestmark = pytest.mark.network


def _nicknames(line: bytes) -> list[str]:
    return [relay["nickname"] for relay in json.loads(line)["path"]]


def stem_documents(consensus: bytes) -> Iterator[Any]:
    """The relays as stem reads them: a second opinion."""
    flavor = "microdesc-" if b" microdesc\n" in consensus[:40] else ""
    yield from stem.descriptor.parse_file(io.BytesIO(consensus), f"network-status-{flavor}consensus-3 1.0")


# --- pipes ----------------------------------------------------------------------------------------------


def test_consensus_path_and_connection_in_one_pipe(shell: Shell, web_server: WebServer) -> None:
    port = web_server.port
    line = (
        f"torkit fetch-consensus | torkit choose-path - --exit-port {port}"
        f" | torkit connect --path - -z -v web.test:{port}"
    )
    result = shell.run(line)
    assert result.returncode == 0, result
    assert b"torkit: connected through " in result.stderr


def test_chosen_path_is_the_path_taken_and_stdin_goes_on_after_it(
    shell: Shell, testnet: RunningTestnet, web_server: WebServer
) -> None:
    chosen = shell.run(f"torkit choose-path --exit-port {web_server.port} --count 2").stdout.splitlines()
    assert len(chosen) == 2
    names = _nicknames(chosen[0])
    assert len(set(names)) == 3
    assert testnet.relay(names[2]).is_exit
    request = chosen[0] + b"\nGET /page HTTP/1.0\r\n\r\n"
    result = shell.run(f"torkit connect -v --path - web.test:{web_server.port}", stdin=request)
    assert result.stdout.endswith(b"\r\n\r\n" + PAGE)
    assert f"through {', '.join(names)}\n".encode() in result.stderr


def test_paths_go_into_build_circuit_and_circuits_into_paths(shell: Shell) -> None:
    result = shell.run("torkit choose-path --count 3 | torkit build-circuit --path - | tee /dev/stderr")
    assert result.returncode == 0
    built = result.stdout.splitlines()
    assert len(built) == 3
    again = shell.run("torkit build-circuit --path -", stdin=result.stdout)
    assert list(map(_nicknames, again.stdout.splitlines())) == list(map(_nicknames, built))


def test_path_of_names(shell: Shell) -> None:
    names = ["middle1", "auth1", "exit1"]
    result = shell.run(f"torkit build-circuit --path {','.join(names)}")
    assert _nicknames(result.stdout) == names


@pytest.mark.parametrize("command", ["socks --listen 127.0.0.1:0", "connect -z web.test:80"])
def test_path_that_ends_at_no_exit_is_refused_in_words(shell: Shell, command: str) -> None:
    """The proxy said that it was ready, and `connect` that there was no such name."""
    result = shell.run(f"torkit {command} --path middle1,middle2,middle3")
    assert result.returncode == 5
    assert b"torkit: middle3's exit policy allows no port\n" in result.stderr
    assert b"ready" not in result.stderr


def test_proxy_with_a_path_goes_there_and_nowhere_else(
    shell: Shell, tmp_path: Path, carrier_server: CarrierServer
) -> None:
    with running_proxy(shell, tmp_path / "proxy", options=["--path", "middle1,middle3,exit2"]) as proxy:
        carrier = shell.run(f"{proxy.curl()} http://web.test:{carrier_server.port}/carrier").stdout
        assert carrier == b"exit2"


def test_consensus_lists_every_relay(shell: Shell, testnet: RunningTestnet, tmp_path: Path) -> None:
    relays = [json.loads(line) for line in shell.run("torkit fetch-consensus --json").stdout.splitlines()]
    assert {r["fingerprint"] for r in relays} == {r.fingerprint for r in testnet.relays}
    assert {r["nickname"] for r in relays if "Exit" in r["flags"]} >= {r.nickname for r in testnet.exits}
    document = shell.run("torkit fetch-consensus").stdout
    assert document.startswith(b"network-status-version 3 microdesc\n")
    assert shell.run(f"torkit fetch-consensus -o {tmp_path}/consensus").stdout == b""
    assert (tmp_path / "consensus").read_bytes() == document
    chosen = shell.run(f"torkit choose-path --from {tmp_path}/consensus")
    assert len(_nicknames(chosen.stdout)) == 3


def test_both_flavors_come_from_the_network_and_verify_again_from_files(
    shell: Shell, testnet: RunningTestnet, tmp_path: Path
) -> None:
    fingerprints = {relay.fingerprint for relay in testnet.relays}
    for flavor, first_line in (
        ("ns", b"network-status-version 3"),
        ("microdesc", b"network-status-version 3 microdesc"),
    ):
        cold = shell.with_data_dir(tmp_path / flavor)
        fetched = cold.run(f"torkit fetch-consensus --from network --flavor {flavor}")
        assert (fetched.returncode, fetched.stderr) == (0, b"")
        assert fetched.stdout.splitlines()[0] == first_line
        (tmp_path / "consensus").write_bytes(fetched.stdout)
        again = cold.run(f"torkit fetch-consensus --from {tmp_path}/consensus --flavor {flavor} --json")
        assert {json.loads(line)["fingerprint"] for line in again.stdout.splitlines()} == fingerprints
        relays = list(stem_documents(fetched.stdout))
        assert {relay.fingerprint for relay in relays} == fingerprints
        ours = {line["fingerprint"]: line for line in map(json.loads, again.stdout.splitlines())}
        for relay in relays:
            assert set(ours[relay.fingerprint]["flags"]) == set(relay.flags)
            assert ours[relay.fingerprint]["or_port"] == relay.or_port
        wrong = cold.run(
            f"torkit fetch-consensus --from {tmp_path}/consensus --at 2020-01-01 -o {tmp_path}/out"
        )
        assert (wrong.returncode, wrong.stdout) == (3, b"")
        assert b"from the future" in wrong.stderr
        assert not (tmp_path / "out").exists()


def test_relays_are_listed_and_each_is_told_of(shell: Shell, testnet: RunningTestnet, tmp_path: Path) -> None:
    cold = shell.with_data_dir(tmp_path / "data")
    exits = {relay.nickname for relay in testnet.exits}
    listed = cold.run("torkit relays --exit-port 80 --columns nickname")
    assert (set(listed.stdout.decode().split()), listed.stderr) == (exits, b"")
    piped = cold.run("torkit fetch-consensus | torkit relays - --flag Exit --columns nickname")
    assert (set(piped.stdout.decode().split()), piped.stderr) == (exits, b"")
    told = cold.run("torkit relays --columns fingerprint | xargs -n1 torkit relay --from cache --json")
    assert (told.returncode, told.stderr) == (0, b"")
    relays = {one["nickname"]: one for one in map(json.loads, told.stdout.splitlines())}
    assert {one["fingerprint"] for one in relays.values()} == {one.fingerprint for one in testnet.relays}
    assert {name for name, one in relays.items() if one["exit_policy"] != "reject 1-65535"} == exits
    for position in ("guard", "middle", "exit"):
        assert sum(one["probability"][position] for one in relays.values()) == pytest.approx(1)
    unknown = cold.run("torkit relay nobody")
    assert (unknown.returncode, unknown.stdout) == (2, b"")
    assert unknown.stderr == b"torkit: no relay 'nobody' in the consensus\n"


def test_list_that_nobody_reads_to_its_end_ends_quietly(shell: Shell) -> None:
    line = "for n in $(seq 3); do torkit relays; done | head -n 1"
    result = shell.run(line)
    assert result.stdout.count(b"\n") == 1
    assert result.stderr == b""
    assert shell.run("torkit relays >/dev/full").returncode == 1


def test_tampered_consensus_is_refused_with_a_reason(shell: Shell) -> None:
    document = shell.run("torkit fetch-consensus").stdout
    for forged in (document.replace(b" Guard", b" Exit", 1), document[: len(document) // 2], b"nonsense\n"):
        result = shell.run("torkit choose-path -", stdin=forged)
        assert result.returncode in (1, 3), result
        assert result.stdout == b""
        assert result.stderr.startswith(b"torkit: ")
    assert shell.run("torkit choose-path").returncode == 0  # the cached one is as good as before


# --- beside each other ----------------------------------------------------------------------------------


def _kept_guards(shell: Shell) -> list[str]:
    """Fingerprints, the guard in use first."""
    state = json.loads((shell.data_dir / "state.json").read_text())
    return [guard["fingerprint"] for guard in state["guards"]]


def _guard_for(guards: list[str], path: list[str]) -> str:
    """The first that is not the exit of a path of fingerprints."""
    return next(guard for guard in guards if guard != path[-1])


def _fingerprints(line: bytes) -> list[str]:
    return [relay["fingerprint"] for relay in json.loads(line)["path"]]


def test_five_cold_starts_share_one_new_data_directory(
    shell: Shell, web_server: WebServer, testnet: RunningTestnet, tmp_path: Path
) -> None:
    cold = shell.with_data_dir(tmp_path / "new" / "data")
    request = r"printf 'GET /page HTTP/1.0\r\n\r\n'"
    result = cold.run(
        f'seq 5 | xargs -P5 -I{{}} sh -c "{request} | torkit connect web.test:{web_server.port}"'
    )
    assert result.returncode == 0, result
    assert result.stderr == b""
    assert result.stdout.count(PAGE) == 5
    kept = {path.name for path in cold.data_dir.iterdir()}
    assert {"consensus-microdesc", "certificates", "microdescs", "state.json"} <= kept
    assert not [name for name in kept if name.startswith(".")], "a temporary file was left behind"
    assert cold.data_dir.stat().st_mode & 0o077 == 0
    guards = _kept_guards(cold)
    assert len(set(guards)) == len(guards)
    assert set(guards) == {relay.fingerprint for relay in testnet.relays}


def test_second_start_keeps_the_guard_and_needs_no_authority(
    shell: Shell, tmp_path: Path, testnet: RunningTestnet
) -> None:
    again = shell.with_data_dir(tmp_path / "data")
    paths = [_fingerprints(again.run("torkit build-circuit").stdout)]
    guards = _kept_guards(again)
    paths += [_fingerprints(again.run("torkit build-circuit").stdout) for _ in range(19)]
    assert _kept_guards(again) == guards
    assert [path[0] for path in paths] == [_guard_for(guards, path) for path in paths]
    # The same authorities' identities where nobody listens: all that is needed is in the data directory.
    text = testnet.network_file.read_text()
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        for relay in testnet.relays:
            if relay.is_authority:
                text = text.replace(f"orport={relay.or_port}", f"orport={nobody.getsockname()[1]}")
        (tmp_path / "network.toml").write_text(text)
        result = again.run(f"torkit --network {tmp_path}/network.toml build-circuit")
        path = _fingerprints(result.stdout)
        assert path[0] == _guard_for(guards, path)
        cold = shell.with_data_dir(tmp_path / "cold")
        nowhere = cold.run(f"torkit --network {tmp_path}/network.toml build-circuit", timeout=30)
    assert (nowhere.returncode, nowhere.stdout) != (0, b"")
    assert nowhere.stderr.startswith(b"torkit: ")


# --- bad places -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/data", "/proc/none/data"])
def test_data_directory_that_cannot_be_one(shell: Shell, place: str) -> None:
    result = shell.run(f"torkit --data-dir {place} build-circuit")
    assert (result.returncode, result.stdout) == (1, b"")
    assert f"torkit: data directory {place}: ".encode() in result.stderr


@pytest.fixture(params=["read-only", "full"])
def bad_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, bytes]]:
    """A directory that cannot be written, and what the system says of it."""
    place = tmp_path / "place"
    place.mkdir()
    if request.param == "read-only" and os.geteuid() != 0:
        place.chmod(0o500)
        yield place, b"Permission denied"
        return
    options = {"read-only": "ro,mode=0700", "full": "size=4k,mode=0700"}[request.param]
    mount = ["mount", "-t", "tmpfs", "-o", options, "torkit-test", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs a mount, and this machine allows none")
    try:
        yield (
            place,
            {"read-only": b"Read-only file system", "full": b"No space left on device"}[request.param],
        )
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_data_directory_that_cannot_be_written_is_said_and_the_work_is_done(
    shell: Shell, bad_directory: tuple[Path, bytes], web_server: WebServer
) -> None:
    place, reason = bad_directory
    line = f"torkit --data-dir {place} connect web.test:{web_server.port}"
    result = shell.run(line, stdin=b"GET /page HTTP/1.0\r\n\r\n")
    assert result.returncode == 0, result
    assert result.stdout.endswith(PAGE)
    assert reason in result.stderr
    assert all(message.startswith(b"torkit: ") for message in result.stderr.splitlines())


def test_output_that_cannot_be_written(shell: Shell, bad_directory: tuple[Path, bytes]) -> None:
    place, reason = bad_directory
    result = shell.run(f"torkit fetch-consensus -o {place}/consensus")
    assert result.returncode == 1, result
    assert reason in result.stderr
    assert list(place.iterdir()) == []
    assert shell.run("torkit fetch-consensus >/dev/full").returncode == 1


def test_network_file_that_is_none(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "network.toml").write_text("authorities = [nonsense")
    for path in (tmp_path / "network.toml", tmp_path / "none.toml", tmp_path):
        result = shell.run(f"torkit --network {path} build-circuit")
        assert (result.returncode, result.stdout) == (2, b"")
        assert result.stderr.startswith(f"torkit: {path}: ".encode())


def test_proxy_on_a_port_that_is_taken(shell: Shell) -> None:
    with socket.create_server((HOST, 0)) as taken:
        result = shell.run(f"torkit socks --listen {HOST}:{taken.getsockname()[1]}")
    assert result.returncode == 1
    assert b"Address already in use" in result.stderr


def test_names_are_resolved_at_an_exit(shell: Shell) -> None:
    result = shell.run("torkit resolve web.test web.test")
    assert (result.stdout, result.returncode) == (b"web.test\t127.0.0.1\n" * 2, 0)
    result = shell.run("torkit resolve --json nosuch.invalid web.test")
    assert (result.returncode, len(result.stdout.splitlines())) == (4, 2)
    assert shell.run("torkit resolve x.onion").returncode == 2
