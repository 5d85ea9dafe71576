"""The library's face: what `torkit` shows, the defaults of `open_tor`, clients apart, TLS in one call."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import trio
from doors import tls_contexts
from served import FarStream, serve_network

import torkit
from torkit.config import chosen_data_dir, load_network
from torkit.errors import StreamClosed, UsageError
from torkit.testing.relay import FakeStream, answer_begin

IDENT, PRINT = "AB" * 20, "cd" * 20
NETWORK_FILE = f"authorities = ['alone v3ident={IDENT} 127.0.0.1:1 {PRINT}']\ntesting = true\n"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    path = tmp_path / "network.toml"
    path.write_text(NETWORK_FILE)
    return path


def test_dir_shows_the_public_names_and_no_others() -> None:
    shown = python("import torkit; torkit.open_tor; print(*dir(torkit))").split()
    assert shown == sorted(torkit.__all__)
    for name in shown:
        assert getattr(torkit, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'TYPE'"):
        _ = torkit.TYPE


def test_the_version_is_that_of_the_package() -> None:
    assert torkit.__version__ == version("torkit")


def test_an_import_brings_nothing_along() -> None:
    """It takes a few milliseconds: trio, or even typing, would be most of it."""
    added = python(
        "import sys; before = set(sys.modules); import torkit; print(*(set(sys.modules) - before))"
    )
    assert added.split() == ["torkit"]


async def test_a_client_without_arguments_is_that_of_the_environment(
    tmp_path: Path, network_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORKIT_NETWORK", str(network_file))
    monkeypatch.setenv("TORKIT_DATA_DIR", str(tmp_path / "data"))
    async with torkit.open_tor() as tor:
        assert tor.network == load_network(network_file)
    assert (tmp_path / "data").is_dir()


@pytest.mark.parametrize("kind", [str, Path])
async def test_files_are_named_by_strings_and_by_paths(
    tmp_path: Path, network_file: Path, kind: Callable[[str], "str | Path"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORKIT_DATA_DIR", str(tmp_path / "unused"))
    place = tmp_path / "named"
    async with torkit.open_tor(network=kind(str(network_file)), data_dir=kind(str(place))) as tor:
        assert tor.network == load_network(str(network_file))
    assert place.is_dir()
    assert not (tmp_path / "unused").exists()


def test_an_empty_variable_is_none(
    tmp_path: Path, network_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORKIT_DATA_DIR", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    network = load_network(network_file)
    assert chosen_data_dir(network, None) == tmp_path / "torkit" / network.name


async def test_a_network_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="no-test-may-reach-the-public-network"):
        async with torkit.open_tor():
            pass


def test_outside_of_trio_it_is_said_what_to_use() -> None:
    async def main() -> None:
        async with torkit.open_tor():
            pass

    with pytest.raises(UsageError, match=r"torkit\.aio\.open_tor under asyncio.*torkit\.blocking\.open_tor"):
        asyncio.run(main())


async def test_isolated_clients_share_no_circuit(tmp_path: Path) -> None:
    async with (
        serve_network() as network,
        torkit.open_tor(network=network.config, data_dir=tmp_path) as tor,
    ):
        await tor.wait_ready()
        one, other = tor.isolated(), tor.isolated()
        streams = [await client.connect("web.test", 80) for client in (tor, one, other, one.isolated())]
        assert len({stream.circuit.id for stream in streams}) == 4
        again = await one.connect("other.test", 80)
        assert again.circuit is streams[1].circuit
        apart = await one.connect("web.test", 80, isolation="session")
        same = await other.connect("web.test", 80, isolation="session")
        assert len({apart.circuit.id, same.circuit.id, *(stream.circuit.id for stream in streams)}) == 6


async def test_tls_in_one_call(tmp_path: Path) -> None:
    server_context, context = tls_contexts(tmp_path)
    async with (
        serve_network() as network,
        torkit.open_tor(network=network.config, data_dir=tmp_path / "data") as tor,
        trio.open_nursery() as nursery,
    ):
        await tor.wait_ready()

        async def echo(stream: FakeStream) -> None:
            far = trio.SSLStream(FarStream(stream), server_context, server_side=True)
            try:
                await far.send_all((await far.receive_some()).upper())
            except trio.BrokenResourceError:
                await far.transport_stream.aclose()

        def begin(stream: FakeStream) -> None:
            answer_begin(stream)
            nursery.start_soon(echo, stream)

        def cut(stream: FakeStream) -> None:
            answer_begin(stream)
            stream.end(1)

        exits = [relay for name, relay in network.relays.items() if name.startswith("exit")]
        for relay in exits:
            relay.on_begin = begin
        tls = await tor.connect_tls("web.test", 443, ssl_context=context)
        await tls.send_all(b"hello")
        assert await tls.receive_some() == b"HELLO"
        with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
            await tor.connect_tls("other.test", 443, ssl_context=context)
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
            await tor.connect_tls("web.test", 443)
        for relay in exits:
            relay.on_begin = cut
        with pytest.raises(StreamClosed):
            await tor.connect_tls("web.test", 443, ssl_context=context)
        nursery.cancel_scope.cancel()
