"""Which handshake each hop of a circuit gets, for every kind of relay, place and setting.

The scripted relay reads what was asked of it out of the handshake itself.
"""

import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from torkit._fast.onion import LayerKind
from torkit.errors import CircuitError
from torkit.proto.circuit import Cgo, HopHandshake, NewHop
from torkit.testing.relay import (
    CC_REQUEST,
    CC_RESPONSE,
    NTOR,
    NTOR_V3,
    RELAY_CRYPT_CGO,
    SUBPROTO_REQUEST,
    FakeRelay,
    answer_handshake_ntor,
    answer_handshake_ntor_v3,
    decode_extensions,
)

# What is asked: a handshake type and, with ntor-v3, its extensions.
Asked = tuple[int, dict[int, bytes] | None]

_NTOR: Asked = (NTOR, None)
_EMPTY: Asked = (NTOR_V3, {})  # ntor-v3 that asks for nothing
_CC: Asked = (NTOR_V3, {CC_REQUEST: b""})
_CGO: Asked = (NTOR_V3, {CC_REQUEST: b"", SUBPROTO_REQUEST: RELAY_CRYPT_CGO})

# The columns of the tables below: Cgo, and whether the hop is the last.
PLACES = [(cgo, is_last) for cgo in (Cgo.EXIT, Cgo.ALL, Cgo.OFF) for is_last in (False, True)]

TABLE = {  #               EXIT: first, last   ALL: first, last    OFF: first, last
    "plain": [_NTOR, _NTOR, _NTOR, _NTOR, _NTOR, _NTOR],
    "congestion control": [_NTOR, _CC, _CC, _CC, _NTOR, _CC],
    "whole": [_EMPTY, _CGO, _CGO, _CGO, _EMPTY, _CC],
}
TABLE_OF_A_CONSENSUS_WITH_CC_ALG_0 = {
    "plain": [_NTOR] * 6,
    "congestion control": [_NTOR] * 6,
    "whole": [_EMPTY] * 6,
}

SUPPORT: list[tuple[bool, ...]] = list(
    product((False, True), repeat=4)
)  # of Relay=4, FlowCtrl=2, Relay=5, Relay=6
ROWS = dict.fromkeys(SUPPORT, "plain") | {
    (True, True, False, False): "congestion control",
    (True, True, False, True): "congestion control",
    (True, True, True, False): "congestion control",
    (True, True, True, True): "whole",
}


@dataclass(frozen=True)
class ListedRelay:
    """A relay as a directory describes it."""

    identity: bytes
    ed25519_identity: bytes | None
    ntor_onion_key: bytes
    versions: frozenset[tuple[str, int]]

    @property
    def protocols(self) -> "ListedRelay":
        return self

    def supports(self, name: str, version: int) -> bool:
        return (name, version) in self.versions


@cache
def _keys() -> FakeRelay:
    return FakeRelay()  # RSA keys take a while: made once


@pytest.fixture
def fake() -> FakeRelay:
    return copy.copy(_keys())


def listed(fake: FakeRelay, support: tuple[bool, ...] = (True,) * 4) -> ListedRelay:
    offers = (("Relay", 4), ("FlowCtrl", 2), ("Relay", 5), ("Relay", 6))
    versions = {version for version, is_listed in zip(offers, support, strict=True) if is_listed}
    versions |= {("Relay", 2), ("Relay", 3), ("FlowCtrl", 1)}
    return ListedRelay(fake.rsa_identity, fake.ed_identity, fake.ntor_onion_key, frozenset(versions))


def plan(
    relay: ListedRelay, *, cgo: Cgo, is_last: bool, params: dict[str, int] | None = None
) -> HopHandshake:
    return HopHandshake(relay, is_last=is_last, cgo=cgo, params=params or {}, private_key=bytes(range(1, 33)))


def asked_of(fake: FakeRelay, handshake: HopHandshake) -> Asked:
    """What the relay reads in a handshake that is for it."""
    messages: list[bytes] = []

    def reply_to(message: bytes) -> bytes:
        messages.append(message)
        return b"\0"

    onion_key, ephemeral = fake.onion_key, X25519PrivateKey.generate()
    if handshake.handshake_type == NTOR:
        answer_handshake_ntor(
            handshake.handshake, node_id=fake.rsa_identity, onion_key=onion_key, ephemeral=ephemeral
        )
        return _NTOR
    answer_handshake_ntor_v3(
        handshake.handshake,
        node_id=fake.ed_identity,
        onion_key=onion_key,
        ephemeral=ephemeral,
        reply_to=reply_to,
    )
    return handshake.handshake_type, decode_extensions(messages[0])


def finish(fake: FakeRelay, handshake: HopHandshake) -> NewHop:
    reply, _ = fake.handshake(handshake.handshake_type, handshake.handshake)
    return handshake.finish(reply)


@pytest.mark.parametrize("support", SUPPORT)
@pytest.mark.parametrize(
    ("table", "params"),
    [(TABLE, {}), (TABLE_OF_A_CONSENSUS_WITH_CC_ALG_0, {"cc_alg": 0})],
    ids=["cc_alg=2", "cc_alg=0"],
)
def test_each_relay_is_asked_what_its_place_and_support_call_for(
    fake: FakeRelay, table: dict[str, list[Asked]], params: dict[str, int], support: tuple[bool, ...]
) -> None:
    relay = listed(fake, support)
    got = [asked_of(fake, plan(relay, cgo=cgo, is_last=is_last, params=params)) for cgo, is_last in PLACES]
    assert got == table[ROWS[support]]


@pytest.mark.parametrize("support", SUPPORT)
@pytest.mark.parametrize(("cgo", "is_last"), PLACES)
def test_a_relay_without_ed25519_identity_gets_ntor(
    fake: FakeRelay, support: tuple[bool, ...], cgo: Cgo, is_last: bool
) -> None:
    relay = replace(listed(fake, support), ed25519_identity=None)
    assert asked_of(fake, plan(relay, cgo=cgo, is_last=is_last)) == _NTOR


@pytest.mark.parametrize(("cgo", "is_last"), PLACES)
@pytest.mark.parametrize("support", SUPPORT)
def test_no_relay_is_ever_asked_for_what_it_does_not_list(
    fake: FakeRelay, support: tuple[bool, ...], cgo: Cgo, is_last: bool
) -> None:
    """The scripted relay refuses that, as the specification has relays do."""
    relay = listed(fake, support)
    fake.protocols = f"FlowCtrl={_numbers(relay, 'FlowCtrl')} Relay={_numbers(relay, 'Relay')}"
    finish(fake, plan(relay, cgo=cgo, is_last=is_last))


def _numbers(relay: ListedRelay, name: str) -> str:
    return ",".join(str(version) for named, version in sorted(relay.versions) if named == name)


@pytest.mark.parametrize(
    ("support", "cgo", "kind", "sendme_inc"),
    [
        ((False,) * 4, Cgo.EXIT, LayerKind.TOR1, None),
        ((True, True, False, False), Cgo.EXIT, LayerKind.TOR1, 31),
        ((True,) * 4, Cgo.EXIT, LayerKind.CGO, 31),
        ((True,) * 4, Cgo.OFF, LayerKind.TOR1, 31),
    ],
)
def test_what_was_asked_decides_the_layer(
    fake: FakeRelay,
    support: tuple[bool, ...],
    cgo: Cgo,
    kind: LayerKind,
    sendme_inc: int | None,
) -> None:
    hop = finish(fake, plan(listed(fake, support), cgo=cgo, is_last=True))
    assert (hop.kind, hop.sendme_inc) == (kind, sendme_inc)


@pytest.mark.parametrize(
    ("consensus", "granted", "is_accepted"),
    [
        (31, 29, False),
        (31, 30, True),
        (31, 32, True),
        (31, 33, False),
        (31, 0, False),
        (1, 0, False),  # within 1 of the consensus, and yet no increment
        (40, 31, False),
        (40, 41, True),
    ],
)
def test_a_sendme_increment_more_than_1_from_the_consensus_is_refused(
    fake: FakeRelay, consensus: int, granted: int, is_accepted: bool
) -> None:
    handshake = plan(listed(fake), cgo=Cgo.OFF, is_last=True, params={"cc_sendme_inc": consensus})
    fake.cc_sendme_inc = granted
    if is_accepted:
        assert finish(fake, handshake).sendme_inc == granted
    else:
        with pytest.raises(CircuitError, match=f"every {granted} cells, not every {consensus}"):
            finish(fake, handshake)


@pytest.mark.parametrize(
    ("cgo", "is_last", "reply", "message"),
    [
        (Cgo.EXIT, True, [], "CGO needs"),
        (Cgo.ALL, False, [], "CGO needs"),
        (Cgo.EXIT, False, [(CC_RESPONSE, b"\x1f")], "did not ask"),
        (Cgo.OFF, False, [(CC_RESPONSE, b"\x1f")], "did not ask"),
        (Cgo.EXIT, True, [(CC_RESPONSE, b"")], "has 0 bytes"),
        (Cgo.OFF, True, [(CC_RESPONSE, b"\x1f\0")], "has 2 bytes"),
    ],
)
def test_an_answer_that_does_not_fit_what_was_asked_is_refused(
    fake: FakeRelay, cgo: Cgo, is_last: bool, reply: list[tuple[int, bytes]], message: str
) -> None:
    handshake = plan(listed(fake), cgo=cgo, is_last=is_last)
    fake.edit_extensions = lambda _: reply
    with pytest.raises(CircuitError, match=message):
        finish(fake, handshake)


def test_a_relay_that_declines_congestion_control_alone_gets_fixed_windows(fake: FakeRelay) -> None:
    handshake = plan(listed(fake), cgo=Cgo.OFF, is_last=True)
    fake.edit_extensions = lambda _: []
    hop = finish(fake, handshake)
    assert (hop.kind, hop.sendme_inc) == (LayerKind.TOR1, None)
