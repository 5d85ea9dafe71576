"""Fixtures for pytest: a private Tor network of real relays, a client of it, onion services, a SOCKS proxy.

pytest loads this file wherever torkit is installed, so that it imports nothing else until a test asks.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import trio

    from torkit import blocking
    from torkit.client import Tor
    from torkit.in_thread import ClientThread
    from torkit.testnet.in_thread import RunningTestnet

PUBLISH_TIMEOUT = 60.0  # seconds


@pytest.fixture(scope="session")
def tor_network(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[RunningTestnet]":
    """A private network of real `tor` processes on loopback, which end with the session.

    Its `network_file` is for TORKIT_NETWORK, `relays` and `exits` say who is there, `kill_relay` and
    `start_relay` take a nickname. Skips where there is no `tor`.
    """
    from torkit.errors import NotPossible
    from torkit.testnet.in_thread import running_testnet

    network = running_testnet(tmp_path_factory.mktemp("tor-network"))
    try:
        running = network.__enter__()
    except NotPossible as error:
        pytest.skip(error.with_hint)
    try:
        yield running
    finally:
        network.__exit__(None, None, None)


@pytest.fixture(scope="session")
def _torkit_client(
    tor_network: "RunningTestnet", tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[tuple[ClientThread, Tor]]":
    from torkit.in_thread import ClientThread

    thread = ClientThread()
    settings = {"network": tor_network.network_file, "data_dir": tmp_path_factory.mktemp("tor-client")}
    tor = thread.start(settings).result()
    try:
        yield thread, tor
    finally:
        thread.close()


@pytest.fixture
def tor(_torkit_client: "tuple[ClientThread, Tor]") -> "blocking.Tor":
    """A client of torkit.blocking on `tor_network`. No circuit of it is shared with another test's."""
    from torkit.blocking import Tor

    return Tor(*_torkit_client).isolated()


@pytest.fixture
def tor_onion(tor: "blocking.Tor") -> "Iterator[Callable[..., str]]":
    """Publishes servers of this machine as onion services of `tor_network`, each until the test ends.

    `tor_onion(8080)` returns an address in .onion, new each time, whose port 80 leads to 127.0.0.1:8080;
    `tor_onion(8080, at=443)` has it at another port. Returns once clients can find the service.
    """
    from contextlib import ExitStack

    from torkit.net.hosting.forward import Target

    with ExitStack() as services:

        def publish(port: int, *, at: int = 80) -> str:
            service = services.enter_context(tor.serve_onion({at: Target("127.0.0.1", port)}))
            service.wait_published(PUBLISH_TIMEOUT)
            return service.address

        yield publish


@pytest.fixture(scope="session")
def tor_socks(_torkit_client: "tuple[ClientThread, Tor]") -> "Iterator[str]":
    """`HOST:PORT` of a proxy into `tor_network`, for SOCKS5 and for HTTP CONNECT."""
    from functools import partial

    from torkit.net.proxy import serve_socks

    thread, tor = _torkit_client
    listeners = thread.submit(_listen, tor).result()
    proxy = thread.submit(partial(serve_socks, listeners, request=tor.request, resolve=tor.resolve))
    host, port = listeners[0].socket.getsockname()
    yield f"{host}:{port}"
    proxy.cancel()


async def _listen(tor: "Tor") -> "list[trio.SocketListener]":
    from trio import open_tcp_listeners

    await tor.wait_ready()
    return await open_tcp_listeners(0, host="127.0.0.1")
