"""Opens a client of a network: what earlier starts have kept, the parts, and the end that they come to."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import SystemRandom

import trio

from torkit.config import SHARED_CACHE, Network, StrPath, chosen_data_dir, chosen_network, make_data_dir
from torkit.directory.cache import Cache
from torkit.directory.directory import CountryOf
from torkit.errors import InternalError, UsageError
from torkit.net.contact import DirectoryServer
from torkit.net.dir.servers import Sources
from torkit.net.journal import trace
from torkit.net.link.pump import Pump
from torkit.net.memory import limit_memory
from torkit.net.parts import Parts, Settings
from torkit.net.shortage import run_in_thread
from torkit.net.state import load_state
from torkit.paths.constraints import Constraints, country_in, is_excluded


@asynccontextmanager
async def open_parts(
    named: Network | StrPath | None,
    data_dir: StrPath | None,
    shared_cache: StrPath | None,
    max_memory: int | None,
    settings: Settings,
) -> AsyncIterator[tuple[Network, Parts]]:
    """The network, and the parts of a client of it, running until the block ends. Raises as `open_tor`."""
    if not trio.lowlevel.in_trio_task():
        raise UsageError(
            "torkit.open_tor runs under trio: use torkit.aio.open_tor under asyncio, and "
            "torkit.blocking.open_tor without an event loop"
        )
    if isinstance(named, Network):
        network = named
    else:  # in a thread: the file may be a pipe that nobody writes to
        network = await run_in_thread(chosen_network, named, abandon_on_cancel=True)
    cache = Cache(chosen_data_dir(network, data_dir))
    documents = cache
    if shared_cache is not None:
        make_data_dir(Path(shared_cache), *SHARED_CACHE)
        documents = Cache(Path(shared_cache))
    limit_memory(max_memory)
    rng = SystemRandom()
    restrictions = settings.restrictions._replace(distinct_subnets=network.distinct_subnets)
    names = restrictions.entries | restrictions.exits | restrictions.exclude
    if settings.country_of is None and any(map(country_in, names)):
        raise UsageError("restrictions by country need country_of")
    servers = await run_in_thread(_directory_servers, network, restrictions, settings.country_of)
    state, guards = await run_in_thread(load_state, cache, restrictions, rng, time.time())
    try:
        async with trio.open_nursery() as nursery:
            parts = Parts(
                nursery,
                cache,
                documents,
                rng,
                servers,
                voters=network.voters,
                testing=network.testing,
                settings=settings._replace(restrictions=restrictions),
                state=state,
                guards=guards,
            )
            if os.environ.get("TORKIT_TRACE") == "1":
                parts.journal.add(trace)
            nursery.start_soon(parts.run)
            nursery.start_soon(Pump.current().wait_fault)
            try:
                yield network, parts
            finally:
                await parts.aclose()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The background tasks raise nothing but the pump's failure: else a single exception is the caller's.
        for error in group.exceptions:
            if isinstance(error, InternalError):
                raise error from group
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def _directory_servers(network: Network, restrictions: Constraints, country_of: CountryOf | None) -> Sources:
    """Returns the directory servers that the network names: there are no guards to ask yet.

    None that the user excludes, not as the last resort either, which they are for C tor. Only authorities
    have nicknames here.
    """

    names_countries = any(map(country_in, restrictions.exclude))

    def is_allowed(server: DirectoryServer, nickname: str = "") -> bool:
        country = country_of(server.address) if country_of is not None and names_countries else None
        return not is_excluded(restrictions, server.identity, nickname, country)

    fallbacks = [DirectoryServer(f.identity, f.address, f.or_port, f.ipv6) for f in network.fallbacks]
    authorities = [
        (DirectoryServer(a.fingerprint, a.address, a.or_port, a.ipv6), a.nickname)
        for a in network.authorities
        if a.or_port is not None
    ]
    return Sources(
        [],
        [server for server in fallbacks if is_allowed(server)],
        [server for server, nickname in authorities if is_allowed(server, nickname)],
    )
