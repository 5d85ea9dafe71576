"""Counter Galois Onion: the published vectors, the oracle, and what no change to a cell may survive."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from compiled_cgo import Compiled, moved
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit._fast.cells import Command
from torkit._fast.cgo import CgoLayer
from torkit.errors import UsageError
from torkit.testing.relay import reference
from torkit.testing.relay.reference import CELL_BODY_LEN, TAG_LEN, CgoDirection

VECTORS = json.loads((Path(__file__).parent / "vectors" / "cgo.json").read_text())
RELAY, RELAY_EARLY = Command.RELAY, Command.RELAY_EARLY
MESSAGE_LEN = CELL_BODY_LEN - TAG_LEN

# Every machine runs both: the processor's instructions, where it has them, and the portable way.
both_ways = pytest.mark.parametrize("portable", [False, True], ids=["native", "portable"])


def each_vector(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[name], ids=range(len(VECTORS[name])))


def noise(label: str, length: int) -> bytes:
    return hashlib.shake_128(label.encode()).digest(length)


def make_client(hops: int, portable: bool) -> list[Compiled]:
    return [Compiled(noise(f"hop {hop}", 160), relay=False, portable=portable) for hop in range(hops)]


def make_relays(hops: int, portable: bool) -> list[Compiled]:
    return [Compiled(noise(f"hop {hop}", 160), relay=True, portable=portable) for hop in range(hops)]


def make_oracle(hops: int) -> list[reference.CgoLayer]:
    return [reference.CgoLayer(noise(f"hop {hop}", 160)) for hop in range(hops)]


# --- Vectors -------------------------------------------------------------------------------------------


def test_oracle_agrees_with_rfc_8452_on_polyval() -> None:  # RFC 8452, appendix A
    h = bytes.fromhex("25629347589242761d31f826ba4b757b")
    blocks = bytes.fromhex("4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362")
    assert reference.polyval(h, blocks).hex() == "f7a3b47b846119fae5b7866cf5e5b77e"


@each_vector("et")
def test_oracle_agrees_with_tweakable_cipher_vector(vector: dict[str, Any]) -> None:
    cipher = reference.et_encrypt if vector["encrypt"] else reference.et_decrypt
    keys, tweak, block = (bytes.fromhex(vector[name]) for name in ("keys", "tweak", "block"))
    assert cipher(keys, tweak, block).hex() == vector["expect"]


@both_ways
@each_vector("et")
def test_tweakable_cipher_vector(vector: dict[str, Any], portable: bool) -> None:
    # ET is the left block of UIV+, with any PRF; a client first XORs the PRF, so the body starts XORed.
    keys, tweak, block = (bytes.fromhex(vector[name]) for name in ("keys", "tweak", "block"))
    prf_key = noise("K_PRF", 32)
    layer = CgoLayer(
        keys + prf_key + bytes(TAG_LEN), relay=vector["encrypt"], portable=portable, tprime=tweak[:TAG_LEN]
    )
    right = tweak[TAG_LEN + 1 :]
    if vector["encrypt"]:
        body, _ = moved(layer.relay_backward, tweak[TAG_LEN], block + right)
    else:
        right = reference.xor(right, reference.prf(prf_key, block, 0, MESSAGE_LEN))
        body, _ = moved(layer.client_forward, tweak[TAG_LEN], block + right)
    assert body[:TAG_LEN].hex() == vector["expect"]


@each_vector("prf")
def test_oracle_agrees_with_prf_vector(vector: dict[str, Any]) -> None:
    expect = bytes.fromhex(vector["expect"])
    keys, x = bytes.fromhex(vector["keys"]), bytes.fromhex(vector["input"])
    assert reference.prf(keys, x, vector["t"], len(expect)) == expect


@both_ways
@each_vector("prf")
def test_prf_vector(vector: dict[str, Any], portable: bool) -> None:
    keys, x, expect = (bytes.fromhex(vector[name]) for name in ("keys", "input", "expect"))
    if vector["t"] == 0:  # what a client's transformation XORs into the right side
        layer = CgoLayer(noise("K_ET", 32) + keys + noise("N", TAG_LEN), portable=portable)
        body, _ = moved(layer.client_forward, RELAY, x + bytes(MESSAGE_LEN))
        assert body[TAG_LEN:] == expect
    else:  # what a client's nonce turns all keys into
        layer = CgoLayer(noise("K_ET", 32) + keys + x, portable=portable)
        _, _ = moved(layer.client_originate, RELAY, bytes(CELL_BODY_LEN))
        assert_same_state(layer, CgoDirection(expect, tprime=x), relay=False)


@each_vector("uiv")
def test_oracle_agrees_with_wide_block_vector(vector: dict[str, Any]) -> None:
    cipher = reference.uiv_encrypt if vector["encrypt"] else reference.uiv_decrypt
    keys, tweak, body = (bytes.fromhex(vector[name]) for name in ("keys", "tweak", "body"))
    assert cipher(keys, tweak, body).hex() == vector["expect"]


@both_ways
@each_vector("uiv")
def test_wide_block_vector(vector: dict[str, Any], portable: bool) -> None:
    keys, tweak, body = (bytes.fromhex(vector[name]) for name in ("keys", "tweak", "body"))
    seed, tprime, command = keys + noise("N", TAG_LEN), tweak[:TAG_LEN], tweak[TAG_LEN]
    layer = CgoLayer(seed, relay=vector["encrypt"], portable=portable, tprime=tprime)
    move = layer.relay_backward if vector["encrypt"] else layer.client_forward
    assert moved(move, command, body)[0].hex() == vector["expect"]


@each_vector("update")
def test_oracle_agrees_with_update_vector(vector: dict[str, Any]) -> None:
    keys, nonce = reference.uiv_update(bytes.fromhex(vector["keys"]), bytes.fromhex(vector["nonce"]))
    assert (keys.hex(), nonce.hex()) == (vector["new_keys"], vector["new_nonce"])


@both_ways
@each_vector("update")
def test_update_vector(vector: dict[str, Any], portable: bool) -> None:
    nonce = bytes.fromhex(vector["nonce"])
    layer = CgoLayer(bytes.fromhex(vector["keys"]) + nonce, portable=portable)
    moved(layer.client_originate, RELAY, bytes(CELL_BODY_LEN))
    new_seed = bytes.fromhex(vector["new_keys"] + vector["new_nonce"])
    assert_same_state(layer, CgoDirection(new_seed, tprime=nonce), relay=False)


@each_vector("relay")
def test_oracle_agrees_with_relay_vector(vector: dict[str, Any]) -> None:
    layer = oracle_in(vector["state"])
    command, body = bytes.fromhex(vector["command"])[0], bytes.fromhex(vector["body"])
    assert layer.encrypt(command, body).hex() == vector["expect"]
    assert state_of(layer) == vector["new_state"]


@both_ways
@each_vector("relay")
def test_relay_vector(vector: dict[str, Any], portable: bool) -> None:
    layer = compiled_in(vector["state"], relay=True, portable=portable)
    move = layer.relay_backward if vector["inbound"] else layer.relay_forward
    body, tag = moved(move, bytes.fromhex(vector["command"])[0], bytes.fromhex(vector["body"]))
    assert body.hex() == vector["expect"]
    assert tag is None
    assert_same_state(layer, oracle_in(vector["new_state"]), relay=True)


@each_vector("relay_originate")
def test_oracle_agrees_with_relay_originate_vector(vector: dict[str, Any]) -> None:
    layer = reference.CgoLayer(bytes(160))
    layer.backward = oracle_in(vector["state"])
    message = bytes.fromhex(vector["message"])
    body, tag = layer.relay_originate(bytes.fromhex(vector["command"])[0], bytes(TAG_LEN) + message)
    assert body.hex() == vector["expect"]
    assert tag == body[:TAG_LEN]
    assert state_of(layer.backward) == vector["new_state"]


@both_ways
@each_vector("relay_originate")
def test_relay_originate_vector(vector: dict[str, Any], portable: bool) -> None:
    layer = compiled_in(vector["state"], relay=True, portable=portable)
    command, message = bytes.fromhex(vector["command"])[0], bytes.fromhex(vector["message"])
    body, tag = moved(layer.relay_originate, command, noise("free", TAG_LEN) + message)
    assert body.hex() == vector["expect"]
    assert tag == body[:TAG_LEN]
    assert_same_state(layer, oracle_in(vector["new_state"]), relay=True)


@each_vector("client_originate")
def test_oracle_agrees_with_client_originate_vector(vector: dict[str, Any]) -> None:
    layers = [reference.CgoLayer(bytes(160)) for _ in vector["states"]]
    for layer, state in zip(layers, vector["states"], strict=True):
        layer.forward = oracle_in(state)
    command, message = bytes.fromhex(vector["command"])[0], bytes.fromhex(vector["message"])
    body, _ = reference.client_seal(layers, vector["target_hop"] - 1, command, bytes(TAG_LEN) + message)
    assert body.hex() == vector["expect"]
    assert [state_of(layer.forward) for layer in layers] == vector["new_states"]


@both_ways
@each_vector("client_originate")
def test_client_originate_vector(vector: dict[str, Any], portable: bool) -> None:
    layers = [Compiled(bytes(160), relay=False, portable=portable) for _ in vector["states"]]
    for layer, state in zip(layers, vector["states"], strict=True):
        layer.forward = compiled_in(state, relay=False, portable=portable)
    command, message = bytes.fromhex(vector["command"])[0], bytes.fromhex(vector["message"])
    body, _ = reference.client_seal(layers, vector["target_hop"] - 1, command, bytes(TAG_LEN) + message)
    assert body.hex() == vector["expect"]
    for layer, state in zip(layers, vector["new_states"], strict=True):
        assert_same_state(layer.forward, oracle_in(state), relay=False)


def oracle_in(state: dict[str, str]) -> CgoDirection:
    return CgoDirection(bytes.fromhex(state["keys"] + state["nonce"]), tprime=bytes.fromhex(state["tprime"]))


def state_of(layer: CgoDirection) -> dict[str, str]:
    return {"keys": layer.keys.hex(), "nonce": layer.nonce.hex(), "tprime": layer.tprime.hex()}


def compiled_in(state: dict[str, str], *, relay: bool, portable: bool) -> CgoLayer:
    seed, tprime = bytes.fromhex(state["keys"] + state["nonce"]), bytes.fromhex(state["tprime"])
    return CgoLayer(seed, relay=relay, portable=portable, tprime=tprime)


def assert_same_state(layer: CgoLayer, oracle: CgoDirection, *, relay: bool) -> None:
    """Keys cannot be seen from outside, but a cell sealed with them depends on every bit of the state."""
    message = noise("any message", MESSAGE_LEN)
    marked = oracle.mark(bytes(TAG_LEN) + message)
    seal = layer.relay_originate if relay else layer.client_originate
    body, _ = moved(seal, RELAY, bytes(TAG_LEN) + message)
    assert body == (oracle.encrypt(RELAY, marked) if relay else oracle.decrypt(RELAY, marked))


# --- Against the oracle --------------------------------------------------------------------------------


@st.composite
def circuits_with_cells(draw: st.DrawFn) -> tuple[int, list[tuple[int, Command, bytes]]]:
    """A number of hops, and cells: hop, command, body."""
    hops = draw(st.integers(1, 5))
    body = st.binary(min_size=CELL_BODY_LEN, max_size=CELL_BODY_LEN)
    cell = st.tuples(st.integers(0, hops - 1), st.sampled_from([RELAY, RELAY_EARLY]), body)
    return hops, draw(st.lists(cell, min_size=1, max_size=4))


@both_ways
@settings(max_examples=25, deadline=None)
@given(circuit=circuits_with_cells())
def test_cells_to_relays_are_those_of_the_oracle(
    circuit: tuple[int, list[tuple[int, Command, bytes]]], portable: bool
) -> None:
    hops, cells = circuit
    client, relays = make_client(hops, portable), make_relays(hops, portable)
    oracle_client, oracle_relays = make_oracle(hops), make_oracle(hops)
    for hop, command, body in cells:
        sealed, tag = reference.client_seal(client, hop, command, body)
        assert (sealed, tag) == reference.client_seal(oracle_client, hop, command, body)
        opened = reference.relays_open(relays, command, sealed)
        assert opened == reference.relays_open(oracle_relays, command, sealed)
        assert opened is not None
        assert (opened[0], opened[1][TAG_LEN:], opened[2]) == (hop, body[TAG_LEN:], tag)


@both_ways
@settings(max_examples=25, deadline=None)
@given(circuit=circuits_with_cells())
def test_cells_to_the_client_are_those_of_the_oracle(
    circuit: tuple[int, list[tuple[int, Command, bytes]]], portable: bool
) -> None:
    hops, cells = circuit
    client, relays = make_client(hops, portable), make_relays(hops, portable)
    oracle_client, oracle_relays = make_oracle(hops), make_oracle(hops)
    for hop, command, body in cells:
        sealed, tag = reference.relays_seal(relays, hop, command, body)
        assert (sealed, tag) == reference.relays_seal(oracle_relays, hop, command, body)
        opened = reference.client_open(client, command, sealed)
        assert opened == reference.client_open(oracle_client, command, sealed)
        assert opened is not None
        assert (opened[0], opened[1][TAG_LEN:], opened[2]) == (hop, body[TAG_LEN:], tag)


@both_ways
@settings(max_examples=25, deadline=None)
@given(
    seed=st.binary(min_size=80, max_size=80),
    tprime=st.binary(min_size=TAG_LEN, max_size=TAG_LEN),
    command=st.integers(0, 255),
    body=st.binary(min_size=CELL_BODY_LEN, max_size=CELL_BODY_LEN),
    offset=st.integers(0, 31),
)
def test_any_state_and_any_alignment(
    seed: bytes, tprime: bytes, command: int, body: bytes, offset: int, portable: bool
) -> None:
    buffer = bytearray(offset) + body + bytes(16)
    cell = memoryview(buffer)[offset : offset + CELL_BODY_LEN]
    CgoLayer(seed, relay=True, portable=portable, tprime=tprime).relay_backward(command, cell)
    assert bytes(cell) == CgoDirection(seed, tprime=tprime).encrypt(command, body)
    CgoLayer(seed, portable=portable, tprime=tprime).client_forward(command, cell)
    assert buffer == bytearray(offset) + body + bytes(16)  # there and back, and not a byte beyond


# --- What no change to a cell may survive --------------------------------------------------------------


def assert_is_noise(body: bytes, plain: bytes) -> None:
    """About half of the bits differ: ten standard deviations either side of the mean."""
    bits = 8 * len(plain)
    different = sum((a ^ b).bit_count() for a, b in zip(body, plain, strict=True))
    assert abs(different - bits / 2) < 10 * bits**0.5 / 2


@both_ways
@settings(max_examples=50, deadline=None)
@given(bit=st.integers(0, 8 * CELL_BODY_LEN - 1), hop=st.integers(0, 2))
def test_flipped_bit_on_the_way_to_a_relay_makes_noise_of_the_cell_and_of_all_after(
    bit: int, hop: int, portable: bool
) -> None:
    client, relays = make_client(3, portable), make_relays(3, portable)
    for number in range(3):
        plain = bytes(TAG_LEN) + noise(f"message {number}", MESSAGE_LEN)
        body, _ = reference.client_seal(client, 2, RELAY, plain)
        for layer in relays[:hop]:
            body, tag = layer.relay_forward(RELAY, body)
            assert tag is None
        if number == 0:
            body = flipped(body, bit)
        for layer in relays[hop:]:
            body, tag = layer.relay_forward(RELAY, body)
            assert tag is None
        assert_is_noise(body[TAG_LEN:], plain[TAG_LEN:])


@both_ways
@settings(max_examples=50, deadline=None)
@given(bit=st.integers(0, 8 * CELL_BODY_LEN - 1), link=st.integers(0, 2))
def test_flipped_bit_on_the_way_to_the_client_is_not_recognized_nor_is_any_cell_after(
    bit: int, link: int, portable: bool
) -> None:
    # Here the client undoes what honest relays did after the change, so that a bit on the right stays
    # one bit, and it is the tag that turns to noise.
    client, relays = make_client(3, portable), make_relays(3, portable)
    for number in range(3):
        body, _ = relays[2].relay_originate(RELAY, noise(f"cell {number}", CELL_BODY_LEN))
        for at in (1, 0):
            if (link, number) == (at + 1, 0):
                body = flipped(body, bit)
            body = relays[at].relay_backward(RELAY, body)
        if (link, number) == (0, 0):
            body = flipped(body, bit)
        assert reference.client_open(client, RELAY, body) is None


def flipped(body: bytes, bit: int) -> bytes:
    changed = bytearray(body)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@both_ways
@pytest.mark.parametrize("order", [[0, 0], [0, 1, 0], [1, 0], [0, 2], [0, 2, 1]], ids=str)
def test_replayed_reordered_or_missing_cell_is_not_recognized_nor_is_any_after(
    order: Sequence[int], portable: bool
) -> None:
    in_order = next(i for i, number in enumerate(order) if number != i)
    client, relays = make_client(3, portable), make_relays(3, portable)
    bodies = [noise(f"cell {number}", CELL_BODY_LEN) for number in range(4)]
    outbound = [reference.client_seal(client, 2, RELAY, body)[0] for body in bodies]
    inbound = [reference.relays_seal(relays, 2, RELAY, body)[0] for body in bodies]
    for at, number in enumerate([*order, 3]):
        assert (reference.relays_open(relays, RELAY, outbound[number]) is not None) == (at < in_order)
        assert (reference.client_open(client, RELAY, inbound[number]) is not None) == (at < in_order)


@both_ways
@pytest.mark.parametrize(("sent", "seen"), [(RELAY, RELAY_EARLY), (RELAY_EARLY, RELAY)])
def test_cell_with_its_command_changed_is_not_recognized(
    sent: Command, seen: Command, portable: bool
) -> None:
    client, relays = make_client(1, portable), make_relays(1, portable)
    body = noise("cell", CELL_BODY_LEN)
    assert reference.relays_open(relays, seen, reference.client_seal(client, 0, sent, body)[0]) is None
    assert reference.client_open(client, seen, reference.relays_seal(relays, 0, sent, body)[0]) is None


@both_ways
def test_leaky_pipe_reaches_every_hop_in_turn(portable: bool) -> None:
    client, relays = make_client(3, portable), make_relays(3, portable)
    for number, hop in enumerate([2, 0, 1, 2, 2, 0, 1, 1, 0, 2]):
        message = noise(f"message {number}", MESSAGE_LEN)
        sealed, expected_tag = reference.client_seal(client, hop, RELAY, bytes(TAG_LEN) + message)
        opened = reference.relays_open(relays, RELAY, sealed)
        assert opened is not None
        assert (opened[0], opened[1][TAG_LEN:], opened[2]) == (hop, message, expected_tag)


# --- Misuse and resources ------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 79, 81, 160])
def test_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"80 bytes, not {length}"):
        CgoLayer(bytes(length))


@pytest.mark.parametrize("length", [0, 15, 17])
def test_tprime_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"16 bytes, not {length}"):
        CgoLayer(bytes(80), tprime=bytes(length))


@pytest.mark.parametrize("length", [0, 508, 510])
def test_body_of_another_length_is_refused(length: int) -> None:
    client, relay = CgoLayer(bytes(80)), CgoLayer(bytes(80), relay=True)
    for move in (
        client.client_originate, client.client_forward, client.client_backward,
        relay.relay_forward, relay.relay_backward, relay.relay_originate,
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"509 bytes, not {length}"):
            move(RELAY, bytearray(length))


def test_a_layer_refuses_the_moves_of_the_other_side() -> None:
    client, relay = CgoLayer(bytes(80)), CgoLayer(bytes(80), relay=True)
    for move in (
        relay.client_originate, relay.client_forward, relay.client_backward,
        client.relay_forward, client.relay_backward, client.relay_originate,
    ):  # fmt: skip
        with pytest.raises(UsageError, match="other way round"):
            move(RELAY, bytearray(CELL_BODY_LEN))


def test_portable_layer_keeps_away_from_the_processors_instructions() -> None:
    assert not CgoLayer(bytes(80), portable=True).is_native


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux to say what the processor can do")
def test_native_where_the_processor_can() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert CgoLayer(bytes(80)).is_native == ({"aes", "pclmulqdq", "ssse3"} <= flags)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the process's size from /proc")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers keep freed memory, and report leaks")
@both_ways
def test_layers_come_and_go_without_leaving_memory_behind(portable: bool) -> None:
    def live_through(layers: int) -> int:
        """Pages resident after so many layers, each of which was used."""
        for _ in range(layers):
            CgoLayer(bytes(80), portable=portable).client_originate(RELAY, bytearray(CELL_BODY_LEN))
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = live_through(1000)
    assert live_through(10_000) - before < 250  # a leaked layer is some 800 bytes: 2,000 pages
