"""Identities on real relays: which connections share a circuit, by credential, by listener and by use."""

import re
from pathlib import Path

import pytest
from network.servers import HOST, PAGE, WebServer
from network.torkit_process import Shell, running_proxy, skip_without

pytestmark = [pytest.mark.network, skip_without("curl")]


def test_identities_by_credential_by_listener_and_by_use(
    shell: Shell, web_server: WebServer, tmp_path: Path
) -> None:
    # While sets of circuits are being linked, an identity may move to one.
    options = ["--listen", f"{HOST}:0,rotate=2uses", "--conflux", "off"]
    with running_proxy(shell, tmp_path / "proxy", ["-vv"], options) as proxy:
        found = re.search(r"ready on (\S+), (\S+)", proxy.log.read_text())
        assert found is not None
        steady, rotating = found.groups()

        def circuits(*addresses: str) -> list[int]:
            """The circuits of one connection after the other, numbered by when they were first used."""
            seen = len(used(proxy.log))
            for address in addresses:
                url = f"http://web.test:{web_server.port}/page"
                assert shell.run(f"curl -sS --fail -x socks5h://{address} {url}").stdout == PAGE
            now = used(proxy.log)[seen:]
            assert len(now) == len(addresses)
            return [now.index(circuit) for circuit in now]

        assert circuits(f"a:x@{steady}", f"b:x@{steady}", f"a:x@{steady}", f"a:y@{steady}") == [0, 1, 0, 3]
        assert circuits(*[f"a:x@{rotating}"] * 5, f"a:x@{steady}") == [0, 0, 2, 2, 4, 5]


def used(log: Path) -> list[str]:
    return re.findall(r"a connection begins at \S+, on circuit (\d+)", log.read_text())
