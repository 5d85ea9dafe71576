"""What a client keeps for its next start, and what it does with a state that is damaged."""

import fcntl
import json
import time
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, TextIO

import pytest
import trio
import trio.testing
from served import serve_network
from served_tor import served_tor
from waiting import until

from torkit.client import Tor, open_tor
from torkit.directory.cache import Cache
from torkit.errors import (
    NoDirectory,
    NoGuard,
    OutOfResources,
    StorageError,
    TorkitError,
)
from torkit.learnt.build_times import INITIAL
from torkit.net import state
from torkit.net.current import TESTING_MIN_TIMEOUT
from torkit.net.state import load_state
from torkit.paths.constraints import Constraints


async def test_a_disk_that_is_full_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the guards of a first start can be kept, nor what is learnt of them."""
    calls = 0

    def fail(_cache: Cache, _values: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        raise StorageError("state.json: No space left on device")

    monkeypatch.setattr(Cache, "update_state", fail)
    monkeypatch.setattr(Cache, "add_to_state", fail)
    async with served_tor(tmp_path) as (tor, _), await tor.connect("web.test", 80):
        pass
    assert calls > 1
    assert [record.message for record in caplog.records if "could not be kept" in record.message] == [
        "the guards could not be kept: state.json: No space left on device"
    ]


class Changing:
    """A part of the state; what is kept of it is how often it was asked."""

    has_changed = False
    asked = 0

    def to_state(self) -> dict[str, Any]:
        self.asked += 1
        return {"asked": self.asked}


@pytest.mark.parametrize("error", [StorageError("No space left on device"), OutOfResources("no thread")])
async def test_a_disk_that_is_full_is_not_written_to_for_each_change(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    error: TorkitError,
) -> None:
    """A crowd's circuits change the guards a hundred times a second."""
    is_full = True
    calls = 0

    async def write(_write: object, _values: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        await trio.sleep(0.1)
        if is_full:
            raise error

    monkeypatch.setattr(state, "run_in_thread", write)
    part, file = Changing(), state.StateFile(Cache(tmp_path))
    file.add(part, is_watched=True)

    async def change() -> None:
        for _ in range(100):
            part.has_changed = True
            file.save_soon(nursery)
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        await change()
        assert calls == 1
        await trio.sleep(state.SAVE_RETRY)
        is_full = False
        await change()
        await trio.sleep(1)
        assert not part.has_changed
        assert calls < 20  # one at a time, and one that waits has all changes


async def test_a_state_that_cannot_be_read_is_set_aside_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state.json").write_bytes(b'{"guards": [')
    async with served_tor(tmp_path) as (tor, _):
        await tor.connect("web.test", 80)
    assert (tmp_path / "state.json.damaged-1").read_bytes() == b'{"guards": ['
    assert "state.json.damaged-1" in caplog.text
    assert len(json.loads((tmp_path / "state.json").read_text())["guards"]) == 2


async def test_of_a_state_the_good_is_kept_and_the_whole_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_network(guards=3) as network:
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            guard = (await tor.connect("web.test", 80)).path[0]
        state = json.loads((tmp_path / "state.json").read_text())
        assert state["guards"][0]["fingerprint"] == guard.fingerprint
        state["guards"].insert(0, {"fingerprint": "none"})
        state["of a later version"] = {"n": 1}
        text = json.dumps(state)
        (tmp_path / "state.json").write_text(text)
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            assert (await tor.connect("web.test", 80)).path[0] == guard
        assert (tmp_path / "state.json.damaged-1").read_text() == text
        assert "guards, entry 1: " in caplog.text
        kept = json.loads((tmp_path / "state.json").read_text())
        # What is counted of circuits goes on, but for those that were open at the end.
        before, after = (one.pop("path_bias") for one in (state["guards"][1], kept["guards"][0]))
        assert after["circ_attempts"] > before["circ_attempts"] == before["circ_successes"]
        assert after["use_attempts"] > before["use_attempts"] == before["use_successes"]
        assert kept["guards"] == state["guards"][1:]
        assert kept["of a later version"] == {"n": 1}
        assert sum(kept["build_times"].values()) > sum(state["build_times"].values())


@pytest.mark.parametrize(
    "text", ['{"guards": [', '{"guards": [{"fingerprint": "none"}], "build_times": {"1": NaN}}']
)
def test_a_state_that_another_start_has_mended_meanwhile_is_left_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The second start set the good file of the first aside, and each went on with guards of its own."""
    path = tmp_path / "state.json"
    path.write_text(text)
    good = {"guards": [{"fingerprint": "0A" * 20, "sampled_on": "2026-11-01T10:00:00"}]}
    locked = Cache._locked

    def start(cache: Cache) -> list[bytes]:
        _, guards = load_state(cache, Constraints(), Random(1), time.time())
        return [guard.identity for guard in guards.sample]

    def be_overtaken(cache: Cache) -> AbstractContextManager[None]:
        monkeypatch.setattr(Cache, "_locked", locked)
        other = Cache(tmp_path)
        assert start(other) == []
        other.update_state(good)
        return locked(cache)

    monkeypatch.setattr(Cache, "_locked", be_overtaken)
    assert start(Cache(tmp_path)) == [bytes([10]) * 20]
    assert json.loads(path.read_text())["guards"] == good["guards"]
    assert [one.read_text() for one in tmp_path.glob("*.damaged-*")] == [text]
    path.write_text(text)
    assert start(Cache(tmp_path)) == []
    assert len([*tmp_path.glob("*.damaged-*")]) == 2


def test_of_a_state_cut_off_anywhere_nothing_is_lost_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [{"fingerprint": f"{n:02X}" * 20, "sampled_on": "2026-11-01T10:00:00"} for n in range(3)]
    text = json.dumps({"build_times": {"105": 3}, "guards": entries}).encode()
    aside = tmp_path / "state.json.damaged-1"
    for length in range(len(text)):
        (tmp_path / "state.json").write_bytes(text[:length])
        state, guards = load_state(Cache(tmp_path), Constraints(), Random(1), time.time())
        assert (state, guards.sample) == ({}, [])
        assert aside.read_bytes() == text[:length]
        assert str(aside) in caplog.text
        aside.unlink()
        caplog.clear()


def guards_without_counts(state: Path) -> list[dict[str, Any]]:
    """Those of a state file; what path bias counts goes on while circuits are used."""
    guards = json.loads(state.read_text())["guards"]
    return [{name: value for name, value in guard.items() if name != "path_bias"} for guard in guards]


async def test_a_state_damaged_while_a_client_runs_costs_no_guard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state.json"
    async with served_tor(tmp_path) as (tor, _):
        await tor.connect("web.test", 80)
        with trio.fail_after(10):
            while not state.exists():
                await trio.sleep(0.01)
        # Only what has changed is saved, from now on the build times.
        await tor._parts.state.save()
        guards = guards_without_counts(state)
        state.write_text("{")
        for isolation in range(5):  # more than were built ahead
            await tor.connect("web.test", 80, isolation=isolation)
    assert guards_without_counts(state) == guards
    assert (tmp_path / "state.json.damaged-1").read_text() == "{"
    assert "kept as" in caplog.text


async def test_first_starts_at_once_agree_on_their_guards(tmp_path: Path) -> None:
    """Each would draw its own, and the last to save would change the others' guard at their next start."""
    async with serve_network(guards=5) as network, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_tor(network=network.config, data_dir=tmp_path))
            for _ in range(4)
        ]
        for tor in clients:
            await tor.wait_ready()
        used = {(await tor.connect("web.test", 80)).path[0].nickname for tor in clients}
        orders = [[guard.identity for guard in tor._parts.guards.guards.sample] for tor in clients]
    assert len(used) == 1
    assert orders == [orders[0]] * 4
    kept = json.loads((tmp_path / "state.json").read_text())["guards"]
    assert [bytes.fromhex(guard["fingerprint"]) for guard in kept] == orders[0]


def hold_lock(directory: Path) -> TextIO:
    """As another process does, until it is closed."""
    lock = (directory / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


async def test_guards_are_agreed_upon_while_the_loop_goes_on(tmp_path: Path) -> None:
    async with (
        serve_network(guards=3) as network,
        open_tor(network=network.config, data_dir=tmp_path) as tor,
    ):
        lock = hold_lock(tmp_path)
        with trio.move_on_after(0.3) as waiting:  # the loop goes on
            await tor.wait_ready()
        assert waiting.cancelled_caught
        with pytest.raises((NoDirectory, NoGuard)):
            tor.choose_path(Constraints(port=80))
        lock.close()
        await tor.wait_ready()
        assert json.loads((tmp_path / "state.json").read_text())["guards"]
        assert (await tor.connect("web.test", 80)).path[0].fingerprint in (
            tmp_path / "state.json"
        ).read_text()


async def test_a_damaged_state_is_set_aside_while_the_loop_goes_on(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    lock = hold_lock(tmp_path)

    async def release() -> None:
        await trio.sleep(0.1)
        lock.close()

    async with serve_network() as network, trio.open_nursery() as nursery:
        nursery.start_soon(release)
        async with open_tor(network=network.config, data_dir=tmp_path):
            assert (tmp_path / "state.json.damaged-1").read_text() == "{"


async def test_build_times_are_kept_but_never_trusted_below_seconds_on_a_private_network(
    tmp_path: Path,
) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"build_times": {"105": 99}}))
    async with served_tor(tmp_path) as (tor, _):
        assert tor._parts.build_times.timeouts == INITIAL
        await tor.connect("web.test", 80)
        assert tor._parts.build_times.timeouts.use == TESTING_MIN_TIMEOUT / 1000
    kept = json.loads((tmp_path / "state.json").read_text())
    assert sum(kept["build_times"].values()) >= 100


async def test_a_guard_of_an_older_state_is_kept(tmp_path: Path) -> None:
    async with serve_network(guards=3) as network:
        old = network.relays["guard2"].rsa_identity.hex().upper()
        (tmp_path / "state.json").write_text(json.dumps({"guards": [{"fingerprint": old}]}))
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            assert (await tor.connect("web.test", 80)).path[0].fingerprint == old


@pytest.mark.parametrize("days", [-365, 365])
async def test_a_start_by_a_clock_that_is_a_year_off_costs_the_next_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    caplog.set_level("INFO")
    now = time.time

    async def connect(tor: Tor) -> str:
        await tor.wait_ready()
        return (await tor.connect("web.test", 80)).path[0].fingerprint

    async with serve_network(guards=3) as network:
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            guard = await connect(tor)
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: now() + days * 86400)
            async with open_tor(network=network.config, data_dir=tmp_path):
                await until(lambda: "cannot be brought up to date" in caplog.text)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            assert await connect(tor) == guard
    assert "is the clock of this computer right?" in caplog.text
