"""A scan on scripted relays: a row for every one, whatever it or its probe does."""

import json
import sys
from typing import Any

import pytest
import trio
from campaigns import FAST, scan, scanned_network, unit_of

from torkit.directory.positions import Position
from torkit.errors import EndReason
from torkit.scan import campaign as campaigns
from torkit.scan.probes import OnStream
from torkit.testing.relay import FakeStream, ignore

TARGET = "web.test:80"


def answer_http(stream: FakeStream, data: bytes) -> None:
    if stream.received.endswith(b"\r\n\r\n"):
        stream.write(b"HTTP/1.1 203 Fine\r\nServer: fake\r\nContent-Length: 5\r\n\r\nhello")
        stream.finish()


async def test_a_row_for_each_exit_tells_its_path_and_its_times() -> None:
    async with scanned_network() as network:
        rows = await scan(network, ["connect", TARGET])
        digest = unit_of(network).digest
    assert sorted(rows) == ["exit0", "exit1"]
    for name, row in rows.items():
        assert (row["ok"], row["step"], row["reason"], row["attempts"]) == (True, None, None, 1)
        assert row["hops"][-1]["nickname"] == name
        assert len(row["hops"]) == 3
        assert all(hop["seconds"] > 0 for hop in row["hops"])
        assert row["digest"] == digest
        assert row["result"]["address"] == "127.0.0.1"
        json.dumps(row)


@pytest.mark.parametrize(("position", "expected"), [(Position.GUARD, 2), (Position.MIDDLE, 5)])
async def test_relays_are_looked_at_in_other_positions(position: Position, expected: int) -> None:
    async with scanned_network() as network:
        rows = await scan(network, ["ping"], position=position)
    assert len(rows) == expected
    hop = 0 if position is Position.GUARD else 1
    for name, row in rows.items():
        assert row["ok"] or row["reason"] == "no_path", row
        assert not row["ok"] or row["hops"][hop]["nickname"] == name


async def test_an_exit_that_cannot_be_extended_to_has_its_row() -> None:
    async with scanned_network() as network:
        for relay in network.relays.values():
            if relay is not network.relays["exit0"]:
                relay.known = [one for one in relay.known if one is not network.relays["exit0"]]
        rows = await scan(network, ["ping"])
    assert rows["exit1"]["ok"]
    row = rows["exit0"]
    assert (row["ok"], row["step"], row["attempts"]) == (False, "hop3", campaigns.ATTEMPTS)
    assert row["reason"] == "connectfailed"
    assert [hop["seconds"] is None for hop in row["hops"]] == [False, False, True]


async def test_relays_that_never_answer_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "BUILD_TIMEOUT", 1.0)
    async with scanned_network() as network:
        for relay in network.relays.values():
            relay.on_extend2 = ignore
        rows = await scan(network, ["connect", TARGET])
    for row in rows.values():
        assert (row["step"], row["reason"], row["attempts"]) == ("hop2", "timed_out", campaigns.ATTEMPTS)


async def test_an_exit_that_never_connects_holds_up_nobody_else() -> None:
    async with scanned_network() as network:
        network.relays["exit1"].on_begin = ignore
        rows = await scan(network, ["connect", TARGET], limits=FAST._replace(timeout=3))
    assert rows["exit0"]["ok"]
    assert (rows["exit1"]["step"], rows["exit1"]["reason"]) == ("probe", "timed_out")


async def test_what_an_exit_refuses_is_its_reason() -> None:
    async with scanned_network() as network:
        network.relays["exit0"].on_begin = lambda stream: stream.end(EndReason.CONNECTREFUSED)
        rows = await scan(network, ["connect", TARGET])
    assert (rows["exit0"]["step"], rows["exit0"]["reason"]) == ("probe", "connectrefused")
    assert rows["exit1"]["ok"]


async def test_a_port_that_no_policy_allows_is_asked_of_nobody() -> None:
    async with scanned_network() as network:
        rows = await scan(network, ["connect", "web.test:25"])
        assert [relay.circuits for relay in network.relays.values()] == [[]] * 5
    assert {(row["step"], row["reason"], row["attempts"]) for row in rows.values()} == {
        ("choose", "exit_policy", 0)
    }


async def test_a_relay_without_microdescriptor_has_its_row() -> None:
    async with scanned_network() as network:
        doc = next(doc for doc in network.docs if doc.nickname == "exit0")
        network.service.hold([one for one in network.docs if one is not doc])
        rows = await scan(network, ["ping"])
    assert rows["exit0"]["reason"] == "no_microdescriptor"
    assert rows["exit1"]["ok"]


async def test_http_tells_status_headers_and_the_bodys_hash() -> None:
    async with scanned_network() as network:
        for name in ("exit0", "exit1"):
            network.relays[name].on_data = answer_http
        network.relays["exit1"].on_data = lambda stream, _: stream.write(b"no HTTP\r\n\r\n")
        rows = await scan(network, ["http", "-H", "Server", "-H", "Age", f"http://{TARGET}/page?x=1"])
    result = rows["exit0"]["result"]
    assert (result["status"], result["headers"], result["length"]) == (
        203,
        {"server": ["fake"], "age": []},
        5,
    )
    assert result["sha256"].startswith("2cf24dba5fb0a30e")
    assert rows["exit0"]["received"] > rows["exit0"]["result"]["length"]
    assert (rows["exit1"]["ok"], rows["exit1"]["reason"]) == (False, "peer_error")


async def test_a_body_without_end_is_cut_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torkit.scan.probes.MAX_BODY_LEN", 1000)
    async with scanned_network(exits=1) as network:
        network.relays["exit0"].on_data = lambda stream, _: stream.write(
            b"HTTP/1.0 200 Yes\r\n\r\n" + b"x" * 5000
        )
        rows = await scan(network, ["http", f"http://{TARGET}/"])
    assert (rows["exit0"]["reason"], rows["exit0"]["result"]["sha256"]) == ("too_long", None)


async def test_dns_tells_what_the_exit_answers() -> None:
    async with scanned_network() as network:
        network.relays["exit0"].hosts = {"web.test": ["192.0.2.7", "2001:db8::7"]}
        rows = await scan(network, ["dns", "web.test"])
    answers = rows["exit0"]["result"]["answers"]
    assert [(answer["kind"], answer["value"]) for answer in answers] == [
        ("ipv4", "192.0.2.7"),
        ("ipv6", "2001:db8::7"),
    ]
    assert (rows["exit1"]["ok"], rows["exit1"]["reason"]) == (False, "resolvefailed")


async def test_tls_with_what_speaks_none_is_a_reason() -> None:
    async with scanned_network(exits=1) as network:
        network.relays["exit0"].on_data = lambda stream, _: stream.write(b"220 no TLS here\r\n")
        rows = await scan(network, ["tls", "web.test"])
    assert (rows["exit0"]["step"], rows["exit0"]["reason"]) == ("probe", "peer_error")


async def banner(stream: trio.abc.Stream) -> dict[str, Any]:
    return {"banner": bytes(await stream.receive_some(100)).decode()}


async def broken(stream: trio.abc.Stream) -> dict[str, Any]:
    raise LookupError("of its own")


def greet(stream: FakeStream) -> None:
    stream.connected()
    stream.write(b"220 hi")


async def test_a_function_of_a_stream_is_a_probe() -> None:
    async with scanned_network(exits=1) as network:
        network.relays["exit0"].on_begin = greet
        rows = await scan(network, OnStream("web.test", 80, banner))
        assert rows["exit0"]["result"] == {"banner": "220 hi"}
        assert rows["exit0"]["probe"] == "banner web.test:80"
        rows = await scan(network, OnStream("web.test", 80, broken))
    assert (rows["exit0"]["reason"], rows["exit0"]["message"]) == (
        "internal_error",
        "LookupError: of its own",
    )


# --- commands --------------------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


GET = """
import os, socket
host, port = os.environ["TORKIT_SOCKS"].split(":")
assert os.environ["ALL_PROXY"] == os.environ["all_proxy"] == f"socks5h://{host}:{port}"
s = socket.create_connection((host, int(port)))
s.sendall(bytes([4, 1, 0, 80, 0, 0, 0, 1, 0]) + b"web.test" + bytes(1))
assert s.recv(8, socket.MSG_WAITALL)[1] == 0x5A
s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
print(os.environ["TORKIT_NICKNAME"], s.recv(12).decode())
"""


async def test_a_command_has_a_proxy_through_the_one_circuit() -> None:
    async with scanned_network() as network:
        for name in ("exit0", "exit1"):
            network.relays[name].on_data = answer_http
        rows = await scan(network, python(GET), limits=FAST._replace(timeout=60))
        begun = [len(network.relays[name].circuits) for name in ("exit0", "exit1")]
    for name, row in rows.items():
        assert row["ok"], row
        assert row["result"]["stdout"] == f"{name} HTTP/1.1 203\n"
        assert row["sent"] == 18
        assert row["received"] >= 12
    assert begun == [1, 1]


@pytest.mark.parametrize(
    ("command", "reason", "result"),
    [
        (["sh", "-c", "echo no >&2; exit 3"], "exit_status", {"status": 3, "stderr": "no\n"}),
        (["sh", "-c", "kill -SEGV $$"], "signal", {"signal": "SIGSEGV", "status": None}),
        (["cat", "/dev/zero"], "too_long", {"signal": "SIGKILL"}),
        (["printf", r"\377\000ok"], None, {"stdout": "\\xff\0ok", "stdout_length": 4}),
        (["sh", "-c", "sleep 1000 & echo left behind"], None, {"stdout": "left behind\n"}),
        (["cat"], None, {"status": 0}),  # it has no stdin
    ],
)
async def test_however_a_command_ends_the_row_says_so(
    command: list[str], reason: str | None, result: dict[str, Any]
) -> None:
    async with scanned_network(exits=1) as network:
        rows = await scan(network, command, limits=FAST._replace(timeout=60))
    row = rows["exit0"]
    assert (row["ok"], row["reason"]) == (reason is None, reason)
    assert result.items() <= row["result"].items()
    assert len(row["result"]["stdout"]) <= 4 * 4096
    json.dumps(row)


async def test_a_command_that_hangs_is_killed_with_what_it_has_started() -> None:
    async with scanned_network(exits=1) as network:
        rows = await scan(network, ["sh", "-c", "sleep 1000 | sleep 1000"], limits=FAST._replace(timeout=0.3))
    assert (rows["exit0"]["step"], rows["exit0"]["reason"]) == ("probe", "timed_out")


# --- gently ----------------------------------------------------------------------------------------


async def test_no_relay_carries_more_circuits_than_it_may() -> None:
    open_at_once = 0
    most = 0

    def begin(stream: FakeStream) -> None:
        nonlocal open_at_once, most
        open_at_once += 1
        most = max(most, open_at_once)
        stream.connected()

    def end(*_: object) -> None:
        nonlocal open_at_once
        open_at_once -= 1

    async with scanned_network(exits=4) as network:
        for n in range(4):
            network.relays[f"exit{n}"].on_begin, network.relays[f"exit{n}"].on_end = begin, end
        rows = await scan(network, ["connect", TARGET], limits=FAST._replace(per_relay=1))
    assert len([row for row in rows.values() if row["ok"]]) == 4
    assert most <= 2  # there are two guards
