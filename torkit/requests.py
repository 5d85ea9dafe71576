"""requests over Tor: an adapter for its sessions.

    with torkit.blocking.open_tor() as tor, session(tor) as web:
        web.get("https://example.com/")

Each session is apart from all others: its connections share circuits with theirs only where
`isolation` is the same for both. What fails is an error of requests with torkit's as `__cause__`.
"""

import socket
from collections.abc import Hashable
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from torkit.blocking import Tor
from torkit.socket_errors import origin


class Adapter(HTTPAdapter):
    """To be mounted at "http://" and at "https://"; the other arguments are those of HTTPAdapter."""

    def __init__(self, tor: Tor, *, isolation: Hashable = None, **settings: Any) -> None:
        """`isolation`, by default one that is equal to no other's, is as in `tor.connect`."""
        self._pools = _pools_over(tor, object() if isolation is None else isolation)
        super().__init__(**settings)

    def init_poolmanager(self, *args: Any, **settings: Any) -> None:
        super().init_poolmanager(*args, **settings)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **settings: Any) -> Any:
        """Refuse: a connection to a proxy would not go through Tor."""
        raise requests.exceptions.ProxyError(
            "a proxy is named, by an argument or by the environment: over Tor there is none "
            "(session.trust_env = False leaves the environment alone)"
        )

    def send(self, *args: Any, **settings: Any) -> requests.Response:
        try:
            return super().send(*args, **settings)
        except requests.RequestException as error:
            raise error from origin(error)


def session(tor: Tor, *, isolation: Hashable = None) -> requests.Session:
    """Returns a session whose requests all go through `tor`, none of them on circuits of another session."""
    made = requests.Session()
    adapter = Adapter(tor, isolation=isolation)
    made.mount("http://", adapter)
    made.mount("https://", adapter)
    return made


def _pools_over(tor: Tor, isolation: Hashable) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3's pools, whose connections are made by `tor`."""

    def connect(connection: HTTPConnection) -> socket.socket:
        try:
            return tor.create_connection(
                (connection.host, connection.port), connection.timeout, isolation=isolation
            )
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, str(error)) from error
        except OSError as error:
            raise NewConnectionError(connection, str(error)) from error

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self)

    class Tls(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}
