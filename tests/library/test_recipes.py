"""Every program of docs/ and of README.md prints what its server says, over scripted relays."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import RunningNetwork
from library.test_blocking import serving
from network.servers import WebServer, tls_server

ROOT = Path(__file__).parents[2]
ROOT_PAGE = b"an example\n"
RECIPES = [
    program
    for page in ("README.md", "docs/index.md", "docs/library.md", "docs/tour.md")
    for program in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    if "import " in program and "import pytest" not in program  # test_pytest_plugin.py runs that
]

# What each has to print; a library that a recipe imports and that is not there skips it.
PRINTS = {
    "paramiko": b"ecdsa",
    "smtplib": b"(250, b'yes')",
}


class ExampleServer(WebServer):
    class handler(WebServer.handler):
        def do_GET(self) -> None:
            self._reply(ROOT_PAGE)


@pytest.fixture(scope="module")
def example(network: RunningNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Serves what the recipes reach. Returns the certificate to believe."""
    directory = tmp_path_factory.mktemp("example")

    def mail(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")
        for line in sock.makefile("rb"):
            sock.sendall(b"221 bye\r\n" if line.upper().startswith(b"QUIT") else b"250 yes\r\n")

    def ssh(sock: socket.socket) -> None:
        paramiko = pytest.importorskip("paramiko")
        transport = paramiko.Transport(sock)
        transport.add_server_key(paramiko.ECDSAKey.generate())
        transport.start_server(server=paramiko.ServerInterface())
        transport.join(30)

    with (
        ExampleServer() as web,
        tls_server(directory, ExampleServer) as tls,
        serving(mail) as mail_port,
        serving(ssh) as ssh_port,
    ):
        network.servers |= {"example.com": web.port, "example.com:443": tls.port}
        network.servers |= {"mail.example.com:587": mail_port, "ssh.example.com:22": ssh_port}
        yield directory / "web.test.pem"


def name_of(program: str) -> str:
    return " ".join(re.findall(r"^import (\S+)", program, re.MULTILINE))


@pytest.mark.parametrize("program", RECIPES, ids=name_of)
def test_a_recipe_prints_what_its_server_says(
    network: RunningNetwork, data_dir: Path, example: Path, program: str
) -> None:
    for library in ("aiohttp", "httpx", "paramiko", "requests"):
        if f"import {library}" in program:
            pytest.importorskip(library)
    environment = os.environ | {
        "TORKIT_NETWORK": str(network.file),
        "TORKIT_DATA_DIR": str(data_dir),
        "SSL_CERT_FILE": str(example),
        "REQUESTS_CA_BUNDLE": str(example),
    }
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    expected = next((text for name, text in PRINTS.items() if f"import {name}" in program), ROOT_PAGE.strip())
    assert expected in ended.stdout
