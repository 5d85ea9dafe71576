"""A TLS server that can misbehave, by libssl itself: Python's ssl sends no KeyUpdate and no ticket at will.

It gives the bytes of what it is asked for, so that a flood can be made beforehand and sent at once:

    with raw_server(relay, play) as address: ...      `play(peer)` runs in a thread for each client

    peer.shake_hands()                                TLS
    peer.open_link()                                  and the link's handshake, as the relay's
    peer.send(peer.key_updates(1000, is_asked=True))  no error where the client has closed
"""

import ctypes
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from torkit._fast.cells import Command
from torkit.testing.relay.link import FakeLink
from torkit.testing.relay.relay import FakeRelay

_LIBRARY = find_library("ssl") or "libssl.so.3"
_PEM = 1  # SSL_FILETYPE_PEM
_SET_MAX_VERSION = 124  # SSL_CTRL_SET_MAX_PROTO_VERSION
TLS_1_2 = 0x0303  # for `max_version`; 0 is the newest


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    for name in ("TLS_server_method", "SSL_CTX_new", "SSL_new", "BIO_new", "BIO_s_mem"):
        getattr(library, name).restype = ctypes.c_void_p
    pointer, number = ctypes.c_void_p, ctypes.c_int
    for name, arguments in {
        "SSL_CTX_new": [pointer],
        "SSL_CTX_free": [pointer],
        "SSL_CTX_ctrl": [pointer, number, ctypes.c_long, pointer],
        "SSL_CTX_use_certificate_file": [pointer, ctypes.c_char_p, number],
        "SSL_CTX_use_PrivateKey_file": [pointer, ctypes.c_char_p, number],
        "SSL_new": [pointer],
        "SSL_free": [pointer],
        "SSL_set_accept_state": [pointer],
        "SSL_set_bio": [pointer, pointer, pointer],
        "SSL_do_handshake": [pointer],
        "SSL_read": [pointer, pointer, number],
        "SSL_write": [pointer, ctypes.c_char_p, number],
        "SSL_key_update": [pointer, number],
        "SSL_new_session_ticket": [pointer],
        "SSL_renegotiate": [pointer],
        "BIO_new": [pointer],
        "BIO_read": [pointer, pointer, number],
        "BIO_write": [pointer, ctypes.c_char_p, number],
    }.items():
        getattr(library, name).argtypes = arguments
    return library


class RawPeer:
    """One connection, as its server. Everything blocks."""

    def __init__(self, relay: FakeRelay, sock: socket.socket, max_version: int = 0) -> None:
        self.sock = sock
        self._relay = relay
        self._lib = _load()
        self._buffer = ctypes.create_string_buffer(1 << 20)
        self._context = self._lib.SSL_CTX_new(self._lib.TLS_server_method())
        self._lib.SSL_CTX_ctrl(self._context, _SET_MAX_VERSION, max_version, None)
        with tempfile.TemporaryDirectory() as directory:
            key, certificate = Path(directory, "key.pem"), Path(directory, "certificate.pem")
            key.write_bytes(relay.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            certificate.write_text(ssl.DER_cert_to_PEM_cert(relay.tls_certificate))
            assert self._lib.SSL_CTX_use_certificate_file(self._context, bytes(certificate), _PEM) == 1
            assert self._lib.SSL_CTX_use_PrivateKey_file(self._context, bytes(key), _PEM) == 1
        self._incoming = self._lib.BIO_new(self._lib.BIO_s_mem())
        self._outgoing = self._lib.BIO_new(self._lib.BIO_s_mem())
        self._ssl = self._lib.SSL_new(self._context)
        self._lib.SSL_set_accept_state(self._ssl)
        self._lib.SSL_set_bio(self._ssl, self._incoming, self._outgoing)

    def close(self) -> None:
        self._lib.SSL_free(self._ssl)
        self._lib.SSL_CTX_free(self._context)
        self.sock.close()

    # --- what goes on the wire ------------------------------------------------------------------------

    def _made(self) -> bytes:
        made = bytearray()
        while (count := self._lib.BIO_read(self._outgoing, self._buffer, len(self._buffer))) > 0:
            made += self._buffer.raw[:count]
        return bytes(made)

    def records(self, data: bytes, length: int = 16384) -> bytes:
        """`data` in records of `length` bytes."""
        for at in range(0, len(data), length):
            piece = data[at : at + length]
            assert self._lib.SSL_write(self._ssl, piece, len(piece)) == len(piece)
        return self._made()

    def key_updates(self, count: int, *, is_asked: bool) -> bytes:
        """KeyUpdate messages of TLS 1.3; `is_asked` asks for as many answers."""
        for _ in range(count):
            assert self._lib.SSL_key_update(self._ssl, int(is_asked)) == 1
            assert self._lib.SSL_do_handshake(self._ssl) == 1
        return self._made()

    def tickets(self, count: int) -> bytes:
        """NewSessionTicket messages of TLS 1.3."""
        for _ in range(count):
            assert self._lib.SSL_new_session_ticket(self._ssl) == 1
            assert self._lib.SSL_do_handshake(self._ssl) == 1
        return self._made()

    def hello_requests(self, count: int) -> bytes:
        """HelloRequest messages of TLS 1.2."""
        for _ in range(count):
            assert self._lib.SSL_renegotiate(self._ssl) == 1
            assert self._lib.SSL_do_handshake(self._ssl) == 1
        return self._made()

    # --- the connection -------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send, or stop where the client has closed."""
        with suppress(OSError):
            self.sock.sendall(data)

    def receive(self) -> bytes:
        """Plaintext; b"" at the end."""
        while True:
            count = self._lib.SSL_read(self._ssl, self._buffer, len(self._buffer))
            if count > 0:
                return self._buffer.raw[:count]
            self.send(self._made())
            if not (data := self.sock.recv(65536)):
                return b""
            self._lib.BIO_write(self._incoming, data, len(data))

    def shake_hands(self) -> None:
        while self._lib.SSL_do_handshake(self._ssl) != 1:
            self.send(self._made())
            data = self.sock.recv(65536)
            assert data, "the client closed during the TLS handshake"
            self._lib.BIO_write(self._incoming, data, len(data))
        self.send(self._made())

    def open_link(self) -> FakeLink:
        """Play the relay until the client has sent NETINFO."""
        link = self._relay.link()
        while Command.NETINFO not in [command for _, command, _ in link.control_cells]:
            data = self.receive()
            assert data, "the client closed during the link handshake"
            self.send(self.records(link.receive(data)))
        return link

    def wait_closed(self) -> None:
        """Until the client has closed."""
        with suppress(OSError):
            while self.sock.recv(65536):
                pass


@contextmanager
def raw_server(
    relay: FakeRelay, play: Callable[[RawPeer], None], max_version: int = 0
) -> Iterator[tuple[str, int]]:
    """Serve on loopback: `play` runs once for each client, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    failures: list[BaseException] = []
    threads: list[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        sock.settimeout(60)  # no test waits longer
        peer = RawPeer(relay, sock, max_version)
        try:
            play(peer)
        except BaseException as error:
            failures.append(error)
        finally:
            peer.close()

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(sock,)))
            threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        threads[0].join()
        for thread in threads[1:]:
            thread.join()
    assert failures == []
