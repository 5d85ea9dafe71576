"""`torkit socks` under the programs people use it with: names, isolation, bulk, slow readers, nonsense."""

import hashlib
import json
import socket
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from network.private_network import RunningTestnet
from network.servers import BANNER, HOST, PAGE, BannerServer, SinkServer, WebServer, blocks, sha256_of
from network.torkit_process import (
    CarrierServer,
    Proxy,
    Shell,
    open_through,
    running_proxy,
    skip_without,
    wait_until,
)

from torkit.client import Tor, open_tor
from torkit.config import load_network
from torkit.net.circuit.stream import Stream, StreamHost
from torkit.net.proxy import serve_socks

pytestmark = pytest.mark.network

MIB = 1 << 20

# How much more memory, in bytes, the proxy may take while one end of a stream does not read. Without bounds
# it would hold all that the other end sends.
GROWTH_LIMIT = 32 * MIB


# --- names ----------------------------------------------------------------------------------------------


def test_curl_gets_page_by_name(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    url = f"http://web.test:{web_server.port}/page"
    assert shell.run(f"curl -sS --socks5-hostname {proxy.address} {url}").stdout == PAGE
    assert shell.run(f"ALL_PROXY=socks5h://{proxy.address} curl -sS {url}").stdout == PAGE
    assert shell.run(f"curl -sS --socks4a {proxy.address} {url}").stdout == PAGE


def test_curl_gets_page_by_address(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    url = f"http://{HOST}:{web_server.port}/page"
    assert shell.run(f"curl -sS --socks5 {proxy.address} {url}").stdout == PAGE
    assert shell.run(f"curl -sS --socks4 {proxy.address} {url}").stdout == PAGE


def test_name_that_does_not_exist_and_port_that_refuses_are_told_quickly(shell: Shell, proxy: Proxy) -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        for url in ("http://no-such-name.invalid/", f"http://web.test:{nobody.getsockname()[1]}/"):
            result = shell.run(f"curl -sS --socks5-hostname {proxy.address} {url}", timeout=10)
            assert result.returncode == 97, result


def test_onion_address_is_refused_and_never_asked_of_an_exit(shell: Shell, proxy: Proxy) -> None:
    name = "a" * 56 + ".onion"
    assert (
        shell.run(f"curl -sS --socks5-hostname {proxy.address} http://{name}/", timeout=10).returncode == 97
    )


def test_five_curls_at_once(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    line = f"{proxy.curl()} http://web.test:{web_server.port}/page"
    assert [result.stdout for result in shell.run_at_once([line] * 5)] == [PAGE] * 5


@skip_without("tor-resolve")
def test_tor_resolve_both_ways(shell: Shell, proxy: Proxy) -> None:
    assert shell.run(f"tor-resolve web.test {proxy.address}").stdout == b"127.0.0.1\n"
    assert shell.run(f"tor-resolve -4 web.test {proxy.address}").stdout == b"127.0.0.1\n"
    assert shell.run(f"tor-resolve -x 192.0.2.1 {proxy.address}").stdout == b"reverse.test\n"
    assert shell.run(f"tor-resolve no-such-name.invalid {proxy.address}").returncode == 1
    assert shell.run(f"tor-resolve -x 192.0.2.7 {proxy.address}").returncode == 1


# --- other programs -------------------------------------------------------------------------------------


def _commands(proxy: Proxy, port: int) -> dict[str, str]:
    """One connection to `web.test`:`port` as each program makes it."""
    return {
        "nc": f"nc -X 5 -x {proxy.address} web.test {port}",
        "nc-with-end-of-file": f"nc -N -X 5 -x {proxy.address} web.test {port}",
        "ncat": f"ncat --proxy {proxy.address} --proxy-type socks5 web.test {port}",
        "ncat-without-end-of-file": f"ncat --no-shutdown --proxy {proxy.address} --proxy-type socks5"
        f" web.test {port}",
        "socat": f"socat -t 5 - SOCKS4A:{HOST}:web.test:{port},socksport={proxy.port}",
    }


PROGRAMS = [
    pytest.param(name, marks=skip_without(name.partition("-")[0]))
    for name in _commands(Proxy("x:1", 0, Path()), 1)
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_reply_comes_back_though_the_client_has_ended_its_direction(
    shell: Shell, proxy: Proxy, web_server: WebServer, program: str
) -> None:
    request = r"printf 'GET /page HTTP/1.0\r\n\r\n'"
    result = shell.run(f"{request} | {_commands(proxy, web_server.port)[program]}")
    assert result.returncode == 0, result
    assert result.stdout.endswith(b"\r\n\r\n" + PAGE)


@pytest.mark.parametrize("program", PROGRAMS)
def test_banner_of_a_server_that_closes_at_once_arrives(
    shell: Shell, proxy: Proxy, banner_server: BannerServer, program: str
) -> None:
    result = shell.run(_commands(proxy, banner_server.port)[program])
    assert (result.returncode, result.stdout) == (0, BANNER), result


@skip_without("nc")
def test_nc_probe(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        refused = nobody.getsockname()[1]
        assert shell.run(f"nc -zv -X 5 -x {proxy.address} web.test {web_server.port}").returncode == 0
        assert shell.run(f"nc -zv -X 5 -x {proxy.address} web.test {refused}").returncode == 1


@skip_without("ncat")
def test_ncat_probe(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    line = f"ncat -z --proxy {proxy.address} --proxy-type socks5 web.test {web_server.port}"
    assert shell.run(line).returncode == 0


def test_program_that_takes_us_for_an_http_proxy_is_told(shell: Shell, proxy: Proxy) -> None:
    result = shell.run(f"curl -sS -i http://{proxy.address}/")
    assert result.stdout.startswith(b"HTTP/1.0 501 Tor is not an HTTP Proxy")
    assert b"SOCKS" in result.stdout


# --- isolation ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """It links no circuits: who begins on a single one, with no linked one ready, moves to one later."""
    with running_proxy(shell, tmp_path_factory.mktemp("single"), options=["--conflux", "off"]) as running:
        yield running


def test_equal_credentials_use_one_exit_and_different_ones_spread(
    shell: Shell, single: Proxy, carrier_server: CarrierServer
) -> None:
    url = f"http://web.test:{carrier_server.port}/carrier"
    of_alice = [shell.run(f"{single.curl('alice:1')} {url}").stdout for _ in range(6)]
    assert len(set(of_alice)) == 1, of_alice
    # Every identity has a circuit of its own; that all twelve end at one of three exits is a matter of 3^-11.
    of_many = shell.run_at_once([f"{single.curl(f'alice:{n}')} {url}" for n in range(12)])
    assert len({result.stdout for result in of_many}) > 1


def test_a_signal_brings_a_new_identity_and_ends_nothing(
    shell: Shell, proxy: Proxy, carrier_server: CarrierServer
) -> None:
    said = "new identity: "

    def is_said_more_than(number: int) -> bool:
        return proxy.log.read_text().count(said) > number

    with open_through(proxy, "web.test", carrier_server.port) as download:
        download.sendall(b"GET /endless HTTP/1.0\r\n\r\n")
        carrier_server.carriers.get(timeout=30)
        carriers = set()
        for number in range(proxy.log.read_text().count(said), 100):
            line = f"{proxy.curl('same:1')} http://web.test:{carrier_server.port}/carrier"
            carriers |= {shell.run(line).stdout for _ in range(2)}
            if len(carriers) > 1:
                break
            assert shell.run(f"kill -USR1 {proxy.pid}").returncode == 0
            wait_until(partial(is_said_more_than, number), 10, "the new identity")
        assert len(carriers) > 1
        assert said in proxy.log.read_text()
        for _ in range(10):
            assert download.recv(1 << 20)


async def test_streams_share_a_circuit_exactly_where_credentials_are_equal(
    testnet: RunningTestnet, tmp_path: Path, web_server: WebServer
) -> None:
    url = f"http://web.test:{web_server.port}/page"
    circuits: list[StreamHost] = []
    network = load_network(testnet.network_file)
    # While sets of circuits are being linked, an isolation may move to one.
    async with open_tor(network=network, data_dir=tmp_path, conflux=False) as tor:
        await tor.wait_ready()
        [listener] = await trio.open_tcp_listeners(0, host=HOST)
        port = listener.socket.getsockname()[1]

        async def circuit_of(credentials: str) -> StreamHost:
            curl = ["curl", "-sS", "--max-time", "60", "-x", f"socks5h://{credentials}{HOST}:{port}", url]
            result = await trio.run_process(curl, capture_stdout=True)
            assert result.stdout == PAGE
            return circuits.pop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: serve_socks([listener], request=partial(Recorded, tor, circuits), resolve=tor.resolve)
            )
            identities = ("", "alice:1@", "alice:2@", "bob:1@", "alice:@")
            first = [await circuit_of(credentials) for credentials in identities]
            again = [await circuit_of(credentials) for credentials in identities]
            nursery.cancel_scope.cancel()
    assert [id(circuit) for circuit in first] == [id(circuit) for circuit in again]
    assert len(set(map(id, first))) == len(identities)


class Recorded:
    """A request that keeps the circuits of its streams in `circuits`."""

    def __init__(
        self, tor: Tor, circuits: list[StreamHost], host: str, port: int, *, isolation: Hashable
    ) -> None:
        self._request = tor.request(host, port, isolation=isolation)
        self._circuits = circuits

    def begin(self) -> Stream | None:
        stream = self._request.begin()
        if stream is not None:
            self._circuits.append(stream.circuit)
        return stream

    async def connect(self) -> Stream:
        stream = await self._request.connect()
        self._circuits.append(stream.circuit)
        return stream


# --- bulk -----------------------------------------------------------------------------------------------


def _download(proxy: Proxy, server: WebServer, length: int, credentials: str = "") -> str:
    return f"{proxy.curl(credentials)} http://web.test:{server.port}/bytes/{length} | sha256sum"


def _upload(proxy: Proxy, server: WebServer, file: Path, credentials: str = "") -> str:
    return f"{proxy.curl(credentials)} -T {file} http://web.test:{server.port}/"


def _digest(stdout: bytes) -> str:
    return stdout.decode().split()[0]


@pytest.fixture(scope="module")
def upload_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Files of the first bytes of the sequence that WebServer sends too."""
    directory = tmp_path_factory.mktemp("upload")

    def make(length: int) -> Path:
        path = directory / str(length)
        with path.open("wb") as file:
            file.writelines(blocks(length))
        return path

    return make


def test_64_mib_down(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    result = shell.run(_download(proxy, web_server, 64 * MIB), timeout=120)
    assert (result.returncode, _digest(result.stdout)) == (0, sha256_of(64 * MIB))


def test_64_mib_up(
    shell: Shell, proxy: Proxy, web_server: WebServer, upload_file: Callable[[int], Path]
) -> None:
    result = shell.run(_upload(proxy, web_server, upload_file(64 * MIB)), timeout=120)
    assert (result.returncode, result.stdout.decode()) == (0, sha256_of(64 * MIB))


@pytest.mark.timeout(420)
def test_eight_at_once_down_and_up_on_one_circuit_and_on_several(
    shell: Shell, proxy: Proxy, web_server: WebServer, upload_file: Callable[[int], Path]
) -> None:
    down, up = 64 * MIB, 32 * MIB
    file = upload_file(up)
    identities = ("", "a:a", "", "b:b") * 2
    downloads = shell.run_at_once(
        [_download(proxy, web_server, down, who) for who in identities], timeout=180
    )
    assert {(r.returncode, _digest(r.stdout)) for r in downloads} == {(0, sha256_of(down))}
    uploads = shell.run_at_once([_upload(proxy, web_server, file, who) for who in identities], timeout=180)
    assert {(r.returncode, r.stdout.decode()) for r in uploads} == {(0, sha256_of(up))}
    both = [_download(proxy, web_server, up, "c:c"), _upload(proxy, web_server, file, "c:c")]
    assert {_digest(result.stdout) for result in shell.run_at_once(both * 2, timeout=120)} == {sha256_of(up)}


def test_client_that_does_not_read_holds_back_itself_alone(
    shell: Shell, proxy: Proxy, web_server: WebServer
) -> None:
    memory = proxy.memory
    with open_through(proxy, "web.test", web_server.port) as slow:
        slow.sendall(f"GET /bytes/{256 * MIB} HTTP/1.0\r\n\r\n".encode())
        _wait_until_stuck(slow)
        # SOCKS4a without a user has the isolation of a SOCKS5 client without credentials: the same circuit.
        result = shell.run(_download(proxy, web_server, 16 * MIB))
        assert _digest(result.stdout) == sha256_of(16 * MIB)
        assert proxy.memory - memory < GROWTH_LIMIT


def test_client_that_pauses_gets_every_byte_and_its_speed_back(proxy: Proxy, web_server: WebServer) -> None:
    length = 16 * MIB
    with open_through(proxy, "web.test", web_server.port) as client:
        client.sendall(f"GET /bytes/{length} HTTP/1.0\r\n\r\n".encode())
        _wait_until_stuck(client)
        started = time.monotonic()
        received = bytearray()
        while data := client.recv(1 << 16):
            received += data
            assert time.monotonic() - started < 15, f"{len(received)} bytes in 15 s"
    assert hashlib.sha256(received.partition(b"\r\n\r\n")[2]).hexdigest() == sha256_of(length)


def _wait_until_stuck(client: socket.socket) -> None:
    """Until nothing more arrives for a client that does not read: its kernel's buffer is full."""
    held = -1
    while held != (held := len(client.recv(1 << 24, socket.MSG_PEEK))):
        time.sleep(0.5)


def test_server_that_does_not_read_holds_back_itself_alone(
    shell: Shell,
    proxy: Proxy,
    web_server: WebServer,
    sink_server: SinkServer,
    upload_file: Callable[[int], Path],
) -> None:
    memory = proxy.memory
    stuck_file, file = upload_file(64 * MIB), upload_file(4 * MIB)
    with shell.running(f"nc -N -X 5 -x {proxy.address} web.test {sink_server.port} < {stuck_file}") as stuck:
        wait_until(lambda: sink_server.connections, 30, "a connection")
        for _ in range(3):  # the first may overtake it; the last surely finds its windows spent
            result = shell.run(_upload(proxy, web_server, file))
            assert result.stdout.decode() == sha256_of(4 * MIB)
        result = shell.run(_download(proxy, web_server, 16 * MIB))
        assert _digest(result.stdout) == sha256_of(16 * MIB)
        assert proxy.memory - memory < GROWTH_LIMIT
        assert stuck.poll() is None


# --- nonsense -------------------------------------------------------------------------------------------


NO_METHOD = b"\x05\xff"


@pytest.mark.parametrize(
    ("garbage", "answer"),
    [
        (b"\x00", NO_METHOD),
        (b"\x04\x01\x00\x50\x00\x00\x00\x01" + b"u" * 2_000, b"\x00[" + bytes(6)),
        (b"\x05\x00", NO_METHOD),
        (
            b"\x05\x01\x02\x01\x00\x00\x05\x09\x00\x01\x7f\x00\x00\x01\x00\x50",
            b"\x05\x02\x01\x00\x05\x07\x00\x01" + bytes(6),
        ),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", b"\x05\x00\x05\x02\x00\x01" + bytes(6)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", NO_METHOD),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
    ],
)
def test_garbage_is_answered_and_closed(proxy: Proxy, garbage: bytes, answer: bytes) -> None:
    with socket.create_connection((HOST, proxy.port), timeout=10) as client:
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while data := client.recv(1 << 16):
            received += data
    assert received.partition(b"Content-Type")[0] == answer


def test_garbage_without_an_end_is_closed(proxy: Proxy) -> None:
    with socket.create_connection((HOST, proxy.port), timeout=10) as client, suppress(ConnectionError):
        client.sendall(b"\xff" * 70_000)  # closed with bytes unread, which may be a reset
        assert client.recv(1 << 16) == NO_METHOD
        assert client.recv(1 << 16) == b""


def test_half_handshakes_keep_nobody_out(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    request = b"\x05\x01\x00\x05\x01\x00\x03\x08web.test"
    with ExitStack() as stack:
        for length in range(len(request)):
            client = stack.enter_context(socket.create_connection((HOST, proxy.port), timeout=10))
            client.sendall(request[:length])
        result = shell.run(f"{proxy.curl()} http://web.test:{web_server.port}/page", timeout=20)
    assert result.stdout == PAGE


def test_client_that_vanishes_leaves_the_proxy_in_order(
    shell: Shell, proxy: Proxy, web_server: WebServer
) -> None:
    for _ in range(5):
        with open_through(proxy, "web.test", web_server.port) as client:
            client.sendall(b"GET /bytes/50000000 HTTP/1.0\r\n\r\n")
            client.recv(1)
    assert shell.run(f"{proxy.curl()} http://web.test:{web_server.port}/page").stdout == PAGE


# --- HTTP on the same port ------------------------------------------------------------------------------


def test_curl_through_the_http_proxy(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    url = f"http://web.test:{web_server.port}/page"
    assert shell.run(f"curl -sS -x http://{proxy.address} {url}").stdout == PAGE
    assert shell.run(f"curl -sS -p -x http://{proxy.address} {url}").stdout == PAGE  # CONNECT


@skip_without("wget")
def test_wget_through_the_http_proxy(shell: Shell, proxy: Proxy, web_server: WebServer) -> None:
    url = f"http://web.test:{web_server.port}/bytes/3000000"
    line = f"http_proxy=http://{proxy.address} wget -q -O - {url} | sha256sum"
    assert shell.run(line).stdout.split()[0].decode() == sha256_of(3_000_000)


def test_an_upload_through_the_http_proxy(
    shell: Shell, proxy: Proxy, web_server: WebServer, tmp_path: Path
) -> None:
    data = b"".join(blocks(2_500_000))
    (tmp_path / "data").write_bytes(data)
    url = f"http://web.test:{web_server.port}/upload"
    result = shell.run(f"curl -sS -x http://{proxy.address} --data-binary @{tmp_path}/data {url}")
    assert result.stdout.decode() == hashlib.sha256(data).hexdigest()


def test_causes_are_told_apart_in_http(shell: Shell, proxy: Proxy) -> None:
    line = f"curl -sS -i -x http://{proxy.address}"
    assert b"error=dns_error" in shell.run(f"{line} http://nosuch.invalid/").stdout
    assert shell.run(f"{line} -o /dev/null -w '%{{http_connect}}' -p http://nosuch.invalid/").stdout == b"502"


def test_credentials_in_http_say_who_shares_a_circuit(
    shell: Shell, single: Proxy, carrier_server: CarrierServer
) -> None:
    def carriers(users: list[str]) -> set[bytes]:
        url = f"http://web.test:{carrier_server.port}/carrier"
        lines = [f"curl -sS -x http://{user}:x@{single.address} {url}" for user in users]
        return {shell.run(line).stdout for line in lines}

    assert len(carriers(["one"] * 6)) == 1
    assert len(carriers([f"user{number}" for number in range(12)])) > 1


def test_listeners_of_every_kind(shell: Shell, web_server: WebServer, tmp_path: Path) -> None:
    where, ready = tmp_path / "proxy", tmp_path / "ready"
    line = f"torkit socks --listen unix:{where} --listen dns:0 --ready-file {ready}"
    with shell.running(f"exec {line}"):
        wait_until(ready.exists, 60, "the proxy")
        names = json.loads(ready.read_text())["listeners"]
        assert names[0] == f"unix:{where}"
        url = f"http://web.test:{web_server.port}/page"
        assert shell.run(f"curl -sS -x socks5h://localhost{where} {url}").stdout == PAGE
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(30)
            asker.connect(("127.0.0.1", int(names[1].rpartition(":")[2])))
            asker.send(b"\0\x07\x01\0\0\x01" + bytes(6) + b"\x03web\x04test\0\0\x01\0\x01")
            assert asker.recv(512).endswith(b"\0\x04\x7f\0\0\x01")  # as an exit sees it


def test_other_machines_are_refused_unless_allowed(shell: Shell) -> None:
    result = shell.run("torkit socks --listen 0.0.0.0:0")
    assert (result.returncode, b"--allow-remote" in result.stderr) == (2, True)
