"""Long work between which other tasks have their turns."""

import network_docs as nd
import trio

from torkit.directory.consensus import read_consensus, read_preamble
from torkit.directory.entries import STEP_LEN
from torkit.net.steps import in_steps


async def test_a_document_is_read_in_steps() -> None:
    text = nd.consensus(nd.relays(3000), nd.authorities(1))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        consensus = await in_steps(read_consensus(read_preamble(text)))
        nursery.cancel_scope.cancel()
    assert len(consensus.relays) == 3000
    assert turns >= len(text) // STEP_LEN
