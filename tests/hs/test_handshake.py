"""hs-ntor and the messages around it: published values, every changed byte, every truncation."""

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hs.making import VECTORS
from hypothesis import given
from hypothesis import strategies as st

from torkit._fast.hs_ntor import HsNtorClient
from torkit._fast.onion import TOR1_ONION_KEYS_LEN
from torkit.errors import CircuitError, UsageError
from torkit.hs.messages import (
    AckStatus,
    IntroduceExtension,
    decode_introduce_ack,
    decode_rendezvous2,
    introduce_header,
    introduce_plaintext,
)

VECTOR = {name: value for name, value in VECTORS["hs_ntor"].items() if name not in ("source", "layer_keys")}
KNOWN = {name: bytes.fromhex(value) for name, value in VECTOR.items()}
LAYER_KEYS = "".join(VECTORS["hs_ntor"]["layer_keys"][name] for name in ("Df", "Db", "Kf", "Kb"))
LOW_ORDER = [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]


def handshake(**changes: bytes) -> HsNtorClient:
    given = {
        "auth_key": KNOWN["auth_key"],
        "enc_key": KNOWN["B"],
        "subcredential": KNOWN["subcredential"],
        "private_key": bytes.fromhex(VECTOR["x"]),
    }
    return HsNtorClient(**(given | changes))


def test_introduce1_and_the_keys_are_the_published_ones() -> None:
    ours = handshake()
    header = introduce_header(KNOWN["auth_key"])
    assert header == KNOWN["introduce_header"]
    assert ours.public_key == KNOWN["X"]
    assert header + ours.seal(header, KNOWN["introduce_plaintext"]) == KNOWN["introduce1_body"]
    keys = ours.finish(decode_rendezvous2(KNOWN["handshake_info"]))
    assert keys.derive(TOR1_ONION_KEYS_LEN).hex() == LAYER_KEYS


def test_the_plaintext_is_the_published_one() -> None:
    known = KNOWN["introduce_plaintext"]
    made = introduce_plaintext(
        cookie=known[:20],
        onion_key=known[26:58],
        link_specifiers=known[58 : 58 + 1 + 8 + 22 + 34],
        extensions={IntroduceExtension.CC_REQUEST: b""},
        header_len=len(KNOWN["introduce_header"]),
    )
    assert made == known


@pytest.mark.parametrize("extensions", [{}, {IntroduceExtension.CC_REQUEST: b""}, {2: bytes(41)}])
def test_every_introduction_is_as_long(extensions: dict[int, bytes]) -> None:
    header = introduce_header(KNOWN["auth_key"])
    plaintext = introduce_plaintext(
        cookie=b"c" * 20,
        onion_key=b"o" * 32,
        link_specifiers=bytes(1 + 8 + 22 + 34 + 20),
        extensions=extensions,
        header_len=len(header),
    )
    assert len(header + handshake().seal(header, plaintext)) == 310


@given(at=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_changed_answer_is_refused(at: int, bit: int) -> None:
    answer = bytearray(KNOWN["handshake_info"])
    answer[at] ^= 1 << bit  # also the one bit of Y that X25519 does not look at
    with pytest.raises(CircuitError, match="AUTH is wrong"):
        handshake().finish(decode_rendezvous2(bytes(answer)))


@pytest.mark.parametrize("name", ["auth_key", "enc_key", "private_key"])
def test_an_answer_to_another_introduction_is_refused(name: str) -> None:
    other = handshake(**{name: b"\x09" * 32})
    with pytest.raises(CircuitError, match="AUTH is wrong"):
        other.finish(decode_rendezvous2(KNOWN["handshake_info"]))


@pytest.mark.parametrize("key", LOW_ORDER)
def test_degenerate_keys_are_refused(key: bytes) -> None:
    with pytest.raises(CircuitError, match="degenerate"):
        handshake(enc_key=key)
    with pytest.raises(CircuitError, match="degenerate"):
        handshake().finish(decode_rendezvous2(key + bytes(32)))


def test_only_who_knows_the_address_can_read_an_introduction() -> None:
    header = introduce_header(KNOWN["auth_key"])
    sealed = handshake(subcredential=b"s" * 32).seal(header, KNOWN["introduce_plaintext"])
    decryptor = Cipher(AES(KNOWN["enc_key"]), CTR(bytes(16))).decryptor()
    assert decryptor.update(sealed[32:-32]) != KNOWN["introduce_plaintext"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\0\0\0", AckStatus.SUCCESS),
        (b"\0\1\0", AckStatus.UNKNOWN_ID),
        (b"\0\2\0", AckStatus.BAD_FORMAT),
        (b"\0\3\1\7\2ab", AckStatus.CANNOT_RELAY),
        (b"\xff\xff\0", AckStatus.UNKNOWN_ID),
    ],
)
def test_every_status_is_read(body: bytes, status: AckStatus) -> None:
    assert decode_introduce_ack(body) is status


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\0", b"\0\0\1", b"\0\0\1\7\5ab", b"\0\0\0\0"])
def test_a_malformed_acknowledgement_is_refused(body: bytes) -> None:
    with pytest.raises(CircuitError):
        decode_introduce_ack(body)


def test_a_short_answer_is_refused_and_padding_is_not_read() -> None:
    answer = KNOWN["handshake_info"]
    for length in range(64):
        with pytest.raises(CircuitError):
            decode_rendezvous2(answer[:length])
    assert decode_rendezvous2(answer + b"p" * 84) == answer


def test_a_wiped_handshake_is_over() -> None:
    ours = handshake()
    ours.wipe()
    with pytest.raises(UsageError, match="overwritten"):
        ours.finish(KNOWN["handshake_info"])
    with pytest.raises(UsageError, match="overwritten"):
        ours.seal(KNOWN["introduce_header"], KNOWN["introduce_plaintext"])


@pytest.mark.parametrize("name", ["auth_key", "enc_key", "subcredential", "private_key"])
@pytest.mark.parametrize("length", [0, 31, 33])
def test_our_own_arguments_of_wrong_length_are_refused(name: str, length: int) -> None:
    with pytest.raises(UsageError, match=f"has {length} bytes, not 32"):
        handshake(**{name: bytes(length)})


@pytest.mark.parametrize("length", [0, 63, 65])
def test_an_answer_has_one_length(length: int) -> None:
    with pytest.raises(UsageError, match=f"has {length} bytes, not 64"):
        handshake().finish(bytes(length))
