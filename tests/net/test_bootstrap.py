"""The directory kept up to date: signed synthetic documents, served by scripted relays over real TLS."""

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random

import network_docs
import pytest
import trio
import trio.testing
import waiting
from fakes import FakeRelay, FakeStream, answer_begin_dir, http_response, ignore
from network_docs import HOUR, RelayDoc, TestAuthority, bare64
from served import DirectoryService, authorities, fresh_relays, serve, signed_service, source_of

from torkit.directory.cache import Cache
from torkit.directory.consensus import Consensus, parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.trust import REASONABLY_LIVE
from torkit.errors import ClockSkewed, DocumentError, NoDirectory, TorkitError
from torkit.net.circuit.circuit import CircuitSettings
from torkit.net.dir.fetch import MICRODESCS_PER_REQUEST
from torkit.net.dir.keeper import MISSING_RETRY, ROUNDS_BEFORE_ERROR, DirectoryKeeper
from torkit.net.dir.servers import STAGGER, Sources
from torkit.net.link.channels import Channels
from torkit.paths.guards import Guards

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


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps to the next deadline when for a while nothing moved: the sockets' other ends are in here too."""
    return trio.testing.MockClock(autojump_threshold=0.05)


@pytest.fixture
def signers() -> list[TestAuthority]:
    return authorities()


@pytest.fixture
def service(signers: list[TestAuthority]) -> DirectoryService:
    return signed_service(DOCS, signers)


@dataclass
class Started:
    bootstrap: DirectoryKeeper
    relays: list[FakeRelay]
    asked_with: list[Directory | None]  # what `sources` was called with


@asynccontextmanager
async def bootstrapping(
    data_dir: Path,
    signers: Sequence[TestAuthority],
    services: Sequence[Callable[[bytes], bytes] | None],
    *,
    given: Consensus | None = None,
    authority_count: int = 0,
    guards: Guards | None = None,
) -> AsyncIterator[Started]:
    """A bootstrap that runs, from one relay for each of `services`, asked in this order.

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
            bootstrap = DirectoryKeeper(
                authorities={one.v3ident: one.nickname for one in signers},
                sources=ask,
                cache=Cache(data_dir),
                channels=Channels(nursery, Random()),
                settings=CircuitSettings,
                rng=Eager(),
                consensus=given,
                missing_guards=missing_guards,
            )
            nursery.start_soon(bootstrap.run)
            yield Started(bootstrap, relays, asked_with)
            nursery.cancel_scope.cancel()
    assert [relay.complaints for relay in relays] == [[]] * len(relays)


def microdescs_asked_of(service: DirectoryService) -> list[list[str]]:
    """The base64 digests in each request."""
    prefix = "/tor/micro/d/"
    return [path.removeprefix(prefix).split("-") for path in service.requests if path.startswith(prefix)]


async def fill_cache(data_dir: Path, signers: Sequence[TestAuthority], service: DirectoryService) -> None:
    async with bootstrapping(data_dir, signers, [service]) as started:
        await started.bootstrap.wait_ready()
    service.requests.clear()


async def refusal(bootstrap: DirectoryKeeper) -> TorkitError:
    """What whoever waits is told."""
    with pytest.raises(TorkitError) as caught:
        await bootstrap.wait_ready()
    assert bootstrap.directory is None
    return caught.value


# --- A fresh start -------------------------------------------------------------------------------------


async def test_a_fresh_start_fetches_consensus_certificates_and_microdescs(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    async with bootstrapping(tmp_path, signers, [service]) as started:
        directory = await started.bootstrap.wait_ready()
        assert len(directory) == 30
        assert directory.missing == ()
        assert started.bootstrap.directory is directory
        assert [one and len(one) for one in started.asked_with] == [None, 30]
    paths = [path.split("/")[2] for path in service.requests]
    assert paths == ["status-vote", "keys", "micro"]


async def test_a_second_start_needs_no_network(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    await fill_cache(tmp_path, signers, service)
    async with bootstrapping(tmp_path, signers, [service]) as started:
        assert len(await started.bootstrap.wait_ready()) == 30
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert started.relays[0].links == []
    assert service.requests == []


async def test_microdescs_come_in_parts_from_several_sources(
    tmp_path: Path, signers: list[TestAuthority]
) -> None:
    docs = network_docs.relays(2 * MICRODESCS_PER_REQUEST + 100)
    services = [signed_service(docs, signers) for _ in range(4)]
    async with bootstrapping(tmp_path, signers, services) as started:
        assert (await started.bootstrap.wait_ready()).missing == ()
    parts = [part for service in services for part in microdescs_asked_of(service)]
    assert sorted(map(len, parts)) == [366, 367, 367]
    assert max(len(microdescs_asked_of(service)) for service in services) == 1
    asked = [digest for part in parts for digest in part]
    assert len(set(asked)) == len(docs)
    listed = [bare64(digest or b"") for digest in parse_consensus(services[0].consensus).relays.digests]
    for part in parts:  # shuffled: no source sees which relays stand together
        assert part != sorted(part, key=listed.index)


async def test_a_certificate_held_is_not_fetched_again(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    await fill_cache(tmp_path, signers, service)
    (tmp_path / "consensus-microdesc").unlink()
    async with bootstrapping(tmp_path, signers, [service]) as started:
        await started.bootstrap.wait_ready()
    assert service.requests == [CONSENSUS_PATH]


async def test_certificates_of_renewed_signing_keys_are_fetched_and_older_ones_go_on_counting(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    await fill_cache(tmp_path, signers, service)
    renewed = [
        replace(signers[0], signing_key=network_docs.rsa_key(301), published=int(time.time()) - HOUR),
        signers[1],
        replace(signers[2], signing_key=network_docs.rsa_key(302), published=int(time.time()) - HOUR),
    ]
    newer = signed_service(DOCS, renewed)
    (tmp_path / "consensus-microdesc").unlink()
    async with bootstrapping(tmp_path, signers, [newer]) as started:
        await started.bootstrap.wait_ready()
    (fetched,) = (path for path in newer.requests if path.startswith("/tor/keys/"))
    asked_for = {pair.split("-")[0] for pair in fetched.removeprefix("/tor/keys/fp-sk/").split("+")}
    assert asked_for == {one.v3ident.hex().upper() for one in (renewed[0], renewed[2])}
    kept = Cache(tmp_path).load_certificates()
    assert kept is not None
    assert {one.signing_key_digest for one in kept} == {
        one.signing_key_digest for one in (*signers, *renewed)
    }
    (tmp_path / "consensus-microdesc").unlink()
    async with bootstrapping(tmp_path, signers, [service]) as started:  # signed with the keys of before
        await started.bootstrap.wait_ready()
    assert service.requests == [CONSENSUS_PATH]


async def test_where_the_newest_certificate_is_not_of_the_key_that_signed_that_one_is_asked_for(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    newer = replace(signers[1], signing_key=network_docs.rsa_key(305))
    answers = [b"".join(one.certificate() for one in (signers[0], newer, signers[2])), service.certificates]

    class Service(DirectoryService):
        def __call__(self, request: bytes) -> bytes:
            if b"/tor/keys/" in request:
                self.certificates = answers.pop(0)
            return super().__call__(request)

    renewing = Service(service.consensus, microdescs=service.microdescs)
    async with bootstrapping(tmp_path, signers, [renewing]) as started:
        await started.bootstrap.wait_ready()
    everybody = "+".join(one.v3ident.hex() for one in signers)
    key = f"{signers[1].v3ident.hex()}-{signers[1].signing_key_digest.hex()}"
    assert renewing.requests[1:3] == [
        f"/tor/keys/fp/{everybody.upper()}",
        f"/tor/keys/fp-sk/{key.upper()}",
    ]


async def test_certificates_of_strangers_are_not_kept(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    stranger = replace(
        signers[0], identity_key=network_docs.rsa_key(303), signing_key=network_docs.rsa_key(304)
    )
    service.certificates += stranger.certificate()
    async with bootstrapping(tmp_path, signers, [service]) as started:
        await started.bootstrap.wait_ready()
    kept = Cache(tmp_path).load_certificates()
    assert kept is not None
    assert {one.identity for one in kept} == {one.v3ident for one in signers}


@pytest.mark.parametrize("name", ["consensus-microdesc", "certificates", "microdescs"])
@pytest.mark.parametrize("damage", ["emptied", "overwritten", "changed"])
async def test_a_damaged_cache_is_fetched_anew(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, name: str, damage: str
) -> None:
    await fill_cache(tmp_path, signers, service)
    file = tmp_path / name
    match damage:
        case "emptied":
            file.write_bytes(b"")
        case "overwritten":
            file.write_bytes(b"rubbish\n")
        case "changed":
            file.write_bytes(
                re.sub(
                    rb"(Bandwidth=|SIGNATURE-----\n|ntor-onion-key ).", rb"\1%", file.read_bytes(), count=1
                )
            )
    async with bootstrapping(tmp_path, signers, [service]) as started:
        directory = await started.bootstrap.wait_ready()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert directory.usable_fraction() > 0.6
    assert service.requests


async def test_a_data_directory_that_cannot_be_used_is_done_without(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    nowhere = tmp_path / "file" / "inside"
    (tmp_path / "file").write_bytes(b"")
    async with bootstrapping(nowhere, signers, [service]) as started:
        assert len(await started.bootstrap.wait_ready()) == 30


# --- Documents that are refused ------------------------------------------------------------------------


def forged(good: DirectoryService) -> None:
    """Other relays, signed by authorities nobody has configured."""
    strangers = [
        replace(
            one, identity_key=network_docs.rsa_key(100 + 2 * n), signing_key=network_docs.rsa_key(101 + 2 * n)
        )
        for n, one in enumerate(authorities())
    ]
    bad = signed_service(DOCS, strangers)
    good.consensus, good.certificates = bad.consensus, bad.certificates


def expired(good: DirectoryService) -> None:
    good.consensus = signed_service(DOCS, authorities(), valid_after=int(time.time()) - 28 * HOUR).consensus


def from_the_future(good: DirectoryService) -> None:
    good.consensus = signed_service(DOCS, authorities(), valid_after=int(time.time()) + 26 * HOUR).consensus


def half_signed(good: DirectoryService) -> None:
    good.consensus = signed_service(DOCS, authorities()[:1]).consensus


def one_signature_thrice(good: DirectoryService) -> None:
    good.consensus = signed_service(DOCS, authorities()[:1] * 3).consensus


def bit_flipped(good: DirectoryService) -> None:
    at = good.consensus.index(b"Bandwidth=") + len(b"Bandwidth=")
    changed = b"1" if good.consensus[at : at + 1] != b"1" else b"2"
    good.consensus = good.consensus[:at] + changed + good.consensus[at + 1 :]


def truncated(good: DirectoryService) -> None:
    good.consensus = good.consensus[: len(good.consensus) // 2]


def another_flavor(good: DirectoryService) -> None:
    good.consensus = network_docs.consensus(
        DOCS, authorities(), flavor="ns", valid_after=int(time.time()) - HOUR // 2
    )


def rubbish(good: DirectoryService) -> None:
    good.consensus = Random(1).randbytes(5000)


def without_certificates(good: DirectoryService) -> None:
    good.certificates = b""


def certificates_expired(good: DirectoryService) -> None:
    now = int(time.time())
    old = [replace(one, published=now - 300 * HOUR, expires=now - HOUR) for one in authorities()]
    good.certificates = b"".join(one.certificate() for one in old)


def certificate_flipped(good: DirectoryService) -> None:
    at = good.certificates.rindex(b"-----BEGIN SIGNATURE") + 40
    good.certificates = good.certificates[:at] + b"AAAA" + good.certificates[at + 4 :]


REFUSED_THOUGH_CERTIFICATES_ARE_AT_HAND = [
    forged,
    expired,
    from_the_future,
    half_signed,
    one_signature_thrice,
    bit_flipped,
    truncated,
    another_flavor,
    rubbish,
]
REFUSED = [
    *REFUSED_THOUGH_CERTIFICATES_ARE_AT_HAND,
    without_certificates,
    certificates_expired,
    certificate_flipped,
]


@pytest.mark.parametrize("spoil", REFUSED)
async def test_what_cannot_be_believed_is_refused_with_its_reason_and_not_kept(
    tmp_path: Path,
    signers: list[TestAuthority],
    service: DirectoryService,
    spoil: Callable[[DirectoryService], None],
    clock: trio.testing.MockClock,
) -> None:
    spoil(service)
    async with bootstrapping(tmp_path, signers, [service]) as started:
        assert isinstance(await refusal(started.bootstrap), (DocumentError, NoDirectory))
    assert service.requests.count(CONSENSUS_PATH) == ROUNDS_BEFORE_ERROR
    assert not (tmp_path / "consensus-microdesc").exists()
    assert not any(path.startswith("/tor/micro") for path in service.requests)


@pytest.mark.parametrize("spoil", REFUSED_THOUGH_CERTIFICATES_ARE_AT_HAND)
async def test_the_good_cached_one_is_kept_and_used(
    tmp_path: Path,
    signers: list[TestAuthority],
    spoil: Callable[[DirectoryService], None],
    clock: trio.testing.MockClock,
) -> None:
    # Old enough to be replaced, and still valid.
    service = signed_service(DOCS, signers, valid_after=int(time.time()) - 5 * HOUR // 2)
    await fill_cache(tmp_path, signers, service)
    kept = (tmp_path / "consensus-microdesc").read_bytes()
    service.consensus = signed_service(DOCS, signers).consensus
    spoil(service)
    async with bootstrapping(tmp_path, signers, [service]) as started:
        directory = await started.bootstrap.wait_ready()
        await until(lambda: service.requests.count(CONSENSUS_PATH) >= 4)
        assert started.bootstrap.directory is directory
        assert directory.consensus.text == kept
        assert started.bootstrap.failure is None
    assert service.requests.count(CONSENSUS_PATH) >= 3
    assert (tmp_path / "consensus-microdesc").read_bytes() == kept


async def test_a_cached_consensus_past_reasonable_age_is_not_used(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    await fill_cache(tmp_path, signers, service)
    for age, is_used in ((REASONABLY_LIVE - HOUR, True), (REASONABLY_LIVE + HOUR, False)):
        old = signed_service(DOCS, signers, valid_after=int(time.time()) - 3 * HOUR - age)
        (tmp_path / "consensus-microdesc").write_bytes(old.consensus)
        async with bootstrapping(tmp_path, signers, [None]) as started:
            if is_used:
                assert (await started.bootstrap.wait_ready()).consensus.text == old.consensus
            else:
                await refusal(started.bootstrap)


async def test_one_that_has_expired_serves_circuits_but_is_not_handed_out(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    await fill_cache(tmp_path, signers, service)
    old = signed_service(DOCS, signers, valid_after=int(time.time()) - 5 * HOUR)
    (tmp_path / "consensus-microdesc").write_bytes(old.consensus)
    async with bootstrapping(tmp_path, signers, [None]) as started:
        assert (await started.bootstrap.wait_ready()).consensus.text == old.consensus
        with pytest.raises(TorkitError):
            await started.bootstrap.wait_consensus()
    async with bootstrapping(tmp_path, signers, [service]) as started:
        assert (await started.bootstrap.wait_consensus()).text == service.consensus


async def test_a_cache_of_another_network_is_not_used(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    await fill_cache(tmp_path, signers, service)
    others = [replace(one, identity_key=network_docs.rsa_key(200 + n)) for n, one in enumerate(signers)]
    other_service = signed_service(DOCS[:20], others)
    async with bootstrapping(tmp_path, others, [other_service]) as started:
        assert len(await started.bootstrap.wait_ready()) == 20


async def test_microdescs_not_asked_for_are_not_taken(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    evil = [replace(doc, ntor_onion_key=b"\xee" * 32) for doc in DOCS]
    liar = DirectoryService(service.consensus, service.certificates)
    by_digest = list(service.microdescs)
    liar.microdescs = dict(zip(by_digest, (doc.microdesc() for doc in evil), strict=True))
    async with bootstrapping(tmp_path, signers, [liar]) as started:
        assert isinstance(await refusal(started.bootstrap), NoDirectory)
    assert b"7u7u7u7u" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


# --- Sources -------------------------------------------------------------------------------------------


async def test_a_source_that_fails_is_passed_over(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    liar = signed_service(DOCS, signers)
    bit_flipped(liar)
    async with bootstrapping(tmp_path, signers, [None, liar, lambda _: b"rubbish", service]) as started:
        assert (await started.bootstrap.wait_ready()).consensus.text == service.consensus


async def test_a_silent_source_is_overtaken(
    tmp_path: Path,
    signers: list[TestAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
) -> None:
    async with bootstrapping(tmp_path, signers, [service, service]) as started:
        started.relays[0].on_versions = ignore
        before = trio.current_time()
        await started.bootstrap.wait_ready()
        assert trio.current_time() - before == pytest.approx(STAGGER)


async def test_authorities_are_left_alone_where_fallbacks_serve(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    async with bootstrapping(tmp_path, signers, [None, service, service], authority_count=1) as started:
        await started.bootstrap.wait_ready()
        assert started.relays[2].links == []


@pytest.mark.parametrize("status", ["404 Not found", "503 Directory busy"])
async def test_one_that_has_not_what_is_asked_for_is_named_as_such(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock, status: str
) -> None:
    async with bootstrapping(tmp_path, signers, [lambda _: http_response(b"", status=status)]) as started:
        assert status in str(await refusal(started.bootstrap))


async def test_what_one_source_lacks_comes_from_another(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    partial = signed_service(DOCS, signers)
    partial.hold(DOCS[:20])
    async with bootstrapping(tmp_path, signers, [partial, service]) as started:
        await started.bootstrap.wait_ready()
        await until(lambda: started.bootstrap.directory and not started.bootstrap.directory.missing)
    (rest,) = microdescs_asked_of(service)
    assert len(rest) == 10
    assert len(microdescs_asked_of(partial)) == 1


async def test_what_nobody_had_is_asked_for_again_later(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    """The next consensus may be hours away."""
    light = sorted(DOCS, key=lambda doc: doc.bandwidth or 0)[:3]
    everything = dict(service.microdescs)
    service.hold([doc for doc in DOCS if doc not in light])
    async with bootstrapping(tmp_path, signers, [service]) as started:
        assert len((await started.bootstrap.wait_ready()).missing) == 3
        service.microdescs = everything
        asked = trio.current_time()
        await until(
            lambda: started.bootstrap.directory and not started.bootstrap.directory.missing, step=MINUTE
        )
        assert trio.current_time() - asked == pytest.approx(MISSING_RETRY, abs=3 * MINUTE)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["consensus", "certificates", "microdescs"])
async def test_a_source_that_dies_in_mid_answer_is_passed_over(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, number: int
) -> None:
    answers = [service.consensus, service.certificates, b"".join(service.microdescs.values())]
    begun: list[FakeStream] = []

    def die_in_mid_answer(stream: FakeStream) -> None:
        begun.append(stream)
        answer_begin_dir(stream)
        if len(begun) == number + 1:
            answer = http_response(answers[number])
            stream.write(answer[: len(answer) * 2 // 3])
            stream.circuit.link.close(abrupt=True)

    async with bootstrapping(tmp_path, signers, [service, service]) as started:
        started.relays[0].on_begin_dir = die_in_mid_answer
        directory = await started.bootstrap.wait_ready()
        assert len(directory) == 30
        assert len(begun) == number + 1
        assert started.relays[1].links != []


async def test_no_source_is_a_failure_told(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    async with bootstrapping(tmp_path, signers, []) as started:
        assert isinstance(await refusal(started.bootstrap), NoDirectory)


async def test_failure_is_forgotten_when_the_directory_comes(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    good = service.consensus
    half_signed(service)
    async with bootstrapping(tmp_path, signers, [service]) as started:
        assert "1 good signatures, 2 of 3" in str(await refusal(started.bootstrap))
        service.consensus = good
        await started.bootstrap.is_ready.wait()
        assert len(await started.bootstrap.wait_ready()) == 30


# --- Enough microdescriptors ---------------------------------------------------------------------------


async def test_it_is_not_usable_before_there_are_enough_microdescs(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    everything = dict(service.microdescs)
    service.microdescs = dict(list(everything.items())[:10])
    async with bootstrapping(tmp_path, signers, [service]) as started:
        assert isinstance(await refusal(started.bootstrap), NoDirectory)
        assert started.bootstrap.directory is None
        service.microdescs = everything
        await started.bootstrap.is_ready.wait()
        directory = await started.bootstrap.wait_ready()
        assert directory.missing == ()
    assert service.requests.count(CONSENSUS_PATH) == 1
    asked_last = service.requests[-1].removeprefix("/tor/micro/d/").split("-")
    assert len(asked_last) == 20  # what came was kept


async def test_some_microdescs_may_be_missing(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    light = sorted(DOCS, key=lambda doc: doc.bandwidth or 0)[:3]
    service.hold([doc for doc in DOCS if doc not in light])
    async with bootstrapping(tmp_path, signers, [service]) as started:
        directory = await started.bootstrap.wait_ready()
        assert len(directory.missing) == 3


async def test_a_network_without_guards_is_a_failure_told(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    """Everything was held and nothing was missing, so nobody was told that it could not be used."""
    docs = [replace(doc, flags=doc.flags.replace("Guard ", "")) for doc in DOCS]
    async with bootstrapping(tmp_path, signers, [signed_service(docs, signers)]) as started:
        assert isinstance(await refusal(started.bootstrap), NoDirectory)


# --- The guards' microdescriptors -----------------------------------------------------------------------


def first_guard(guards: Guards, directory: Directory) -> RelayDoc:
    guards.update(directory, now=time.time(), rng=Random(1))
    return next(doc for doc in DOCS if doc.identity == guards.primary[0].identity)


async def test_a_directory_source_cannot_choose_the_guard_by_leaving_one_microdesc_out(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    """All other guards could have been used, and the next one was."""
    guards = Guards()
    guard = first_guard(guards, Directory(parse_consensus(service.consensus), {}))
    hostile = signed_service(DOCS, signers)
    hostile.hold([doc for doc in DOCS if doc is not guard])
    async with bootstrapping(tmp_path, signers, [hostile, service], guards=guards) as started:
        directory = await started.bootstrap.wait_ready()
        assert directory.relay(guard.identity) is not None
        chosen = guards.choose(directory, lambda _: True, now=time.time(), rng=Random(1))
        assert chosen.identity == guard.identity
        assert len(microdescs_asked_of(service)) == 1


async def test_a_guards_microdesc_that_nobody_has_is_named_and_waited_for(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    guards = Guards()
    guard = first_guard(guards, Directory(parse_consensus(service.consensus), {}))
    everything = dict(service.microdescs)
    service.hold([doc for doc in DOCS if doc is not guard])
    async with bootstrapping(tmp_path, signers, [service], guards=guards) as started:
        error = await refusal(started.bootstrap)
        assert type(error) is NoDirectory
        assert str(error) == f"the microdescriptor of the guard {guard.nickname} has not come yet"
        service.microdescs = everything
        await until(lambda: started.bootstrap.directory is not None)
    assert service.requests.count(CONSENSUS_PATH) == 1


async def test_a_guards_microdesc_missing_from_the_cache_is_fetched_before_anything_else(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    guards = Guards()
    guard = first_guard(guards, Directory(parse_consensus(service.consensus), {}))
    incomplete = signed_service(DOCS, signers)
    incomplete.hold([doc for doc in DOCS if doc is not guard])
    await fill_cache(tmp_path, signers, incomplete)
    async with bootstrapping(tmp_path, signers, [service], guards=guards) as started:
        directory = await started.bootstrap.wait_ready()
        assert directory.relay(guard.identity) is not None
        assert microdescs_asked_of(service) == [[bare64(sha256(guard.microdesc()).digest())]]


async def test_the_old_directory_is_used_until_the_guards_new_microdesc_has_come(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    """It changes whenever the guard's onion key does, every four weeks."""
    service = stale_service(signers)
    guards = Guards()
    async with bootstrapping(tmp_path, signers, [service], guards=guards) as started:
        old = await started.bootstrap.wait_ready()
        guard = first_guard(guards, old)
        changed = [doc if doc is not guard else replace(doc, ntor_onion_key=bytes(32)) for doc in DOCS]
        newer = signed_service(changed, signers)
        service.consensus = newer.consensus
        await until(lambda: service.requests.count(CONSENSUS_PATH) == 2)
        await trio.sleep(5 * MINUTE)
        assert started.bootstrap.directory is old
        assert len(microdescs_asked_of(service)) > 3
        service.microdescs = newer.microdescs
        await until(lambda: started.bootstrap.directory is not old)
        assert started.bootstrap.directory is not None
        relay = started.bootstrap.directory.relay(guard.identity)
        assert relay is not None
        assert relay.ntor_onion_key == bytes(32)


async def test_a_directory_that_waits_for_a_guard_is_not_used_for_ever(
    tmp_path: Path,
    signers: list[TestAuthority],
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = stale_service(signers)
    guards = Guards()
    async with bootstrapping(tmp_path, signers, [service], guards=guards) as started:
        old = await started.bootstrap.wait_ready()
        guard = first_guard(guards, old)
        changed = [doc if doc is not guard else replace(doc, ntor_onion_key=bytes(32)) for doc in DOCS]
        real_time = time.time
        later = old.consensus.valid_until + REASONABLY_LIVE - MINUTE
        service.consensus = signed_service(changed, signers, valid_after=int(later) - HOUR).consensus
        monkeypatch.setattr(time, "time", lambda: later)
        await until(lambda: service.requests.count(CONSENSUS_PATH) == 2)
        await trio.sleep(MINUTE)
        assert started.bootstrap.directory is old
        monkeypatch.setattr(time, "time", lambda: later + 2 * MINUTE)
        await until(lambda: started.bootstrap.directory is None)
        monkeypatch.setattr(time, "time", real_time)


async def test_what_is_missing_is_fetched_at_once_for_whoever_cannot_go_on_without(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService, clock: trio.testing.MockClock
) -> None:
    everything = dict(service.microdescs)
    service.hold(DOCS[:-1])
    async with bootstrapping(tmp_path, signers, [service]) as started:
        await started.bootstrap.wait_ready()
        await until(lambda: started.bootstrap.failure is None and service.requests)
        await trio.sleep(MINUTE)
        service.microdescs = everything
        began = trio.current_time()
        started.bootstrap._current.hurry()
        await until(lambda: started.bootstrap.directory and not started.bootstrap.directory.missing)
        assert trio.current_time() - began < MINUTE


# --- Growing old ---------------------------------------------------------------------------------------


def stale_service(signers: Sequence[TestAuthority]) -> DirectoryService:
    """Valid, and so old that it is to be replaced."""
    return signed_service(DOCS, signers, valid_after=int(time.time()) - 5 * HOUR // 2)


until = partial(waiting.until, seconds=20 * MINUTE, step=1)


async def test_a_newer_consensus_replaces_an_old_one(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    service = stale_service(signers)
    async with bootstrapping(tmp_path, signers, [service]) as started:
        old = await started.bootstrap.wait_ready()
        newer = signed_service(DOCS[:25], signers)
        service.consensus = newer.consensus
        await until(lambda: started.bootstrap.directory is not old)
        assert started.bootstrap.directory is not None
        assert len(started.bootstrap.directory) == 25
    assert (tmp_path / "consensus-microdesc").read_bytes() == newer.consensus


async def test_an_older_consensus_replaces_nothing(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    service = stale_service(signers)
    async with bootstrapping(tmp_path, signers, [service]) as started:
        old = await started.bootstrap.wait_ready()
        older = signed_service(DOCS[:25], signers, valid_after=old.consensus.valid_after - 60)
        service.consensus = older.consensus
        service.requests.clear()
        await until(lambda: service.requests.count(CONSENSUS_PATH) >= 3)
        assert started.bootstrap.directory is old


async def test_a_newer_one_is_not_used_before_its_microdescs_have_come(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    """Whoever serves directories could otherwise choose the relays we see, by holding back the others."""
    service = stale_service(signers)
    async with bootstrapping(tmp_path, signers, [service]) as started:
        old = await started.bootstrap.wait_ready()
        changed = [replace(doc, ntor_onion_key=Random(n).randbytes(32)) for n, doc in enumerate(DOCS)]
        newer = signed_service(changed, signers)
        newer.hold(changed[:5])
        service.consensus, service.microdescs = newer.consensus, newer.microdescs
        await until(lambda: len(service.requests) > 6)
        assert started.bootstrap.directory is old
        newer.hold(changed)
        service.microdescs = newer.microdescs
        await until(lambda: started.bootstrap.directory is not old)
        assert started.bootstrap.directory is not None
        assert started.bootstrap.directory.consensus.text == newer.consensus


async def test_a_consensus_is_replaced_though_the_computer_was_suspended(
    tmp_path: Path,
    signers: list[TestAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The monotonic clock stands still meanwhile: it would have slept for hours more."""
    async with bootstrapping(tmp_path, signers, [service]) as started:
        old = await started.bootstrap.wait_ready()
        await trio.sleep(MINUTE)
        real_time = time.time
        monkeypatch.setattr(time, "time", lambda: real_time() + 5 * HOUR)
        service.consensus = signed_service(DOCS[:25], signers).consensus
        resumed = trio.current_time()
        await until(lambda: started.bootstrap.directory is not old)
        assert trio.current_time() - resumed < 2 * MINUTE


async def test_a_clock_set_back_does_not_put_off_the_next_consensus(
    tmp_path: Path,
    signers: list[TestAuthority],
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would have been asked for when that clock is there again."""
    service = signed_service(DOCS, signers, valid_after=int(time.time() - 1.7 * HOUR))
    async with bootstrapping(tmp_path, signers, [service]) as started:
        old = await started.bootstrap.wait_ready()
        await trio.sleep(MINUTE)
        service.requests.clear()
        real_time = time.time
        monkeypatch.setattr(time, "time", lambda: real_time() - 48 * HOUR)
        await until(lambda: service.requests.count(CONSENSUS_PATH) >= 2, step=20)
        assert started.bootstrap.directory is old


async def test_after_a_day_and_more_nothing_is_used_any_longer(
    tmp_path: Path,
    signers: list[TestAuthority],
    service: DirectoryService,
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bootstrapping(tmp_path, signers, [service]) as started:
        await started.bootstrap.wait_ready()
        real_time = time.time
        for later, is_used in ((26 * HOUR, True), (27 * HOUR, False)):
            monkeypatch.setattr(time, "time", lambda later=later: real_time() + later)
            service.requests.clear()
            await until(lambda: service.requests.count(CONSENSUS_PATH) >= 2)
            assert (started.bootstrap.directory is not None) is is_used
            assert started.bootstrap.is_ready.is_set() is is_used


@pytest.mark.parametrize("hours", [-20, 20])
async def test_one_that_is_not_live_is_used_where_there_is_no_other(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock, hours: int
) -> None:
    """As after an outage of the authorities. It is no answer to who wants a live one."""
    untimely = signed_service(DOCS, signers, valid_after=int(time.time()) + hours * HOUR)
    older = signed_service(DOCS, signers, valid_after=int(time.time()) - 21 * HOUR)
    async with bootstrapping(tmp_path, signers, [older, untimely, older]) as started:
        assert (await started.bootstrap.wait_ready()).consensus.text == untimely.consensus
        with pytest.raises(NoDirectory, match=r"has expired|from the future"):
            await started.bootstrap.wait_consensus()


async def test_a_live_one_is_taken_before_one_that_is_not(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    untimely = signed_service(DOCS, signers, valid_after=int(time.time()) - 20 * HOUR)
    async with bootstrapping(tmp_path, signers, [untimely, untimely, service]) as started:
        assert (await started.bootstrap.wait_ready()).consensus.text == service.consensus


# --- Diffs ---------------------------------------------------------------------------------------------


def newer_as_diff(service: DirectoryService, signers: Sequence[TestAuthority]) -> bytes:
    """Give `service` a newer consensus and the diff to it; returns the text."""
    newer = signed_service(DOCS[:25], signers).consensus
    service.diff = network_docs.consensus_diff(service.consensus, newer)
    service.consensus = newer
    return newer


async def test_a_diff_makes_the_newer_consensus(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    service = stale_service(signers)
    await fill_cache(tmp_path, signers, service)
    newer = newer_as_diff(service, signers)
    service.consensus = b""  # nothing else is to be had
    async with bootstrapping(tmp_path, signers, [service]) as started:
        await until(lambda: started.bootstrap.directory and len(started.bootstrap.directory) == 25)
    assert (tmp_path / "consensus-microdesc").read_bytes() == newer
    assert service.requests == [CONSENSUS_PATH]


def diff_of_another(service: DirectoryService, signers: Sequence[TestAuthority]) -> None:
    other = signed_service(DOCS[:20], signers).consensus
    service.diff = network_docs.consensus_diff(other, service.consensus)


def diff_that_is_cut(service: DirectoryService, signers: Sequence[TestAuthority]) -> None:
    service.diff = service.diff[: len(service.diff) // 2]


def diff_to_a_forgery(service: DirectoryService, signers: Sequence[TestAuthority]) -> None:
    held = stale_service(signers)
    held.consensus = service.consensus
    bit_flipped(held)
    base = stale_service(signers).consensus
    service.diff = network_docs.consensus_diff(base, held.consensus)


@pytest.mark.parametrize("spoil", [diff_of_another, diff_that_is_cut, diff_to_a_forgery])
async def test_where_a_diff_fails_the_whole_is_asked_for(
    tmp_path: Path,
    signers: list[TestAuthority],
    clock: trio.testing.MockClock,
    spoil: Callable[[DirectoryService, Sequence[TestAuthority]], None],
) -> None:
    service = stale_service(signers)
    await fill_cache(tmp_path, signers, service)
    newer = newer_as_diff(service, signers)
    spoil(service, signers)
    async with bootstrapping(tmp_path, signers, [service]) as started:
        await until(lambda: started.bootstrap.directory and len(started.bootstrap.directory) == 25)
    assert (tmp_path / "consensus-microdesc").read_bytes() == newer
    assert service.requests == [CONSENSUS_PATH] * 2


async def test_where_diff_and_whole_fail_another_is_asked(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    good, bad = stale_service(signers), stale_service(signers)
    await fill_cache(tmp_path, signers, good)
    newer = newer_as_diff(good, signers)
    bad.consensus, bad.diff = newer, good.diff
    diff_that_is_cut(bad, signers)
    bit_flipped(bad)
    async with bootstrapping(tmp_path, signers, [bad, good]) as started:
        await until(lambda: started.bootstrap.directory and len(started.bootstrap.directory) == 25)
    assert bad.requests == [CONSENSUS_PATH] * 2
    assert good.requests == [CONSENSUS_PATH]


# --- The clock -----------------------------------------------------------------------------------------


def services_of_another_time(
    signers: Sequence[TestAuthority], hours: int, count: int
) -> list[DirectoryService]:
    """Directories with a consensus that is live by their clocks, which show so many hours more than ours."""
    there = int(time.time()) + hours * HOUR
    services = [signed_service(DOCS, signers, valid_after=there - HOUR // 2) for _ in range(count)]
    for service in services:
        service.clock = hours * HOUR
    return services


@pytest.mark.parametrize("hours", [-50, 50])
async def test_several_relays_that_tell_another_time_blame_our_clock(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock, hours: int
) -> None:
    services = services_of_another_time(signers, hours, 3)
    async with bootstrapping(tmp_path, signers, services) as started:
        error = await refusal(started.bootstrap)
    assert isinstance(error, ClockSkewed)
    assert error.skew == pytest.approx(-hours * HOUR, abs=30)
    assert f" is 2 days 2 hours {'behind' if hours > 0 else 'ahead of'}" in str(error)
    assert not (tmp_path / "consensus-microdesc").exists()


@pytest.mark.parametrize("hours", [-20, -3, 2, 20])
@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_clock_that_is_wrong_by_less_than_a_day_stops_no_start_and_is_told(
    tmp_path: Path,
    signers: list[TestAuthority],
    clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    hours: int,
    is_warm: bool,
) -> None:
    """Whatever is cached. Three relays settle it: no fourth is asked for a consensus."""
    services = services_of_another_time(signers, hours, 5)
    if is_warm:
        there = services[0].consensus
        await fill_cache(tmp_path, signers, signed_service(DOCS, signers))
        (tmp_path / "consensus-microdesc").write_bytes(there)
    async with bootstrapping(tmp_path, signers, services) as started:
        assert (await started.bootstrap.wait_ready()).consensus.text == services[0].consensus
        with pytest.raises(ClockSkewed):
            await started.bootstrap.wait_consensus()
    if not is_warm:
        assert sum(service.requests.count(CONSENSUS_PATH) for service in services) == 3
    (warning,) = (one.message for one in caplog.records if one.levelname == "WARNING")
    assert f" is {abs(hours)} hours {'behind' if hours > 0 else 'ahead of'}" in warning
    assert "set this computer's clock" in warning


async def test_a_clock_is_not_doubted_for_an_old_consensus_that_few_relays_call_new(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock, service: DirectoryService
) -> None:
    """Two that lie, or that are as far behind, cannot have it taken while another has a live one."""
    services = [*services_of_another_time(signers, -20, 2), service]
    service.clock = 0
    async with bootstrapping(tmp_path, signers, services) as started:
        assert (await started.bootstrap.wait_ready()).consensus.text == service.consensus


async def test_relays_that_agree_with_our_clock_do_not_blame_it(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    services = [signed_service(DOCS, signers, valid_after=int(time.time()) - 50 * HOUR) for _ in range(3)]
    async with bootstrapping(tmp_path, signers, services) as started:
        error = await refusal(started.bootstrap)
    assert not isinstance(error, ClockSkewed)
    assert "has expired" in str(error)


async def test_two_relays_alone_cannot_blame_our_clock(
    tmp_path: Path, signers: list[TestAuthority], clock: trio.testing.MockClock
) -> None:
    services = [signed_service(DOCS, signers, valid_after=int(time.time()) - 50 * HOUR) for _ in range(2)]
    for service in services:
        service.clock = -49 * HOUR
    async with bootstrapping(tmp_path, signers, services) as started:
        assert not isinstance(await refusal(started.bootstrap), ClockSkewed)


async def test_relays_of_a_consensus_without_enough_signatures_are_not_read(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    """What is wrong with its entries is never seen, so nothing is spent on reading them."""
    unsigned = service.consensus[: service.consensus.index(b"directory-signature ")]
    unsigned = unsigned.replace(b"\nm ", b"\nm wrong ")
    for signed_by, error in ((1, NoDirectory), (2, DocumentError)):
        service.consensus = network_docs.sign_consensus(unsigned, signers[:signed_by])
        async with bootstrapping(tmp_path, signers, [service]) as started:
            assert type(await refusal(started.bootstrap)) is error


# --- A given consensus ---------------------------------------------------------------------------------


async def test_a_given_consensus_is_verified_and_used(
    tmp_path: Path, signers: list[TestAuthority], service: DirectoryService
) -> None:
    given = parse_consensus(service.consensus)
    async with bootstrapping(tmp_path, signers, [service], given=given) as started:
        assert (await started.bootstrap.wait_ready()).consensus == given
    assert CONSENSUS_PATH not in service.requests
    assert not (tmp_path / "consensus-microdesc").exists()


@pytest.mark.parametrize("spoil", [forged, expired, half_signed, bit_flipped])
async def test_a_given_consensus_that_cannot_be_believed_is_refused(
    tmp_path: Path,
    signers: list[TestAuthority],
    service: DirectoryService,
    spoil: Callable[[DirectoryService], None],
) -> None:
    spoil(service)
    given = parse_consensus(service.consensus)
    async with bootstrapping(tmp_path, signers, [service], given=given) as started:
        assert isinstance(await refusal(started.bootstrap), NoDirectory)
