"""What the proxy says of requests that it does not serve: a line for each, and never a destination."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from proxied import CONNECT, CONNECT_ADDRESS, GREETING, ScriptedTor, proxy_for, receive_all
from served import ServedNetwork, serve_network

from torkit._fast.sources import LocalEvent
from torkit.client import Tor, open_tor
from torkit.errors import EndReason, Retry, StreamClosed
from torkit.net.proxy import listener, serve_socks
from torkit.testing.relay import FakeStream, ignore

PUBLIC = bytes([203, 0, 113, 5])
INTERNAL = bytes([10, 0, 0, 7])


def socks5(host: str, *, command: int = 1, port: int = 80) -> bytes:
    return GREETING + bytes([5, command, 0, 3, len(host)]) + host.encode() + port.to_bytes(2, "big")


class Asked:
    """One proxy of a whole client, on scripted relays."""

    def __init__(self, network: ServedNetwork, tor: Tor, address: tuple[str, int]) -> None:
        self.network = network
        self.tor = tor
        self._address = address

    def refuse(self, reason: EndReason, address: bytes = b"") -> None:
        """Have every exit end every stream so."""
        for name in self.network.relays:
            if name.startswith("exit"):
                self.network.relays[name].on_begin = lambda stream: self._end(stream, reason, address)

    @staticmethod
    def _end(stream: FakeStream, reason: EndReason, address: bytes) -> None:
        stream.end(reason, address + bytes(4) if address else b"")

    def answer(self, address: str) -> None:
        """Have every exit say that it has connected to this address."""
        for name in self.network.relays:
            if name.startswith("exit"):
                self.network.relays[name].on_begin = lambda stream: stream.connected(address)

    def break_circuits(self) -> None:
        """Have every exit end the circuit of every stream."""
        for name in self.network.relays:
            if name.startswith("exit"):
                self.network.relays[name].on_begin = lambda stream: stream.circuit.destroy()

    async def ask(self, data: bytes) -> bytes:
        async with await trio.open_tcp_stream(*self._address) as client:
            await client.send_all(data)
            return await receive_all(client)


@asynccontextmanager
async def proxy_of_a_client(data_dir: Path) -> AsyncIterator[Asked]:
    [listening] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with serve_network(exits=3) as network:
        config = network.config._replace(testing=False)
        async with open_tor(network=config, data_dir=data_dir) as tor, trio.open_nursery() as nursery:
            await tor.wait_ready()
            nursery.start_soon(lambda: serve_socks([listening], request=tor.request, resolve=tor.resolve))
            yield Asked(network, tor, listening.socket.getsockname()[:2])
            nursery.cancel_scope.cancel()


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What was said of refusals, at `level` exactly."""
    return [r.message for r in caplog.records if r.levelno == level and "was refused" in r.message]


# --- A line for each ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [reason for reason in EndReason if reason is not EndReason.DONE])
async def test_a_refused_stream_is_a_line_with_the_reason_and_the_exit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: EndReason
) -> None:
    caplog.set_level(logging.INFO, logger="torkit")
    async with proxy_of_a_client(tmp_path) as proxy:
        proxy.refuse(reason)
        await proxy.ask(socks5("web.test"))
    [line] = lines(caplog)
    assert line.startswith("a connection was refused: exit")
    assert line.endswith(f": {reason.sentence} ({reason.name})")


async def test_a_refused_look_up_is_a_line_with_the_reason_and_the_exit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="torkit")
    async with proxy_of_a_client(tmp_path) as proxy:
        await proxy.ask(socks5("nosuch.test", command=0xF0))
    [line] = lines(caplog)
    assert line.startswith("a look-up was refused: exit")
    assert line.endswith(": the exit found no such name (RESOLVEFAILED)")


async def test_a_stream_whose_circuits_end_is_a_line_with_the_exit_and_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="torkit")
    async with proxy_of_a_client(tmp_path) as proxy:
        proxy.break_circuits()
        await proxy.ask(socks5("web.test"))
    [line] = lines(caplog)
    assert line.startswith("a connection was refused: the circuit to exit")
    assert "failed: a relay closed the circuit: " in line


async def test_each_attempt_is_a_line_in_detail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="torkit")
    async with proxy_of_a_client(tmp_path) as proxy:
        proxy.refuse(EndReason.MISC)
        await proxy.ask(socks5("web.test"))
    tried = [r.message for r in caplog.records if r.levelno == logging.DEBUG and ", tried on" in r.message]
    assert len(tried) == 3
    line = re.compile(r"stream 1, tried on circuit \d+: (exit\d): the exit could .*")
    assert len({match[1] for one in tried if (match := line.fullmatch(one))}) == 3


async def test_a_port_that_no_exit_allows_is_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="torkit")
    async with proxy_of_a_client(tmp_path) as proxy:
        await proxy.ask(socks5("web.test", port=28123))
    [line] = lines(caplog)
    assert line.startswith("a connection was refused: no exit")
    assert "28123" not in line


async def test_an_exit_that_does_not_answer_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, patient_clock: trio.testing.MockClock
) -> None:
    caplog.set_level(logging.INFO, logger="torkit")
    async with proxy_of_a_client(tmp_path) as proxy:
        for name, relay in proxy.network.relays.items():
            if name.startswith("exit"):
                relay.on_begin = ignore
        await proxy.ask(socks5("web.test"))
    [line] = lines(caplog)
    assert line.startswith("a connection was refused: exit")
    assert "the exit has not answered within" in line


# --- A warning for each kind of misuse ------------------------------------------------------------------

MISUSE = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n", "a request for a server", "SOCKS5 proxy"),
    "BIND": (socks5("web.test", command=2), "BIND", "have it connect"),
    "UDP ASSOCIATE": (socks5("web.test", command=3), "UDP", "TCP"),
    "internal address": (socks5("192.168.1.20"), "its own network", "without a proxy"),
    "look-up of an internal name": (socks5("web.local", command=0xF0), "its own network", "without a proxy"),
    "onion": (socks5("web.onion", command=0xF0), "cannot be looked up", "connect to it by name"),
    "exit": (socks5("web.test.exit0.exit"), ".exit", "--path"),
    "not ASCII": (socks5("wéb.test"), "neither an address nor a host name", "xn--"),
    "exit, by CONNECT": (b"CONNECT web.exit0.exit:80 HTTP/1.0\r\n\r\n", ".exit", "--path"),
    "exit, by GET": (b"GET http://web.EXIT:8/ HTTP/1.1\r\nHost: web.EXIT:8\r\n\r\n", ".exit", "--path"),
    "not ASCII, by CONNECT": ("CONNECT wéb.test:80 HTTP/1.1\r\n\r\n".encode(), "nor a host name", "xn--"),
    "not ASCII, by GET": (
        "GET http://wéb.test/ HTTP/1.1\r\n\r\n".encode("latin-1"),
        "nor a host name",
        "xn--",
    ),
}


@pytest.mark.parametrize("kind", MISUSE)
async def test_misuse_is_warned_of_once_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO, logger="torkit")
    data, what, hint = MISUSE[kind]
    async with proxy_of_a_client(tmp_path) as proxy:
        for _ in range(3):
            await proxy.ask(data)
    [warning] = lines(caplog, logging.WARNING)
    assert what in warning
    assert hint in warning.partition(";")[2]
    assert lines(caplog) == [warning] * 2
    assert "web" not in caplog.text
    assert "192.168" not in caplog.text


async def test_each_kind_of_misuse_has_its_own_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxy_of_a_client(tmp_path) as proxy:
        for data, _, _ in (*MISUSE.values(), *MISUSE.values()):
            await proxy.ask(data)
    assert len(lines(caplog, logging.WARNING)) == len({hint for _, _, hint in MISUSE.values()})


async def test_a_name_that_leads_to_an_internal_address_is_misuse_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxy_of_a_client(tmp_path) as proxy:
        proxy.refuse(EndReason.EXITPOLICY, INTERNAL)
        await proxy.ask(socks5("web.test"))
        await proxy.ask(socks5("web.test"))
    [warning] = lines(caplog, logging.WARNING)
    assert warning.startswith("a connection was refused: exit")
    assert "its own network" in warning
    assert "10.0.0.7" not in caplog.text


async def test_an_internal_address_is_never_to_be_tried_again(tmp_path: Path) -> None:
    async with proxy_of_a_client(tmp_path) as proxy:
        proxy.refuse(EndReason.EXITPOLICY, INTERNAL)
        with pytest.raises(StreamClosed, match=r"^exit\d: the destination is on this machine") as refused:
            await proxy.tor.connect("web.test", 80)
        proxy.answer("10.0.0.7")  # an exit that keeps to no rule
        with pytest.raises(StreamClosed, match=r"^exit\d: the destination is on this machine") as connected:
            await proxy.tor.connect("web.test", 80)
        proxy.refuse(EndReason.EXITPOLICY, PUBLIC)
        with pytest.raises(StreamClosed, match=r"^exit\d: the exit's policy") as other:
            await proxy.tor.connect("web.test", 80)
    for caught in (refused, connected):
        assert (caught.value.reason, caught.value.retry) == (EndReason.EXITPOLICY, Retry.NEVER)
        assert caught.value.hint is not None
    assert (other.value.retry, other.value.hint) == (Retry.LATER, None)


async def test_what_an_exit_refuses_is_no_misuse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with proxy_of_a_client(tmp_path) as proxy:
        proxy.refuse(EndReason.EXITPOLICY, PUBLIC)
        await proxy.ask(socks5("web.test"))
    assert lines(caplog, logging.WARNING) == []


async def test_an_internal_address_is_not_told_as_a_leak_and_a_leak_still_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has asked a resolver for it; and the one warning is kept for whoever has."""
    async with proxy_of_a_client(tmp_path) as proxy:
        await proxy.ask(GREETING + b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50")
        assert "resolver" not in caplog.text
        proxy.refuse(EndReason.CONNECTREFUSED)
        await proxy.ask(GREETING + CONNECT_ADDRESS)
        assert "resolver" in caplog.text


# --- Never a destination --------------------------------------------------------------------------------


# What a parser would quote in its complaint.
HTTP_REQUESTS = [
    b"CONNECT web.test:28123 HTTP/1.1\r\n\r\n",
    b"CONNECT web.test HTTP/1.1\r\n\r\n",
    b"CONNECT web.test:80 HTTP/9.1\r\n\r\n",
    b"GET http://web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
    b"GET http://web.test/a b HTTP/1.1\r\n\r\n",
    b"GET http://web.test/ HTTP/1.1\r\nHo st: web.test\r\n\r\n",
    b"GET http://web.test/ HTTP/1.1\r\nHost: other.web\r\n\r\n",
    b"GET http://web.test/ HTTP/1.1\r\nHost: web.test\r\nContent-Length: web\r\n\r\n",
    b"GET web.test://a/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
    b"GET https://web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
    b"G\x01T http://web.test/ HTTP/1.1\r\n\r\n",
    b"POST http://web.test/ HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\nweb.test\r\n",
]


async def test_no_level_names_destinations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of any refusal, nor of what is served."""
    caplog.set_level(logging.DEBUG)
    secrets = ["web", "203.0.113.5", "10.0.0.7", "192.168", "192.0.2.1", "28123", "nosuch"]
    async with proxy_of_a_client(tmp_path) as proxy:
        for data, _, _ in MISUSE.values():
            await proxy.ask(data)
        await proxy.ask(socks5("nosuch.test", command=0xF0))
        await proxy.ask(socks5("web.test", port=28123))
        await proxy.ask(GREETING + b"\x05\xf1\x00\x01\xc0\x00\x02\x01\0\0")  # a name for an address
        for address in (PUBLIC, INTERNAL):
            proxy.refuse(EndReason.EXITPOLICY, address)
            await proxy.ask(socks5("web.test"))
            await proxy.ask(GREETING + CONNECT_ADDRESS)
        for request in HTTP_REQUESTS:
            await proxy.ask(request)
        for reason in EndReason:
            proxy.refuse(reason)
            await proxy.ask(socks5("web.test"))
        proxy.break_circuits()
        await proxy.ask(socks5("web.test"))
    assert len(caplog.records) > 20
    for secret in secrets:
        said = [record.getMessage() for record in caplog.records if secret in record.getMessage()]
        assert said == [], secret
        assert secret not in caplog.text


async def test_a_fault_of_ours_names_no_destination_even_in_its_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    failure = ValueError("no route to web.test:80")
    failure.add_note("web.test was asked for")
    failure.__cause__ = KeyError("web.test")
    async with proxy_for(ScriptedTor(failure=failure), circuit=False) as proxy:
        assert (await proxy.ask(GREETING + CONNECT))[3] == 1
    assert "ValueError" in caplog.text
    assert "_answer_as_told" in caplog.text  # where it was
    assert "web" not in caplog.text


# --- Room -----------------------------------------------------------------------------------------------


async def test_nobody_is_looked_for_while_the_last_client_that_was_refused_is_still_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has said what it wants, and does not read why that cannot be."""
    looks = 0
    look = listener.StreamListener.on_local

    def counted(self: listener.StreamListener, event: LocalEvent) -> None:
        nonlocal looks
        looks += 1
        look(self, event)

    monkeypatch.setattr(listener.StreamListener, "on_local", counted)
    async with proxy_for(ScriptedTor(), circuit=False, max_clients=1) as proxy:
        refused = await proxy.client()
        await refused.send_all(b"GET / HTTP/1.0\r\n\r\n")
        waiting = await proxy.client()
        await trio.sleep(0.2)
        assert looks < 5
        await refused.aclose()
        await waiting.send_all(GREETING)
        assert await waiting.receive_some() == b"\x05\x00"
