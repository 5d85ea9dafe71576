"""stdin and stdout as no shell gives them: connections, directories, descriptors open the wrong way."""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import network_docs as nd
import pytest
from cli.shelf import NOW, Shelf
from ends import open_ends, waiting_in
from waiting import wait_until

RESET = struct.pack("ii", 1, 0)


def torkit(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torkit", *arguments]


@pytest.fixture
def printing(shelf: Shelf) -> tuple[list[str], bytes]:
    """A command, and what it prints: more than a socket takes before it is read."""
    document = nd.consensus(nd.relays(1500), nd.authorities())
    assert len(document) > 200_000
    (shelf.path / "microdesc").write_bytes(document)
    network = ["--network", f"{shelf.path}/network.toml"]
    return torkit(*network, "fetch-consensus", "--raw", *shelf.source()), document


def started_on_a_connection(command: list[str]) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """As inetd starts its services; the client has sent what the command does not read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.connect(server.getsockname())
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        accepted, _ = server.accept()
    with accepted:
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        both = accepted.fileno()
        return subprocess.Popen(command, stdin=both, stdout=both, stderr=subprocess.PIPE), client


def test_a_client_of_inetd_gets_all_however_late_it_reads(printing: tuple[list[str], bytes]) -> None:
    command, document = printing
    process, client = started_on_a_connection(command)
    with process, client:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)  # all is written, and not delivered
        received = bytearray()
        while len(received) < len(document):
            data = client.recv(1 << 16)
            assert data
            received += data
        assert received == document
        assert process.wait(30) == 0


def test_a_client_of_inetd_that_leaves_early_is_no_success(printing: tuple[list[str], bytes]) -> None:
    command, _ = printing
    process, client = started_on_a_connection(command)
    with process:
        assert client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_output_that_is_non_blocking_is_whole(printing: tuple[list[str], bytes]) -> None:
    """As some parents leave it. Python dropped what found no room at once, and the status was 0."""
    command, document = printing
    with open_ends() as ends:
        os.set_blocking(ends.sink, False)
        with subprocess.Popen(command, stdout=ends.sink) as process:
            ends.close(ends.sink)
            wait_until(lambda: waiting_in(ends.stdout) >= 65_536)
            with open(ends.stdout, "rb", closefd=False) as reader:
                assert reader.read() == document
            assert process.wait(30) == 0


def test_errors_on_a_non_blocking_pipe_are_told() -> None:
    with open_ends() as ends:
        os.set_blocking(ends.sink, False)
        with subprocess.Popen(torkit("connect", "web.test"), stderr=ends.sink) as process:
            ends.close(ends.sink)
            with open(ends.stdout, "rb", closefd=False) as reader:
                assert reader.readline() == b"torkit: no port in 'web.test'\n"
            assert process.wait(30) == 2


def test_input_that_is_non_blocking_is_waited_for(shelf: Shelf) -> None:
    """It was a traceback: Python's reading gives nothing at all where nothing is there yet."""
    document = (shelf.path / "microdesc").read_bytes()
    network = ["--network", f"{shelf.path}/network.toml"]
    options = ["--certs", f"{shelf.path}/certs", "--at", NOW, "--columns", "nickname"]
    with open_ends() as ends:
        os.set_blocking(ends.source, False)
        command = torkit(*network, "relays", "-", *options)
        with subprocess.Popen(command, stdin=ends.source, stdout=subprocess.PIPE) as process:
            ends.close(ends.source)
            for piece in (document[:100], document[100:]):
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.7)
                os.write(ends.stdin, piece)
            ends.close(ends.stdin)
            assert process.stdout is not None
            assert len(process.stdout.read().split()) == 6
            assert process.wait(30) == 0


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_directory_as_a_standard_descriptor_is_pythons_failure(tmp_path: Path, descriptor: int) -> None:
    """Before any of our code runs, as docs/differences.md says: nothing is lost and it is no success."""
    directory = os.open(tmp_path, os.O_RDONLY)
    names = ["stdin", "stdout", "stderr"]
    files: Any = dict.fromkeys(names, subprocess.PIPE) | {names[descriptor]: directory}
    try:
        process = subprocess.Popen(torkit("version"), **files)
        out, err = process.communicate()
    finally:
        os.close(directory)
    assert process.returncode == 1
    assert not out
    assert descriptor == 2 or b"directory" in err
