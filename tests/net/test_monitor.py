"""What a client tells of itself: counts from events, a moment's status, Prometheus text, health, pages."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from served import serve_network

from torkit.client import Tor, open_tor
from torkit.errors import (
    CircuitClosed,
    DestroyReason,
    EndReason,
    OnionServiceError,
    OnionStep,
    StreamClosed,
    TimedOut,
    TorkitError,
    code_of,
)
from torkit.events import (
    CLOSED_HERE,
    CircuitBuilt,
    CircuitEnded,
    CircuitLaunched,
    StreamEnded,
    StreamFailed,
    StreamNew,
    StreamSucceeded,
)
from torkit.net.circuit.stream import StreamBroken
from torkit.net.monitor import pages
from torkit.net.monitor.exposition import exposition
from torkit.net.monitor.health import LATELY, Health
from torkit.net.monitor.pages import Answer, Page, serve_pages
from torkit.net.monitor.tally import Tally

# --- counts ---------------------------------------------------------------------------------------------


def test_codes_are_a_few_words_and_name_nobody() -> None:
    broken = StreamBroken("exit1: no web.test", reason=EndReason.CONNECTREFUSED)
    assert code_of(broken) == "connectrefused"
    assert code_of(CircuitClosed("exit1 closed", reason=DestroyReason.CHANNEL_CLOSED)) == "channel_closed"
    assert code_of(CircuitClosed("exit1")) == "circuit_closed"
    assert code_of(TimedOut("exit1 is silent")) == "timed_out"
    assert code_of(OnionServiceError("x.onion", step=OnionStep.NO_KEY)) == "onion_no_key"
    assert code_of(trio.TooSlowError()) == "given_up"


async def test_circuits_and_streams_are_counted_by_what_became_of_them() -> None:
    tally = Tally()
    for number in range(1, 5):
        tally.note(CircuitLaunched(number, "GENERAL"))
    for event in (
        CircuitBuilt(1, ()),
        CircuitBuilt(2, ()),
        CircuitEnded(2, "exit1 closed it", "destroyed"),
        CircuitEnded(3, "middle1 failed", "connectfailed"),
        CircuitEnded(4, "closed here", CLOSED_HERE),
        CircuitBuilt(77, ()),  # that was launched before
        StreamNew(1),
        StreamSucceeded(1),
        StreamEnded(1, "closed here", CLOSED_HERE),
        StreamNew(2),
        StreamFailed(2, "exit1 refuses", "exitpolicy"),
        StreamSucceeded(2),
        StreamNew(3),
        StreamFailed(3, "the destination refused", "connectrefused"),
        StreamEnded(3, "the destination refused", "connectrefused"),
    ):
        tally.note(event)
    assert tally.launched == {"GENERAL": 4}
    assert tally.built == {"GENERAL": 2, "UNKNOWN": 1}
    assert tally.not_built == {"connectfailed": 1, "given_up": 1}
    assert tally.ended == {"destroyed": 1}
    assert tally.streams == 3
    assert tally.attempts_failed == {"exitpolicy": 1, "connectrefused": 1}
    assert tally.streams_failed == {"connectrefused": 1}


@asynccontextmanager
async def watched_client(tmp_path: Path) -> AsyncIterator[tuple[Tor, Tally, Any]]:
    tally = Tally()
    async with (
        serve_network() as network,
        open_tor(network=network.config, data_dir=tmp_path, spare_circuits=0) as tor,
    ):
        tor.listen(tally.note)
        await tor.wait_ready()
        yield tor, tally, network


SAMPLE = re.compile(r'(torkit_[a-z_]+)(?:\{([a-z]+)="([A-Za-z0-9_.+]+)"\})? ([0-9.e+]+)')


def samples(text: bytes) -> dict[tuple[str, str | None], float]:
    """By name and value of the label; every line is read, and each sample belongs to the TYPE before it."""
    found: dict[tuple[str, str | None], float] = {}
    family = ""
    for line in text.decode().splitlines():
        if line.startswith("# HELP "):
            continue
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert (kind == "counter") == family.endswith("_total")
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match[1] == family
        found[match[1], match[3]] = float(match[4])
    assert text.endswith(b"\n")
    return found


async def test_metrics_tell_how_much_and_never_where_or_through_whom(tmp_path: Path) -> None:
    async with watched_client(tmp_path) as (tor, tally, network):
        async with await tor.connect("secret.test", 80) as stream:
            await stream.send_all(b"x" * 1000)
            text = exposition(tor.status(), tally)
            now = samples(text)
            assert now["torkit_circuits_built_total", "GENERAL"] == 1
            assert now["torkit_circuits", "open"] >= 1
            assert now["torkit_streams", None] == now["torkit_streams_total", None] == 1
            assert now["torkit_stream_bytes_total", "sent"] >= 1000
            assert now["torkit_guards", "yes"] >= 1
            assert now["torkit_bootstrap_ratio", None] == 1
            assert now["torkit_connections", None] >= 1
        for fake in network.relays.values():
            fake.on_begin = lambda stream: stream.end(EndReason.CONNECTREFUSED)
        with pytest.raises(StreamClosed):
            await tor.connect("secret.test", 80)
        text += exposition(tor.status(), tally)
        now = samples(exposition(tor.status(), tally))
        assert now["torkit_streams", None] == 0
        assert now["torkit_streams_failed_total", "connectrefused"] == 1
        for relay in network.docs:
            assert relay.nickname.encode() not in text
            assert relay.identity.hex().upper().encode() not in text.upper()
        assert b"secret" not in text
        assert b"127.0.0.1" not in text


async def test_status_tells_of_circuits_and_guards_by_name_and_never_where_streams_go(tmp_path: Path) -> None:
    async with watched_client(tmp_path) as (tor, _, _network):
        before = tor.status()
        stream = await tor.connect("secret.test", 80)
        status = tor.status()
        [circuit] = [one for one in status.circuits if one.purpose == "GENERAL"]
        assert (circuit.circuit, circuit.state, circuit.streams) == (stream.circuit.id, "dirty", 1)
        assert circuit.path == tuple(relay.nickname for relay in stream.path)
        assert status.streams == 1
        guard = status.guards[0]
        assert guard.nickname in {one.path[0] for one in status.circuits if one.path}
        assert (guard.reachable, guard.is_confirmed) == ("yes", True)
        await stream.send_all(b"x" * 100)
        await stream.aclose()
        after = tor.status()
        assert after.streams == 0
        assert after.sent - before.sent >= 100
        assert "secret" not in repr([before, status, after])
        assert after.to_json()["circuits"][-1]["path"] == circuit.path


# --- health ---------------------------------------------------------------------------------------------


class FakeBuild:
    """Builds, or fails, or never ends."""

    def __init__(self) -> None:
        self.failure: TorkitError | None = None
        self.is_stuck = False
        self.count = 0

    async def __call__(self) -> Any:
        self.count += 1
        await trio.sleep(1)
        if self.is_stuck:
            await trio.sleep_forever()
        if self.failure is not None:
            raise self.failure
        return self

    def close(self, why: str) -> None:
        """A circuit that is not needed."""


async def test_whoever_was_alive_lately_is_not_probed(autojump_clock: trio.testing.MockClock) -> None:
    tally, build = Tally(), FakeBuild()
    health = Health(tally, build)
    tally.note(CircuitBuilt(1, ()))
    await trio.sleep(LATELY - 1)
    assert await health.is_healthy()
    assert build.count == 0
    await trio.sleep(2)
    build.failure = CircuitClosed("no")
    assert not await health.is_healthy()
    build.failure = None
    assert await health.is_healthy()
    assert build.count == 2


async def test_data_is_a_sign_of_life(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = [5]
    monkeypatch.setattr("torkit.net.monitor.health.carried", lambda: (count[0], 0))
    health = Health(Tally(), FakeBuild())
    assert not health.has_lived()
    count[0] += 1
    assert health.has_lived()
    await trio.sleep(LATELY)
    assert not health.has_lived()


async def test_a_network_that_does_not_answer_is_no_health_and_is_asked_once_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    build = FakeBuild()
    build.is_stuck = True
    health = Health(Tally(), build)
    answers = []

    async def ask() -> None:
        answers.append(await health.is_healthy())

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.sleep(1)
            assert build.count == 1
    assert answers == [False] * 3


# --- pages ----------------------------------------------------------------------------------------------


async def hello() -> Answer:
    return Answer(200, b"hello\n")


async def fails() -> Answer:
    raise ValueError("secret.test")


PAGES: dict[str, Page] = {"/hello": hello, "/fails": fails}


@asynccontextmanager
async def served_pages(**settings: Any) -> AsyncIterator[tuple[str, int]]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_pages(listeners, PAGES, **settings))
        yield listeners[0].socket.getsockname()
        nursery.cancel_scope.cancel()


async def ask(address: tuple[str, int], request: bytes) -> bytes:
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(request)
        with trio.fail_after(10):
            return b"".join([bytes(data) async for data in client])


LOCAL = b"\r\nHost: localhost:9152\r\n\r\n"


async def test_a_page_is_answered_whole_and_the_connection_ends() -> None:
    async with served_pages() as address:
        answer = await ask(address, b"GET /hello?x=1 HTTP/1.1" + LOCAL)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-length: 6" in head.lower()
        assert b"no-store" in head
        assert body == b"hello\n"
        head_only = await ask(address, b"HEAD /hello HTTP/1.1" + LOCAL)
        assert head_only == head + b"\r\n\r\n"
        assert (await ask(address, b"GET /hello HTTP/1.0\r\n\r\n")).endswith(b"hello\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1" + LOCAL, 404),
        (b"GET http://localhost/hello HTTP/1.1" + LOCAL, 404),
        (b"POST /hello HTTP/1.1" + LOCAL, 405),
        (b"DELETE /hello HTTP/1.1" + LOCAL, 405),
        (b"GET /fails HTTP/1.1" + LOCAL, 500),
        (b"GET /hello HTTP/1.1\r\n\r\n", 400),  # without Host
        (b"GET /hello\r\n\r\n", 400),
        (b"\x05\x01\x00\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\nX: " + b"x" * 10_000, 431),
        (b"GET /hello HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET /hello HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", 421),
    ],
)
async def test_other_requests_are_refused(request_bytes: bytes, status: int) -> None:
    async with served_pages() as address:
        answer = await ask(address, request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert (b"Allow: GET, HEAD" in answer) == (status == 405)
    assert b"secret" not in answer


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9152", "[::1]:9152", "[::1]", "LOCALHOST"])
async def test_addresses_and_localhost_are_this_machine(host: str) -> None:
    async with served_pages() as address:
        request = f"GET /hello HTTP/1.1\r\nHost: {host}\r\n\r\n"
        assert (await ask(address, request.encode())).startswith(b"HTTP/1.1 200 ")


async def test_where_other_machines_may_ask_any_name_is_good() -> None:
    async with served_pages(any_host=True) as address:
        request = b"GET /hello HTTP/1.1\r\nHost: torkit.monitoring\r\n\r\n"
        assert (await ask(address, request)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"GET /hello HTTP/1.1\r\n"])
async def test_who_is_silent_or_leaves_ends_nobody_else(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    async with served_pages() as address:
        with monkeypatch.context() as hurried:
            hurried.setattr(pages, "REQUEST_TIMEOUT", 0.05)
            async with await trio.open_tcp_stream(*address) as client:
                with trio.fail_after(10):
                    await client.send_all(sent)
                    try:
                        assert await client.receive_some() == b""
                    except trio.BrokenResourceError:
                        assert sent  # which came too late to be read
            async with await trio.open_tcp_stream(*address):
                pass
        assert (await ask(address, b"GET /hello HTTP/1.1" + LOCAL)).endswith(b"hello\n")


async def test_connections_are_bounded() -> None:
    async with served_pages() as address:
        held = [await trio.open_tcp_stream(*address) for _ in range(pages.MAX_CONNECTIONS)]
        await trio.testing.wait_all_tasks_blocked()
        async with await trio.open_tcp_stream(*address) as client:
            assert await client.receive_some() == b""
        for stream in held:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await ask(address, b"GET /hello HTTP/1.1" + LOCAL)).endswith(b"hello\n")
