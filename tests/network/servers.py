"""Servers on 127.0.0.1 for the far end of test traffic: context managers with a `port`, run by threads."""

import hashlib
import http.server
import queue
import random
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from doors import tls_contexts

HOST = "127.0.0.1"
PAGE = b"<!doctype html><title>torkit</title><p>This page came through three relays.\n"
BANNER = b"220 ready, and gone\r\n"
BLOCK_LEN = 1 << 20


def blocks(length: int) -> Iterator[bytes]:
    """The first `length` bytes of one fixed pseudo-random sequence; no two of its blocks are alike."""
    for number in range(-(-length // BLOCK_LEN)):
        yield random.Random(number).randbytes(BLOCK_LEN)[: length - number * BLOCK_LEN]


@lru_cache
def sha256_of(length: int) -> str:
    """The hash, in hex, of what GET /bytes/LENGTH returns."""
    digest = hashlib.sha256()
    for block in blocks(length):
        digest.update(block)
    return digest.hexdigest()


class TargetServer(socketserver.ThreadingTCPServer):
    """Serves from `__enter__` to `__exit__`, which also closes the connections still open."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    handler: type[socketserver.BaseRequestHandler]

    def __init__(self) -> None:
        super().__init__((HOST, 0), self.handler)
        self.port: int = self.server_address[1]
        self.connections: set[socket.socket] = set()
        self._accepting = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._accepting.join()
        self.server_close()
        for connection in list(self.connections):
            connection.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # peers that vanish are part of the tests
            super().handle_error(request, client_address)


class WebServer(TargetServer):
    """GET /page, GET /bytes/N; POST and PUT reply with the SHA-256, in hex, of what was uploaded."""

    class handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/page":
                self._reply(PAGE)
            elif self.path.startswith("/bytes/") and self.path[7:].isdecimal():
                length = int(self.path[7:])
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                for block in blocks(length):
                    self.wfile.write(block)
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            if "Content-Length" not in self.headers:
                self.send_error(411)
                return
            digest = hashlib.sha256()
            left = int(self.headers["Content-Length"])
            while left and (data := self.rfile.read(min(left, 1 << 16))):
                digest.update(data)
                left -= len(data)
            self._reply(digest.hexdigest().encode())

        do_PUT = do_POST

        def _reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass


class FilesServer(TargetServer):
    """GET for what lies in a directory; with `tls`, whose context is a server's, over TLS."""

    def __init__(self, directory: Path, tls: ssl.SSLContext | None = None) -> None:
        self._directory = str(directory)
        self._tls = tls
        super().__init__()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:  # its handshake comes with the first read, which is another thread's
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    class handler(http.server.SimpleHTTPRequestHandler):
        server: "FilesServer"

        def __init__(self, request: Any, client_address: Any, server: "FilesServer") -> None:
            super().__init__(request, client_address, server, directory=server._directory)

        def log_message(self, format: str, *args: object) -> None:
            pass


class EchoServer(TargetServer):
    """Sends back whatever it gets, until end of file."""

    class handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)


class BannerServer(TargetServer):
    """Sends BANNER and closes at once."""

    class handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(BANNER)


class TlsServer(TargetServer):
    """A TLS server whose certificate is for web.test alone; it upper-cases what it reads first, and ends."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.context, _ = tls_contexts(directory)
        self.authority = directory / "web.test.pem"

    class handler(socketserver.BaseRequestHandler):
        server: "TlsServer"

        def handle(self) -> None:
            context = self.server.context
            with suppress(OSError), context.wrap_socket(self.request, server_side=True) as tls:
                tls.sendall(tls.recv(1 << 16).upper())
                tls.unwrap()


def tls_server(directory: Path, kind: type[WebServer]) -> WebServer:
    """One that speaks TLS; `directory/web.test.pem` is what to believe."""
    context, _ = tls_contexts(directory)

    class OverTls(kind):  # type: ignore[misc,valid-type]  # a base known at run time
        def finish_request(self, request: Any, client_address: Any) -> None:
            with context.wrap_socket(request, server_side=True) as tls:
                super().finish_request(tls, client_address)
                tls.unwrap()

    return OverTls()


class SilentServer(TargetServer):
    """Reads everything, never says a word, and closes only when its peer does."""

    class handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(1 << 16):
                pass


class SinkServer(TargetServer):
    """Reads nothing until `gate` is set, then 16 KiB every `pause` seconds.

    `uploads` then receives (length, SHA-256 in hex) for each connection that reached its end of file.
    """

    def __init__(self, *, pause: float = 0.002) -> None:
        super().__init__()
        self.pause = pause
        self.gate = threading.Event()
        self.uploads: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._closing = threading.Event()

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.gate.set()
        super().__exit__(*_)

    class handler(socketserver.BaseRequestHandler):
        server: "SinkServer"

        def setup(self) -> None:
            # A small window, so that the peer notices soon that nobody reads.
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)

        def handle(self) -> None:
            self.server.gate.wait()
            digest, length = hashlib.sha256(), 0
            while data := self.request.recv(1 << 14):
                digest.update(data)
                length += len(data)
                self.server._closing.wait(self.server.pause)
            self.server.uploads.put((length, digest.hexdigest()))


def free_port() -> int:
    """A port for a program that cannot say which one it got, and that sets SO_REUSEADDR, as nearly all do.

    A silent socket keeps it from everybody else until this process ends.
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((HOST, 0))
    port: int = keeper.getsockname()[1]
    keeper.detach()
    return port
