"""Faults that C tor's advisories name, where no other test plays the attack. docs/security.md lists them."""

from collections.abc import Callable

import pytest
import trio
from served import far_end, open_stream, serve_circuit
from waiting import until

from torkit._fast.cells import RelayCommand
from torkit.errors import CircuitError
from torkit.testing.relay import ignore


async def test_a_circuit_that_is_closed_again_from_within_its_own_end_ends_once() -> None:
    """TROVE-2026-009. Data, an END and DESTROY come at once, and whoever hears of them closes all."""
    async with serve_circuit(3) as (circuit, relays):
        streams = [await open_stream(circuit, relays[2]) for _ in range(3)]
        ends = []

        def on_end(_: object) -> None:
            ends.append(circuit.error)
            circuit.close()
            for stream, _far in streams:
                stream.close()
            circuit.close()

        circuit.on_end = on_end
        streams[1][1].send(RelayCommand.DATA, b"x")
        streams[0][1].send(RelayCommand.DATA, b"y")
        streams[2][1].end()
        far_end(relays[2]).destroy()
        await until(lambda: bool(ends))
        await trio.testing.wait_all_tasks_blocked()
        assert len(ends) == 1


@pytest.mark.parametrize("hop", [1, 2, 3])
async def test_truncated_without_a_reason_ends_the_circuit(hop: int) -> None:
    """TROVE-2026-011."""
    async with serve_circuit(3) as (circuit, relays):
        far_end(relays[2]).send(hop, RelayCommand.TRUNCATED, 0, b"")
        await until(lambda: circuit.error is not None)


@pytest.mark.parametrize(
    "change",
    [
        lambda tag: tag[:-1],
        lambda tag: tag[:4],
        lambda _: b"",
        lambda tag: tag + b"\0",
        lambda tag: tag.ljust(400),
    ],
)
async def test_a_sendme_whose_tag_is_of_another_length_ends_the_circuit(
    change: Callable[[bytes], bytes],
) -> None:
    """TROVE-2026-004 was a comparison over as many bytes as the peer named."""
    async with serve_circuit(3) as (circuit, relays):
        relays[2].on_sendme_due = lambda far, hop, tag: far.sendme(hop, change(tag))
        relays[2].on_data = ignore
        stream, _ = await open_stream(circuit, relays[2])
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(bytes(498 * 2000))
        assert isinstance(circuit.error, CircuitError)
