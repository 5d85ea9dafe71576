"""A client that runs, and what happens to laptops: suspend, another network, a clock that somebody sets."""

import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from errno import ENETUNREACH
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import waiting
from served import ServedNetwork, serve_network
from warned import warnings

from torkit.client import Tor, open_tor
from torkit.errors import NoDirectory, TimedOut
from torkit.paths.constraints import Constraints

MINUTE = 60.0
HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps to the next deadline when for a while nothing moved: the sockets' other ends are in here too."""
    return trio.testing.MockClock(autojump_threshold=0.1)


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the wall clock so many seconds ahead of what it should be; the other one goes on as it did."""
    real_time = time.time

    def set_clock(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real_time() + seconds)

    return set_clock


@asynccontextmanager
async def client(data_dir: Path) -> AsyncIterator[tuple[Tor, ServedNetwork]]:
    """A client with a guard of three, that has learnt to wait 5 s for a circuit on such a network."""
    (data_dir / "state.json").write_text(json.dumps({"build_times": {"105": 100}}))
    async with (
        serve_network(guards=3, exits=4) as network,
        open_tor(network=network.config, data_dir=data_dir) as tor,
    ):
        await tor.wait_ready()
        yield tor, network


async def use(tor: Tor) -> tuple[str, float]:
    """The guard of a new stream, and how many seconds it took to connect."""
    begun = trio.current_time()
    async with await tor.connect("web.test", 80) as stream:
        return stream.path[0].nickname, trio.current_time() - begun


async def guards_of(data_dir: Path) -> list[str]:
    """As they are kept, the guard in use first."""
    state = data_dir / "state.json"
    await until(lambda: "guards" in state.read_text(), seconds=MINUTE)
    return [guard["fingerprint"] for guard in json.loads(state.read_text())["guards"]]


def blockage(tor: Tor) -> str:
    """Why there is no directory; nothing if there is one."""
    try:
        tor.choose_path(Constraints(port=80))
    except NoDirectory as error:
        return str(error)
    return ""


def silence(network: ServedNetwork) -> None:
    """Let nothing come or go any more on the connections there are; new ones work."""
    for relay in network.relays.values():
        for link in relay.links:
            link.receive = lambda data: b""  # type: ignore[method-assign]  # deaf
            link.take = lambda: b""  # type: ignore[method-assign]  # and mute


def cut(network: ServedNetwork) -> None:
    """End all connections there are."""
    for relay in network.relays.values():
        for link in relay.links:
            link.close(abrupt=True)


until = partial(waiting.until, step=20)


async def test_after_a_suspend_no_dead_connection_is_waited_for(
    tmp_path: Path, clock: trio.testing.MockClock, set_clock: Callable[[float], None]
) -> None:
    async with client(tmp_path) as (tor, network):
        guard, _ = await use(tor)
        await use(tor)
        kept, old = await guards_of(tmp_path), tor.directory
        silence(network)
        set_clock(5 * HOUR)
        network.renew_consensus()
        again, seconds = await use(tor)
        assert again == guard
        assert seconds < 2
        await until(lambda: tor.directory is not old, seconds=3 * MINUTE)
        assert await guards_of(tmp_path) == kept


async def test_a_suspend_is_noticed_before_somebody_needs_a_circuit(
    tmp_path: Path, clock: trio.testing.MockClock, set_clock: Callable[[float], None]
) -> None:
    async with client(tmp_path) as (tor, network):
        guard, _ = await use(tor)
        link_count = len(network.relays[guard].links)
        silence(network)
        set_clock(5 * HOUR)
        await waiting.until(
            lambda: len(network.relays[guard].links) > link_count, seconds=2 * MINUTE, step=20
        )
        again, seconds = await use(tor)
        assert again == guard
        assert seconds < 2


@pytest.mark.parametrize("how", ["reset", "silent"])
async def test_when_every_connection_dies_new_ones_are_made_with_the_same_guard(
    tmp_path: Path, clock: trio.testing.MockClock, how: str
) -> None:
    """As where a laptop goes from one network to another."""
    async with client(tmp_path) as (tor, network):
        guard, _ = await use(tor)
        kept = await guards_of(tmp_path)
        if how == "silent":
            silence(network)
        else:
            cut(network)
        again, seconds = await use(tor)
        assert again == guard
        assert seconds < (30 if how == "silent" else 2)
        assert await guards_of(tmp_path) == kept


async def test_a_clock_that_is_set_to_and_fro_costs_no_guard(
    tmp_path: Path,
    clock: trio.testing.MockClock,
    set_clock: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client(tmp_path) as (tor, _):
        guard, _ = await use(tor)
        kept = await guards_of(tmp_path)
        set_clock(-400 * DAY)
        await trio.sleep(1.5 * MINUTE)
        assert (await use(tor))[0] == guard
        set_clock(400 * DAY)
        await waiting.until(
            lambda: "the clock of this computer is 3" in blockage(tor), seconds=5 * MINUTE, step=20
        )
        set_clock(0)
        await until(lambda: not blockage(tor), seconds=5 * MINUTE)
        assert (await use(tor))[0] == guard
        assert await guards_of(tmp_path) == kept
    (said,) = warnings(caplog)
    assert said.startswith("the directory cannot be brought up to date: the clock of this computer is 3")
    assert "set the clock" in said


async def test_what_keeps_circuits_from_being_built_is_said_once_and_when_it_is_gone(
    tmp_path: Path,
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The machine is offline for a while; then it goes on by itself, with the guard of before."""

    def refuse(self: socket.socket, address: object) -> None:
        raise OSError(ENETUNREACH, "")

    async with client(tmp_path) as (tor, network):
        guard, _ = await use(tor)
        kept = await guards_of(tmp_path)
        with monkeypatch.context() as offline:
            offline.setattr(socket.socket, "connect", refuse)
            cut(network)
            with pytest.raises(TimedOut, match="this machine seems to be offline"):
                await use(tor)
            (said,) = warnings(caplog)
            assert said.startswith("no circuit can be built: this machine seems to be offline: ")
            assert said.endswith("; connect it to a network")
        await until(lambda: len(warnings(caplog)) > 1, seconds=MINUTE)
        assert warnings(caplog)[1:] == ["circuits can be built again"]
        assert tor.choose_path(Constraints(port=80))[0].nickname == guard
        assert (await guards_of(tmp_path))[0] == kept[0]
