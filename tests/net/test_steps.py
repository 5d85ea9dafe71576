"""Long work between which other tasks and all streams have their turns."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import network_docs as nd
import trio

from torkit.directory.authorities import parse_certificates
from torkit.directory.cache import Cache
from torkit.directory.consensus import parse_consensus, read_consensus, read_preamble
from torkit.directory.directory import Directory
from torkit.directory.entries import STEP_LEN
from torkit.directory.microdesc import Microdescs
from torkit.directory.steps import Steps
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.dir.keeper import DirectoryKeeper
from torkit.net.dir.servers import Sources
from torkit.net.dir.steps import in_steps
from torkit.net.link.channels import Channels
from torkit.paths.guards import Guards
from torkit.testing.directory import encode_microdescs
from torkit.testing.directory.authority import HOUR

MAX_TURN_WORK = 30_000  # calls, Python's and C's, between two looks at the streams: some 10 ms


class TurnsOfTrio(trio.abc.Instrument):
    """Counts what `note` is called for, between two looks at the sockets."""

    def __init__(self) -> None:
        self.count = self.most = self.turns = 0

    def note(self, *args: Any) -> None:
        self.count += 1
        self.most = max(self.most, self.count)

    def note_call(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.note()

    def before_io_wait(self, timeout: float) -> None:
        self.count = 0
        self.turns += 1


async def test_a_document_is_read_in_steps() -> None:
    text = nd.consensus(nd.relays(3000), nd.authorities(1))
    turns = TurnsOfTrio()
    trio.lowlevel.add_instrument(turns)
    consensus = await in_steps(read_consensus(read_preamble(text)))
    assert len(consensus.relays) == 3000
    assert turns.turns >= len(text) // STEP_LEN


async def test_several_documents_are_read_at_most_one_step_in_a_turn() -> None:
    turns = TurnsOfTrio()
    trio.lowlevel.add_instrument(turns)

    def work() -> Steps[None]:
        for _ in range(10):
            turns.note()
            yield

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(in_steps, work())
    assert turns.most == 1
    assert turns.turns >= 50


async def test_a_start_with_a_full_size_cache_gives_turns_to_others(tmp_path: Path) -> None:
    now = int(time.time())
    signers = [replace(one, published=now - HOUR, expires=now + HOUR) for one in nd.authorities(9)]
    relays = nd.full_size()
    cache, held = Cache(tmp_path), Microdescs()
    consensus = parse_consensus(nd.consensus(relays, signers, valid_after=now - 60))
    held.add(encode_microdescs(relays), frozenset(filter(None, consensus.relays.digests)), now)
    cache.save_consensus(consensus)
    cache.save_certificates(parse_certificates(b"".join(one.certificate() for one in signers)))
    cache.save_microdescs(held, now)
    guards, turns = Guards(), TurnsOfTrio()

    def missing_guards(directory: Directory) -> list[str]:
        return guards.lacking(directory, now=now, rng=Random(1))

    async with trio.open_nursery() as nursery:
        keeper = DirectoryKeeper(
            authorities={one.v3ident: one.nickname for one in signers},
            sources=lambda directory: Sources([], [], []),
            cache=cache,
            channels=Channels(nursery, Random()),
            settings=CircuitSettings,
            rng=Random(),
            missing_guards=missing_guards,
        )
        trio.lowlevel.add_instrument(turns)
        sys.setprofile(turns.note_call)
        try:
            nursery.start_soon(keeper.run)
            directory = await keeper.wait_ready()
        finally:
            sys.setprofile(None)
        nursery.cancel_scope.cancel()
    assert len(directory) == len(relays)
    assert directory.missing == ()
    assert turns.most < MAX_TURN_WORK
