"""DNS as programs speak it to a server of this machine."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.errors import PeerError
from torkit.proto.dns import (
    MAX_ANSWER_LEN,
    Code,
    Query,
    Type,
    address_of_reverse_name,
    encode_answer,
    parse_query,
)

# RFC 1035, section 4.1: id 0xbeef, recursion desired, one question: web.test, type A, class IN.
QUESTION = b"\x03web\x04test\x00\x00\x01\x00\x01"
QUERY = b"\xbe\xef\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + QUESTION

# RFC 6891: an OPT record of glibc's and dig's queries, with room for 1,232 bytes.
OPT = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"


def query(
    name: bytes = b"\x03web\x04test\x00", asked: int = 1, asked_class: int = 1, flags: int = 0
) -> bytes:
    return struct.pack(">HHHHHH", 7, flags, 1, 0, 0, 0) + name + struct.pack(">HH", asked, asked_class)


def test_a_query_is_read() -> None:
    assert parse_query(QUERY) == Query(0xBEEF, "web.test", Type.A, True, QUESTION)


def test_what_edns_adds_is_not_read() -> None:
    with_opt = QUERY[:11] + b"\x01" + QUERY[12:] + OPT
    assert parse_query(with_opt) == parse_query(QUERY)


@pytest.mark.parametrize(
    "packet",
    [
        query(asked=65),  # HTTPS, which browsers ask for
        query(asked=255),  # ANY
        query(asked_class=3),  # CHAOS
        query(flags=0x2800),  # UPDATE
    ],
)
def test_other_questions_are_answered_with_notimp(packet: bytes) -> None:
    asked = parse_query(packet)
    assert asked.type is None
    assert encode_answer(asked, Code.NOTIMP)[3] & 0x0F == 4


@pytest.mark.parametrize("length", range(len(QUERY)))
def test_a_truncated_query_is_refused(length: int) -> None:
    with pytest.raises(PeerError):
        parse_query(QUERY[:length])


@pytest.mark.parametrize(
    "packet",
    [
        QUERY[:2] + b"\x81" + QUERY[3:],  # a response: to answer it could begin a loop
        QUERY[:5] + b"\x00" + QUERY[6:],  # no question
        QUERY[:5] + b"\x02" + QUERY[6:] + QUESTION,
        QUERY[:7] + b"\x01" + QUERY[8:],  # with an answer
        QUERY[:9] + b"\x01" + QUERY[10:],
        query(b"\xc0\x0c"),  # a name that points to itself
        query(b"\x40" + b"a" * 64 + b"\x00"),
        query((b"\x3f" + b"a" * 63) * 4 + b"\x00"),  # 257 bytes
    ],
)
def test_what_is_no_query_is_refused(packet: bytes) -> None:
    with pytest.raises(PeerError):
        parse_query(packet)


def test_the_longest_name_is_read() -> None:
    labels = [b"\x3f" + b"a" * 63] * 3 + [b"\x3d" + b"a" * 61]
    name = b"".join(labels) + b"\x00"
    assert len(name) == 255
    assert len(parse_query(query(name)).name) == 253


def test_a_dot_within_a_label_does_not_end_it() -> None:
    assert parse_query(query(b"\x08web.test\x00")).name == "web\ufffdtest"


@given(st.binary(max_size=600))
def test_random_bytes_are_read_or_refused(packet: bytes) -> None:
    try:
        asked = parse_query(packet)
    except PeerError:
        return
    assert encode_answer(asked, Code.NXDOMAIN)[:2] == packet[:2]


def test_addresses_are_answered() -> None:
    found = [IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2")]
    answer = encode_answer(parse_query(QUERY), Code.NOERROR, found, ttl=60)
    records = b"".join(
        b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + address.packed for address in found
    )
    assert answer == b"\xbe\xef\x81\x80\x00\x01\x00\x02\x00\x00\x00\x00" + QUESTION + records


def test_an_ipv6_address_is_answered() -> None:
    address = IPv6Address("fd74:6f72:6b00::1")
    answer = encode_answer(parse_query(query(asked=28)), Code.NOERROR, [address])
    assert answer.endswith(b"\x00\x1c\x00\x01\x00\x00\x00\x00\x00\x10" + address.packed)


def test_a_name_is_answered() -> None:
    answer = encode_answer(parse_query(query(asked=12)), Code.NOERROR, ["one.test."])
    assert answer.endswith(b"\x00\x0a\x03one\x04test\x00")


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64, ".".join(["a" * 63] * 4), "b\u00fccher"])
def test_a_name_that_dns_cannot_write_is_left_out(name: str) -> None:
    answer = encode_answer(parse_query(query(asked=12)), Code.NOERROR, [name, "one.test"])
    assert answer[6:8] == b"\x00\x01"


def test_an_answer_has_at_most_512_bytes() -> None:
    found = [".".join(["a" * 60] * 3)] * 10
    answer = encode_answer(parse_query(query(asked=12)), Code.NOERROR, found)
    assert len(answer) <= MAX_ANSWER_LEN
    assert answer[6:8] == b"\x00\x02"


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::fe", "::", "255.255.255.255"])
def test_a_reverse_name_tells_its_address(text: str) -> None:
    address = ip_address(text)
    assert address_of_reverse_name(address.reverse_pointer.upper()) == address


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "arpa",
            "in-addr.arpa",
            "1.2.3.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "1.2.3.256.in-addr.arpa",
        ),
        *("1.2.3.x.in-addr.arpa", "1.2.3.4.ip6.arpa", "0.in-addr.test", "+1.2.3.4.in-addr.arpa"),
        "x." + "0." * 31 + "ip6.arpa",
        "00." * 32 + "ip6.arpa",
    ],
)
def test_other_names_tell_none(name: str) -> None:
    assert address_of_reverse_name(name) is None
