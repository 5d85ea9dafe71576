"""torkit.testing.directory: what it serves holds before torkit's readers, and answers go wrong on command."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from served import PLAIN, fresh_relays, serve_channel
from trio.testing import MockClock

from torkit.directory.consensus import parse_consensus
from torkit.directory.diff import apply_diff
from torkit.directory.extra_info import check_extra_info, parse_extra_info
from torkit.directory.server_descriptor import parse_server_descriptor, split_server_descriptors
from torkit.errors import DocumentError, NoDirectory, TimedOut
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.circuit.stream import StreamBroken
from torkit.net.dir.fetch import REQUEST_TIMEOUT, fetch_certificates, fetch_consensus
from torkit.testing.directory import (
    DirectoryService,
    RelayDoc,
    Router,
    consensus_diff,
    make_authorities,
    make_consensus,
    signed_service,
)
from torkit.testing.directory.authority import HOUR
from torkit.testing.relay import FakeRelay, Fault, http_response

AUTHORITIES = make_authorities()
SIGNERS = [one.v3ident for one in AUTHORITIES]


def docs_of(relays: Sequence[FakeRelay]) -> list[RelayDoc]:
    return [RelayDoc.of(relay, f"relay{number}", flags="Exit") for number, relay in enumerate(relays)]


@asynccontextmanager
async def a_directory() -> AsyncIterator[tuple[FakeRelay, DirectoryService, Circuit]]:
    """A relay that is a directory, its documents, and a circuit that it may be asked by."""
    relays = fresh_relays(3)
    service = signed_service(docs_of(relays), AUTHORITIES)
    relays[0].directory = service
    async with serve_channel(relays[0]) as channel:
        circuit = channel.open_circuit(0, CircuitSettings())
        await circuit.create_fast()
        yield relays[0], service, circuit
    assert relays[0].complaints == []


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def test_whoever_holds_an_earlier_consensus_is_sent_the_difference() -> None:
    async with a_directory() as (_, service, circuit):
        held = parse_consensus(service.consensus)
        newer = make_consensus(docs_of(fresh_relays(2)), AUTHORITIES, valid_after=int(time.time()) - 60)
        service.renew(newer)
        answer = await fetch_consensus(circuit, SIGNERS, held=held)
        assert answer.body == consensus_diff(held.text, newer)
        assert apply_diff(held.text, answer.body) == newer
        assert (await fetch_consensus(circuit, SIGNERS)).body == newer
        service.earlier = [newer]
        assert (await fetch_consensus(circuit, SIGNERS, held=held)).body == newer
        service.diff = b"whatever it holds"
        assert (await fetch_consensus(circuit, SIGNERS, held=held)).body == service.diff
        assert (await fetch_consensus(circuit, SIGNERS)).body == newer
        assert service.requests == ["/tor/status-vote/current/consensus-microdesc"] * 5


def test_server_descriptors_are_served_as_they_are_asked_for() -> None:
    relays = fresh_relays(3)
    routers = [
        Router.of(relay, f"relay{n}", policy="accept *:80\nreject *:*\n") for n, relay in enumerate(relays)
    ]
    service = DirectoryService()
    service.hold_routers(routers)

    def ask(path: str) -> list[bytes]:
        texts = body_of(service(f"GET {path} HTTP/1.0\r\n\r\n".encode()))
        return list(split_server_descriptors(texts))

    assert len(ask("/tor/server/all.z")) == 3
    (text,) = ask(f"/tor/server/fp/{relays[1].rsa_identity.hex()}+{'0' * 40}")
    descriptor = parse_server_descriptor(text)
    assert (descriptor.identity, descriptor.ed25519_identity) == (
        relays[1].rsa_identity,
        relays[1].ed_identity,
    )
    assert descriptor.ntor_onion_key == relays[1].ntor_onion_key
    assert (descriptor.address, descriptor.or_port) == relays[1].address
    assert descriptor.policy.accepts("192.0.2.1", 80)
    assert descriptor.extra_info_digest is not None
    found = body_of(
        service(b"GET /tor/extra/d/%s HTTP/1.0\r\n\r\n" % descriptor.extra_info_digest.hex().encode())
    )
    check_extra_info(parse_extra_info(found), descriptor)


@pytest.mark.parametrize("request_", [b"", b"GET", b"\xff\xff\xff", b"GET \xff HTTP/1.0\r\n\r\n"])
def test_a_request_that_is_none_is_answered_all_the_same(request_: bytes) -> None:
    assert DirectoryService()(request_).startswith(b"HTTP/1.0 400 ")


@pytest.mark.parametrize("path", ["/", "/tor/server/fp/", "/tor/micro/d/x", "/tor/hs/3/x", "/tor/server/d"])
def test_what_it_does_not_have_is_not_found(path: str) -> None:
    assert DirectoryService()(f"GET {path} HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.0 404 ")


# --- Answers that go wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "error"),
    [
        (lambda step: step.drop(), TimedOut),
        (lambda step: step.stall(), TimedOut),
        (lambda step: step.delay(2 * REQUEST_TIMEOUT), TimedOut),
        (lambda step: step.duplicate(), DocumentError),
        (lambda step: step.flood(100), DocumentError),
        (lambda step: step.cut(), DocumentError),
        (lambda step: step.cut(0), DocumentError),
        (lambda step: step.corrupt(0), DocumentError),
        (lambda step: step.lie(lambda _: http_response(b"", status="503 Busy")), NoDirectory),
        (lambda step: step.close(abrupt=True), StreamBroken),
        (lambda step: step.destroy(), StreamBroken),
    ],
)
async def test_an_answer_that_goes_wrong_is_an_error_and_the_other_answers_come(
    patient_clock: MockClock, verb: Callable[[Fault], Fault], error: type[Exception]
) -> None:
    async with a_directory() as (relay, service, circuit):
        fault = verb(relay.answering("/tor/status-vote/"))
        assert (await fetch_certificates(circuit, SIGNERS)) == service.certificates
        with pytest.raises(error):
            await fetch_consensus(circuit, SIGNERS)
        assert fault.count == 1


async def test_an_answer_that_is_late_comes_whole() -> None:
    async with a_directory() as (relay, service, circuit):
        relay.answering(nth=2).delay(0.1)
        for _ in range(3):
            assert (await fetch_certificates(circuit, SIGNERS)) == service.certificates


async def test_an_answer_that_waits_for_the_next_one() -> None:
    async with a_directory() as (relay, service, circuit), trio.open_nursery() as nursery:
        relay.answering().swap()
        came: list[str] = []

        async def ask(name: str) -> None:
            assert (await fetch_certificates(circuit, SIGNERS)) == service.certificates
            came.append(name)

        nursery.start_soon(ask, "first")
        with trio.fail_after(10):
            while not service.requests:
                await trio.sleep(0.01)
        await ask("second")
        with trio.fail_after(10):
            while len(came) < 2:
                await trio.sleep(0.01)


async def test_another_directory_answers_in_its_place() -> None:
    async with a_directory() as (relay, service, circuit):
        (stranger,) = fresh_relays(1)
        stranger.directory = signed_service([], make_authorities(first=60))
        relay.answering("/tor/status-vote/current/consensus-microdesc").impersonate(stranger)
        forged = (await fetch_consensus(circuit, SIGNERS)).body
        assert forged == stranger.directory.consensus
        assert (await fetch_consensus(circuit, SIGNERS)).body == service.consensus


def test_who_is_no_directory_answers_for_none() -> None:
    relay, other = fresh_relays(2)
    with pytest.raises(ValueError, match="no directory"):
        relay.answering("/tor/").impersonate(other)


def test_documents_say_what_a_test_wants_them_to() -> None:
    (relay,) = fresh_relays(1)
    doc = RelayDoc.of(relay, "liar", protocols=PLAIN)
    doc.ntor_onion_key = bytes(32)
    text = make_consensus([doc], AUTHORITIES[:1], lifetime=6 * HOUR, params="x=7")
    consensus = parse_consensus(text)
    assert consensus.params == {"x": 7}
    assert consensus.valid_until - consensus.valid_after == 6 * HOUR
    assert consensus.valid_after <= time.time() < consensus.fresh_until
    assert len(consensus.signatures) == 1
