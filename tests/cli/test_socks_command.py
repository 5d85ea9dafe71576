"""`torkit socks` with a client in memory: when it says that it is ready, and where."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from fake_tor import FakeTor, as_tor

from torkit.cli.identities import check_identities, parse_isolation, parse_rotate
from torkit.cli.listen import Place, listening, parse_place, parse_places
from torkit.cli.socks import forget_ready_file
from torkit.cli.socks import serve as serve_on
from torkit.directory.directory import Relay
from torkit.errors import CircuitClosed, NoPath, StorageError, TorkitError, Unreachable, UsageError
from torkit.net.progress import Phase, Progress
from torkit.net.proxy import ISOLATION, NEVER, Isolate, Rotate
from torkit.net.proxy.isolation import Origin
from torkit.proto.request import Command, Request


class SlowTor(FakeTor):
    """Not ready until told."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_ready = trio.Event()

    async def wait_ready(self) -> None:
        await self.is_ready.wait()


@asynccontextmanager
async def open_listener() -> AsyncIterator[socket.socket]:
    with listening(Place("proxy", "127.0.0.1", 0)) as sock:
        yield sock


async def serve(
    tor: FakeTor,
    listener: socket.socket,
    path: str | None = None,
    ready_file: Path | None = None,
    as_json: bool = False,
) -> None:
    await serve_on(
        as_tor(tor),
        [(Place("proxy", "127.0.0.1"), listener)],
        path=path,
        isolation=ISOLATION,
        ready_file=ready_file,
        as_json=as_json,
    )


def ready_line(port: int) -> dict[str, object]:
    address = f"127.0.0.1:{port}"
    return {"socks": address, "listeners": [address], "pid": os.getpid()}


async def test_ready_file_tells_where_once_circuits_can_be_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tor = SlowTor()
    ready_file = tmp_path / "ready"
    async with open_listener() as listener, trio.open_nursery() as nursery:
        port = listener.getsockname()[1]
        nursery.start_soon(partial(serve, tor, listener, ready_file=ready_file))
        await trio.testing.wait_all_tasks_blocked()
        assert not ready_file.exists()
        tor.is_ready.set()
        await trio.testing.wait_all_tasks_blocked()
        [line] = ready_file.read_text().splitlines()
        assert json.loads(line) == ready_line(port)
        assert capsys.readouterr() == ("", f"torkit: socks proxy ready on 127.0.0.1:{port}\n")
        nursery.cancel_scope.cancel()


async def test_the_ready_file_goes_with_the_proxy(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    async with open_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, FakeTor(), listener, ready_file=ready_file))
        await trio.testing.wait_all_tasks_blocked()
        assert ready_file.exists()
        nursery.cancel_scope.cancel()
    assert not ready_file.exists()


async def test_the_ready_file_of_another_proxy_stays(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    async with open_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, FakeTor(), listener, ready_file=ready_file))
        await trio.testing.wait_all_tasks_blocked()
        (tmp_path / "other").write_text("another's")
        (tmp_path / "other").replace(ready_file)
        nursery.cancel_scope.cancel()
    assert ready_file.read_text() == "another's"


async def test_a_named_pipe_is_told_and_the_proxy_does_not_wait_for_its_reader(tmp_path: Path) -> None:
    pipe = tmp_path / "ready"
    os.mkfifo(pipe)
    forget_ready_file(pipe)
    async with open_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, FakeTor(), listener, ready_file=pipe))
        await trio.testing.wait_all_tasks_blocked()
        async with await trio.open_file(pipe) as reader:
            assert "socks" in json.loads(await reader.read())
        nursery.cancel_scope.cancel()
    assert pipe.is_fifo()


def test_a_ready_file_of_an_earlier_proxy_is_removed_first(tmp_path: Path) -> None:
    (tmp_path / "ready").write_text("old")
    forget_ready_file(tmp_path / "ready")
    assert not (tmp_path / "ready").exists()


@pytest.mark.parametrize("name", ["missing/ready", ".", "file/ready"])
def test_a_place_where_no_ready_file_can_be_is_noticed_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="directory"):
        forget_ready_file(tmp_path / name)


async def test_programs_get_progress_and_address_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_listener() as listener, trio.open_nursery() as nursery:
        port = listener.getsockname()[1]
        nursery.start_soon(partial(serve, FakeTor(), listener, as_json=True))
        await trio.testing.wait_all_tasks_blocked()
        out, err = capsys.readouterr()
        start, done, ready = map(json.loads, out.splitlines())
        assert (start["tag"], done["tag"], done["progress"]) == ("starting", "done", 100)
        assert ready == ready_line(port)
        assert err == f"torkit: socks proxy ready on 127.0.0.1:{port}\n"
        nursery.cancel_scope.cancel()


async def test_programs_get_no_line_twice(capsys: pytest.CaptureFixture[str]) -> None:
    class RetryingTor(FakeTor):
        async def progress_changes(self) -> AsyncIterator[Progress]:
            for _ in range(3):
                yield Progress(error=Unreachable("nobody answers"))
            yield Progress(Phase.DONE, 100)

    async with open_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, RetryingTor(), listener, as_json=True))
        await trio.testing.wait_all_tasks_blocked()
        blocked, done, _ready = map(json.loads, capsys.readouterr().out.splitlines())
        assert blocked["blockage"]["message"] == "nobody answers"
        assert done["progress"] == 100
        nursery.cancel_scope.cancel()


async def test_clients_that_come_early_are_served_when_ready() -> None:
    tor = SlowTor()
    async with open_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, tor, listener))
        async with await trio.open_tcp_stream(*listener.getsockname()) as client:
            await client.send_all(b"\x05\x01\x00")
            tor.is_ready.set()
            assert await client.receive_some() == b"\x05\x00"
        nursery.cancel_scope.cancel()


def path_to(tor: FakeTor, *, port: int | None) -> tuple[Relay, ...]:
    """Two relays, and an exit for this port, or for None a relay that is none."""
    relays = [relay for index in range(9) if (relay := tor.directory.relay_at(index))]
    if port is None:
        last = next(relay for relay in relays if relay.policy.rejects_all)
    else:
        last = next(relay for relay in relays if relay.policy.accepts(port))
    return (*[relay for relay in relays if relay is not last][:2], last)


async def test_every_stream_takes_the_given_path(capsys: pytest.CaptureFixture[str]) -> None:
    tor = SlowTor()
    path = path_to(tor, port=80)
    names = ",".join(relay.fingerprint for relay in path)
    async with open_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, tor, listener, path=names))
        await trio.testing.wait_all_tasks_blocked()
        assert "ready" not in capsys.readouterr().err
        tor.is_ready.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [(circuit.path, circuit.is_closed) for circuit in tor.circuits] == [(path, True)]
        assert "ready" in capsys.readouterr().err
        tor.failure = NoPath("none")
        async with await trio.open_tcp_stream(*listener.getsockname()) as client:
            await client.send_all(b"\x05\x01\x00\x05\x01\x00\x03\x08web.test\x00\x50")
            assert await client.receive_some() == b"\x05\x00"
            assert (await client.receive_some())[:2] == b"\x05\x02"
            assert tor.paths == [path]
        nursery.cancel_scope.cancel()


async def test_a_path_that_ends_at_no_exit_never_is_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tor = FakeTor()
    path = path_to(tor, port=None)
    names = ",".join(relay.fingerprint for relay in path)
    async with open_listener() as listener:
        with pytest.RaisesGroup(
            pytest.RaisesExc(NoPath, match=f"{path[-1].nickname}'s exit policy allows no")
        ):
            await serve(tor, listener, path=names, ready_file=tmp_path / "ready")
    assert tor.circuits == []
    assert not (tmp_path / "ready").exists()
    assert "ready" not in capsys.readouterr().err


async def test_a_path_that_cannot_be_built_never_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor(failure=CircuitClosed("middle1: the relay ended the circuit"))
    names = ",".join(relay.fingerprint for relay in path_to(tor, port=80))
    async with open_listener() as listener:
        with pytest.RaisesGroup(pytest.RaisesExc(CircuitClosed, match="middle1")):
            await serve(tor, listener, path=names)
    assert "ready" not in capsys.readouterr().err


async def test_address_in_use_is_a_declared_error() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(TorkitError, match="in use") as caught,
    ):
        listening(Place("proxy", "127.0.0.1", other.getsockname()[1])).__enter__()
    assert "--listen 0" in (caught.value.hint or "")


async def test_address_of_another_computer_is_not_taken_for_a_port_in_use() -> None:
    with pytest.raises(TorkitError, match="Cannot assign") as caught:
        listening(Place("proxy", "192.0.2.1", 9150)).__enter__()  # TEST-NET-1: nobody has it
    assert "no network of this computer" in (caught.value.hint or "")


async def test_a_signal_brings_a_new_identity(capsys: pytest.CaptureFixture[str]) -> None:
    tor = FakeTor()
    async with open_listener() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve, tor, listener)
        await trio.testing.wait_all_tasks_blocked()
        assert tor.identities == 1
        os.kill(os.getpid(), signal.SIGUSR1)
        with trio.fail_after(10):
            while tor.identities == 1:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


def test_a_signal_that_comes_early_ends_nothing() -> None:
    """Before the proxy serves: its default would be the end of the process."""
    script = (
        "import os, signal, torkit.cli.socks as command\n"
        "command.run = lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR1)\n"
        "raise SystemExit(command.app([], standalone_mode=False))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], check=False)
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("text", "rotate"),
    [
        (None, NEVER),
        ("10m", Rotate(seconds=600)),
        ("90s", Rotate(seconds=90)),
        ("2h", Rotate(seconds=7200)),
        ("20uses", Rotate(uses=20)),
        ("1use", Rotate(uses=1)),
    ],
)
def test_when_identities_change(text: str | None, rotate: Rotate) -> None:
    assert parse_rotate(text) == rotate


@pytest.mark.parametrize(
    "text", ["", "10", "m", "9s", "0uses", "-1m", "1.5h", "1d", "2m2uses", "9" * 7 + "s"]
)
def test_what_is_no_time_and_no_number_of_uses(text: str) -> None:
    with pytest.raises(UsageError, match="--rotate"):
        parse_rotate(text)


def test_what_is_used_once_is_not_rotated() -> None:
    with pytest.raises(UsageError, match="--rotate"):
        check_identities(frozenset({Isolate.STREAM}), Rotate(uses=2))


def as_set(key: Any) -> set[object]:
    return set(key)


async def test_a_listener_may_have_an_isolation_of_its_own() -> None:
    texts = [
        "9151",
        "9152,rotate=10m",
        "dns:9153,isolate=dest-addr+auth,rotate=3uses",
        "unix:/a,b=c,isolate=stream",
    ]
    first, second, third, fourth = parse_places(
        texts, allow_remote=False, isolate=frozenset({Isolate.CLIENT})
    )
    assert first == Place("proxy", "127.0.0.1", 9151)
    assert second[:3] == ("proxy", "127.0.0.1", 9152)
    assert third[:3] == ("dns", "127.0.0.1", 9153)
    assert fourth[:2] == ("unix", "/a,b=c")
    web = Request(Command.CONNECT, "web.test", 80)
    keys = []
    for place in (second, third, fourth):
        assert place.isolation is not None
        keys.append([Origin("client", place.name, place.isolation).key(web) for _ in range(4)])
    assert len(set(keys[0])) == 1
    assert {"client", second.name} <= as_set(keys[0][0])
    assert {"web.test", third.name} <= as_set(keys[1][0])
    assert [keys[1].index(key) for key in keys[1]] == [0, 0, 0, 3]
    assert len(set(keys[2])) == 4


@pytest.mark.parametrize(
    "text", ["9150,rotate=1s", "9150,isolate=x", "9150,isolate=stream,rotate=2uses", "9150,x=1"]
)
def test_what_no_listener_can_have(text: str) -> None:
    with pytest.raises(UsageError):
        parse_places([text], allow_remote=False)


def test_isolation_is_named_as_in_c_tor(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_isolation(None) == ISOLATION
    assert parse_isolation("auth,client,listener, dest-addr") == ISOLATION | {Isolate.DEST_ADDR}
    assert parse_isolation("stream") == {Isolate.STREAM}
    assert capsys.readouterr().err == ""
    assert parse_isolation("dest-port") == {Isolate.DEST_PORT}
    assert "without auth, client, listener" in capsys.readouterr().err
    with pytest.raises(UsageError, match="'port' is none of auth, client"):
        parse_isolation("auth,port")


def test_too_few_descriptors_are_an_error_at_the_start(tmp_path: Path) -> None:
    """A limit of 64 left room for no client: the proxy was ready and never accepted."""
    command = [
        sys.executable,
        "-m",
        "torkit",
        "--data-dir",
        str(tmp_path),
        "socks",
        "--listen",
        "127.0.0.1:0",
    ]
    script = 'ulimit -n 80; exec "$@"'
    ended = subprocess.run(["sh", "-c", script, "sh", *command], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "may open 80 files, and a proxy needs 96" in ended.stderr
    assert "ulimit" in ended.stderr


# --- where it listens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9150", Place("proxy", "127.0.0.1", 9150)),
        ("localhost:9150", Place("proxy", "127.0.0.1", 9150)),
        ("unix:/run/x:y", Place("unix", "/run/x:y")),
        ("auth:9151", Place("auth", "127.0.0.1", 9151)),
        ("dns:5353", Place("dns", "127.0.0.1", 5353)),
        ("dns:[::1]:5353", Place("dns", "::1", 5353)),
        ("trans:127.0.0.2:9040", Place("trans", "127.0.0.2", 9040)),
    ],
)
def test_places_to_listen_have_kinds(text: str, place: Place) -> None:
    assert parse_place(text) == place
    assert parse_place(place.name) == place


@pytest.mark.parametrize("text", ["unix:", "dns:", "trans:x", "http:9150", "dns:unix:/x"])
def test_other_places_to_listen_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_place(text)


@pytest.mark.parametrize("text", ["192.0.2.1:9150", "0.0.0.0:9150", "[::]:9150", "dns:192.0.2.1:53"])
def test_other_machines_are_served_only_if_that_is_said(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="no") as caught:
        parse_places([text], allow_remote=False)
    assert "--allow-remote" in (caught.value.hint or "")
    assert capsys.readouterr().err == ""
    assert parse_places([text], allow_remote=True) == [parse_place(text)]
    assert "other machines may use this proxy" in capsys.readouterr().err


def test_a_unix_socket_is_for_this_user_alone_and_goes_with_the_proxy(tmp_path: Path) -> None:
    path = tmp_path / "proxy"
    with listening(parse_place(f"unix:{path}")):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(TorkitError, match="in use"):
            listening(parse_place(f"unix:{path}")).__enter__()
    assert not path.exists()


def test_a_unix_socket_that_nobody_listens_at_is_replaced_and_no_other_file_is(tmp_path: Path) -> None:
    path = tmp_path / "proxy"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with listening(parse_place(f"unix:{path}")):
        pass
    path.write_text("kept")
    with pytest.raises(TorkitError, match="in use"):
        listening(parse_place(f"unix:{path}")).__enter__()
    assert path.read_text() == "kept"


async def test_every_kind_of_listener_is_named_when_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"unix:{tmp_path}/proxy", "dns:0", "trans:0", "auth:0", "0"]
    with ExitStack() as stack:
        opened = [(place, stack.enter_context(listening(place))) for place in map(parse_place, texts)]
        async with trio.open_nursery() as nursery:
            settings: dict[str, Any] = {
                "path": None,
                "isolation": ISOLATION,
                "ready_file": None,
                "as_json": True,
            }
            nursery.start_soon(partial(serve_on, as_tor(FakeTor()), opened, **settings))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["socks"] == f"unix:{tmp_path}/proxy"
    assert [name.rpartition(":")[0] for name in line["listeners"]] == [
        *("unix", "dns:127.0.0.1", "trans:127.0.0.1", "auth:127.0.0.1", "127.0.0.1"),
    ]
