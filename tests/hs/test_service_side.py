"""What a service makes: keys, counters, descriptors, its half of the handshake, against C tor's and published
values (vectors/hs.json), and against our own reading of them."""

import base64
import hashlib
import re
from contextlib import suppress
from datetime import datetime
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hs.making import VECTORS, services
from hypothesis import given
from hypothesis import strategies as st

from torkit._fast.hs_ntor import HsNtorClient, HsNtorPoint, HsNtorRequest
from torkit._fast.keys import X25519PrivateKey, ed25519_verify
from torkit._fast.onion import TOR1_ONION_KEYS_LEN
from torkit.errors import CircuitError, OnionServiceError, UsageError
from torkit.hs.address import encode_address
from torkit.hs.calendar import Calendar, TimePeriod, length_when_testing
from torkit.hs.descriptor import IntroductionPoint, ProofOfWork, decode_descriptor
from torkit.hs.keyfiles import (
    check_public_file,
    decode_secret_file,
    encode_public_file,
    encode_secret_file,
)
from torkit.hs.keys import SecretKey, blind
from torkit.hs.messages import IntroduceExtension, decode_rendezvous2, introduce_header, introduce_plaintext
from torkit.hs.pow import Proof, encode_proof
from torkit.hs.publication import (
    Publication,
    encode_descriptor,
    encode_second_layer,
    encrypt_layer,
)
from torkit.hs.replay import ReplayCache
from torkit.hs.revision import MAX_SECONDS, revision_counter
from torkit.hs.service_messages import (
    DosLimits,
    decode_introduce2,
    decode_invitation,
    encode_establish_intro,
    encode_rendezvous1,
)

SERVICES = services()
IDS = [f"{network['valid_after_iso']} {service['kind']}" for network, service in SERVICES]
NTOR = VECTORS["hs_ntor"]
KNOWN = {name: bytes.fromhex(NTOR[name]) for name in NTOR if name not in ("source", "layer_keys")}
LAYER_KEYS = {name: bytes.fromhex(value) for name, value in NTOR["layer_keys"].items()}
NOW = 1_795_914_520.0
each_service = pytest.mark.parametrize(("network", "service"), SERVICES, ids=IDS)


def known(service: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(service[name])


def period_of(network: dict[str, Any]) -> TimePeriod:
    return TimePeriod(network["time_period"], network["period_length_min"])


# --- keys ------------------------------------------------------------------------------------------------


@each_service
def test_keys_and_files_are_c_tors(network: dict[str, Any], service: dict[str, Any]) -> None:
    data = base64.b64decode(service["file_hs_ed25519_secret_key"])
    key = decode_secret_file(data)
    assert key.public == known(service, "identity_public_key")
    assert encode_address(key.public) == service["address"]
    assert encode_secret_file(key) == data
    assert encode_public_file(key) == base64.b64decode(service["file_hs_ed25519_public_key"])
    blinded = key.blinded(period_of(network))
    assert blinded.expanded == known(service, "blinded_secret_key_expanded")
    assert blinded.public == known(service, "blinded_public_key") == blind(key.public, period_of(network))


@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200))
def test_signatures_are_those_of_another_library(seed: bytes, message: bytes) -> None:
    theirs = Ed25519PrivateKey.from_private_bytes(seed)
    key = SecretKey.from_seed(seed)
    assert key.public == theirs.public_key().public_bytes_raw()
    assert key.sign(message) == theirs.sign(message)
    blinded = key.blinded(TimePeriod(7, 1440))
    assert ed25519_verify(blinded.public, blinded.sign(message), message)


def test_a_file_that_holds_no_key_is_refused() -> None:
    data = encode_secret_file(SecretKey.from_seed(bytes(32)))
    for wrong in (b"", data[:-1], data + b"\0", data.replace(b"secret", b"public"), data[:32] + bytes(64)):
        with pytest.raises(UsageError):
            decode_secret_file(wrong)
    other = SecretKey.from_seed(b"o" * 32)
    check_public_file(encode_public_file(other), other)
    for wrong in (b"", encode_public_file(SecretKey.from_seed(bytes(32)))):
        with pytest.raises(UsageError):
            check_public_file(wrong, other)


def test_a_wiped_key_is_gone() -> None:
    key = SecretKey.from_seed(b"s" * 32)
    key.wipe()
    assert key.expanded == bytes(64)


# --- time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["ope"], ids=lambda one: str(one["plaintext_seconds"]))
def test_revision_counters_are_c_tors(vector: dict[str, Any]) -> None:
    key = SecretKey(bytes.fromhex(vector["blinded_secret_key_expanded"]))
    seconds = vector["plaintext_seconds"] - 1
    assert revision_counter(key, seconds) == vector["revision_counter"]
    assert revision_counter(key, seconds + 1) > vector["revision_counter"]


def test_a_clock_that_is_off_makes_a_counter_all_the_same() -> None:
    key = SecretKey.from_seed(bytes(32))
    assert 1 <= revision_counter(key, -5) == revision_counter(key, 0)
    assert revision_counter(key, MAX_SECONDS) == revision_counter(key, MAX_SECONDS - 1)


@each_service
def test_descriptors_stand_where_and_when_c_tor_put_them(
    network: dict[str, Any], service: dict[str, Any]
) -> None:
    current, previous = (
        value and bytes.fromhex(value) for value in (network["srv_current"], network["srv_previous"])
    )
    interval = network["voting_interval_s"]
    calendar = Calendar(network["valid_after"], interval, length_when_testing(interval), current, previous)
    stand = next(one for one in calendar.stands if one.period == period_of(network))
    assert stand.shared_random == bytes.fromhex(network["srv"]) == calendar.shared_random
    # It was published a while before it was fetched: in the run, or the one after, that its counter is of.
    published = stand.run_began + service["revision_counter_plaintext_s"] - 1
    assert network["valid_after"] - 480 < published < network["valid_after"] + 2 * interval


def test_both_descriptors_by_the_hour() -> None:
    """A day of the public network: a period turns at 12:00, a shared random value at 00:00."""
    midnight, number = 1460505600, 16904
    old, new = b"o" * 32, b"n" * 32
    for hour in range(24):
        calendar = Calendar(midnight + 3600 * hour, 3600, 1440, new, old)
        first, second = calendar.stands
        turned = hour >= 12
        assert calendar.period.number == number + turned - 1
        assert (first.period.number, second.period.number) == (number - 1, number)
        assert (first.shared_random, second.shared_random) == (old, new)
        assert (first.run_began, second.run_began) == (midnight - 86400, midnight)
        assert calendar.shared_random == (second if turned else first).shared_random


# --- descriptors -----------------------------------------------------------------------------------------


@each_service
def test_layers_are_encrypted_as_c_tor_does(network: dict[str, Any], service: dict[str, Any]) -> None:
    keyed = known(service, "subcredential") + service["revision_counter"].to_bytes(8, "big")
    blinded = known(service, "blinded_public_key")
    cookie = bytes.fromhex(service.get("client_authorization", {}).get("descriptor_cookie", ""))
    for layer, constant, secret, text in (
        ("first", b"hsdir-superencrypted-data", blinded, service["descriptor"]),
        ("second", b"hsdir-encrypted-data", blinded + cookie, service["first_layer_plaintext"]),
    ):
        keys = service[f"{layer}_layer_keys"]
        plaintext = service[f"{layer}_layer_plaintext"].encode()
        if layer == "first":
            plaintext = plaintext.ljust(service["first_layer_padded_len"], b"\0")
        made = encrypt_layer(plaintext, secret + keyed, constant, bytes.fromhex(keys["salt"]))
        armoured = re.search(r"-----BEGIN MESSAGE-----\n(.*?)\n-----END", text, re.DOTALL)
        assert armoured is not None
        assert made == base64.b64decode(armoured[1])
        assert made[-32:].hex() == keys["mac"]


def points_of(service: dict[str, Any]) -> list[IntroductionPoint]:
    return [
        IntroductionPoint(
            tuple((int(kind), bytes.fromhex(value)) for kind, value in point["link_specifiers"]),
            *(bytes.fromhex(point[name]) for name in ("onion_key", "auth_key", "enc_key")),
        )
        for point in service["intro_points"]
    ]


@pytest.mark.parametrize(("network", "service"), services("plain") + services("pow") + services("auth"))
def test_the_second_layer_is_spelt_as_c_tor_does(network: dict[str, Any], service: dict[str, Any]) -> None:
    """Byte for byte, but for signatures and who makes them: the signing key is not known."""
    theirs = service["second_layer_plaintext"]
    work = None
    if found := re.search(r"pow-params v1 (\S+) (\d+) (\S+)", theirs):
        expires = datetime.fromisoformat(found[3] + "+00:00").timestamp()
        work = ProofOfWork(base64.b64decode(found[1]), int(found[2]), int(expires))
    signing = SecretKey.from_seed(b"s" * 32)
    hours = service["intro_points"][0]["cert_expires_hours"] - 54
    ours = encode_second_layer(Publication(points_of(service), 31, work), signing, 3600.0 * hours).decode()
    pattern = re.compile(r"-----BEGIN ED25519 CERT-----\n(.*?)\n-----END ED25519 CERT-----", re.DOTALL)
    assert pattern.sub("CERT", ours) == pattern.sub("CERT", theirs)
    signing_key = known(service, "signing_key")
    for mine, other in zip(pattern.findall(ours), pattern.findall(theirs), strict=True):
        made, cert = base64.b64decode(mine), base64.b64decode(other)
        assert made[:-64] == cert[:-64].replace(signing_key, signing.public)


def publish(**changes: Any) -> tuple[SecretKey, dict[str, Any], bytes]:
    """A descriptor, with what it is to be read by."""
    blinded = SecretKey.from_seed(b"i" * 32).blinded(TimePeriod(5, 1440))
    points = [
        IntroductionPoint(
            ((0, b"\x7f\1\0\1\x23\x29"), (2, b"r" * 20), (3, b"d" * 32)),
            b"o" * 32,
            SecretKey.from_seed(bytes([number]) * 32).public,
            X25519PrivateKey(bytes([number]) * 32).public_key,
        )
        for number in range(1, 4)
    ]
    randomness = Random(7).randbytes
    given: dict[str, Any] = {"points": points, "sendme_inc": 31}
    text = encode_descriptor(
        Publication(**(given | changes)),
        blinded=blinded,
        subcredential=b"u" * 32,
        signing=SecretKey.from_seed(b"s" * 32),
        revision=12345,
        now=NOW,
        randomness=randomness,
        rng=Random(1),
    )
    reading = {"blinded": blinded.public, "subcredential": b"u" * 32, "now": NOW, "sendme_inc": 31}
    return blinded, {"points": tuple(points), **reading}, text


def test_our_descriptor_is_read_by_our_parser() -> None:
    work = ProofOfWork(b"w" * 32, 17, int(NOW) + 600)
    _, reading, text = publish(proof_of_work=work)
    points = reading.pop("points")
    found = decode_descriptor(text, **reading)
    assert found.points == points
    assert (found.revision, found.lifetime, found.sendme_inc) == (12345, 180, 31)
    assert found.proof_of_work == work
    assert not found.is_single_onion
    assert len(text) == len(text.decode("ascii"))
    _, reading, text = publish(sendme_inc=None, points=())
    del reading["points"]
    found = decode_descriptor(text, **reading)
    assert (found.sendme_inc, found.points) == (None, ())


def test_certificates_last_for_54_hours() -> None:
    _, reading, text = publish()
    points = reading.pop("points")
    for hours, is_read in ((53, True), (56, False)):
        reading["now"] = NOW + 3600 * hours
        if is_read:
            assert decode_descriptor(text, **reading).points == points
        else:
            with pytest.raises(Exception, match="expired"):
                decode_descriptor(text, **reading)


def test_how_many_clients_a_service_knows_is_not_seen() -> None:
    """Nor whether it knows any: the layers are of one length."""
    keys = [X25519PrivateKey(bytes([n]) * 32) for n in range(1, 17)]
    lengths = set()
    for clients in ([], keys[:1], keys[:5], keys):
        _, reading, text = publish(clients=[key.public_key for key in clients])
        del reading["points"]
        lengths.add(len(text))
        for key in clients:
            assert len(decode_descriptor(text, client_key=key, **reading).points) == 3
        if clients:
            with pytest.raises(OnionServiceError):
                decode_descriptor(text, **reading)
            with pytest.raises(OnionServiceError):
                decode_descriptor(text, client_key=X25519PrivateKey(b"x" * 32), **reading)
        else:
            assert decode_descriptor(text, **reading).points
    assert len(lengths) == 1


# --- messages --------------------------------------------------------------------------------------------


def test_establish_intro_proves_the_key_for_one_circuit() -> None:
    """As rend-spec-v3 lays it out, checked by another library."""
    theirs = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
    key = SecretKey.from_seed(b"a" * 32)
    body = encode_establish_intro(key, b"k" * 20, None)
    assert len(body) == 1 + 2 + 32 + 1 + 32 + 2 + 64
    assert body[:36] == b"\2\0\x20" + theirs.public_key().public_bytes_raw() + b"\0"
    assert body[36:68] == hashlib.sha3_256((20).to_bytes(8, "big") + b"k" * 20 + body[:36]).digest()
    assert body[68:70] == b"\0\x40"
    theirs.public_key().verify(body[70:], b"Tor establish-intro cell v1" + body[:68])
    limited = encode_establish_intro(key, b"k" * 20, DosLimits(25, 200))
    assert limited[35:56] == b"\1\1\x13\2\1" + (25).to_bytes(8, "big") + b"\2" + (200).to_bytes(8, "big")[:7]


def test_the_published_introduction_is_opened_and_answered() -> None:
    point = HsNtorPoint(
        auth_key=KNOWN["auth_key"], private_key=bytes.fromhex(NTOR["b"]), subcredential=KNOWN["subcredential"]
    )
    assert point.public_key == KNOWN["B"]
    request = point.open(*decode_introduce2(KNOWN["introduce1_body"], KNOWN["auth_key"]))
    assert request.plaintext == KNOWN["introduce_plaintext"]
    assert request.client_key == KNOWN["X"]
    reply, keys = request.answer(bytes.fromhex(NTOR["y"]))
    assert reply == KNOWN["handshake_info"]
    assert keys.derive(TOR1_ONION_KEYS_LEN) == b"".join(LAYER_KEYS[name] for name in ("Df", "Db", "Kf", "Kb"))
    invitation = decode_invitation(KNOWN["introduce_plaintext"])
    assert invitation.cookie == KNOWN["introduce_plaintext"][:20]
    assert invitation.wants_congestion_control
    assert invitation.proof is None
    assert [kind for kind, _ in invitation.link_specifiers] == [0, 2, 3]


def introduction(plaintext: bytes, *, subcredential: bytes = b"u" * 32) -> tuple[HsNtorClient, bytes]:
    client = HsNtorClient(
        auth_key=b"a" * 32,
        enc_key=X25519PrivateKey(b"b" * 32).public_key,
        subcredential=subcredential,
        private_key=b"x" * 32,
    )
    header = introduce_header(b"a" * 32)
    return client, header + client.seal(header, plaintext)


def our_point() -> HsNtorPoint:
    return HsNtorPoint(auth_key=b"a" * 32, private_key=b"b" * 32, subcredential=b"u" * 32)


def opened(body: bytes) -> HsNtorRequest:
    return our_point().open(*decode_introduce2(body, b"a" * 32))


PROOF = Proof(b"n" * 16, 99, b"seed", b"s" * 16)
PLAINTEXT = introduce_plaintext(
    cookie=b"c" * 20,
    onion_key=b"o" * 32,
    link_specifiers=b"\2\0\6\x7f\1\0\1\x23\x29\2\x14" + b"r" * 20,
    extensions={
        IntroduceExtension.CC_REQUEST: b"",
        IntroduceExtension.PROOF_OF_WORK: encode_proof(PROOF),
        77: b"of a later time",
    },
    header_len=56,
)


def test_both_halves_come_to_the_same_keys() -> None:
    client, body = introduction(PLAINTEXT)
    request = opened(body)
    invitation = decode_invitation(request.plaintext)
    assert invitation.proof == PROOF
    assert invitation.link_specifiers == ((0, b"\x7f\1\0\1\x23\x29"), (2, b"r" * 20))
    reply, keys = request.answer(b"y" * 32)
    rendezvous1 = encode_rendezvous1(invitation.cookie, reply, bytes(200))
    assert len(rendezvous1) == 168
    assert rendezvous1[:20] == b"c" * 20
    theirs = client.finish(decode_rendezvous2(rendezvous1[20:]))
    assert theirs.derive(TOR1_ONION_KEYS_LEN) == keys.derive(TOR1_ONION_KEYS_LEN)


def test_a_request_is_answered_once() -> None:
    request = opened(introduction(PLAINTEXT)[1])
    _, keys = request.answer(b"y" * 32)
    with pytest.raises(UsageError, match="overwritten"):
        request.answer(b"y" * 32)
    keys.wipe()
    with pytest.raises(UsageError, match="overwritten"):
        keys.service_layer()


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_changed_bit_and_nothing_is_opened(at: int, bit: int) -> None:
    _, body = introduction(PLAINTEXT)
    wrong = bytearray(body)
    wrong[at % len(wrong)] ^= 1 << bit
    with pytest.raises(CircuitError):
        opened(bytes(wrong))


def test_what_is_for_another_service_is_not_opened() -> None:
    _, body = introduction(PLAINTEXT, subcredential=b"v" * 32)
    with pytest.raises(CircuitError, match="not made for this service"):
        opened(body)
    with pytest.raises(CircuitError, match="another service"):
        decode_introduce2(body, b"z" * 32)


def test_every_truncation_is_an_error_of_ours() -> None:
    _, body = introduction(PLAINTEXT)
    for length in range(len(body)):
        with pytest.raises(CircuitError):
            opened(body[:length])
    whole = PLAINTEXT.rstrip(b"\0")
    for length in range(len(whole)):
        with pytest.raises(CircuitError):
            decode_invitation(whole[:length])


def words(*, key: bytes = b"o" * 32, specifiers: int = 0, proof: bytes | None = None) -> bytes:
    """What a client says inside INTRODUCE2, laid out by hand."""
    extensions = b"\0"
    if proof is not None:
        extensions = bytes([1, IntroduceExtension.PROOF_OF_WORK, len(proof)]) + proof
    onion_key = b"\1" + len(key).to_bytes(2, "big") + key
    return bytes(20) + extensions + onion_key + bytes([specifiers]) + b"\0\0" * specifiers


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (words(key=bytes(32)), "without a key"),
        (words(key=b"o" * 31), "without a key"),
        (words(key=b"o" * 33), "without a key"),
        (words(specifiers=33), "33 link specifiers"),
        (words(proof=b"\1" + bytes(39)), "41 bytes, not 40"),
        (words(proof=b"\1" + bytes(41)), "41 bytes, not 42"),
        (words(proof=b"\2" + bytes(40)), "version 2"),
    ],
)
def test_words_of_a_client_that_mean_nothing_are_refused(wrong: bytes, reason: str) -> None:
    right = decode_invitation(words(specifiers=32, proof=b"\1" + bytes(40)))
    assert right.proof == Proof(bytes(16), 0, bytes(4), bytes(16))
    with pytest.raises(CircuitError, match=reason):
        decode_invitation(wrong)


@given(st.binary(max_size=520))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    header = introduce_header(b"a" * 32)
    for body in (data, header + data):
        with suppress(CircuitError):
            opened(body)
    with suppress(CircuitError):
        decode_invitation(data)


def test_degenerate_keys_are_refused() -> None:
    point = our_point()
    for key in (bytes(32), b"\1" + bytes(31)):
        with pytest.raises(CircuitError, match="degenerate"):
            point.open(introduce_header(b"a" * 32), key, b"sealed", b"m" * 32)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_our_own_arguments_of_wrong_length_are_refused(length: int) -> None:
    given = {"auth_key": b"a" * 32, "private_key": b"b" * 32, "subcredential": b"u" * 32}
    wrong = f"has {length} bytes, not 32"
    for name in given:
        with pytest.raises(UsageError, match=wrong):
            HsNtorPoint(**(given | {name: bytes(length)}))
    for key, tag in ((bytes(length), bytes(32)), (b"x" * 32, bytes(length))):
        with pytest.raises(UsageError, match=wrong):
            our_point().open(b"", key, b"sealed", tag)
    with pytest.raises(UsageError, match=wrong):
        opened(introduction(PLAINTEXT)[1]).answer(bytes(length))


def test_a_request_is_made_by_the_core() -> None:
    with pytest.raises(TypeError, match="cannot be made from Python"):
        HsNtorRequest()


def test_a_replay_is_seen_and_memory_is_bounded() -> None:
    cache = ReplayCache(3)
    values = [bytes([n]) * 32 for n in range(5)]
    assert [cache.is_new(value) for value in values[:3] + values[:3]] == [True] * 3 + [False] * 3
    assert [cache.is_new(value) for value in values[3:]] == [True, True]
    assert len(cache) == 3
    assert not cache.is_new(values[2])
