"""The one circuit of a probe: what leaves by it, and what it lets in."""

import pytest
from served import serve_circuit

from torkit.errors import EndReason, StreamClosed, UsageError
from torkit.scan import way as ways
from torkit.scan.way import Way


async def test_a_probe_opens_no_more_streams_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "MAX_STREAMS", 2)
    async with serve_circuit() as (circuit, _):
        way = Way(circuit, allow_internal=True)
        for _ in range(2):
            await way.connect("web.test", 80)
        with pytest.raises(StreamClosed, match="may open 2 streams") as raised:
            way.begin("web.test", 80)
        assert raised.value.reason is EndReason.RESOURCELIMIT
        assert circuit.stream_count == 2


async def test_a_look_up_shows_what_a_program_is_not_told() -> None:
    async with serve_circuit() as (circuit, relays):
        relays[2].hosts = {"web.test": ["10.0.0.1"], "both.test": ["10.0.0.1", "192.0.2.1"]}
        way = Way(circuit, allow_internal=False)
        assert [answer.value for answer in await way.look_up("web.test")] == ["10.0.0.1"]
        with pytest.raises(StreamClosed) as raised:
            await way.resolve("web.test")
        assert raised.value.reason is EndReason.RESOLVEFAILED
        assert [answer.value for answer in await way.resolve("both.test")] == ["192.0.2.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "x.onion", "x.exit", "0.0.0.0", "a b"])
async def test_what_no_exit_can_reach_is_asked_of_none(host: str) -> None:
    async with serve_circuit() as (circuit, _):
        way = Way(circuit, allow_internal=False)
        with pytest.raises(UsageError):
            way.begin(host, 80)
        with pytest.raises(UsageError):
            await way.look_up(host)
        assert way.bytes == (0, 0)
