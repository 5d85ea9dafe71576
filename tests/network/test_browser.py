"""A headless Chromium through CONNECT, with identities that a proxy asks for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import tls_contexts
from network.devtools import running_browser
from network.private_network import RunningTestnet
from network.servers import HOST, FilesServer
from network.torkit_process import CarrierServer, Shell, relay_at, running_proxy, skip_without

pytestmark = pytest.mark.network

PAGE = """<!doctype html><meta charset=utf-8><title>a page</title>
<body style="background: linear-gradient(#246, #642)">
<h1 style="color: white">A page with a picture</h1>
<svg width=200 height=100><circle cx=60 cy=50 r=40 fill=orange /><rect x=110 y=20 width=60 height=60 /></svg>
"""
# In a trace of every call that can name another end, those that name a name server.
LOOK_UP = re.compile(r"htons\((53|853|5353)\)|nscd|io\.systemd\.Resolve")


class Site(FilesServer):
    """Notes which relay each page was asked for by."""

    def __init__(self, directory: Path, net: RunningTestnet) -> None:
        super().__init__(directory, tls_contexts(directory)[0])
        self.net = net
        self.carriers: list[str] = []

    class handler(FilesServer.handler):
        server: "Site"

        def do_GET(self) -> None:
            if self.path == "/page.html":
                relay = relay_at(self.server.net.exits, self.client_address[1], self.server.port)
                self.server.carriers.append(relay.nickname)
            super().do_GET()


@pytest.fixture
def asking_proxy(shell: Shell, tmp_path: Path) -> Iterator[str]:
    """The address of a proxy that asks for credentials.

    It links no circuits: an identity that has begun on a single one moves to a linked one, at another exit.
    """
    options = ["--listen", f"auth:{HOST}:0", "--conflux", "off"]
    with running_proxy(shell, tmp_path / "proxy", ["-v"], options=options):
        listeners = json.loads((tmp_path / "proxy" / "ready.json").read_text())["listeners"]
        yield next(name.removeprefix("auth:") for name in listeners if name.startswith("auth:"))


@skip_without("chromium", "strace", "curl")
def test_two_identities_see_the_page_as_it_is_by_two_exits_and_nothing_is_looked_up(
    shell: Shell, testnet: RunningTestnet, asking_proxy: str, carrier_server: CarrierServer, tmp_path: Path
) -> None:
    """Which exit carries an identity, curl tells beforehand, with the same credentials."""
    carriers: dict[str, str] = {}  # identities, by their exits
    for number in range(40):
        url = f"http://web.test:{carrier_server.port}/carrier"
        asking = f"curl -sS -x http://id{number}:x@{asking_proxy} {url}"
        carriers[shell.run(asking).stdout.decode()] = f"id{number}"
        if len(carriers) == 2:
            break
    assert len(carriers) == 2
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page.html").write_text(PAGE)
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
    strace += ["-e", "signal=none", "-o", str(trace)]
    proxy = f"http://{asking_proxy}"
    with Site(tmp_path / "site", testnet) as site:
        url = f"https://web.test:{site.port}/page.html"
        with running_browser(strace, str(tmp_path / "profile"), f"--proxy-server={proxy}") as browser:
            seen = [
                browser.picture(url, proxy=proxy, credentials=(identity, "x"))
                for identity in carriers.values()
            ]
            with pytest.raises(RuntimeError, match="ERR_"):
                browser.picture(url, proxy=proxy)
        assert site.carriers == list(carriers), (tmp_path / "proxy" / "stderr").read_text()
        plain = FilesServer(tmp_path / "site")
        with plain, running_browser([], str(tmp_path / "direct")) as browser:
            direct = browser.picture(f"http://{HOST}:{plain.port}/page.html", proxy="direct://")
    assert seen == [direct, direct]
    asked = [line for line in trace.read_text().splitlines() if LOOK_UP.search(line)]
    assert not asked
