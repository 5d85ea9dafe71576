"""The first bytes that an observer of our link sees, beside those of C tor's client on the same OpenSSL."""

import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.network

DEADLINE = 60.0
HANDSHAKE_RECORD, CLIENT_HELLO = 22, 1
SERVER_NAME, PADDING, KEY_SHARE = 0, 21, 51
RANDOM_NAME = re.compile(rb"www\.[a-z2-7]{4,25}\.com")
CONNECT = """
import sys, trio
from torkit.net.link.tls import TlsConnection
trio.run(TlsConnection.connect, "127.0.0.1", int(sys.argv[1]))
"""


def _torkit(port: int, directory: Path) -> list[str]:
    return [sys.executable, "-c", CONNECT, str(port)]


def _c_tor(port: int, directory: Path) -> list[str]:
    """A client whose only bridge we are: it connects to nobody else."""
    torrc = directory / "torrc"
    torrc.write_text(f"DataDirectory {directory}/data\nSocksPort 0\nUseBridges 1\nBridge 127.0.0.1:{port}\n")
    return ["tor", "-f", str(torrc), "--defaults-torrc", "/dev/null", "--quiet"]


def _first_bytes(client: Callable[[int, Path], list[str]], directory: Path) -> bytes:
    """What a client says when it has connected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        process = subprocess.Popen(client(listener.getsockname()[1], directory), stderr=subprocess.DEVNULL)
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE)
                return connection.recv(65536)
        finally:
            process.kill()
            process.wait()


def _fields(hello: bytes) -> dict[str, object]:
    """RFC 8446, 4.1.2. Values that are random, or as long as the random server name asks, are left out."""
    assert hello[0] == HANDSHAKE_RECORD
    assert hello[5] == CLIENT_HELLO
    fields: dict[str, object] = {"length": len(hello), "record version": hello[1:3].hex()}
    at = 9
    fields["version"], at = hello[at : at + 2].hex(), at + 2 + 32
    fields["session id"], at = hello[at], at + 1 + hello[at]
    (length,) = struct.unpack_from("!H", hello, at)
    fields["ciphers"], at = hello[at + 2 : at + 2 + length].hex(" ", 2), at + 2 + length
    fields["compression"], at = hello[at + 1 : at + 1 + hello[at]].hex(), at + 1 + hello[at]
    at += 2
    while at < len(hello):
        kind, length = struct.unpack_from("!HH", hello, at)
        body, at = hello[at + 4 : at + 4 + length], at + 4 + length
        if kind == SERVER_NAME:
            fields["server name"] = bool(RANDOM_NAME.fullmatch(body[5:]))
            body = b""
        elif kind == PADDING:
            body = b""
        elif kind == KEY_SHARE:
            body = _without_keys(body)
        fields[f"extension {kind}, number {len(fields)}"] = body.hex()
    return fields


def _without_keys(shares: bytes) -> bytes:
    """The group and length of each key share. RFC 8446, 4.2.8."""
    heads, at = b"", 2
    while at < len(shares):
        heads += shares[at : at + 4]
        at += 4 + int.from_bytes(shares[at + 2 : at + 4], "big")
    return heads


def test_client_hello_is_that_of_c_tor(tmp_path: Path) -> None:
    ours, theirs = (_fields(_first_bytes(client, tmp_path)) for client in (_torkit, _c_tor))
    differences = {
        name: {"torkit": ours.get(name), "C tor": theirs.get(name)}
        for name in ours | theirs
        if ours.get(name) != theirs.get(name)
    }
    assert differences == {}
    assert theirs["server name"] is True
