"""Descriptors: C tor's are read as C tor read them; every changed byte, layer and certificate is refused."""

import contextlib
import random
import re
from typing import Any

import pytest
from hs.making import Service, services

from torkit._fast.keys import X25519PrivateKey
from torkit.errors import DocumentError, OnionServiceError, OnionStep
from torkit.hs.descriptor import MAX_POINTS, Descriptor, decode_descriptor
from torkit.testing.ed25519 import edwards_of
from torkit.testing.encoding import armor, bare64
from torkit.testing.onion.descriptor import FIRST

HEADER = "create2-formats 2\nflow-control 1-2 31\n"


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(*services("plain")[0])


def enc_key(number: int = 1) -> bytes:
    return X25519PrivateKey(bytes([number]) * 32).public_key


def read(service: Service, text: bytes, **changes: Any) -> Descriptor:
    given: dict[str, Any] = {
        "blinded": service.blinded,
        "subcredential": service.subcredential,
        "now": service.now,
        "sendme_inc": 31,
    }
    return decode_descriptor(text, **(given | changes))


def test_real_descriptors_are_read_as_c_tor_made_them() -> None:
    for network, vector in services():
        auth = vector.get("client_authorization")
        key = X25519PrivateKey(bytes.fromhex(auth["x25519_secret_key"])) if auth else None
        found = read(Service(network, vector), vector["descriptor"].encode(), client_key=key)
        assert found.revision == vector["revision_counter"]
        assert found.lifetime == 180
        assert found.signing_key.hex() == vector["signing_key"]
        assert found.sendme_inc == 31
        assert found.is_single_onion == (vector["kind"] == "single")
        assert (found.proof_of_work is not None) == (vector["kind"] == "pow")
        assert len(found.points) == len(vector["intro_points"])
        for point, expected in zip(found.points, vector["intro_points"], strict=True):
            assert [[t, value.hex()] for t, value in point.link_specifiers] == expected["link_specifiers"]
            assert point.onion_key.hex() == expected["onion_key"]
            assert point.auth_key.hex() == expected["auth_key"]
            assert point.enc_key.hex() == expected["enc_key"]


def test_a_service_for_its_clients_says_whether_a_key_is_missing_or_wrong() -> None:
    for network, vector in services("auth"):
        for key, step in ((None, OnionStep.NO_KEY), (X25519PrivateKey(b"w" * 32), OnionStep.WRONG_KEY)):
            with pytest.raises(OnionServiceError) as caught:
                read(Service(network, vector), vector["descriptor"].encode(), client_key=key)
            assert caught.value.step is step


def test_a_made_descriptor_is_read(service: Service) -> None:
    found = read(service, service.descriptor(HEADER + service.some_point(enc_key())))
    assert (found.revision, found.sendme_inc, len(found.points)) == (1, 31, 1)
    assert found.points[0].link_specifiers[0] == (0, bytes([127, 1, 0, 1, 0x23, 0x29]))


def test_every_changed_byte_is_refused(service: Service) -> None:
    text = services("plain")[0][1]["descriptor"].encode()
    rng = random.Random(7)
    for at in rng.sample(range(len(text)), 400):
        changed = text[:at] + bytes([text[at] ^ 1 << rng.randrange(7)]) + text[at + 1 :]
        with pytest.raises(DocumentError):
            read(service, changed)


def test_every_truncation_is_refused(service: Service) -> None:
    text = services("plain")[0][1]["descriptor"].encode()
    for end in [*range(700), *range(700, len(text), 97)]:
        with pytest.raises(DocumentError):
            read(service, text[:end])


def test_the_descriptor_of_another_service_is_refused(service: Service) -> None:
    """Valid in every signature; but the blinded key is not the one that was asked for."""
    network, other = services("pow")[0]
    with pytest.raises(DocumentError, match="another signing key"):
        read(Service(network, services("plain")[1][1]), other["descriptor"].encode())


def test_an_expired_descriptor_is_refused(service: Service) -> None:
    text = service.descriptor(HEADER)
    read(service, text, now=service.now + 50 * 3600)
    with pytest.raises(DocumentError, match="expired"):
        read(service, text, now=service.now + 60 * 3600)


def test_what_is_too_long_or_no_text_is_refused(service: Service) -> None:
    text = service.descriptor(HEADER)
    read(service, text, max_len=len(text))
    with pytest.raises(DocumentError, match="at most"):
        read(service, text, max_len=len(text) - 1)
    for bad in (b"", b"\0" * 100, b"\xff\n", text.replace(b"hs-descriptor", b"hs\0descriptor")):
        with pytest.raises(DocumentError):
            read(service, bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "hs-descriptor 2\n"},
        {"version": ""},
        {"version": "hs-descriptor 3\nhs-descriptor 3\n"},
        {"lifetime": "descriptor-lifetime 721\n"},
        {"lifetime": "descriptor-lifetime 0\n"},
        {"lifetime": "descriptor-lifetime x\n"},
        {"revision": "revision-counter -1\n"},
        {"revision": f"revision-counter {2**64}\n"},
        {"revision": ""},
        {"superencrypted": ""},
        {"superencrypted": "superencrypted\n-----BEGIN MESSAGE-----\nAAAA\n-----END MESSAGE-----\n"},
        {"superencrypted": "superencrypted\n-----BEGIN MESSAGE-----\n!\n-----END MESSAGE-----\n"},
        {"cert": ""},
        {"tail": "x\n"},
        {"tail": "\n"},
    ],
)
def test_an_outer_layer_that_breaks_the_rules_is_refused(service: Service, changes: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        read(service, service.outer(service.first(HEADER), **changes))


def test_a_first_layer_with_a_wrong_mac_is_refused_though_signed(service: Service) -> None:
    blob = bytearray(service.layer(service.first(HEADER).encode(), FIRST, 1))
    blob[-1] ^= 1
    with pytest.raises(DocumentError, match="MAC of the first layer is wrong"):
        read(service, service.outer("", superencrypted=f"superencrypted\n{armor('MESSAGE', bytes(blob))}"))


def test_items_out_of_order_are_refused(service: Service) -> None:
    text = service.outer(
        service.first(HEADER), lifetime="", revision="revision-counter 1\ndescriptor-lifetime 180\n"
    )
    with pytest.raises(DocumentError, match="stands before"):
        read(service, text)


def test_a_certificate_of_another_kind_signer_or_key_is_refused(service: Service) -> None:
    for cert in (
        service.cert(9, service.signing_key, by_blinded=True),
        service.cert(8, service.signing_key),  # by itself
        service.cert(8, service.signing_key, by_blinded=True, names_signer=False),
        service.cert(8, service.signing_key, by_blinded=True, signer=b"s" * 32),
        service.cert(8, service.signing_key, by_blinded=True, key_type=3),
        service.cert(8, b"z" * 32, by_blinded=True),
    ):
        text = service.outer(service.first(HEADER), cert=f"descriptor-signing-key-cert\n{cert}")
        with pytest.raises(DocumentError):
            read(service, text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("desc-auth-type x25519", "desc-auth-type rsa"),
        ("desc-auth-type x25519\n", ""),
        ("desc-auth-ephemeral-key", "desc-auth-ephemeral"),
        ("auth-client ", "auth-client x "),
        ("encrypted\n", "unencrypted\n"),
    ],
)
def test_a_first_layer_that_breaks_the_rules_is_refused(service: Service, old: str, new: str) -> None:
    first = service.first(HEADER)
    with pytest.raises(DocumentError):
        read(service, service.outer(first.replace(old, new)), client_key=X25519PrivateKey(b"k" * 32))


def test_an_ephemeral_key_of_low_order_is_refused(service: Service) -> None:
    first = re.sub(r"(ephemeral-key) .*", rf"\1 {bare64(bytes(32))}", service.first(HEADER))
    with pytest.raises(DocumentError, match="low order"):
        read(service, service.outer(first), client_key=X25519PrivateKey(b"k" * 32))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "flow-control 1-2 31\n",
        "create2-formats 1\n",
        "create2-formats 2\nflow-control 1-2 29\n",
        "create2-formats 2\nflow-control 1-2 33\n",
        "create2-formats 2\nflow-control 2-1 31\n",
        "create2-formats 2\nflow-control x 31\n",
        "create2-formats 2\npow-params v1\n",
        f"create2-formats 2\npow-params v1 {bare64(bytes(32))} x 2026-11-29T01:08:40\n",
        f"create2-formats 2\npow-params v1 {bare64(bytes(32))} 1 2026-11-29\n",
        f"create2-formats 2\npow-params v1 {bare64(bytes(32))} 1 2026-13-29T01:08:40\n",
        "create2-formats 2\n" + 2 * f"pow-params v1 {bare64(bytes(32))} 1 2026-11-29T01:08:40\n",
    ],
)
def test_a_second_layer_that_breaks_the_rules_is_refused(service: Service, header: str) -> None:
    with pytest.raises(DocumentError):
        read(service, service.descriptor(header))


def test_congestion_control_is_done_with_services_that_do_it(service: Service) -> None:
    for line, expected in (
        ("", None),
        ("flow-control 1 31\n", None),
        ("flow-control 1-2 30\n", 30),
        ("flow-control 2 32\n", 32),
        ("flow-control 3-4 31\n", None),
    ):
        assert read(service, service.descriptor(f"create2-formats 2\n{line}")).sendme_inc == expected


def test_proof_of_work_of_other_schemes_and_unknown_items_are_passed_over(service: Service) -> None:
    text = service.descriptor(HEADER + "pow-params v2 x\ncaa 0 issue\nproto Relay=1-6\n")
    assert read(service, text).proof_of_work is None


def test_a_point_that_cannot_be_used_takes_nothing_from_the_others(service: Service) -> None:
    key = enc_key()
    auth = f"auth-key\n{service.cert(9, b'a' * 32, signer=b's' * 32)}"
    expired = service.cert(9, b"a" * 32, expires=service.now - 7200)
    bad = [
        service.some_point(key, introduction_point="introduction-point AAAA\n"),
        service.some_point(key, introduction_point="introduction-point !\n"),
        service.some_point(key, onion_key=f"onion-key ntor {bare64(bytes(32))}\n"),
        service.some_point(key, onion_key=f"onion-key tap {bare64(b'o' * 32)}\n"),
        service.some_point(key, onion_key=""),
        service.some_point(bytes(32), enc_key_cert=f"enc-key-cert\n{service.cert(11, edwards_of(key))}"),
        service.some_point(key, auth_key=auth),
        service.some_point(key, auth_key=f"auth-key\n{service.cert(8, b'a' * 32)}"),
        service.some_point(key, auth_key=f"auth-key\n{service.cert(9, b'a' * 32, names_signer=False)}"),
        service.some_point(key, auth_key=f"auth-key\n{expired}"),
        service.some_point(key, enc_key_cert=f"enc-key-cert\n{service.cert(11, edwards_of(enc_key(2)))}"),
        service.some_point(key, enc_key_cert=f"enc-key-cert\n{service.cert(9, edwards_of(key))}"),
        service.some_point(key, enc_key_cert=""),
    ]
    found = read(service, service.descriptor(HEADER + "".join([*bad[:7], service.some_point(key), *bad[7:]])))
    assert [point.enc_key for point in found.points] == [key]
    for text in bad:
        assert read(service, service.descriptor(HEADER + text)).points == ()


def test_at_most_twenty_points_are_taken(service: Service) -> None:
    for count in (0, 1, MAX_POINTS - 1, MAX_POINTS, MAX_POINTS + 1):
        text = HEADER + count * service.some_point(enc_key())
        found = read(service, service.descriptor(text))
        assert len(found.points) == min(count, MAX_POINTS)


def test_a_front_end_may_name_points_of_other_services(service: Service) -> None:
    """OnionBalance's: their keys are certified by the front end; one that another has certified is none."""
    network, vector = services("pow")[0]
    backends = read(Service(network, vector), vector["descriptor"].encode()).points
    text = HEADER
    for number, point in enumerate(backends):
        specifiers = b"".join(bytes([kind, len(value)]) + value for kind, value in point.link_specifiers)
        specifiers = bytes([len(point.link_specifiers)]) + specifiers
        signer = service.blinded if number == 0 else None
        text += service.some_point(
            point.enc_key,
            introduction_point=f"introduction-point {bare64(specifiers)}\n",
            onion_key=f"onion-key ntor {bare64(point.onion_key)}\n",
            auth_key=f"auth-key\n{service.cert(9, point.auth_key, signer=signer)}",
        )
    assert read(service, service.descriptor(text)).points == backends[1:]


def test_random_bytes_in_any_layer_raise_the_declared_error(service: Service) -> None:
    rng = random.Random(11)
    for _ in range(150):
        second = (HEADER + service.some_point(enc_key())).encode()
        at = rng.randrange(len(second))
        changed = second[:at] + rng.randbytes(rng.randrange(9)) + second[at + rng.randrange(9) :]
        first = service.first(HEADER)
        start = rng.randrange(len(first))
        broken = first[:start] + first[start + rng.randrange(1, 9) :]
        for text in (service.descriptor(changed), service.outer(broken)):
            with contextlib.suppress(DocumentError, OnionServiceError):
                read(service, text)
