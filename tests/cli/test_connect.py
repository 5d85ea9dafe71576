"""`torkit connect` against a client in memory."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cli.shelf import Shelf
from doors import tls_contexts
from fake_tor import FakeTor, as_tor

from torkit.cli.connect import carry, words_of
from torkit.cli.failures import TIMED_OUT, WRONG_USAGE
from torkit.errors import EndReason, NotProven, StreamClosed, TimedOut, Unreachable, UsageError
from torkit.net.progress import Phase, Progress
from torkit.paths.text import path_to_json

WEB = ("web.test", 80)
SETTINGS: dict[str, Any] = {
    "path": None,
    "tls": False,
    "zero": False,
    "verbose": False,
    "wait": inf,
    "eof_timeout": inf,
    "idle_timeout": inf,
}


@pytest.fixture
def stdin() -> Iterator[int]:
    """The end that is written to; descriptor 0 is the other one."""
    saved = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    yield writing
    os.close(writing)
    os.dup2(saved, 0)
    os.close(saved)


async def test_stdin_and_stdout_are_on_the_stream(stdin: int, capfdbinary: Any) -> None:
    tor = FakeTor()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: carry(as_tor(tor), WEB, **SETTINGS))
        stream = await tor.streams.receive()
        os.write(stdin, b"ping")
        assert await stream.peer.receive_some() == b"ping"
        await stream.peer.send_all(b"\x00pong\xff")
        await stream.end()
    assert stream.has_ended.is_set()
    assert tor.asked == [("web.test", 80, None)]
    assert capfdbinary.readouterr() == (b"\x00pong\xff", b"")


async def test_zero_connects_and_ends_without_a_byte(stdin: int, capfd: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor()
    os.write(stdin, b"not for the peer")
    await carry(as_tor(tor), WEB, **SETTINGS | {"zero": True, "verbose": True})
    stream = await tor.streams.receive()
    assert stream.has_ended.is_set()
    output, said = capfd.readouterr()
    assert output == ""
    assert said.startswith("torkit: connected through ")
    assert os.read(0, 100) == b"not for the peer"


def test_the_relays_of_each_linked_circuit_are_named() -> None:
    directory = FakeTor().directory
    relays = [directory.relay_at(index) for index in range(5)]
    guard, middle, exit_, other_guard, other_middle = (relay for relay in relays if relay)
    first, second = (guard, middle, exit_), (other_guard, other_middle, exit_)
    names = [", ".join(relay.nickname for relay in path) for path in (first, second)]
    assert words_of((first,)) == names[0]
    assert words_of((first, second)) == f"{names[0]} and through {names[1]}"
    assert words_of(()) == "the proxy"


async def test_path_is_the_first_line_of_stdin_and_data_follows(stdin: int) -> None:
    tor = FakeTor()
    path = tuple(relay for index in (3, 4, 5) if (relay := tor.directory.relay_at(index)))
    os.write(stdin, path_to_json(path).encode() + b"\ndata")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: carry(as_tor(tor), WEB, **SETTINGS | {"path": "-"}))
        stream = await tor.streams.receive()
        assert stream.circuit.path == path
        assert await stream.peer.receive_some() == b"data"
        await stream.end()


async def test_path_is_named_by_fingerprints_and_nicknames() -> None:
    tor = FakeTor()
    path = tuple(relay for index in (1, 2, 3) if (relay := tor.directory.relay_at(index)))
    names = f"{path[0].nickname}, ${path[1].fingerprint},{path[2].fingerprint.lower()}"
    await carry(as_tor(tor), WEB, **SETTINGS | {"path": names, "zero": True})
    assert (await tor.streams.receive()).circuit.path == path


@pytest.mark.parametrize("path", ["nobody", "", "{", "0" * 40, '{"path": []}'])
async def test_path_that_names_nothing_is_refused(path: str) -> None:
    with pytest.raises(UsageError):
        await carry(as_tor(FakeTor()), WEB, **SETTINGS | {"path": path, "zero": True})


@pytest.mark.parametrize("says_end", [True, False])
async def test_tls_is_spoken_with_who_proves_the_name(
    stdin: int, capfdbinary: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says_end: bool
) -> None:
    context, _ = tls_contexts(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/web.test.pem")
    tor, failures = FakeTor(), []

    async def connect() -> None:
        try:
            await carry(as_tor(tor), ("web.test", 443), **SETTINGS | {"tls": True, "verbose": True})
        except StreamClosed as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        stream = await tor.streams.receive()
        server = trio.SSLStream(stream.peer, context, server_side=True, https_compatible=True)
        os.write(stdin, b"hello")
        assert await server.receive_some() == b"hello"
        await server.send_all(b"HELLO")
        if says_end:
            await server.unwrap()
        await stream.end()
    out, err = capfdbinary.readouterr()
    assert out == b"HELLO"
    assert b"by TLSv1.3" in err
    assert bool(failures) is not says_end


async def test_who_does_not_prove_the_name_is_sent_nothing(tmp_path: Path, stdin: int) -> None:
    context, _ = tls_contexts(tmp_path)
    tor = FakeTor()
    with pytest.RaisesGroup(NotProven):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: carry(as_tor(tor), ("web.test", 443), **SETTINGS | {"tls": True}))
            stream = await tor.streams.receive()
            os.write(stdin, b"secret")
            server = trio.SSLStream(stream.peer, context, server_side=True)
            with pytest.raises(trio.BrokenResourceError):
                await server.receive_some()
    assert stream.has_ended.is_set()


async def test_wait_limits_tls_too(autojump_clock: trio.testing.MockClock) -> None:
    tor = FakeTor()
    with pytest.raises(TimedOut, match="7 s"):
        await carry(as_tor(tor), ("web.test", 443), **SETTINGS | {"tls": True, "wait": 7})
    assert trio.current_time() == 7


async def test_wait_limits_the_time_to_connect(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(TimedOut, match="7 s"):
        await carry(as_tor(FakeTor(is_silent=True)), WEB, **SETTINGS | {"wait": 7})
    assert trio.current_time() == 7


async def test_wait_limits_the_start_too(autojump_clock: trio.testing.MockClock) -> None:
    tor = FakeTor(stuck_at=Progress(Phase.CONN, 5, None, Unreachable("nobody answers", hint="go online")))
    with pytest.raises(TimedOut, match=r"7 s, at 5%: connecting to .*; nobody answers") as caught:
        await carry(as_tor(tor), WEB, **SETTINGS | {"wait": 7, "zero": True})
    assert trio.current_time() == 7
    assert caught.value.hint == "go online"


def test_a_health_check_ends_though_the_only_authority_says_nothing(tmp_path: Path) -> None:
    """With -w, which did not count the start, it still ran after two minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        authority = f"a orport={silent.getsockname()[1]} v3ident={'AB' * 20} 127.0.0.1:1 {'CD' * 20}"
        (tmp_path / "network.toml").write_text(f'authorities = ["{authority}"]\ntesting = true\n')
        options = ["--network", f"{tmp_path}/network.toml", "--data-dir", f"{tmp_path}/data"]
        command = [sys.executable, "-m", "torkit", *options, "connect", "-w", "1", "-z", "web.test:80"]
        result = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (TIMED_OUT, b"")
    assert result.stderr.startswith(b"torkit: no connection within 1 s, at ")


async def test_wait_limits_how_long_a_path_may_take_to_come(stdin: int) -> None:
    os.write(stdin, b'{"path": ')
    with pytest.raises(TimedOut, match=r"within 0\.1 s"):
        await carry(as_tor(FakeTor()), WEB, **SETTINGS | {"wait": 0.1, "path": "-"})


async def test_wait_does_not_limit_the_stream(stdin: int, mock_clock: trio.testing.MockClock) -> None:
    tor = FakeTor()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: carry(as_tor(tor), WEB, **SETTINGS | {"wait": 7}))
        stream = await tor.streams.receive()
        mock_clock.jump(100)
        os.write(stdin, b"late")
        assert await stream.peer.receive_some() == b"late"
        await stream.end()


async def test_stream_that_fails_is_ended_and_reported(stdin: int) -> None:
    tor = FakeTor()
    with pytest.RaisesGroup(StreamClosed):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: carry(as_tor(tor), WEB, **SETTINGS))
            stream = await tor.streams.receive()
            await stream.end(EndReason.CONNRESET)
    assert stream.has_ended.is_set()


@pytest.mark.parametrize(
    "target", ["localhost:80", "[fe80::1]:80", "10.0.0.1:22", "a.onion:80", "web.exit:80"]
)
def test_what_no_exit_can_reach_is_refused_before_a_start(shelf: Shelf, target: str) -> None:
    (shelf.path / "data").mkdir()
    status, out, err = shelf("connect", target)
    assert (status, out) == (WRONG_USAGE, "")
    assert len(err.splitlines()) == 2
