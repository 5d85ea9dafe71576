"""How far a start has come, and what is in its way: seen from outside, on scripted relays and worse."""

import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from errno import ECONNREFUSED, ENETUNREACH
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from served import ServedNetwork, serve_network
from waiting import until

from torkit.client import Tor, open_tor
from torkit.config import Fallback, Network
from torkit.errors import (
    CertificateNotCurrent,
    ChannelClosed,
    ChannelError,
    ClockSkewed,
    DocumentError,
    Filtered,
    HandshakeCut,
    NoDirectory,
    NoNetwork,
    StorageError,
    TimedOut,
    TorkitError,
    Unreachable,
)
from torkit.net.progress import Phase, Progress, Tracker, diagnose, furthest


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps to the next deadline when for a while nothing moved: the sockets' other ends are in here too."""
    return trio.testing.MockClock(autojump_threshold=0.1)


# --- What is noted -------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.sampled_from(Phase).map(lambda phase: lambda tracker: tracker.reach(phase)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(
        lambda counts: lambda tracker: tracker.expect_microdescs(*counts)
    ),
    st.integers(0, 9).map(lambda count: lambda tracker: tracker.add_microdescs(count)),
    st.just(lambda tracker: tracker.block(TimedOut("too late"))),
)


@given(st.lists(STEPS, max_size=30))
def test_percentage_and_phase_never_go_back(steps: list[Callable[[Tracker], None]]) -> None:
    tracker = Tracker()
    for step in steps:
        before = tracker.now
        step(tracker)
        assert 0 <= before.percent <= tracker.now.percent <= 100
        assert before.phase.percent <= tracker.now.phase.percent <= tracker.now.percent
        assert (tracker.now.percent == 100) is tracker.now.is_done
        if before.is_done:
            assert tracker.now == before


def test_microdescs_are_counted_between_their_two_phases() -> None:
    tracker = Tracker()
    tracker.expect_microdescs(100, 500)
    assert (tracker.now.percent, tracker.now.summary) == (45, "asking for microdescriptors")
    seen = []
    for _ in range(4):
        tracker.add_microdescs(100)
        seen.append((tracker.now.percent, tracker.now.summary.partition(": ")[2]))
    assert seen == [(60, "200 of 500"), (65, "300 of 500"), (70, "400 of 500"), (75, "500 of 500")]


def test_what_was_in_the_way_is_gone_with_the_next_step() -> None:
    tracker = Tracker()
    tracker.reach(Phase.CONN)
    tracker.block(TimedOut("too late"))
    tracker.reach(Phase.CONN)  # another try is no progress
    assert str(tracker.now.error) == "too late"
    tracker.reach(Phase.HANDSHAKE)
    assert tracker.now.error is None


def test_connections_are_for_circuits_once_there_is_a_directory() -> None:
    tracker = Tracker()
    for phase in (Phase.CONN, Phase.ENOUGH_DIRINFO, Phase.CONN):
        tracker.reach(phase)
    assert tracker.now.phase is Phase.AP_CONN


async def test_changes_are_the_newest_only_and_end_when_done() -> None:
    tracker = Tracker()
    changes = tracker.changes()
    assert await anext(changes) == Progress()
    tracker.reach(Phase.CONN)
    tracker.reach(Phase.HANDSHAKE)
    assert (await anext(changes)).phase is Phase.HANDSHAKE
    async with trio.open_nursery() as nursery:
        seen: list[Progress] = []

        async def read() -> None:
            seen.extend([change async for change in changes])

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        tracker.reach(Phase.DONE)
    assert [change.phase for change in seen] == [Phase.DONE]
    assert [change.percent async for change in tracker.changes()] == [100]


# --- What failures mean ----------------------------------------------------------------------------------


def refused(number: int = ECONNREFUSED) -> ChannelClosed:
    try:
        raise ChannelClosed(f"errno {number}") from OSError(number, "no")
    except ChannelClosed as error:
        return error


OFFLINE, SILENT, STRANGE = refused(ENETUNREACH), TimedOut("silent"), ChannelError("not a relay")
CUT = HandshakeCut("cut")
EXPIRED = CertificateNotCurrent("expired", skew=30 * 3600 + 1)
YOUNG = CertificateNotCurrent("not valid yet", skew=-100 * 3600)
LIAR = DocumentError("lies")


@pytest.mark.parametrize(
    ("failures", "kind"),
    [
        ([OFFLINE, OFFLINE], NoNetwork),
        ([OFFLINE, refused()], Unreachable),
        ([refused(), OFFLINE], Unreachable),
        ([SILENT], Unreachable),
        ([OFFLINE, SILENT, STRANGE, refused()], Filtered),
        ([CUT, SILENT], Unreachable),  # a relay may be restarting
        ([CUT, SILENT, CUT], Filtered),
        ([STRANGE, LIAR, SILENT], DocumentError),
        ([EXPIRED], CertificateNotCurrent),  # one relay may be wrong
        ([EXPIRED, SILENT, EXPIRED], ClockSkewed),
        ([EXPIRED, EXPIRED, LIAR], DocumentError),  # a relay of our time
        ([YOUNG, YOUNG], ClockSkewed),
    ],
)
def test_the_attempt_that_got_furthest_says_what_is_wrong(
    failures: list[TorkitError], kind: type[TorkitError]
) -> None:
    diagnosis = diagnose(failures)
    assert type(diagnosis) is kind
    assert str(furthest(failures)) in str(diagnosis) or kind is ClockSkewed
    if isinstance(diagnosis, NoDirectory):
        assert diagnosis.hint
        assert type(diagnose([diagnosis])) is kind


def test_clock_is_said_to_be_wrong_by_the_least_that_explains_it() -> None:
    worse = CertificateNotCurrent("expired", skew=500 * 3600)
    ahead = diagnose([EXPIRED, worse])
    assert isinstance(ahead, ClockSkewed)
    assert ahead.skew == EXPIRED.skew
    assert "1 day 6 hours ahead or more" in str(ahead)
    behind = diagnose([YOUNG, YOUNG])
    assert "4 days 4 hours behind or more" in str(behind)


# --- Whole starts ----------------------------------------------------------------------------------------


@asynccontextmanager
async def starting(config: Network, data_dir: Path) -> AsyncIterator[tuple[Tor, list[Progress]]]:
    """A client that starts, and its progress as it changes."""
    async with open_tor(network=config, data_dir=data_dir) as tor, trio.open_nursery() as nursery:
        seen: list[Progress] = []

        async def watch() -> None:
            async for change in tor.progress_changes():
                seen.append(change)

        nursery.start_soon(watch)
        await until(lambda: seen)
        yield tor, seen
        nursery.cancel_scope.cancel()


def check_order(seen: list[Progress]) -> None:
    percents = [change.percent for change in seen]
    assert percents == sorted(percents)


async def test_first_start_tells_its_steps_and_a_second_only_those_left(tmp_path: Path) -> None:
    async with serve_network() as network:
        async with starting(network.config, tmp_path) as (tor, seen):
            await until(lambda: tor.progress.is_done)
            await until(lambda: seen[-1].is_done)
        check_order(seen)
        tags = [change.phase.tag for change in seen]
        for tag in ("handshake", "onehop_create", "loading_status", "loading_keys"):
            assert tag in tags
        # The guard of the first circuit may be connected to already, as it was asked for microdescriptors.
        assert {"ap_handshake", "circuit_create"} & set(tags)
        assert seen[-1].microdescs == (5, 5)
        assert all(change.error is None for change in seen)

        async with starting(network.config, tmp_path) as (_, again):
            await until(lambda: again[-1].is_done)
        check_order(again)
        assert not {"conn", "loading_status", "loading_descriptors"} & {one.phase.tag for one in again}


async def test_guard_that_cannot_be_reached_is_named_as_what_is_waited_for(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with serve_network() as network:
        for name, relay in network.relays.items():
            if name.startswith("guard"):
                relay.on_versions = lambda link: link.close()
        async with starting(network.config, tmp_path) as (tor, seen):
            await until(lambda: seen[-1].phase is Phase.AP_HANDSHAKE and seen[-1].error)
            assert tor.progress.blockage == "unreachable"
        check_order(seen)


async def close_at_once(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def answer_as_login_page(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n")


def web_server_context(directory: Path) -> ssl.SSLContext:
    """Of a server that speaks TLS and is no relay."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "login.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(1))
        .sign(key, SHA256())
    )
    file = directory / "server.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def answer_by_tls(context: ssl.SSLContext) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def answer(stream: trio.SocketStream) -> None:
        server = trio.SSLStream(stream, context, server_side=True)
        await server.receive_some()
        await server.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    return answer


async def first_blockage(config: Network, data_dir: Path) -> Progress:
    async with starting(config, data_dir) as (tor, seen):
        await until(lambda: tor.progress.error)
        with pytest.raises(NoDirectory) as caught:
            await tor.wait_ready()
        assert type(caught.value) is type(tor.progress.error)
        await until(lambda: seen[-1].error)
        check_order(seen)
        return tor.progress


def with_fallbacks(
    network: ServedNetwork, address: str, port: int, ipv6: tuple[str, int] | None = None
) -> Network:
    """Two, both said to be there."""
    fallbacks = tuple(Fallback(address, port, bytes([number]) * 20, ipv6) for number in (1, 2))
    return network.config._replace(fallbacks=fallbacks)


@pytest.mark.parametrize("manner", ["login page", "TLS", "reset"])
async def test_what_answers_and_is_no_relay_is_named(
    tmp_path: Path, clock: trio.testing.MockClock, manner: str
) -> None:
    (tmp_path / "data").mkdir()
    answers = {
        "login page": answer_as_login_page,
        "TLS": answer_by_tls(web_server_context(tmp_path)),
        "reset": close_at_once,
    }
    async with serve_network() as network, trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, answers[manner], 0, host="127.0.0.1"))
        config = with_fallbacks(network, *listener.socket.getsockname())
        blocked = await first_blockage(config, tmp_path / "data")
        assert isinstance(blocked.error, Filtered)
        assert blocked.blockage == "filtered"
        assert blocked.phase is Phase.HANDSHAKE
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ipv6", [None, ("ff02::1", 9)])
async def test_nobody_there_is_unreachable(
    tmp_path: Path, clock: trio.testing.MockClock, ipv6: tuple[str, int] | None
) -> None:
    """Though an IPv6 address, tried last, is out of reach for every machine (Linux sends nothing there)."""
    with trio.socket.socket() as closed:
        await closed.bind(("127.0.0.1", 0))  # and not listening
        async with serve_network() as network:
            config = with_fallbacks(network, "127.0.0.1", closed.getsockname()[1], ipv6)
            blocked = await first_blockage(config, tmp_path)
    assert isinstance(blocked.error, Unreachable)
    assert (blocked.blockage, blocked.phase) == ("unreachable", Phase.CONN)


async def test_no_way_out_of_this_machine_is_no_network(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with serve_network() as network:  # Linux says so of TCP to a broadcast address, and sends nothing
        blocked = await first_blockage(with_fallbacks(network, "255.255.255.255", 9), tmp_path)
    assert isinstance(blocked.error, NoNetwork)
    assert (blocked.blockage, blocked.phase) == ("no_network", Phase.CONN)


async def test_certificates_of_another_time_are_our_clock(
    tmp_path: Path, clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_network() as network:
        fallbacks = [
            Fallback(*relay.address, relay.rsa_identity, None) for relay in list(network.relays.values())[:2]
        ]
        config = network.config._replace(fallbacks=tuple(fallbacks))
        now = time.time
        monkeypatch.setattr("torkit.net.link.channel.time.time", lambda: now() + 10 * 365 * 86_400)
        blocked = await first_blockage(config, tmp_path)
    assert isinstance(blocked.error, ClockSkewed)
    assert blocked.blockage == "clock"
    assert blocked.error.skew > 365 * 86_400
    assert blocked.error.hint


async def test_disk_is_named_but_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()  # nothing can be locked, hence nothing written
    async with serve_network() as network, starting(network.config, tmp_path) as (_, seen):
        await until(lambda: seen[-1].is_done)
    [kind] = {change.blockage for change in seen} - {None}
    assert kind == "disk"
    assert any(isinstance(change.error, StorageError) for change in seen)
