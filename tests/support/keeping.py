"""A keeper of the directory at work: signed synthetic documents, served by scripted relays over real TLS."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import network_docs
import pytest
import trio
import trio.testing
import waiting
from served import fresh_relays, serve, source_of

from torkit.directory.cache import Cache
from torkit.directory.consensus import Consensus
from torkit.directory.directory import Directory
from torkit.errors import TorkitError
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.dir.keeper import DirectoryKeeper
from torkit.net.dir.servers import Sources
from torkit.net.link.channels import Channels
from torkit.paths.guards import Guards
from torkit.testing.directory import DirectoryService, FakeAuthority, make_authorities, signed_service
from torkit.testing.directory.authority import HOUR
from torkit.testing.relay import FakeRelay

DOCS = network_docs.relays(30)
MINUTE = 60
CONSENSUS_PATH = "/tor/status-vote/current/consensus-microdesc"


class Eager(Random):
    """Chooses the earliest moment for everything."""

    def random(self) -> float:
        return 0.0

    def getrandbits(self, k: int, /) -> int:
        """Shuffles stay shuffles: without this they would be drawn from `random`."""
        return super().getrandbits(k)


@dataclass
class Started:
    keeper: DirectoryKeeper
    relays: list[FakeRelay]
    asked_with: list[Directory | None]  # what `sources` was called with


@asynccontextmanager
async def keeping(
    data_dir: Path,
    signers: Sequence[FakeAuthority],
    services: Sequence[Callable[[bytes], bytes] | None],
    *,
    given: Consensus | None = None,
    authority_count: int = 0,
    guards: Guards | None = None,
    is_cache_shared: bool = False,
) -> AsyncIterator[Started]:
    """A keeper that runs, and one relay for each of `services`, asked in this order.

    The last `authority_count` are authorities, the others fallbacks. `guards` are waited for.
    """
    relays = fresh_relays(len(services))
    asked_with: list[Directory | None] = []
    async with AsyncExitStack() as stack:
        for relay, service in zip(relays, services, strict=True):
            relay.directory = service
            await stack.enter_async_context(serve(relay))

        def ask(directory: Directory | None) -> Sources:
            asked_with.append(directory)
            servers = [source_of(relay) for relay in relays]
            fallback_count = len(servers) - authority_count
            return Sources([], servers[:fallback_count], servers[fallback_count:])

        def missing_guards(directory: Directory) -> list[str]:
            return guards.lacking(directory, now=time.time(), rng=Random(1)) if guards else []

        async with trio.open_nursery() as nursery:
            keeper = DirectoryKeeper(
                authorities={one.v3ident: one.nickname for one in signers},
                sources=ask,
                cache=Cache(data_dir),
                is_cache_shared=is_cache_shared,
                channels=Channels(nursery, Random()),
                settings=CircuitSettings,
                rng=Eager(),
                consensus=given,
                missing_guards=missing_guards,
            )
            nursery.start_soon(keeper.run)
            yield Started(keeper, relays, asked_with)
            nursery.cancel_scope.cancel()
    assert [relay.complaints for relay in relays] == [[]] * len(relays)


def microdescs_asked_of(service: DirectoryService) -> list[list[str]]:
    """The base64 digests in each request."""
    prefix = "/tor/micro/d/"
    return [path.removeprefix(prefix).split("-") for path in service.requests if path.startswith(prefix)]


async def fill_cache(data_dir: Path, signers: Sequence[FakeAuthority], service: DirectoryService) -> None:
    async with keeping(data_dir, signers, [service]) as started:
        await started.keeper.wait_ready()
    service.requests.clear()


async def refusal(keeper: DirectoryKeeper) -> TorkitError:
    """What whoever waits is told."""
    with pytest.raises(TorkitError) as caught:
        await keeper.wait_ready()
    assert keeper.directory is None
    return caught.value


def stale_service(signers: Sequence[FakeAuthority]) -> DirectoryService:
    """Valid, and so old that it is to be replaced."""
    return signed_service(DOCS, signers, valid_after=int(time.time()) - 5 * HOUR // 2)


until = partial(waiting.until, seconds=20 * MINUTE, step=1)


def forged(good: DirectoryService) -> None:
    """Other relays, signed by authorities nobody has configured."""
    strangers = make_authorities(first=50)
    bad = signed_service(DOCS, strangers)
    good.consensus, good.certificates = bad.consensus, bad.certificates


def expired(good: DirectoryService) -> None:
    there = int(time.time()) - 28 * HOUR
    good.consensus = signed_service(DOCS, make_authorities(), valid_after=there).consensus


def from_the_future(good: DirectoryService) -> None:
    there = int(time.time()) + 26 * HOUR
    good.consensus = signed_service(DOCS, make_authorities(), valid_after=there).consensus


def half_signed(good: DirectoryService) -> None:
    good.consensus = signed_service(DOCS, make_authorities()[:1]).consensus


def one_signature_thrice(good: DirectoryService) -> None:
    good.consensus = signed_service(DOCS, make_authorities()[:1] * 3).consensus


def bit_flipped(good: DirectoryService) -> None:
    at = good.consensus.index(b"Bandwidth=") + len(b"Bandwidth=")
    changed = b"1" if good.consensus[at : at + 1] != b"1" else b"2"
    good.consensus = good.consensus[:at] + changed + good.consensus[at + 1 :]


def truncated(good: DirectoryService) -> None:
    good.consensus = good.consensus[: len(good.consensus) // 2]


def another_flavor(good: DirectoryService) -> None:
    good.consensus = network_docs.consensus(
        DOCS, make_authorities(), flavor="ns", valid_after=int(time.time()) - HOUR // 2
    )


def rubbish(good: DirectoryService) -> None:
    good.consensus = Random(1).randbytes(5000)


def without_certificates(good: DirectoryService) -> None:
    good.certificates = b""


def certificates_expired(good: DirectoryService) -> None:
    now = int(time.time())
    old = [replace(one, published=now - 300 * HOUR, expires=now - HOUR) for one in make_authorities()]
    good.certificates = b"".join(one.certificate() for one in old)


def certificate_flipped(good: DirectoryService) -> None:
    at = good.certificates.rindex(b"-----BEGIN SIGNATURE") + 40
    good.certificates = good.certificates[:at] + b"AAAA" + good.certificates[at + 4 :]
