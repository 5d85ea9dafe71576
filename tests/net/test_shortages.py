"""What this machine runs out of ends nobody, and is held against no relay."""

import ast
import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
import trio.testing
from served import build, connect, fresh_relays, open_stream, serve, serve_channel, serve_network
from trio._core import _thread_cache
from waiting import until

from torkit.client import open_tor
from torkit.errors import InternalError, OutOfResources
from torkit.net.circuit.stream import StreamBroken
from torkit.net.circuits import words
from torkit.net.late import LATE
from torkit.net.link.pump import Pump
from torkit.net.shortage import run_in_thread


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file and no socket can be opened meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread can be started meanwhile."""

    def start(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        patch.setattr(_thread_cache, "THREAD_CACHE", _thread_cache.ThreadCache())
        yield


async def test_a_client_waits_while_descriptors_are_short_and_blames_no_guard(tmp_path: Path) -> None:
    async with (
        serve_network(guards=3, exits=4) as network,
        open_tor(network=network.config, data_dir=tmp_path) as tor,
    ):
        await tor.wait_ready()
        async with await tor.connect("web.test", 80) as stream:
            guard = stream.path[0].nickname

        async def ask() -> None:
            async with await tor.connect("web.test", 80) as stream:
                assert stream.path[0].nickname == guard

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                with no_descriptors():
                    for relay in network.relays.values():
                        for link in relay.links:
                            link.close(abrupt=True)
                    nursery.start_soon(ask)
                    await trio.sleep(0.5)
    kept = json.loads((tmp_path / "state.json").read_text())["guards"]
    assert not any("failing_since" in one for one in kept)


async def test_a_connection_that_cannot_be_watched_is_not_its_relays_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program of the same user may take all that epoll can watch for a user."""

    def add_link(*_: object) -> NoReturn:
        raise OSError(ENOSPC, "No space left on device")

    (relay,) = fresh_relays(1)
    async with serve(relay):
        channel = await connect(relay)
        monkeypatch.setattr(Pump.current(), "add_link", add_link)
        await channel.run()
        with pytest.raises(OutOfResources):
            await build(channel, [relay])


async def test_where_no_thread_can_be_started_streams_go_on_and_guards_are_kept_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serve_network(guards=3, exits=4) as network,
        open_tor(network=network.config, data_dir=tmp_path, spare_circuits=0) as tor,
    ):
        await tor.wait_ready()
        with no_threads(monkeypatch):
            async with await tor.connect("web.test", 80):  # which confirms the guard
                await until(lambda: "the guards could not be kept: this machine can" in caplog.text)
        async with await tor.connect("web.test", 80):
            pass
    assert "confirmed_on" in (tmp_path / "state.json").read_text()


class NoMemory:
    """A core's channel for which there is no memory for a control cell."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def send_control(self, *_: object) -> NoReturn:
        raise MemoryError


async def test_streams_are_told_of_the_end_where_there_is_no_memory_for_a_destroy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The relay would keep the circuit, so its connection ends."""
    relays = fresh_relays(1)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        stream, _ = await open_stream(circuit, relays[0])
        monkeypatch.setattr(channel, "_core", NoMemory(channel._core))
        circuit.close()
        with pytest.raises(StreamBroken):
            await stream.receive_some()
        assert isinstance(channel.error, OutOfResources)


async def test_every_stream_is_told_of_the_end_though_a_watcher_raises() -> None:
    class Starved:
        def on_change(self) -> NoReturn:
            raise MemoryError

        def on_xon(self) -> None: ...

        def on_fault(self, error: InternalError) -> NoReturn:
            raise error

    relays = fresh_relays(1)
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        streams = [(await open_stream(circuit, relays[0]))[0] for _ in range(6)]
        for stream in streams[::2]:
            stream.watcher = Starved()
        with pytest.raises(InternalError, match="MemoryError"):
            circuit.close()
        assert all(stream.has_ended for stream in streams)


async def test_an_exception_in_a_thread_is_the_functions_own() -> None:
    def fail() -> NoReturn:
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError):
        await run_in_thread(fail)


async def test_an_exception_while_a_circuit_is_built_ends_that_circuit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> NoReturn:
        raise ValueError("web.test")

    async with (
        serve_network(guards=3, exits=4) as network,
        open_tor(network=network.config, data_dir=tmp_path, spare_circuits=0) as tor,
    ):
        await tor.wait_ready()
        with monkeypatch.context() as patch:
            patch.setattr(words, "note_built", fail)
            with pytest.raises(InternalError, match=r"an internal error \(ValueError\) ended a circuit"):
                await tor.connect("web.test", 80)
        async with await tor.connect("web.test", 80):
            pass
    assert "web.test" not in caplog.text


ROOT = Path(__file__).parents[2]
OF_NET = ("circuit", "circuits", "dir", "link", "proxy")
ROOMS = ("directory", "learnt", "net", *(f"net/{room}" for room in OF_NET), "paths", "proto")


def imports_within_functions(path: Path) -> set[str]:
    """The modules that a file imports when a function of it is called."""
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    found = (part for function in functions for part in ast.walk(function))
    names: set[str] = set()
    for node in found:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    return names


def test_what_a_proxy_may_import_late_is_loaded_once_it_serves() -> None:
    """An import may fail where no descriptor or memory is left, and the keeper of the directory with it."""
    files = [file for room in ROOMS for file in sorted((ROOT / "torkit" / room).glob("*.py"))]
    late = set[str]().union(*map(imports_within_functions, files))
    of_codecs = {"lzma", "compression", "backports"}
    contained = {name for name in late if name.startswith(("torkit.net.onion.", "torkit.net.hosting."))}
    of_the_start = {"trio._core._run"}
    assert late - of_codecs - contained - of_the_start == set(LATE)
