"""Onion services of C tor's on a private network: their descriptors, and streams to them, every byte."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from confined import confine, only_with_a_sandbox
from network.far_servers import ssh_server
from network.private_network import RunningTestnet, running_testnet
from network.servers import PAGE, EchoServer, WebServer, sha256_of
from network.torkit_process import Proxy, Shell, make_shell, missing, running_proxy, skip_without, wait_until

from torkit.testnet import Options

pytestmark = pytest.mark.network

LARGE = 32 << 20
SSH = ("ssh", "ssh-keygen", "sshd", "nc")


@pytest.fixture(scope="module")
def single_onion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("single")


@pytest.fixture(scope="module")
def working_onion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("working")


@pytest.fixture(scope="module")
def padding_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the relays note what they do with circuits."""
    return tmp_path_factory.mktemp("padding")


@pytest.fixture(scope="module")
def net(
    tmp_path_factory: pytest.TempPathFactory,
    single_onion: Path,
    working_onion: Path,
    padding_log: Path,
    web_server: WebServer,
) -> Iterator[RunningTestnet]:
    """Periods turn every eight minutes, since they follow the voting interval."""
    names = [f"{kind}{number}" for kind in ("auth", "exit", "middle") for number in (1, 2, 3)]
    torrc = {name: [f"Log [circ]info file {padding_log}/{name}"] for name in names}
    for directory, relay, *more in (
        (single_onion, "middle3", "HiddenServiceSingleHopMode 1", "HiddenServiceNonAnonymousMode 1"),
        (working_onion, "middle2"),
    ):
        directory.chmod(0o700)
        service = [f"HiddenServiceDir {directory}", f"HiddenServicePort 80 127.0.0.1:{web_server.port}"]
        torrc[relay] += more + service
    torrc["middle2"].append("HiddenServicePoWDefensesEnabled 1")
    options = Options(voting_interval=20, torrc=torrc)
    with running_testnet(tmp_path_factory.mktemp("onions"), options) as net:
        yield net


@pytest.fixture(scope="module")
def onion_shell(net: RunningTestnet, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return make_shell(net, tmp_path_factory.mktemp("onion-shell"))


@pytest.fixture(scope="module")
def onion_proxy(onion_shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running_proxy(onion_shell, tmp_path_factory.mktemp("onion-proxy")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The beginning of a line that logs in at a real sshd behind the service."""
    if missing(*SSH):
        yield ""
        return
    with ssh_server(tmp_path_factory.mktemp("ssh")) as line:
        yield line


def port_of(ssh: str) -> int:
    config = Path(ssh.split()[-1]).read_text()
    return int(config.partition("Port ")[2].split()[0])


@pytest.fixture(scope="module")
def service(
    net: RunningTestnet,
    onion_shell: Shell,
    web_server: WebServer,
    echo_server: EchoServer,
    ssh: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The address of a service with a web server at 80, an echo at 7, and an sshd at 22."""
    directory = tmp_path_factory.mktemp("service")
    directory.chmod(0o700)
    ports = {80: web_server.port, 7: echo_server.port, **({22: port_of(ssh)} if ssh else {})}
    return start_service(net, directory, ports=ports)


def start_service(
    net: RunningTestnet, directory: Path, *clients: str, ports: dict[int, int] | None = None
) -> str:
    """A service of C tor's with these lines of authorized clients. Returns its address."""
    authorized = directory / "authorized_clients"
    authorized.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    for number, line in enumerate(clients):
        (authorized / f"client{number}.auth").write_text(line)
    lines = [f"HiddenServicePort {port} 127.0.0.1:{to}" for port, to in (ports or {80: 9}).items()]
    net.start_client(f"HiddenServiceDir {directory}", *lines)
    return (directory / "hostname").read_text().strip()


def wait_published(shell: Shell, address: str, *options: str) -> None:
    line = f"torkit onion descriptor {' '.join(options)} {address}"
    wait_until(lambda: shell.run(line).returncode == 0, 90, "the descriptor to be published", every=0.5)


def test_the_descriptor_of_a_service_is_fetched_and_checked(
    net: RunningTestnet, onion_shell: Shell, service: str
) -> None:
    found: list[dict[str, object]] = []

    def is_fetched() -> bool:
        result = onion_shell.run(f"torkit onion descriptor {service}")
        if result.returncode == 0:
            found.append(json.loads(result.stdout))
        else:
            assert b"no directory has the onion service's descriptor" in result.stderr, result
        return bool(found)

    wait_until(is_fetched, 60, "the descriptor to be published", every=0.5)
    points = found[0]["introduction_points"]
    assert isinstance(points, list)
    assert len(points) >= 3
    relays = {relay.fingerprint.lower() for relay in net.relays}
    for point in points:
        identities = [one["value"] for one in point["link_specifiers"] if one["type"] == 2]
        assert set(identities) <= relays
    assert found[0]["sendme_inc"] == 31


def test_a_page_of_a_service_comes_through_connect_and_socks(
    onion_shell: Shell, onion_proxy: Proxy, service: str
) -> None:
    wait_published(onion_shell, service)
    request = b"GET /page HTTP/1.0\r\n\r\n"
    for host in (service, f"www.{service.upper()}"):
        result = onion_shell.run(f"torkit connect {host}:80", stdin=request, timeout=130)
        assert result.returncode == 0, result
        assert result.stdout.endswith(PAGE)
    line = f"{onion_proxy.curl()} http://{service}/page"
    assert [result.stdout for result in onion_shell.run_at_once([line] * 5)] == [PAGE] * 5


def test_programs_that_know_nothing_of_onion_services_reach_one(
    onion_shell: Shell, onion_proxy: Proxy, service: str, tmp_path: Path
) -> None:
    """By HTTP's CONNECT and absolute form; and by torkit run, where libc asks us for the name."""
    wait_published(onion_shell, service)
    url = f"http://{service}/page"
    for option in ("", "-p"):
        line = f"curl -sS {option} -x http://{onion_proxy.address} {url}"
        assert onion_shell.run(line, timeout=130).stdout == PAGE
    if "error" in (last := confine(["true"])[-1]):
        pytest.skip(f"no namespaces: {last}")
    program = tmp_path / "fetch.py"
    program.write_text(
        "import sys, urllib.request as request\n"
        "opener = request.build_opener(request.ProxyHandler({}))\n"
        "sys.stdout.write(opener.open(sys.argv[1]).read().decode())\n"
    )
    line = f"torkit run -- sh -c 'curl -sS {url}; python3 {program} {url}'"
    result = onion_shell.run(line, timeout=130)
    assert result.stdout == PAGE * 2, result


@skip_without(*SSH)
def test_ssh_logs_in_at_a_service(onion_shell: Shell, onion_proxy: Proxy, service: str, ssh: str) -> None:
    """Through the proxy, a pipe, and torkit run."""
    wait_published(onion_shell, service)
    line = f"{ssh} -p 22 -o HostKeyAlias=[shell.test]:{port_of(ssh)}"
    ways = [
        f"{line} -o 'ProxyCommand nc -X 5 -x {onion_proxy.address} %h %p' {service} echo through",
        f"{line} -o 'ProxyCommand torkit connect %h:%p' {service} echo through",
    ]
    if "error" not in confine(["true"])[-1]:
        ways.append(f"torkit run -- {line} {service} echo through")
    for way in ways:
        result = onion_shell.run(way, timeout=130)
        assert (result.returncode, result.stdout) == (0, b"through\n"), result


def test_real_relays_pad_the_circuits_that_reach_a_service(
    onion_shell: Shell, onion_proxy: Proxy, service: str, padding_log: Path
) -> None:
    """C tor's relays take our machines and run their half, and nothing of it ends a circuit."""
    wait_published(onion_shell, service)

    def noted(what: str) -> int:
        return sum(path.read_text(errors="replace").count(what) for path in padding_log.iterdir())

    marks = {"machine relay_ip_circ to": 1, "machine relay_rp_circ to": 1, "Sending padding": 7 + 1}
    before = {mark: noted(mark) for mark in marks}
    line = f"{onion_proxy.curl('padded:circuits')} http://{service}/page"
    assert onion_shell.run(line, timeout=130).stdout == PAGE
    wait_until(
        lambda: all(noted(mark) - before[mark] >= count for mark, count in marks.items()),
        30,
        "the second relays to pad",
    )
    assert onion_shell.run(line, timeout=130).stdout == PAGE
    assert "PADDING" not in onion_proxy.log.read_text()


def test_a_service_with_proof_of_work_is_reached(onion_shell: Shell, working_onion: Path) -> None:
    """It asks for no effort before it has had much to do; tests/hs/test_pow.py has what it then gets."""
    address = (working_onion / "hostname").read_text().strip()
    wait_published(onion_shell, address)
    descriptor = json.loads(onion_shell.run(f"torkit onion descriptor {address}").stdout)
    assert descriptor["proof_of_work"]["effort"] == 0
    result = onion_shell.run(f"torkit connect {address}:80", stdin=b"GET /page HTTP/1.0\r\n\r\n", timeout=130)
    assert result.stdout.endswith(PAGE), result


@only_with_a_sandbox
def test_a_proxy_in_a_sandbox_reaches_services_and_is_asked_and_ends_as_any(
    onion_shell: Shell, working_onion: Path, web_server: WebServer, tmp_path: Path
) -> None:
    """What meets services is imported late, and what works for them is compiled while it runs."""
    shell = onion_shell.with_data_dir(tmp_path / "data")
    address = (working_onion / "hostname").read_text().strip()
    wait_published(onion_shell, address)
    with running_proxy(shell, shell.data_dir / "proxy", options=["--sandbox", "--metrics", "0"]) as proxy:
        state = Path(f"/proc/{proxy.pid}/status").read_text()
        assert "\nNoNewPrivs:\t1\nSeccomp:\t2\n" in state
        for host in (f"web.test:{web_server.port}", address):
            assert shell.run(f"{proxy.curl()} http://{host}/page", timeout=120).stdout == PAGE
        ready = json.loads((shell.data_dir / "proxy" / "ready.json").read_text())
        assert shell.run(f"curl -sf http://{ready['metrics']}/healthz").stdout == b"circuits work\n"
        assert shell.run("torkit status").stdout.startswith(b"start     100%, done")
    assert not (shell.data_dir / "proxy" / "ready.json").exists()
    assert not (shell.data_dir / "status.sock").exists()


def test_32_mib_each_way_are_equal(
    onion_shell: Shell, onion_proxy: Proxy, service: str, tmp_path: Path
) -> None:
    wait_published(onion_shell, service)
    line = f"{onion_proxy.curl()} http://{service}/bytes/{LARGE} | sha256sum"
    assert onion_shell.run(line, timeout=150).stdout.split()[0].decode() == sha256_of(LARGE)
    data = os.urandom(LARGE)
    (tmp_path / "data").write_bytes(data)
    line = f"{onion_proxy.curl()} -T {tmp_path}/data http://{service}/upload"
    assert onion_shell.run(line, timeout=150).stdout.decode() == hashlib.sha256(data).hexdigest()
    result = onion_shell.run(f"torkit connect --eof end {service}:7", stdin=data[: LARGE // 8], timeout=150)
    assert result.returncode == 0, result
    assert data.startswith(result.stdout)  # it ends with stdin, wherever the echo is by then


def test_a_single_onion_service_is_reached(onion_shell: Shell, single_onion: Path, tmp_path: Path) -> None:
    address = (single_onion / "hostname").read_text().strip()
    wait_published(onion_shell, address)
    # Such a service comes by one hop, so not to its own relay, which would often be drawn to meet at here.
    with running_proxy(onion_shell, tmp_path, options=["--exclude-nodes", "middle3"]) as proxy:
        assert onion_shell.run(f"{proxy.curl()} http://{address}/page", timeout=130).stdout == PAGE
        line = f"{proxy.curl()} http://{address}/bytes/{LARGE // 8} | sha256sum"
        assert onion_shell.run(line, timeout=150).stdout.split()[0].decode() == sha256_of(LARGE // 8)


def test_what_a_service_refuses_is_told_at_once(onion_shell: Shell, onion_proxy: Proxy, service: str) -> None:
    wait_published(onion_shell, service)
    result = onion_shell.run(f"torkit connect -z {service}:81", timeout=130)
    assert result.returncode == 1, result
    assert b"the onion service has nothing at this port" in result.stderr
    wrong = ("a" if service[0] != "a" else "b") + service[1:]
    result = onion_shell.run(f"torkit connect -z {wrong}:80")
    assert (result.returncode, result.stdout) == (2, b"")
    result = onion_shell.run(f"curl -sS --socks5-hostname {onion_proxy.address} http://{wrong}/")
    assert b"(246)" in result.stderr  # F6
    result = onion_shell.run(f"torkit connect --path exit1,middle1,middle2 {service}:80")
    assert result.returncode == 2


def test_a_service_for_its_clients_opens_to_our_key_only(
    net: RunningTestnet, onion_shell: Shell, web_server: WebServer, tmp_path: Path
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
    ports = {80: web_server.port}
    assert start_service(net, second, made.stdout.decode(), ports=ports) == address

    def is_for_clients() -> bool:
        return b"for clients that it knows" in onion_shell.run(f"torkit onion descriptor {address}").stderr

    wait_until(is_for_clients, 90, "the descriptor for clients to replace the other", every=0.5)
    wait_until(
        lambda: onion_shell.run(f"torkit onion descriptor --key {tmp_path}/key {address}").returncode == 0,
        60,
        "the descriptor to open to the key",
        every=0.5,
    )
    shell = onion_shell.with_data_dir(tmp_path / "data")
    refused = shell.run(f"torkit connect -z {address}:80", timeout=130)
    assert refused.returncode == 5, refused
    keys = tmp_path / "data" / "onion-auth"
    keys.mkdir(mode=0o700)
    (tmp_path / "key").rename(keys / "mine.auth_private")
    (keys / "broken.auth_private").write_text("no key")
    result = shell.run(f"torkit connect {address}:80", stdin=b"GET /page HTTP/1.0\r\n\r\n", timeout=130)
    assert result.stdout.endswith(PAGE), result
    assert b"broken.auth_private is passed over" in result.stderr
