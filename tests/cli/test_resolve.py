"""`torkit resolve` with a client in memory: what is printed, in which order."""

import json
from collections.abc import Hashable
from typing import Any

import pytest
import trio
import trio.testing
from fake_tor import FakeAnswer, FakeTor, as_tor

from torkit.cli.resolve import MAX_AT_ONCE, resolve_all
from torkit.errors import EndReason, StreamClosed


class Answer(FakeAnswer):
    def _asdict(self) -> dict[str, Any]:
        return {"kind": self.kind, "value": self.value, "ttl": 60}


class SlowTor(FakeTor):
    """The first name that is asked for is answered last; `no.test` does not exist."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_once = self.most_at_once = 0

    async def resolve(self, host: str, *, isolation: Hashable = None, path: object = None) -> list[Answer]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await trio.sleep(1 if host == "slow.test" else 0.1)
        self.at_once -= 1
        if host == "no.test":
            raise StreamClosed("no such name", reason=EndReason.RESOLVEFAILED)
        return [Answer("ipv4", "192.0.2.1"), Answer("ipv6", "2001:db8::1")]


async def test_all_answers_are_printed_in_the_order_of_the_names(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    failures = await resolve_all(as_tor(SlowTor()), ["slow.test", "no.test", "a.test"], None, as_json=False)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        *("slow.test\t192.0.2.1", "slow.test\t2001:db8::1"),
        *("a.test\t192.0.2.1", "a.test\t2001:db8::1"),
    ]
    assert err == "torkit: no.test: no such name\n"
    assert [str(failure) for failure in failures] == ["no such name"]


async def test_json_has_a_line_for_each_name(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    await resolve_all(as_tor(SlowTor()), ["no.test", "a.test"], None, as_json=True)
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"name": "no.test", "error": "no such name"},
        {
            "name": "a.test",
            "answers": [
                {"kind": "ipv4", "value": "192.0.2.1", "ttl": 60},
                {"kind": "ipv6", "value": "2001:db8::1", "ttl": 60},
            ],
        },
    ]
    assert err == ""


async def test_only_some_are_looked_up_at_once(autojump_clock: trio.testing.MockClock) -> None:
    tor = SlowTor()
    names = [f"n{number}.test" for number in range(3 * MAX_AT_ONCE)]
    assert await resolve_all(as_tor(tor), names, None, as_json=False) == []
    assert tor.most_at_once == MAX_AT_ONCE
