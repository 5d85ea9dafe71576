"""torkit.httpx, torkit.requests, torkit.aiohttp over scripted relays; no name is resolved on this machine."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from doors import RunningNetwork, tls_contexts
from network.servers import PAGE, WebServer, tls_server

import torkit
from torkit import aio, blocking
from torkit.errors import EndReason, StreamClosed, TorkitError
from torkit.testing.relay import FakeStream, answer_begin, ignore

aiohttp = pytest.importorskip("aiohttp")
httpx = pytest.importorskip("httpx")
requests = pytest.importorskip("requests")

from torkit import aiohttp as torkit_aiohttp  # noqa: E402  # imports aiohttp
from torkit import httpx as torkit_httpx  # noqa: E402  # imports httpx
from torkit import requests as torkit_requests  # noqa: E402  # imports requests

URL = "http://web.test/page"
TLS_URL = "https://web.test/page"


@pytest.fixture(scope="module")
def certificate(network: RunningNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """That of web.test at port 443, which serves while the module's tests run."""
    directory = tmp_path_factory.mktemp("tls")
    with tls_server(directory, WebServer) as server:
        network.servers["web.test:443"] = server.port
        yield directory / "web.test.pem"


@pytest.fixture(params=["asyncio", "trio"])
def run_async(request: pytest.FixtureRequest, network: RunningNetwork, data_dir: Path) -> Callable[..., None]:
    """Runs a program with torkit's client for the loop that it runs under."""

    def run(program: Callable[[Any], Awaitable[None]]) -> None:
        async def main() -> None:
            opened: AbstractAsyncContextManager[Any] = (
                torkit.open_tor(network=network.file, data_dir=data_dir)
                if request.param == "trio"
                else aio.open_tor(network=network.file, data_dir=data_dir)
            )
            async with opened as tor:
                await program(tor)

        if request.param == "trio":
            trio.run(main)
        else:
            asyncio.run(main())

    return run


def refuse(network: RunningNetwork) -> None:
    network.exits["no.test"] = lambda stream: stream.end(EndReason.CONNECTREFUSED)
    network.exits["noname.test"] = lambda stream: stream.end(EndReason.RESOLVEFAILED)
    network.exits["mute.test"] = ignore
    network.exits["cut.test"] = answer_begin
    network.answers["cut.test"] = answer_and_cut


def answer_and_cut(stream: FakeStream) -> None:
    stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf a page")
    stream.finish(EndReason.CONNRESET)


# --- httpx --------------------------------------------------------------------------------------------------


def test_httpx(tor: blocking.Tor, network: RunningNetwork, tmp_path: Path, certificate: Path) -> None:
    _, context = tls_contexts(tmp_path)
    with httpx.Client(transport=torkit_httpx.Transport(tor, verify=context), timeout=30) as client:
        for url in URL, TLS_URL:
            begun = len(network.begun)
            assert client.get(url).content == PAGE
            assert client.get(url).content == PAGE
            assert len(network.begun) == begun + 1  # the connection was kept
        assert client.get("http://web.test/bytes/2000000").num_bytes_downloaded == 2_000_000
        assert len(client.post(URL, content=b"x" * 500_000).text) == 64


def test_httpx_without_a_loop_tells_what_failed(tor: blocking.Tor, network: RunningNetwork) -> None:
    refuse(network)
    with httpx.Client(transport=torkit_httpx.Transport(tor), timeout=30) as client:
        for host, reason in ("no", EndReason.CONNECTREFUSED), ("noname", EndReason.RESOLVEFAILED):
            with pytest.raises(httpx.ConnectError) as caught:
                client.get(f"http://{host}.test/")
            assert isinstance(caught.value.__cause__, StreamClosed)
            assert caught.value.__cause__.reason is reason
        with pytest.raises(httpx.ConnectError) as caught:
            client.get("http://not%20a%20name/")
        assert isinstance(caught.value.__cause__, TorkitError)
        with pytest.raises(httpx.ConnectTimeout):
            client.get("http://mute.test/", timeout=0.3)
        with pytest.raises(httpx.ReadError):
            client.get("http://cut.test/")
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.Client(transport=torkit_httpx.Transport(tor)).get("https://web.test/")


def test_httpx_async(
    run_async: Callable[..., None], network: RunningNetwork, tmp_path: Path, certificate: Path
) -> None:
    _, context = tls_contexts(tmp_path)
    refuse(network)

    async def program(tor: Any) -> None:
        transport = torkit_httpx.AsyncTransport(tor, verify=context)
        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            for url in URL, TLS_URL:
                begun = len(network.begun)
                assert (await client.get(url)).content == PAGE
                assert (await client.get(url)).content == PAGE
                assert len(network.begun) == begun + 1
            assert (await client.get("http://web.test/bytes/2000000")).num_bytes_downloaded == 2_000_000
            assert len((await client.post(URL, content=b"x" * 500_000)).text) == 64
            with pytest.raises(httpx.ConnectError) as caught:
                await client.get("http://no.test/")
            assert isinstance(caught.value.__cause__, StreamClosed)
            with pytest.raises(httpx.ConnectTimeout):
                await client.get("http://mute.test/", timeout=0.3)
            with pytest.raises(httpx.ReadError):
                await client.get("http://cut.test/")

    run_async(program)


def test_each_httpx_transport_is_apart(tor: blocking.Tor, network: RunningNetwork) -> None:
    for isolations, count in (((None, None), 2), (("one", "one"), 1)):
        begun = len(network.begun)
        for isolation in isolations:
            with httpx.Client(transport=torkit_httpx.Transport(tor, isolation=isolation)) as client:
                client.get(URL)
        assert len(set(network.circuits[begun:])) == count


def test_httpx_uses_no_proxy_of_the_environment(tor: blocking.Tor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with httpx.Client(transport=torkit_httpx.Transport(tor)) as client:
        assert client.get(URL).content == PAGE


# --- requests -----------------------------------------------------------------------------------------------


def test_requests(tor: blocking.Tor, network: RunningNetwork, certificate: Path) -> None:
    with torkit_requests.session(tor) as session:
        session.trust_env = False  # which may name other certificates
        session.verify = str(certificate)
        for url in URL, TLS_URL:
            begun = len(network.begun)
            assert session.get(url, timeout=30).content == PAGE
            assert session.get(url, timeout=30).content == PAGE
            assert len(network.begun) == begun + 1
        assert len(session.get("http://web.test/bytes/2000000", timeout=30).content) == 2_000_000


def test_requests_tells_what_failed(tor: blocking.Tor, network: RunningNetwork) -> None:
    refuse(network)
    with torkit_requests.session(tor) as session:
        for host, reason in ("no", EndReason.CONNECTREFUSED), ("noname", EndReason.RESOLVEFAILED):
            with pytest.raises(requests.ConnectionError) as caught:
                session.get(f"http://{host}.test/", timeout=30)
            assert isinstance(caught.value.__cause__, StreamClosed)
            assert caught.value.__cause__.reason is reason
        with pytest.raises(requests.ConnectTimeout):
            session.get("http://mute.test/", timeout=0.3)
        with pytest.raises(requests.RequestException):
            session.get("http://cut.test/", timeout=30)
        with pytest.raises(requests.exceptions.SSLError):
            session.get("https://web.test/", timeout=30)


def test_each_session_of_requests_is_apart(tor: blocking.Tor, network: RunningNetwork) -> None:
    for isolations, count in (((None, None), 2), (("one", "one"), 1)):
        begun = len(network.begun)
        for isolation in isolations:
            with torkit_requests.session(tor, isolation=isolation) as session:
                session.get(URL, timeout=30)
        assert len(set(network.circuits[begun:])) == count


def test_requests_refuses_proxies(tor: blocking.Tor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with torkit_requests.session(tor) as session:
        with pytest.raises(requests.exceptions.ProxyError, match="over Tor there is none"):
            session.get(URL, timeout=30)
        session.trust_env = False
        assert session.get(URL, timeout=30).content == PAGE


# --- aiohttp ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def aiohttp_session(
    network: RunningNetwork, data_dir: Path, **settings: Any
) -> AsyncIterator[tuple[aio.Tor, Any]]:
    async with aio.open_tor(network=network.file, data_dir=data_dir) as tor:
        connector = torkit_aiohttp.Connector(tor, **settings)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield tor, session


def test_aiohttp(network: RunningNetwork, data_dir: Path, tmp_path: Path, certificate: Path) -> None:
    _, context = tls_contexts(tmp_path)

    async def main() -> None:
        async with aiohttp_session(network, data_dir, ssl=context) as (tor, session):
            for url in URL, TLS_URL:
                begun = len(network.begun)
                for _ in range(2):
                    async with session.get(url) as response:
                        assert await response.read() == PAGE
                assert len(network.begun) == begun + 1
            begun = len(network.begun)
            for isolation in None, None, "one", "one":
                connector = torkit_aiohttp.Connector(tor, isolation=isolation)
                async with aiohttp.ClientSession(connector=connector) as other, other.get(URL) as response:
                    assert response.status == 200
            assert len(set(network.circuits[begun:])) == 3

    asyncio.run(main())


def test_aiohttp_tells_what_failed(network: RunningNetwork, data_dir: Path, certificate: Path) -> None:
    refuse(network)
    network.exits["192.0.2.7"] = lambda stream: stream.end(EndReason.CONNECTREFUSED)

    async def main() -> None:
        async with aiohttp_session(network, data_dir) as (_, session):
            for host in "no.test", "192.0.2.7":
                with pytest.raises(aiohttp.ClientConnectorError) as caught:
                    await session.get(f"http://{host}/")
                assert isinstance(caught.value.__cause__, StreamClosed)
            with pytest.raises(aiohttp.ClientConnectorDNSError) as caught:
                await session.get("http://noname.test/")
            assert isinstance(caught.value.__cause__, StreamClosed)
            with pytest.raises(aiohttp.ConnectionTimeoutError):
                await session.get("http://mute.test/", timeout=aiohttp.ClientTimeout(sock_connect=0.3))
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get("https://web.test/")
            async with session.get("http://cut.test/") as response:
                with pytest.raises(aiohttp.ClientError):
                    await response.read()

    asyncio.run(main())


def test_aiohttp_could_not_connect_past_tor(
    network: RunningNetwork, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a release of aiohttp connect in another way than the one that is replaced."""
    monkeypatch.delattr(torkit_aiohttp.Connector, "_wrap_create_connection")

    async def main() -> None:
        async with aiohttp_session(network, data_dir) as (_, session):
            for host in "web.test", "127.0.0.1":
                with pytest.raises(aiohttp.ClientConnectorError, match="past Tor"):
                    await session.get(f"http://{host}:{network.servers['web.test']}/page")

    asyncio.run(main())
