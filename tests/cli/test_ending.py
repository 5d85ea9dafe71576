"""How a service ends: SIGTERM and the seconds after it, and the end of the process that started it."""

import os
import signal
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from fake_tor import FakeTor, as_tor

from torkit.cli import ending
from torkit.cli.ending import INITIAL_PID_NAMESPACE, drain_on_sigterm, end_with_parent, is_orphan
from torkit.cli.listen import Place, listening
from torkit.cli.socks import serve
from torkit.net.proxy import ISOLATION

SAID = "torkit: connections that still went on after 30 s were ended\n"


async def drain(scope: trio.CancelScope, is_ending: trio.Event) -> None:
    with scope:
        await drain_on_sigterm(is_ending, 30, scope)


async def test_sigterm_leaves_time_and_then_no_more(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    scope, is_ending = trio.CancelScope(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, scope, is_ending)
        await trio.sleep(100)
        assert not is_ending.is_set()
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep(29)
        assert is_ending.is_set()
        assert not scope.cancel_called
        await trio.sleep(2)
        assert scope.cancel_called
    assert capsys.readouterr().err == SAID


async def test_another_sigterm_ends_at_once(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    scope, is_ending = trio.CancelScope(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, scope, is_ending)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            assert not scope.cancel_called
            signal.raise_signal(signal.SIGTERM)
            await trio.sleep(1)
        assert scope.cancel_called
    assert capsys.readouterr().err == ""


async def test_a_proxy_ends_with_its_last_client_and_its_ready_file_before_that(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    with listening(Place("proxy", "127.0.0.1", 0)) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(
                    serve,
                    as_tor(FakeTor(is_silent=True)),
                    [(Place("proxy", "127.0.0.1"), sock)],
                    path=None,
                    isolation=ISOLATION,
                    ready_file=ready_file,
                    grace=30,
                )
            )
            await trio.testing.wait_all_tasks_blocked()
            address = sock.getsockname()
            with socket.create_connection(address) as client:
                client.sendall(b"\x05\x01\x00\x05\x01\x00\x03\x08web.test\x00\x50")
                await trio.testing.wait_all_tasks_blocked()
                assert ready_file.exists()
                signal.raise_signal(signal.SIGTERM)
                await trio.testing.wait_all_tasks_blocked()
                assert not ready_file.exists()
                with pytest.raises(ConnectionRefusedError):
                    await trio.to_thread.run_sync(socket.create_connection, address)
                assert nursery.child_tasks
            with trio.fail_after(10):
                while nursery.child_tasks:
                    await trio.sleep(0.01)


# --- with the parent ------------------------------------------------------------------------------------


@pytest.fixture
def parents(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Who the parent of this process is, one look after another; the last for ever."""
    parents = [4711]
    fake = SimpleNamespace(getppid=lambda: parents.pop(0) if len(parents) > 1 else parents[0], stat=os.stat)
    monkeypatch.setattr(ending, "os", fake)
    return parents


@pytest.mark.parametrize("looks", [[4711, 4711, 1], [4711, 815], [1], [815]])
async def test_the_end_of_the_parent_is_a_sigterm(
    looks: list[int], parents: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever inherits orphans, process 1 or another, and be it before the first look."""
    parents[:] = looks
    with trio.open_signal_receiver(signal.SIGTERM) as signals, trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_with_parent, 4711)
            assert await anext(signals) == signal.SIGTERM
            nursery.cancel_scope.cancel()
    assert len(parents) == 1


async def test_a_parent_that_lives_ends_nothing(
    parents: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(10_000) as scope:
        await end_with_parent(4711)
    assert scope.cancelled_caught


def test_a_child_of_process_1_is_an_orphan_but_in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_orphan(4711)
    for inode, expected in ((INITIAL_PID_NAMESPACE, True), (INITIAL_PID_NAMESPACE + 5, False)):
        monkeypatch.setattr(os, "stat", lambda path, inode=inode: SimpleNamespace(st_ino=inode))
        assert is_orphan(1) is expected

    def fail(path: str) -> os.stat_result:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "stat", fail)
    assert is_orphan(1)
