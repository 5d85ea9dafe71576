"""TLS to a relay over a socket: reads everything at hand into one reusable buffer. No cells here.

Relays write TLS records of about 4 KiB, and a general TLS stream would return one per call. This one
takes all that the socket holds, decrypts every record of it (_fast/tls), and wakes its caller once.

The certificate proves nothing here, so TLS itself verifies nothing: the CERTS cell that follows ties it
to the relay's identity (proto/certs.py).
"""

import os
import socket
from collections.abc import Callable
from random import SystemRandom

import trio

from torkit._fast.tls import Tls
from torkit.errors import ChannelClosed, ChannelError

# Implementation limit, bytes: what one read may bring to the core. A busy relay's burst; larger gains
# nothing measurable and stays resident.
BUFFER_LEN = 131072

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def random_server_name(rng: SystemRandom) -> str:
    """A host name for the ClientHello, as C tor makes them: www.<4 to 25 letters>.com."""
    return f"www.{''.join(rng.choices(_BASE32, k=rng.randint(4, 25)))}.com"


class TlsConnection:
    """Made by `connect`. After the link handshake, `core` is the pump's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.core = Tls(sock.fileno(), random_server_name(SystemRandom()).encode())
        self.buffer = bytearray(BUFFER_LEN)

    @classmethod
    async def connect(
        cls, address: str, port: int, *, on_connected: Callable[[], None] = lambda: None
    ) -> "TlsConnection":
        """Connect to an IP address, call `on_connected`, and finish the TLS handshake.

        Raises ChannelClosed where nobody answers, ChannelError where the peer does not speak TLS 1.2.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await trio.socket.from_stdlib_socket(sock).connect((address, port))
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)  # trio's names the address
                raise ChannelClosed(f"could not connect to the relay: {reason}") from error
            on_connected()
            connection = cls(sock)
            await connection._handshake()
        except OSError as error:
            sock.close()
            raise ChannelClosed(f"the TLS handshake with the relay broke: {error.strerror}") from error
        except BaseException:
            sock.close()
            raise
        return connection

    async def _handshake(self) -> None:
        while not self.core.do_handshake():
            await self.send(b"")
            await trio.lowlevel.wait_readable(self._sock)
        await self.send(b"")

    def peer_certificate(self) -> bytes:
        """The relay's TLS certificate, DER."""
        certificate = self.core.peer_certificate()
        if not certificate:
            raise ChannelError("the relay showed no TLS certificate")
        return certificate

    @property
    def wants_to_send(self) -> bool:
        """Something is left to send, be it TLS's own, such as an answer to a key update."""
        return self.core.wants_to_send

    @property
    def is_blocked(self) -> bool:
        """The relay does not take what we send as fast as we send it."""
        return self.core.is_blocked

    async def receive(self) -> int:
        """Wait for data and decrypt all of it into the start of `buffer`; its length, 0 at the end."""
        # Decrypting first: the last flight of the handshake may have brought data with it.
        while not (count := self.receive_now()) and not self.has_ended:
            await self.wait_readable()
        return count

    def receive_now(self) -> int:
        """Decrypt what has come into the start of `buffer`; its length, 0 if it is nothing or the end."""
        return self.core.receive(self.buffer)

    @property
    def has_ended(self) -> bool:
        """The relay has ended the connection, and all that it sent was received."""
        return self.core.has_ended

    async def wait_readable(self) -> None:
        """Wait until `receive_now` may have something: after it had nothing."""
        await trio.lowlevel.wait_readable(self._sock)

    async def send(self, data: bytes) -> None:
        """Encrypt and send all of `data`. Must not be cancelled but to close the connection."""
        while not self.send_now(data):
            data = b""
            await trio.lowlevel.wait_writable(self._sock)

    def send_now(self, data: bytes) -> bool:
        """Encrypt `data` and send what the socket takes; False if `send` must finish the rest.

        Not to be called while `is_blocked`, so that what waits here stays bounded.
        """
        return self.core.send(data)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        self.core.close()
        self._sock.close()
