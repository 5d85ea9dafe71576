"""TLS to a relay over a socket, until the link handshake is done. No cells here.

After that the pump reads and writes `core` by itself (net/link/pump.py). TLS itself is in _fast/tls.

The certificate proves nothing here, so TLS itself verifies nothing: the CERTS cell that follows ties it
to the relay's identity (proto/certs.py).
"""

import socket
from collections.abc import Callable
from random import SystemRandom

import trio

from torkit._fast.tls import Tls
from torkit.errors import ChannelClosed, ChannelError
from torkit.net.link.dial import Dial, dial_directly
from torkit.net.shortage import check_resources

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def random_server_name(rng: SystemRandom) -> str:
    """Returns a host name for the ClientHello: www.<4 to 25 letters>.com (as C tor makes it)."""
    return f"www.{''.join(rng.choices(_BASE32, k=rng.randint(4, 25)))}.com"


class TlsConnection:
    """Made by `connect`. After the link handshake, `core` is the pump's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.core = Tls(sock.fileno(), random_server_name(SystemRandom()).encode())

    @classmethod
    async def connect(
        cls,
        address: str,
        port: int,
        *,
        on_connected: Callable[[], None] = lambda: None,
        dial: Dial = dial_directly,
    ) -> "TlsConnection":
        """Connect to an IP address by `dial`, call `on_connected`, and finish the TLS handshake.

        Raises ChannelClosed where nobody answers, ChannelError where the peer does not speak TLS 1.2,
        OutOfResources.
        """
        sock = await dial(address, port)
        try:
            on_connected()
            connection = cls(sock)
            await connection._handshake()
        except OSError as error:
            sock.close()
            check_resources(error)
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
        """Returns the relay's TLS certificate, DER."""
        certificate = self.core.peer_certificate()
        if not certificate:
            raise ChannelError("the relay showed no TLS certificate")
        return certificate

    async def receive(self, buffer: bytearray) -> int:
        """Wait for data and decrypt what is at hand into `buffer`. Returns its length, 0 at the end."""
        # Decrypt first: the last flight of the handshake may have brought data with it.
        while not (count := self.core.receive(buffer)) and not self.core.has_ended:
            await trio.lowlevel.wait_readable(self._sock)
        return count

    async def send(self, data: bytes) -> None:
        """Encrypt and send all of `data`. After a cancellation the connection has to be closed."""
        while not self.core.send(data):
            data = b""
            await trio.lowlevel.wait_writable(self._sock)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        self.core.close()
        self._sock.close()
