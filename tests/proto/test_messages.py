"""Bodies of relay messages: known bytes, every truncation, edges, random bytes."""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.errors import CircuitError, DestroyReason, EndReason, UsageError
from torkit.proto import messages
from torkit.proto.cells import HandshakeType
from torkit.proto.messages import Answer, BeginFlags, Connected, End, ResolvedError

Decoder = Callable[[bytes], Any]

V4 = IPv4Address("192.0.2.1")
V6 = IPv6Address("2001:db8::1")
NO_FLAGS = BeginFlags(0)

# Decoder, a body of which every byte is needed, what it means.
BODIES: list[tuple[Decoder, bytes, Any]] = [
    (messages.decode_connected, V4.packed + b"\0\0\x0e\x10", Connected(V4, 3600)),
    (messages.decode_connected, bytes(4) + b"\6" + V6.packed + b"\0\0\0\1", Connected(V6, 1)),
    (messages.decode_end, b"\6", End(EndReason.DONE)),
    (messages.decode_extended2, b"\0\3abc", b"abc"),
    (messages.decode_truncated, b"\x0a", DestroyReason.TIMEOUT),
    (messages.decode_xon, b"\0\0\0\x01\x02", 258),
    (messages.decode_xoff, b"\0", None),
]
each_body = pytest.mark.parametrize(("decode", "body", "meaning"), BODIES)

DECODERS: list[Decoder] = [*{decode for decode, _, _ in BODIES}, messages.decode_resolved]


@each_body
def test_body_is_decoded(decode: Decoder, body: bytes, meaning: Any) -> None:
    assert decode(body) == meaning


@each_body
def test_bytes_beyond_the_known_fields_are_ignored(decode: Decoder, body: bytes, meaning: Any) -> None:
    assert decode(body + b"\xff") == meaning


@each_body
def test_every_truncation_is_refused(decode: Decoder, body: bytes, meaning: Any) -> None:
    for length in range(1 if decode is messages.decode_connected else 0, len(body)):
        with pytest.raises(CircuitError, match="truncated"):
            decode(body[:length])


@given(st.sampled_from(DECODERS), st.binary(max_size=510))
def test_random_bytes_give_only_circuit_errors(decode: Decoder, body: bytes) -> None:
    with suppress(CircuitError):
        decode(body)


# --- BEGIN, CONNECTED ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("example.com", b"example.com:80\0"),
        ("EXAMPLE.Com.", b"example.com.:80\0"),
        ("_sip._tcp.ex-ample.com", b"_sip._tcp.ex-ample.com:80\0"),
        ("192.0.2.1", b"192.0.2.1:80\0"),
        ("2001:DB8:0::1", b"[2001:db8::1]:80\0"),
        ("a" * 63, b"a" * 63 + b":80\0"),
        (".".join(["a" * 49] * 5) + ".abc", b".".join([b"a" * 49] * 5) + b".abc:80\0"),
    ],
)
def test_begin_names_its_destination_in_lower_case(host: str, expected: bytes) -> None:
    assert messages.encode_begin(host, 80, NO_FLAGS) == expected


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a..",
        "a b",
        "a\0b",
        "a\n",
        "a/b",
        "user@a",
        "site.onion",
        "Site.ONION.",
        "[::1]",
        "a:80",
        "fe80::1%eth0",
        ":::",
        "b\u00fccher.example",
        "\u212aelvin.example",  # lower() makes ASCII of it
        "a" * 64,
        ".".join(["a" * 49] * 5) + ".abcd",
        "a" * 100_000,
    ],
)
def test_host_that_is_none_is_refused_and_not_repeated(host: str) -> None:
    with pytest.raises(UsageError) as from_begin:
        messages.encode_begin(host, 80, NO_FLAGS)
    with pytest.raises(UsageError) as from_resolve:
        messages.encode_resolve(host)
    for caught in (from_begin, from_resolve):
        assert len(host) < 2 or host not in str(caught.value)


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match="port"):
        messages.encode_begin("a", port, NO_FLAGS)
    with pytest.raises(UsageError, match="port"):
        messages.encode_begin_service(port)


def test_ports_at_the_edges_are_sent() -> None:
    assert messages.encode_begin("a", 1, NO_FLAGS) == b"a:1\0"
    assert messages.encode_begin("a", 65535, NO_FLAGS) == b"a:65535\0"


@pytest.mark.parametrize("port", [1, 80, 65535])
def test_a_service_is_asked_for_a_port_alone(port: int) -> None:
    assert messages.encode_begin_service(port) == b":%d\0" % port
    assert messages.decode_begin_service(messages.encode_begin_service(port)) == port
    assert messages.decode_begin_service(b"a.example:%d\0\0\0\0\5" % port) == port


@pytest.mark.parametrize("body", [b"", b":80", b"\0", b":\0", b":x\0", b":-1\0", b":65536\0", b":000080\0"])
def test_a_service_refuses_what_names_no_port(body: bytes) -> None:
    with pytest.raises(CircuitError, match="no port"):
        messages.decode_begin_service(body)


def test_begin_flags_follow_the_nul() -> None:
    flags = BeginFlags.IPV6_OK | BeginFlags.IPV6_PREFERRED
    assert messages.encode_begin("a", 1, flags) == b"a:1\0\0\0\0\5"


def test_empty_connected_says_no_address() -> None:
    assert messages.decode_connected(b"") == Connected(None, None)


def test_connected_with_unknown_address_type_is_refused() -> None:
    with pytest.raises(CircuitError, match="type 4, not 6"):
        messages.decode_connected(bytes(4) + b"\4" + bytes(20))


# --- END, TRUNCATED --------------------------------------------------------------------------------------


def test_end_carries_its_reason() -> None:
    assert messages.encode_end(EndReason.MISC) == b"\1"


def test_end_reason_newer_than_we_are_counts_as_misc() -> None:
    assert messages.decode_end(b"\x0e") == End(EndReason.NOTDIRECTORY)
    assert messages.decode_end(b"\x0f") == End(EndReason.MISC)


def test_end_for_any_other_reason_tells_no_address() -> None:
    assert messages.decode_end(b"\1" + V4.packed) == End(EndReason.MISC)


@pytest.mark.parametrize("ttl", [b"", b"\0\0\0\1"])
@pytest.mark.parametrize("address", [V4, V6])
def test_end_tells_the_address_that_exit_policy_refused(
    address: IPv4Address | IPv6Address, ttl: bytes
) -> None:
    assert messages.decode_end(b"\4" + address.packed + ttl) == End(EndReason.EXITPOLICY, address)


@pytest.mark.parametrize("length", [0, 3, 5, 7, 9, 15, 17, 19, 21, 497])
def test_end_is_processed_although_its_address_has_a_wrong_length(length: int) -> None:
    assert messages.decode_end(b"\4" + bytes(length)) == End(EndReason.EXITPOLICY, None)


# --- RESOLVE, RESOLVED -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("Example.com", b"example.com\0"),
        (V4, b"1.2.0.192.in-addr.arpa\0"),
        (V6, b"1" + b".0" * 23 + b".8.b.d.0.1.0.0.2.ip6.arpa\0"),
        (IPv6Address("2001:db8::1%eth0"), b"1" + b".0" * 23 + b".8.b.d.0.1.0.0.2.ip6.arpa\0"),
    ],
)
def test_resolve_asks_for_a_name_or_the_name_of_an_address(host: Any, expected: bytes) -> None:
    assert messages.encode_resolve(host) == expected


def answer(answer_type: int, value: bytes, ttl: int = 60) -> bytes:
    return bytes([answer_type, len(value)]) + value + ttl.to_bytes(4, "big")


def test_resolved_lists_its_answers_in_order() -> None:
    body = (
        answer(4, V4.packed)
        + answer(6, V6.packed, 2**32 - 1)
        + answer(0, b"Host.example")
        + answer(0x77, b"unknown")
        + answer(0xF0, b"Error resolving hostname")
        + answer(0xF1, b"")
    )
    assert messages.decode_resolved(body) == [
        Answer(V4, 60),
        Answer(V6, 2**32 - 1),
        Answer("host.example", 60),
        Answer(ResolvedError.TRANSIENT, 60),
        Answer(ResolvedError.NONTRANSIENT, 60),
    ]


def test_resolved_may_have_no_answers() -> None:
    assert messages.decode_resolved(b"") == []


@pytest.mark.parametrize("answer_type", [0, 4, 6, 0xF0, 0xF1, 0x77])
def test_every_truncation_within_an_answer_is_refused(answer_type: int) -> None:
    value = {4: V4.packed, 6: V6.packed}.get(answer_type, b"abc")
    whole = answer(answer_type, value)
    for length in range(1, len(whole)):
        with pytest.raises(CircuitError, match="truncated"):
            messages.decode_resolved(answer(4, V4.packed) + whole[:length])


@pytest.mark.parametrize(
    ("answer_type", "length"), [(4, 0), (4, 3), (4, 5), (4, 16), (6, 4), (6, 15), (6, 17)]
)
def test_resolved_address_of_wrong_length_is_refused(answer_type: int, length: int) -> None:
    with pytest.raises(CircuitError, match=f"type {answer_type} and {length} bytes"):
        messages.decode_resolved(answer(answer_type, bytes(length)))


@pytest.mark.parametrize("name", [b"", b"a b", b"\x1b[2J", b"a\n", b"\xff", b"a" * 64])
def test_resolved_name_that_is_none_is_left_out(name: bytes) -> None:
    assert messages.decode_resolved(answer(0, name) + answer(4, V4.packed)) == [Answer(V4, 60)]


# --- EXTEND2 ---------------------------------------------------------------------------------------------

RSA_SPECIFIER = b"\2\x14" + b"r" * 20
ED25519_SPECIFIER = b"\3\x20" + b"e" * 32
V4_SPECIFIER = b"\0\6" + V4.packed + b"\x23\x29"
V6_SPECIFIER = b"\1\x12" + V6.packed + b"\x23\x2a"


def test_link_specifiers_stand_in_the_order_of_the_specification() -> None:
    encoded = messages.encode_link_specifiers(
        [(V6, 9002), (V4, 9001)], rsa_identity=b"r" * 20, ed25519_identity=b"e" * 32
    )
    assert encoded == b"\4" + V4_SPECIFIER + RSA_SPECIFIER + ED25519_SPECIFIER + V6_SPECIFIER


def test_link_specifiers_without_ed25519_identity() -> None:
    encoded = messages.encode_link_specifiers([(V4, 9001)], rsa_identity=b"r" * 20, ed25519_identity=None)
    assert encoded == b"\2" + V4_SPECIFIER + RSA_SPECIFIER


@pytest.mark.parametrize(("rsa_len", "ed25519_len"), [(19, 32), (21, 32), (20, 31), (20, 33)])
def test_identities_of_wrong_length_are_refused(rsa_len: int, ed25519_len: int) -> None:
    with pytest.raises(UsageError, match="identity"):
        messages.encode_link_specifiers([], rsa_identity=bytes(rsa_len), ed25519_identity=bytes(ed25519_len))


def test_extend2_is_specifiers_and_handshake() -> None:
    specifiers = messages.encode_link_specifiers([(V4, 9001)], rsa_identity=b"r" * 20, ed25519_identity=None)
    body = messages.encode_extend2(specifiers, HandshakeType.NTOR, b"abc")
    assert body == specifiers + b"\0\2\0\3abc"


# --- Flow control ----------------------------------------------------------------------------------------


def test_xon_and_xoff_round_trip() -> None:
    for rate in (0, 1, 2**32 - 1):
        assert messages.decode_xon(messages.encode_xon(rate)) == rate
    messages.decode_xoff(messages.encode_xoff())


def test_xon_and_xoff_of_unknown_version_are_refused() -> None:
    with pytest.raises(CircuitError, match="XON has version 1"):
        messages.decode_xon(b"\1\0\0\0\0")
    with pytest.raises(CircuitError, match="XOFF has version 1"):
        messages.decode_xoff(b"\1")
