"""The DNS server for programs, asked over UDP on loopback."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from fake_tor import FakeAnswer, FakeTor
from waiting import until

from torkit.errors import EndReason, NoPath, StreamClosed
from torkit.net.proxy import dns as dns_module
from torkit.net.proxy import serve_proxy
from torkit.net.proxy.dns import DnsListener
from torkit.net.proxy.upstream import Upstream
from torkit.proto.automap import Automap
from torkit.proto.destination import check_destination

A, PTR, AAAA = 1, 12, 28
NOERROR, SERVFAIL, NXDOMAIN, NOTIMP = 0, 2, 3, 4


class Asker:
    """A program that asks. It knows nothing of proto/dns.py."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.socket = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server = server
        self._number = 0

    async def send(self, packet: bytes) -> None:
        await self.socket.sendto(packet, self.server)

    async def ask(self, name: str, asked: int) -> tuple[int, list[bytes]]:
        """Returns the answer's code, and the data of its records."""
        self._number += 1
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        question = labels + b"\0" + struct.pack(">HH", asked, 1)
        await self.send(struct.pack(">HHHHHH", self._number, 0x0100, 1, 0, 0, 0) + question)
        with trio.fail_after(5):
            answer = await self.socket.recv(4096)
        number, flags, _, count, _, _ = struct.unpack_from(">HHHHHH", answer)
        assert (number, flags & 0x8000) == (self._number, 0x8000)
        assert answer[12:].startswith(question)
        records, at = [], 12 + len(question)
        for _ in range(count):
            pointer, kind, _, _, length = struct.unpack_from(">HHHIH", answer, at)
            assert (pointer, kind) == (0xC00C, asked)
            records.append(answer[at + 12 : at + 12 + length])
            at += 12 + length
        assert at == len(answer)
        return flags & 0x0F, records


@asynccontextmanager
async def dns_server(
    tor: FakeTor, automap: Automap | None, is_ending: trio.Event | None = None
) -> AsyncIterator[Asker]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    asker = Asker(sock.getsockname())
    listener = DnsListener(sock, partial(check_destination, allow_internal=False), automap)
    async with trio.open_nursery() as nursery:
        upstream = Upstream(tor.request, tor.resolve)  # type: ignore[arg-type]  # a FakeTor's requests
        nursery.start_soon(partial(serve_proxy, [listener], upstream=upstream, is_ending=is_ending))
        with asker.socket:
            yield asker
        nursery.cancel_scope.cancel()


async def test_names_get_addresses_that_tell_them_again_and_nothing_is_looked_up() -> None:
    tor, automap = FakeTor(), Automap()
    async with dns_server(tor, automap) as asker:
        assert await asker.ask("Web.test", A) == (NOERROR, [bytes([198, 18, 0, 1])])
        code, [ipv6] = await asker.ask("web.test", AAAA)
        assert (code, socket.inet_ntop(socket.AF_INET6, ipv6)) == (NOERROR, "fd74:6f72:6b00::1")
        assert await asker.ask("1.0.18.198.in-addr.arpa", PTR) == (NOERROR, [b"\x03web\x04test\0"])
    assert not tor.asked


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        *(("printer.local", A), ("x.exit", A), ("myhost", A), ("192.0.2.1", A), ("bad name.test", A)),
        *(("web.test", PTR), ("1.0.168.192.in-addr.arpa", PTR), ("9.0.18.198.in-addr.arpa", PTR)),
    ],
)
async def test_what_no_exit_is_asked_for_is_no_name(name: str, asked: int) -> None:
    tor = FakeTor(answers=[FakeAnswer("hostname", "leak.test")])
    async with dns_server(tor, Automap()) as asker:
        assert await asker.ask(name, asked) == (NXDOMAIN, [])
    assert not tor.asked


async def test_this_machine_is_answered_for() -> None:
    async with dns_server(FakeTor(), Automap()) as asker:
        assert await asker.ask("localhost", A) == (NOERROR, [bytes([127, 0, 0, 1])])
        assert await asker.ask("a.localhost", AAAA) == (NOERROR, [bytes(15) + b"\x01"])
        assert await asker.ask("1.0.0.127.in-addr.arpa", PTR) == (NOERROR, [b"\x09localhost\0"])


@pytest.mark.parametrize("asked", [15, 16, 33, 65, 255])
async def test_other_types_are_not_implemented(asked: int) -> None:
    async with dns_server(FakeTor(), Automap()) as asker:
        assert await asker.ask("web.test", asked) == (NOTIMP, [])


async def test_what_is_no_query_gets_no_answer_and_harms_nobody() -> None:
    async with dns_server(FakeTor(), Automap()) as asker:
        for packet in (
            b"",
            b"x",
            bytes(12),
            b"\xff" * 512,
            b"\0\x01\x81\x80\0\x01" + bytes(6) + b"\0\0\x01\0\x01",
        ):
            await asker.send(packet)
        assert await asker.ask("web.test", A) == (NOERROR, [bytes([198, 18, 0, 1])])


async def test_the_name_of_an_address_is_looked_up_at_an_exit() -> None:
    tor = FakeTor(answers=[FakeAnswer("hostname", "one.test"), FakeAnswer("hostname", "not a name")])
    async with dns_server(tor, Automap()) as asker:
        assert await asker.ask("1.2.0.192.in-addr.arpa", PTR) == (NOERROR, [b"\x03one\x04test\0"])
    assert tor.asked[0][0] == "192.0.2.1"


async def test_without_an_automap_names_are_looked_up_at_an_exit() -> None:
    answers = [
        FakeAnswer("ipv4", "192.0.2.1"),
        FakeAnswer("ipv6", "2001:db8::1"),
        FakeAnswer("ipv4", "192.0.2.2"),
    ]
    tor = FakeTor(answers=answers)
    async with dns_server(tor, None) as asker:
        assert await asker.ask("web.test", A) == (NOERROR, [bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])])
        code, [ipv6] = await asker.ask("web.test", AAAA)
        assert (code, ipv6[:4]) == (NOERROR, b"\x20\x01\x0d\xb8")
        assert await asker.ask("1.0.18.198.in-addr.arpa", PTR) == (NXDOMAIN, [])
    assert [host for host, _ in tor.asked] == ["web.test", "web.test"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StreamClosed("no such name", reason=EndReason.RESOLVEFAILED), NXDOMAIN),
        (StreamClosed("gone", reason=EndReason.DESTROY), SERVFAIL),
        (NoPath("no exit"), SERVFAIL),
    ],
)
async def test_a_look_up_that_fails_is_told_by_its_code(failure: Exception, code: int) -> None:
    async with dns_server(FakeTor(failure=failure), None) as asker:
        assert await asker.ask("web.test", A) == (code, [])


async def test_look_ups_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_module, "MAX_LOOKUPS", 2)
    tor = FakeTor(is_silent=True)
    async with dns_server(tor, None) as asker:
        question = b"\x03web\x04test\0\0\x01\0\x01"
        for number in range(5):
            await asker.send(struct.pack(">HHHHHH", number, 0, 1, 0, 0, 0) + question)
        assert await asker.ask("localhost", A) == (NOERROR, [bytes([127, 0, 0, 1])])
    assert len(tor.asked) == 2


async def test_questions_that_have_come_are_answered_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tor, is_ending, goes_on = FakeTor(answers=[FakeAnswer("ipv4", "192.0.2.1")]), trio.Event(), trio.Event()
    monkeypatch.setattr(tor, "_answer_as_told", goes_on.wait)
    count = dns_module.READ_PER_TURN + 7
    async with dns_server(tor, None, is_ending) as asker:
        await trio.testing.wait_all_tasks_blocked()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            program.connect(asker.server)
            for number in range(count):
                program.send(struct.pack(">HHHHHH", number, 0, 1, 0, 0, 0) + b"\x03web\x04test\0\0\x01\0\x01")
            is_ending.set()
            await until(lambda: len(tor.asked) == count)
            await trio.testing.wait_all_tasks_blocked()
            program.send(bytes(12))  # there is still somebody; but nobody new is answered
            goes_on.set()
            await trio.testing.wait_all_tasks_blocked()
            program.settimeout(10)
            numbers = {struct.unpack_from(">H", program.recv(4096))[0] for _ in range(count)}
            assert numbers == set(range(count))
            program.send(bytes(12))
            with pytest.raises(ConnectionRefusedError):
                program.recv(4096)
