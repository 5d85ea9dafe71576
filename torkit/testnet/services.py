"""Small services: the DNS that exits ask, a page to fetch, and a client of a SOCKS port."""

import os
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from torkit.errors import NotPossible
from torkit.testnet.files import POLL_INTERVAL

REPLY_LIMIT = 4 << 20  # bytes of one HTTP reply; a consensus of ten relays is about 6 KB

# RFC 1035 and RFC 3596.
DNS_HEADER = struct.Struct("!6H")
TYPE_A, TYPE_PTR, TYPE_AAAA, CLASS_IN = 1, 12, 28, 1
NXDOMAIN = 3

# PTR answers by reversed name. Exits refuse to look up private addresses, hence one from TEST-NET-1.
REVERSE_NAMES = {"1.0.0.127.in-addr.arpa": "localhost.test", "1.2.0.192.in-addr.arpa": "reverse.test"}
NAME_LIFETIME = 60  # seconds


@contextmanager
def serve_names() -> Iterator[int]:
    """The network's DNS in a thread, on a UDP port of 127.0.0.1 which it yields."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, sock = self.request
            if (reply := answer_name(query)) is not None:
                sock.sendto(reply, self.client_address)

    with socketserver.UDPServer(("127.0.0.1", 0), Handler) as server, _served(server):
        yield server.server_address[1]


@contextmanager
def serve_page() -> Iterator[tuple[int, bytes]]:
    """A web page nobody knew before, on a TCP port of 127.0.0.1; yields both."""
    page = os.urandom(16).hex().encode()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + page)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server, _served(server):
        yield server.server_address[1], page


@contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": POLL_INTERVAL}, daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def answer_name(query: bytes) -> bytes | None:
    """Answer one DNS query: A 127.0.0.1 for every name under `test`, PTR for `REVERSE_NAMES`, else NXDOMAIN.

    None for what is no query of one question.
    """
    try:
        query_id, flags, questions, _, _, _ = DNS_HEADER.unpack_from(query)
        end = DNS_HEADER.size
        labels = []
        while length := query[end]:
            labels.append(query[end + 1 : end + 1 + length].decode("ascii").lower())
            end += 1 + length
        kind, klass = struct.unpack_from("!2H", query, end + 1)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    if flags & 0x8000 or questions != 1 or klass != CLASS_IN:
        return None
    name = ".".join(labels)
    data = b""
    if kind == TYPE_A and labels[-1:] == ["test"]:
        data = socket.inet_aton("127.0.0.1")
    elif kind == TYPE_PTR and name in REVERSE_NAMES:
        target = REVERSE_NAMES[name].split(".")
        data = b"".join(bytes([len(label)]) + label.encode() for label in target) + b"\0"
    exists = labels[-1:] == ["test"] or name in REVERSE_NAMES
    # Response, authoritative, recursion desired as asked and available.
    reply_flags = 0x8480 | flags & 0x0100 | (0 if exists else NXDOMAIN)
    reply = DNS_HEADER.pack(query_id, reply_flags, 1, int(bool(data)), 0, 0)
    reply += query[DNS_HEADER.size : end + 5]  # byte for byte: tor checks the letters' case
    if data:
        reply += (
            struct.pack("!3HIH", 0xC000 | DNS_HEADER.size, kind, CLASS_IN, NAME_LIFETIME, len(data)) + data
        )
    return reply


async def fetch_over_socks(socks: tuple[str, int], host: str, port: int) -> bytes:
    """Returns the page at http://host:port/ through a SOCKS5 proxy that resolves the name. RFC 1928."""
    async with await trio.open_tcp_stream(*socks) as stream:
        await stream.send_all(b"\x05\x01\x00")
        await _receive_exactly(stream, 2)
        name = host.encode()
        await stream.send_all(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        reply = await _receive_exactly(stream, 10)
        if reply[1] != 0:
            raise NotPossible(f"tor's SOCKS port refused with code {reply[1]}")
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        return (await receive_all(stream)).partition(b"\r\n\r\n")[2]


async def _receive_exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        if not (more := await stream.receive_some(length - len(data))):
            raise OSError(f"the connection ended after {len(data)} of {length} bytes")
        data += more
    return data


async def receive_all(stream: trio.SocketStream) -> bytes:
    data = b""
    async for more in stream:
        data += more
        if len(data) > REPLY_LIMIT:
            raise OSError(f"a reply of more than {REPLY_LIMIT} bytes")
    return data
