"""Programs of Debian's that people put before a Tor, each set up as its manual says, through `torkit socks`.

Every name is one that only the exits' DNS knows.
"""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from network.far_servers import make_repository
from network.servers import HOST, PAGE, FilesServer, WebServer, free_port, sha256_of
from network.torkit_process import Proxy, Shell, skip_without, wait_until

pytestmark = pytest.mark.network

LENGTH = 3 << 20  # bytes of what is more than a page


# --- Privoxy, an HTTP proxy in front -------------------------------------------------------------------


@pytest.fixture(scope="module")
def privoxy(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. It sends requests behind the SOCKS request, before the answer (forward-socks5t)."""
    directory = tmp_path_factory.mktemp("privoxy")
    address = f"{HOST}:{free_port()}"
    config = directory / "config"
    config.write_text(
        f"listen-address {address}\nconfdir /etc/privoxy\nlogdir {directory}\ntoggle 0\n"
        f"forward-socks5t / {proxy.address} .\n"
    )
    process = subprocess.Popen(
        ["/usr/sbin/privoxy", "--no-daemon", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _listens(address), 20, "privoxy")
        yield address
    finally:
        process.kill()
        process.wait()


def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@skip_without("privoxy")
def test_privoxy_gets_a_page(shell: Shell, privoxy: str, web_server: WebServer) -> None:
    for tunnel in ("", "--proxytunnel"):
        line = f"curl -sS --fail {tunnel} -x http://{privoxy} http://web.test:{web_server.port}/page"
        assert shell.run(line).stdout == PAGE


@skip_without("privoxy")
def test_privoxy_carries_more_than_a_page_both_ways(
    shell: Shell, privoxy: str, web_server: WebServer
) -> None:
    page = f"curl -sS --fail -x http://{privoxy} http://web.test:{web_server.port}"
    hashed = f"{sha256_of(LENGTH)}".encode()
    assert shell.run(f"{page}/bytes/{LENGTH} | sha256sum").stdout.startswith(hashed)
    upload = f"{page}/bytes/{LENGTH} | curl -sS --fail -x http://{privoxy} -T - -H 'Content-Length: {LENGTH}'"
    upload += f" -H 'Transfer-Encoding:' http://web.test:{web_server.port}/up"
    assert shell.run(upload).stdout == hashed


@skip_without("privoxy")
def test_privoxy_tells_of_a_name_that_does_not_exist(shell: Shell, privoxy: str) -> None:
    line = f"curl -sS -o /dev/null -w '%{{http_code}}' -x http://{privoxy} http://nowhere.invalid/"
    assert shell.run(line).stdout == b"503"


# --- proxychains, below a program ----------------------------------------------------------------------


@skip_without("proxychains4")
@pytest.mark.parametrize("kind", ["socks5", "socks4"])
def test_proxychains_takes_a_program_through(
    shell: Shell, proxy: Proxy, web_server: WebServer, tmp_path: Path, kind: str
) -> None:
    config = tmp_path / "proxychains.conf"
    config.write_text(f"strict_chain\nproxy_dns\nquiet_mode\n[ProxyList]\n{kind} {HOST} {proxy.port}\n")
    line = f"proxychains4 -f {config} curl -sS --fail http://web.test:{web_server.port}"
    assert shell.run(f"{line}/page").stdout == PAGE
    got = shell.run(f"{line}/bytes/{LENGTH} | sha256sum").stdout
    assert got.startswith(sha256_of(LENGTH).encode())


# --- torsocks, tor-resolve -----------------------------------------------------------------------------


@skip_without("torsocks", "python3")
def test_torsocks_looks_names_up_at_the_exit(shell: Shell, proxy: Proxy) -> None:
    """It refuses to connect to this machine's own addresses, and a private network has no others."""
    program = "import socket; print(socket.gethostbyname('web.test'))"
    line = f'torsocks -P {proxy.port} /usr/bin/python3 -c "{program}"'
    assert shell.run(line).stdout == b"127.0.0.1\n"


@skip_without("tor-resolve")
def test_tor_resolve_finds_a_tor(shell: Shell, proxy: Proxy) -> None:
    """As wallets look for one: an address is its own answer."""
    for address in ("0.0.0.0", "192.0.2.7"):
        assert shell.run(f"tor-resolve {address} {proxy.address}").stdout == f"{address}\n".encode()


# --- git -----------------------------------------------------------------------------------------------


@skip_without("git")
def test_git_clones_by_http(shell: Shell, proxy: Proxy, tmp_path: Path) -> None:
    content = b"".join(b"%d\n" % number for number in range(90_000))
    make_repository(tmp_path / "served" / "r.git", content)
    with FilesServer(tmp_path / "served") as server:
        clone = f"git -c http.proxy=socks5h://{proxy.address} clone -q http://web.test:{server.port}/r.git"
        result = shell.run(f"{clone} {tmp_path}/copy")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "copy/file").read_bytes() == content


# --- Programs that bring SOCKS with their language -----------------------------------------------------

NODE = """
const net = require('net');
const [port, host, toPort] = process.argv.slice(2);
const socket = net.connect(+port, '127.0.0.1');
let step = 0;
socket.write(Buffer.from([5, 1, 0]));
socket.on('data', data => {
  if (step === 0) {
    if (data.toString('hex') !== '0500') process.exit(2);
    const to = Buffer.alloc(2);
    to.writeUInt16BE(+toPort);
    socket.write(Buffer.concat([Buffer.from([5, 1, 0, 3, host.length]), Buffer.from(host), to]));
  } else if (step === 1) {
    if (data[1] !== 0) process.exit(10 + data[1]);
    socket.write('GET /page HTTP/1.0\\r\\n\\r\\n');
  } else process.stdout.write(data);
  step += 1;
});
"""

JAVA = """
import java.net.*;

class Fetch {
    public static void main(String[] arguments) throws Exception {
        var at = new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0]));
        try (var socket = new Socket(new Proxy(Proxy.Type.SOCKS, at))) {
            socket.connect(InetSocketAddress.createUnresolved(arguments[1], Integer.parseInt(arguments[2])));
            socket.getOutputStream().write("GET /page HTTP/1.0\\r\\n\\r\\n".getBytes());
            socket.getInputStream().transferTo(System.out);
        }
    }
}
"""


@skip_without("node")
def test_node_gets_a_page_and_the_code_of_a_failure(
    shell: Shell, proxy: Proxy, web_server: WebServer, tmp_path: Path
) -> None:
    script = tmp_path / "fetch.js"
    script.write_text(NODE)
    assert shell.run(f"node {script} {proxy.port} web.test {web_server.port}").stdout.endswith(PAGE)
    assert shell.run(f"node {script} {proxy.port} nowhere.invalid 80").returncode == 10 + 4


@skip_without("java", "javac")
def test_java_gets_a_page(shell: Shell, proxy: Proxy, web_server: WebServer, tmp_path: Path) -> None:
    """It offers a name and no password, which is empty."""
    source = tmp_path / "Fetch.java"
    source.write_text(JAVA)
    result = shell.run(f"java {source} {proxy.port} web.test {web_server.port}", timeout=90)
    assert result.stdout.endswith(PAGE), result.stderr
