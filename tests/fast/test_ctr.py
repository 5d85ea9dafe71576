"""The key stream of tor1 layers, beside another library's."""

import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given
from hypothesis import strategies as st

from torkit._fast.ctr import CtrStream
from torkit.errors import UsageError
from torkit.testing.relay.reference import CELL_BODY_LEN

# Every machine runs both: the processor's instructions, where it has them, and the portable way.
both_ways = pytest.mark.parametrize("portable", [False, True], ids=["native", "portable"])

keys = st.sampled_from([16, 32]).flatmap(lambda length: st.binary(min_size=length, max_size=length))


def other_stream(key: bytes, length: int) -> bytes:
    return Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(length))


@both_ways
@given(key=keys, lengths=st.lists(st.integers(0, 1200), max_size=20))
def test_any_split_gives_the_same_stream(portable: bool, key: bytes, lengths: list[int]) -> None:
    stream = CtrStream(key, portable=portable)
    pieces = [bytearray(length) for length in lengths]
    for piece in pieces:
        stream.xor(piece)
    assert b"".join(pieces) == other_stream(key, sum(lengths))


# A short piece and a long one are made by different instructions; the counter's third byte moves after 1 MiB.
@both_ways
@pytest.mark.parametrize("length", [100, CELL_BODY_LEN])
def test_the_counter_carries(portable: bool, length: int) -> None:
    key = os.urandom(16)
    stream = CtrStream(key, portable=portable)
    pieces = [bytearray(length) for _ in range((1 << 20) // length + 100)]
    for piece in pieces:
        stream.xor(piece)
    assert b"".join(pieces) == other_stream(key, sum(map(len, pieces)))


def test_data_is_changed_in_place_and_back() -> None:
    data = bytearray(os.urandom(CELL_BODY_LEN))
    before = bytes(data)
    CtrStream(bytes(16)).xor(data)
    assert data != before
    CtrStream(bytes(16)).xor(data)
    assert data == before


@pytest.mark.parametrize("length", [0, 15, 17, 24, 33])
def test_only_a_key_of_16_or_32_bytes_will_do(length: int) -> None:
    with pytest.raises(UsageError, match=f"16 or 32 bytes, not {length}"):
        CtrStream(bytes(length))
