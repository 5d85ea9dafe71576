"""Circuit handshakes against published vectors and against an independent relay's half."""

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given
from hypothesis import strategies as st
from stem.client.datatype import KDF

from torkit._fast.handshake import FastClient, HopKeys, NtorClient, NtorV3Client
from torkit._fast.onion import LayerKind
from torkit.errors import CircuitError, UsageError
from torkit.proto.ntor import (
    CircuitRequest,
    decode_extensions,
    encode_extensions,
    encode_subprotocol_request,
)

VECTORS = Path(__file__).parent / "vectors"


def vector(name: str) -> dict[str, bytes]:
    """The figures of one file, without the sentence that names their source."""
    figures = json.loads((VECTORS / f"{name}.json").read_text())
    return {key: bytes.fromhex(value) for key, value in figures.items() if key != "source"}


NTOR = vector("ntor")
NTOR_V3 = vector("ntor_v3")


# --- The relay's half, from the specification, with a curve of its own -----------------------------------


def curve25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5: slow and obvious."""
    p = 2**255 - 19
    k = int.from_bytes(scalar, "little") & ~7 & ~(1 << 255) | 1 << 254
    u = int.from_bytes(point, "little") & ~(1 << 255)
    x2, z2, x3, z3 = 1, 0, u, 1
    for bit in reversed(range(255)):
        swap = k >> bit & 1
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a % p, c * b % p
        x3, z3 = (da + cb) ** 2 % p, u * (da - cb) ** 2 % p
        aa, bb = a * a % p, b * b % p
        x2, z2 = aa * bb % p, (aa - bb) * (aa + 121665 * (aa - bb)) % p
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


BASE_POINT = b"\x09" + bytes(31)
ALL_ZERO = bytes(32)


def answer_ntor(handshake: bytes, *, b: bytes, y: bytes, identity: bytes) -> tuple[bytes, bytes]:
    """The relay's reply and 92 bytes of its keys. tor-spec, "The "ntor" handshake"."""
    protoid = b"ntor-curve25519-sha256-1"
    public_b, public_y = curve25519(b, BASE_POINT), curve25519(y, BASE_POINT)
    assert handshake[:52] == identity + public_b
    x = handshake[52:]

    def h(message: bytes, key: bytes) -> bytes:
        return hmac.new(key, message, hashlib.sha256).digest()

    secret_input = curve25519(y, x) + curve25519(b, x) + identity + public_b + x + public_y + protoid
    key_seed = h(secret_input, protoid + b":key_extract")
    verify = h(secret_input, protoid + b":verify")
    auth = h(verify + identity + public_b + public_y + x + protoid + b"Server", protoid + b":mac")
    k1 = h(protoid + b":key_expand\1", key_seed)
    k2 = h(k1 + protoid + b":key_expand\2", key_seed)
    k3 = h(k2 + protoid + b":key_expand\3", key_seed)
    return public_y + auth, (k1 + k2 + k3)[:92]


def answer_ntor_v3(
    handshake: bytes,
    *,
    b: bytes,
    y: bytes,
    identity: bytes,
    answer: Callable[[bytes], bytes],
    verification: bytes = b"circuit extend",
) -> tuple[bytes, bytes]:
    """The relay's reply and 160 bytes of its keys; `answer` makes its message of ours. Proposal 332."""
    protoid = b"ntor3-curve25519-sha3_256-1"

    def encap(data: bytes) -> bytes:
        return len(data).to_bytes(8, "big") + data

    def h(message: bytes, tweak: bytes) -> bytes:
        return hashlib.sha3_256(encap(protoid + tweak) + message).digest()

    def kdf(message: bytes, tweak: bytes) -> bytes:
        return hashlib.shake_256(encap(protoid + tweak) + message).digest(32 + 160)

    def crypt(key: bytes, data: bytes) -> bytes:
        return Cipher(AES(key), CTR(bytes(16))).encryptor().update(data)

    public_b, public_y = curve25519(b, BASE_POINT), curve25519(y, BASE_POINT)
    assert handshake[:64] == identity + public_b
    x, encrypted, mac = handshake[64:96], handshake[96:-32], handshake[-32:]
    xb, xy = curve25519(b, x), curve25519(y, x)
    phase1 = kdf(xb + identity + x + public_b + protoid + encap(verification), b":kdf_phase1")
    assert mac == h(encap(phase1[32:64]) + identity + public_b + x + encrypted, b":msg_mac")

    secret_input = xy + xb + identity + public_b + x + public_y + protoid + encap(verification)
    keystream = kdf(h(secret_input, b":key_seed"), b":kdf_final")
    reply = crypt(keystream[:32], answer(crypt(phase1[:32], encrypted)))
    verify = h(secret_input, b":verify")
    auth_input = verify + identity + public_b + public_y + x + mac + encap(reply) + protoid + b"Server"
    return public_y + h(auth_input, b":auth_final") + reply, keystream[32:]


# --- CREATE_FAST -----------------------------------------------------------------------------------------

FAST_X, FAST_Y = bytes(range(20)), bytes(range(20, 40))


def fast_reply() -> bytes:
    return FAST_Y + bytes(KDF.from_value(FAST_X + FAST_Y).key_hash)


def test_create_fast_derives_the_keys_that_stem_does() -> None:
    client = FastClient(FAST_X)
    assert client.handshake == FAST_X
    keys = client.finish(fast_reply())
    stems = KDF.from_value(FAST_X + FAST_Y)
    assert keys.derive(72) == (
        stems.forward_digest + stems.backward_digest + stems.forward_key + stems.backward_key
    )
    assert keys.server_message == b""


def test_create_fast_with_a_wrong_byte_is_refused() -> None:
    for i in range(40):
        with pytest.raises(CircuitError, match="KH is wrong"):
            FastClient(FAST_X).finish(flip(fast_reply(), i))


# --- ntor ------------------------------------------------------------------------------------------------


def ntor_client(**changes: bytes) -> NtorClient:
    arguments = {
        "rsa_identity": NTOR["relay_rsa_id"],
        "onion_key": NTOR["relay_B_public"],
        "private_key": NTOR["client_x_secret"],
    }
    return NtorClient(**(arguments | changes))


def test_ntor_vector() -> None:
    client = ntor_client()
    assert client.handshake == NTOR["client_handshake"]
    assert client.finish(NTOR["server_handshake"]).derive(72) == NTOR["keys"]


def test_the_relays_half_in_this_file_meets_the_ntor_vector() -> None:
    reply, keys = answer_ntor(
        NTOR["client_handshake"],
        b=NTOR["relay_b_secret"],
        y=NTOR["relay_y_secret"],
        identity=NTOR["relay_rsa_id"],
    )
    assert reply == NTOR["server_handshake"]
    assert keys[:72] == NTOR["keys"]


@pytest.mark.parametrize("seed", [b"one", b"two", b"three"])
def test_ntor_agrees_with_an_independent_relay(seed: bytes) -> None:
    b, x, y = (hashlib.sha256(seed + name).digest() for name in (b"b", b"x", b"y"))
    identity = hashlib.sha1(seed).digest()
    client = NtorClient(rsa_identity=identity, onion_key=curve25519(b, BASE_POINT), private_key=x)
    reply, expected = answer_ntor(client.handshake, b=b, y=y, identity=identity)
    keys = client.finish(reply)
    assert keys.derive(92) == expected


def test_ntor_reply_with_a_wrong_byte_is_refused() -> None:
    client = ntor_client()
    for i in range(64):
        with pytest.raises(CircuitError, match="AUTH is wrong"):
            client.finish(flip(NTOR["server_handshake"], i))


@pytest.mark.parametrize("changed", ["rsa_identity", "onion_key", "private_key"])
def test_ntor_reply_for_another_relay_or_handshake_is_refused(changed: str) -> None:
    other = hashlib.sha256(b"other").digest()
    client = ntor_client(**{changed: other[:20] if changed == "rsa_identity" else other})
    with pytest.raises(CircuitError, match="AUTH is wrong"):
        client.finish(NTOR["server_handshake"])


# --- ntor-v3 ---------------------------------------------------------------------------------------------


def ntor_v3_client(**changes: bytes) -> NtorV3Client:
    arguments = {
        "ed25519_identity": NTOR_V3["relay_ed25519_id"],
        "onion_key": NTOR_V3["relay_B_public"],
        "private_key": NTOR_V3["client_x_secret"],
        "message": NTOR_V3["client_message"],
        "verification": NTOR_V3["verification"],
    }
    return NtorV3Client(**(arguments | changes))


def test_ntor_v3_vector() -> None:
    client = ntor_v3_client()
    assert client.handshake == NTOR_V3["client_handshake"]
    keys = client.finish(NTOR_V3["server_handshake"])
    assert keys.server_message == NTOR_V3["server_message"]
    assert keys.derive(256) == NTOR_V3["keys_256"]


def test_the_relays_half_in_this_file_meets_the_ntor_v3_vector() -> None:
    reply, keys = answer_ntor_v3(
        NTOR_V3["client_handshake"],
        b=NTOR_V3["relay_b_secret"],
        y=NTOR_V3["relay_y_secret"],
        identity=NTOR_V3["relay_ed25519_id"],
        answer=lambda message: NTOR_V3["server_message"] if message == NTOR_V3["client_message"] else b"",
        verification=NTOR_V3["verification"],
    )
    assert reply == NTOR_V3["server_handshake"]
    assert keys == NTOR_V3["keys_256"][:160]


@pytest.mark.parametrize("message", [b"", b"\0", b"m" * 200])
def test_ntor_v3_agrees_with_an_independent_relay(message: bytes) -> None:
    b, x, y, identity = (hashlib.sha256(name).digest() for name in (b"b", b"x", b"y", b"identity"))
    client = NtorV3Client(
        ed25519_identity=identity, onion_key=curve25519(b, BASE_POINT), private_key=x, message=message
    )
    reply, expected = answer_ntor_v3(client.handshake, b=b, y=y, identity=identity, answer=lambda m: m * 2)
    keys = client.finish(reply)
    assert keys.server_message == message * 2
    assert keys.derive(160) == expected[:160]


def test_a_message_of_one_byte_is_opened_in_bytes_of_its_own() -> None:
    """Python has one object for all bytes of one value: what is decrypted in place must not be that."""
    b, x, y, identity = (hashlib.sha256(name).digest() for name in (b"b", b"x", b"y", b"identity"))
    client = NtorV3Client(
        ed25519_identity=identity, onion_key=curve25519(b, BASE_POINT), private_key=x, message=b"m"
    )
    reply, _ = answer_ntor_v3(client.handshake, b=b, y=y, identity=identity, answer=lambda m: m)
    assert client.finish(reply).server_message == b"m"
    assert [bytes([value])[0] for value in range(256)] == list(range(256))


def test_a_message_that_fits_no_cell_is_refused() -> None:
    with pytest.raises(UsageError, match="fits no cell"):
        ntor_v3_client(message=bytes(510))
    with pytest.raises(CircuitError, match="fit no cell"):
        ntor_v3_client().finish(bytes(510))


def test_ntor_v3_reply_with_a_wrong_byte_is_refused() -> None:
    client = ntor_v3_client()
    for i in range(len(NTOR_V3["server_handshake"])):
        with pytest.raises(CircuitError, match="AUTH is wrong"):
            client.finish(flip(NTOR_V3["server_handshake"], i))


def test_ntor_v3_reply_of_another_length_is_refused() -> None:
    reply = NTOR_V3["server_handshake"]
    for length in range(64):
        with pytest.raises(CircuitError, match="truncated"):
            ntor_v3_client().finish(reply[:length])
    for wrong in [reply[:length] for length in range(64, len(reply))] + [reply + b"\0"]:
        with pytest.raises(CircuitError, match="AUTH is wrong"):
            ntor_v3_client().finish(wrong)


@pytest.mark.parametrize(
    "changed", ["ed25519_identity", "onion_key", "private_key", "message", "verification"]
)
def test_ntor_v3_reply_for_another_relay_or_handshake_is_refused(changed: str) -> None:
    client = ntor_v3_client(**{changed: hashlib.sha256(b"other").digest()})
    with pytest.raises(CircuitError, match="AUTH is wrong"):
        client.finish(NTOR_V3["server_handshake"])


# --- All of them -----------------------------------------------------------------------------------------

FINISHED: dict[str, Callable[[], HopKeys]] = {
    "fast": lambda: FastClient(FAST_X).finish(fast_reply()),
    "ntor": lambda: ntor_client().finish(NTOR["server_handshake"]),
    "ntor-v3": lambda: ntor_v3_client().finish(NTOR_V3["server_handshake"]),
}


def flip(data: bytes, i: int) -> bytes:
    return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]


@pytest.mark.parametrize("kind", FINISHED)
def test_keys_are_the_start_of_one_stream(kind: str) -> None:
    keys = FINISHED[kind]()
    longest = keys.derive(256)
    assert len(set(longest)) > 100
    for length in (0, 1, 19, 20, 21, 31, 32, 33, 72, 160, 256):
        assert keys.derive(length) == longest[:length]


@pytest.mark.parametrize("kind", FINISHED)
def test_overwritten_keys_make_no_layer(kind: str) -> None:
    keys = FINISHED[kind]()
    keys.wipe()
    with pytest.raises(UsageError, match="overwritten"):
        keys.derive(32)
    with pytest.raises(UsageError, match="overwritten"):
        keys.layer(LayerKind.TOR1)


def test_an_overwritten_handshake_cannot_be_finished() -> None:
    clients: list[tuple[FastClient | NtorClient | NtorV3Client, bytes]] = [
        (FastClient(bytes(bytearray(FAST_X))), fast_reply()),
        (ntor_client(), NTOR["server_handshake"]),
        (ntor_v3_client(), NTOR_V3["server_handshake"]),
    ]
    for client, reply in clients:
        client.wipe()
        with pytest.raises(UsageError, match="overwritten"):
            client.finish(reply)


def test_kh_is_what_follows_the_keys_of_a_layer() -> None:
    for finished in (FINISHED["ntor"](), FINISHED["ntor-v3"]()):
        keys = finished.derive(180)
        assert finished.kh(LayerKind.TOR1) == keys[72:92]
        assert finished.kh(LayerKind.CGO) == keys[160:180]


@pytest.mark.parametrize("kind", FINISHED)
def test_more_keys_than_any_layer_takes_are_refused(kind: str) -> None:
    keys = FINISHED[kind]()
    for length in (-1, 257, 1 << 40):
        with pytest.raises(UsageError, match="256 bytes at most"):
            keys.derive(length)


def test_reply_of_another_length_is_refused() -> None:
    fast, ntor = fast_reply(), NTOR["server_handshake"]
    for wrong in [fast[:length] for length in range(40)] + [fast + b"\0"]:
        with pytest.raises(CircuitError, match=f"CREATED_FAST has {len(wrong)} bytes, not 40"):
            FastClient(FAST_X).finish(wrong)
    for wrong in [ntor[:length] for length in range(64)] + [ntor + b"\0"]:
        with pytest.raises(CircuitError, match=f"has {len(wrong)} bytes, not 64"):
            ntor_client().finish(wrong)


# Points of small order, whose product with any private key is all zeros (RFC 7748, section 6.1).
DEGENERATE = [ALL_ZERO, b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]


@pytest.mark.parametrize("point", DEGENERATE)
def test_degenerate_key_of_the_relay_is_refused(point: bytes) -> None:
    with pytest.raises(CircuitError, match="key of the relay is degenerate"):
        ntor_client().finish(point + NTOR["server_handshake"][32:])
    with pytest.raises(CircuitError, match="key of the relay is degenerate"):
        ntor_v3_client().finish(point + NTOR_V3["server_handshake"][32:])


@pytest.mark.parametrize("point", DEGENERATE)
def test_degenerate_onion_key_is_refused_before_anything_is_sent(point: bytes) -> None:
    with pytest.raises(CircuitError, match="onion key is degenerate"):
        ntor_client(onion_key=point)
    with pytest.raises(CircuitError, match="onion key is degenerate"):
        ntor_v3_client(onion_key=point)


@pytest.mark.parametrize("delta", [-1, 1])
def test_our_own_arguments_of_wrong_length_are_refused(delta: int) -> None:
    for name, length in {"rsa_identity": 20, "onion_key": 32, "private_key": 32}.items():
        with pytest.raises(UsageError, match=f"has {length + delta} bytes, not {length}"):
            ntor_client(**{name: bytes(length + delta)})
    for name in ("ed25519_identity", "onion_key", "private_key"):
        with pytest.raises(UsageError, match=f"has {32 + delta} bytes, not 32"):
            ntor_v3_client(**{name: bytes(32 + delta)})
    with pytest.raises(UsageError):
        FastClient(bytes(20 + delta))


# --- Extensions ------------------------------------------------------------------------------------------

CC_RESPONSE_31 = b"\1\2\1\x1f"


def test_request_is_what_c_tor_sends() -> None:
    assert CircuitRequest().encode() == b"\0"
    assert CircuitRequest(congestion_control=True).encode() == b"\1\1\0"
    assert CircuitRequest(congestion_control=True, cgo=True).encode() == b"\2\1\0\3\2\2\6"


def test_cgo_is_not_asked_for_without_congestion_control() -> None:
    with pytest.raises(UsageError, match="CGO needs congestion control"):
        CircuitRequest(cgo=True)


def test_extensions_are_sent_sorted_by_type() -> None:
    assert encode_extensions({9: b"", 3: b"abc"}) == b"\2\3\3abc\x09\0"


def test_subprotocol_requests_are_sorted_and_each_once() -> None:
    assert encode_subprotocol_request([(3, 1), (2, 6), (2, 5), (2, 6)]) == b"\2\5\2\6\3\1"


def test_first_of_two_extensions_of_a_type_counts() -> None:
    assert decode_extensions(b"\3\2\1a\7\0\2\1b") == {2: b"a", 7: b""}


def test_every_truncation_of_an_extension_list_and_any_byte_more_is_refused() -> None:
    whole = b"\2\1\3abc\7\0"
    for length in range(len(whole)):
        with pytest.raises(CircuitError, match="truncated"):
            decode_extensions(whole[:length])
    with pytest.raises(CircuitError, match="1 bytes too many"):
        decode_extensions(whole + b"\0")


@given(st.binary(max_size=300))
def test_extension_lists_that_decode_are_consumed_whole(message: bytes) -> None:
    try:
        extensions = decode_extensions(message)
    except CircuitError:
        return
    assert len(encode_extensions(extensions)) <= len(message)


@pytest.mark.parametrize("cgo", [False, True])
@pytest.mark.parametrize(("consensus", "granted"), [(31, 30), (31, 31), (31, 32), (1, 1), (1, 2), (254, 255)])
def test_sendme_increment_within_one_of_the_consensus_is_taken(
    consensus: int, granted: int, cgo: bool
) -> None:
    request = CircuitRequest(congestion_control=True, cgo=cgo)
    assert request.decode_response(b"\1\2\1" + bytes([granted]), cc_sendme_inc=consensus) == granted


@pytest.mark.parametrize(("consensus", "granted"), [(31, 29), (31, 33), (31, 0), (31, 255), (1, 0), (1, 3)])
def test_sendme_increment_further_from_the_consensus_is_refused(consensus: int, granted: int) -> None:
    request = CircuitRequest(congestion_control=True)
    with pytest.raises(CircuitError, match=f"every {granted} cells, not every {consensus}"):
        request.decode_response(b"\1\2\1" + bytes([granted]), cc_sendme_inc=consensus)


@pytest.mark.parametrize("response", [b"\1\2\0", b"\1\2\2\x1f\0"])
def test_congestion_control_response_of_wrong_length_is_refused(response: bytes) -> None:
    with pytest.raises(CircuitError, match="bytes, not 1"):
        CircuitRequest(congestion_control=True).decode_response(response, cc_sendme_inc=31)


def test_congestion_control_may_be_refused_but_not_with_cgo() -> None:
    assert CircuitRequest(congestion_control=True).decode_response(b"\0", cc_sendme_inc=31) is None
    with pytest.raises(CircuitError, match="which CGO needs"):
        CircuitRequest(congestion_control=True, cgo=True).decode_response(b"\0", cc_sendme_inc=31)


def test_congestion_control_that_we_did_not_ask_for_is_refused() -> None:
    with pytest.raises(CircuitError, match="did not ask for"):
        CircuitRequest().decode_response(CC_RESPONSE_31, cc_sendme_inc=31)


def test_unknown_extensions_in_a_response_are_passed_over() -> None:
    assert CircuitRequest().decode_response(b"\1\x63\3abc", cc_sendme_inc=31) is None
    request = CircuitRequest(congestion_control=True)
    assert request.decode_response(b"\2\x63\0\2\1\x1f", cc_sendme_inc=31) == 31
