"""A network of scripted relays whose directory is of full size, in a process of its own.

Puts into DIR what a client's data directory holds that was last used some hours ago, prints a JSON object
that says where the network is, and serves until its stdin ends. Every stream brings data without end.
"""

import json
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import network_docs as nd
import trio
from served import doc_of, fresh_relays, serve

from torkit.directory.authorities import parse_certificates
from torkit.directory.cache import Cache
from torkit.directory.consensus import parse_consensus
from torkit.directory.microdesc import Microdescs
from torkit.testing.directory import (
    DirectoryService,
    RelayDoc,
    consensus_diff,
    encode_microdescs,
    make_authorities,
    signed_service,
)
from torkit.testing.directory.authority import HOUR
from torkit.testing.relay import FakeStream

STREAM_LEN = 64 << 20  # bytes: more than a run brings
NAMES = ("middle", "guard0", "guard1", "guard2", "exit0", "exit1")
BANDWIDTH = 100_000_000  # of those that are there, so that no path goes through one that is not


def crowd(seed: int) -> list[RelayDoc]:
    """The relays that nobody can reach. With another seed each has another microdescriptor."""
    rng = Random(seed)
    return [
        replace(doc, address="127.0.0.1", or_port=9, bandwidth=1, ipv6=None, onion_key=rng.randbytes(140))
        for doc in nd.full_size()
    ]


def flow(stream: FakeStream) -> None:
    stream.connected()
    stream.write(bytes(STREAM_LEN))


def keep(directory: Path, service: DirectoryService, docs: list[RelayDoc]) -> None:
    """A data directory with this consensus and these relays' microdescriptors."""
    cache, now = Cache(directory), time.time()
    consensus = parse_consensus(service.consensus)
    cache.save_consensus(consensus)
    cache.save_certificates(parse_certificates(service.certificates))
    held = Microdescs()
    held.add(encode_microdescs(docs), {digest for digest in consensus.relays.digests if digest}, now)
    cache.save_microdescs(held, now)


async def main(directory: Path, is_diff: bool) -> None:
    relays = dict(zip(NAMES, fresh_relays(len(NAMES)), strict=True))
    signers = make_authorities(9)
    async with AsyncExitStack() as stack:
        for fake in relays.values():
            await stack.enter_async_context(serve(fake))
        flags = {"g": "Guard", "e": "Exit"}
        docs = [
            replace(
                doc_of(fake, name, flags=flags.get(name[0], ""), policy="accept 80,443"),
                bandwidth=BANDWIDTH,
            )
            for name, fake in relays.items()
        ]
        now = int(time.time())
        old = signed_service([*docs, *crowd(1)], signers, valid_after=now - 4 * HOUR)
        keep(directory, old, [*docs, *crowd(1)])
        service = signed_service([*docs, *crowd(2)], signers)
        if is_diff:
            service.diff = consensus_diff(old.consensus, service.consensus)
        for fake in relays.values():
            fake.directory, fake.on_begin = service, flow
        middle = relays["middle"]
        print(
            json.dumps(
                {
                    "authorities": {one.v3ident.hex(): one.nickname for one in signers},
                    "fallback": [*middle.address, middle.rsa_identity.hex()],
                }
            ),
            flush=True,
        )
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), "--diff" in sys.argv)
