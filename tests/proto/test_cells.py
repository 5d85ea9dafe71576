"""Bodies of channel cells: known bytes, every truncation, padding, random bytes."""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.errors import ChannelError, CircuitError, DestroyReason, PeerError
from torkit.proto import cells
from torkit.proto.cells import HandshakeType, Netinfo

Decoder = Callable[[bytes], Any]

NETINFO = bytes.fromhex(
    "65920080"  # time
    "04 04 c0000201"  # other address
    "03"
    "04 04 7f000001"
    "06 10 20010db8000000000000000000000001"
    "00 03 616263"  # a type that we do not know
)

# Decoder, a whole body, what it means, which error truncation gives.
BODIES: list[tuple[Decoder, bytes, Any, type[PeerError]]] = [
    (
        cells.decode_certs,
        bytes.fromhex("02 04 0003 616263 09 0000"),
        [(4, b"abc"), (9, b"")],
        ChannelError,
    ),
    (cells.decode_certs, b"\0", [], ChannelError),
    (
        cells.decode_netinfo,
        NETINFO,
        Netinfo(
            0x65920080,
            IPv4Address("192.0.2.1"),
            (IPv4Address("127.0.0.1"), IPv6Address("2001:db8::1")),
        ),
        ChannelError,
    ),
    (cells.decode_created_fast, bytes(range(40)), bytes(range(40)), CircuitError),
    (cells.decode_created2, b"\0\x03abc", b"abc", CircuitError),
    (cells.decode_destroy, b"\x05", DestroyReason.RESOURCELIMIT, CircuitError),
]
each_body = pytest.mark.parametrize(("decode", "body", "meaning", "error"), BODIES)


@each_body
def test_body_is_decoded(decode: Decoder, body: bytes, meaning: Any, error: type[PeerError]) -> None:
    assert decode(body) == meaning


@each_body
def test_every_truncation_is_refused(
    decode: Decoder, body: bytes, meaning: Any, error: type[PeerError]
) -> None:
    for length in range(len(body)):
        with pytest.raises(error, match="truncated"):
            decode(body[:length])


@each_body
def test_padding_is_ignored(decode: Decoder, body: bytes, meaning: Any, error: type[PeerError]) -> None:
    assert decode(body + b"\0") == meaning
    assert decode(body + b"\xff" * (509 - len(body))) == meaning


@given(st.sampled_from([(decode, error) for decode, _, _, error in BODIES]), st.binary(max_size=600))
def test_random_bytes_give_only_the_declared_error(
    decoder: tuple[Decoder, type[PeerError]], body: bytes
) -> None:
    decode, error = decoder
    with suppress(error):
        decode(body)


def test_versions_round_trip() -> None:
    assert cells.encode_versions([3, 4, 5]) == b"\0\3\0\4\0\5"
    assert cells.decode_versions(b"\0\3\0\4\1\0") == [3, 4, 256]
    assert cells.decode_versions(b"") == []


@pytest.mark.parametrize("body", [b"\0", b"\0\3\0"])
def test_versions_of_odd_length_are_refused(body: bytes) -> None:
    with pytest.raises(ChannelError, match="odd length"):
        cells.decode_versions(body)


def test_client_netinfo_tells_neither_time_nor_address() -> None:
    assert cells.encode_netinfo(IPv4Address("192.0.2.1")) == bytes.fromhex("00000000 0404c0000201 00")
    assert cells.encode_netinfo(IPv6Address("2001:db8::1")) == bytes.fromhex(
        "00000000 061020010db8000000000000000000000001 00"
    )


@pytest.mark.parametrize("address", ["0403c00002", "0405c000020100", "060420010db8", "0004c0000201", "0600"])
def test_netinfo_address_of_wrong_length_or_unknown_type_is_ignored(address: str) -> None:
    body = bytes.fromhex("00000001" + address + "01" + address)
    assert cells.decode_netinfo(body) == Netinfo(1, None, ())


def test_create2_carries_type_length_and_data() -> None:
    assert cells.encode_create2(HandshakeType.NTOR, b"abc") == b"\0\2\0\3abc"
    assert cells.encode_create2(HandshakeType.NTOR_V3, b"") == b"\0\3\0\0"


def test_created2_whose_length_exceeds_the_cell_is_refused() -> None:
    assert cells.decode_created2(b"\x01\xfb" + bytes(507)) == bytes(507)
    with pytest.raises(CircuitError, match="508 bytes expected at offset 2, 507 seen"):
        cells.decode_created2(b"\x01\xfc" + bytes(507))


def test_destroy_says_nothing_of_our_reasons() -> None:
    assert cells.encode_destroy() == b"\0"


def test_destroy_reason_newer_than_we_are_counts_as_none() -> None:
    assert cells.decode_destroy(b"\x0c") is DestroyReason.NOSUCHSERVICE
    assert cells.decode_destroy(b"\x0d") is DestroyReason.NONE
