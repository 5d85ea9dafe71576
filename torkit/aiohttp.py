"""aiohttp over Tor: a connector for its sessions.

    async with torkit.aio.open_tor() as tor, aiohttp.ClientSession(connector=Connector(tor)) as session:
        async with session.get("https://example.com/") as response: ...

Each connector is apart from all others: its connections share circuits with theirs only where
`isolation` is the same for both. What fails is an error of aiohttp with torkit's as `__cause__`. A proxy that
a request names is reached through Tor as well.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Hashable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_exceptions import ClientConnectorDNSError

from torkit.aio import Tor
from torkit.socket_errors import origin


class Connector(aiohttp.TCPConnector):
    """For `aiohttp.ClientSession`; the other arguments are those of TCPConnector about TLS and limits."""

    def __init__(self, tor: Tor, *, isolation: Hashable = None, **settings: Any) -> None:
        """`isolation`, by default one that is equal to no other's, is as in `tor.connect`."""
        super().__init__(resolver=_AtTheExit(), use_dns_cache=False, socket_factory=_refuse, **settings)
        self._tor = tor
        self._isolation = object() if isolation is None else isolation

    async def _wrap_create_connection(
        self,
        *args: Any,
        addr_infos: Any,
        req: aiohttp.ClientRequest,
        timeout: aiohttp.ClientTimeout,
        client_error: type[Exception] = aiohttp.ClientConnectorError,
        **settings: Any,
    ) -> Any:
        """Connect to the host that `req` names. The addresses are the resolver's, and mean nothing."""
        host, port = req.url.raw_host, req.port
        assert host is not None
        assert port is not None
        try:
            async with asyncio.timeout(timeout.sock_connect):
                sock = await self._tor.connect(host, port, isolation=self._isolation)
                try:
                    return await asyncio.get_running_loop().create_connection(*args, sock=sock, **settings)
                except BaseException:
                    sock.close()
                    raise
        except ssl.SSLCertVerificationError as error:
            raise aiohttp.ClientConnectorCertificateError(req.connection_key, error) from error
        except ssl.SSLError as error:
            raise aiohttp.ClientConnectorSSLError(req.connection_key, error) from error
        except socket.gaierror as error:
            raise ClientConnectorDNSError(req.connection_key, error) from origin(error)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # the caller's, which aiohttp tells
                raise
            raise client_error(req.connection_key, error) from origin(error)


class _AtTheExit(AbstractResolver):
    """Resolves nothing: the exit does. What it answers leads nowhere."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=0, family=socket.AF_INET, proto=0, flags=0)
        ]

    async def close(self) -> None:
        pass


def _refuse(*_: object) -> socket.socket:
    """In place of a socket of aiohttp's own, should it ever want one."""
    raise OSError(errno.EPERM, "a connection past Tor")
