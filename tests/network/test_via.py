"""`--via` on real relays: a proxy of ours, and C tor's."""

import re
from pathlib import Path

import pytest
from confined import skip_where_forbidden
from network.private_network import RunningTestnet
from network.servers import PAGE, SilentServer, WebServer, sha256_of
from network.torkit_process import Proxy, Shell, skip_without

pytestmark = pytest.mark.network

REQUEST = b"GET /page HTTP/1.0\r\n\r\n"


@pytest.fixture(scope="module")
def lonely(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell whose data directory stays empty where commands have no client of their own."""
    return shell.with_data_dir(tmp_path_factory.mktemp("lonely") / "data")


def test_pipes_on_one_bootstrap(lonely: Shell, proxy: Proxy, web_server: WebServer) -> None:
    line = f"torkit connect --via {proxy.address} web.test:{web_server.port}"
    results = lonely.run_at_once([f"printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | {line}"] * 8)
    assert all(result.returncode == 0 and result.stdout.endswith(PAGE) for result in results), results
    assert not lonely.data_dir.exists()


def test_a_large_answer_is_whole(lonely: Shell, proxy: Proxy, web_server: WebServer) -> None:
    line = (
        f"printf 'GET /bytes/3000000 HTTP/1.0\\r\\n\\r\\n' | torkit connect --via {proxy.address}"
        f" web.test:{web_server.port} | tail -c 3000000 | sha256sum"
    )
    assert lonely.run(line).stdout.split()[0].decode() == sha256_of(3_000_000)


def test_statuses_are_those_without_a_proxy(lonely: Shell, proxy: Proxy, silent_server: SilentServer) -> None:
    via = f"torkit connect --via {proxy.address}"
    assert lonely.run(f"{via} -z -v web.test:{silent_server.port}").stderr == (
        b"torkit: connected through the proxy\n"
    )
    assert lonely.run(f"{via} -N web.test:{silent_server.port}", stdin=b"hello").returncode == 0
    assert lonely.run(f"{via} -i 0.2 web.test:{silent_server.port}").returncode == 6
    result = lonely.run(f"{via} no-such-name.invalid:80")
    assert (result.returncode, result.stderr) == (4, b"torkit: the exit found no such name (RESOLVEFAILED)\n")


def test_look_ups(lonely: Shell, proxy: Proxy) -> None:
    result = lonely.run(f"torkit resolve --via {proxy.address} --json web.test no-such-name.invalid")
    assert result.returncode == 4
    assert re.match(rb'\{"name": "web.test", "answers": \[\{"kind": "ipv[46]", "value"', result.stdout)


@skip_where_forbidden()
@skip_without("curl")
def test_a_program_without_a_client_of_its_own(
    lonely: Shell, proxy: Proxy, web_server: WebServer, tmp_path: Path
) -> None:
    url = f"http://web.test:{web_server.port}/page"
    line = f"curl -sS --noproxy '*' {url} && curl -sS {url} && curl -sS -x socks5h://127.0.0.1:9150 {url}"
    result = lonely.run(f'torkit run --via {proxy.address} -- sh -c "{line}"')
    assert (result.stdout, result.stderr) == (PAGE * 3, b"")
    assert not lonely.data_dir.exists()
    result = lonely.run(f"torkit run --via unix:{tmp_path}/nothing -- touch {tmp_path}/ran")
    assert result.returncode == 125
    assert not (tmp_path / "ran").exists()


def test_a_proxy_of_c_tors(lonely: Shell, testnet: RunningTestnet, web_server: WebServer) -> None:
    host, port = testnet.start_client()
    result = lonely.run(f"torkit connect --via {host}:{port} web.test:{web_server.port}", stdin=REQUEST)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.endswith(PAGE)
    assert lonely.run(f"torkit resolve --via {host}:{port} web.test").returncode == 0
    assert lonely.run(f"torkit connect --via {host}:{port} -z no-such-name.invalid:80").returncode == 4
